//! From the cluster's state to one node's plan: from scratch, and from one change to the next.
//!
//! Everything is looked up in the state when it is looked at; what an event says only decides what to look at. So the plan
//! depends on the state alone, in whatever order changes came, and squashed as they may be.
//!
//! ```text
//! events --> subjects --> peers in use --> facts of addresses --> Services --> classes
//!                                              (groups, blocks, nodes)  ^ |
//!                                    subjects that reach themselves ----+ +--> ...
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use npolicy_common::{Direction, Family};
use rustc_hash::{FxHashMap, FxHashSet};

use super::changes::{Changes, Work};
use super::classes::{Bounds, Classes, Unaddressed};
use super::groups::Groups;
use super::intern::{Interner, PeerContent, Turnover};
use super::names::NameScopes;
use super::plan::{ClassIndex, ClassKey, Fact, PeerId, Plan, Subject};
use super::prefixes::Blocks;
use super::resolve::Resolver;
use super::ruleset::Ruleset;
use super::services::{Virtual, Virtuals, is_services};
use super::subjects::Subjects;
use crate::model::{ClusterState, Diagnostic, Event, Owner, Pod, PodKey, Selector, family};

/// Which pods are subjects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Those of one node.
    Node(Arc<str>),
    /// Those of one node, and those written for no node: a machine fed from manifests runs them all.
    NodeAndUnassigned(Arc<str>),
    /// Every pod, to answer questions about all of them.
    Everything,
}

impl Scope {
    fn includes(&self, pod: &Pod) -> bool {
        match self {
            Self::Node(name) => pod.node.as_ref() == Some(name),
            Self::NodeAndUnassigned(name) => pod.node.as_ref().is_none_or(|node| node == name),
            Self::Everything => true,
        }
    }

    fn node(&self) -> Option<&Arc<str>> {
        match self {
            Self::Node(name) | Self::NodeAndUnassigned(name) => Some(name),
            Self::Everything => None,
        }
    }
}

/// Compiles the cluster for one scope, and keeps what it knows, so that a change costs what the change is worth.
#[derive(Debug)]
pub struct Compiler {
    scope: Scope,
    interner: Interner,
    names: NameScopes,
    subjects: Subjects,
    groups: Groups,
    blocks: Blocks,
    /// Peers of nodes in use, ascending.
    nodes: Vec<(PeerId, Selector)>,
    virtuals: Virtuals,
    classes: Classes,
    /// Addresses that this node has beside those that the cluster says.
    own_addresses: BTreeSet<IpAddr>,
    plan: Plan,
}

/// Classes found in one pass, by what is said of a pod and the block around its address.
type Combined = FxHashMap<(*const Fact, usize, Option<usize>), Option<ClassIndex>>;

impl Compiler {
    /// Starts with a plan of nothing.
    pub fn new(scope: Scope) -> Self {
        Self::with(scope, Interner::default(), BTreeSet::new())
    }

    fn with(scope: Scope, interner: Interner, own_addresses: BTreeSet<IpAddr>) -> Self {
        let mut plan = Plan::default();
        Self {
            scope,
            interner,
            names: NameScopes::default(),
            subjects: Subjects::default(),
            groups: Groups::default(),
            blocks: Blocks::default(),
            nodes: Vec::new(),
            virtuals: Virtuals::default(),
            classes: Classes::new(&mut plan.classes),
            own_addresses,
            plan,
        }
    }

    /// The plan of the state that was compiled last.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Compiles the whole plan, from scratch, whatever was compiled before.
    ///
    /// Cost: linear in pods; selectors are evaluated once for each namespace and distinct set of labels.
    pub fn compile(&mut self, state: &ClusterState) -> (Plan, Vec<Diagnostic>) {
        self.start(state);
        (self.plan.clone(), state.diagnose_addresses())
    }

