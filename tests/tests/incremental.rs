//! Is the plan of a change the plan of the state that it leads to? Random events over small clusters, compared by meaning
//! with a compilation from scratch after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use npolicy_agent::compile::{Bundle, Changes, ClassKey, Compiler, Peer, Plan, Scope, Subject};
use npolicy_agent::model::{
    Action, Age, ClusterMatch, ClusterPeer, ClusterPolicy, ClusterRule, ClusterState, Condition, Endpoint,
    EndpointSlice, Event, IpBlock, Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, Node, Object, ObjectKey,
    Peer as RulePeer, Peers, Phase, Pod, PodKey, PodNetwork, PodPeer, PodSet, PolicyKey, PortEntry, PortProtocol,
    Ports, Requirement, Rule, Selector, Service, ServiceKey, ServicePort, SliceKey, SlicePort, Tier, TrafficPolicy,
    Values,
};
use npolicy_common::Direction;

/// Small numbers, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn one_in(&mut self, limit: usize) -> bool {
        self.below(limit) == 0
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Few, so that pods, nodes and Services often claim the same.
fn addresses() -> Vec<IpAddr> {
    let v4 =
        ["10.0.0", "10.0.1", "192.168.0"].into_iter().flat_map(|net| (1..5).map(move |host| format!("{net}.{host}")));
    let v6 = (1..5).map(|host| format!("fd00::{host}"));
    v4.chain(v6).map(|text| text.parse().unwrap()).collect()
}

fn address(dice: &mut Dice) -> IpAddr {
    dice.of(&addresses())
}

fn labels(dice: &mut Dice) -> Labels {
    let mut labels = Vec::new();
    for key in ["app", "env"] {
        if dice.one_in(2) {
            labels.push((key, dice.of(&["x", "y", "z"])));
        }
    }
    labels.into_iter().collect()
}

fn selector(dice: &mut Dice) -> Selector {
    let requirement = |dice: &mut Dice| {
        let values =
            Values::new(dice.some(1, |dice| dice.of(&["x", "y", "z"]).into())).unwrap_or(Values::one("x".into()));
        let condition = match dice.below(4) {
            0 => Condition::NotIn(values),
            1 => Condition::Exists,
            2 => Condition::DoesNotExist,
            _ => Condition::In(values),
        };
        Requirement { key: dice.of(&["app", "env"]).into(), condition }
    };
    Selector::all(dice.some(2, requirement))
}

fn port_name(dice: &mut Dice) -> Arc<str> {
    dice.of(&["web", "db"]).into()
}

fn protocol(dice: &mut Dice) -> PortProtocol {
    dice.of(&[PortProtocol::Tcp, PortProtocol::Tcp, PortProtocol::Udp])
}

fn ports(dice: &mut Dice) -> Ports {
    let entry = |dice: &mut Dice| match dice.below(4) {
        0 => PortEntry::Named { protocol: protocol(dice), name: port_name(dice) },
        1 => PortEntry::NamedAny { name: port_name(dice) },
        _ => {
            let first = dice.of(&[80, 8080]);
            PortEntry::Range { protocol: protocol(dice), first, last: first + dice.of(&[0, 1]) }
        }
    };
    let entries = dice.some(2, entry);
    if entries.is_empty() { Ports::Any } else { Ports::Of(entries) }
}

fn block(dice: &mut Dice) -> IpNet {
    let all = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/30",
        "10.0.1.0/24",
        "192.168.0.0/16",
        "10.0.0.2/32",
        "::/0",
        "fd00::/126",
    ];
    dice.of(&all).parse().unwrap()
}

fn pod_set(dice: &mut Dice) -> PodSet {
    PodSet { namespaces: selector(dice), pods: selector(dice) }
}

fn pod(dice: &mut Dice) -> Pod {
    let mut addresses = dice.some(2, address);
    addresses.sort_unstable();
    addresses.dedup_by_key(|address| address.is_ipv6());
    let port =
        |dice: &mut Dice| NamedPort { name: port_name(dice), protocol: protocol(dice), number: dice.of(&[80, 8080]) };
    let phase = if addresses.is_empty() { Phase::Planned } else { Phase::Running };
    Pod {
        key: PodKey { namespace: dice.of(&NAMESPACES).into(), name: dice.of(&["p", "q", "r", "s"]).into() },
        labels: labels(dice),
        node: (!dice.one_in(8)).then(|| dice.of(&NODES[..2]).into()),
        network: if dice.one_in(8) { PodNetwork::Host } else { PodNetwork::Own },
        ports: dice.some(2, port),
        addresses,
        phase: if dice.one_in(8) { Phase::Succeeded } else { phase },
        age: Age { uid: dice.of(&["1", "2", "3"]).into(), ..Age::default() },
        sandbox: None,
    }
}

