//! What can be asked.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use npolicy_common::{Family, FlowProtocol};

use crate::model::{PodKey, PortProtocol, ServiceKey};

/// One end of a question.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// A pod's address, whoever has it now; a pod on its node's network stands for its node.
    Pod(PodKey),
    /// A process on a node: packets that the node makes itself.
    Node(Arc<str>),
    /// An address on the wire: a pod's is that pod; a node's is traffic that a node forwards, not its own. As a
    /// destination it is a Service's on the ports that the Service has there.
    Address(IpAddr),
    /// A Service's first cluster address; a destination only, and the port is the Service's.
    Service(ServiceKey),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Address(address) => write!(f, "ip:{address}"),
            Self::Service(key) => write!(f, "svc:{key}"),
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// TCP to a port.
    Tcp(u16),
    /// UDP to a port.
    Udp(u16),
    /// SCTP to a port.
    Sctp(u16),
    /// ICMP of the family in use, an echo request say; stands for every protocol without ports.
    Icmp,
}

impl Protocol {
    /// The protocol as rulesets number it, and the port: 0 where there is none.
    pub const fn flow(self) -> (FlowProtocol, u16) {
        match self {
            Self::Tcp(port) => (FlowProtocol::Tcp, port),
            Self::Udp(port) => (FlowProtocol::Udp, port),
            Self::Sctp(port) => (FlowProtocol::Sctp, port),
            Self::Icmp => (FlowProtocol::Other, 0),
        }
    }

    /// The protocol as policies and Services name it, and the port; `None` for one without ports.
    pub const fn port(self) -> Option<(PortProtocol, u16)> {
        match self {
            Self::Tcp(port) => Some((PortProtocol::Tcp, port)),
            Self::Udp(port) => Some((PortProtocol::Udp, port)),
            Self::Sctp(port) => Some((PortProtocol::Sctp, port)),
            Self::Icmp => None,
        }
    }
}

/// `8080/TCP`, or `ICMP`
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port() {
            Some((protocol, port)) => write!(f, "{port}/{protocol}"),
            None => f.write_str("ICMP"),
        }
    }
}

/// May `from` open a connection to `to`?
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Question {
    /// Who opens it.
    pub from: End,
    /// Who is asked for it.
    pub to: End,
    /// What is sent.
    pub protocol: Protocol,
    /// Over which family; `None`: the first of `from` that both ends have.
    pub family: Option<Family>,
}

/// Why a question has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unanswerable {
    /// No such pod.
    #[error("there is no pod {0}")]
    NoPod(PodKey),
    /// No such node.
    #[error("there is no node {0}")]
    NoNode(Arc<str>),
    /// No such Service.
    #[error("there is no Service {0}")]
    NoService(ServiceKey),
    /// A connection cannot come from a Service.
    #[error("svc:{0} can only be a destination: ask from its pods")]
    ServiceAsSource(ServiceKey),
    /// The Service has no address of its own: it is headless or an `ExternalName`, or no cluster gave it one.
    #[error(
        "Service {service} has no cluster address (it is headless, an ExternalName, or was given none): ask about {}",
        ask_instead(backends)
    )]
    NoClusterAddress {
        /// The Service.
        service: ServiceKey,
        /// Where its slices lead, as far as pods of the cluster go; ascending.
        backends: Vec<PodKey>,
    },
    /// Its containers have ended; its address may be another's.
    #[error("pod {0} has finished, it sends and receives nothing")]
    Finished(PodKey),
    /// The cluster has not given it an address yet.
    #[error("pod {0} has no address yet")]
    NotReady(PodKey),
    /// It has addresses, but not of the family asked for.
    #[error("{end} has no {} address", family_name(*family))]
    NoAddress {
        /// The end.
        end: End,
        /// The family asked for.
        family: Family,
    },
    /// The ends cannot talk to each other.
    #[error("{0} and {1} have no address family in common")]
    NoCommonFamily(End, End),
    /// The answer depends on an address that nobody knows: whether it is in a block of some policy, say.
    #[error("{0} has no address, and the answer depends on it: give it one in its status")]
    AddressDecides(End),
}

const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// How many pods a message names.
const MOST_NAMES: usize = 10;

fn ask_instead(backends: &[PodKey]) -> String {
    let names: Vec<_> = backends.iter().take(MOST_NAMES).map(ToString::to_string).collect();
    match backends.len() {
        0 => "the pods or addresses that its name resolves to".to_owned(),
        1..=MOST_NAMES => format!("its pods ({})", names.join(", ")),
        _ => format!("its pods ({}, ...)", names.join(", ")),
    }
}
