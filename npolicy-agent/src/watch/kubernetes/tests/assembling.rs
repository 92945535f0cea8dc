//! From updates to changes of the state.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::Kind;
use super::super::assemble::{Assembler, Batch};
use super::super::update::{Observed, Update, key_of};
use super::server::{cluster_policy, policy};
use crate::model::{ClusterState, Event, Severity};
use crate::watch::objects::Tree;

#[derive(Default)]
struct World {
    assembler: Assembler,
    state: ClusterState,
}

impl World {
    fn take(&mut self, updates: impl IntoIterator<Item = Update>) -> Batch {
        let batch = self.assembler.assemble(&self.state, updates);
        let mut keys: Vec<_> = batch.events.iter().map(Event::key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), batch.events.len(), "two events for one object: {:?}", batch.events);
        for event in &batch.events {
            assert!(self.state.apply(event.clone()), "an event that changes nothing: {event:?}");
        }
        batch
    }

    /// With the namespace `shop`, and everything listed.
    fn synced(objects: impl IntoIterator<Item = Update>) -> Self {
        let mut world = Self::default();
        world.take(Kind::ALL.map(Update::Listing));
        world.take([namespace("1", false)].into_iter().chain(objects).collect::<Vec<_>>());
        world.take(Kind::ALL.map(Update::Listed));
        assert!(world.assembler.is_synced());
        world
    }

    fn policies(&self) -> Vec<&str> {
        self.state.policies().map(|policy| &*policy.key.name).collect()
    }
}

fn object(kind: Kind, json: Value) -> Update {
    Update::Object(Box::new(Observed::read(&Tree::from(json), kind).unwrap()))
}

fn gone(kind: Kind, json: Value) -> Update {
    Update::Gone(key_of(&Tree::from(json), kind).unwrap())
}

fn np(name: &str) -> Update {
    object(Kind::NetworkPolicy, policy(name, 1))
}

fn np_gone(name: &str) -> Update {
    gone(Kind::NetworkPolicy, policy(name, 2))
}

