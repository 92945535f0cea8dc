//! Asking the API server: requests with time limits, and why one came to nothing.

use std::fmt;
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::{AuthError, Body};
use tokio::time::{Instant, timeout, timeout_at};

use super::kind::Kind;
use super::wire::{Status, parse_status};

/// The largest page or line that is read: etcd takes objects of 1.5 MB, and a page has some hundred of them.
const MOST_BYTES: usize = 256 << 20;
/// The largest error that is read.
const MOST_STATUS_BYTES: usize = 64 << 10;
/// Characters of what a server says that are passed on.
const LONGEST_MESSAGE: usize = 300;
/// The longest wait that a server can ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Until a response begins, and between two parts of one that is not a watch.
    pub(super) response: Duration,
    /// Between two lines of a watch: a server sends a bookmark about once a minute.
    pub(super) silence: Duration,
    /// Before the first retry, and the longest wait before one.
    pub(super) retry: (Duration, Duration),
    /// Before looking again for a kind that the server does not have.
    pub(super) look_again: Duration,
    /// After which a watch that has come back has told what was missed.
    pub(super) settle: Duration,
    /// How long the server is asked to keep a watch, at least and at most, in seconds.
    pub(super) watch_seconds: (u64, u64),
    /// Objects in a page of a list.
    pub(super) page: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            response: Duration::from_secs(20),
            silence: Duration::from_secs(90),
            retry: (Duration::from_millis(200), Duration::from_secs(5)),
            look_again: Duration::from_secs(10),
            settle: Duration::from_secs(1),
            watch_seconds: (240, 300),
            page: 500,
        }
    }
}

/// Why a request came to nothing, or a watch ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    /// In words, for a log.
    pub(super) message: String,
    /// When the server wants to be asked again.
    pub(super) retry_after: Option<Duration>,
}

/// What follows from a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// The server does not know any more what happened since (410): list again.
    Expired,
    /// What the server says cannot be read, or does not fit what it said before: list again.
    Unfit,
    /// The server does not take the request as it is.
    Refused,
    /// The server has gone wrong (5xx), which may be for what it was asked.
    Server,
    /// There is nothing at this path.
    NotFound,
    /// This account may not do that.
    Forbidden,
    /// A watch has said nothing for long: it may be dead, or its server sends no bookmarks.
    Silent,
    /// Anything that may pass.
    Other,
}

impl Failure {
    pub(super) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), retry_after: None }
    }

    /// A server's word for it.
    pub(super) fn from_status(status: Status) -> Self {
        let Status { code, reason, message, retry_after } = status;
        // A server that was restored from a backup has not come as far as we: `ResourceVersionTooLarge` (`storage/errors.go`,
        // v1.33) is a timeout of this text.
        let is_ahead = code == 504 && message.contains("Too large resource version");
        let cause = match code {
            410 => Cause::Expired,
            _ if reason == "Expired" => Cause::Expired,
            _ if is_ahead => Cause::Unfit,
            400 | 405 | 406 | 415 | 422 => Cause::Refused,
            403 => Cause::Forbidden,
            404 => Cause::NotFound,
            500..=599 => Cause::Server,
            _ => Cause::Other,
        };
        let mut said = format!("the API server answers {code}");
        if let Some(name) = StatusCode::from_u16(code).ok().and_then(|code| code.canonical_reason()) {
            said.push_str(&format!(" {name}"));
        }
        if !message.is_empty() {
            said.push_str(&format!(": {}", readable(&message)));
        }
        Self { cause, message: said, retry_after: retry_after.map(|wait| wait.min(LONGEST_RETRY_AFTER)) }
    }

    fn from_kube(error: &kube::Error) -> Self {
        Self::new(Cause::Other, describe(error))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error with its causes on one line. What asks for credentials may quote them, so of that only the kind is told.
pub(super) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in std::iter::successors(Some(error), |error| error.source()) {
        if cause.is::<AuthError>() {
            return "cannot get credentials for the API server, see the user in the kubeconfig".to_owned();
        }
        let text = cause.to_string();
        // Some errors quote their cause.
        match parts.last_mut() {
            Some(last) if last.contains(&text) => {}
            _ => parts.push(text),
        }
    }
    // `kube` wraps what others say into a name of its own.
    let said = parts.join(": ");
    readable(said.strip_prefix("ServiceError: ").unwrap_or(&said))
}

