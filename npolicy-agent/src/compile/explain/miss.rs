//! Which rule of a NetworkPolicy accepts, and which came nearest if none does.

use super::{Accepted, Miss, Question, fields};
use crate::model::{
    IpBlock, Labels, Namespaces, NetworkPolicy, Owner, Peer, Peers, PodPeer, Requirement, Rule, family,
};

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

impl Question<'_> {
    pub(super) fn accepted(&self, policy: &NetworkPolicy, rules: &[Rule]) -> Option<Accepted> {
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

    pub(super) fn nearest_miss(&self, isolating: &[(&NetworkPolicy, &[Rule])]) -> Miss {
        let (rules_field, peers_field) = fields(self.direction);
        let mut nearest: Option<(Distance, Miss)> = None;
        let mut offer = |policy: &NetworkPolicy, distance: u32, misses_ports: bool, text: &dyn Fn() -> String| {
            if nearest.as_ref().is_none_or(|(least, _)| Distance(distance) < *least) {
                nearest = Some((Distance(distance), Miss { policy: policy.key.clone(), text: text(), misses_ports }));
            }
        };
        for &(policy, rules) in isolating {
            if rules.is_empty() {
                offer(policy, Distance::NO_RULE, false, &|| format!("has no {rules_field} rule"));
            }
            for (index, rule) in rules.iter().enumerate() {
                let place = format!("{rules_field}[{index}]");
                let (peers, ports) = match rule {
                    Rule::Broken(reason) => {
                        offer(policy, Distance::BROKEN, false, &|| {
                            format!("{place}: the rule matches nothing: {reason}")
                        });
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
                            offer(policy, distance + for_ports, ports_miss.is_some(), &|| {
                                format!("{place}.{peers_field}[{peer_index}]: {}{}", misses.join(", and "), and_ports())
                            });
                        }
                    }
                    Peers::Any | Peers::Of(_) => {
                        let ports = ports_miss.as_deref().expect("a rule that matches was found before");
                        offer(policy, for_ports, true, &|| format!("{place}.ports: {ports}"));
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
        if let Owner::Service(_) = self.remote.owner {
            return Some(format!("an ipBlock is compared with backends, never with an address of {}", self.remote));
        }
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
}

fn describe_label(who: &str, labels: &Labels, wanted: &Requirement) -> String {
    match labels.get(&wanted.key) {
        Some(value) => format!("{who} has {}={value}, the rule wants {wanted}", wanted.key),
        None => format!("{who} has no label {}, the rule wants {wanted}", wanted.key),
    }
}
