use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use npolicy_common::{Direction, FlowProtocol};

use super::super::{Bundle, ClassKey, Compiler, Peer, Plan, Scope};
use crate::model::{
    Action, Age, ClusterMatch, ClusterPeer, ClusterPolicy, ClusterRule, ClusterState, Condition, Endpoint,
    EndpointSlice, Event, IpBlock, Labels, NamedPort, NetworkPolicy, Node, Object, Peer as RulePeer, Peers, Phase, Pod,
    PodKey, PodNetwork, PodPeer, PodSet, PolicyKey, PortEntry, PortProtocol, Ports, Requirement, Rule, Selector,
    Service, ServiceKey, ServicePort, SliceKey, SlicePort, Tier, TrafficPolicy, Values,
};

fn address(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

fn wants(key: &str, value: &str) -> Selector {
    Selector::all(vec![Requirement { key: key.into(), condition: Condition::In(Values::one(value.into())) }])
}

fn labels(app: &str) -> Labels {
    [("app", app)].into_iter().collect()
}

fn pod(name: &str, node: &str, ip: &str) -> Object {
    Object::Pod(Pod {
        key: PodKey { namespace: "ns".into(), name: name.into() },
        labels: labels(name),
        node: Some(node.into()),
        network: PodNetwork::Own,
        ports: Vec::new(),
        addresses: vec![address(ip)],
        phase: Phase::Running,
        age: Age::default(),
        sandbox: None,
    })
}

fn node(name: &str, ip: &str) -> Object {
    Object::Node(Node { name: name.into(), labels: labels(name), addresses: vec![address(ip)], pod_cidrs: Vec::new() })
}

fn service(name: &str, cluster: &[&str], external: &[&str], port: u16, node_port: Option<u16>) -> Service {
    let all = |texts: &[&str]| texts.iter().map(|text| address(text)).collect();
    Service {
        key: ServiceKey { namespace: "ns".into(), name: name.into() },
        cluster_addresses: all(cluster),
        external_addresses: all(external),
        ports: vec![ServicePort { name: "".into(), protocol: PortProtocol::Tcp, port, node_port }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
    }
}

fn slice(service: &str, number: u16, endpoints: &[(&str, &str)]) -> Object {
    let endpoint = |&(ip, node): &(&str, &str)| Endpoint { address: address(ip), node: Some(node.into()) };
    Object::EndpointSlice(EndpointSlice {
        key: SliceKey { namespace: "ns".into(), name: format!("{service}-1").into() },
        service: Some(service.into()),
        ports: vec![SlicePort { name: "".into(), protocol: PortProtocol::Tcp, number }],
        endpoints: endpoints.iter().map(endpoint).collect(),
    })
}

/// Lets `client` reach TCP 8080 of these peers, and nothing else.
fn egress(peers: Vec<RulePeer>) -> Object {
    let range = PortEntry::Range { protocol: PortProtocol::Tcp, first: 8080, last: 8080 };
    egress_to(peers, Ports::Of(vec![range]))
}

fn egress_to(peers: Vec<RulePeer>, ports: Ports) -> Object {
    let rule = Rule::Accept { peers: Peers::Of(peers), ports };
    Object::Policy(NetworkPolicy {
        key: PolicyKey { namespace: "ns".into(), name: "egress".into() },
        subject: wants("app", "client"),
        ingress: None,
        egress: Some(vec![rule]),
    })
}

fn pods(app: &str) -> RulePeer {
    RulePeer::Pods(PodPeer { namespaces: crate::model::Namespaces::Own, pods: wants("app", app) })
}

fn block(text: &str) -> RulePeer {
    RulePeer::Block(IpBlock::new(text.parse().unwrap(), []))
}

fn admin(name: &str, subject: &str, direction: Direction, action: Action, peer: ClusterPeer) -> Object {
    let matches = ClusterMatch::Of { peers: vec![peer], ports: Ports::Any };
    let rules = vec![ClusterRule { name: None, action, matches }];
    let (ingress, egress) = match direction {
        Direction::Ingress => (rules, Vec::new()),
        Direction::Egress => (Vec::new(), rules),
    };
    let subject = PodSet { namespaces: Selector::everything(), pods: wants("app", subject) };
    Object::ClusterPolicy(ClusterPolicy { name: name.into(), tier: Tier::Admin, priority: 1, subject, ingress, egress })
}

fn state(objects: Vec<Object>) -> ClusterState {
    let mut state = ClusterState::default();
    for object in objects {
        state.apply(Event::Upsert(object));
    }
    state
}

fn compile(objects: Vec<Object>) -> Plan {
    Compiler::new(Scope::Node("n1".into())).compile(&state(objects)).0
}

fn row(plan: &Plan, subject: &str, direction: Direction, to: &str) -> Bundle {
    let key = PodKey { namespace: "ns".into(), name: subject.into() };
    plan.subjects[&key].ruleset(direction).row(Peer::Class(plan.class_of(address(to))))
}

/// TCP ports that the client may reach at an address.
fn reaches(plan: &Plan, to: &str) -> Vec<(u16, u16)> {
    row(plan, "client", Direction::Egress, to).ports[FlowProtocol::Tcp as usize].ranges().to_vec()
}

#[test]
fn a_service_is_its_backends_and_no_block_means_its_cluster_address() {
    let plan = compile(vec![
        pod("client", "n1", "10.0.1.1"),
        pod("db", "n2", "10.0.2.1"),
        pod("web", "n2", "10.0.2.2"),
        Object::Service(service("db", &["10.96.0.1"], &[], 80, None)),
        slice("db", 8080, &[("10.0.2.1", "n2")]),
        Object::Service(service("web", &["10.96.0.2"], &[], 80, None)),
        slice("web", 8080, &[("10.0.2.2", "n2")]),
        Object::Service(service("mixed", &["10.96.0.3"], &[], 80, None)),
        slice("mixed", 8080, &[("10.0.2.1", "n2"), ("10.0.2.2", "n2")]),
        Object::Service(service("empty", &["10.96.0.4"], &[], 8080, None)),
        Object::Service(service("outside", &["10.96.0.5"], &[], 443, None)),
        slice("outside", 8080, &[("10.97.0.1", "n2")]),
        Object::Service(service("again", &["10.96.0.6"], &[], 80, None)),
        slice("again", 8080, &[("10.96.0.5", "n2")]),
        Object::Service(service("twin", &["10.96.0.7"], &[], 80, None)),
        slice("twin", 8080, &[("10.0.2.1", "n2")]),
        egress(vec![pods("db"), block("10.96.0.0/11")]),
    ]);
    assert_eq!(reaches(&plan, "10.0.2.1"), [(8080, 8080)]);
    assert_eq!(reaches(&plan, "10.96.0.1"), [(80, 80)]);
    assert_eq!(reaches(&plan, "10.96.0.2"), []);
    assert_eq!(reaches(&plan, "10.96.0.3"), [], "one backend of two");
    assert_eq!(reaches(&plan, "10.96.0.4"), [], "no backend, and only a rule without peers would do");
    assert_eq!(reaches(&plan, "10.96.0.5"), [(443, 443)], "the block is around the backend");
    assert_eq!(reaches(&plan, "10.96.0.6"), [], "a backend that is a cluster address is in no block");
    assert_eq!(reaches(&plan, "10.96.0.9"), [(8080, 8080)], "an address of the range that no Service has");
    assert_eq!(plan.exact[&address("10.96.0.1")], plan.exact[&address("10.96.0.7")], "equal Services are one class");
}

#[test]
fn an_external_address_is_a_services_on_its_ports_alone() {
    let plan = compile(vec![
        pod("client", "n1", "10.0.1.1"),
        pod("db", "n2", "10.0.2.1"),
        pod("web", "n2", "10.0.2.2"),
        node("n1", "192.168.0.1"),
        node("n2", "192.168.0.2"),
        Object::Service(service("db", &["10.96.0.1"], &["198.51.100.1", "10.0.2.2"], 80, Some(30_000))),
        slice("db", 8080, &[("10.0.2.1", "n2")]),
        Object::Service(service("web", &["10.96.0.2"], &["198.51.100.2"], 8080, None)),
        slice("web", 8080, &[("10.0.2.2", "n2")]),
        egress(vec![pods("db"), block("198.51.100.0/24"), block("192.168.0.0/24"), block("10.0.2.2/32")]),
    ]);
    assert_eq!(reaches(&plan, "198.51.100.1"), [(80, 80), (8080, 8080)]);
    assert_eq!(reaches(&plan, "198.51.100.2"), [(8080, 8080)], "the backend is in a block of its own");
    assert_eq!(reaches(&plan, "192.168.0.1"), [(8080, 8080), (30_000, 30_000)]);
    assert_eq!(reaches(&plan, "192.168.0.2"), [(8080, 8080), (30_000, 30_000)]);
    assert_eq!(reaches(&plan, "10.0.2.2"), [(80, 80), (8080, 8080)], "a pod's address too");
    assert_eq!(plan.node_addresses.iter().copied().collect::<Vec<_>>(), [address("192.168.0.1")]);
}

#[test]
fn a_local_policy_leaves_a_cluster_address_this_nodes_backends() {
    let local = |name, cluster: &str, external: &str| Service {
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        ..service(name, &[cluster], &[external], 80, None)
    };
    let objects = vec![
        pod("client", "n1", "10.0.1.1"),
        pod("db", "n1", "10.0.1.2"),
        pod("web", "n2", "10.0.2.2"),
        Object::Service(local("both", "10.96.0.1", "198.51.100.1")),
        slice("both", 8080, &[("10.0.1.2", "n1"), ("10.0.2.2", "n2")]),
        Object::Service(local("far", "10.96.0.2", "198.51.100.2")),
        slice("far", 8080, &[("10.0.2.2", "n2")]),
        egress(vec![pods("db")]),
    ];
    let plan = compile(objects.clone());
    assert_eq!(reaches(&plan, "10.96.0.1"), [(80, 80)]);
    assert_eq!(reaches(&plan, "198.51.100.1"), [], "the policy for who comes from outside says nothing to pods");
    assert_eq!(reaches(&plan, "10.96.0.2"), []);
    let (everything, _) = Compiler::new(Scope::Everything).compile(&state(objects));
    assert_eq!(reaches(&everything, "10.96.0.1"), [], "without a node, every backend counts");
}

#[test]
fn a_pod_reaches_itself_through_its_service_unless_an_outer_tier_denies() {
    let objects = vec![
        pod("client", "n1", "10.0.1.1"),
        pod("other", "n1", "10.0.1.2"),
        pod("far", "n2", "10.0.2.1"),
        Object::Service(service("own", &["10.96.0.1"], &[], 80, None)),
        slice("own", 8080, &[("10.0.1.1", "n1")]),
        Object::Service(service("other", &["10.96.0.2"], &[], 80, None)),
        slice("other", 8080, &[("10.0.1.2", "n1")]),
        egress(vec![]),
    ];
    let plan = compile(objects.clone());
    assert_eq!(reaches(&plan, "10.96.0.1"), [(80, 80)]);
    assert_eq!(reaches(&plan, "10.0.1.1"), []);
    assert_eq!(reaches(&plan, "10.96.0.2"), []);
    let locals = |plan: &Plan| -> usize {
        let backends = plan.classes.iter().flat_map(|key| key.frontends.iter()).flat_map(|port| &port.backends);
        backends.filter(|backend| backend.local.is_some()).count()
    };
    assert_eq!(locals(&plan), 1, "only what makes a difference sets backends apart");

    let everybody = || ClusterPeer::Pods(PodSet { namespaces: Selector::everything(), pods: Selector::everything() });
    let mut denied = objects.clone();
    denied.push(admin("deny", "client", Direction::Egress, Action::Deny, everybody()));
    assert_eq!(reaches(&compile(denied), "10.96.0.1"), []);

    let mut denied = objects;
    denied.push(admin("deny", "client", Direction::Ingress, Action::Deny, everybody()));
    let plan = compile(denied);
    let key = PodKey { namespace: "ns".into(), name: "client".into() };
    assert_eq!(plan.subjects[&key].ingress.row(Peer::PodSelf), Bundle::nothing());
}

#[test]
fn a_port_name_counts_only_where_a_rule_looks_it_up() {
    let named = |name, ip| match pod(name, "n2", ip) {
        Object::Pod(pod) => {
            let port = NamedPort { name: "http".into(), protocol: PortProtocol::Tcp, number: 8080 };
            Object::Pod(Pod { ports: vec![port], ..pod })
        }
        _ => unreachable!(),
    };
    let plan = |peers| {
        let ports = Ports::Of(vec![PortEntry::Named { protocol: PortProtocol::Tcp, name: "http".into() }]);
        let pods = [named("db", "10.0.2.1"), named("web", "10.0.2.2"), named("other", "10.0.2.3")];
        compile([pod("client", "n1", "10.0.1.1"), egress_to(peers, ports)].into_iter().chain(pods).collect())
    };
    let of_db = plan(vec![pods("db")]);
    assert_eq!(reaches(&of_db, "10.0.2.1"), [(8080, 8080)]);
    assert_eq!(of_db.exact.keys().copied().collect::<Vec<_>>(), [address("10.0.2.1")], "the others are nobody's peers");
    let with_block = plan(vec![pods("db"), block("10.0.2.2/32")]);
    assert_eq!(reaches(&with_block, "10.0.2.2"), [(8080, 8080)]);
    assert_eq!(reaches(&with_block, "10.0.2.3"), []);
    assert_eq!(with_block.exact.len(), 2);
}

#[test]
fn subjects_with_equal_policy_share_their_rulesets() {
    let other = |name: &str, ip: &str| match pod(name, "n1", ip) {
        Object::Pod(pod) => Object::Pod(Pod { labels: labels("client"), ..pod }),
        _ => unreachable!(),
    };
    let nodes = ClusterPeer::Nodes(Selector::everything());
    let plan = compile(vec![
        other("client", "10.0.1.1"),
        other("client-2", "10.0.1.2"),
        Object::Service(service("own", &["10.96.0.1"], &[], 80, None)),
        slice("own", 8080, &[("10.0.1.1", "n1"), ("10.0.1.2", "n1")]),
        egress_to(vec![pods("client")], Ports::Any),
        admin("nodes", "client", Direction::Egress, Action::Deny, nodes),
    ]);
    let mut rulesets: BTreeMap<*const _, usize> = BTreeMap::new();
    for subject in plan.subjects.values() {
        *rulesets.entry(Arc::as_ptr(&subject.egress)).or_default() += 1;
    }
    assert_eq!(rulesets.into_values().collect::<Vec<_>>(), [2]);
}

#[test]
fn node_selectors_match_the_addresses_of_nodes_whoever_else_has_them() {
    let everything = IpNet::new(address("0.0.0.0"), 0).unwrap();
    let plan = compile(vec![
        pod("client", "n1", "10.0.1.1"),
        pod("taken", "n2", "192.168.0.3"),
        node("n1", "192.168.0.1"),
        node("n2", "192.168.0.2"),
        node("n3", "192.168.0.3"),
        node("n4", "10.96.0.1"),
        Object::Service(service("own", &["10.96.0.1"], &[], 80, None)),
        Object::ClusterPolicy(ClusterPolicy {
            name: "nodes".into(),
            tier: Tier::Admin,
            priority: 1,
            subject: PodSet { namespaces: Selector::everything(), pods: wants("app", "client") },
            ingress: Vec::new(),
            egress: [
                (Action::Accept, ClusterPeer::Nodes(wants("app", "n2"))),
                (Action::Deny, ClusterPeer::Nodes(Selector::everything())),
                (Action::Accept, ClusterPeer::Networks(vec![everything])),
            ]
            .map(|(action, peer)| ClusterRule {
                name: None,
                action,
                matches: ClusterMatch::Of { peers: vec![peer], ports: Ports::Any },
            })
            .into(),
        }),
        egress(vec![]),
    ]);
    assert_eq!(reaches(&plan, "192.168.0.1"), []);
    assert_eq!(reaches(&plan, "192.168.0.2"), [(0, 65_535)]);
    assert_eq!(reaches(&plan, "192.168.0.3"), [], "a pod has it, a node says it has it too");
    assert_eq!(reaches(&plan, "192.168.0.4"), [(0, 65_535)]);
    assert_eq!(reaches(&plan, "10.96.0.1"), [], "a cluster address is nobody's, so the policy denies it");
    assert_eq!(plan.class_of(address("10.96.0.1")).facts.len(), 0);
}

#[test]
fn a_cluster_address_is_never_this_nodes_and_a_pods_is_the_pods() {
    let plan = compile(vec![
        pod("client", "n1", "10.0.1.1"),
        pod("db", "n2", "10.96.0.2"),
        Object::Node(Node {
            name: "n1".into(),
            labels: labels("n1"),
            addresses: vec![address("192.168.0.1"), address("10.96.0.1")],
            pod_cidrs: Vec::new(),
        }),
        Object::Service(service("a", &["10.96.0.1"], &[], 80, None)),
        Object::Service(service("b", &["10.96.0.2"], &[], 80, None)),
        egress(vec![pods("db")]),
    ]);
    assert_eq!(plan.node_addresses.iter().copied().collect::<Vec<_>>(), [address("192.168.0.1")]);
    assert!(plan.class_of(address("10.96.0.1")).is_service());
    let pods: &ClassKey = plan.class_of(address("10.96.0.2"));
    assert!(!pods.is_service() && pods.facts.len() == 1, "{pods:?}");
    assert_eq!(reaches(&plan, "10.96.0.2"), [(8080, 8080)]);
}

#[test]
fn node_ports_are_open_on_every_address_of_this_node() {
    let objects = || {
        vec![
            pod("client", "n1", "10.0.1.1"),
            pod("db", "n2", "10.0.2.1"),
            Object::Service(service("db", &["10.96.0.1"], &["192.0.2.7"], 80, Some(30_080))),
            slice("db", 8080, &[("10.0.2.1", "n2")]),
            egress_to(vec![block("10.0.1.254/32"), block("192.0.2.7/32")], Ports::Any),
        ]
    };
    // The pods' gateway, and an address that is a Service's too: neither is in the status of a node. The third is there
    // because kube-proxy needs it.
    let own = ["10.0.1.254", "192.0.2.7", "10.96.0.1"].map(address).into();
    let except = |port: u16| vec![(0, port - 1), (port + 1, 65_535)];
    let shared = vec![(0, 79), (81, 30_079), (30_081, 65_535)];
    for is_known_first in [true, false] {
        let mut compiler = Compiler::new(Scope::Node("n1".into()));
        let mut known = ClusterState::default();
        if is_known_first {
            compiler.start(&known);
            let changes = compiler.set_own_addresses(&known, &own);
            assert!(changes.node_addresses && changes.addresses.is_empty());
            let undo: Vec<Event> =
                objects().into_iter().filter_map(|object| known.change(Event::Upsert(object))).collect();
            compiler.apply(&known, &undo);
        } else {
            known = state(objects());
            compiler.start(&known);
            assert_eq!(reaches(compiler.plan(), "10.0.1.254"), [(0, 65_535)], "nobody said that it is this node's");
            let changes = compiler.set_own_addresses(&known, &own);
            assert_eq!(changes.addresses, ["10.0.1.254", "192.0.2.7"].map(address));
        }
        assert_eq!(reaches(compiler.plan(), "10.0.1.254"), except(30_080));
        assert_eq!(reaches(compiler.plan(), "192.0.2.7"), shared);
        let cluster = compiler.plan().class_of(address("10.96.0.1"));
        assert_eq!(cluster.frontends.iter().map(|at| at.port).collect::<Vec<_>>(), [80]);

        let closed = Object::Service(service("db", &["10.96.0.1"], &["192.0.2.7"], 80, None));
        let undo: Vec<Event> = known.change(Event::Upsert(closed)).into_iter().collect();
        compiler.apply(&known, &undo);
        assert_eq!(reaches(compiler.plan(), "10.0.1.254"), [(0, 65_535)]);
        assert_eq!(reaches(compiler.plan(), "192.0.2.7"), except(80));
        compiler.set_own_addresses(&known, &Default::default());
        assert!(!compiler.plan().exact.contains_key(&address("10.0.1.254")));
    }
}

#[test]
fn an_address_of_this_node_that_is_no_services_any_more_has_node_ports_again() {
    let mut known = state(vec![
        pod("client", "n1", "10.0.1.1"),
        pod("db", "n2", "10.0.2.1"),
        Object::Service(service("db", &["10.96.0.1"], &[], 80, Some(30_080))),
        slice("db", 8080, &[("10.0.2.1", "n2")]),
        egress_to(vec![block("192.0.2.7/32")], Ports::Any),
    ]);
    let claimed = |cluster: &[&str], external: &[&str]| {
        Event::Upsert(Object::Service(service("other", cluster, external, 443, None)))
    };
    let mut compiler = Compiler::new(Scope::Node("n1".into()));
    compiler.start(&known);
    compiler.set_own_addresses(&known, &[address("192.0.2.7")].into());
    let gone = || Event::Delete(claimed(&[], &[]).key());
    for (event, expected) in [
        (claimed(&["10.96.0.2"], &["192.0.2.7"]), vec![(0, 442), (444, 30_079), (30_081, 65_535)]),
        (gone(), vec![(0, 30_079), (30_081, 65_535)]),
        (claimed(&["192.0.2.7"], &[]), vec![]),
        (gone(), vec![(0, 30_079), (30_081, 65_535)]),
    ] {
        let undo: Vec<Event> = known.change(event).into_iter().collect();
        compiler.apply(&known, &undo);
        assert_eq!(reaches(compiler.plan(), "192.0.2.7"), expected);
    }
}

#[test]
fn where_two_services_claim_a_port_the_backends_of_both_count() {
    let plan = |second: &str| {
        compile(vec![
            pod("client", "n1", "10.0.1.1"),
            pod("db", "n2", "10.0.2.1"),
            pod("web", "n2", "10.0.2.2"),
            Object::Service(service("a", &["10.96.0.1"], &["192.0.2.7"], 80, None)),
            slice("a", 8080, &[("10.0.2.1", "n2")]),
            Object::Service(service("b", &["10.96.0.2"], &["192.0.2.7", "10.96.0.1"], 80, None)),
            slice("b", 8080, &[(second, "n2")]),
            egress(vec![pods("db")]),
        ])
    };
    for shared in ["192.0.2.7", "10.96.0.1"] {
        assert_eq!(reaches(&plan("10.0.2.1"), shared), [(80, 80)]);
        assert_eq!(reaches(&plan("10.0.2.2"), shared), [], "{shared}: nobody can say whose backend it is");
    }
}
