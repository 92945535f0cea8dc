//! Lists, watches and everything that can happen to them.

use std::time::Duration;

use serde_json::json;

use super::super::{Kind, KindHealth, KubernetesWatch};
use super::server::*;
use crate::model::{ClusterState, Diagnostic, Event};

const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
const GROUP: &str = "/apis/policy.networking.k8s.io";
const VERSION: &str = "/apis/policy.networking.k8s.io/v1beta1";
const CLUSTER_POLICIES: &str = "/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies";

struct World {
    server: Server,
    watch: KubernetesWatch,
    state: ClusterState,
    events: Vec<Event>,
    diagnostics: Vec<Diagnostic>,
}

impl World {
    fn new(server: Server) -> Self {
        let watch = KubernetesWatch::with_client(server.client(), timing());
        Self { server, watch, state: ClusterState::default(), events: Vec::new(), diagnostics: Vec::new() }
    }

    /// Lets time pass, and takes what comes.
    async fn pass(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while tokio::time::timeout_at(end, self.watch.changed()).await.is_ok() {
            let batch = self.watch.take(&self.state);
            for event in &batch.events {
                assert!(self.state.apply(event.clone()), "an event that changes nothing: {event:?}");
            }
            self.events.extend(batch.events);
            self.diagnostics.extend(batch.diagnostics);
        }
    }

    fn policies(&self) -> Vec<&str> {
        self.state.policies().map(|policy| &*policy.key.name).collect()
    }

    fn cluster_policies(&self) -> Vec<&str> {
        self.state.cluster_policies().map(|policy| &*policy.name).collect()
    }

    fn health(&self, kind: Kind) -> KindHealth {
        self.watch.health().into_iter().find(|health| health.kind == kind).unwrap()
    }
}