    /// Compiles the plan, and the classes of ends without address.
    pub(super) fn compile_unaddressed(&mut self, state: &ClusterState) -> (Plan, Unaddressed) {
        self.start(state);
        let unaddressed = self.unaddressed(state);
        (self.plan.clone(), unaddressed)
    }

    /// Compiles the whole plan, from scratch. [`Self::apply`] goes on from there.
    ///
    /// Subjects are the pods in scope that policy can apply to and that have an address; also one that no cluster has run
    /// yet and that has none, and every pod of [`Scope::Node`]: its interface is there before the cluster says its address. Only peers and names in rulesets of subjects make classes.
    pub fn start(&mut self, state: &ClusterState) {
        let mut interner = std::mem::take(&mut self.interner);
        interner.release_everything();
        *self = Self::with(self.scope.clone(), interner, std::mem::take(&mut self.own_addresses));
        self.run(state, Work::everything(state, |pod| self.scope.includes(pod)));
    }

    /// Makes the plan that of a state which some changes led to; returns how it differs from before.
    ///
    /// `undo` holds, for every change since the last call, in any order, an event that would take it back
    /// ([`ClusterState::change`] gives it). More of them than needed do no harm. Cost: that of what they touch.
    pub fn apply(&mut self, state: &ClusterState, undo: &[Event]) -> Changes {
        let mut work = Work::default();
        undo.iter().for_each(|event| work.note(&self.plan, state, event));
        let had = |address| self.subjects.by_address.get(&address).cloned();
        work.add_owners(state, had, |pod| self.scope.includes(pod));
        self.run(state, work)
    }

    /// Says which addresses this node has beside those that the cluster says it has; returns how the plan differs from
    /// before. Node ports are open on them too.
    pub fn set_own_addresses(&mut self, state: &ClusterState, addresses: &BTreeSet<IpAddr>) -> Changes {
        let before = std::mem::replace(&mut self.own_addresses, addresses.clone());
        let mut work = Work::default();
        for &address in before.symmetric_difference(addresses) {
            work.facts.insert(address);
            if is_services(state, address) {
                work.services.insert(Virtual::Address(address));
            }
        }
        if work.facts.is_empty() {
            return Changes::default();
        }
        work.services.extend(Virtual::NODE_PORTS);
        self.run(state, work)
    }

    fn run(&mut self, state: &ClusterState, mut work: Work) -> Changes {
        self.resolve_subjects(state, &mut work);

        let [added, dropped] = self.interner.settle();
        let blocks = self.turn_over(state, &added, &dropped, &mut work);
        for name in std::mem::take(&mut work.namespaces) {
            self.groups.refresh_namespace(state, &name, &mut work.facts);
        }
        if work.are_rulesets_other {
            self.refresh_names(state, &mut work.facts);
        }
        for &address in &work.addresses {
            let pod = if let Owner::Pod(pod) = state.owner(address) { Some(&**pod) } else { None };
            self.groups.set(state, address, pod);
            let which = Virtual::Address(address);
            if self.virtuals.contains(which) || is_services(state, address) {
                work.services.insert(which);
            }
            // A node's address that a Service has, or had: on what addresses node ports are alone may be different.
            let is_nodes = !state.nodes_at(address).is_empty() || self.own_addresses.contains(&address);
            if is_nodes && state.has_node_ports() {
                work.services.extend(Virtual::NODE_PORTS);
            }
        }
        work.facts.extend(&work.addresses);
        // Where this node's own addresses are a Service's, its ports and node ports stand side by side.
        if work.services.contains(&Virtual::NODE_PORTS[0]) {
            let is_shared = |address: &&IpAddr| {
                is_services(state, **address) && !matches!(state.owner(**address), Owner::Service(_))
            };
            let own = self.own_addresses.iter().filter(is_shared);
            work.services.extend(own.map(|&address| Virtual::Address(address)));
        }

        self.refresh_services(state, &mut work);
        self.set_subjects_apart(state, &mut work);
        self.resolve_services(state, &mut work);

        let mut changes = Changes { blocks, ..Changes::default() };
        self.classify(state, &work, &mut changes.addresses);
        self.classes.settle(&mut self.plan.classes);
        changes.node_addresses = self.refresh_node_addresses(state);
        let differs =
            |(key, before): (PodKey, Option<Subject>)| (self.plan.subjects.get(&key) != before.as_ref()).then_some(key);
        changes.subjects = work.looked_at.into_iter().filter_map(differs).collect();
        changes.claimed = work.addresses.into_iter().collect();
        changes.claimed.sort_unstable();
        changes
    }

