mod moments;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use npolicy_common::FlowProtocol;

use super::super::maps::watch::AFTER_STORE;
use super::super::walk::{ACCEPT_ALL_MASK, Memory, SharedWalk, mask};
use super::*;
use crate::compile::{
    Accepts, BackendFacts, Bundle, Changes, ClassIndex, ClassKey, Fact, Own, Peer, PeerId, PortNameId, PortSet,
    Ruleset, ServiceFacts, Step, Tiers,
};
use crate::model::{Action, PortProtocol};

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
}

const INTERFACES: [u32; 5] = [7, 65_536 + 7, 12, 99, 2 * 65_536 + 99];

fn pod(at: usize) -> PodKey {
    PodKey { namespace: "ns".into(), name: format!("pod-{at}").into() }
}

fn owners() -> Vec<(u32, PodKey)> {
    INTERFACES.iter().enumerate().map(|(at, &ifindex)| (ifindex, pod(at))).collect()
}

/// Addresses that plans speak of, and some they do not.
fn addresses() -> Vec<IpAddr> {
    let v4 = ["10.1.2", "10.1.3", "10.9.0", "192.168.4", "172.16.0", "8.8.8"];
    let v6 = ["fd00:1::", "fd00:1:0:0:2::", "fd00:2::", "2001:db8::"];
    let v4 = v4.iter().flat_map(|net| [0, 1, 2, 127, 128, 255].map(|host| format!("{net}.{host}")));
    let v6 = v6.iter().flat_map(|net| [1, 2, 3, 0x80, 0xffff].map(|host| format!("{net}{host:x}")));
    v4.chain(v6).map(|text| text.parse().unwrap()).collect()
}

const BLOCKS: [&str; 16] = [
    "0.0.0.0/0",
    "10.0.0.0/7",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/23",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.9.0.1/32",
    "192.168.0.0/20",
    "::/0",
    "fd00::/15",
    "fd00:1::/32",
    "fd00:1::/64",
    "fd00:1::/120",
    "2001:db8::1/128",
    "fd00:2::/48",
];

fn random_ports(dice: &mut Dice) -> PortSet {
    match dice.below(5) {
        0 => PortSet::nothing(),
        1 => PortSet::everything(),
        2 => PortSet::range(80, 80),
        3 => PortSet::range(80, 443),
        _ => {
            let mut ports = PortSet::range(8000, 8191);
            ports.add(&PortSet::range(dice.below(3) as u16, 79));
            ports
        }
    }
}

fn random_rule(dice: &mut Dice) -> Accepts {
    Accepts {
        peers: (!dice.one_in(5)).then(|| (0..1 + dice.below(2)).map(|_| PeerId(dice.below(5) as u32)).collect()),
        bundle: Bundle { ports: std::array::from_fn(|_| random_ports(dice)), other: dice.one_in(3) },
        names: if dice.one_in(3) { vec![(PortNameId(0), FlowProtocol::Tcp)] } else { Vec::new() },
    }
}

fn random_ruleset(dice: &mut Dice, direction: Direction) -> Arc<Ruleset> {
    if dice.one_in(6) {
        return Arc::new(Ruleset::ungoverned(direction));
    }
    let steps = |dice: &mut Dice| {
        let action = |dice: &mut Dice| [Action::Accept, Action::Deny, Action::Pass][dice.below(3)];
        (0..dice.below(3)).map(|_| Step { action: action(dice), what: random_rule(dice) }).collect()
    };
    // Half of them are under a NetworkPolicy alone.
    let is_plain = dice.one_in(2);
    let rules = (0..dice.below(4)).map(|_| random_rule(dice)).collect();
    let tiers = if is_plain {
        Tiers { isolated: Some(rules), ..Tiers::default() }
    } else {
        let isolated = dice.one_in(2).then_some(rules);
        Tiers { admin: steps(dice), isolated, baseline: steps(dice), own: Own::default() }
    };
    Arc::new(Ruleset::governed(direction, tiers))
}