const MOMENT: Duration = Duration::from_millis(50);
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn an_empty_cluster_without_the_custom_resource_is_synced_at_once() {
    let mut world = World::new(Server::default());
    assert!(!world.watch.is_synced());
    world.pass(MOMENT).await;
    assert!(world.watch.is_synced(), "{:?}", world.watch.health());
    assert!(world.health(Kind::ClusterNetworkPolicy).is_absent);
    assert!(world.watch.heard(Kind::Pod).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_streamed_list_and_the_watch_after_it_come_over_one_request() {
    let server = Server::default();
    server.script(
        POLICIES,
        [Answer::Held(vec![
            line("ADDED", &policy("a", 3)),
            line("ADDED", &policy("b", 2)),
            listed(9),
            line("ADDED", &policy("c", 10)),
            bookmark(11),
            line("DELETED", &policy("a", 12)),
        ])],
    );
    let mut world = World::new(server);
    world.pass(MOMENT).await;
    assert_eq!(world.policies(), ["b", "c"]);
    let asked = world.server.asked(POLICIES);
    assert_eq!(asked.len(), 1, "{asked:?}");
    for part in
        ["watch=true", "sendInitialEvents=true", "resourceVersionMatch=NotOlderThan", "allowWatchBookmarks=true"]
    {
        assert!(asked[0].contains(part), "{part} in {asked:?}");
    }
    assert!(!asked[0].contains("resourceVersion="), "an old state would do: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_to_stream_is_asked_for_pages() {
    for refusal in [
        status(422, "Invalid", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch"),
        status(400, "BadRequest", "resourceVersionMatch is forbidden for watch"),
        // An API server before an etcd that does not tell how far a watch has come.
        status(500, "", "the required storage feature RequestWatchProgress is disabled"),
    ] {
        let server = Server::default();
        server.script(
            POLICIES,
            [
                refusal,
                page(7, "next/1=", &[policy("a", 1)]),
                page(7, "", &[policy("b", 2)]),
                Answer::Held(vec![line("ADDED", &policy("c", 8))]),
            ],
        );
        let mut world = World::new(server);
        world.pass(MOMENT).await;
        assert_eq!(world.policies(), ["a", "b", "c"]);
        let asked = world.server.asked(POLICIES);
        assert_eq!(asked[1], "?limit=500");
        assert_eq!(asked[2], "?limit=500&continue=next%2F1%3D");
        assert!(asked[3].ends_with("&resourceVersion=7"), "{asked:?}");
        assert!(world.watch.is_synced());
        assert_eq!(world.health(Kind::NetworkPolicy).trouble, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_know_how_to_stream_a_list_is_asked_for_pages() {
    // It sends what there is as in any watch, and no end.
    let server = Server::default();
    server.script(
        POLICIES,
        [Answer::Held(vec![line("ADDED", &policy("a", 1))]), page(7, "", &[policy("a", 1)]), Answer::Held(Vec::new())],
    );
    let mut world = World::new(server);
    world.pass(MOMENT).await;
    assert!(!world.watch.is_synced(), "nobody has said that this is all");
    world.pass(MINUTE).await;
    assert!(world.watch.is_synced());
    assert_eq!(world.policies(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_is_whole_before_anything_is_missed() {
    let server = Server::default();
    server.script(
        POLICIES,
        [
            Answer::Lines(vec![line("ADDED", &policy("a", 1)), line("ADDED", &policy("b", 1)), listed(5)]),
            status(410, "Expired", "too old resource version"),
            Answer::Broken(format!("{}\n{{\"type\": \"ADD", line("ADDED", &policy("a", 1)))),
            Answer::Held(vec![line("ADDED", &policy("a", 1)), listed(9)]),
        ],
    );
    let mut world = World::new(server);
    world.pass(MINUTE).await;
    assert_eq!(world.policies(), ["a"]);
    let deleted = world.events.iter().filter(|event| matches!(event, Event::Delete(_))).count();
    assert_eq!((world.events.len(), deleted), (3, 1), "{:?}", world.events);
    assert_eq!(world.server.asked(POLICIES).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_has_expired_starts_the_list_again() {
    let server = Server::default();
    server.script(
        POLICIES,
        [
            status(422, "Invalid", "sendInitialEvents is forbidden"),
            page(7, "x", &[policy("old", 1)]),
            status(410, "Expired", "The provided continue parameter is too old"),
            page(9, "", &[policy("new", 8)]),
            Answer::Held(Vec::new()),
        ],
    );
    let mut world = World::new(server);
    world.pass(MINUTE).await;
    assert_eq!(world.policies(), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_from_its_last_bookmark() {
    let server = Server::default();
    server.script(
        POLICIES,
        [
            Answer::Lines(vec![listed(5), line("ADDED", &policy("a", 6)), bookmark(40)]),
            Answer::Broken(format!("{}\n", bookmark(50))),
            Answer::Held(vec![line("ADDED", &policy("b", 51))]),
        ],
    );
    let mut world = World::new(server);
    world.pass(MINUTE).await;
    let asked = world.server.asked(POLICIES);
    assert!(asked[1].ends_with("&resourceVersion=40"), "{asked:?}");
    assert!(asked[2].ends_with("&resourceVersion=50"), "{asked:?}");
    assert_eq!(world.policies(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_has_expired_is_listed_again() {
    for expired in [
        Answer::Lines(vec![line("ERROR", &json!({"code": 410, "reason": "Expired", "message": "too old"}))]),
        status(410, "Gone", "too old resource version: 5 (9)"),
        // Restored from a backup, the server has not come as far as the watch.
        status(504, "Timeout", "Too large resource version: 5, current: 3"),
        Answer::Lines(vec![line("ADDED", &policy("c", 3))]),
        Answer::Lines(vec!["<html>".to_owned()]),
        Answer::Lines(vec![line("ADDED", &json!({"metadata": {"name": "c"}}))]),
    ] {
        let server = Server::default();
        let first = Answer::Lines(vec![line("ADDED", &policy("a", 1)), listed(5)]);
        server
            .script(POLICIES, [first, expired.clone(), Answer::Held(vec![line("ADDED", &policy("b", 2)), listed(4)])]);
        let mut world = World::new(server);
        world.pass(MINUTE).await;
        assert_eq!(world.policies(), ["b"], "{expired:?}");
        let asked = world.server.asked(POLICIES);
        assert!(asked[2].contains("sendInitialEvents"), "{asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed() {
    let server = Server::default();
    server.script(POLICIES, [Answer::RetryAfter(429, 20), Answer::Held(vec![listed(1)])]);
    let mut world = World::new(server);
    world.pass(Duration::from_secs(19)).await;
    assert!(!world.watch.is_synced());
    assert_eq!(world.server.asked(POLICIES).len(), 1);
    world.pass(Duration::from_secs(2)).await;
    assert!(world.watch.is_synced());
    assert_eq!(world.health(Kind::NetworkPolicy).trouble, None);
}

#[tokio::test(start_paused = true)]
async fn errors_are_retried_for_ever_ever_slower_and_change_nothing() {
    for error in [
        status(500, "InternalError", "etcdserver: request timed out"),
        status(401, "Unauthorized", "Unauthorized"),
        Answer::Body(200, json!({})),
        Answer::Lines(Vec::new()),
    ] {
        let server = Server::default();
        server.script(POLICIES, [Answer::Held(vec![line("ADDED", &policy("a", 1)), listed(5)])]);
        let mut world = World::new(server);
        world.pass(MOMENT).await;
        // The watch falls silent, and then there are only errors.
        world.server.replace(POLICIES, [error.clone()]);
        world.pass(60 * MINUTE).await;
        assert_eq!(world.policies(), ["a"], "{error:?}");
        let asked = world.server.asked(POLICIES).len();
        assert!((700..1600).contains(&asked), "{asked} requests in an hour: {error:?}");
        let health = world.health(Kind::NetworkPolicy);
        assert!(health.is_synced && !health.is_well(), "{health:?}");
        world.server.replace(POLICIES, [Answer::Held(vec![line("ADDED", &policy("b", 9)), listed(10), bookmark(11)])]);
        world.pass(MINUTE).await;
        assert!(world.policies().contains(&"b"), "{error:?}: {}", world.health(Kind::NetworkPolicy));
        assert_eq!(world.health(Kind::NetworkPolicy).trouble, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_falls_silent_is_replaced_and_holds_up_no_other() {
    let server = Server::default();
    server.script(POLICIES, [Answer::Held(vec![listed(5)]), Answer::Held(vec![line("ADDED", &policy("a", 6))])]);
    server.script("/api/v1/pods", [Answer::Silence]);
    let mut world = World::new(server);
    world.pass(Duration::from_secs(80)).await;
    assert_eq!(world.policies(), Vec::<&str>::new());
    world.pass(Duration::from_secs(20)).await;
    assert_eq!(world.policies(), ["a"]);
    assert!(world.server.asked("/api/v1/pods").len() > 2, "a request without an answer is given up");
    assert!(!world.watch.is_synced());
    let health = world.health(Kind::Pod).to_string();
    assert!(health.starts_with("Pod: not listed yet; for ") && health.contains("no answer"), "{health}");
}

/// To a watch that is ahead of it, such a server says nothing.
#[tokio::test(start_paused = true)]
async fn a_server_that_was_restored_from_a_backup_is_listed_again() {
    let server = Server::default();
    let before = vec![line("ADDED", &policy("a", 3)), line("ADDED", &policy("b", 50)), listed(50)];
    let after = vec![line("ADDED", &policy("a", 3)), listed(9), line("ADDED", &policy("c", 10))];
    server.script(POLICIES, [Answer::Held(before), Answer::Held(after)]);
    let too_large = status(504, "Timeout", "Too large resource version: 50, current: 9");
    server.script(&format!("{POLICIES}{DOUBT}"), [too_large]);
    // Policies are taken away only while their namespaces are heard of.
    let namespaces = (0..40).map(|n| if n == 0 { listed(5) } else { bookmark(5 + n) }).collect();
    server.script("/api/v1/namespaces", [Answer::Slowly(Duration::from_secs(15), namespaces)]);
    let mut world = World::new(server);
    world.pass(MINUTE).await;
    assert_eq!(world.policies(), ["a", "b"]);
    world.pass(MINUTE).await;
    assert_eq!(world.policies(), ["a", "c"]);
    let asked = world.server.asked(POLICIES);
    assert!(asked.len() == 2 && asked[1].contains("sendInitialEvents=true"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn bookmarks_keep_a_quiet_watch() {
    let server = Server::default();
    let mut lines = vec![listed(5)];
    lines.extend((6..30).map(bookmark));
    server.script(POLICIES, [Answer::Slowly(MINUTE, lines)]);
    let mut world = World::new(server.clone());
    // A list whose end takes a minute is too slow.
    world.pass(Duration::from_secs(30)).await;
    let before = server.asked(POLICIES).len();
    assert!(before > 1);
    let server = Server::default();
    let quiet = Answer::Slowly(
        Duration::from_secs(15),
        (0..40).map(|n| if n == 0 { listed(5) } else { bookmark(5 + n) }).collect(),
    );
    server.script(POLICIES, [quiet]);
    let mut world = World::new(server);
    world.pass(10 * MINUTE).await;
    assert_eq!(world.server.asked(POLICIES).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_list_where_there_was_something_must_come_twice() {
    for (again, expected) in [(page(10, "", &[]), vec![]), (page(10, "", &[policy("a", 1)]), vec!["a"])] {
        let server = Server::default();
        server.script(
            POLICIES,
            [
                Answer::Lines(vec![line("ADDED", &policy("a", 1)), listed(5)]),
                status(410, "Gone", "too old"),
                Answer::Held(vec![listed(9)]),
                again,
                Answer::Held(vec![line("ADDED", &policy("a", 1)), listed(9)]),
            ],
        );
        let mut world = World::new(server);
        world.pass(MINUTE).await;
        assert_eq!(world.policies(), expected);
        let deleted = world.events.iter().filter(|event| matches!(event, Event::Delete(_))).count();
        assert_eq!(deleted, usize::from(expected.is_empty()), "{:?}", world.events);
        assert_eq!(world.server.asked(POLICIES)[3], "?limit=1");
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_is_named_with_the_rule_that_is_missing() {
    let server = Server::default();
    let message = "networkpolicies.networking.k8s.io is forbidden: User \"npolicy\" cannot list resource";
    server.script(POLICIES, [status(403, "Forbidden", message)]);
    let mut world = World::new(server);
    world.pass(MINUTE).await;
    assert!(!world.watch.is_synced());
    let health = world.health(Kind::NetworkPolicy).to_string();
    let rule = r#"{apiGroups: ["networking.k8s.io"], resources: ["networkpolicies"], verbs: ["list", "watch"]}"#;
    for part in ["NetworkPolicy: not listed yet", "403 Forbidden", message, rule] {
        assert!(health.contains(part), "{part:?} in {health}");
    }
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::NetworkPolicy) {
        assert!(world.health(kind).is_well(), "{kind}");
    }
    world.server.replace(POLICIES, [Answer::Held(vec![listed(1)])]);
    world.pass(MINUTE).await;
    assert!(world.watch.is_synced());
}

fn group(versions: &[&str]) -> Answer {
    let versions: Vec<_> = versions.iter().map(|version| json!({"version": version})).collect();
    Answer::Body(200, json!({"kind": "APIGroup", "versions": versions}))
}

fn resources(names: &[&str]) -> Answer {
    let names: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    Answer::Body(200, json!({"kind": "APIResourceList", "resources": names}))
}

#[tokio::test(start_paused = true)]
async fn the_custom_resource_may_come_late_and_go() {
    let server = Server::default();
    let mut world = World::new(server.clone());
    world.pass(10 * MINUTE).await;
    assert!(world.watch.is_synced());
    let asked = server.asked(GROUP).len();
    assert!((50..130).contains(&asked), "{asked} looks in ten minutes");

    server.replace(GROUP, [group(&["v1alpha1", "v1beta1"])]);
    server.replace(VERSION, [resources(&["clusternetworkpolicies", "clusternetworkpolicies/status"])]);
    server.replace(
        CLUSTER_POLICIES,
        [Answer::Lines(vec![line("ADDED", &cluster_policy("admin", 3)), listed(5)]), status(404, "NotFound", "no")],
    );
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.cluster_policies(), ["admin"]);
    // The watch has ended, but the group is still there: it is not absent.
    world.pass(MINUTE).await;
    assert_eq!(world.cluster_policies(), ["admin"]);

    let not_found = || status(404, "NotFound", "the server could not find the requested resource");
    server.replace(
        GROUP,
        [
            status(503, "ServiceUnavailable", "starting"),
            status(403, "Forbidden", "no"),
            not_found(),
            status(500, "", ""),
        ],
    );
    world.pass(MINUTE).await;
    assert_eq!(world.cluster_policies(), ["admin"], "one word is not enough");
    server.replace(GROUP, [not_found()]);
    world.pass(MINUTE).await;
    assert_eq!(world.cluster_policies(), Vec::<&str>::new());
    assert!(world.health(Kind::ClusterNetworkPolicy).is_absent);
}

#[tokio::test(start_paused = true)]
async fn the_newest_known_version_is_watched() {
    const ALPHA: &str = "/apis/policy.networking.k8s.io/v1alpha2";
    let has = || resources(&["clusternetworkpolicies"]);
    let server = Server::default();
    server.script(GROUP, [group(&["v1alpha2", "v1beta1"])]);
    server.script(VERSION, [has()]);
    server.script(ALPHA, [has()]);
    server.script(CLUSTER_POLICIES, [Answer::Held(vec![line("ADDED", &cluster_policy("beta", 3)), listed(5)])]);
    let mut world = World::new(server);
    world.pass(MOMENT).await;
    assert_eq!(world.cluster_policies(), ["beta"]);

    let server = Server::default();
    server.script(GROUP, [group(&["v1alpha2", "v1beta1"])]);
    server.script(VERSION, [resources(&["others"])]);
    server.script(ALPHA, [has()]);
    let alpha = [Answer::Held(vec![line("ADDED", &cluster_policy("alpha", 3)), listed(5)])];
    server.script("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies", alpha);
    let mut world = World::new(server);
    world.pass(MOMENT).await;
    assert_eq!(world.cluster_policies(), ["alpha"]);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_nobody_here_knows_is_not_absence() {
    let server = Server::default();
    server.script(GROUP, [group(&["v2"])]);
    server.script("/apis/policy.networking.k8s.io/v2", [resources(&["clusternetworkpolicies"])]);
    let mut world = World::new(server);
    world.pass(MINUTE).await;
    assert!(world.watch.is_synced(), "the other kinds do not wait for what cannot come");
    let health = world.health(Kind::ClusterNetworkPolicy).to_string();
    assert!(health.contains("v2 alone") && health.contains("v1beta1"), "{health}");
    assert!(world.health(Kind::NetworkPolicy).is_well());
}

#[tokio::test(start_paused = true)]
async fn a_policy_whose_watch_outran_the_namespaces_waits_for_them() {
    let namespace = |version: u64, deleted: bool| {
        let mut namespace = json!({"metadata": {"name": "shop", "uid": "1", "resourceVersion": version.to_string()}});
        if deleted {
            namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        namespace
    };
    let server = Server::default();
    server.script(
        "/api/v1/namespaces",
        [
            Answer::Broken(format!("{}\n{}\n", line("ADDED", &namespace(1, false)), listed(2))),
            Answer::Slowly(Duration::from_millis(500), vec![line("MODIFIED", &namespace(9, true))]),
        ],
    );
    let first = vec![line("ADDED", &policy("a", 1)), listed(5)];
    server.script(POLICIES, [Answer::Lines(first), Answer::Held(vec![line("DELETED", &policy("a", 10))])]);
    let mut world = World::new(server.clone());
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.policies(), ["a"], "its namespace is being deleted");
    server.replace("/api/v1/namespaces", [Answer::Held(vec![line("DELETED", &namespace(20, true))])]);
    world.pass(2 * MINUTE).await;
    assert_eq!(world.policies(), Vec::<&str>::new());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_on_who_stops_waiting() {
    let server = Server::default();
    let lines = (0..20).map(|n| line("ADDED", &policy(&format!("p{n}"), n + 1))).chain([listed(30)]).collect();
    server.script(POLICIES, [Answer::Slowly(Duration::from_millis(7), lines)]);
    let mut world = World::new(server);
    for _ in 0..200 {
        let _given_up = tokio::time::timeout(Duration::from_millis(1), world.watch.changed()).await;
    }
    world.pass(MINUTE).await;
    assert_eq!(world.policies().len(), 20);
}
