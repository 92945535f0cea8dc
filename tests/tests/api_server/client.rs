//! The server behaves towards kube's client as a real one does.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http::StatusCode;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher::{self, Config, Event};
use kube::{Client, ResourceExt};
use npolicy_tests::api_server::{ApiServer, Kind, Verb};
use serde_json::json;

use crate::objects::{namespace, pod};

/// How long something may take that happens at once on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn client(server: &ApiServer) -> Client {
    let mut config = kube::Config::new(server.url().parse().expect("a URL"));
    // What the server says first is what counts here.
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// A server with pods `p0`, `p1` and so on in the namespace `shop`.
pub(crate) fn server_with_pods(count: usize) -> ApiServer {
    let server = ApiServer::start();
    server.apply(namespace("shop"));
    for number in 0..count {
        server.apply(pod("shop", &format!("p{number}"), "web"));
    }
    server
}

/// What a watcher has told, one word an event.
pub(crate) struct Told<K>(Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>>>>);

impl<K: ResourceExt> Told<K> {
    pub(crate) fn new(events: impl Stream<Item = watcher::Result<Event<K>>> + 'static) -> Self {
        Self(Box::pin(events))
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> String {
        let event = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("an event in time").expect("no end");
        match event {
            Ok(Event::Init) => "init".into(),
            Ok(Event::InitApply(object)) => format!("listed {}", object.name_any()),
            Ok(Event::InitDone) => "done".into(),
            Ok(Event::Apply(object)) => format!("applied {}", object.name_any()),
            Ok(Event::Delete(object)) => format!("deleted {}", object.name_any()),
            Err(watcher::Error::WatchError(status)) => format!("watch error {}", status.code),
            Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => format!("start error {}", status.code),
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) => format!("list error {}", status.code),
            Err(watcher::Error::InitialListFailed(_)) => "list failed".into(),
            Err(watcher::Error::WatchFailed(_)) => "watch failed".into(),
            Err(watcher::Error::WatchStartFailed(_)) => "start failed".into(),
            Err(error) => format!("{error}"),
        }
    }

    /// Checks what comes next.
    pub(crate) async fn expect(&mut self, expected: &[&str]) {
        for (place, expected) in expected.iter().enumerate() {
            assert_eq!(self.next().await, *expected, "event {place}");
        }
    }

    /// Skips to an event.
    pub(crate) async fn until(&mut self, wanted: &str) {
        while self.next().await != wanted {}
    }
}

fn error_code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("no refusal: {other:?}"),
    }
}

fn names<K: ResourceExt>(objects: &[K]) -> Vec<String> {
    objects.iter().map(ResourceExt::name_any).collect()
}

#[tokio::test]
async fn pages_are_of_one_moment() {
    let server = server_with_pods(5);
    let pods: Api<Pod> = Api::all(client(&server));
    let first = pods.list(&ListParams::default().limit(2)).await.expect("a page");
    assert_eq!(names(&first.items), ["p0", "p1"]);
    server.delete(Kind::Pod, "shop", "p3");
    server.apply(pod("shop", "p9", "web"));
    let token = first.metadata.continue_.clone().expect("more pages");
    let second = pods.list(&ListParams::default().limit(2).continue_token(&token)).await.expect("a page");
    assert_eq!(names(&second.items), ["p2", "p3"], "what was there when the first page was made");
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let token = second.metadata.continue_.expect("more pages");
    let last = pods.list(&ListParams::default().limit(2).continue_token(&token)).await.expect("a page");
    assert_eq!((names(&last.items), last.metadata.continue_), (vec!["p4".to_owned()], None));
    assert_eq!(names(&pods.list(&ListParams::default()).await.expect("a list").items), ["p0", "p1", "p2", "p4", "p9"]);
    server.compact();
    assert_eq!(error_code(pods.list(&ListParams::default().continue_token(&token)).await), 410);
}

#[tokio::test]
async fn a_list_is_as_new_as_it_is_asked_to_be() {
    let server = server_with_pods(1);
    let pods: Api<Pod> = Api::all(client(&server));
    let then = server.resource_version().to_string();
    server.apply(pod("shop", "p1", "web"));
    let exact = pods.list(&ListParams::default().at(&then).matching(kube::api::VersionMatch::Exact)).await;
    assert_eq!(names(&exact.expect("an old list").items), ["p0"]);
    let newer = pods.list(&ListParams::default().at(&then).matching(kube::api::VersionMatch::NotOlderThan)).await;
    assert_eq!(names(&newer.expect("a list").items), ["p0", "p1"]);
    let future = (server.resource_version() + 5).to_string();
    let future = ListParams::default().at(&future).matching(kube::api::VersionMatch::NotOlderThan);
    assert_eq!(error_code(pods.list(&future).await), 504);
    server.compact();
    let old = ListParams::default().at(&then).matching(kube::api::VersionMatch::Exact);
    assert_eq!(error_code(pods.list(&old).await), 410);
}