fn random_plan(dice: &mut Dice) -> Plan {
    let mut keys = BTreeSet::from([ClassKey::default()]);
    for _ in 0..dice.below(7) {
        let mut facts: BTreeSet<Fact> = (0..dice.below(3)).map(|_| Fact::Peer(PeerId(dice.below(5) as u32))).collect();
        if dice.one_in(3) {
            facts.insert(Fact::Named(PortNameId(0), FlowProtocol::Tcp, [79, 8080][dice.below(2)]));
        }
        let mut key = ClassKey::of(Vec::from_iter(facts));
        if dice.one_in(4) {
            let backend = BackendFacts { facts: key.facts.clone(), port: 8080, local: None };
            key.frontends = Arc::new([ServiceFacts { protocol: PortProtocol::Tcp, port: 80, backends: vec![backend] }]);
        }
        keys.insert(key);
    }
    let classes: Vec<ClassKey> = keys.into_iter().collect();
    let all = addresses();
    let class = |dice: &mut Dice| ClassIndex(dice.below(classes.len()) as u32);
    let mut prefixes: Vec<(IpNet, ClassIndex)> = Vec::new();
    // A Service has addresses, not blocks.
    let plain: Vec<u32> = (0..).zip(&classes).filter(|(_, key)| !key.is_service()).map(|(at, _)| at).collect();
    for block in BLOCKS {
        if dice.one_in(3) {
            prefixes.push((block.parse::<IpNet>().unwrap().trunc(), ClassIndex(plain[dice.below(plain.len())])));
        }
    }
    prefixes.sort_unstable();
    prefixes.dedup_by_key(|(block, _)| *block);
    let mut exact = FxHashMap::default();
    for &address in &all {
        if dice.one_in(2) {
            exact.insert(address, class(dice));
        }
    }
    let node_addresses = all.iter().copied().filter(|_| dice.one_in(12)).collect();
    let shared: Vec<_> = (0..2).map(|_| random_ruleset(dice, Direction::Ingress)).collect();
    let subjects = (0..INTERFACES.len())
        .map(|at| {
            let ingress =
                if dice.one_in(2) { random_ruleset(dice, Direction::Ingress) } else { shared[at % 2].clone() };
            let subject = Subject {
                addresses: vec![all[at], all[all.len() - 1 - at]],
                ingress,
                egress: random_ruleset(dice, Direction::Egress),
            };
            (pod(at), subject)
        })
        .collect();
    Plan { classes, exact, prefixes, node_addresses, subjects }
}

/// The same with some addresses of other classes, listed or unlisted.
fn with_moved_addresses(plan: &Plan, dice: &mut Dice) -> Plan {
    let mut next = plan.clone();
    let other = random_plan(dice);
    let first = next.classes.len() as u32;
    next.classes.extend(other.classes);
    for address in addresses() {
        match dice.below(8) {
            0 => _ = next.exact.remove(&address),
            1 => _ = next.exact.insert(address, ClassIndex(dice.below(first as usize) as u32)),
            2 => {
                let class = other.exact.get(&address).map_or(ClassIndex(0), |class| ClassIndex(first + class.0));
                next.exact.insert(address, class);
            }
            _ => {}
        }
    }
    next
}

/// Gives the classes of a plan the indexes that they had in the one before, and says how the plans differ.
fn renumber(before: &Plan, plan: &mut Plan) -> Changes {
    let mut keys = before.classes.clone();
    let used: BTreeSet<ClassIndex> =
        plan.exact.values().copied().chain(plan.prefixes.iter().map(|&(_, class)| class)).collect();
    let wanted: FxHashSet<&ClassKey> = used.iter().map(|class| &plan.classes[class.0 as usize]).collect();
    // An index that nothing leads to any more is the next new key's.
    let mut free: Vec<usize> = (1..keys.len()).filter(|&at| !wanted.contains(&keys[at])).collect();
    free.iter().for_each(|&at| keys[at] = ClassKey::default());
    let mut indexes: FxHashMap<ClassIndex, ClassIndex> = FxHashMap::default();
    for class in used {
        let key = &plan.classes[class.0 as usize];
        let at = keys.iter().position(|known| known == key).unwrap_or_else(|| {
            let at = free.pop().unwrap_or(keys.len());
            keys.resize(keys.len().max(at + 1), ClassKey::default());
            keys[at] = key.clone();
            at
        });
        indexes.insert(class, ClassIndex(at as u32));
    }
    plan.exact.values_mut().for_each(|class| *class = indexes[class]);
    plan.prefixes.iter_mut().for_each(|(_, class)| *class = indexes[class]);
    plan.classes = keys;
    let key =
        |plan: &Plan, address: &IpAddr| plan.exact.get(address).map(|class| plan.classes[class.0 as usize].clone());
    let blocks = |plan: &Plan| -> Vec<(IpNet, ClassKey)> {
        plan.prefixes.iter().map(|&(block, class)| (block, plan.classes[class.0 as usize].clone())).collect()
    };
    let mut all = addresses();
    all.sort_unstable();
    Changes {
        addresses: all.into_iter().filter(|address| key(before, address) != key(plan, address)).collect(),
        blocks: blocks(before) != blocks(plan),
        subjects: plan
            .subjects
            .keys()
            .filter(|key| before.subjects.get(key) != plan.subjects.get(key))
            .cloned()
            .collect(),
        node_addresses: before.node_addresses != plan.node_addresses,
        claimed: Vec::new(),
    }
}