    /// Finds the rulesets of pods that may be subjects, before any of them is set apart.
    fn resolve_subjects(&mut self, state: &ClusterState, work: &mut Work) {
        let mut resolver = Resolver::new(state, &mut self.interner);
        let mut found = Vec::with_capacity(work.subjects.len());
        for key in &work.subjects {
            let is_subject = |pod: &&Arc<Pod>| pod.is_enforceable() && self.scope.includes(pod);
            let subject = state.pod(key).filter(is_subject).and_then(|pod| {
                let addresses: Vec<_> = state.addresses_of(pod).collect();
                let is_known = !addresses.is_empty() || pod.is_planned() || matches!(self.scope, Scope::Node(_));
                is_known.then(|| (addresses, resolver.rulesets(pod)))
            });
            if subject.is_some() || self.plan.subjects.contains_key(key) {
                found.push((key.clone(), subject));
            }
        }
        work.subjects.clear();
        for (key, subject) in found {
            work.remember(&self.plan, &key);
            // Holds before it lets go, so that what stays in use does not go in between.
            let bases = subject.as_ref().map(|(_, bases)| {
                bases.clone().map(|base| {
                    let (base, is_first) = self.subjects.before.hold(base);
                    if is_first {
                        self.interner.hold(&base);
                        work.are_rulesets_other = true;
                    }
                    base
                })
            });
            let before = match bases {
                Some(bases) => self.subjects.bases.insert(key.clone(), bases),
                None => self.subjects.bases.remove(&key),
            };
            for base in before.iter().flatten() {
                if self.subjects.before.release(base) {
                    self.interner.release(base);
                    work.are_rulesets_other = true;
                }
            }
            for address in self.plan.subjects.get(&key).iter().flat_map(|subject| &subject.addresses) {
                if self.subjects.by_address.get(address) == Some(&key) {
                    self.subjects.by_address.remove(address);
                }
            }
            match subject {
                Some((addresses, _)) => {
                    for &address in &addresses {
                        self.subjects.by_address.insert(address, key.clone());
                    }
                    work.subjects.insert(key.clone());
                    match self.plan.subjects.get_mut(&key) {
                        Some(subject) => subject.addresses = addresses,
                        None => {
                            let open = [Direction::Ingress, Direction::Egress]
                                .map(|direction| Arc::new(Ruleset::ungoverned(direction)));
                            let [ingress, egress] = open.map(|ruleset| self.subjects.after.hold(ruleset).0);
                            self.plan.subjects.insert(key, Subject { addresses, ingress, egress });
                        }
                    }
                }
                None => self.remove_subject(&key, work),
            }
        }
    }

    fn remove_subject(&mut self, key: &PodKey, work: &mut Work) {
        let Some(Subject { ingress, egress, .. }) = self.plan.subjects.remove(key) else { return };
        self.virtuals.set_selves(selves(&egress), &[], &mut work.virtuals);
        self.subjects.after.release(&ingress);
        self.subjects.after.release(&egress);
    }