fn policy(dice: &mut Dice) -> NetworkPolicy {
    let peer = |dice: &mut Dice| match dice.below(3) {
        0 => RulePeer::Block(IpBlock::new(block(dice), dice.some(2, block))),
        1 => RulePeer::Pods(PodPeer { namespaces: Namespaces::Own, pods: selector(dice) }),
        _ => RulePeer::Pods(PodPeer { namespaces: Namespaces::Matching(selector(dice)), pods: selector(dice) }),
    };
    let rule = |dice: &mut Dice| {
        let peers = if dice.one_in(6) { Peers::Any } else { Peers::Of(dice.some(2, peer)) };
        Rule::Accept { peers, ports: ports(dice) }
    };
    let rules = |dice: &mut Dice| dice.one_in(2).then(|| dice.some(2, rule));
    NetworkPolicy {
        key: PolicyKey { namespace: dice.of(&NAMESPACES).into(), name: dice.of(&["p", "q"]).into() },
        subject: selector(dice),
        ingress: rules(dice),
        egress: rules(dice),
    }
}

fn cluster_policy(dice: &mut Dice) -> ClusterPolicy {
    let rules = |dice: &mut Dice, is_egress: bool| {
        dice.some(2, |dice| {
            let peer = match dice.below(if is_egress { 3 } else { 1 }) {
                0 => ClusterPeer::Pods(pod_set(dice)),
                1 => ClusterPeer::Networks(vec![block(dice)]),
                _ => ClusterPeer::Nodes(selector(dice)),
            };
            let matches = if dice.one_in(12) {
                ClusterMatch::Unreadable("unknown".into())
            } else {
                ClusterMatch::Of { peers: vec![peer], ports: ports(dice) }
            };
            ClusterRule { name: None, action: dice.of(&[Action::Accept, Action::Deny, Action::Pass]), matches }
        })
    };
    ClusterPolicy {
        name: dice.of(&["p", "q", "r"]).into(),
        tier: dice.of(&[Tier::Admin, Tier::Baseline]),
        priority: dice.of(&[1, 2]),
        subject: pod_set(dice),
        ingress: rules(dice, false),
        egress: rules(dice, true),
    }
}

fn service(dice: &mut Dice) -> Service {
    let port = |dice: &mut Dice| ServicePort {
        name: dice.of(&["", "x"]).into(),
        protocol: protocol(dice),
        port: dice.of(&[80, 443]),
        node_port: dice.one_in(3).then(|| dice.of(&[30_000, 30_001])),
    };
    let policy = |dice: &mut Dice| dice.of(&[TrafficPolicy::Cluster, TrafficPolicy::Local]);
    Service {
        key: ServiceKey { namespace: dice.of(&NAMESPACES[..2]).into(), name: dice.of(&["s", "t"]).into() },
        cluster_addresses: dice.some(2, address),
        external_addresses: dice.some(1, address),
        ports: dice.some(2, port),
        internal_policy: policy(dice),
        external_policy: policy(dice),
    }
}

fn slice(dice: &mut Dice) -> EndpointSlice {
    let port = |dice: &mut Dice| SlicePort {
        name: dice.of(&["", "x"]).into(),
        protocol: protocol(dice),
        number: dice.of(&[80, 8080]),
    };
    let endpoint =
        |dice: &mut Dice| Endpoint { address: address(dice), node: dice.one_in(2).then(|| dice.of(&NODES).into()) };
    EndpointSlice {
        key: SliceKey { namespace: dice.of(&NAMESPACES[..2]).into(), name: dice.of(&["u", "v", "w"]).into() },
        service: (!dice.one_in(6)).then(|| dice.of(&["s", "t"]).into()),
        ports: dice.some(2, port),
        endpoints: dice.some(3, endpoint),
    }
}

fn node(dice: &mut Dice) -> Node {
    Node { name: dice.of(&NODES).into(), labels: labels(dice), addresses: dice.some(2, address), pod_cidrs: Vec::new() }
}