/// What a plan says about an endpoint, a direction and an address.
fn expected(plan: &Plan, at: usize, direction: Direction, address: IpAddr) -> u32 {
    row_mask(plan.subjects[&pod(at)].ruleset(direction), Peer::Class(plan.class_of(address)))
}

fn row_mask(ruleset: &Ruleset, peer: Peer<'_>) -> u32 {
    let row = ruleset.row(peer);
    let protocols = [FlowProtocol::Tcp, FlowProtocol::Udp, FlowProtocol::Sctp, FlowProtocol::Other];
    mask(|protocol, port| row.accepts(protocols[protocol], port))
}

/// A table of verdicts: by endpoint, direction and address.
type Verdicts = Vec<[Vec<u32>; 2]>;

fn verdicts(plan: &Plan) -> Verdicts {
    let of = |at, direction| addresses().iter().map(|&a| expected(plan, at, direction, a)).collect();
    (0..INTERFACES.len()).map(|at| DIRECTIONS.map(|direction| of(at, direction))).collect()
}

fn walked(walk: &SharedWalk) -> Verdicts {
    let of = |ifindex, direction| addresses().iter().map(|&a| walk.verdict(ifindex, direction, a)).collect();
    INTERFACES.iter().map(|&ifindex| DIRECTIONS.map(|direction| of(ifindex, direction))).collect()
}

/// Checks the whole of it, and the rows of the classes that no address has.
#[track_caller]
fn assert_published(walk: &SharedWalk, plan: &Plan) {
    assert_eq!(walked(walk), verdicts(plan));
    for (at, ifindex) in INTERFACES.into_iter().enumerate() {
        for direction in DIRECTIONS {
            let ruleset = walk.word(ifindex).unwrap().ruleset(direction);
            for (class, peer) in
                [(Class::NODE_SELF, Peer::NodeSelf), (Class::POD_SELF, Peer::PodSelf), (Class::UNKNOWN, Peer::Unknown)]
            {
                let expected = row_mask(plan.subjects[&pod(at)].ruleset(direction), peer);
                assert_eq!(walk.mask(ruleset, class), expected, "{peer:?}");
            }
        }
    }
    for address in addresses() {
        assert_eq!(walk.class(address).is_node(), plan.node_addresses.contains(&address), "{address}");
        let is_service = plan.exact.get(&address).is_some_and(|class| plan.classes[class.0 as usize].is_service());
        assert_eq!(walk.class(address).is_service(), is_service, "{address}");
    }
}

fn start(memory: &Memory, limits: &Limits) -> Publisher {
    Publisher::new(memory.tables(), limits, Grace::Nothing, &FxHashSet::default()).unwrap()
}

fn fresh(memory: &Memory, limits: &Limits) -> Publisher {
    let mut publisher = start(memory, limits);
    publisher.write_constants();
    for ifindex in INTERFACES {
        assert!(publisher.lines.add(ifindex, 0, 1).unwrap());
    }
    publisher
}

