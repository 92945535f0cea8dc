//! The objects that policies are about: pods, namespaces and nodes.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use npolicy_common::Family;

use super::labels::Labels;
use super::policy::PortProtocol;

/// A pod's namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PodKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod, as far as policy can tell pods apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.nodeName`; `None`: not scheduled, or written for no node.
    pub node: Option<Arc<str>>,
    /// Whether the pod lives in its node's network namespace: node traffic, never a subject or a selector's peer.
    pub network: PodNetwork,
    /// Named ports of `containers` and restartable `initContainers`, in written order.
    pub ports: Vec<NamedPort>,
    /// `status.podIPs`, in the API's order: at most one a family.
    pub addresses: Vec<IpAddr>,
    /// `status.phase`.
    pub phase: Phase,
    /// Which of two pods that claim one address has the newer sandbox.
    pub age: Age,
    /// When its sandbox was last seen to come up: the condition `PodReadyToStartContainers` turned true, or, where that is
    /// missing, the newest of its running containers started. An address that is older than the node's boot may be
    /// another pod's by now.
    pub sandbox: Option<Timestamp>,
}

impl Pod {
    /// Whether policy can apply to the pod: it has a network namespace of its own and containers that may still run.
    pub fn is_enforceable(&self) -> bool {
        self.network == PodNetwork::Own && !self.phase.is_finished()
    }

    /// Whether no cluster has run the pod yet and its author gave it no address.
    pub fn is_planned(&self) -> bool {
        self.phase == Phase::Planned && self.addresses.is_empty()
    }

    /// The numbers it gives to a port name in a protocol; a name may occur in several containers, and each counts.
    pub fn numbers_of<'a>(&'a self, name: &'a str, protocol: PortProtocol) -> impl Iterator<Item = u16> + 'a {
        self.ports.iter().filter(move |port| &*port.name == name && port.protocol == protocol).map(|port| port.number)
    }
}

/// Whose network namespace a pod lives in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PodNetwork {
    /// Its own.
    Own,
    /// Its node's (`spec.hostNetwork`).
    Host,
}

/// A container port that has a name.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct NamedPort {
    /// `name`.
    pub name: Arc<str>,
    /// `protocol`, TCP if absent.
    pub protocol: PortProtocol,
    /// `containerPort`.
    pub number: u16,
}

/// How far a pod has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// No cluster has seen it: a manifest as its author wrote it.
    Planned,
    /// Accepted by the cluster, containers not all running.
    Pending,
    /// Running.
    Running,
    /// Every container ended well. Its address may already be another's.
    Succeeded,
    /// Every container ended, one badly. Its address may already be another's.
    Failed,
    /// The node does not say.
    Unknown,
}

impl Phase {
    /// Whether the pod's containers have ended for good.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Orders pods by how new their sandboxes are: `status.startTime`, then `metadata.creationTimestamp`, then the greater
/// uid. A pod without a time is older than any with one.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct Age {
    /// `status.startTime`.
    pub started: Option<Timestamp>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels, the automatic name label among them.
    pub labels: Labels,
}

impl Namespace {
    /// Puts the automatic name label on a namespace, whatever its labels say.
    pub fn new(name: Arc<str>, labels: &Labels) -> Self {
        let labels = labels.with(super::labels::NAMESPACE_NAME_LABEL, &name);
        Self { name, labels }
    }
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Every address in `status.addresses` that is an IP address, in written order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`: the blocks from which its pods' addresses come, where the cluster hands them out.
    pub pod_cidrs: Vec<IpNet>,
}

/// The family of an address.
pub const fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The first address of a family.
pub fn of_family(addresses: &[IpAddr], wanted: Family) -> Option<IpAddr> {
    addresses.iter().copied().find(|&address| family(address) == wanted)
}
