//! Which rule of the ordered tiers decides.

use std::fmt;
use std::sync::Arc;

use npolicy_common::Direction;

use super::{Decision, Question, fields};
use crate::model::{Action, ClusterMatch, ClusterPeer, ClusterPolicy, ClusterRule, Owner, Tier, family};

/// A rule of a ClusterNetworkPolicy that a connection met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TierRule {
    /// When the policy is asked.
    pub tier: Tier,
    /// The policy's name.
    pub policy: Arc<str>,
    /// The policy's place within its tier; the smaller is asked first.
    pub priority: u16,
    /// Direction.
    pub direction: Direction,
    /// Which rule of the policy, from 0.
    pub rule: usize,
    /// The rule's own name.
    pub name: Option<Arc<str>>,
    /// How the rule came to match.
    pub matched: Matched,
}

/// How a rule came to match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Matched {
    /// By this peer, from 0.
    Peer(usize),
    /// The rule cannot be read, for this reason, and denies everything: it may have been meant for anything.
    Unreadable(Arc<str>),
}

/// `Admin policy tenants, priority 20, ingress[1].from[0] ("own tenant only")`
impl fmt::Display for TierRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tier, policy, priority, direction: _, rule: _, name, matched: _ } = self;
        write!(f, "{tier} policy {policy}, priority {priority}, {}", self.place())?;
        if let Some(name) = name {
            write!(f, " ({name:?})")?;
        }
        Ok(())
    }
}

impl TierRule {
    /// Where in the policy: `ingress[1].from[0]`, without the peer where the rule cannot be read.
    pub fn place(&self) -> String {
        let (rules, peers) = fields(self.direction);
        match &self.matched {
            Matched::Peer(peer) => format!("{rules}[{}].{peers}[{peer}]", self.rule),
            Matched::Unreadable(_) => format!("{rules}[{}]", self.rule),
        }
    }

    /// For a rule that denies: why, where the rule does not say so itself, and what could be done about it.
    pub fn advice(&self) -> String {
        let unreadable = match &self.matched {
            Matched::Unreadable(reason) => {
                format!("the rule cannot be read ({reason}), so it denies everything it might have been meant for; ")
            }
            Matched::Peer(_) => String::new(),
        };
        let remedy = match (self.tier, self.direction) {
            (Tier::Admin, _) => "no change in a NetworkPolicy can allow it",
            (Tier::Baseline, Direction::Ingress) => "a NetworkPolicy for the pod's ingress would decide instead",
            (Tier::Baseline, Direction::Egress) => "a NetworkPolicy for the pod's egress would decide instead",
        };
        format!("{unreadable}{remedy}")
    }
}

/// A rule at its place.
pub(super) struct Placed<'a> {
    policy: &'a ClusterPolicy,
    index: usize,
    rule: &'a ClusterRule,
}

impl<'a> Question<'a> {
    /// The rules of a tier for the subject and direction, in the order in which they are asked.
    pub(super) fn rules_of(&self, tier: Tier) -> Vec<Placed<'a>> {
        let policies = self.state.cluster_policies_of(self.subject, tier).into_iter();
        let rules = policies.flat_map(|policy| {
            let rules = policy.rules(self.direction).iter().enumerate();
            rules.map(|(index, rule)| Placed { policy, index, rule })
        });
        rules.collect()
    }

    /// What the first of these rules that matches decides; `None`: it passes, or none does.
    pub(super) fn decide_in_order(&self, rules: &[Placed<'_>], passed_by: &mut Vec<TierRule>) -> Option<Decision> {
        for Placed { policy, index, rule } in rules {
            let Some(matched) = self.matched(rule) else { continue };
            let action = if matches!(matched, Matched::Unreadable(_)) { Action::Deny } else { rule.action };
            let met = TierRule {
                tier: policy.tier,
                policy: policy.name.clone(),
                priority: policy.priority,
                direction: self.direction,
                rule: *index,
                name: rule.name.clone(),
                matched,
            };
            return match action {
                Action::Accept => Some(Decision::TierAccepted(met)),
                Action::Deny => Some(Decision::TierDenied(met)),
                Action::Pass => {
                    passed_by.push(met);
                    None
                }
            };
        }
        None
    }

    fn matched(&self, rule: &ClusterRule) -> Option<Matched> {
        match (&rule.matches, rule.action) {
            (ClusterMatch::Unreadable(_), Action::Accept) => None,
            (ClusterMatch::Unreadable(reason), Action::Deny | Action::Pass) => {
                Some(Matched::Unreadable(reason.clone()))
            }
            (ClusterMatch::Of { peers, ports }, _) => {
                let peer = peers.iter().position(|peer| self.is_cluster_peer(peer))?;
                self.ports_match(ports).then_some(Matched::Peer(peer))
            }
        }
    }

    fn is_cluster_peer(&self, peer: &ClusterPeer) -> bool {
        match peer {
            ClusterPeer::Pods(set) => match self.remote.owner {
                Owner::Pod(pod) => set.matches(&self.state.namespace_labels(&pod.key.namespace), &pod.labels),
                Owner::Service(_) | Owner::Node(_) | Owner::Outside => false,
            },
            // Addresses of Services are compared with nothing.
            ClusterPeer::Networks(_) | ClusterPeer::Nodes(_) if matches!(self.remote.owner, Owner::Service(_)) => false,
            ClusterPeer::Networks(networks) => networks.iter().any(|network| match self.remote.address {
                Some(address) => network.contains(&address),
                // The whole family holds also an address that nobody knows.
                None => network.prefix_len() == 0 && family(network.addr()) == self.remote.family,
            }),
            ClusterPeer::Nodes(labels) => {
                let nodes = self.remote.address.map_or(&[][..], |address| self.state.nodes_at(address));
                nodes.iter().any(|node| labels.matches(&node.labels))
            }
        }
    }
}