#[tokio::test]
async fn a_watcher_lists_in_pages_and_then_follows() {
    let server = server_with_pods(3);
    let mut told = Told::new(watcher::watcher(Api::<Pod>::all(client(&server)), Config::default().page_size(2)));
    told.expect(&["init", "listed p0", "listed p1", "listed p2", "done"]).await;
    server.apply(pod("shop", "p3", "web"));
    told.expect(&["applied p3"]).await;
    server.edit(Kind::Pod, "shop", "p1", |pod| pod["metadata"]["labels"]["app"] = "db".into());
    server.delete(Kind::Pod, "shop", "p0");
    told.expect(&["applied p1", "deleted p0"]).await;
    let asked: Vec<_> = server.asked().into_iter().map(|asked| (asked.verb, asked.is_continued)).collect();
    assert_eq!(asked, [(Verb::List, false), (Verb::List, true), (Verb::Watch, false)]);
}

#[tokio::test]
async fn a_streaming_list_is_a_watch_from_the_start() {
    let server = server_with_pods(2);
    let mut told = Told::new(watcher::watcher(Api::<Pod>::all(client(&server)), Config::default().streaming_lists()));
    told.expect(&["init", "listed p0", "listed p1", "done"]).await;
    server.delete(Kind::Pod, "shop", "p0");
    told.expect(&["deleted p0"]).await;
    let asked = server.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].is_streaming && asked[0].verb == Verb::Watch);
}

#[tokio::test]
async fn metadata_alone_is_listed_and_watched() {
    let server = server_with_pods(1);
    let pods: Api<Pod> = Api::all(client(&server));
    let listed = pods.list_metadata(&ListParams::default()).await.expect("a list");
    let item: &PartialObjectMeta<Pod> = &listed.items[0];
    assert_eq!((item.name_any().as_str(), item.labels()["app"].as_str()), ("p0", "web"));
    let metadata: Api<PartialObjectMeta<Pod>> = Api::all(client(&server));
    let mut told = Told::new(watcher::watcher(metadata, Config::default().streaming_lists()));
    told.expect(&["init", "listed p0", "done"]).await;
    server.apply(pod("shop", "p1", "web"));
    told.expect(&["applied p1"]).await;
}

/// Raw events of a watch, one word each, until it ends.
async fn watched(server: &ApiServer, params: &WatchParams, version: &str) -> Vec<String> {
    let pods: Api<Pod> = Api::all(client(server));
    let mut events = pods.watch(params, version).await.expect("a watch").boxed();
    let mut words = Vec::new();
    while let Some(event) = events.next().await {
        words.push(match event.expect("an event") {
            WatchEvent::Added(pod) => format!("added {}", pod.name_any()),
            WatchEvent::Modified(pod) => format!("modified {}", pod.name_any()),
            WatchEvent::Deleted(pod) => format!("deleted {}", pod.name_any()),
            WatchEvent::Bookmark(bookmark) => {
                let marks_end = bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end");
                format!("bookmark {}{}", bookmark.metadata.resource_version, if marks_end { " end" } else { "" })
            }
            WatchEvent::Error(status) => format!("error {}", status.code),
        });
    }
    words
}

#[tokio::test]
async fn a_watch_ends_in_time_and_its_bookmarks_are_of_now() {
    let server = server_with_pods(1);
    let start = server.resource_version();
    server.apply(namespace("other"));
    let now = server.resource_version();
    let params = WatchParams::default().timeout(1);
    // One a second, which is when it ends: one or two.
    let words = watched(&server, &params, &start.to_string()).await;
    assert_eq!(words.last(), Some(&format!("bookmark {now}")));
    let words = watched(&server, &params.clone().initial_events(), "0").await;
    assert_eq!(words[..2], ["added p0".to_owned(), format!("bookmark {now} end")]);
    let words = watched(&server, &params.clone().disable_bookmarks(), "0").await;
    assert_eq!(words, ["added p0"]);
    server.compact();
    assert_eq!(watched(&server, &params, &start.to_string()).await, ["error 410"]);
}

