//! The pages that the kubelet's probes ask for, over HTTP.
//!
//! | page | 200 | 503 | asked by |
//! |---|---|---|---|
//! | `/livez` | the agent's loop turned within the last 30 s | it did not; the age is in the text | startup and liveness probe: a restart may mend it |
//! | `/readyz` | it enforces all that it should know of | it does not; each line says one reason | readiness probe, people |
//!
//! Everything else is 404, `/healthz` as well: Kubernetes gave that name up, since it says neither which of the two it is.
//! Texts are for people and may change; the status is for programs. A request is answered from two values in memory, so
//! whoever asks, however often, waits for nothing of the agent and holds nothing up.

mod connections;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;

use connections::{Connections, LIMITS};

/// For how long the agent's loop may stand still. It turns at least once a second; what holds it longest is a large change,
/// compiled and published in a few seconds.
const STANDSTILL: Duration = Duration::from_secs(30);

/// What the agent says of itself, shared by the loop that knows and the pages that tell. Clones are handles of one value.
#[derive(Clone, Debug)]
pub struct Health(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    begin: Instant,
    /// Of the last beat, in milliseconds after `begin`.
    beat_ms: AtomicU64,
    standstill: Duration,
    report: Mutex<Report>,
}

/// Whether the agent enforces all that it should know of, and what is to be said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Every kind of object was heard of, and what follows from them is in force.
    pub is_ready: bool,
    /// A line each, without its end: why not, or what is worth knowing.
    pub lines: Vec<String>,
}

impl Health {
    /// Alive from now on, and not ready until a report says so.
    pub fn new() -> Self {
        Self::with_standstill(STANDSTILL)
    }

    fn with_standstill(standstill: Duration) -> Self {
        let report = Report { is_ready: false, lines: vec!["the agent starts".to_owned()] };
        let begin = Instant::now();
        Self(Arc::new(Shared { begin, beat_ms: AtomicU64::new(0), standstill, report: Mutex::new(report) }))
    }

    /// Says that the agent's loop turns. One store.
    pub fn beat(&self) {
        let ms = u64::try_from(self.0.begin.elapsed().as_millis()).expect("an agent runs less than 500 million years");
        self.0.beat_ms.store(ms, Ordering::Relaxed);
    }

    /// Replaces what `/readyz` tells.
    pub fn set(&self, report: Report) {
        *self.0.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }

    /// Answers on `listener` until it is dropped. Connections are few, short and bounded in what they may send; the newest
    /// pushes out the oldest.
    pub async fn serve(self, listener: TcpListener) {
        let pages = Router::new()
            .route("/livez", get(|State(health): State<Self>| async move { health.live() }))
            .route("/readyz", get(|State(health): State<Self>| async move { health.ready() }))
            .fallback(|| async { (StatusCode::NOT_FOUND, "no such page: there are /livez and /readyz\n") })
            .layer(map_response(last_on_its_connection))
            .with_state(self);
        // It gives a result for the type's sake: neither accepting nor serving ends it.
        let _never = axum::serve(Connections::new(listener, LIMITS), pages).await;
    }

    fn live(&self) -> Page {
        let Shared { begin, beat_ms, standstill, report: _ } = &*self.0;
        let age = begin.elapsed().saturating_sub(Duration::from_millis(beat_ms.load(Ordering::Relaxed)));
        if age < *standstill {
            (StatusCode::OK, "live\n".to_owned())
        } else {
            let (age, limit) = (age.as_secs_f32(), standstill.as_secs_f32());
            let text = format!("not live: the agent's loop last turned {age:.1} s ago, expected within {limit:.1} s\n");
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }

    fn ready(&self) -> Page {
        let Report { is_ready, lines } = &*self.0.report.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, first) =
            if *is_ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") };
        let mut text = first.to_owned();
        for line in lines {
            writeln!(text, "{line}").expect("a String takes everything");
        }
        (status, text)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

/// What an answer is made of; its type is plain text.
type Page = (StatusCode, String);

/// Whoever asks seldom should not hold a connection.
async fn last_on_its_connection(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Serves it and returns where.
    async fn serve(health: &Health) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(health.clone().serve(listener));
        address
    }

    /// Status and text of an answer. The server ends the connection, or this would wait.
    async fn ask(address: std::net::SocketAddr, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), text.to_owned())
    }

    #[tokio::test]
    async fn readiness_follows_the_report() {
        let health = Health::new();
        let address = serve(&health).await;
        let expect = |status, text: &str| (status, text.to_owned());
        assert_eq!(ask(address, "GET /readyz").await, expect(503, "not ready\nthe agent starts\n"));
        health.set(Report { is_ready: true, lines: vec![] });
        assert_eq!(ask(address, "GET /readyz").await, expect(200, "ready\n"));
        let lines = vec!["pods: not listed yet".to_owned(), "nodes: forbidden".to_owned()];
        health.set(Report { is_ready: false, lines });
        let text = "not ready\npods: not listed yet\nnodes: forbidden\n";
        assert_eq!(ask(address, "GET /readyz").await, expect(503, text));
        assert_eq!(ask(address, "GET /livez").await, expect(200, "live\n"), "whether it is ready is another question");
    }

    #[tokio::test]
    async fn life_is_a_beat_within_the_limit() {
        let health = Health::with_standstill(Duration::from_millis(300));
        let address = serve(&health).await;
        assert_eq!(ask(address, "GET /livez").await.0, 200, "it starts alive");
        tokio::time::sleep(Duration::from_millis(400)).await;
        let (status, text) = ask(address, "GET /livez").await;
        assert_eq!(status, 503);
        assert!(text.starts_with("not live: the agent's loop last turned 0."), "{text}");
        assert!(text.ends_with(" s ago, expected within 0.3 s\n"), "{text}");
        health.beat();
        assert_eq!(ask(address, "GET /livez").await, (200, "live\n".to_owned()));
        assert_eq!(ask(address, "GET /readyz").await.0, 503, "a beat says nothing of readiness");
    }

    #[tokio::test]
    async fn other_pages_and_methods_are_refused() {
        let address = serve(&Health::new()).await;
        for path in ["/", "/healthz", "/livez/", "/readyz/../livez"] {
            let expected = (404, "no such page: there are /livez and /readyz\n".to_owned());
            assert_eq!(ask(address, &format!("GET {path}")).await, expected);
        }
        assert_eq!(ask(address, "POST /livez").await.0, 405);
    }

    #[tokio::test]
    async fn an_endless_request_is_cut_off() {
        let mut stream = TcpStream::connect(serve(&Health::new()).await).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nX: ").await.unwrap();
        let endless = async { while stream.write_all(&[b'x'; 1024]).await.is_ok() {} };
        tokio::time::timeout(LIMITS.lifetime / 2, endless).await.unwrap();
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_out() {
        let health = Health::new();
        let address = serve(&health).await;
        let mut idle = Vec::new();
        for _ in 0..4 * LIMITS.connections {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Half a request, so that the server waits for the rest.
            stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
            idle.push(stream);
        }
        let (status, _) = tokio::time::timeout(LIMITS.lifetime / 2, ask(address, "GET /livez")).await.unwrap();
        assert_eq!(status, 200);
        let mut open = 0;
        for stream in &mut idle {
            let ended = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut [0])).await;
            open += usize::from(ended.is_err());
        }
        assert!((1..=LIMITS.connections).contains(&open), "{open} are open");
    }
}
