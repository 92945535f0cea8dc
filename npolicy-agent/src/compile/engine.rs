//! Questions about the whole cluster, answered by the rulesets that nodes enforce.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use npolicy_common::{Direction, Family, FlowProtocol, Verdict};
use rustc_hash::FxHashMap;

use super::classes::{Bounds, ClassFinder, Unaddressed};
use super::compiler::{Compiler, Scope};
use super::explain::{Explanation, Remote, explain};
use super::plan::{ClassIndex, Plan};
use super::ports::Bundle;
use super::ruleset::{Peer, Ruleset};
use crate::model::{ClusterState, Owner, Pod, PodKey, PodNetwork, family, of_family};

/// One end of a question.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// A pod; one on its node's network stands for its node.
    Pod(PodKey),
    /// A process on a node.
    Node(Arc<str>),
    /// An address on the wire: a pod's is that pod; a node's is traffic that a node forwards, not its own.
    Address(IpAddr),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Address(address) => write!(f, "ip:{address}"),
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
}

/// `8080/TCP`, or `ICMP`
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "{port}/TCP"),
            Self::Udp(port) => write!(f, "{port}/UDP"),
            Self::Sctp(port) => write!(f, "{port}/SCTP"),
            Self::Icmp => f.write_str("ICMP"),
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

/// The answer to a question.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Accept only if each end that policy can apply to accepts.
    pub verdict: Verdict,
    /// The family that was judged.
    pub family: Family,
    /// Whether both ends are the same pod, addressed directly: policy cannot apply to that.
    pub is_self: bool,
    /// The source's egress, then the destination's ingress, as far as they are pods that policy can apply to.
    pub judgements: Vec<Judgement>,
}

/// What one end says.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// Which way, from the subject's point of view.
    pub direction: Direction,
    /// Whose ruleset it is.
    pub subject: PodKey,
    /// What the ruleset says.
    pub verdict: Verdict,
    /// Why.
    pub explanation: Explanation,
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
    /// Its containers have ended; its address may be another's.
    #[error("pod {0} has finished, it sends and receives nothing")]
    Finished(PodKey),
    /// The cluster has not given it an address yet.
    #[error("pod {0} has no address yet")]
    NotReady(PodKey),
    /// A newer pod has its address.
    #[error("the address {1} of pod {0} belongs to a newer pod")]
    Replaced(PodKey, IpAddr),
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
    /// The answer depends on whether an address that nobody knows is in an `ipBlock`.
    #[error("{0} has no address, and the answer depends on an ipBlock: give it one in its status")]
    AddressDecides(End),
}

const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Answers questions about any two ends of a cluster. Every pod is a subject, each on its own node.
#[derive(Debug)]
pub struct Engine {
    state: ClusterState,
    plan: Plan,
    unaddressed: Unaddressed,
    finder: ClassFinder,
    rows: Rows,
}

/// An end, found in the cluster.
#[derive(Clone, Copy)]
struct Found<'a> {
    remote: Remote<'a>,
    /// The pod, if policy can apply to it.
    subject: Option<&'a Arc<Pod>>,
    /// The node that makes this end's packets itself.
    made_on: Option<&'a str>,
}

impl Engine {
    /// Compiles the cluster for questions.
    pub fn new(state: ClusterState) -> Self {
        let (plan, unaddressed) = Compiler::new(Scope::Everything).compile_unaddressed(&state);
        let finder = ClassFinder::new(&plan);
        Self { state, plan, unaddressed, finder, rows: Rows::default() }
    }