#[tokio::test]
async fn what_leaves_a_selection_is_deleted_from_it() {
    let server = server_with_pods(2);
    let start = server.resource_version().to_string();
    server.edit(Kind::Pod, "shop", "p1", |pod| pod["metadata"]["labels"]["app"] = "db".into());
    server.edit(Kind::Pod, "shop", "p0", |pod| pod["spec"]["nodeName"] = "n1".into());
    server.edit(Kind::Pod, "shop", "p1", |pod| pod["metadata"]["labels"]["app"] = "web".into());
    let params = WatchParams::default().timeout(1).labels("app=web").disable_bookmarks();
    assert_eq!(watched(&server, &params, &start).await, ["deleted p1", "modified p0", "added p1"]);
    let params = WatchParams::default().timeout(1).fields("spec.nodeName=n1").disable_bookmarks();
    assert_eq!(watched(&server, &params, &start).await, ["added p0"]);
}

#[tokio::test]
async fn a_quiet_watch_survives_compaction_by_its_bookmarks() {
    for bookmarks in [true, false] {
        let server = server_with_pods(1);
        server.set_bookmark_interval(Duration::from_millis(50));
        let config = Config { bookmarks, ..Config::default().timeout(1) };
        let mut told = Told::new(watcher::watcher(Api::<Pod>::all(client(&server)), config));
        told.expect(&["init", "listed p0", "done"]).await;
        // The watch is asked for once more about each second.
        let quiet = tokio::time::timeout(Duration::from_millis(200), told.next()).await;
        assert!(quiet.is_err(), "an event without a change: {quiet:?}");
        server.apply(namespace("other"));
        let quiet = tokio::time::timeout(Duration::from_millis(200), told.next()).await;
        assert!(quiet.is_err(), "an event without a change: {quiet:?}");
        server.compact();
        let next = tokio::time::timeout(Duration::from_secs(2), told.next()).await;
        match bookmarks {
            true => assert!(next.is_err(), "listed again: {next:?}"),
            false => assert_eq!(next.expect("an end"), "watch error 410"),
        }
    }
}

