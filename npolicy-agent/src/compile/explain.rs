//! Why a verdict is what it is, told from the policies as they were written.
//!
//! In: the cluster and one new connection as one of its ends sees it. Out: the tier and the rule that decide, or the
//! change that would be needed. The verdict itself is the ruleset's; both agree.

use std::fmt;
use std::net::IpAddr;

use npolicy_common::{Direction, Family, FlowProtocol, Verdict};

use crate::model::{ClusterState, NetworkPolicy, Owner, Pod, PolicyKey, Rule, Tier, family};

mod miss;
mod ports;
mod service;
mod tier;

pub use self::service::{BackendExplanation, ServiceExplanation, explain_service};
pub use self::tier::{Matched, TierRule};

/// The other end, as far as an explanation is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    /// Who it is; a Service for its cluster address, and for any of its addresses on a port that leads nowhere.
    pub owner: Owner<'a>,
    /// Its address; `None` for one that no cluster has given an address.
    pub address: Option<IpAddr>,
    /// The family in use.
    pub family: Family,
    /// Whether the subject's own node made the packet: policy exempts it on ingress.
    pub is_own_node: bool,
    /// Whether it is the subject itself, by way of a Service.
    pub is_self: bool,
}

impl<'a> Remote<'a> {
    /// Whoever has this address, seen on the wire: a packet that the subject's own node made is never refused.
    pub fn at(state: &'a ClusterState, address: IpAddr) -> Self {
        let owner = state.owner(address);
        Self { owner, address: Some(address), family: family(address), is_own_node: false, is_self: false }
    }
}

/// Names the end for people: `dev/frontend`, `node n2`, `203.0.113.7`.
impl fmt::Display for Remote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.owner, self.address) {
            (Owner::Pod(pod), _) => write!(f, "{}", pod.key),
            (Owner::Service(service), _) => write!(f, "service {}", service.key),
            (Owner::Node(node), _) => write!(f, "node {}", node.name),
            (Owner::Outside, Some(address)) => write!(f, "{address}"),
            (Owner::Outside, None) => f.write_str("an unknown address"),
        }
    }
}

/// Why one direction of one pod accepts or denies a new connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// Every NetworkPolicy that isolates the pod in this direction, ascending; also where another tier decides.
    pub isolated_by: Vec<PolicyKey>,
    /// The rules that passed it on to the next tier: at most one a tier, in the order in which they were asked.
    pub passed_by: Vec<TierRule>,
    /// What decided.
    pub decision: Decision,
}

/// What decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// No policy governs the direction.
    NotGoverned,
    /// Policies govern the direction, and none of their rules decides: accepted.
    NotDecided,
    /// The pod's own node made the packet: accepted.
    OwnNode,
    /// The pod reaches itself, from which no NetworkPolicy keeps it: accepted.
    Itself,
    /// A rule of a NetworkPolicy accepts it.
    Accepted(Accepted),
    /// A rule of the Admin or the Baseline tier accepts it.
    TierAccepted(TierRule),
    /// No rule of the NetworkPolicies that isolate accepts it; this one came nearest.
    Denied(Miss),
    /// A rule of the Admin or the Baseline tier denies it.
    TierDenied(TierRule),
}

impl Decision {
    /// What was decided.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::NotGoverned | Self::NotDecided | Self::OwnNode | Self::Itself => Verdict::Accept,
            Self::Accepted(_) | Self::TierAccepted(_) => Verdict::Accept,
            Self::Denied(_) | Self::TierDenied(_) => Verdict::Deny,
        }
    }
}

/// The rule that accepts: the first in the order of policy names and written rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Policy.
    pub policy: PolicyKey,
    /// Direction.
    pub direction: Direction,
    /// Which rule of the policy, from 0.
    pub rule: usize,
    /// Which peer of the rule, from 0; `None`: the rule names none.
    pub peer: Option<usize>,
}

/// `shop/db ingress[0].from[1]`
impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, direction, rule, peer } = self;
        let (rules, peers) = fields(*direction);
        write!(f, "{policy} {rules}[{rule}]")?;
        peer.map_or(Ok(()), |peer| write!(f, ".{peers}[{peer}]"))
    }
}

/// The rule that came nearest, and what it would have taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Miss {
    /// The policy.
    pub policy: PolicyKey,
    /// The place in the policy and the change, for people.
    pub text: String,
    /// Whether the rule's ports are what is missed, or part of it.
    pub misses_ports: bool,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.policy, self.text)
    }
}

/// Explains one direction of a subject for a new connection. The port is ignored for protocols without.
///
/// 1. The pod's own node, on ingress: no rule is about it.
/// 2. The first Admin rule that matches, unless it passes.
/// 3. Where NetworkPolicies isolate the pod: whether one of their rules accepts; a pod is never kept from itself.
/// 4. Else the first Baseline rule that matches, unless it passes.
/// 5. Else accepted.
///
/// Cost: evaluates the selectors of the namespace's policies and of every ClusterNetworkPolicy for the subject, and the
/// peers of those that select it.
pub fn explain(
    state: &ClusterState,
    subject: &Pod,
    direction: Direction,
    remote: &Remote<'_>,
    protocol: FlowProtocol,
    port: u16,
) -> Explanation {
    let question = Question { state, subject, direction, remote, protocol, port };
    let isolating: Vec<_> =
        state.policies_of(subject).filter_map(|policy| Some((&**policy, policy.rules(direction)?))).collect();
    let mut passed_by = Vec::new();
    let decision = question.decide(&isolating, &mut passed_by);
    Explanation { isolated_by: isolating.iter().map(|(policy, _)| policy.key.clone()).collect(), passed_by, decision }
}

struct Question<'a> {
    state: &'a ClusterState,
    subject: &'a Pod,
    direction: Direction,
    remote: &'a Remote<'a>,
    protocol: FlowProtocol,
    port: u16,
}

impl Question<'_> {
    fn decide(&self, isolating: &[(&NetworkPolicy, &[Rule])], passed_by: &mut Vec<TierRule>) -> Decision {
        let [admin, baseline] = [Tier::Admin, Tier::Baseline].map(|tier| self.rules_of(tier));
        if isolating.is_empty() && admin.is_empty() && baseline.is_empty() {
            return Decision::NotGoverned;
        }
        if self.direction == Direction::Ingress && self.remote.is_own_node {
            return Decision::OwnNode;
        }
        if let Some(decision) = self.decide_in_order(&admin, passed_by) {
            return decision;
        }
        if !isolating.is_empty() {
            if self.remote.is_self {
                return Decision::Itself;
            }
            let mut accepted = isolating.iter().filter_map(|&(policy, rules)| self.accepted(policy, rules));
            return accepted.next().map_or_else(|| Decision::Denied(self.nearest_miss(isolating)), Decision::Accepted);
        }
        self.decide_in_order(&baseline, passed_by).unwrap_or(Decision::NotDecided)
    }
}

const fn fields(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    }
}

#[cfg(test)]
mod tests;