    /// The cluster that is asked about.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Answers a question with the reasons of each end.
    ///
    /// # Errors
    /// See [`Unanswerable`].
    pub fn ask(&mut self, question: &Question) -> Result<Answer, Unanswerable> {
        let mut judgements = Vec::with_capacity(2);
        let (state, (protocol, port)) = (&self.state, question.protocol.flow());
        let mut verdict = Verdict::Accept;
        let (family, is_self) = judge(
            (state, &self.plan, &self.unaddressed, &self.finder),
            &mut self.rows,
            question,
            |direction, subject, remote, step| {
                let explanation = explain(state, subject, direction, remote, protocol, port);
                debug_assert_eq!(
                    step == Verdict::Deny,
                    matches!(explanation.decision, super::explain::Decision::Denied(_)),
                    "ruleset and explanation disagree on {question:?}: {explanation:?}"
                );
                verdict = verdict.max(step);
                judgements.push(Judgement { direction, subject: subject.key.clone(), verdict: step, explanation });
            },
        )?;
        Ok(Answer { verdict, family, is_self, judgements })
    }

    /// Answers a question without reasons.
    ///
    /// # Errors
    /// See [`Unanswerable`].
    pub fn verdict(&mut self, question: &Question) -> Result<Verdict, Unanswerable> {
        let mut verdict = Verdict::Accept;
        judge(
            (&self.state, &self.plan, &self.unaddressed, &self.finder),
            &mut self.rows,
            question,
            |_, _, _, step| verdict = verdict.max(step),
        )?;
        Ok(verdict)
    }
}

/// Judges the source's egress and the destination's ingress, each by its own ruleset; returns the family, and whether
/// both are one pod.
fn judge<'a>(
    (state, plan, unaddressed, finder): (&'a ClusterState, &'a Plan, &'a Unaddressed, &'a ClassFinder),
    rows: &mut Rows,
    question: &'a Question,
    mut report: impl FnMut(Direction, &'a Pod, &Remote<'a>, Verdict),
) -> Result<(Family, bool), Unanswerable> {
    let family = choose_family(state, question)?;
    let from = find(state, &question.from, family)?;
    let to = find(state, &question.to, family)?;
    if let (Some(source), Some(destination)) = (from.subject, to.subject)
        && source.key == destination.key
    {
        return Ok((family, true));
    }
    let (protocol, port) = question.protocol.flow();
    let steps = [(Direction::Egress, from, to, &question.to), (Direction::Ingress, to, from, &question.from)];
    for (direction, me, peer, peer_end) in steps {
        let Some(pod) = me.subject else { continue };
        let subject = plan.subjects.get(&pod.key).expect("every live pod with an address is a subject");
        let ruleset = subject.ruleset(direction);
        // Only the node that the pod runs on is exempt, and only its own packets.
        let is_own_node = peer.made_on.is_some() && peer.made_on == pod.node.as_deref();
        let mut accepts = |slot| rows.row(plan, ruleset, slot).accepts(protocol, port);
        let accepted = match peer.remote.address {
            _ if is_own_node && direction == Direction::Ingress => accepts(Slot::NodeSelf),
            Some(address) => accepts(Slot::Class(finder.find(plan, address))),
            None => {
                let bounds = match peer.subject {
                    Some(pod) => unaddressed.pods.get(&pod.key).copied().expect("every planned pod has bounds"),
                    None => unaddressed.nobody,
                };
                let Bounds { least, most } = bounds;
                let least = accepts(Slot::Class(least[usize::from(family == Family::V6)]));
                if least != accepts(Slot::Class(most)) {
                    return Err(Unanswerable::AddressDecides(peer_end.clone()));
                }
                least
            }
        };
        let verdict = if accepted { Verdict::Accept } else { Verdict::Deny };
        report(direction, pod, &Remote { is_own_node, ..peer.remote }, verdict);
    }
    Ok((family, false))
}

/// The families of an end, its first choice first. One without any address could have either.
fn families(state: &ClusterState, end: &End) -> Result<Vec<Family>, Unanswerable> {
    const EITHER: [Family; 2] = [Family::V4, Family::V6];
    let of = |addresses: &[IpAddr]| -> Vec<Family> {
        if addresses.is_empty() { EITHER.into() } else { addresses.iter().map(|&address| family(address)).collect() }
    };
    match end {
        End::Address(address) => Ok(vec![family(*address)]),
        End::Node(name) => {
            let node = state.node(name).ok_or_else(|| Unanswerable::NoNode(name.clone()))?;
            Ok(of(&node.addresses))
        }
        End::Pod(key) => {
            let pod = state.pod(key).ok_or_else(|| Unanswerable::NoPod(key.clone()))?;
            match (pod.network, pod.node.as_ref().and_then(|name| state.node(name))) {
                (PodNetwork::Host, Some(node)) if !node.addresses.is_empty() => Ok(of(&node.addresses)),
                (PodNetwork::Own | PodNetwork::Host, _) => Ok(of(&pod.addresses)),
            }
        }
    }
}