/// Runs `change` and looks at the tables after every store: an endpoint whose word is still the old one must be judged
/// by `old` for every address, one whose word has changed by `new`, and nobody changes back.
fn watched<T>(walk: &SharedWalk, old: Verdicts, new: Verdicts, change: impl FnOnce() -> T) -> T {
    let stores = Rc::new(RefCell::new(0_usize));
    let words: Vec<_> = INTERFACES.iter().map(|&ifindex| walk.word(ifindex).unwrap()).collect();
    let (walk, all, counted) = (Arc::clone(walk), addresses(), Rc::clone(&stores));
    let mut is_new = [false; INTERFACES.len()];
    let mut dice = Dice(0x9e37_79b9);
    let watcher = move || {
        *counted.borrow_mut() += 1;
        // After every store a few pairs, now and then all of them.
        let is_full = *counted.borrow() % 256 == 0;
        let only = dice.below(INTERFACES.len());
        for (at, &ifindex) in INTERFACES.iter().enumerate().filter(|&(at, _)| is_full || at == only) {
            let word = walk.word(ifindex).expect("a line never goes");
            let differs = DIRECTIONS.iter().any(|&d| word.ruleset(d) != words[at].ruleset(d));
            assert!(differs || !is_new[at], "interface {ifindex} went back to its old rulesets");
            is_new[at] = differs;
            let side = if differs { &new } else { &old };
            let looked_at: Vec<usize> =
                if is_full { (0..all.len()).collect() } else { vec![dice.below(all.len()), dice.below(all.len())] };
            for address in looked_at {
                for direction in DIRECTIONS {
                    let class = walk.class(all[address]).class();
                    let found = walk.mask(word.ruleset(direction), class);
                    let should = side[at][direction.index() as usize][address];
                    assert!(
                        found == should,
                        "after store {}: interface {ifindex} {direction:?} {} (class {}): {found:x}, not {should:x}",
                        counted.borrow(),
                        all[address],
                        class.0,
                    );
                }
            }
        }
    };
    AFTER_STORE.set(Some(Box::new(watcher)));
    let outcome = change();
    AFTER_STORE.set(None);
    outcome
}

#[test]
fn every_store_of_a_publish_leaves_each_endpoint_its_old_verdicts_or_its_new_ones() {
    for seed in 1..6 {
        let mut dice = Dice(seed * 0x1234_5677);
        let memory = Memory::new();
        let walk = Arc::new(memory.walk());
        let mut publisher = fresh(&memory, &Limits::default());
        let mut plan = random_plan(&mut dice);
        publisher.publish(&plan, None, &owners()).unwrap();
        assert_published(&walk, &plan);
        for step in 0..8 {
            match dice.below(4) {
                // An agent that knows nothing of what the tables say.
                0 => {
                    publisher = watched(&walk, verdicts(&plan), verdicts(&plan), || start(&memory, &Limits::default()));
                }
                1 => {}
                _ => {
                    watched(&walk, verdicts(&plan), verdicts(&plan), || publisher.settle()).unwrap();
                    assert!(!publisher.is_unsettled(), "seed {seed} step {step}");
                }
            }
            let mut next = match dice.below(4) {
                0 => Plan { subjects: random_plan(&mut dice).subjects, ..plan.clone() },
                1 => with_moved_addresses(&plan, &mut dice),
                // Labels change, policies stay.
                2 => Plan { subjects: plan.subjects.clone(), ..random_plan(&mut dice) },
                _ => random_plan(&mut dice),
            };
            let changes = renumber(&plan, &mut next);
            let changes = (!dice.one_in(4)).then_some(&changes);
            let (old, new) = (verdicts(&plan), verdicts(&next));
            let report = watched(&walk, old, new, || publisher.publish(&next, changes, &owners())).unwrap();
            assert!(report.is_complete());
            assert_published(&walk, &next);
            for (&ifindex, &word) in &report.words {
                assert_eq!(walk.word(ifindex), Some(word));
            }
            plan = next;
        }
    }
}

#[test]
fn publishing_the_same_again_writes_nothing_also_after_a_restart() {
    let mut dice = Dice(99);
    let memory = Memory::new();
    let walk = Arc::new(memory.walk());
    let mut publisher = fresh(&memory, &Limits::default());
    for _ in 0..10 {
        let plan = random_plan(&mut dice);
        publisher.publish(&plan, None, &owners()).unwrap();
        publisher.settle().unwrap();
        let words: Vec<_> = INTERFACES.map(|ifindex| walk.word(ifindex)).to_vec();
        for _ in 0..2 {
            let report = publisher.publish(&plan, None, &owners()).unwrap();
            assert_eq!((report.addresses_written, report.rulesets_written, report.flipped), (0, 0, vec![]));
            publisher.settle().unwrap();
            publisher = start(&memory, &Limits::default());
        }
        assert_eq!(INTERFACES.map(|ifindex| walk.word(ifindex)).to_vec(), words);
    }
}