    /// Takes note of the peers and names that have come into use or gone out of it. Returns whether the blocks differ.
    fn turn_over(&mut self, state: &ClusterState, added: &Turnover, dropped: &Turnover, work: &mut Work) -> bool {
        self.groups.drop(&dropped.peers, &dropped.names, &mut work.facts);
        self.groups.add(&added.peers, &added.names, &mut work.facts);
        fn blocks(turnover: &Turnover) -> impl Iterator<Item = (PeerId, &crate::model::IpBlock)> {
            turnover.peers.iter().filter_map(|(id, content)| match &**content {
                PeerContent::Block(block) => Some((*id, block)),
                PeerContent::Pods(..) | PeerContent::Nodes(_) => None,
            })
        }
        for (turnover, is_added) in [(dropped, false), (added, true)] {
            for (id, content) in &turnover.peers {
                let PeerContent::Nodes(selector) = &**content else { continue };
                if is_added {
                    self.nodes.push((*id, selector.clone()));
                } else {
                    self.nodes.retain(|(other, _)| other != id);
                }
                let nodes = state.nodes().filter(|node| selector.matches(&node.labels));
                work.facts.extend(nodes.flat_map(|node| &node.addresses));
            }
        }
        self.nodes.sort_unstable_by_key(|&(id, _)| id);
        let Some(changed) = self.blocks.turn_over(blocks(added), blocks(dropped)) else { return false };
        let is_changed = |address: &IpAddr| changed.find(*address).is_some();
        work.facts.extend(self.known_addresses().filter(is_changed));

        let mut prefixes = Vec::with_capacity(self.blocks.split().len());
        for (block, facts) in self.blocks.split() {
            let class = self.classes.index(&mut self.plan.classes, ClassKey::of(Arc::clone(facts)));
            self.classes.hold(class);
            prefixes.push((*block, class));
        }
        let differ = prefixes != self.plan.prefixes;
        for (_, class) in std::mem::replace(&mut self.plan.prefixes, prefixes) {
            self.classes.release(class);
        }
        differ
    }

