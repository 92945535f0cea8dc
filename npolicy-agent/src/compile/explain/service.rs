//! Why a pod may not send to a Service, told from its backends.

use std::net::IpAddr;

use npolicy_common::{Direction, Verdict};

use super::{Explanation, Remote, explain};
use crate::model::{Backend, ClusterState, Frontend, Owner, Pod, PodKey, ServiceKey};

/// How a pod's egress to a Service's port is judged: accepted if every backend is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceExplanation {
    /// The Service.
    pub service: ServiceKey,
    /// The backends that the pod may be sent to, ascending by address and port.
    pub backends: Vec<BackendExplanation>,
    /// Where there are none: how the Service's own port is judged, which rules without peers alone can meet.
    pub without_backends: Option<Explanation>,
}

/// How a pod's egress to one backend is judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendExplanation {
    /// Its address and port.
    pub backend: Backend,
    /// The pod at the address, if it is one's.
    pub pod: Option<PodKey>,
    /// Why it is accepted or denied.
    pub explanation: Explanation,
}

impl ServiceExplanation {
    /// How many backends are accepted.
    pub fn accepted(&self) -> usize {
        self.backends.iter().filter(|backend| backend.explanation.decision.verdict() == Verdict::Accept).count()
    }

    /// Whether some backends are accepted and some are not.
    pub fn is_mixed(&self) -> bool {
        (1..self.backends.len()).contains(&self.accepted())
    }

    /// The first denial, with its backend if there are any; `None`: accepted.
    pub fn denial(&self) -> Option<(Option<&BackendExplanation>, &Explanation)> {
        let is_denial = |explanation: &Explanation| explanation.decision.verdict() == Verdict::Deny;
        let behind = self.backends.iter().find(|backend| is_denial(&backend.explanation));
        let behind = behind.map(|backend| (Some(backend), &backend.explanation));
        behind.or_else(|| Some((None, self.without_backends.as_ref().filter(|alone| is_denial(alone))?)))
    }
}

/// Explains the egress of a pod to a Service's port at one of its addresses.
pub fn explain_service(
    state: &ClusterState,
    client: &Pod,
    address: IpAddr,
    frontend: &Frontend<'_>,
) -> ServiceExplanation {
    let protocol = frontend.protocol.flow();
    let egress = |remote: &Remote<'_>, port| explain(state, client, Direction::Egress, remote, protocol, port);
    let backends: Vec<_> = frontend
        .usable(client.node.as_deref())
        .map(|backend| {
            let remote = Remote::at(state, backend.address);
            let pod = if let Owner::Pod(pod) = remote.owner { Some(pod.key.clone()) } else { None };
            let remote = Remote { is_self: pod.as_ref() == Some(&client.key), ..remote };
            BackendExplanation { backend: backend.clone(), pod, explanation: egress(&remote, backend.port) }
        })
        .collect();
    let without_backends = backends.is_empty().then(|| {
        let owner = Owner::Service(frontend.service);
        egress(&Remote { owner, ..Remote::at(state, address) }, frontend.port)
    });
    ServiceExplanation { service: frontend.service.key.clone(), backends, without_backends }
}
