//! From addresses to classes: what the policies in force can tell apart, and nothing else.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use npolicy_common::Family;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::intern::{Interner, PeerContent, PeerScope};
use super::plan::{ClassIndex, ClassKey, Fact, PeerId, Plan, PortNameId, ServiceFacts};
use super::prefixes::{PrefixTable, split_at_blocks};
use crate::model::{ClusterState, IpBlock, Owner, Pod, PodKey, Selector};

/// The classes of ends whose address nobody knows.
#[derive(Default, Debug)]
pub(super) struct Unaddressed {
    /// Pods that no cluster has run yet.
    pub(super) pods: FxHashMap<PodKey, Bounds>,
    /// Whatever is not a pod.
    pub(super) nobody: Bounds,
}

/// What can be said of an unknown address. Rules only accept, so a verdict equal under both bounds is certain.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Bounds {
    /// In the blocks that hold a whole family, by family.
    pub(super) least: [ClassIndex; 2],
    /// In every block.
    pub(super) most: ClassIndex,
}

/// What a plan's rulesets can tell about addresses.
pub(super) struct Facts<'a> {
    state: &'a ClusterState,
    interner: &'a Interner,
    peers: &'a BTreeSet<PeerId>,
    split: Vec<(IpNet, Vec<Fact>)>,
    table: PrefixTable,
    pods: PodFacts<'a>,
    nodes: Vec<(PeerId, &'a Selector)>,
}

impl<'a> Facts<'a> {
    /// Facts about the peers and port names that rulesets mention.
    pub(super) fn new(
        state: &'a ClusterState,
        interner: &'a Interner,
        peers: &'a BTreeSet<PeerId>,
        names: &'a BTreeSet<PortNameId>,
    ) -> Self {
        let (mut blocks, mut nodes) = (Vec::new(), Vec::new());
        for &id in peers {
            match &**interner.content(id) {
                PeerContent::Block(block) => blocks.push((id, block)),
                PeerContent::Nodes(selector) => nodes.push((id, selector)),
                PeerContent::Pods(..) => {}
            }
        }
        let split = split_at_blocks(blocks);
        let table = PrefixTable::new(split.iter().map(|&(block, _)| block));
        Self { state, interner, peers, split, table, pods: PodFacts::new(state, interner, peers, names), nodes }
    }

    /// What selectors and port names say of a pod, wherever it is; ascending.
    pub(super) fn of_pod(&mut self, pod: &'a Pod) -> Vec<Fact> {
        let index = self.pods.index(pod);
        self.pods.facts[index].clone()
    }

    /// What node selectors say of an address, ascending: those of every node that has it count.
    fn of_nodes(&self, address: IpAddr) -> Vec<Fact> {
        if self.nodes.is_empty() {
            return Vec::new();
        }
        let nodes = self.state.nodes_at(address);
        let matches = |selector: &Selector| nodes.iter().any(|node| selector.matches(&node.labels));
        self.nodes.iter().filter(|(_, selector)| matches(selector)).map(|&(id, _)| Fact::Peer(id)).collect()
    }

    /// Everything about an address, ascending.
    ///
    /// 1. A pod's: what is said of the pod, of nodes that have the address, and of the blocks around it.
    /// 2. Else a Service's cluster address: nothing. No peer means it.
    /// 3. Else what is said of nodes that have it, and of the blocks around it.
    pub(super) fn at(&mut self, address: IpAddr) -> Vec<Fact> {
        let mut facts = match self.state.owner(address) {
            Owner::Pod(pod) => self.of_pod(pod),
            Owner::Service(_) => return Vec::new(),
            Owner::Node(_) | Owner::Outside => Vec::new(),
        };
        facts.extend(self.of_nodes(address));
        facts.extend(self.table.find(address).into_iter().flat_map(|index| &self.split[index].1));
        facts.sort_unstable();
        facts
    }

