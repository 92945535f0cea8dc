//! What an answer says.

use std::net::IpAddr;
use std::sync::Arc;

use npolicy_common::{Direction, Family, Verdict};

use super::question::Protocol;
use crate::compile::explain::Explanation;
use crate::model::{Backend, PodKey, ServiceKey};

/// The answer to a question.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Accept only if each end that policy can apply to accepts; for a Service, at every backend.
    pub verdict: Verdict,
    /// The family that was judged.
    pub family: Family,
    /// Whether both ends are the same pod, addressed directly: policy cannot apply to that.
    pub is_self: bool,
    /// The source's egress, then the destination's ingress, as far as they are pods that policy can apply to. Empty where
    /// a Service has backends, which have their own; where it has none, the egress to the Service's own port.
    pub judgements: Vec<Judgement>,
    /// The Service, if the destination is one's.
    pub service: Option<ServiceAnswer>,
}

/// A verdict without reasons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Brief {
    /// As in [`Answer::verdict`].
    pub verdict: Verdict,
    /// Whether the destination is a Service some of whose backends accept and some do not.
    pub is_mixed: bool,
}

/// What is known of a Service that was asked for.
#[derive(Clone, Debug)]
pub struct ServiceAnswer {
    /// Whose the address is.
    pub service: ServiceKey,
    /// The address that was judged.
    pub address: IpAddr,
    /// What was asked of it: its own port, not a backend's.
    pub asked: Protocol,
    /// Whether the Service has that port there.
    pub has_port: bool,
    /// The backends that the client may be sent to, ascending by address and port.
    pub backends: Vec<BackendAnswer>,
}

impl ServiceAnswer {
    /// How many backends accept.
    pub fn accepting(&self) -> usize {
        self.backends.iter().filter(|backend| backend.verdict == Verdict::Accept).count()
    }

    /// Whether some backends accept and some do not: policy denies them all, since nobody knows which one is chosen.
    pub fn is_mixed(&self) -> bool {
        (1..self.backends.len()).contains(&self.accepting())
    }
}

/// One backend of a Service.
#[derive(Clone, Debug)]
pub struct BackendAnswer {
    /// Its address and port.
    pub backend: Backend,
    /// The pod at the address, if it is one's.
    pub pod: Option<PodKey>,
    /// The node at the address, if it is one's.
    pub node: Option<Arc<str>>,
    /// Accept only if each end accepts.
    pub verdict: Verdict,
    /// The source's egress, then the backend's ingress, as far as they are pods that policy can apply to. Where what
    /// kube-proxy does with the source's address changes the outcome, the ingress once for each way.
    pub judgements: Vec<Judgement>,
}

/// What one end says.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// Which way, from the subject's point of view.
    pub direction: Direction,
    /// Whose ruleset it is.
    pub subject: PodKey,
    /// What the other end's address is.
    pub seen: Seen,
    /// What the ruleset says.
    pub verdict: Verdict,
    /// Why.
    pub explanation: Explanation,
}

/// What a destination sees of a client's address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The client's own address.
    Own,
    /// An address of a node, behind which kube-proxy hides the client; `None`: one that is not known.
    Hidden(Option<(Arc<str>, IpAddr)>),
}
