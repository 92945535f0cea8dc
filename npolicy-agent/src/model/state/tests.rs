//! Who has which address, and that the way to a state leaves no trace in it.

use super::*;
use crate::model::{Age, Phase, PodNetwork};

const ADDRESS: &str = "10.0.0.1";

fn pod(name: &str, started: Option<&str>, created: Option<&str>, uid: &str) -> Pod {
    let time = |time: &str| time.parse().unwrap();
    Pod {
        key: PodKey { namespace: "n".into(), name: name.into() },
        labels: Labels::default(),
        node: None,
        network: PodNetwork::Own,
        ports: Vec::new(),
        addresses: vec![ADDRESS.parse().unwrap()],
        phase: Phase::Running,
        age: Age { started: started.map(time), created: created.map(time), uid: uid.into() },
    }
}

fn owner(state: &ClusterState) -> String {
    match state.owner(ADDRESS.parse().unwrap()) {
        Owner::Pod(pod) => pod.key.to_string(),
        Owner::Service(service) => format!("service {}", service.key),
        Owner::Node(node) => format!("node {}", node.name),
        Owner::Outside => "outside".to_owned(),
    }
}

fn node(name: &str) -> Event {
    let addresses = vec![ADDRESS.parse().unwrap()];
    Event::Upsert(Object::Node(Node { name: name.into(), labels: Labels::default(), addresses }))
}

#[test]
fn what_undoes_a_change_brings_the_state_back() {
    let mut state = ClusterState::default();
    state.apply(node("n1"));
    let before = state.clone();
    let event = Event::Upsert(Object::Pod(pod("a", None, None, "")));
    let made = state.change(event.clone()).unwrap();
    assert_eq!(made, Event::Delete(event.key()));
    assert_eq!(state.change(event), None, "nothing is different");
    let other = Pod { addresses: Vec::new(), ..pod("a", None, None, "") };
    let changed = state.change(Event::Upsert(Object::Pod(other))).unwrap();
    let deleted = state.change(Event::Delete(node("n1").key())).unwrap();
    for undo in [deleted, changed, made] {
        assert!(state.change(undo).is_some());
    }
    assert_eq!(state, before);
}

#[test]
fn of_two_pods_of_unknown_age_the_last_by_name_has_the_address() {
    let mut state = ClusterState::default();
    for name in ["b", "a"] {
        state.apply(Event::Upsert(Object::Pod(pod(name, None, None, ""))));
    }
    assert_eq!(owner(&state), "n/b");
    let said = state.diagnose_addresses();
    assert_eq!(said[0].message, "10.0.0.1 belongs to n/b, which comes later by name");
}

#[test]
fn of_two_live_pods_the_one_with_the_newer_sandbox_has_the_address() {
    let (early, late) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-01T00:00:01Z"));
    for (older, newer, why) in [
        (pod("z", early, late, "9"), pod("a", late, early, "1"), "whose sandbox is newer"),
        (pod("z", early, early, "9"), pod("a", early, late, "1"), "which was created later"),
        (pod("z", early, early, "1"), pod("a", early, early, "2"), "which comes later by uid"),
        (pod("z", None, late, "9"), pod("a", early, None, "1"), "whose sandbox is newer"),
    ] {
        for order in [[&older, &newer], [&newer, &older]] {
            let mut state = ClusterState::default();
            for pod in order {
                state.apply(Event::Upsert(Object::Pod(pod.clone())));
            }
            assert_eq!(owner(&state), "n/a");
            assert_eq!(state.addresses_of(state.pod(&older.key).unwrap()).count(), 0);
            let said = state.diagnose_addresses();
            assert_eq!(said.len(), 1);
            let expected = format!("Pod n/z: status.podIPs: 10.0.0.1 belongs to n/a, {why}");
            assert!(said[0].to_string().ends_with(&expected), "{}", said[0]);
            state.apply(Event::Delete(ObjectKey::Pod(newer.key.clone())));
            assert_eq!(owner(&state), "n/z", "the older one has it back");
            assert!(state.diagnose_addresses().is_empty());
        }
    }
}

#[test]
fn finished_and_host_network_pods_have_no_address() {
    let mut state = ClusterState::default();
    state.apply(node("n2"));
    state.apply(node("n1"));
    assert_eq!(owner(&state), "node n1");
    state.apply(Event::Upsert(Object::Pod(Pod { network: PodNetwork::Host, ..pod("host", None, None, "") })));
    assert_eq!(owner(&state), "node n1");
    for phase in [Phase::Planned, Phase::Pending, Phase::Running, Phase::Unknown] {
        assert!(state.apply(Event::Upsert(Object::Pod(Pod { phase, ..pod("a", None, None, "") }))));
        assert_eq!(owner(&state), "n/a", "{phase:?}");
    }
    for phase in [Phase::Succeeded, Phase::Failed] {
        assert!(state.apply(Event::Upsert(Object::Pod(Pod { phase, ..pod("a", None, None, "") }))));
        assert_eq!(owner(&state), "node n1", "{phase:?}");
    }
    state.apply(Event::Delete(ObjectKey::Node("n1".into())));
    assert_eq!(owner(&state), "node n2");
    state.apply(Event::Delete(ObjectKey::Node("n2".into())));
    assert_eq!(owner(&state), "outside");
}

#[test]
fn a_namespace_that_only_occurs_in_objects_has_its_name_as_label() {
    let mut state = ClusterState::default();
    state.apply(Event::Upsert(Object::Pod(pod("a", None, None, ""))));
    let name: Arc<str> = "n".into();
    assert_eq!(state.namespace_labels(&name).get("kubernetes.io/metadata.name"), Some("n"));
    let wrong = [("kubernetes.io/metadata.name", "other"), ("env", "dev")].into_iter().collect();
    state.apply(Event::Upsert(Object::Namespace(Namespace::new(name.clone(), &wrong))));
    assert_eq!(state.namespace_labels(&name).get("kubernetes.io/metadata.name"), Some("n"));
    assert_eq!(state.namespace_labels(&name).get("env"), Some("dev"));
}

#[test]
fn policies_are_found_in_their_own_namespace_alone() {
    let mut state = ClusterState::default();
    for namespace in ["m", "n", "n-2", "o"] {
        let key = PolicyKey { namespace: namespace.into(), name: "p".into() };
        let subject = crate::model::Selector::everything();
        state.apply(Event::Upsert(Object::Policy(NetworkPolicy { key, subject, ingress: None, egress: None })));
    }
    let found: Vec<_> = state.policies_of(&pod("a", None, None, "")).map(|policy| policy.key.to_string()).collect();
    assert_eq!(found, ["n/p"]);
}