    /// Fills in the classes of a plan; where it is asked for, also those of ends without address.
    pub(super) fn classify(
        mut self,
        plan: &mut Plan,
        virtuals: &[(IpAddr, Arc<[ServiceFacts]>)],
        unaddressed: Option<&mut Unaddressed>,
    ) {
        let mut classes = Classes::default();
        classes.index(ClassKey::default());
        let split = &self.split;
        plan.prefixes =
            split.iter().map(|(block, facts)| (*block, classes.index(ClassKey::of(facts.as_slice())))).collect();
        // A pod's own facts and the longest block around its address say everything of the address.
        let mut combined: FxHashMap<(usize, Option<usize>), ClassIndex> = FxHashMap::default();
        for pod in self.state.pods() {
            let mut own = None;
            for address in self.state.addresses_of(pod) {
                let own = *own.get_or_insert_with(|| self.pods.index(pod));
                let block = self.table.find(address);
                let class = *combined.entry((own, block)).or_insert_with(|| {
                    let around = block.map_or(&[][..], |index| &split[index].1);
                    let mut facts: Vec<_> = self.pods.facts[own].iter().chain(around).copied().collect();
                    facts.sort_unstable();
                    classes.index(ClassKey::of(facts))
                });
                if class != block.map_or(ClassIndex(0), |index| plan.prefixes[index].1) {
                    plan.exact.insert(address, class);
                }
            }
        }
        if !self.nodes.is_empty() {
            for &address in self.state.nodes().flat_map(|node| &node.addresses) {
                if !self.of_nodes(address).is_empty() {
                    plan.exact.insert(address, classes.index(ClassKey::of(self.at(address))));
                }
            }
        }
        for (address, frontends) in virtuals {
            let key = ClassKey { facts: self.at(*address).into(), frontends: frontends.clone() };
            plan.exact.insert(*address, classes.index(key));
        }
        if let Some(unaddressed) = unaddressed {
            self.bound(&mut classes, unaddressed);
        }
        plan.classes = classes.keys;
    }

    /// Classes of ends whose address nobody knows.
    fn bound(&mut self, classes: &mut Classes, unaddressed: &mut Unaddressed) {
        let blocks = |is_certain: &dyn Fn(&IpBlock) -> bool| -> Vec<Fact> {
            let is_in =
                |id: &&PeerId| matches!(&**self.interner.content(**id), PeerContent::Block(block) if is_certain(block));
            self.peers.iter().filter(is_in).map(|&id| Fact::Peer(id)).collect()
        };
        let around = [
            blocks(&|block| block.is_whole_family(Family::V4)),
            blocks(&|block| block.is_whole_family(Family::V6)),
            blocks(&|_| true),
        ];
        let mut bounds = |own: &[Fact]| {
            let [v4, v6, most] = [0, 1, 2].map(|bound: usize| {
                let mut facts: Vec<_> = own.iter().chain(&around[bound]).copied().collect();
                facts.sort_unstable();
                classes.index(ClassKey::of(facts))
            });
            Bounds { least: [v4, v6], most }
        };
        unaddressed.nobody = bounds(&[]);
        for pod in self.state.pods().filter(|pod| pod.is_enforceable() && pod.is_planned()) {
            let own = self.pods.index(pod);
            unaddressed.pods.insert(pod.key.clone(), bounds(&self.pods.facts[own]));
        }
    }
}

/// Distinct class keys.
#[derive(Default)]
struct Classes {
    keys: Vec<ClassKey>,
    known: FxHashMap<ClassKey, ClassIndex>,
}

impl Classes {
    fn index(&mut self, key: ClassKey) -> ClassIndex {
        let next = ClassIndex(u32::try_from(self.keys.len()).expect("fewer than 4 billion classes"));
        let index = *self.known.entry(key.clone()).or_insert(next);
        if index == next {
            self.keys.push(key);
        }
        index
    }
}

/// What selectors and port names say about pods, found once for each distinct set of labels and ports that matter.
struct PodFacts<'a> {
    state: &'a ClusterState,
    interner: &'a Interner,
    names: &'a BTreeSet<PortNameId>,
    /// Pod peers that reach one namespace, by its name.
    own: FxHashMap<&'a str, Vec<(PeerId, &'a Selector)>>,
    /// Pod peers by namespace selector.
    matching: FxHashMap<&'a Selector, Vec<(PeerId, &'a Selector)>>,
    namespaces: FxHashMap<&'a str, NamespaceFacts<'a>>,
    /// Distinct sets of facts, each ascending.
    facts: Vec<Vec<Fact>>,
}

