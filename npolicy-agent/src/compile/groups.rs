//! What selectors and port names say of pods: found once for each namespace and distinct set of labels and named ports.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::intern::{PeerContent, PeerScope};
use super::plan::{Fact, PeerId, PortNameId};
use crate::model::{ClusterState, Labels, NamedPort, Pod, Selector};

/// A peer of pods, without its scope.
type PodsPeer = (PeerId, Selector);

/// Pods by what policies can tell of them, and the addresses of each such group.
#[derive(Default, Debug)]
pub(super) struct Groups {
    /// Peers that reach one namespace, by its name.
    own: FxHashMap<Arc<str>, Vec<PodsPeer>>,
    /// Peers by namespace selector.
    matching: FxHashMap<Selector, Vec<PodsPeer>>,
    names: FxHashMap<Arc<str>, PortNameId>,
    namespaces: FxHashMap<Arc<str>, Namespace>,
    groups: Vec<Group>,
    free: Vec<usize>,
    of: FxHashMap<IpAddr, usize>,
    sets: FactSets,
}

#[derive(Debug)]
struct Namespace {
    labels: Labels,
    /// The peers that reach it, ascending.
    peers: Vec<PodsPeer>,
    /// Its groups by a hash of labels and ports.
    groups: FxHashMap<u64, SmallVec<[usize; 1]>>,
}

/// Pods of one namespace with equal labels and equal named ports.
#[derive(Debug)]
struct Group {
    namespace: Arc<str>,
    labels: Labels,
    ports: Box<[NamedPort]>,
    facts: Arc<[Fact]>,
    /// Never empty, but for a group that is free.
    addresses: FxHashSet<IpAddr>,
}

/// Sets of facts that are in use: equal content, one copy.
#[derive(Default, Debug)]
struct FactSets {
    sets: FxHashSet<Arc<[Fact]>>,
    look_again_at: usize,
}

impl FactSets {
    fn share(&mut self, facts: &[Fact]) -> Arc<[Fact]> {
        if let Some(known) = self.sets.get(facts) {
            return Arc::clone(known);
        }
        if self.sets.len() >= self.look_again_at.max(64) {
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.look_again_at = 2 * self.sets.len();
        }
        let facts: Arc<[Fact]> = facts.into();
        self.sets.insert(Arc::clone(&facts));
        facts
    }
}

/// What is said of pods with these labels and ports, where `peers` reach; ascending.
fn evaluate(
    peers: &[PodsPeer],
    names: &FxHashMap<Arc<str>, PortNameId>,
    labels: &Labels,
    ports: &[NamedPort],
) -> Facts {
    let matching = peers.iter().filter(|(_, selector)| selector.matches(labels));
    let mut facts: Facts = matching.map(|&(id, _)| Fact::Peer(id)).collect();
    if !names.is_empty() {
        let named = |port: &NamedPort| Some(Fact::Named(*names.get(&port.name)?, port.protocol.flow(), port.number));
        facts.extend(ports.iter().filter_map(named));
        facts.sort_unstable();
        facts.dedup();
    }
    facts
}

type Facts = SmallVec<[Fact; 8]>;

impl Groups {
    /// What is said of a pod, ascending.
    pub(super) fn of_pod(&mut self, state: &ClusterState, pod: &Pod) -> Arc<[Fact]> {
        let Self { own, matching, names, namespaces, sets, .. } = self;
        let namespace = entry(own, matching, namespaces, state, &pod.key.namespace);
        sets.share(&evaluate(&namespace.peers, names, &pod.labels, &pod.ports))
    }