fn choose_family(state: &ClusterState, question: &Question) -> Result<Family, Unanswerable> {
    let (from, to) = (families(state, &question.from)?, families(state, &question.to)?);
    match question.family {
        Some(family) => {
            for (end, families) in [(&question.from, &from), (&question.to, &to)] {
                if !families.contains(&family) {
                    return Err(Unanswerable::NoAddress { end: end.clone(), family });
                }
            }
            Ok(family)
        }
        None => from
            .into_iter()
            .find(|family| to.contains(family))
            .ok_or_else(|| Unanswerable::NoCommonFamily(question.from.clone(), question.to.clone())),
    }
}

fn find<'a>(state: &'a ClusterState, end: &'a End, wanted: Family) -> Result<Found<'a>, Unanswerable> {
    let remote = |owner, address| Remote { owner, address, family: wanted, is_own_node: false };
    match end {
        End::Address(address) => {
            let owner = state.owner(*address);
            let subject = if let Owner::Pod(pod) = owner { Some(pod) } else { None };
            Ok(Found { remote: remote(owner, Some(*address)), subject, made_on: None })
        }
        End::Node(name) => {
            let node = state.node(name).ok_or_else(|| Unanswerable::NoNode(name.clone()))?;
            let address = of_family(&node.addresses, wanted);
            Ok(Found { remote: remote(Owner::Node(node), address), subject: None, made_on: Some(&node.name) })
        }
        End::Pod(key) => {
            let pod = state.pod(key).ok_or_else(|| Unanswerable::NoPod(key.clone()))?;
            if pod.phase.is_finished() {
                return Err(Unanswerable::Finished(key.clone()));
            }
            if pod.network == PodNetwork::Host {
                let node = pod.node.as_ref().and_then(|name| state.node(name));
                let owner = node.map_or(Owner::Outside, Owner::Node);
                let address = node.and_then(|node| of_family(&node.addresses, wanted));
                let address = address.or_else(|| of_family(&pod.addresses, wanted));
                return Ok(Found { remote: remote(owner, address), subject: None, made_on: pod.node.as_deref() });
            }
            let address = match of_family(&pod.addresses, wanted) {
                None if pod.is_planned() => None,
                None => return Err(Unanswerable::NotReady(key.clone())),
                Some(address) => match state.owner(address) {
                    Owner::Pod(owner) if owner.key == *key => Some(address),
                    Owner::Pod(_) | Owner::Service(_) | Owner::Node(_) | Owner::Outside => {
                        return Err(Unanswerable::Replaced(key.clone(), address));
                    }
                },
            };
            Ok(Found { remote: remote(Owner::Pod(pod), address), subject: Some(pod), made_on: None })
        }
    }
}

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    NodeSelf,
    Class(ClassIndex),
}

/// Rows that were needed before; rulesets live as long as the plan, so their addresses tell them apart.
#[derive(Default, Debug)]
struct Rows(FxHashMap<(usize, Slot), Bundle>);

impl Rows {
    fn row(&mut self, plan: &Plan, ruleset: &Arc<Ruleset>, slot: Slot) -> &Bundle {
        self.0.entry((Arc::as_ptr(ruleset).addr(), slot)).or_insert_with(|| match slot {
            Slot::NodeSelf => ruleset.row(Peer::NodeSelf),
            Slot::Class(index) => ruleset.row(Peer::Class(&plan.classes[index.0 as usize])),
        })
    }
}