/// A text from elsewhere, as one line of bounded length.
pub(super) fn readable(text: &str) -> String {
    let mut text: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_MESSAGE + 1).collect();
    if text.chars().count() > LONGEST_MESSAGE {
        text.pop();
        text.push_str("...");
    }
    text
}

/// Sends a GET and waits for the response to begin. One that is not a success is a failure.
pub(super) async fn get(client: &Client, path: &str, timing: &Timing) -> Result<Response<Body>, Failure> {
    let request = Request::get(path)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .expect("paths and queries are made of safe characters");
    let deadline = Instant::now() + timing.response;
    let response = match timeout_at(deadline, client.send(request)).await {
        Ok(response) => response.map_err(|error| Failure::from_kube(&error))?,
        Err(_elapsed) => return Err(silent(timing.response)),
    };
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    // The status code says it all the same; the body only says it in more words.
    let body = read_all(response.into_body(), MOST_STATUS_BYTES, timing).await.unwrap_or_default();
    let mut status = parse_status(&body, status.as_u16());
    status.retry_after = retry_after.map(Duration::from_secs).or(status.retry_after);
    Err(Failure::from_status(status))
}

/// Sends a GET and reads the whole response.
pub(super) async fn get_all(client: &Client, path: &str, timing: &Timing) -> Result<Vec<u8>, Failure> {
    let response = get(client, path, timing).await?;
    read_all(response.into_body(), MOST_BYTES, timing).await
}

async fn read_all(mut body: Body, most: usize, timing: &Timing) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    loop {
        let frame = timeout(timing.response, body.frame()).await.map_err(|_elapsed| silent(timing.response))?;
        let Some(frame) = frame else { return Ok(bytes) };
        let frame = frame.map_err(|error| Failure::from_kube(&error))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > most {
                return Err(Failure::new(Cause::Other, format!("a response of more than {most} bytes")));
            }
            bytes.extend_from_slice(data);
        }
    }
}

fn silent(wait: Duration) -> Failure {
    Failure::new(Cause::Other, format!("no answer from the API server within {wait:?}"))
}

/// The lines of a watch, as they come.
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where no line ends.
    searched: usize,
}

impl Lines {
    pub(super) fn new(response: Response<Body>) -> Self {
        Self { body: response.into_body(), buffer: Vec::new(), start: 0, searched: 0 }
    }

    /// The next line that is not empty; `None`: the server has ended the watch. May be given up at any time and called again.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        loop {
            while let Some(length) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let (start, end) = (self.start, self.searched + length);
                self.start = end + 1;
                self.searched = self.start;
                if end > start {
                    return Ok(Some(&self.buffer[start..end]));
                }
            }
            // What was handed out is not needed any more.
            self.buffer.drain(..self.start);
            self.start = 0;
            self.searched = self.buffer.len();
            if self.buffer.is_empty() && self.buffer.capacity() > 1 << 20 {
                self.buffer = Vec::new();
            }
            if self.buffer.len() > MOST_BYTES {
                return Err(Failure::new(Cause::Unfit, format!("a line of more than {MOST_BYTES} bytes")));
            }
            match self.body.frame().await {
                // Half a line is nothing: it is sent again in the next watch.
                None => return Ok(None),
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(error)) => return Err(Failure::from_kube(&error)),
            }
        }
    }
}

/// The rule that a ClusterRole needs for a kind.
pub(super) fn rule_for(kind: Kind) -> String {
    let (group, resource) = kind.resource();
    format!("{{apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"list\", \"watch\"]}}")
}
