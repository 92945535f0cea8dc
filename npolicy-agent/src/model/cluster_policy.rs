//! ClusterNetworkPolicy as plain values: ordered rules in two tiers around NetworkPolicy.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use npolicy_common::Direction;

use super::labels::{Labels, Selector};
use super::policy::Ports;

/// A ClusterNetworkPolicy whose tier and subjects are known. One whose are not never becomes a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterPolicy {
    /// Name; the kind is cluster-scoped.
    pub name: Arc<str>,
    /// When it is asked.
    pub tier: Tier,
    /// 0 to 1000; the smaller is asked first within its tier, the name decides between equals.
    pub priority: u16,
    /// The pods it applies to; being one of them isolates nobody, only rules act.
    pub subject: PodSet,
    /// Rules for what enters its subjects, the first that matches decides.
    pub ingress: Vec<ClusterRule>,
    /// Rules for what leaves its subjects, the first that matches decides.
    pub egress: Vec<ClusterRule>,
}

impl ClusterPolicy {
    /// The rules of a direction, in written order.
    pub fn rules(&self, direction: Direction) -> &[ClusterRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// When a ClusterNetworkPolicy is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Tier {
    /// Before NetworkPolicy.
    Admin,
    /// After it, for pods that no NetworkPolicy isolates in the direction.
    Baseline,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        })
    }
}

/// Pods of the cluster: those whose labels match, in namespaces whose labels match.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct PodSet {
    /// Labels of the namespace; absent in the object means every namespace.
    pub namespaces: Selector,
    /// Labels of the pod; everything where the object names namespaces alone.
    pub pods: Selector,
}

impl PodSet {
    /// Whether a pod with these labels, in a namespace with those, is one of them.
    pub fn matches(&self, namespace: &Labels, pod: &Labels) -> bool {
        self.namespaces.matches(namespace) && self.pods.matches(pod)
    }
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Action {
    /// Accepted, for good.
    Accept,
    /// Denied, for good.
    Deny,
    /// No more rules of this tier.
    Pass,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        })
    }
}

/// One item of `ingress` or `egress`, at its written place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterRule {
    /// `name`, for whoever reads a log.
    pub name: Option<Arc<str>>,
    /// `action`; one that is unknown is [`Action::Deny`].
    pub action: Action,
    /// What it matches.
    pub matches: ClusterMatch,
}

/// What a rule of a ClusterNetworkPolicy matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClusterMatch {
    /// A peer and a port entry, both.
    Of {
        /// `from` or `to`; never empty.
        peers: Vec<ClusterPeer>,
        /// `protocols`; [`Ports::Any`] where absent. No entry is [`super::PortEntry::Broken`] or
        /// [`super::PortEntry::All`].
        ports: Ports,
    },
    /// The rule holds something that nobody here can read, for this reason. It fails closed: one that accepts matches
    /// nothing; one that denies or passes denies everything of its direction, except what a pod's own node makes.
    Unreadable(Arc<str>),
}

/// One peer of a rule.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum ClusterPeer {
    /// Pods (`namespaces` or `pods`).
    Pods(PodSet),
    /// Addresses of anybody but a Service, egress only; without host bits, ascending, each once.
    Networks(Vec<IpNet>),
    /// Addresses of nodes with these labels, egress only.
    Nodes(Selector),
}
