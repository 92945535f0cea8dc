//! Who has which address, and that the way to a state leaves no trace in it.

use super::*;
use crate::model::{
    Age, Condition, Endpoint, Phase, PodNetwork, PodSet, PortProtocol, Requirement, Selector, SlicePort, TrafficPolicy,
    Values,
};

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
        sandbox: None,
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
    Event::Upsert(Object::Node(Node { name: name.into(), labels: Labels::default(), addresses, pod_cidrs: Vec::new() }))
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
        let subject = Selector::everything();
        state.apply(Event::Upsert(Object::Policy(NetworkPolicy { key, subject, ingress: None, egress: None })));
    }
    let found: Vec<_> = state.policies_of(&pod("a", None, None, "")).map(|policy| policy.key.to_string()).collect();
    assert_eq!(found, ["n/p"]);
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(name: &str, protocol: PortProtocol, port: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port }
}

/// A Service in the namespace `n`.
fn service(name: &str, cluster: &[&str], external: &[&str], ports: Vec<ServicePort>) -> Service {
    Service {
        key: service_key(name),
        cluster_addresses: cluster.iter().map(|text| address(text)).collect(),
        external_addresses: external.iter().map(|text| address(text)).collect(),
        ports,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
    }
}

fn service_key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "n".into(), name: name.into() }
}

