//! Lists, watches and everything that can happen to them.

use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};

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