#[tokio::test]
async fn writes_conflict_as_they_should() {
    let server = server_with_pods(0);
    let pods: Api<Pod> = Api::namespaced(client(&server), "shop");
    let made: Pod = serde_json::from_value(pod("shop", "db", "db")).expect("a pod");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    assert!(pods.create(&dry, &made).await.expect("a pod that might be").uid().is_none());
    assert!(server.objects(Kind::Pod).is_empty());
    let made = pods.create(&PostParams::default(), &made).await.expect("a new pod");
    assert!(made.uid().is_some() && made.creation_timestamp().is_some());
    assert_eq!(error_code(pods.create(&PostParams::default(), &made).await), 409);
    let mut changed = made.clone();
    changed.labels_mut().insert("tier".into(), "back".into());
    let changed = pods.replace("db", &PostParams::default(), &changed).await.expect("a replaced pod");
    assert_eq!(error_code(pods.replace("db", &PostParams::default(), &made).await), 409, "it is of an older version");
    let merge = Patch::Merge(json!({"metadata": {"labels": {"tier": null, "app": "store"}}}));
    let merged = pods.patch("db", &PatchParams::default(), &merge).await.expect("a merge");
    assert_eq!(*merged.labels(), BTreeMap::from([("app".to_owned(), "store".to_owned())]));
    let old = Patch::Merge(json!({"metadata": {"resourceVersion": changed.resource_version(), "labels": {"a": "b"}}}));
    assert_eq!(error_code(pods.patch("db", &PatchParams::default(), &old).await), 409);
    let step = json!([{"op": "test", "path": "/metadata/labels/app", "value": "web"}]);
    let json_patch = Patch::<Pod>::Json(serde_json::from_value(step).expect("a patch"));
    assert_eq!(error_code(pods.patch("db", &PatchParams::default(), &json_patch).await), 422);
    let status = Patch::Merge(json!({"status": {"phase": "Running"}, "metadata": {"labels": {"app": "ignored"}}}));
    let running = pods.patch_status("db", &PatchParams::default(), &status).await.expect("a status");
    assert_eq!(running.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Running"));
    assert_eq!(running.labels()["app"], "store");
    let none = Patch::Strategic(json!({"status": {"phase": "Failed"}}));
    let same = pods.patch("db", &PatchParams::default(), &none).await.expect("a patch");
    assert_eq!(same.resource_version(), running.resource_version(), "status is not written there");
    pods.delete("db", &DeleteParams::default()).await.expect("a deletion");
    assert_eq!(error_code(pods.get("db").await), StatusCode::NOT_FOUND.as_u16());
    let nowhere: Api<Pod> = Api::namespaced(client(&server), "nowhere");
    let lost: Pod = serde_json::from_value(pod("nowhere", "db", "db")).expect("a pod");
    assert_eq!(error_code(nowhere.create(&PostParams::default(), &lost).await), 404);
}

#[tokio::test]
async fn applied_fields_have_owners() {
    let server = server_with_pods(0);
    let pods: Api<Pod> = Api::namespaced(client(&server), "shop");
    let first = Patch::Apply(pod("shop", "db", "db"));
    pods.patch("db", &PatchParams::apply("one"), &first).await.expect("a new pod");
    let mut other = pod("shop", "db", "web");
    other["metadata"]["labels"]["tier"] = "back".into();
    let other = Patch::Apply(other);
    assert_eq!(error_code(pods.patch("db", &PatchParams::apply("two"), &other).await), 409);
    let forced = pods.patch("db", &PatchParams::apply("two").force(), &other).await.expect("by force");
    assert_eq!(forced.labels()["app"], "web");
    let managers: Vec<_> = forced.managed_fields().iter().filter_map(|entry| entry.manager.as_deref()).collect();
    assert_eq!(managers, ["one", "two"]);
}

#[tokio::test]
async fn a_terminating_namespace_takes_nothing_new_and_ends_when_it_is_told() {
    let server = server_with_pods(1);
    let namespaces: Api<Namespace> = Api::all(client(&server));
    namespaces.delete("shop", &DeleteParams::default()).await.expect("a deletion");
    let shop = namespaces.get("shop").await.expect("it is still there");
    assert!(shop.metadata.deletion_timestamp.is_some());
    assert_eq!(shop.status.and_then(|status| status.phase).as_deref(), Some("Terminating"));
    let pods: Api<Pod> = Api::namespaced(client(&server), "shop");
    let late: Pod = serde_json::from_value(pod("shop", "late", "db")).expect("a pod");
    assert_eq!(error_code(pods.create(&PostParams::default(), &late).await), 403);
    server.end_namespace("shop");
    assert_eq!(error_code(namespaces.get("shop").await), 404);
    assert!(server.objects(Kind::Pod).is_empty());
}

fn cluster_policies(server: &ApiServer, version: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("policy.networking.k8s.io", version, "ClusterNetworkPolicy");
    Api::all_with(client(server), &ApiResource::from_gvk_with_plural(&kind, "clusternetworkpolicies"))
}

#[tokio::test]
async fn cluster_policies_are_there_as_long_as_their_crd() {
    let server = ApiServer::start();
    let [beta, alpha] = ["v1beta1", "v1alpha2"].map(|version| cluster_policies(&server, version));
    assert_eq!(error_code(beta.list(&ListParams::default()).await), 404);
    assert!(
        !client(&server)
            .list_api_groups()
            .await
            .expect("groups")
            .groups
            .iter()
            .any(|group| group.name.starts_with("policy."))
    );
    server.install_cluster_policies(&["v1beta1"]);
    server.apply(json!({
        "apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "tenancy"}, "spec": {"tier": "Admin", "priority": 1},
    }));
    assert_eq!(error_code(alpha.list(&ListParams::default()).await), 404);
    let mut told = Told::new(watcher::watcher(beta, Config::default()).map(|event| event.map(named)));
    told.expect(&["init", "listed tenancy", "done"]).await;
    server.edit(Kind::ClusterNetworkPolicy, "", "tenancy", |policy| policy["spec"]["priority"] = 2.into());
    told.expect(&["applied tenancy"]).await;
    server.install_cluster_policies(&["v1beta1", "v1alpha2"]);
    assert_eq!(names(&alpha.list(&ListParams::default()).await.expect("a list").items), ["tenancy"]);
    let groups = client(&server).list_api_groups().await.expect("groups");
    let group = groups.groups.iter().find(|group| group.name == "policy.networking.k8s.io").expect("the group");
    let versions: Vec<_> = group.versions.iter().map(|version| version.version.as_str()).collect();
    assert_eq!(versions, ["v1beta1", "v1alpha2"]);
    server.install_cluster_policies(&[]);
    told.expect(&["deleted tenancy", "start error 404"]).await;
}

/// Events of objects that name no static kind, for [`Told`].
fn named(event: Event<DynamicObject>) -> Event<Namespace> {
    let plain = |object: DynamicObject| Namespace { metadata: object.metadata, ..Namespace::default() };
    match event {
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(plain(object)),
        Event::InitDone => Event::InitDone,
        Event::Apply(object) => Event::Apply(plain(object)),
        Event::Delete(object) => Event::Delete(plain(object)),
    }
}