fn event(dice: &mut Dice) -> Event {
    let object = match dice.below(16) {
        0..6 => Object::Pod(pod(dice)),
        6 => Object::Namespace(Namespace::new(dice.of(&NAMESPACES).into(), &labels(dice))),
        7 => Object::Node(node(dice)),
        8..11 => Object::Policy(policy(dice)),
        11..13 => Object::ClusterPolicy(cluster_policy(dice)),
        13 => Object::Service(service(dice)),
        _ => Object::EndpointSlice(slice(dice)),
    };
    if dice.one_in(4) { Event::Delete(object.key()) } else { Event::Upsert(object) }
}

/// What a plan means, without the numbers it gives.
struct Meaning {
    subjects: BTreeMap<PodKey, Vec<IpAddr>>,
    rows: BTreeMap<(PodKey, Direction, Option<IpAddr>), Bundle>,
    services: BTreeSet<IpAddr>,
    node_addresses: BTreeSet<IpAddr>,
    classes: usize,
    rulesets: usize,
}

fn meaning(plan: &Plan) -> Meaning {
    let mut all = addresses();
    all.extend(["10.0.0.9", "198.51.100.1", "fd00::9", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    let mut rows = BTreeMap::new();
    for (key, subject) in &plan.subjects {
        for direction in [Direction::Ingress, Direction::Egress] {
            let ruleset = subject.ruleset(direction);
            rows.insert((key.clone(), direction, None), ruleset.row(Peer::PodSelf));
            for &address in &all {
                let row = ruleset.row(Peer::Class(plan.class_of(address)));
                rows.insert((key.clone(), direction, Some(address)), row);
            }
        }
    }
    let led_to = plan.exact.values().chain(plan.prefixes.iter().map(|(_, class)| class));
    let rulesets = plan.subjects.values().flat_map(|subject| [&subject.ingress, &subject.egress]);
    Meaning {
        subjects: plan.subjects.iter().map(|(key, subject)| (key.clone(), subject.addresses.clone())).collect(),
        rows,
        services: all.iter().copied().filter(|&address| plan.class_of(address).is_service()).collect(),
        node_addresses: plan.node_addresses.clone(),
        classes: led_to.collect::<BTreeSet<_>>().len(),
        rulesets: rulesets.map(Arc::as_ptr).collect::<BTreeSet<_>>().len(),
    }
}

/// Says where two plans mean different things.
#[track_caller]
fn assert_same(found: &Meaning, expected: &Meaning, when: &str) {
    assert_eq!(found.subjects, expected.subjects, "{when}");
    for (place, row) in &found.rows {
        assert_eq!(Some(row), expected.rows.get(place), "{when}: {place:?}");
    }
    assert_eq!(found.services, expected.services, "{when}");
    assert_eq!(found.node_addresses, expected.node_addresses, "{when}");
    assert_eq!((found.classes, found.rulesets), (expected.classes, expected.rulesets), "{when}: classes, rulesets");
}

/// A plan with keys in place of numbers: what its differences are checked with.
#[derive(Clone)]
struct Copy {
    exact: BTreeMap<IpAddr, ClassKey>,
    prefixes: Vec<(IpNet, ClassKey)>,
    subjects: BTreeMap<PodKey, Subject>,
    node_addresses: BTreeSet<IpAddr>,
}

fn copy(plan: &Plan) -> Copy {
    let key = |class: &npolicy_agent::compile::ClassIndex| plan.classes[class.0 as usize].clone();
    Copy {
        exact: plan.exact.iter().map(|(&address, class)| (address, key(class))).collect(),
        prefixes: plan.prefixes.iter().map(|(block, class)| (*block, key(class))).collect(),
        subjects: plan.subjects.clone(),
        node_addresses: plan.node_addresses.clone(),
    }
}

/// What differs between two plans is what the changes name, no more and no less.
#[track_caller]
fn assert_exact(before: &Copy, after: &Copy, changes: &Changes) {
    fn differing<K: Ord + Clone, V: PartialEq>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> Vec<K> {
        let keys: BTreeSet<&K> = a.keys().chain(b.keys()).collect();
        keys.into_iter().filter(|key| a.get(key) != b.get(key)).cloned().collect()
    }
    assert_eq!(changes.addresses, differing(&before.exact, &after.exact));
    assert_eq!(changes.subjects, differing(&before.subjects, &after.subjects));
    assert_eq!(changes.blocks, before.prefixes != after.prefixes);
    assert_eq!(changes.node_addresses, before.node_addresses != after.node_addresses);
}

fn scopes() -> [Scope; 3] {
    [Scope::Node("n1".into()), Scope::NodeAndUnassigned("n1".into()), Scope::Everything]
}

#[test]
fn every_change_ends_in_the_plan_of_the_state() {
    for (seed, scope) in (1..).zip(scopes().into_iter().cycle().take(12)) {
        let mut dice = Dice(0x2545_f491 * seed);
        let mut state = ClusterState::default();
        for _ in 0..dice.below(40) {
            state.apply(event(&mut dice));
        }
        let mut compiler = Compiler::new(scope.clone());
        compiler.start(&state);
        let mut before = copy(compiler.plan());
        let mut own = BTreeSet::new();
        for step in 0..100 {
            // One event, or several in one batch.
            let most = if dice.one_in(3) { 5 } else { 0 };
            let mut undo: Vec<Event> =
                (0..1 + dice.below(most + 1)).filter_map(|_| state.change(event(&mut dice))).collect();
            if dice.one_in(4) {
                undo.reverse();
                undo.extend(undo.clone());
            }
            let changes = compiler.apply(&state, &undo);
            let own_moved = !matches!(scope, Scope::Everything) && dice.one_in(4);
            if own_moved {
                let between = copy(compiler.plan());
                assert_exact(&before, &between, &changes);
                own = dice.some(2, address).into_iter().collect();
                let moved = compiler.set_own_addresses(&state, &own);
                assert_exact(&between, &copy(compiler.plan()), &moved);
            }
            let mut fresh = Compiler::new(scope.clone());
            assert!(fresh.set_own_addresses(&ClusterState::default(), &own).addresses.is_empty());
            let (fresh, _) = fresh.compile(&state);
            assert_same(&meaning(compiler.plan()), &meaning(&fresh), &format!("seed {seed} step {step}"));
            let after = copy(compiler.plan());
            if !own_moved {
                assert_exact(&before, &after, &changes);
            }
            before = after;
            assert!(compiler.apply(&state, &undo).is_empty(), "seed {seed} step {step}: the same again is no change");
        }
    }
}

#[test]
fn the_way_to_a_state_does_not_matter() {
    for seed in 1..12 {
        let mut dice = Dice(0x9e37_79b9 * seed);
        let mut target = ClusterState::default();
        let events: Vec<Event> = (0..80).map(|_| event(&mut dice)).collect();
        events.iter().for_each(|event| _ = target.apply(event.clone()));
        let scope = scopes()[seed as usize % 3].clone();
        let expected = meaning(&Compiler::new(scope.clone()).compile(&target).0);

        // Another way: what shall be there in another order, each twice, with other things between, which then go.
        let mut keys: BTreeSet<ObjectKey> = events.iter().map(Event::key).collect();
        let mut state = ClusterState::default();
        let mut compiler = Compiler::new(scope);
        compiler.start(&state);
        let mut batch = Vec::new();
        for key in events.iter().rev().map(Event::key) {
            let wanted = target.object(&key).map_or(Event::Delete(key), Event::Upsert);
            let between = event(&mut dice);
            keys.insert(between.key());
            for event in [wanted.clone(), between, wanted] {
                batch.extend(state.change(event));
                if dice.one_in(3) {
                    compiler.apply(&state, &std::mem::take(&mut batch));
                }
            }
        }
        for key in keys {
            let wanted = target.object(&key).map_or(Event::Delete(key), Event::Upsert);
            batch.extend(state.change(wanted));
        }
        compiler.apply(&state, &batch);
        assert_eq!(state, target, "seed {seed}");
        assert_same(&meaning(compiler.plan()), &expected, &format!("seed {seed}"));
    }
}

#[test]
fn an_empty_cluster_leaves_nothing_behind() {
    let mut dice = Dice(77);
    let mut state = ClusterState::default();
    let mut compiler = Compiler::new(Scope::Node("n1".into()));
    compiler.start(&state);
    for _ in 0..5 {
        let mut keys = BTreeSet::new();
        for _ in 0..100 {
            let event = event(&mut dice);
            keys.insert(event.key());
            let undo: Vec<Event> = state.change(event).into_iter().collect();
            compiler.apply(&state, &undo);
        }
        for key in keys {
            let undo: Vec<Event> = state.change(Event::Delete(key)).into_iter().collect();
            compiler.apply(&state, &undo);
        }
        let plan = compiler.plan();
        assert!(plan.exact.is_empty() && plan.prefixes.is_empty() && plan.subjects.is_empty());
        assert!(plan.classes.iter().all(|key| *key == ClassKey::default()));
    }
}
