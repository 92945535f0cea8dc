//! Numbers for peers and port names: equal content, equal number, as long as rulesets use it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::plan::{PeerId, PortNameId};
use super::ruleset::Ruleset;
use crate::model::{ClusterPeer, IpBlock, Namespaces, Peer, Selector};

/// What a peer says, freed from the policy it stands in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum PeerContent {
    /// Pods with these labels.
    Pods(PeerScope, Selector),
    /// Addresses.
    Block(IpBlock),
    /// Addresses of nodes with these labels.
    Nodes(Selector),
}

/// The namespaces a pod peer reaches.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum PeerScope {
    /// One, by name: that of the policy.
    Namespace(Arc<str>),
    /// Those with these labels.
    Matching(Selector),
}

impl PeerContent {
    /// Takes a peer of a ClusterNetworkPolicy: one content for each network in it.
    pub(super) fn of_cluster_peer(peer: &ClusterPeer) -> impl Iterator<Item = Self> {
        let (one, networks) = match peer {
            ClusterPeer::Pods(set) => {
                (Some(Self::Pods(PeerScope::Matching(set.namespaces.clone()), set.pods.clone())), &[][..])
            }
            ClusterPeer::Nodes(selector) => (Some(Self::Nodes(selector.clone())), &[][..]),
            ClusterPeer::Networks(networks) => (None, &**networks),
        };
        one.into_iter().chain(networks.iter().map(|&network| Self::Block(IpBlock::new(network, []))))
    }

    /// Takes a peer of a policy in a namespace; `None`: it is broken and matches nothing.
    pub(super) fn of(peer: &Peer, namespace: &Arc<str>) -> Option<Self> {
        match peer {
            Peer::Broken(_) => None,
            Peer::Block(block) => Some(Self::Block(block.clone())),
            Peer::Pods(peer) => {
                let scope = match &peer.namespaces {
                    Namespaces::Own => PeerScope::Namespace(namespace.clone()),
                    Namespaces::Matching(selector) => PeerScope::Matching(selector.clone()),
                };
                Some(Self::Pods(scope, peer.pods.clone()))
            }
        }
    }
}

/// Numbers of peers and port names, as long as some ruleset uses them.
#[derive(Default, Debug)]
pub(super) struct Interner {
    peers: Numbered<PeerContent>,
    names: Numbered<str>,
}

impl Interner {
    pub(super) fn peer(&mut self, content: PeerContent) -> PeerId {
        PeerId(match self.peers.known(&content) {
            Some(number) => number,
            None => self.peers.add(Arc::new(content)),
        })
    }

    /// What a peer says, if a ruleset mentions it.
    pub(super) fn content(&self, peer: PeerId) -> Option<&PeerContent> {
        self.peers.entries.get(&peer.0).map(|entry| &*entry.content)
    }

    pub(super) fn name(&mut self, name: &Arc<str>) -> PortNameId {
        PortNameId(match self.names.known(name) {
            Some(number) => number,
            None => self.names.add(Arc::clone(name)),
        })
    }

    /// Notes that one more ruleset is in use.
    pub(super) fn hold(&mut self, ruleset: &Ruleset) {
        let (peers, names) = mentioned(ruleset);
        peers.into_iter().for_each(|peer| self.peers.hold(peer.0));
        names.into_iter().for_each(|name| self.names.hold(name.0));
    }

    /// Notes that a ruleset is in use no more.
    pub(super) fn release(&mut self, ruleset: &Ruleset) {
        let (peers, names) = mentioned(ruleset);
        peers.into_iter().for_each(|peer| self.peers.release(peer.0));
        names.into_iter().for_each(|name| self.names.release(name.0));
    }

    /// Notes that no ruleset is in use; numbers stay until [`Self::settle`].
    pub(super) fn release_everything(&mut self) {
        self.peers.release_everything();
        self.names.release_everything();
    }

    /// Forgets what is in use no more; says what has come into use and what has gone out of it since the last call.
    pub(super) fn settle(&mut self) -> [Turnover; 2] {
        let peers = self.peers.settle();
        let names = self.names.settle();
        let mut turnover = [Turnover::default(), Turnover::default()];
        for (at, (peers, names)) in peers.into_iter().zip(names).enumerate() {
            turnover[at].peers = peers.into_iter().map(|(number, content)| (PeerId(number), content)).collect();
            turnover[at].names = names.into_iter().map(|(number, name)| (PortNameId(number), name)).collect();
        }
        turnover
    }
}

/// What has come into use, or gone out of it.
#[derive(Default, Debug)]
pub(super) struct Turnover {
    /// Peers, ascending.
    pub(super) peers: Vec<(PeerId, Arc<PeerContent>)>,
    /// Port names, ascending.
    pub(super) names: Vec<(PortNameId, Arc<str>)>,
}

fn mentioned(ruleset: &Ruleset) -> (BTreeSet<PeerId>, BTreeSet<PortNameId>) {
    (ruleset.peers().collect(), ruleset.names().collect())
}

/// Numbers for things that are equal or not. A number that was given never comes to mean anything else.
#[derive(Debug)]
struct Numbered<T: ?Sized + Hash + Eq> {
    numbers: FxHashMap<Arc<T>, u32>,
    entries: FxHashMap<u32, Entry<T>>,
    next: u32,
    /// Numbers given, held or released since the last [`Self::settle`]: were they in use then?
    touched: BTreeMap<u32, bool>,
}

#[derive(Debug)]
struct Entry<T: ?Sized> {
    content: Arc<T>,
    uses: u32,
}

/// Numbers with what they mean.
type Meanings<T> = Vec<(u32, Arc<T>)>;

impl<T: ?Sized + Hash + Eq> Default for Numbered<T> {
    fn default() -> Self {
        Self { numbers: FxHashMap::default(), entries: FxHashMap::default(), next: 0, touched: BTreeMap::new() }
    }
}

impl<T: ?Sized + Hash + Eq> Numbered<T> {
    fn known(&self, content: &T) -> Option<u32> {
        self.numbers.get(content).copied()
    }

    fn add(&mut self, content: Arc<T>) -> u32 {
        let number = self.next;
        self.next = number.checked_add(1).expect("fewer than 4 billion peers and names in the process's life");
        self.numbers.insert(Arc::clone(&content), number);
        self.entries.insert(number, Entry { content, uses: 0 });
        self.touched.insert(number, false);
        number
    }

    fn entry(&mut self, number: u32) -> &mut Entry<T> {
        let entry = self.entries.get_mut(&number).expect("a number in a ruleset is known");
        self.touched.entry(number).or_insert(entry.uses > 0);
        entry
    }

    fn hold(&mut self, number: u32) {
        self.entry(number).uses += 1;
    }

    fn release(&mut self, number: u32) {
        self.entry(number).uses -= 1;
    }

    fn release_everything(&mut self) {
        for (&number, entry) in &mut self.entries {
            entry.uses = 0;
            self.touched.insert(number, false);
        }
    }

    fn settle(&mut self) -> [Meanings<T>; 2] {
        let mut turnover = [Vec::new(), Vec::new()];
        for (number, was_used) in std::mem::take(&mut self.touched) {
            let entry = &self.entries[&number];
            match (was_used, entry.uses > 0) {
                (false, true) => turnover[0].push((number, Arc::clone(&entry.content))),
                (true, true) => {}
                (was_used, false) => {
                    let entry = self.entries.remove(&number).expect("it was just there");
                    self.numbers.remove(&entry.content);
                    if was_used {
                        turnover[1].push((number, entry.content));
                    }
                }
            }
        }
        turnover
    }
}