    /// What is said of the pod that has an address; `None` if no pod has it.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Arc<[Fact]>> {
        self.of.get(&address).map(|&group| &self.groups[group].facts)
    }

    /// Every address of a pod of which something is said.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let is_known = |(_, group): &(&IpAddr, &usize)| !self.groups[**group].facts.is_empty();
        self.of.iter().filter(is_known).map(|(&address, _)| address)
    }

    /// Puts the addresses of pods of which some such fact is known into `found`.
    pub(super) fn find(&self, is_wanted: impl Fn(Fact) -> bool, found: &mut FxHashSet<IpAddr>) {
        for group in self.groups.iter().filter(|group| group.facts.iter().any(|&fact| is_wanted(fact))) {
            found.extend(&group.addresses);
        }
    }

    /// Says which pod has an address, if one has.
    pub(super) fn set(&mut self, state: &ClusterState, address: IpAddr, pod: Option<&Pod>) {
        let now = pod.map(|pod| self.group(state, pod));
        let before = match now {
            Some(group) => {
                self.groups[group].addresses.insert(address);
                self.of.insert(address, group)
            }
            None => self.of.remove(&address),
        };
        if let Some(before) = before.filter(|&before| Some(before) != now) {
            self.groups[before].addresses.remove(&address);
            if self.groups[before].addresses.is_empty() {
                self.remove(before);
            }
        }
    }

    fn group(&mut self, state: &ClusterState, pod: &Pod) -> usize {
        let Self { own, matching, names, namespaces, groups, free, sets, .. } = self;
        let namespace = entry(own, matching, namespaces, state, &pod.key.namespace);
        let alike = namespace.groups.entry(hash(&pod.labels, &pod.ports)).or_default();
        let is_its = |&&group: &&usize| groups[group].labels == pod.labels && *groups[group].ports == *pod.ports;
        if let Some(&group) = alike.iter().find(is_its) {
            return group;
        }
        let group = Group {
            namespace: pod.key.namespace.clone(),
            labels: pod.labels.clone(),
            ports: pod.ports.as_slice().into(),
            facts: sets.share(&evaluate(&namespace.peers, names, &pod.labels, &pod.ports)),
            addresses: FxHashSet::default(),
        };
        let at = match free.pop() {
            Some(at) => {
                groups[at] = group;
                at
            }
            None => {
                groups.push(group);
                groups.len() - 1
            }
        };
        alike.push(at);
        at
    }

    fn remove(&mut self, group: usize) {
        self.free.push(group);
        let Group { namespace: name, labels, ports, .. } = &self.groups[group];
        let hash = hash(labels, ports);
        let namespace = self.namespaces.get_mut(name).expect("the namespace of a group is known");
        let alike = namespace.groups.get_mut(&hash).expect("a group is found by its hash");
        alike.retain(|&mut other| other != group);
        if alike.is_empty() {
            namespace.groups.remove(&hash);
        }
        if namespace.groups.is_empty() {
            self.namespaces.remove(name);
        }
    }

    /// Takes note of peers and names that have come into use; addresses of which more is said now go into `changed`.
    pub(super) fn add(
        &mut self,
        peers: &[(PeerId, Arc<PeerContent>)],
        names: &[(PortNameId, Arc<str>)],
        changed: &mut FxHashSet<IpAddr>,
    ) {
        for (id, content) in peers {
            let PeerContent::Pods(scope, selector) = &**content else { continue };
            let peer = || (*id, selector.clone());
            match scope {
                PeerScope::Namespace(name) => self.own.entry(name.clone()).or_default().push(peer()),
                PeerScope::Matching(labels) => self.matching.entry(labels.clone()).or_default().push(peer()),
            }
            self.in_scope(scope, |namespace, groups, sets| {
                let at = namespace.peers.partition_point(|(other, _)| other < id);
                namespace.peers.insert(at, peer());
                for &group in namespace.groups.values().flatten() {
                    let group = &mut groups[group];
                    if selector.matches(&group.labels) {
                        let mut facts = Facts::from(&*group.facts);
                        facts.push(Fact::Peer(*id));
                        facts.sort_unstable();
                        group.facts = sets.share(&facts);
                        changed.extend(&group.addresses);
                    }
                }
            });
        }
        self.names.extend(names.iter().map(|(id, name)| (name.clone(), *id)));
        if !names.is_empty() {
            let is_added = |port: &NamedPort| names.iter().any(|(_, name)| *name == port.name);
            self.evaluate_again(is_added, changed);
        }
    }

    /// Takes note of peers and names that have gone out of use; addresses of which less is said now go into `changed`.
    pub(super) fn drop(
        &mut self,
        peers: &[(PeerId, Arc<PeerContent>)],
        names: &[(PortNameId, Arc<str>)],
        changed: &mut FxHashSet<IpAddr>,
    ) {
        for (id, content) in peers {
            let PeerContent::Pods(scope, _) = &**content else { continue };
            match scope {
                PeerScope::Namespace(name) => forget(&mut self.own, name, *id),
                PeerScope::Matching(labels) => forget(&mut self.matching, labels, *id),
            }
            self.in_scope(scope, |namespace, groups, sets| {
                namespace.peers.retain(|(other, _)| other != id);
                for &group in namespace.groups.values().flatten() {
                    let group = &mut groups[group];
                    if group.facts.binary_search(&Fact::Peer(*id)).is_ok() {
                        let left: Facts = group.facts.iter().copied().filter(|&fact| fact != Fact::Peer(*id)).collect();
                        group.facts = sets.share(&left);
                        changed.extend(&group.addresses);
                    }
                }
            });
        }
        for (_, name) in names {
            self.names.remove(name);
        }
        if !names.is_empty() {
            let is_dropped = |port: &NamedPort| names.iter().any(|(_, name)| *name == port.name);
            self.evaluate_again(is_dropped, changed);
        }
    }

    fn in_scope(&mut self, scope: &PeerScope, mut change: impl FnMut(&mut Namespace, &mut [Group], &mut FactSets)) {
        match scope {
            PeerScope::Namespace(name) => {
                if let Some(namespace) = self.namespaces.get_mut(name) {
                    change(namespace, &mut self.groups, &mut self.sets);
                }
            }
            PeerScope::Matching(labels) => {
                for namespace in self.namespaces.values_mut().filter(|namespace| labels.matches(&namespace.labels)) {
                    change(namespace, &mut self.groups, &mut self.sets);
                }
            }
        }
    }

    fn evaluate_again(&mut self, concerns: impl Fn(&NamedPort) -> bool, changed: &mut FxHashSet<IpAddr>) {
        let Self { names, namespaces, groups, sets, .. } = self;
        for group in groups.iter_mut().filter(|group| group.ports.iter().any(&concerns) && !group.addresses.is_empty())
        {
            let peers = &namespaces[&group.namespace].peers;
            group.facts = sets.share(&evaluate(peers, names, &group.labels, &group.ports));
            changed.extend(&group.addresses);
        }
    }

    /// Looks at the labels of a namespace again; addresses of which something else is said now go into `changed`.
    pub(super) fn refresh_namespace(&mut self, state: &ClusterState, name: &Arc<str>, changed: &mut FxHashSet<IpAddr>) {
        let Self { own, matching, names, namespaces, groups, sets, .. } = self;
        let Some(Namespace { groups: of_namespace, .. }) = namespaces.remove(name) else { return };
        let namespace = entry(own, matching, namespaces, state, name);
        for &group in of_namespace.values().flatten() {
            let group = &mut groups[group];
            let facts = sets.share(&evaluate(&namespace.peers, names, &group.labels, &group.ports));
            if facts != group.facts {
                group.facts = facts;
                changed.extend(&group.addresses);
            }
        }
        namespace.groups = of_namespace;
        if namespace.groups.is_empty() {
            namespaces.remove(name);
        }
    }
}