#[test]
fn settling_gives_back_everything_that_nothing_leads_to() {
    let mut dice = Dice(7);
    let memory = Memory::new();
    let mut publisher = fresh(&memory, &Limits::default());
    for _ in 0..30 {
        publisher.publish(&random_plan(&mut dice), None, &owners()).unwrap();
        publisher.settle().unwrap();
    }
    let mut empty = Plan { classes: vec![ClassKey::default()], ..Plan::default() };
    let open = Subject {
        addresses: Vec::new(),
        ingress: Arc::new(Ruleset::ungoverned(Direction::Ingress)),
        egress: Arc::new(Ruleset::ungoverned(Direction::Egress)),
    };
    empty.subjects = (0..INTERFACES.len()).map(|at| (pod(at), open.clone())).collect();
    publisher.publish(&empty, None, &owners()).unwrap();
    publisher.settle().unwrap();
    for table in publisher.usage() {
        assert_eq!(table.used, 0, "{table:?}");
    }
}

#[test]
fn numbers_of_one_key_become_one_after_a_grace_period() {
    let mut dice = Dice(21);
    let memory = Memory::new();
    let walk = memory.walk();
    let mut publisher = fresh(&memory, &Limits::default());
    for _ in 0..30 {
        let plan = random_plan(&mut dice);
        publisher.publish(&plan, None, &owners()).unwrap();
        publisher.settle().unwrap();
        let mut class_of: FxHashMap<&ClassKey, Class> = FxHashMap::default();
        for address in addresses() {
            let class = walk.class(address).class();
            assert_eq!(*class_of.entry(plan.class_of(address)).or_insert(class), class, "{address}");
        }
        assert!(publisher.numbers.usage().0 as usize <= plan.classes.len());
    }
}

#[test]
fn a_flip_raises_the_generation_at_once_and_again_after_a_grace_period() {
    let memory = Memory::new();
    let walk = memory.walk();
    let mut publisher = fresh(&memory, &Limits::default());
    let mut dice = Dice(5);
    let mut plan = random_plan(&mut dice);
    publisher.publish(&plan, None, &owners()).unwrap();
    publisher.settle().unwrap();
    let before: Vec<u32> = INTERFACES.map(|ifindex| walk.word(ifindex).unwrap().generation()).to_vec();
    let subject = plan.subjects.get_mut(&pod(0)).unwrap();
    subject.ingress = Arc::new(Ruleset::isolated(Direction::Ingress, Vec::new()));
    subject.egress = Arc::new(Ruleset::isolated(Direction::Egress, Vec::new()));
    assert_eq!(publisher.publish(&plan, None, &owners()).unwrap().flipped, [INTERFACES[0]]);
    let raised =
        |by: u32| before.iter().enumerate().map(|(at, g)| if at == 0 { g + by } else { *g }).collect::<Vec<_>>();
    let now = || INTERFACES.map(|ifindex| walk.word(ifindex).unwrap().generation()).to_vec();
    assert_eq!(now(), raised(1));
    publisher.settle().unwrap();
    assert_eq!(now(), raised(2));
    publisher.settle().unwrap();
    assert_eq!(now(), raised(2));
}

/// With tables that are too small, an endpoint never accepts what the plan denies, and what the report does not name is
/// exactly the plan's.
#[test]
fn what_does_not_fit_is_reported_and_never_accepts_more() {
    let tiny = [
        Limits { ruleset_chunks: 9, ..Limits::default() },
        Limits { bundles: 5, ..Limits::default() },
        Limits { port_sets: 3, ..Limits::default() },
        Limits { port_blocks: 4, ..Limits::default() },
        Limits { class4_chunks: 256 + 3, ..Limits::default() },
        Limits { class6_addresses: 3, prefix6: 2, ..Limits::default() },
        Limits { class6_addresses: 2, prefix6: 0, ..Limits::default() },
        Limits { classes: 6, ..Limits::default() },
    ];
    for (which, limits) in tiny.into_iter().enumerate() {
        let mut reported = 0;
        for seed in 1..3 {
            let mut dice = Dice(seed * 0x77_7777 + 1);
            let memory = Memory::new();
            let walk = Arc::new(memory.walk());
            let mut publisher = fresh(&memory, &limits);
            for _ in 0..4 {
                let plan = random_plan(&mut dice);
                let report = publisher.publish(&plan, None, &owners()).unwrap();
                reported += usize::from(!report.is_complete());
                if dice.one_in(2) {
                    publisher.settle().unwrap();
                }
                let should = verdicts(&plan);
                for (at, found) in walked(&walk).into_iter().enumerate() {
                    for direction in DIRECTIONS {
                        let side = direction.index() as usize;
                        for (found, should) in found[side].iter().zip(&should[at][side]) {
                            assert_eq!(found & !should, 0, "limits {which} seed {seed}: accepts more than the plan");
                        }
                        let is_named =
                            report.degraded.iter().any(|d| d.ifindex == INTERFACES[at] && d.direction == direction);
                        if report.unfit.is_empty() && report.numbers_missing == 0 && !is_named {
                            assert_eq!(found[side], should[at][side], "limits {which} seed {seed}");
                        }
                    }
                }
            }
        }
        assert!(reported > 0, "limits {which} are not too small for anything");
    }
}

