use super::*;
use crate::model::PortProtocol;

const FRIEND: PeerId = PeerId(1);
const STRANGER: PeerId = PeerId(2);

fn tcp(first: u16, last: u16) -> Bundle {
    Bundle { ports: [PortSet::range(first, last), PortSet::nothing(), PortSet::nothing()], other: false }
}

fn accepts(peers: Option<&[PeerId]>, bundle: Bundle) -> Accepts {
    Accepts { peers: peers.map(<[_]>::to_vec), bundle, names: Vec::new() }
}

fn step(action: Action, peers: &[PeerId], bundle: Bundle) -> Step {
    Step { action, what: accepts(Some(peers), bundle) }
}

fn class(facts: &[Fact]) -> ClassKey {
    ClassKey::of(facts)
}

fn tcp_row(ruleset: &Ruleset, peer: Peer<'_>) -> Vec<(u16, u16)> {
    ruleset.row(peer).ports[0].ranges().to_vec()
}

#[test]
fn the_first_rule_that_matches_a_port_decides_it_and_the_rest_goes_on() {
    let everything = Bundle::everything;
    let admin = vec![
        step(Action::Accept, &[FRIEND], tcp(80, 80)),
        step(Action::Deny, &[FRIEND], tcp(80, 90)),
        step(Action::Pass, &[FRIEND, STRANGER], tcp(85, 100)),
        step(Action::Deny, &[FRIEND], tcp(100, 110)),
    ];
    let friend = class(&[Fact::Peer(FRIEND)]);
    let stranger = class(&[Fact::Peer(STRANGER)]);
    let row = |tiers: Tiers, key: &ClassKey| tcp_row(&Ruleset::governed(Direction::Ingress, tiers), Peer::Class(key));

    let alone = Tiers { admin: admin.clone(), ..Tiers::default() };
    assert_eq!(row(alone.clone(), &friend), [(0, 80), (91, 100), (111, 65535)]);
    assert_eq!(row(alone.clone(), &stranger), [(0, 65535)], "Pass and no match both end in the default");
    assert!(Ruleset::governed(Direction::Ingress, alone).row(Peer::Class(&friend)).other);

    let isolated = Some(vec![accepts(Some(&[FRIEND]), tcp(95, 120)), accepts(None, tcp(1, 1))]);
    let with_policy = Tiers { admin: admin.clone(), isolated, ..Tiers::default() };
    assert_eq!(row(with_policy.clone(), &friend), [(1, 1), (80, 80), (95, 100), (111, 120)]);
    assert_eq!(row(with_policy.clone(), &stranger), [(1, 1)]);
    assert!(!Ruleset::governed(Direction::Ingress, with_policy.clone()).row(Peer::Class(&friend)).other);

    let baseline = vec![
        step(Action::Pass, &[FRIEND], tcp(95, 95)),
        step(Action::Accept, &[FRIEND], tcp(96, 96)),
        step(Action::Deny, &[FRIEND, STRANGER], everything()),
    ];
    let with_baseline = Tiers { admin, baseline: baseline.clone(), ..Tiers::default() };
    assert_eq!(row(with_baseline.clone(), &friend), [(80, 80), (95, 96)]);
    assert_eq!(row(with_baseline, &stranger), []);

    let shadowed = Ruleset::governed(Direction::Ingress, Tiers { baseline, ..with_policy.clone() });
    assert_eq!(shadowed, Ruleset::governed(Direction::Ingress, with_policy), "what isolates silences Baseline");
}

#[test]
fn the_node_the_pod_itself_and_what_does_not_fit_are_no_classes() {
    let deny_all = step(Action::Deny, &[], Bundle::nothing());
    let deny_all = Step { what: accepts(None, Bundle::everything()), ..deny_all };
    let tiers = Tiers { admin: vec![deny_all], ..Tiers::default() };
    let [ingress, egress] = [Direction::Ingress, Direction::Egress]
        .map(|direction| Ruleset::governed(direction, tiers.clone()).for_subject(&[], []));
    assert_eq!(ingress.row(Peer::NodeSelf), Bundle::everything());
    assert_eq!(egress.row(Peer::NodeSelf), Bundle::nothing());
    for ruleset in [&ingress, &egress] {
        assert!(ruleset.is_governed() && !Ruleset::ungoverned(ruleset.direction()).is_governed());
        assert_eq!(ruleset.row(Peer::PodSelf), Bundle::nothing());
        assert_eq!(ruleset.row(Peer::Unknown), Bundle::nothing());
        assert_eq!(ruleset.row(Peer::Class(&ClassKey::default())), Bundle::nothing());
    }
    let isolated = Ruleset::isolated(Direction::Ingress, Vec::new()).for_subject(&[], []);
    assert_eq!(isolated.row(Peer::PodSelf), Bundle::everything(), "NetworkPolicy never keeps a pod from itself");
    assert_eq!(isolated, Ruleset::isolated(Direction::Ingress, Vec::new()), "so its rulesets are shared");
}

