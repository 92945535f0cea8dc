//! Why a verdict is what it is, told from the policies as they were written.
//!
//! In: the cluster and one new connection as one of its ends sees it. Out: the policies that isolate, the rule that
//! accepts, or the change that would be needed. The verdict itself is the ruleset's; both agree.

use std::fmt;
use std::net::IpAddr;

use npolicy_common::{Direction, Family, FlowProtocol};

use crate::model::{
    ClusterState, IpBlock, Labels, Namespaces, NetworkPolicy, Owner, Peer, Peers, Pod, PodPeer, PolicyKey, PortEntry,
    PortProtocol, Ports, Requirement, Rule, family,
};

/// The other end, as far as an explanation is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    /// Who it is.
    pub owner: Owner<'a>,
    /// Its address; `None` for one that no cluster has given an address.
    pub address: Option<IpAddr>,
    /// The family in use.
    pub family: Family,
    /// Whether the subject's own node made the packet: policy exempts it on ingress.
    pub is_own_node: bool,
}

impl<'a> Remote<'a> {
    /// Whoever has this address, seen on the wire: a packet that the subject's own node made is never refused.
    pub fn at(state: &'a ClusterState, address: IpAddr) -> Self {
        Self { owner: state.owner(address), address: Some(address), family: family(address), is_own_node: false }
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
    /// Every policy that isolates the pod in this direction, ascending.
    pub isolated_by: Vec<PolicyKey>,
    /// What decided.
    pub decision: Decision,
}

/// What decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// No policy governs the direction.
    NotGoverned,
    /// The pod's own node made the packet.
    OwnNode,
    /// A rule accepts it.
    Accepted(Accepted),
    /// No rule accepts it; this one came nearest.
    Denied(Miss),
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
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.policy, self.text)
    }
}

/// How far something is from matching: the least is shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Distance(u32);

impl Distance {
    /// One label, namespace, block or port entry is another than the rule wants.
    const ONE_CHANGE: u32 = 10;
    /// Part of the rule is broken; what it was meant to say is unknown.
    const BROKEN: u32 = 11;
    /// The peer is of the wrong kind altogether.
    const OTHER_KIND: u32 = 30;
    /// There is no rule.
    const NO_RULE: u32 = 1000;
}

/// Explains one direction of a subject for a new connection. The port is ignored for protocols without.
///
/// Cost: evaluates the selectors of the namespace's policies for the subject, and the peers of those that isolate it.
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
    let decision = if isolating.is_empty() {
        Decision::NotGoverned
    } else if direction == Direction::Ingress && remote.is_own_node {
        Decision::OwnNode
    } else {
        let mut accepted = isolating.iter().filter_map(|&(policy, rules)| question.accepted(policy, rules));
        accepted.next().map_or_else(|| Decision::Denied(question.nearest_miss(&isolating)), Decision::Accepted)
    };
    Explanation { isolated_by: isolating.iter().map(|(policy, _)| policy.key.clone()).collect(), decision }
}

struct Question<'a> {
    state: &'a ClusterState,
    subject: &'a Pod,
    direction: Direction,
    remote: &'a Remote<'a>,
    protocol: FlowProtocol,
    port: u16,
}

fn fields(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    }
}