#[test]
fn keeps_the_last_ruleset_only_where_it_allows_nothing_that_the_new_one_denies() {
    let limits = Limits { port_sets: 4, ..Limits::default() };
    let memory = Memory::new();
    let walk = memory.walk();
    let mut publisher = fresh(&memory, &limits);
    let of = |tcp: &[u16], udp: &[u16]| {
        let mut bundle = Bundle::nothing();
        for (set, ports) in bundle.ports.iter_mut().zip([tcp, udp]) {
            ports.iter().for_each(|&port| set.add(&PortSet::range(port, port)));
        }
        Arc::new(Ruleset::isolated(Direction::Ingress, vec![Accepts { peers: None, bundle, names: Vec::new() }]))
    };
    let plan = |first: Arc<Ruleset>, second: Arc<Ruleset>| {
        let subject = |ingress| Subject {
            addresses: Vec::new(),
            ingress,
            egress: Arc::new(Ruleset::ungoverned(Direction::Egress)),
        };
        let subjects = [(pod(0), subject(first)), (pod(1), subject(second))].into_iter().collect();
        Plan { classes: vec![ClassKey::default()], subjects, ..Plan::default() }
    };
    let owners = &owners()[..2];
    let (a, b) = (of(&[80], &[]), of(&[443], &[]));
    assert!(publisher.publish(&plan(a, b.clone()), None, owners).unwrap().degraded.is_empty());
    let ruleset = || walk.word(INTERFACES[0]).unwrap().ruleset(Direction::Ingress);
    let last = ruleset();

    let wider = of(&[80, 8080], &[]);
    let report = publisher.publish(&plan(wider.clone(), b.clone()), None, owners).unwrap();
    assert_eq!(report.degraded[0].instead, Instead::Last);
    assert_eq!(report.degraded[0].full, Full { table: "PORTS_TOP", capacity: 4 });
    assert_eq!(ruleset(), last);

    let other = of(&[81], &[82]);
    let report = publisher.publish(&plan(other, b), None, owners).unwrap();
    assert_eq!(report.degraded[0].instead, Instead::DenyAll);
    assert_eq!(ruleset(), RulesetId::DENY_ALL);

    let report = publisher.publish(&plan(wider.clone(), wider), None, owners).unwrap();
    assert!(report.degraded.is_empty(), "what the others gave up made room: {report:?}");
}

