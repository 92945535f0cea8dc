//! What the operator should know about interfaces and pods.

use std::fmt;
use std::net::IpAddr;

use super::foreign::Foreign;
use crate::model::{PodKey, Severity};

/// Something about an interface or a pod that should be told.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Finding {
    /// A pod's address is on no interface that has an end on the node.
    PodWithoutInterface {
        /// The pod.
        pod: PodKey,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// A pod's interface is of a kind without an end on the node.
    NotEnforceable {
        /// The pod.
        pod: PodKey,
        /// Its interface's name in the pod.
        interface: String,
        /// `macvlan`, `ipvlan` and the like, or `device`.
        kind: String,
    },
    /// An interface that may be a pod's has had no pod for some seconds.
    InterfaceWithoutPod {
        /// Its name.
        interface: String,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// An interface is none of ours.
    Foreign {
        /// Its name.
        interface: String,
        /// Why.
        reason: Foreign,
    },
    /// Two facts about an interface contradict each other.
    Mismatch {
        /// Its name.
        interface: String,
        /// How.
        mismatch: Mismatch,
        /// Whether it keeps the interface closed. A pod can make the other kind, by what it adds to its interface.
        is_closed: bool,
    },
    /// Somebody else has a program or a filter on an interface.
    OtherEngine {
        /// Its name.
        interface: String,
        /// Who, in words.
        engine: String,
    },
}

/// How two facts about an interface contradict each other.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Mismatch {
    /// It has a pod's address, but the node sends what is for that address out of other interfaces.
    RoutedElsewhere {
        /// The address.
        address: IpAddr,
        /// The other interfaces, by name.
        to: Vec<String>,
    },
    /// Its bridge has seen its peer's link-layer address at another port.
    SeenElsewhere {
        /// The other port's name.
        port: String,
    },
    /// Its addresses belong to several pods.
    SeveralPods(Vec<PodKey>),
    /// Another interface has the pod's address, too.
    AddressTwice(IpAddr),
}

impl Finding {
    /// How bad it is: an error means that something is not enforced, or closed although it should not be.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Mismatch { is_closed: true, .. } | Self::PodWithoutInterface { .. } | Self::NotEnforceable { .. } => {
                Severity::Error
            }
            Self::Mismatch { is_closed: false, .. } => Severity::Warning,
            Self::InterfaceWithoutPod { .. } | Self::OtherEngine { .. } => Severity::Warning,
            Self::Foreign { reason: Foreign::SecondOf(_), .. } => Severity::Warning,
            Self::Foreign { .. } => Severity::Note,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodWithoutInterface { pod, addresses } => write!(
                f,
                "pod {pod}: {} is on no veth of this node: its policies are not enforced (macvlan, ipvlan and SR-IOV \
                 interfaces have no end on the node; a veth that is listed as foreign is left alone)",
                list(addresses)
            ),
            Self::NotEnforceable { pod, interface, kind } => write!(
                f,
                "pod {pod}: its interface {interface} is a {kind}, which has no end on the node: its policies are not \
                 enforced; expected a veth"
            ),
            Self::InterfaceWithoutPod { interface, addresses } if addresses.is_empty() => {
                write!(f, "interface {interface}: has no address and no pod yet")
            }
            Self::InterfaceWithoutPod { interface, addresses } => {
                write!(f, "interface {interface}: no pod of this node is known to have {}", list(addresses))
            }
            Self::Foreign { interface, reason } => write!(f, "interface {interface} is left alone: {reason}"),
            Self::Mismatch { interface, mismatch, .. } => write!(f, "interface {interface}: {mismatch}"),
            Self::OtherEngine { interface, engine } => write!(
                f,
                "interface {interface}: {engine} is on it, of another program than this agent; what it redirects is \
                 not judged"
            ),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoutedElsewhere { address, to } => {
                write!(f, "its peer has {address}, but the node's route to it leads out of {}", list(to))
            }
            Self::SeenElsewhere { port } => {
                write!(f, "its bridge has seen its peer's link-layer address at port {port}")
            }
            Self::SeveralPods(pods) => write!(f, "its addresses belong to several pods: {}", list(pods)),
            Self::AddressTwice(address) => {
                write!(f, "its peer has {address}, and so has another interface's; nobody knows which is the pod's")
            }
        }
    }
}

fn list(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