/// A namespace with the peers that reach it; made if it is not known yet.
fn entry<'a>(
    own: &FxHashMap<Arc<str>, Vec<PodsPeer>>,
    matching: &FxHashMap<Selector, Vec<PodsPeer>>,
    namespaces: &'a mut FxHashMap<Arc<str>, Namespace>,
    state: &ClusterState,
    name: &Arc<str>,
) -> &'a mut Namespace {
    if !namespaces.contains_key(name) {
        let labels = state.namespace_labels(name);
        let matching = matching.iter().filter(|(selector, _)| selector.matches(&labels)).flat_map(|(_, peers)| peers);
        let mut peers: Vec<_> = own.get(name).into_iter().flatten().chain(matching).cloned().collect();
        peers.sort_unstable_by_key(|&(id, _)| id);
        namespaces.insert(name.clone(), Namespace { labels, peers, groups: FxHashMap::default() });
    }
    namespaces.get_mut(name).expect("it was just put there")
}

fn forget<K: std::hash::Hash + Eq>(peers: &mut FxHashMap<K, Vec<PodsPeer>>, key: &K, id: PeerId) {
    let of_key = peers.get_mut(key).expect("a peer in use is listed");
    of_key.retain(|&(other, _)| other != id);
    if of_key.is_empty() {
        peers.remove(key);
    }
}

fn hash(labels: &Labels, ports: &[NamedPort]) -> u64 {
    FxBuildHasher.hash_one((labels, ports))
}