fn namespace_json(uid: &str, is_terminating: bool) -> Value {
    let mut namespace = json!({"metadata": {"name": "shop", "uid": uid, "labels": {"uid": uid}}});
    if is_terminating {
        namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    namespace
}

fn namespace(uid: &str, is_terminating: bool) -> Update {
    object(Kind::Namespace, namespace_json(uid, is_terminating))
}

fn pod_json(name: &str, uid: &str, address: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "uid": uid, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "web", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn pod(name: &str, uid: &str, address: &str) -> Update {
    object(Kind::Pod, pod_json(name, uid, address))
}

/// A pod with an address that nobody can read.
fn partial_pod(uid: &str) -> Update {
    pod("web", uid, "10.0.0.x")
}

/// A policy whose subject nobody can read.
fn unreadable_policy(name: &str) -> Update {
    let mut json = policy(name, 1);
    json["spec"]["podSelector"] = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
    object(Kind::NetworkPolicy, json)
}

fn list(kind: Kind, objects: Vec<Update>) -> Vec<Update> {
    [Update::Listing(kind)].into_iter().chain(objects).chain([Update::Listed(kind)]).collect()
}

#[test]
fn is_synced_once_every_kind_was_listed_or_is_absent() {
    for missing in Kind::ALL {
        let mut world = World::default();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != missing) {
            assert_eq!(world.take(list(kind, Vec::new())).synced, [kind]);
        }
        assert!(!world.assembler.is_synced(), "{missing}");
        world.take([Update::Listing(missing)]);
        assert!(!world.assembler.is_synced(), "{missing}");
        world.take([Update::Absent(missing)]);
        assert!(world.assembler.is_synced(), "{missing}");
        assert_eq!(world.take([Update::Absent(missing)]).synced, []);
    }
}

#[test]
fn a_list_takes_away_what_it_does_not_hold_when_it_ends() {
    let mut world = World::synced([np("a"), np("b"), np("c")]);
    world.take([Update::Listing(Kind::NetworkPolicy), np("b")]);
    assert_eq!(world.policies(), ["a", "b", "c"]);
    // What is deleted and made while the list comes counts too.
    world.take([np("d"), np("e"), np_gone("d"), np_gone("c")]);
    assert_eq!(world.policies(), ["a", "b", "e"]);
    let batch = world.take([Update::Listed(Kind::NetworkPolicy)]);
    assert_eq!((batch.events.len(), world.policies()), (1, vec!["b", "e"]));
}

#[test]
fn a_list_that_begins_again_forgets_what_it_held() {
    let mut world = World::synced([np("a"), np("b")]);
    world.take([Update::Listing(Kind::NetworkPolicy), np("a"), np("b"), Update::Listing(Kind::NetworkPolicy), np("b")]);
    world.take([Update::Listed(Kind::NetworkPolicy)]);
    assert_eq!(world.policies(), ["b"]);
    // An end without a beginning is none.
    world.take([Update::Listed(Kind::NetworkPolicy)]);
    assert_eq!(world.policies(), ["b"]);
}

#[test]
fn a_list_of_one_kind_leaves_the_others() {
    let mut world = World::synced([np("a"), pod("web", "1", "10.0.0.1")]);
    world.take(list(Kind::Pod, vec![pod("web", "1", "10.0.0.1")]));
    assert_eq!((world.policies(), world.state.pods().count(), world.state.namespaces().count()), (vec!["a"], 1, 1));
}

#[test]
fn emptiness_must_be_said_twice_in_a_row() {
    let empty = || list(Kind::NetworkPolicy, Vec::new());
    let mut world = World::synced([np("a")]);
    world.take(empty());
    assert_eq!(world.policies(), ["a"]);
    world.take(list(Kind::NetworkPolicy, vec![np("a")]));
    world.take(empty());
    assert_eq!(world.policies(), ["a"], "something came in between");
    world.take(empty());
    assert_eq!(world.policies(), Vec::<&str>::new());
    world.take([np("b")]);
    world.take(empty());
    assert_eq!(world.policies(), ["b"]);
}

#[test]
fn absence_must_be_said_twice_where_there_was_something() {
    let mut world = World::synced([object(Kind::ClusterNetworkPolicy, cluster_policy("admin", 1))]);
    world.take([Update::Absent(Kind::ClusterNetworkPolicy)]);
    assert_eq!(world.state.cluster_policies().count(), 1);
    world.take([Update::Absent(Kind::ClusterNetworkPolicy)]);
    assert_eq!(world.state.cluster_policies().count(), 0);
}

#[test]
fn what_changes_nothing_is_no_event() {
    let mut world = World::synced([np("a"), pod("web", "1", "10.0.0.1")]);
    let batch = world.take([pod("web", "1", "10.0.0.1"), np("a"), namespace("1", false), np_gone("unknown")]);
    assert_eq!(batch.events, []);
    // There and back, within one batch.
    let batch = world.take([
        np("b"),
        np_gone("b"),
        np_gone("a"),
        np("a"),
        pod("web", "1", "10.0.0.2"),
        pod("web", "1", "10.0.0.1"),
    ]);
    assert_eq!(batch.events, []);
}

#[test]
fn a_burst_is_one_event_for_each_object() {
    let mut world = World::synced([]);
    let burst: Vec<_> = (1..200).map(|n| pod("web", "1", &format!("10.0.0.{n}"))).collect();
    assert_eq!(world.take(burst).events.len(), 1);
    let address = world.state.pods().next().unwrap().addresses[0];
    assert_eq!(address.to_string(), "10.0.0.199");
}

#[test]
fn policies_of_a_namespace_that_is_deleted_stay_until_it_is_gone() {
    let mut world = World::synced([np("a"), np("b")]);
    world.take([namespace("1", true)]);
    world.take([np_gone("a")]);
    assert_eq!(world.policies(), ["a", "b"]);
    // A list that does not hold them says the same.
    world.take(list(Kind::NetworkPolicy, Vec::new()));
    world.take(list(Kind::NetworkPolicy, Vec::new()));
    assert_eq!(world.policies(), ["a", "b"]);
    // Other changes of the namespace are none of this.
    world.take([namespace("1", true)]);
    assert_eq!(world.policies(), ["a", "b"]);
    world.take([gone(Kind::Namespace, namespace_json("1", true))]);
    assert_eq!((world.policies(), world.state.namespaces().count()), (vec![], 0));
}

#[test]
fn a_namespace_may_vanish_while_nobody_looks() {
    let other = || object(Kind::Namespace, json!({"metadata": {"name": "other", "uid": "9"}}));
    let mut world = World::synced([np("a"), other()]);
    world.take([namespace("1", true), np_gone("a")]);
    assert_eq!(world.policies(), ["a"]);
    world.take(list(Kind::Namespace, vec![other()]));
    assert_eq!(world.policies(), Vec::<&str>::new());
}

#[test]
fn another_namespace_of_the_same_name_has_policies_of_its_own() {
    for is_terminating in [false, true] {
        let mut world = World::synced([np("a"), np("b")]);
        world.take([namespace("1", true), np_gone("a"), np_gone("b")]);
        // The deletion of the first was missed; a policy of the second came before it.
        world.take([np("b"), namespace("2", is_terminating)]);
        assert_eq!(world.policies(), ["b"]);
        world.take([np_gone("b")]);
        assert_eq!(world.policies(), if is_terminating { vec!["b"] } else { vec![] });
    }
}

#[test]
fn policies_and_namespace_go_in_any_order() {
    let steps: [fn() -> Update; 4] = [
        || namespace("1", true),
        || np_gone("a"),
        || np_gone("b"),
        || gone(Kind::Namespace, namespace_json("1", true)),
    ];
    // Of two watches: the namespace's own events keep their order, the policies' may fall anywhere between them.
    for order in [[0, 1, 2, 3], [1, 0, 2, 3], [1, 2, 0, 3], [0, 3, 1, 2], [0, 1, 3, 2], [1, 0, 3, 2]] {
        let mut world = World::synced([np("a"), np("b")]);
        for step in order {
            world.take([steps[step]()]);
        }
        assert_eq!(world.policies(), Vec::<&str>::new(), "{order:?}");
    }
}

#[test]
fn while_namespaces_are_not_heard_of_no_policy_goes() {
    let mut world = World::synced([np("a"), np("b")]);
    world.take([Update::Stale(Kind::Namespace), np_gone("a"), np_gone("b")]);
    assert_eq!(world.policies(), ["a", "b"]);
    world.take([np("b")]);
    world.take([Update::Current(Kind::Namespace)]);
    assert_eq!(world.policies(), ["b"], "it was made again");

    let mut world = World::synced([np("a")]);
    world.take([Update::Stale(Kind::Namespace), np_gone("a")]);
    world.take(list(Kind::Namespace, vec![namespace("1", true)]));
    assert_eq!(world.policies(), ["a"], "that was why");
    // Other kinds have nothing to do with it.
    let mut world = World::synced([np("a")]);
    world.take([Update::Stale(Kind::Pod), np_gone("a")]);
    assert_eq!(world.policies(), Vec::<&str>::new());
}

#[test]
fn a_policy_that_cannot_be_read_keeps_its_last_good_version() {
    let mut world = World::synced([np("a"), unreadable_policy("never")]);
    assert_eq!(world.policies(), ["a"]);
    let batch = world.take([unreadable_policy("a")]);
    assert_eq!((batch.events, world.policies()), (vec![], vec!["a"]));
    let said: Vec<_> = batch.diagnostics.iter().map(ToString::to_string).collect();
    assert!(said[0].starts_with("error: NetworkPolicy shop/a: spec.podSelector"), "{said:?}");
    assert!(said.last().unwrap().contains("its last good version stays in force"), "{said:?}");
    // It is still there, as any list says.
    world.take(list(Kind::NetworkPolicy, vec![unreadable_policy("a"), unreadable_policy("never")]));
    assert_eq!(world.policies(), ["a"]);
    world.take(list(Kind::NetworkPolicy, vec![unreadable_policy("never")]));
    assert_eq!(world.policies(), Vec::<&str>::new());
}

#[test]
fn an_object_read_in_part_keeps_its_last_good_version() {
    let address = |world: &World| world.state.pods().next().unwrap().addresses.first().map(ToString::to_string);
    let mut world = World::synced([pod("web", "1", "10.0.0.1")]);
    assert_eq!(world.take([partial_pod("1")]).diagnostics.len(), 2);
    assert_eq!(address(&world).as_deref(), Some("10.0.0.1"));
    // Another pod of the name has none.
    world.take([partial_pod("2")]);
    assert_eq!(address(&world), None);
    // Nor is what was read in part a good version.
    world.take([partial_pod("2")]);
    world.take([pod("web", "2", "10.0.0.9")]);
    assert_eq!(address(&world).as_deref(), Some("10.0.0.9"));
    world.take([gone(Kind::Pod, pod_json("web", "2", "")), partial_pod("2")]);
    assert_eq!(address(&world), None);
}

#[test]
fn a_finding_is_passed_on_once_for_as_long_as_the_object_is_there() {
    let mut world = World::synced([]);
    let broken = |port: u32| {
        let mut json = policy("a", 1);
        json["spec"]["ingress"] = json!([{"ports": [{"port": port}]}, {"ports": [{"port": 0}]}]);
        object(Kind::NetworkPolicy, json)
    };
    assert_eq!(world.take([broken(70_000)]).diagnostics.len(), 2);
    assert_eq!(world.take([broken(70_000), broken(70_000)]).diagnostics.len(), 0);
    let batch = world.take([broken(80_000)]);
    assert_eq!(batch.diagnostics.len(), 1);
    assert_eq!(batch.diagnostics[0].severity, Severity::Warning);
    assert_eq!(world.take([np("a"), broken(80_000)]).diagnostics.len(), 2, "it was well in between");
    assert_eq!(world.take([np_gone("a"), broken(80_000)]).diagnostics.len(), 2, "it is another");
    // What could not be read at all is forgotten with it, too.
    assert_eq!(world.take([unreadable_policy("b")]).diagnostics.len(), 1);
    world.take(list(Kind::NetworkPolicy, vec![np("a")]));
    assert_eq!(world.take([unreadable_policy("b")]).diagnostics.len(), 1);
}

#[test]
fn names_in_findings_are_of_the_object_alone() {
    let mut world = World::synced([]);
    let batch = world.take([unreadable_policy("b")]);
    assert_eq!(batch.diagnostics[0].object, Some(Arc::from("NetworkPolicy shop/b")));
    assert_eq!(batch.diagnostics[0].place, None);
}

#[test]
fn any_interleaving_of_a_pods_move_ends_alike() {
    // The old pod goes, the new one of the same name comes; another takes the old address.
    let old = || gone(Kind::Pod, pod_json("web", "1", "10.0.0.1"));
    let new = || pod("web", "2", "10.0.0.2");
    let other = || pod("api", "3", "10.0.0.1");
    let mut ends = Vec::new();
    for steps in
        [vec![old(), new(), other()], vec![old(), other(), new()], vec![other(), old(), new()], vec![new(), other()]]
    {
        let mut world = World::synced([pod("web", "1", "10.0.0.1")]);
        for step in steps {
            world.take([step]);
        }
        ends.push(world.state);
    }
    assert!(ends.iter().all(|end| *end == ends[0]));
}
