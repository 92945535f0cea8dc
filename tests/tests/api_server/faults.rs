//! Every fault does to a client what it says, and a client that bears with it ends with the truth.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{self, Config, Event};
use kube::{ResourceExt, api::WatchParams};
use npolicy_tests::api_server::{ApiServer, Fault, Kind, Schedule, Scope, Verb};

use crate::client::{PATIENCE, Told, client, server_with_pods};
use crate::objects::{namespace, pod};

/// A connection to the server that is read as it comes.
fn raw(server: &ApiServer, path: &str, patience: Duration) -> (String, bool) {
    use std::io::{Read as _, Write as _};
    let address = server.url().replace("http://", "");
    let mut stream = std::net::TcpStream::connect(&address).expect("a connection");
    stream.set_read_timeout(Some(patience)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("a request");
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (String::from_utf8_lossy(&bytes).into_owned(), true),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(_silence) => return (String::from_utf8_lossy(&bytes).into_owned(), false),
        }
    }
}

const SHORT: Duration = Duration::from_millis(300);
const PODS: &str = "/api/v1/pods";

#[test]
fn a_status_comes_with_its_time_to_wait_and_so_often() {
    let server = server_with_pods(1);
    let lists = Scope::all().kinds(&[Kind::Pod]).verbs(&[Verb::List]);
    let fault = server.faults().add_times(lists, Fault::Status { code: 429, retry_after_s: Some(7) }, 2);
    for _ in 0..2 {
        let (text, has_ended) = raw(&server, PODS, PATIENCE);
        assert!(has_ended && text.starts_with("HTTP/1.1 429") && text.contains("retry-after: 7\r\n"), "{text}");
        assert!(text.contains(r#""reason":"TooManyRequests""#), "{text}");
    }
    assert_eq!(server.faults().happened(fault), 2);
    assert!(raw(&server, PODS, PATIENCE).0.starts_with("HTTP/1.1 200"));
    server.faults().add(Scope::all(), Fault::Status { code: 503, retry_after_s: None });
    assert!(raw(&server, "/version", PATIENCE).0.starts_with("HTTP/1.1 503"));
    server.faults().clear();
    assert!(raw(&server, "/version", PATIENCE).0.contains("gitVersion"));
}

#[test]
fn answers_stall_end_and_are_cut_off_where_they_are_told_to() {
    let server = server_with_pods(1);
    let with = |fault| {
        server.faults().clear();
        server.faults().add(Scope::reads(), fault);
        let (text, has_ended) = raw(&server, PODS, SHORT);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (text, body, has_ended)
    };
    let (text, _, has_ended) = with(Fault::Drop);
    assert_eq!((text.as_str(), has_ended), ("", true));
    let (text, _, has_ended) = with(Fault::Stall);
    assert_eq!((text.as_str(), has_ended), ("", false));
    // Chunks begin with their length.
    let (_, body, has_ended) = with(Fault::StallWithin { bytes: 9 });
    assert_eq!((body.as_deref(), has_ended), (Some("9\r\n{\"apiVers\r\n"), false));
    let (_, body, has_ended) = with(Fault::DropWithin { bytes: 9 });
    assert_eq!((body.as_deref(), has_ended), (Some("9\r\n{\"apiVers\r\n"), true));
    let (_, body, has_ended) = with(Fault::Truncate { bytes: 9 });
    assert_eq!((body.as_deref(), has_ended), (Some("9\r\n{\"apiVers\r\n0\r\n\r\n"), true));
    let before = Instant::now();
    server.faults().clear();
    server.faults().add(Scope::reads(), Fault::Slow { bytes: 40, every: Duration::from_millis(20) });
    let (text, has_ended) = raw(&server, PODS, PATIENCE);
    assert!(has_ended && text.contains("\"p0\"") && before.elapsed() > Duration::from_millis(100), "{text}");
}

#[test]
fn a_running_watch_meets_the_faults_too() {
    let server = server_with_pods(0);
    let with = |fault| {
        server.faults().clear();
        let path = format!("{PODS}?watch=true&resourceVersion={}", server.resource_version());
        let (text, has_ended) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| raw(&server, &path, SHORT));
            std::thread::sleep(SHORT / 3);
            server.faults().add(Scope::reads().kinds(&[Kind::Pod]), fault);
            server.apply(pod("shop", "p0", &server.resource_version().to_string()));
            reader.join().expect("a reader")
        });
        (text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default(), has_ended)
    };
    assert_eq!(with(Fault::Drop), (String::new(), true));
    assert_eq!(with(Fault::Stall), (String::new(), false));
    assert_eq!(with(Fault::BookmarksOnly), (String::new(), false));
    let (body, has_ended) = with(Fault::Status { code: 410, retry_after_s: None });
    assert!(has_ended && body.contains(r#""type":"ERROR""#) && body.contains(r#""code":410"#), "{body}");
    assert_eq!(with(Fault::StallWithin { bytes: 9 }), ("9\r\n{\"object\"\r\n".into(), false));
    assert_eq!(with(Fault::DropWithin { bytes: 9 }), ("9\r\n{\"object\"\r\n".into(), true));
    assert_eq!(with(Fault::Truncate { bytes: 9 }), ("9\r\n{\"object\"\r\n0\r\n\r\n".into(), true));
    let (body, has_ended) = with(Fault::Duplicate);
    assert!(!has_ended && body.matches("MODIFIED").count() == 2, "{body}");
}

#[tokio::test]
async fn streaming_lists_can_be_refused_and_listing_goes_on() {
    let server = server_with_pods(1);
    server.faults().add(Scope::all(), Fault::RefuseStreaming);
    let pods: Api<Pod> = Api::all(client(&server));
    let mut told = Told::new(watcher::watcher(pods.clone(), Config::default().streaming_lists()));
    told.expect(&["start error 422"]).await;
    let mut told = Told::new(watcher::watcher(pods, Config::default()));
    told.expect(&["init", "listed p0", "done"]).await;
}

#[tokio::test]
async fn a_partial_page_has_no_next_one() {
    let server = server_with_pods(3);
    let fault = server.faults().add(Scope::all(), Fault::PartialPage { items: 2 });
    let mut told = Told::new(watcher::watcher(Api::<Pod>::all(client(&server)), Config::default()));
    told.expect(&["init", "listed p0", "listed p1", "list error 410", "init", "listed p0"]).await;
    server.faults().remove(fault);
    told.expect(&["listed p1", "listed p2", "done"]).await;
}

#[tokio::test]
async fn a_stale_list_is_of_the_past_and_is_made_good_by_the_watch() {
    let server = server_with_pods(2);
    server.delete(Kind::Pod, "shop", "p0");
    server.apply(pod("shop", "p2", "web"));
    server.faults().add(Scope::all(), Fault::StaleList { changes: 2 });
    let mut told = Told::new(watcher::watcher(Api::<Pod>::all(client(&server)), Config::default()));
    told.expect(&["init", "listed p0", "listed p1", "done", "deleted p0", "applied p2"]).await;
}

#[tokio::test]
async fn an_empty_list_is_a_lie_about_now() {
    let server = server_with_pods(2);
    server.faults().add_times(Scope::all(), Fault::EmptyList, 1);
    let pods: Api<Pod> = Api::all(client(&server));
    let list = pods.list(&ListParams::default()).await.expect("a list");
    assert!(list.items.is_empty());
    assert_eq!(list.metadata.resource_version, Some(server.resource_version().to_string()));
    assert_eq!(pods.list(&ListParams::default()).await.expect("a list").items.len(), 2);
}

#[tokio::test]
async fn duplicates_holds_and_bookmarks_alone_change_order_and_number_but_lose_nothing() {
    let server = server_with_pods(0);
    server.set_bookmark_interval(Duration::from_millis(20));
    let mut pods = Told::new(watcher::watcher(Api::<Pod>::all(client(&server)), Config::default()));
    let mut namespaces = Told::new(watcher::watcher(Api::<Namespace>::all(client(&server)), Config::default()));
    pods.until("done").await;
    namespaces.until("done").await;
    // The watch itself is asked for by the next look.
    server.apply(pod("shop", "p0", "web"));
    pods.expect(&["applied p0"]).await;
    let of_pods = Scope::all().kinds(&[Kind::Pod]);
    let duplicate = server.faults().add(of_pods.clone(), Fault::Duplicate);
    server.apply(pod("shop", "p1", "web"));
    pods.expect(&["applied p1", "applied p1"]).await;
    server.faults().remove(duplicate);
    for fault in [Fault::Hold { by: Duration::from_secs(1) }, Fault::BookmarksOnly] {
        let fault = server.faults().add(of_pods.clone(), fault);
        let name = format!("later-{}", server.resource_version());
        server.apply(pod("shop", &name, "web"));
        server.apply(namespace(&name));
        namespaces.expect(&[&format!("applied {name}")]).await;
        let early = tokio::time::timeout(Duration::from_millis(200), pods.next()).await;
        assert!(early.is_err(), "it is not held: {early:?}");
        server.faults().remove(fault);
        pods.expect(&[&format!("applied {name}")]).await;
    }
}

#[tokio::test]
async fn the_whole_server_goes_away_and_comes_back_at_its_port() {
    let server = server_with_pods(1);
    let url = server.url();
    let mut told = Told::new(watcher::watcher(Api::<Pod>::all(client(&server)), Config::default()));
    told.until("done").await;
    server.apply(pod("shop", "p1", "web"));
    told.expect(&["applied p1"]).await;
    server.go_away();
    let address = url.replace("http://", "");
    assert!(std::net::TcpStream::connect(&address).is_err(), "somebody listens at {address}");
    server.delete(Kind::Pod, "shop", "p0");
    server.compact();
    server.come_back();
    assert_eq!(server.url(), url);
    told.until("watch error 410").await;
    told.expect(&["init", "listed p1", "done"]).await;
}

#[tokio::test]
async fn a_restored_server_is_silent_to_watches_ahead_of_it() {
    let server = server_with_pods(1);
    let backup = server.snapshot();
    server.delete(Kind::Pod, "shop", "p0");
    server.apply(pod("shop", "p1", "web"));
    let ahead = server.resource_version().to_string();
    server.restore(&backup);
    let pods: Api<Pod> = Api::all(client(&server));
    let listed = pods.list(&ListParams::default()).await.expect("a list");
    assert_eq!(listed.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["p0"]);
    server.apply(pod("shop", "p2", "web"));
    let mut events = pods.watch(&WatchParams::default().timeout(1), &ahead).await.expect("a watch").boxed();
    assert!(events.next().await.is_none(), "it told of a version that it had told before");
    let future = ListParams::default().at(&ahead).matching(kube::api::VersionMatch::NotOlderThan);
    let refused = pods.list(&future).await.expect_err("a version of the future");
    assert!(refused.to_string().contains("Too large resource version"), "{refused}");
}

#[tokio::test]
async fn a_token_that_is_not_taken_any_more_is_refused() {
    let server = server_with_pods(1);
    server.require_token(Some("first"));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kubeconfig");
    server.kubeconfig(&path);
    let config = kube::config::Kubeconfig::read_from(&path).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await;
    let pods: Api<Pod> = Api::all(kube::Client::try_from(config.expect("a configuration")).expect("a client"));
    assert_eq!(pods.list(&ListParams::default()).await.expect("a list").items.len(), 1);
    server.require_token(Some("second"));
    let refused = pods.list(&ListParams::default()).await.expect_err("an old token");
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 401), "{refused}");
}