    /// Every address of which more or less is said than by the blocks around it, and all that others depend on.
    fn known_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let subjects = self.subjects.by_address.keys().copied();
        self.plan.exact.keys().copied().chain(self.virtuals.backends()).chain(subjects).chain(self.groups.addresses())
    }

    /// Looks again for which peers port names are looked up; addresses for which that may be another go into `changed`.
    fn refresh_names(&mut self, state: &ClusterState, changed: &mut FxHashSet<IpAddr>) {
        let names = NameScopes::of(self.subjects.before.iter());
        for (name, peer) in names.differences(&self.names) {
            let Some(peer) = peer else {
                self.groups.find(|fact| matches!(fact, Fact::Named(other, ..) if other == name), changed);
                continue;
            };
            // One that is in use no more has been looked for already.
            match self.interner.content(peer) {
                None => {}
                Some(PeerContent::Pods(..)) => self.groups.find(|fact| fact == Fact::Peer(peer), changed),
                Some(PeerContent::Block(block)) => {
                    changed.extend(self.known_addresses().filter(|&address| block.contains(address)));
                }
                Some(PeerContent::Nodes(selector)) => {
                    let nodes = state.nodes().filter(|node| selector.matches(&node.labels));
                    changed.extend(nodes.flat_map(|node| &node.addresses));
                }
            }
        }
        self.names = names;
    }

    /// Looks at Services again. Subjects that became a backend, or are one no more, are to be set apart again.
    fn refresh_services(&mut self, state: &ClusterState, work: &mut Work) {
        let node = self.scope.node().map(|name| &**name);
        let mut moved = FxHashSet::default();
        for &which in &work.services {
            self.virtuals.refresh(state, node, &self.own_addresses, which, &mut moved);
        }
        let by_address = &self.subjects.by_address;
        work.subjects.extend(moved.iter().chain(&work.facts).filter_map(|address| by_address.get(address)).cloned());
    }

    /// Gives subjects rulesets that know what they are to themselves.
    fn set_subjects_apart(&mut self, state: &ClusterState, work: &mut Work) {
        // No address leads to these, so nobody has said that something else is said of them.
        let unaddressed = self.plan.subjects.iter().filter(|(_, subject)| subject.addresses.is_empty());
        work.subjects.extend(unaddressed.map(|(key, _)| key.clone()));
        for key in std::mem::take(&mut work.subjects) {
            let Some(subject) = self.plan.subjects.get(&key) else { continue };
            let pod = state.pod(&key).expect("a subject is a pod of the cluster");
            let own = self.groups.of_pod(state, pod);
            let backends = subject.addresses.iter().filter(|&&address| !self.virtuals.places(address).is_empty());
            let backends: Vec<_> = backends.map(|&address| (address, self.facts_at(state, address))).collect();
            let [ingress, egress] = &self.subjects.bases[&key];
            let backends = backends.iter().map(|(address, facts)| (*address, &**facts));
            let apart = [(ingress, ingress.for_subject(&own, [])), (egress, egress.for_subject(&own, backends))];
            let [ingress, egress] = apart.map(|(base, apart)| {
                let apart = if apart == **base { Arc::clone(base) } else { Arc::new(apart) };
                self.subjects.after.hold(apart).0
            });
            work.remember(&self.plan, &key);
            let subject = self.plan.subjects.get_mut(&key).expect("it was just there");
            self.virtuals.set_selves(selves(&subject.egress), selves(&egress), &mut work.virtuals);
            for before in
                [std::mem::replace(&mut subject.ingress, ingress), std::mem::replace(&mut subject.egress, egress)]
            {
                self.subjects.after.release(&before);
            }
        }
    }

    /// Finds out what rulesets can tell of the backends of Services that were touched.
    fn resolve_services(&mut self, state: &ClusterState, work: &mut Work) {
        for &address in &work.facts {
            work.virtuals.extend(self.virtuals.places(address));
        }
        work.virtuals.extend(&work.services);
        let mut known: FxHashMap<IpAddr, Arc<[Fact]>> = FxHashMap::default();
        let mut virtuals = std::mem::take(&mut self.virtuals);
        for &which in &work.virtuals {
            let differ = virtuals.resolve(which, |address| {
                known.entry(address).or_insert_with(|| self.facts_at(state, address)).clone()
            });
            match which {
                Virtual::Address(address) => {
                    work.facts.insert(address);
                }
                Virtual::NodePorts(_) if !differ => {}
                Virtual::NodePorts(wanted) => {
                    let addresses = state.nodes().flat_map(|node| &node.addresses).chain(&self.own_addresses).copied();
                    work.facts.extend(addresses.filter(|&address| family(address) == wanted));
                }
            }
        }
        self.virtuals = virtuals;
    }

    /// What node selectors say of an address, ascending: those of every node that has it count.
    fn facts_of_nodes(&self, state: &ClusterState, address: IpAddr) -> Vec<Fact> {
        let nodes = if self.nodes.is_empty() { &[] } else { state.nodes_at(address) };
        let matches = |selector: &Selector| nodes.iter().any(|node| selector.matches(&node.labels));
        self.nodes.iter().filter(|(_, selector)| matches(selector)).map(|&(id, _)| Fact::Peer(id)).collect()
    }

    /// Everything about an address, ascending.
    ///
    /// 1. A pod's: what is said of the pod, of nodes that have the address, and of the blocks around it.
    /// 2. Else a Service's cluster address: nothing. No peer means it.
    /// 3. Else what is said of nodes that have it, and of the blocks around it.
    fn facts_at(&self, state: &ClusterState, address: IpAddr) -> Arc<[Fact]> {
        let own = self.groups.at(address);
        if own.is_none() && matches!(state.owner(address), Owner::Service(_)) {
            return Arc::default();
        }
        let mut facts = self.facts_of_nodes(state, address);
        facts.extend(own.into_iter().flat_map(|own| own.iter()));
        facts.extend(self.blocks.at(address));
        facts.sort_unstable();
        self.names.keep_asked(&mut facts);
        facts.into()
    }

    /// Gives addresses their classes again; those that have another now go into `changed`, ascending.
    fn classify(&mut self, state: &ClusterState, work: &Work, changed: &mut Vec<IpAddr>) {
        let mut combined = Combined::default();
        for &address in &work.facts {
            let class = self.class_at(state, address, &mut combined);
            let before = match class {
                Some(class) => {
                    self.classes.hold(class);
                    self.plan.exact.insert(address, class)
                }
                None => self.plan.exact.remove(&address),
            };
            before.into_iter().for_each(|before| self.classes.release(before));
            if before != class {
                changed.push(address);
            }
        }
        changed.sort_unstable();
    }

    /// The class of an address of which more is said than by the blocks around it, or less.
    fn class_at(&mut self, state: &ClusterState, address: IpAddr, combined: &mut Combined) -> Option<ClassIndex> {
        let own = self.groups.at(address);
        let frontends = self.virtuals.at(state, &self.own_addresses, address);
        let of_nodes = self.facts_of_nodes(state, address);
        if frontends.is_some() || !of_nodes.is_empty() {
            let facts = self.facts_at(state, address);
            let key = ClassKey { facts, frontends: frontends.cloned().unwrap_or_default() };
            return Some(self.classes.index(&mut self.plan.classes, key));
        }
        let Some(own) = own else {
            return matches!(state.owner(address), Owner::Service(_)).then_some(ClassIndex::default());
        };
        if own.is_empty() {
            return None;
        }
        let block = self.blocks.find(address);
        let found = (own.as_ptr(), own.len(), block);
        *combined.entry(found).or_insert_with(|| {
            let around = block.map_or(&[][..], |index| &self.blocks.split()[index].1);
            let mut facts: Vec<_> = own.iter().chain(around).copied().collect();
            facts.sort_unstable();
            self.names.keep_asked(&mut facts);
            (facts.len() > around.len()).then(|| self.classes.index(&mut self.plan.classes, ClassKey::of(facts)))
        })
    }

    /// The addresses of this node's own, as the plan wants them; returns whether they differ.
    fn refresh_node_addresses(&mut self, state: &ClusterState) -> bool {
        let node = self.scope.node().and_then(|name| state.node(name));
        let addresses = node.iter().flat_map(|node| &node.addresses).chain(&self.own_addresses).copied();
        let is_nodes = |address: &IpAddr| !matches!(state.owner(*address), Owner::Service(_));
        let now: BTreeSet<IpAddr> = addresses.filter(is_nodes).collect();
        let differ = now != self.plan.node_addresses;
        self.plan.node_addresses = now;
        differ
    }

    /// Classes of ends whose address nobody knows.
    fn unaddressed(&mut self, state: &ClusterState) -> Unaddressed {
        let Self { blocks, classes, groups, plan, .. } = self;
        let around = [
            blocks.peers(|block| block.is_whole_family(Family::V4)),
            blocks.peers(|block| block.is_whole_family(Family::V6)),
            blocks.peers(|_| true),
        ];
        let mut bounds = |own: &[Fact]| {
            let [v4, v6, most] = [0, 1, 2].map(|bound: usize| {
                let mut facts: Vec<_> = own.iter().chain(&around[bound]).copied().collect();
                facts.sort_unstable();
                let class = classes.index(&mut plan.classes, ClassKey::of(facts));
                classes.hold(class);
                class
            });
            Bounds { least: [v4, v6], most }
        };
        let mut unaddressed = Unaddressed { nobody: bounds(&[]), ..Unaddressed::default() };
        for pod in state.pods().filter(|pod| pod.is_enforceable() && pod.is_planned()) {
            unaddressed.pods.insert(pod.key.clone(), bounds(&groups.of_pod(state, pod)));
        }
        unaddressed
    }
}

/// Where a subject reaches itself in its own way.
fn selves(egress: &Ruleset) -> &[IpAddr] {
    egress.tiers().map_or(&[], |tiers| &tiers.own.backends)
}
