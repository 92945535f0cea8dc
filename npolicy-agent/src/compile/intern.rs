//! Numbers for peers and port names: equal content, equal number, for the life of the process.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::plan::{PeerId, PortNameId};
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

/// Numbers given so far. It only grows: by one entry for each distinct peer and name that ever governed a local pod.
#[derive(Default, Debug)]
pub(super) struct Interner {
    peers: FxHashMap<Arc<PeerContent>, PeerId>,
    contents: Vec<Arc<PeerContent>>,
    names: FxHashMap<Arc<str>, PortNameId>,
}

impl Interner {
    pub(super) fn peer(&mut self, content: PeerContent) -> PeerId {
        if let Some(&id) = self.peers.get(&content) {
            return id;
        }
        let id = PeerId(u32::try_from(self.contents.len()).expect("fewer than 4 billion peers"));
        let content = Arc::new(content);
        self.contents.push(content.clone());
        self.peers.insert(content, id);
        id
    }

    pub(super) fn content(&self, id: PeerId) -> &Arc<PeerContent> {
        &self.contents[id.0 as usize]
    }

    pub(super) fn name(&mut self, name: &Arc<str>) -> PortNameId {
        let next = PortNameId(u32::try_from(self.names.len()).expect("fewer than 4 billion port names"));
        *self.names.entry(name.clone()).or_insert(next)
    }

    pub(super) fn known_name(&self, name: &str) -> Option<PortNameId> {
        self.names.get(name).copied()
    }
}