impl Question<'_> {
    fn accepted(&self, policy: &NetworkPolicy, rules: &[Rule]) -> Option<Accepted> {
        rules.iter().enumerate().find_map(|(rule, content)| {
            let Rule::Accept { peers, ports } = content else { return None };
            let peer = match peers {
                Peers::Any => None,
                Peers::Of(peers) => Some(peers.iter().position(|peer| self.misses_of_peer(peer, policy).is_none())?),
            };
            let is_accepted = self.ports_match(ports);
            is_accepted.then(|| Accepted { policy: policy.key.clone(), direction: self.direction, rule, peer })
        })
    }

    fn nearest_miss(&self, isolating: &[(&NetworkPolicy, &[Rule])]) -> Miss {
        let (rules_field, peers_field) = fields(self.direction);
        let mut nearest: Option<(Distance, Miss)> = None;
        let mut offer = |policy: &NetworkPolicy, distance: u32, text: &dyn Fn() -> String| {
            if nearest.as_ref().is_none_or(|(least, _)| Distance(distance) < *least) {
                nearest = Some((Distance(distance), Miss { policy: policy.key.clone(), text: text() }));
            }
        };
        for &(policy, rules) in isolating {
            if rules.is_empty() {
                offer(policy, Distance::NO_RULE, &|| format!("has no {rules_field} rule"));
            }
            for (index, rule) in rules.iter().enumerate() {
                let place = format!("{rules_field}[{index}]");
                let (peers, ports) = match rule {
                    Rule::Broken(reason) => {
                        offer(policy, Distance::BROKEN, &|| format!("{place}: the rule matches nothing: {reason}"));
                        continue;
                    }
                    Rule::Accept { peers, ports } => (peers, ports),
                };
                let ports_miss = if self.ports_match(ports) { None } else { Some(self.describe_ports(ports)) };
                let for_ports = if ports_miss.is_some() { Distance::ONE_CHANGE } else { 0 };
                let and_ports =
                    || ports_miss.as_ref().map_or_else(String::new, |ports| format!(", and {place}.ports: {ports}"));
                match peers {
                    Peers::Of(peers) if peers.iter().all(|peer| self.misses_of_peer(peer, policy).is_some()) => {
                        for (peer_index, peer) in peers.iter().enumerate() {
                            let (distance, misses) =
                                self.misses_of_peer(peer, policy).expect("it was just found to miss");
                            offer(policy, distance + for_ports, &|| {
                                format!("{place}.{peers_field}[{peer_index}]: {}{}", misses.join(", and "), and_ports())
                            });
                        }
                    }
                    Peers::Any | Peers::Of(_) => {
                        let ports = ports_miss.as_deref().expect("a rule that matches was found before");
                        offer(policy, for_ports, &|| format!("{place}.ports: {ports}"));
                    }
                }
            }
        }
        nearest.expect("a pod is isolated by at least one policy").1
    }

    /// What keeps a peer from matching, and how far it is; `None`: it matches.
    fn misses_of_peer(&self, peer: &Peer, policy: &NetworkPolicy) -> Option<(u32, Vec<String>)> {
        match peer {
            Peer::Broken(reason) => Some((Distance::BROKEN, vec![format!("the peer matches nothing: {reason}")])),
            Peer::Block(block) => {
                let miss = self.miss_of_block(block)?;
                // Where the other end is a pod, a selector that nearly fits is the likelier remedy.
                let is_pod = matches!(self.remote.owner, Owner::Pod(_));
                Some((if is_pod { 2 * Distance::ONE_CHANGE } else { Distance::ONE_CHANGE }, vec![miss]))
            }
            Peer::Pods(peer) => self.misses_of_pods(peer, policy),
        }
    }

    fn miss_of_block(&self, peer: &IpBlock) -> Option<String> {
        let Some(address) = self.remote.address else {
            let is_certain = peer.is_whole_family(self.remote.family);
            return (!is_certain).then(|| format!("{} has no address that an ipBlock could match", self.remote));
        };
        if family(address) != peer.family() {
            return Some(format!("{address} is not of the family of {}", peer.block));
        }
        if !peer.block.contains(&address) {
            return Some(format!("{address} is outside {}", peer.block));
        }
        let except = peer.excepts.iter().find(|except| except.contains(&address))?;
        Some(format!("{address} is inside {}, excepted from {}", except, peer.block))
    }

    fn misses_of_pods(&self, peer: &PodPeer, policy: &NetworkPolicy) -> Option<(u32, Vec<String>)> {
        let Owner::Pod(pod) = self.remote.owner else {
            return Some((
                Distance::OTHER_KIND,
                vec![format!("{} is no pod, selectors match pods alone", self.remote)],
            ));
        };
        let mut misses = Vec::new();
        match &peer.namespaces {
            Namespaces::Own if pod.key.namespace == policy.key.namespace => {}
            Namespaces::Own => misses.push(format!(
                "{} is in namespace {}, a podSelector alone means {}",
                pod.key, pod.key.namespace, policy.key.namespace
            )),
            Namespaces::Matching(selector) => {
                if !selector.requirements().is_empty() {
                    let labels = self.state.namespace_labels(&pod.key.namespace);
                    let unmet = selector.requirements().iter().filter(|wanted| !wanted.matches(&labels));
                    let who = || format!("namespace {}", pod.key.namespace);
                    misses.extend(unmet.map(|wanted| describe_label(&who(), &labels, wanted)));
                }
            }
        }
        let unmet = peer.pods.requirements().iter().filter(|wanted| !wanted.matches(&pod.labels));
        misses.extend(unmet.map(|wanted| describe_label(&pod.key.to_string(), &pod.labels, wanted)));
        let distance = Distance::ONE_CHANGE * u32::try_from(misses.len()).unwrap_or(u32::MAX / Distance::ONE_CHANGE);
        if misses.is_empty() { None } else { Some((distance, misses)) }
    }

    fn ports_match(&self, ports: &Ports) -> bool {
        match ports {
            Ports::Any => true,
            Ports::Of(entries) => entries.iter().any(|entry| match entry {
                PortEntry::Broken(_) => false,
                PortEntry::All(protocol) => protocol.flow() == self.protocol,
                PortEntry::Range { protocol, first, last } => {
                    protocol.flow() == self.protocol && (*first..=*last).contains(&self.port)
                }
                PortEntry::Named { protocol, name } => self.is_named(name, *protocol),
                PortEntry::NamedAny { name } => {
                    PortProtocol::NAMES.iter().any(|&(_, protocol)| self.is_named(name, protocol))
                }
            }),
        }
    }

    fn is_named(&self, name: &str, protocol: PortProtocol) -> bool {
        protocol.flow() == self.protocol
            && self.destination().is_some_and(|pod| pod.numbers_of(name, protocol).any(|port| port == self.port))
    }

    /// The pod whose container ports a name refers to.
    fn destination(&self) -> Option<&Pod> {
        match (self.direction, self.remote.owner) {
            (Direction::Ingress, _) => Some(self.subject),
            (Direction::Egress, Owner::Pod(pod)) => Some(pod),
            (Direction::Egress, Owner::Service(_) | Owner::Node(_) | Owner::Outside) => None,
        }
    }

    fn describe_ports(&self, ports: &Ports) -> String {
        let Ports::Of(entries) = ports else { unreachable!("a rule without ports accepts every port") };
        if self.protocol == FlowProtocol::Other {
            return "a rule with ports accepts TCP, UDP and SCTP alone".to_owned();
        }
        let described = entries.iter().map(|entry| match entry {
            PortEntry::Named { protocol, name } => match self.destination() {
                None => format!("{entry} (only pods have named ports)"),
                Some(pod) => {
                    let numbers: Vec<_> = pod.numbers_of(name, *protocol).map(|number| number.to_string()).collect();
                    match &*numbers {
                        [] => format!("{entry} ({} has no such port)", pod.key),
                        numbers => format!("{entry} ({} on {})", numbers.join(" and "), pod.key),
                    }
                }
            },
            entry => entry.to_string(),
        });
        format!("the rule accepts {}", described.collect::<Vec<_>>().join(", "))
    }
}

fn describe_label(who: &str, labels: &Labels, wanted: &Requirement) -> String {
    match labels.get(&wanted.key) {
        Some(value) => format!("{who} has {}={value}, the rule wants {wanted}", wanted.key),
        None => format!("{who} has no label {}, the rule wants {wanted}", wanted.key),
    }
}

#[cfg(test)]
mod tests;