#[test]
fn the_tiers_around_network_policy_keep_a_pod_from_itself() {
    let admin = vec![step(Action::Deny, &[FRIEND], tcp(80, 80))];
    let tiers = Tiers { admin, isolated: Some(Vec::new()), ..Tiers::default() };
    let ruleset = Ruleset::governed(Direction::Ingress, tiers);
    let own = ruleset.for_subject(&[Fact::Peer(FRIEND)], []);
    assert_eq!(tcp_row(&own, Peer::PodSelf), [(0, 79), (81, 65535)]);
    assert_eq!(tcp_row(&ruleset.for_subject(&[Fact::Peer(STRANGER)], []), Peer::PodSelf), [(0, 65535)]);
    assert_eq!(tcp_row(&own, Peer::Class(&class(&[Fact::Peer(FRIEND)]))), []);
}

#[test]
fn a_service_is_reached_where_every_backend_is() {
    let backend = |facts: &[Fact], port, local: Option<&str>| BackendFacts {
        facts: facts.into(),
        port,
        local: local.map(|address| address.parse().unwrap()),
    };
    let frontend = |port, backends| ServiceFacts { protocol: PortProtocol::Tcp, port, backends };
    let (friend, stranger) = ([Fact::Peer(FRIEND)], [Fact::Peer(STRANGER)]);
    let key = ClassKey {
        facts: Arc::default(),
        frontends: [
            frontend(1, vec![backend(&friend, 8080, None)]),
            frontend(2, vec![backend(&friend, 8080, None), backend(&friend, 8081, None)]),
            frontend(3, vec![backend(&friend, 8080, None), backend(&stranger, 8080, None)]),
            frontend(4, vec![]),
            frontend(5, vec![]),
            frontend(6, vec![backend(&stranger, 9, Some("10.0.0.1"))]),
            frontend(7, vec![backend(&stranger, 9, Some("10.0.0.2"))]),
            frontend(8, vec![backend(&friend, 8082, None)]),
        ]
        .into(),
    };
    let rules = vec![accepts(Some(&[FRIEND]), tcp(8080, 8081)), accepts(None, tcp(4, 4)), accepts(None, tcp(10, 11))];
    let egress = Ruleset::isolated(Direction::Egress, rules.clone());
    assert_eq!(tcp_row(&egress, Peer::Class(&key)), [(1, 2), (4, 4), (10, 11)]);

    let own: IpAddr = "10.0.0.1".parse().unwrap();
    let as_backend = egress.for_subject(&stranger, [(own, &stranger[..])]);
    assert_eq!(tcp_row(&as_backend, Peer::Class(&key)), [(1, 2), (4, 4), (6, 6), (10, 11)]);

    let ingress = Ruleset::isolated(Direction::Ingress, rules);
    let expected = [(4, 4), (10, 11)];
    assert_eq!(tcp_row(&ingress, Peer::Class(&key)), expected, "packets never come from a Service");
}

#[test]
fn a_port_name_is_looked_up_on_the_peer_in_its_protocol() {
    let name = PortNameId(7);
    let names = vec![(name, FlowProtocol::Tcp)];
    let rule = Accepts { peers: Some(vec![FRIEND]), bundle: Bundle::nothing(), names };
    let ruleset = Ruleset::isolated(Direction::Egress, vec![rule]);
    let named = |name, protocol, port| Fact::Named(name, protocol, port);
    let facts = [
        Fact::Peer(FRIEND),
        named(PortNameId(6), FlowProtocol::Tcp, 1),
        named(name, FlowProtocol::Tcp, 80),
        named(name, FlowProtocol::Tcp, 90),
        named(name, FlowProtocol::Udp, 100),
    ];
    let row = ruleset.row(Peer::Class(&class(&facts)));
    assert_eq!(row.ports[0].ranges(), [(80, 80), (90, 90)]);
    assert!(row.ports[1].is_nothing() && !row.other);
    assert_eq!(ruleset.row(Peer::Class(&class(&facts[1..]))), Bundle::nothing());
    assert_eq!(ruleset.names().collect::<Vec<_>>(), [name]);
    assert_eq!(ruleset.peers().collect::<Vec<_>>(), [FRIEND]);
}

#[test]
fn one_of_several_pods_may_do_what_each_of_them_may() {
    let isolated = |peer, ports| {
        let rules = vec![accepts(Some(&[peer]), ports)];
        Arc::new(Ruleset::isolated(Direction::Ingress, rules))
    };
    let open = Arc::new(Ruleset::ungoverned(Direction::Ingress));
    let (low, high) = (isolated(FRIEND, tcp(1, 90)), isolated(FRIEND, tcp(80, 100)));
    let friend = class(&[Fact::Peer(FRIEND)]);

    assert_eq!(Ruleset::all_of([&open, &open]), open);
    assert!(!Ruleset::all_of([&open, &open]).is_governed());
    let all = Ruleset::all_of([&open, &low, &high, &low]);
    assert!(all.is_governed());
    assert_eq!(tcp_row(&all, Peer::Class(&friend)), [(80, 90)]);
    assert_eq!(tcp_row(&all, Peer::Class(&class(&[Fact::Peer(STRANGER)]))), []);
    assert_eq!(all.row(Peer::NodeSelf), Bundle::everything());
}
