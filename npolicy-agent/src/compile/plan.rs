//! What `compile` hands to `datapath`: one node's whole enforcement, without numbers of the kernel's tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use npolicy_common::{Direction, Family, FlowProtocol};
use rustc_hash::FxHashMap;

use super::ruleset::Ruleset;
use crate::model::{PodKey, PortProtocol};

/// A peer that some policy in force here names (a pair of selectors with its scope, or an `ipBlock`). Equal content, equal
/// id, as long as some ruleset of a [`super::Compiler`] mentions it; an id never comes to mean anything else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// A port name that some policy in force here looks up on its peers; numbered as peers are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PortNameId(pub u32);

/// One thing that policies in force here can tell about a peer address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Fact {
    /// The address matches this peer.
    Peer(PeerId),
    /// The pod at the address has a container port of this name, with this protocol and number.
    Named(PortNameId, FlowProtocol, u16),
}

/// All that the policies in force here can tell apart about a peer address. The default is class 0: no facts, no Service.
/// Equal keys mean equal verdicts in every ruleset of the same compilation.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct ClassKey {
    /// Facts about the address itself, ascending, each once. A Service's cluster address has none: no policy names it.
    pub facts: Arc<[Fact]>,
    /// Ports that lead to a Service's backends, ascending by protocol and port; empty for an address that is no Service's.
    /// They speak for pods that connect to the address, not for packets that come from it.
    pub frontends: Arc<[ServiceFacts]>,
}

impl ClassKey {
    /// The key of an address that is no Service's.
    pub fn of(facts: impl Into<Arc<[Fact]>>) -> Self {
        Self { facts: facts.into(), frontends: Arc::default() }
    }

    /// Whether the address is, on some port, a Service's.
    pub fn is_service(&self) -> bool {
        !self.frontends.is_empty()
    }
}

/// A Service's port at a virtual address, as far as policies in force here can tell its backends apart.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ServiceFacts {
    /// Protocol.
    pub protocol: PortProtocol,
    /// Port at the virtual address.
    pub port: u16,
    /// Where it leads, as far as this node uses it; ascending, each once. Without any, no policy but one without peers can
    /// accept it.
    pub backends: Vec<BackendFacts>,
}

/// What a backend is to a ruleset.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct BackendFacts {
    /// Facts about the backend's address, ascending, each once.
    pub facts: Arc<[Fact]>,
    /// Its port.
    pub port: u16,
    /// Its address, if it is a pod of this node: that pod may be the one that connects.
    pub local: Option<IpAddr>,
}

/// Index into [`Plan::classes`]; the default is that of the empty key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct ClassIndex(pub u32);

/// A local pod and what governs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// The pod's addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// What may enter.
    pub ingress: Arc<Ruleset>,
    /// What may leave.
    pub egress: Arc<Ruleset>,
}

impl Subject {
    /// The ruleset of one direction.
    pub fn ruleset(&self, direction: Direction) -> &Arc<Ruleset> {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The address of one family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| match family {
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        })
    }
}

/// One node's whole enforcement.
#[derive(Clone, Default, Debug)]
pub struct Plan {
    /// Class keys; the first is the empty one. Those that something leads to are distinct.
    pub classes: Vec<ClassKey>,
    /// Addresses whose class differs from what [`Plan::prefixes`] says of them.
    pub exact: FxHashMap<IpAddr, ClassIndex>,
    /// Blocks that policies in force here name, excepts among them, without host bits and each once: the class of an
    /// address not in [`Plan::exact`] is that of the longest block that contains it, else class 0.
    pub prefixes: Vec<(IpNet, ClassIndex)>,
    /// This node's own addresses, without those that are cluster addresses: a Service's is never a node's, also where
    /// kube-proxy puts it on an interface.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The pods of this node.
    pub subjects: BTreeMap<PodKey, Subject>,
}

impl Plan {
    /// The class of an address: its own, else that of the longest block that contains it, else class 0.
    pub fn class_of(&self, address: IpAddr) -> &ClassKey {
        let index = self.exact.get(&address).copied().unwrap_or_else(|| self.block_class_of(address));
        &self.classes[index.0 as usize]
    }

    /// The class of the longest block that contains an address, else class 0.
    pub fn block_class_of(&self, address: IpAddr) -> ClassIndex {
        let around = self.prefixes.iter().filter(|(block, _)| block.contains(&address));
        around.max_by_key(|(block, _)| block.prefix_len()).map_or(ClassIndex(0), |&(_, class)| class)
    }
}