#[test]
fn a_schedule_is_its_seed() {
    let first: Vec<_> = Schedule::new(7).take(200).collect();
    assert_eq!(first, Schedule::new(7).take(200).collect::<Vec<_>>());
    assert_ne!(first, Schedule::new(8).take(200).collect::<Vec<_>>());
    let lies = |fault| matches!(fault, Fault::EmptyList | Fault::Status { code: 404, .. });
    assert!(!first.iter().any(|injection| lies(injection.fault)), "{first:?}");
}

/// What a client knows: names and versions.
type Known = BTreeMap<String, String>;

fn truth(server: &ApiServer) -> Known {
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let of = |pod: &serde_json::Value| (text(&pod["metadata"]["name"]), text(&pod["metadata"]["resourceVersion"]));
    server.objects(Kind::Pod).iter().map(|pod| of(pod)).collect()
}

/// Random changes under random faults, and then the truth, by a watcher that bears with everything.
async fn converges(seed: u64) {
    let server = server_with_pods(3);
    server.set_bookmark_interval(Duration::from_millis(30));
    let config = Config::default().page_size(2).timeout(1);
    let config = if seed.is_multiple_of(2) { config.streaming_lists() } else { config };
    let mut events = watcher::watcher(Api::<Pod>::all(client(&server)), config).boxed();
    let (mut known, mut listing) = (Known::new(), Known::new());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut faults = Schedule::new(seed);
    let mut take = |event, known: &mut Known| match event {
        Event::Init => listing.clear(),
        Event::InitApply(pod) => drop(listing.insert(named(&pod), versioned(&pod))),
        Event::InitDone => *known = std::mem::take(&mut listing),
        Event::Apply(pod) => drop(known.insert(named(&pod), versioned(&pod))),
        Event::Delete(pod) => drop(known.remove(&named(&pod))),
    };
    let mut active = None;
    let ends = Instant::now() + Duration::from_secs(2);
    while Instant::now() < ends {
        let name = format!("p{}", random.u8(..6));
        match random.u8(..20) {
            0 => server.compact(),
            1 => server.cut_connections(),
            2..8 if server.get(Kind::Pod, "shop", &name).is_some() => server.delete(Kind::Pod, "shop", &name),
            _ => drop(server.apply(pod("shop", &name, &random.u32(..).to_string()))),
        }
        if active.is_none_or(|(_, until)| until < Instant::now()) {
            if let Some((fault, _)) = active {
                server.faults().remove(fault);
            }
            let next = faults.next().expect("a fault");
            active = Some((server.faults().add(next.scope, next.fault), Instant::now() + next.lasts / 4));
        }
        if let Ok(Some(Ok(event))) = tokio::time::timeout(Duration::from_millis(5), events.next()).await {
            take(event, &mut known);
        }
    }
    server.faults().clear();
    // A stalled connection would be given up only much later.
    server.cut_connections();
    let deadline = Instant::now() + PATIENCE;
    while known != truth(&server) {
        assert!(Instant::now() < deadline, "seed {seed}: {known:?} is not {:?}", truth(&server));
        match tokio::time::timeout(Duration::from_millis(100), events.next()).await {
            Ok(Some(Ok(event))) => take(event, &mut known),
            Ok(Some(Err(_))) => tokio::time::sleep(Duration::from_millis(10)).await,
            Ok(None) => panic!("seed {seed}: the watcher ended"),
            Err(_quiet) => {}
        }
    }
}

fn named(pod: &Pod) -> String {
    pod.name_any()
}

fn versioned(pod: &Pod) -> String {
    pod.resource_version().expect("a version")
}

#[tokio::test]
async fn whatever_goes_wrong_a_patient_watcher_ends_with_the_truth() {
    futures_util::future::join_all((0..16).map(converges)).await;
}
