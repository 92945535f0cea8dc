//! NetworkPolicy as plain values: what is valid, and what is broken in a way that the answers can still name.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use npolicy_common::{Direction, Family, FlowProtocol};

use super::cluster::family;
use super::labels::Selector;

/// A NetworkPolicy's namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PolicyKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A NetworkPolicy whose subjects are known. One whose subject selector is broken never becomes a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub key: PolicyKey,
    /// The pods of the policy's namespace that it applies to.
    pub subject: Selector,
    /// What it accepts into its subjects; `None`: it does not isolate them on ingress (`policyTypes`).
    pub ingress: Option<Vec<Rule>>,
    /// What it accepts out of its subjects; `None`: it does not isolate them on egress (`policyTypes`).
    pub egress: Option<Vec<Rule>>,
}

impl NetworkPolicy {
    /// The rules of a direction as written, or `None` if the policy does not isolate its subjects in it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// One item of `ingress` or `egress`, at its written place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Accepts where a peer and a port entry match.
    Accept {
        /// `from` or `to`.
        peers: Peers,
        /// `ports`.
        ports: Ports,
    },
    /// Matches nothing, for this reason.
    Broken(Arc<str>),
}

/// The peers of a rule. A list that is absent or empty means any address, not none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peers {
    /// Any address whatsoever.
    Any,
    /// What one of these matches, in written order.
    Of(Vec<Peer>),
}

/// One peer of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Pods, by labels.
    Pods(PodPeer),
    /// Addresses, by block.
    Block(IpBlock),
    /// Matches nothing, for this reason.
    Broken(Arc<str>),
}

/// Pods that match a selector, in namespaces that match a scope.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PodPeer {
    /// Where they live.
    pub namespaces: Namespaces,
    /// What their labels are; everything where only a `namespaceSelector` is given.
    pub pods: Selector,
}

/// The namespaces of a pod peer.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Namespaces {
    /// The policy's own: no `namespaceSelector` is given.
    Own,
    /// Those whose labels match.
    Matching(Selector),
}

/// `ipBlock`: the addresses in a block and in none of its excepts. All are without host bits and of one family.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct IpBlock {
    /// `cidr`.
    pub block: IpNet,
    /// `except`, as far as it is of the block's family; ascending, each once.
    pub excepts: Vec<IpNet>,
}

impl IpBlock {
    /// Masks host bits and puts the excepts in order. One of the other family takes nothing away and is left out.
    pub fn new(block: IpNet, excepts: impl IntoIterator<Item = IpNet>) -> Self {
        let block = block.trunc();
        let same_family = |except: &IpNet| family(except.addr()) == family(block.addr());
        let mut excepts: Vec<_> = excepts.into_iter().map(|except| except.trunc()).filter(same_family).collect();
        excepts.sort();
        excepts.dedup();
        Self { block, excepts }
    }

    /// Whether it holds every address of a family.
    pub fn is_whole_family(&self, family: Family) -> bool {
        self.family() == family && self.block.prefix_len() == 0 && self.excepts.is_empty()
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        family(self.block.addr())
    }

    /// Whether an address is in the block and in none of its excepts.
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        self.block.contains(&address) && !self.excepts.iter().any(|except| except.contains(&address))
    }
}

/// The port entries of a rule. A list that is absent or empty means every protocol and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ports {
    /// Every protocol, those without ports among them, and every port.
    Any,
    /// What one of these matches, in written order.
    Of(Vec<PortEntry>),
}

/// One entry of `ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortEntry {
    /// Every port of a protocol.
    All(PortProtocol),
    /// The ports from `first` to `last`, both included; `first` is not above `last`.
    Range {
        /// Protocol.
        protocol: PortProtocol,
        /// `port`.
        first: u16,
        /// `endPort`, or `port` again.
        last: u16,
    },
    /// The number that the destination pod gives to a name.
    Named {
        /// Protocol: a container port of the same name and another protocol does not match.
        protocol: PortProtocol,
        /// A valid container port name.
        name: Arc<str>,
    },
    /// The numbers that the destination pod gives to a name, each in the protocol that it has there
    /// (`destinationNamedPort` of a ClusterNetworkPolicy).
    NamedAny {
        /// Any text: the API does not check it.
        name: Arc<str>,
    },
    /// Matches nothing, for this reason.
    Broken(Arc<str>),
}

impl fmt::Display for PortEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(protocol) => write!(f, "every port of {protocol}"),
            Self::Range { protocol, first, last } if first == last => write!(f, "{first}/{protocol}"),
            Self::Range { protocol, first, last } => write!(f, "{first}-{last}/{protocol}"),
            Self::Named { protocol, name } => write!(f, "{name}/{protocol}"),
            Self::NamedAny { name } => write!(f, "{name}"),
            Self::Broken(reason) => write!(f, "nothing ({reason})"),
        }
    }
}

/// A protocol that has ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl PortProtocol {
    /// Every one, with its name in the API.
    pub const NAMES: [(&str, Self); 3] = [("TCP", Self::Tcp), ("UDP", Self::Udp), ("SCTP", Self::Sctp)];

    /// Reads the API's name, which is upper case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, protocol)| protocol)
    }

    /// The protocol as rulesets number it.
    pub const fn flow(self) -> FlowProtocol {
        match self {
            Self::Tcp => FlowProtocol::Tcp,
            Self::Udp => FlowProtocol::Udp,
            Self::Sctp => FlowProtocol::Sctp,
        }
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}