/// The peers that can match pods of one namespace.
struct NamespaceFacts<'a> {
    peers: Vec<(PeerId, &'a Selector)>,
    /// Label keys that these peers ask for: no other label of a pod matters.
    keys: FxHashSet<&'a str>,
    known: FxHashMap<Look<'a>, usize>,
}

/// All that matters of a pod: its labels under the keys that are asked for, and its ports whose names are.
#[derive(PartialEq, Eq, Hash)]
struct Look<'a> {
    labels: SmallVec<[(&'a str, &'a str); 4]>,
    ports: SmallVec<[Fact; 2]>,
}

impl<'a> PodFacts<'a> {
    fn new(
        state: &'a ClusterState,
        interner: &'a Interner,
        peers: &BTreeSet<PeerId>,
        names: &'a BTreeSet<PortNameId>,
    ) -> Self {
        let mut own: FxHashMap<_, Vec<_>> = FxHashMap::default();
        let mut matching: FxHashMap<_, Vec<_>> = FxHashMap::default();
        for &id in peers {
            match &**interner.content(id) {
                PeerContent::Block(_) | PeerContent::Nodes(_) => {}
                PeerContent::Pods(PeerScope::Namespace(name), pods) => own.entry(&**name).or_default().push((id, pods)),
                PeerContent::Pods(PeerScope::Matching(labels), pods) => {
                    matching.entry(labels).or_default().push((id, pods));
                }
            }
        }
        Self { state, interner, names, own, matching, namespaces: FxHashMap::default(), facts: Vec::new() }
    }

    /// Where in `facts` a pod's facts are.
    fn index(&mut self, pod: &'a Pod) -> usize {
        if !self.namespaces.contains_key(&*pod.key.namespace) {
            let facts = self.namespace(pod);
            self.namespaces.insert(&pod.key.namespace, facts);
        }
        let namespace = self.namespaces.get_mut(&*pod.key.namespace).expect("it was just put there");
        let labels = pod.labels.iter().filter(|(key, _)| namespace.keys.contains(key)).collect();
        let mut ports: SmallVec<[Fact; 2]> = SmallVec::new();
        if !self.names.is_empty() {
            for port in &pod.ports {
                if let Some(name) = self.interner.known_name(&port.name).filter(|name| self.names.contains(name)) {
                    ports.push(Fact::Named(name, port.protocol.flow(), port.number));
                }
            }
            ports.sort_unstable();
            ports.dedup();
        }
        let facts = &mut self.facts;
        *namespace.known.entry(Look { labels, ports }).or_insert_with_key(|look| {
            let matching = namespace.peers.iter().filter(|(_, selector)| selector.matches(&pod.labels));
            facts.push(matching.map(|&(id, _)| Fact::Peer(id)).chain(look.ports.iter().copied()).collect());
            facts.len() - 1
        })
    }

    fn namespace(&self, pod: &Pod) -> NamespaceFacts<'a> {
        let labels = self.state.namespace_labels(&pod.key.namespace);
        let matching =
            self.matching.iter().filter(|(selector, _)| selector.matches(&labels)).flat_map(|(_, peers)| peers);
        let own = self.own.get(&*pod.key.namespace).into_iter().flatten();
        let mut peers: Vec<_> = own.chain(matching).copied().collect();
        peers.sort_unstable_by_key(|&(id, _)| id);
        let keys = peers.iter().flat_map(|(_, selector)| selector.requirements()).map(|wanted| &*wanted.key).collect();
        NamespaceFacts { peers, keys, known: FxHashMap::default() }
    }
}

/// Finds classes in a finished plan, faster than [`Plan::class_of`].
#[derive(Debug)]
pub(super) struct ClassFinder {
    prefixes: PrefixTable,
}

impl ClassFinder {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { prefixes: PrefixTable::new(plan.prefixes.iter().map(|&(block, _)| block)) }
    }

    pub(super) fn find(&self, plan: &Plan, address: IpAddr) -> ClassIndex {
        plan.exact
            .get(&address)
            .copied()
            .unwrap_or_else(|| self.prefixes.find(address).map_or(ClassIndex(0), |index| plan.prefixes[index].1))
    }
}