/// A rule that denies is a hole in what another accepts: without the room for it, the whole of it is denied.
#[test]
fn a_denial_that_does_not_fit_never_opens() {
    let friend = PeerId(1);
    let tcp = |ports: &[u16]| {
        let mut bundle = Bundle::nothing();
        ports.iter().for_each(|&port| bundle.ports[0].add(&PortSet::range(port, port)));
        bundle
    };
    let rule = |bundle| Accepts { peers: Some(vec![friend]), bundle, names: Vec::new() };
    let isolated = || Some(vec![rule(Bundle::everything())]);
    let ruleset = |denied: Option<&[u16]>| {
        let deny = denied.map(|ports| Step { action: Action::Deny, what: rule(tcp(ports)) });
        let tiers = Tiers { admin: deny.into_iter().collect(), isolated: isolated(), ..Tiers::default() };
        Arc::new(Ruleset::governed(Direction::Egress, tiers))
    };
    let address: IpAddr = "10.1.2.1".parse().unwrap();
    let plan = |egress| {
        let ingress = Arc::new(Ruleset::ungoverned(Direction::Ingress));
        let subjects = [(pod(0), Subject { addresses: Vec::new(), ingress, egress })].into_iter().collect();
        let classes = vec![ClassKey::default(), ClassKey::of([Fact::Peer(friend)])];
        let exact = [(address, ClassIndex(1))].into_iter().collect();
        Plan { classes, exact, subjects, ..Plan::default() }
    };
    for limits in [
        Limits { bundles: 2, ..Limits::default() },
        Limits { port_sets: 2, ..Limits::default() },
        Limits { port_blocks: 2, ..Limits::default() },
        Limits { ruleset_chunks: RulesetId::FIRST_CHUNK, ..Limits::default() },
        Limits { ruleset_chunks: RulesetId::FIRST_CHUNK + 1, ..Limits::default() },
        Limits { class4_chunks: maps::CLASS4_ROOTS + 1, ..Limits::default() },
        Limits { classes: Class::FIRST.0, ..Limits::default() },
    ] {
        let memory = Memory::new();
        let walk = memory.walk();
        let mut publisher = fresh(&memory, &limits);
        let owners = &owners()[..1];
        for denied in [None, Some(&[8080][..]), Some(&[80, 8080]), None] {
            let plan = plan(ruleset(denied));
            let report = publisher.publish(&plan, None, owners).unwrap();
            let found = walk.verdict(INTERFACES[0], Direction::Egress, address);
            let should = expected(&plan, 0, Direction::Egress, address);
            assert_eq!(found & !should, 0, "{limits:?} {denied:?}: {report:?}");
            assert!(found == should || !report.is_complete(), "{limits:?} {denied:?}: {report:?}");
            publisher.settle().unwrap();
        }
    }
}

#[test]
fn pods_with_equal_policy_share_a_ruleset() {
    let memory = Memory::new();
    let walk = memory.walk();
    let mut publisher = fresh(&memory, &Limits::default());
    let mut plan = random_plan(&mut Dice(3));
    let rule = || Accepts { peers: None, bundle: Bundle { ports: Default::default(), other: true }, names: vec![] };
    for subject in plan.subjects.values_mut() {
        subject.ingress = Arc::new(Ruleset::isolated(Direction::Ingress, vec![rule()]));
        subject.egress = Arc::new(Ruleset::ungoverned(Direction::Egress));
    }
    assert_eq!(publisher.publish(&plan, None, &owners()).unwrap().rulesets_written, 1);
    let first = walk.word(INTERFACES[0]).unwrap().ruleset(Direction::Ingress);
    for ifindex in INTERFACES {
        assert_eq!(walk.word(ifindex).unwrap().ruleset(Direction::Ingress), first);
        assert_eq!(walk.word(ifindex).unwrap().ruleset(Direction::Egress), RulesetId::ACCEPT_ALL);
    }
    assert_eq!(walk.mask(RulesetId::ACCEPT_ALL, Class::UNKNOWN), ACCEPT_ALL_MASK);
}

#[test]
fn unidentified_pods_are_judged_again_when_their_time_is_over() {
    let memory = Memory::new();
    let walk = memory.walk();
    walk.config.store32(0, config_half::FLAGS, config_flags::UNIDENTIFIED_ACCEPTS | config_flags::LOG_ACCEPTS);
    let mut publisher = fresh(&memory, &Limits::default());
    let plan = random_plan(&mut Dice(17));
    publisher.publish(&plan, None, &owners()[..2]).unwrap();
    publisher.settle().unwrap();
    let known = walk.word(INTERFACES[0]);
    publisher.identify_from_now_on().unwrap();
    assert_eq!(walk.config.load32(0, config_half::FLAGS) & config_flags::UNIDENTIFIED_ACCEPTS, 0);
    assert_eq!(walk.word(INTERFACES[0]), known);
    assert_eq!(walk.word(INTERFACES[4]).unwrap().generation(), 2);
    publisher.settle().unwrap();
    assert_eq!(walk.word(INTERFACES[4]).unwrap().generation(), 3);
    publisher.identify_from_now_on().unwrap();
    publisher.settle().unwrap();
    assert_eq!(walk.word(INTERFACES[4]).unwrap().generation(), 3);
}