/// A slice of a Service in the namespace `n`; endpoints are `ADDRESS` or `ADDRESS@NODE`.
fn slice(name: &str, service: &str, ports: &[(&str, PortProtocol, u16)], endpoints: &[&str]) -> EndpointSlice {
    let endpoint = |text: &&str| match text.split_once('@') {
        Some((at, node)) => Endpoint { address: address(at), node: Some(node.into()) },
        None => Endpoint { address: address(text), node: None },
    };
    EndpointSlice {
        key: SliceKey { namespace: "n".into(), name: name.into() },
        service: Some(service.into()),
        ports: ports
            .iter()
            .map(|&(name, protocol, number)| SlicePort { name: name.into(), protocol, number })
            .collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn state(objects: impl IntoIterator<Item = Object>) -> ClusterState {
    let mut state = ClusterState::default();
    for object in objects {
        state.apply(Event::Upsert(object));
    }
    state
}

/// Each frontend as `SERVICE KIND PORT/PROTOCOL -> BACKENDS`.
fn frontends(state: &ClusterState, at: &str) -> Vec<String> {
    let text = |frontend: &Frontend<'_>| {
        let backends = frontend.backends.iter().map(|backend| format!("{}:{}", backend.address, backend.port));
        let (kind, port, protocol) = (frontend.kind, frontend.port, frontend.protocol);
        let backends: Vec<_> = backends.collect();
        format!("{} {kind:?} {port}/{protocol} -> {}", frontend.service.key, backends.join(" "))
    };
    state.frontends(address(at)).iter().map(text).collect()
}

#[test]
fn a_frontend_leads_to_the_backends_of_its_port_and_family_each_once() {
    use PortProtocol::{Tcp, Udp};
    let ports = vec![port("web", Tcp, 80, None), port("dns", Udp, 53, None), port("none", Tcp, 1, None)];
    let state = state([
        Object::Service(service("a", &["10.96.0.1", "fd00::1"], &[], ports)),
        Object::EndpointSlice(slice("a-2", "a", &[("web", Tcp, 8080)], &["10.0.0.2", "10.0.0.1"])),
        Object::EndpointSlice(slice("a-1", "a", &[("web", Tcp, 8080), ("dns", Udp, 53)], &["10.0.0.2", "10.0.0.3"])),
        Object::EndpointSlice(slice("a-3", "a", &[("web", Tcp, 9090), ("web", Udp, 1)], &["fd00:1::1", "10.0.0.1"])),
        Object::EndpointSlice(slice("b-1", "b", &[("web", Tcp, 7)], &["10.0.0.9"])),
        Object::EndpointSlice(EndpointSlice { service: None, ..slice("c", "a", &[("web", Tcp, 7)], &["10.0.0.8"]) }),
    ]);
    assert_eq!(
        frontends(&state, "10.96.0.1"),
        [
            "n/a Cluster 1/TCP -> ",
            "n/a Cluster 80/TCP -> 10.0.0.1:8080 10.0.0.1:9090 10.0.0.2:8080 10.0.0.3:8080",
            "n/a Cluster 53/UDP -> 10.0.0.2:53 10.0.0.3:53",
        ]
    );
    assert_eq!(
        frontends(&state, "fd00::1"),
        ["n/a Cluster 1/TCP -> ", "n/a Cluster 80/TCP -> fd00:1::1:9090", "n/a Cluster 53/UDP -> "]
    );
    assert_eq!(frontends(&state, "10.96.0.2"), [""; 0]);
    assert_eq!(frontends(&state, "10.0.0.1"), [""; 0]);
}

#[test]
fn of_several_services_at_a_port_the_closest_kind_and_then_the_first_by_name_has_it() {
    use PortProtocol::Tcp;
    let shared = "203.0.113.1";
    let node = |name: &str| Node {
        name: name.into(),
        labels: Labels::default(),
        addresses: vec![address(shared)],
        pod_cidrs: Vec::new(),
    };
    let objects = [
        Object::Service(service("z", &[shared], &[], vec![port("", Tcp, 80, None)])),
        Object::Service(service(
            "y",
            &["10.96.0.2"],
            &[shared],
            vec![port("a", Tcp, 80, None), port("b", Tcp, 81, Some(82))],
        )),
        Object::Service(service("x", &["10.96.0.3"], &[shared], vec![port("", Tcp, 81, Some(81))])),
        Object::Service(service(
            "w",
            &["10.96.0.4"],
            &[],
            vec![port("", Tcp, 5, Some(80)), port("b", Tcp, 6, Some(82)), port("c", Tcp, 7, Some(83))],
        )),
        Object::Service(service("v", &["fd00::4"], &[], vec![port("", Tcp, 5, Some(84))])),
        Object::Service(service("u", &[], &[], vec![port("", Tcp, 5, Some(85))])),
        Object::Node(node("n1")),
    ];
    let expected =
        ["n/z Cluster 80/TCP -> ", "n/x External 81/TCP -> ", "n/w NodePort 82/TCP -> ", "n/w NodePort 83/TCP -> "];
    assert_eq!(frontends(&state(objects.clone()), shared), expected);
    let mut state = state(objects.into_iter().rev());
    assert_eq!(frontends(&state, shared), expected);
    assert!(state.virtual_addresses().any(|at| at == address(shared)));

    assert!(state.apply(Event::Delete(ObjectKey::Service(service_key("z")))));
    assert!(state.apply(Event::Delete(ObjectKey::Service(service_key("x")))));
    let expected =
        ["n/y External 80/TCP -> ", "n/y External 81/TCP -> ", "n/w NodePort 82/TCP -> ", "n/w NodePort 83/TCP -> "];
    assert_eq!(frontends(&state, shared), expected);
    assert!(state.apply(Event::Delete(ObjectKey::Node("n1".into()))));
    assert_eq!(frontends(&state, shared), expected[..2]);
    for name in ["w", "y", "v", "u"] {
        assert!(state.apply(Event::Delete(ObjectKey::Service(service_key(name)))));
    }
    assert_eq!((frontends(&state, shared), state.virtual_addresses().count()), (vec![], 0));
    assert_eq!(state, ClusterState::default());
}

#[test]
fn only_a_local_cluster_address_leads_to_the_own_node_alone() {
    use PortProtocol::Tcp;
    let node = Node {
        name: "n1".into(),
        labels: Labels::default(),
        addresses: vec![address("192.0.2.1")],
        pod_cidrs: Vec::new(),
    };
    let local = Service {
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        ..service("a", &["10.96.0.1"], &["203.0.113.1"], vec![port("", Tcp, 80, Some(30080))])
    };
    let slice = slice("a-1", "a", &[("", Tcp, 8080)], &["10.0.0.1@n1", "10.0.0.2@n2", "10.0.0.3"]);
    let state = state([Object::Node(node), Object::Service(local), Object::EndpointSlice(slice)]);
    for (at, from, usable) in [
        ("10.96.0.1", Some("n1"), &["10.0.0.1"][..]),
        ("10.96.0.1", Some("n3"), &[]),
        ("10.96.0.1", None, &[]),
        ("203.0.113.1", Some("n1"), &["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        ("192.0.2.1", Some("n1"), &["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
    ] {
        let frontends = state.frontends(address(at));
        assert_eq!(frontends.len(), 1);
        let found: Vec<_> = frontends[0].usable(from).map(|backend| backend.address.to_string()).collect();
        assert_eq!(found, usable, "{at} from {from:?}");
    }
}

#[test]
fn slices_follow_the_service_that_they_name() {
    let names = |state: &ClusterState, service: &str| {
        state.slices_of(&service_key(service)).map(|slice| slice.key.name.to_string()).collect::<Vec<_>>()
    };
    let slice_of = |name: &str, service: &str| Object::EndpointSlice(slice(name, service, &[], &[]));
    let mut state = state([slice_of("2", "a"), slice_of("1", "a"), slice_of("3", "b")]);
    assert_eq!(
        (names(&state, "a"), names(&state, "b"), names(&state, "c")),
        (vec!["1".into(), "2".into()], vec!["3".into()], vec![])
    );
    assert!(!state.apply(Event::Upsert(slice_of("1", "a"))), "nothing is different");
    assert!(state.apply(Event::Upsert(slice_of("1", "b"))));
    assert_eq!((names(&state, "a"), names(&state, "b")), (vec!["2".into()], vec!["1".into(), "3".into()]));
    let nobodys = EndpointSlice { service: None, ..slice("3", "", &[], &[]) };
    assert!(state.apply(Event::Upsert(Object::EndpointSlice(nobodys))));
    assert_eq!(names(&state, "b"), ["1"]);
    let elsewhere = ServiceKey { namespace: "m".into(), name: "b".into() };
    assert_eq!(state.slices_of(&elsewhere).count(), 0, "another namespace has other Services");
    for name in ["1", "2", "3"] {
        let key = SliceKey { namespace: "n".into(), name: name.into() };
        assert!(state.apply(Event::Delete(ObjectKey::EndpointSlice(key.clone()))));
        assert!(!state.apply(Event::Delete(ObjectKey::EndpointSlice(key))), "it is gone already");
    }
    assert_eq!(state, ClusterState::default());
}

#[test]
fn a_cluster_address_belongs_to_its_service_unless_a_pod_has_it() {
    let mut state = ClusterState::default();
    state.apply(node("n1"));
    assert_eq!(owner(&state), "node n1");
    state.apply(Event::Upsert(Object::Service(service("e", &[], &[ADDRESS], Vec::new()))));
    assert_eq!(owner(&state), "node n1", "an external address is whoever's it is");
    state.apply(Event::Upsert(Object::Service(service("b", &[ADDRESS], &[], Vec::new()))));
    state.apply(Event::Upsert(Object::Service(service("a", &[ADDRESS, ADDRESS], &[], Vec::new()))));
    assert_eq!(owner(&state), "service n/a", "the first by name");
    state.apply(Event::Upsert(Object::Pod(pod("p", None, None, ""))));
    assert_eq!(owner(&state), "n/p");
    assert_eq!(state.addresses_of(state.pod(&pod("p", None, None, "").key).unwrap()).count(), 1);
    state.apply(Event::Upsert(Object::Pod(Pod { phase: Phase::Failed, ..pod("p", None, None, "") })));
    assert_eq!(owner(&state), "service n/a");
    state.apply(Event::Upsert(Object::Service(service("a", &["10.0.0.9"], &[], Vec::new()))));
    assert_eq!(owner(&state), "service n/b");
    state.apply(Event::Delete(ObjectKey::Service(service_key("b"))));
    assert_eq!(owner(&state), "node n1");
}

fn cluster_policy(name: &str, tier: Tier, priority: u16, subject: PodSet) -> ClusterPolicy {
    ClusterPolicy { name: name.into(), tier, priority, subject, ingress: Vec::new(), egress: Vec::new() }
}

fn labelled(key: &str, value: &str) -> Selector {
    let condition = Condition::In(Values::one(value.into()));
    Selector::all(vec![Requirement { key: key.into(), condition }])
}

#[test]
fn cluster_policies_are_asked_by_priority_and_then_by_the_bytes_of_their_names() {
    let everybody = PodSet { namespaces: Selector::everything(), pods: Selector::everything() };
    let mut policies: Vec<_> = [("a9", 5), ("a10", 5), ("B", 5), ("z", 0), ("a", 1000), ("é", 5), ("-", 1000)]
        .into_iter()
        .map(|(name, priority)| Object::ClusterPolicy(cluster_policy(name, Tier::Admin, priority, everybody.clone())))
        .collect();
    policies.push(Object::ClusterPolicy(cluster_policy("base", Tier::Baseline, 1, everybody)));
    let pod = pod("p", None, None, "");
    for _ in 0..policies.len() {
        policies.rotate_left(1);
        let state = state(policies.clone());
        let asked = |tier| state.cluster_policies_of(&pod, tier).iter().map(|policy| &*policy.name).collect::<Vec<_>>();
        assert_eq!(asked(Tier::Admin), ["z", "B", "a10", "a9", "é", "-", "a"]);
        assert_eq!(asked(Tier::Baseline), ["base"]);
    }
}

#[test]
fn a_cluster_policy_selects_pods_by_their_labels_and_those_of_their_namespace() {
    let [everything, web, prod] = [Selector::everything(), labelled("app", "web"), labelled("env", "prod")];
    let subject =
        |namespaces: &Selector, pods: &Selector| PodSet { namespaces: namespaces.clone(), pods: pods.clone() };
    let admin = |name: &str, subject| Object::ClusterPolicy(cluster_policy(name, Tier::Admin, 1, subject));
    let namespace = Namespace::new("n".into(), &[("env", "prod")].into_iter().collect());
    let mut state = state([
        Object::Namespace(namespace),
        admin("all", subject(&everything, &everything)),
        admin("prod", subject(&prod, &everything)),
        admin("web", subject(&everything, &web)),
        admin("web-in-prod", subject(&prod, &web)),
        admin("by-name", subject(&labelled("kubernetes.io/metadata.name", "n"), &everything)),
    ]);
    let of = |state: &ClusterState, pod: &Pod| {
        let policies = state.cluster_policies_of(pod, Tier::Admin);
        policies.iter().map(|policy| policy.name.to_string()).collect::<Vec<_>>()
    };
    let plain = pod("p", None, None, "");
    let web_pod = Pod { labels: [("app", "web")].into_iter().collect(), ..plain.clone() };
    let mut elsewhere = web_pod.clone();
    elsewhere.key.namespace = "m".into();
    assert_eq!(of(&state, &plain), ["all", "by-name", "prod"]);
    assert_eq!(of(&state, &web_pod), ["all", "by-name", "prod", "web", "web-in-prod"]);
    assert_eq!(of(&state, &elsewhere), ["all", "web"], "a namespace that nobody described has its name alone");
    state.apply(Event::Delete(ObjectKey::Namespace("n".into())));
    assert_eq!(of(&state, &web_pod), ["all", "by-name", "web"]);
    state.apply(Event::Delete(ObjectKey::ClusterPolicy("all".into())));
    assert_eq!(of(&state, &plain), ["by-name"]);
}

/// Objects of every kind that claim the same few addresses and names, so that they get in each other's way.
fn crowd(pick: &mut impl FnMut(usize) -> usize) -> Object {
    use PortProtocol::{Tcp, Udp};
    const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let name = NAMES[pick(3)];
    let mut addresses = |most: usize| {
        let count = pick(most + 1);
        (0..count).map(|_| ADDRESSES[pick(5)]).collect::<Vec<_>>()
    };
    let (some, more) = (addresses(2), addresses(2));
    let node_port = [None, Some(30000), Some(30001)][pick(3)];
    match pick(7) {
        0 => {
            let phase = [Phase::Running, Phase::Succeeded, Phase::Pending][pick(3)];
            let addresses = some.first().map(|text| address(text)).into_iter().collect();
            Object::Pod(Pod { phase, addresses, ..pod(name, None, None, NAMES[pick(3)]) })
        }
        1 => Object::Node(Node {
            name: name.into(),
            labels: Labels::default(),
            addresses: some.iter().map(|text| address(text)).collect(),
            pod_cidrs: Vec::new(),
        }),
        2 => Object::Namespace(Namespace::new(name.into(), &[("env", NAMES[pick(3)])].into_iter().collect())),
        3 => {
            let key = PolicyKey { namespace: "n".into(), name: name.into() };
            let subject = labelled("app", NAMES[pick(3)]);
            Object::Policy(NetworkPolicy { key, subject, ingress: None, egress: None })
        }
        4 => {
            let subject = PodSet { namespaces: Selector::everything(), pods: labelled("app", NAMES[pick(3)]) };
            Object::ClusterPolicy(cluster_policy(name, [Tier::Admin, Tier::Baseline][pick(2)], pick(3) as u16, subject))
        }
        5 => {
            let ports = vec![port("x", Tcp, 80, node_port), port("y", [Tcp, Udp][pick(2)], 80 + pick(2) as u16, None)];
            Object::Service(service(name, &some, &more, ports))
        }
        _ => {
            let slice = slice(name, NAMES[pick(3)], &[("x", Tcp, 8080), ("y", Udp, 53)], &some);
            let service = slice.service.clone().filter(|_| pick(4) > 0);
            Object::EndpointSlice(EndpointSlice { service, ..slice })
        }
    }
}

#[test]
fn any_sequence_of_events_that_ends_in_the_same_objects_ends_in_an_equal_state() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pick = |limit: usize| {
        // Marsaglia's xorshift: the same sequences in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % limit as u64) as usize
    };
    for _ in 0..300 {
        let mut long = ClusterState::default();
        let (mut left, mut undone) = (BTreeMap::new(), Vec::new());
        for _ in 0..40 {
            let object = crowd(&mut pick);
            let key = object.key();
            if pick(3) == 0 {
                let undo = long.change(Event::Delete(key.clone()));
                assert_eq!(undo, left.remove(&key).map(Event::Upsert));
                undone.extend(undo);
            } else {
                let is_new = left.insert(key, object.clone()).as_ref() != Some(&object);
                let undo = long.change(Event::Upsert(object.clone()));
                assert_eq!(undo.is_some(), is_new);
                undone.extend(undo);
                assert!(!long.apply(Event::Upsert(object)), "once more changes nothing");
            }
        }
        let mut objects: Vec<_> = left.values().cloned().collect();
        assert_eq!(state(objects.iter().cloned()), long);
        for end in (1..objects.len()).rev() {
            objects.swap(end, pick(end + 1));
        }
        let shuffled = state(objects);
        assert_eq!(shuffled, long);
        for text in ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"] {
            assert_eq!(frontends(&shuffled, text), frontends(&long, text));
            assert_eq!(shuffled.owner(address(text)), long.owner(address(text)));
        }
        let mut back = long.clone();
        for undo in undone.into_iter().rev() {
            assert!(back.apply(undo));
        }
        assert_eq!(back, ClusterState::default(), "undone in reverse, every change leaves nothing behind");
        for key in left.into_keys() {
            assert!(long.apply(Event::Delete(key)));
        }
        assert_eq!(long, ClusterState::default(), "what is gone leaves nothing behind");
    }
}
