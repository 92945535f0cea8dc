//! Which interface is which pod: decided from facts, without I/O.
//!
//! ```text
//! links, routes, forwarding entries --+
//! pods of this node, and since when --+--> Identifier --> a decision for each interface, and findings
//! addresses of the pinned lines ------+
//! ```
//!
//! An interface is a pod's if two facts agree: the pod's object lists an address that the interface has, and the node
//! sends what is for that address to the interface (a route, or the bridge's forwarding entry). A pod's object may list an
//! address that is another pod's by now: after a reboot, or when its sandbox ended. So only a *young* claim counts, one
//! that is newer than the interface:
//!
//! 1. the address was learned by watch after the interface was first seen (or was confirmed then, by a newer sandbox), or
//! 2. the interface's line has the address already, or
//! 3. at the agent's start, the pod's sandbox came up after this boot, and the interface was there before the pods were
//!    listed.
//!
//! An older claim makes its pod a candidate, no more.

mod claims;
mod decide;
mod finding;
mod foreign;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;
use rustc_hash::FxHashMap;

use crate::model::{ClusterState, Event, PodKey};
use crate::watch::links::Links;

pub use finding::{Finding, Mismatch};
pub use foreign::Foreign;

use claims::{LocalPods, Origin};
use decide::Pass;

/// An interface without a pod, or a pod without an interface, is told of after this long: a pod's object learns its
/// address a second or so after the interface has it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses of an interface that are remembered beyond those it has.
const REMEMBERED_ADDRESSES: usize = 16;

/// What is known at one moment.
pub struct Facts<'a> {
    /// What netlink says.
    pub links: &'a Links,
    /// The cluster, with every event applied that was [noted](Identifier::note).
    pub state: &'a ClusterState,
    /// The addresses that an interface's line has, as a pod's; empty for one without a line or a pod.
    pub line_addresses: &'a dyn Fn(u32) -> Vec<IpAddr>,
    /// Interfaces never to touch, by name.
    pub exclude: &'a [String],
    /// Blocks from which pods have addresses, beside those that the Node names.
    pub pod_cidrs: &'a [IpNet],
    /// This moment.
    pub now: Instant,
    /// When the kernel started.
    pub boot: Timestamp,
    /// When the API server was last heard of its pods, if that was a moment ago and nothing of it is waiting: a pod that is
    /// not known then did not exist at that time.
    pub pods_known_at: Option<Instant>,
    /// Whether the pods that were noted since the last pass were listed at the agent's start, not heard of by watch.
    pub is_first_pass: bool,
}

/// Whose an interface is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It leads to no pod of the cluster, or not as the pod's own address: it is not to have programs.
    Foreign(Foreign),
    /// A pod's.
    Pod(PodKey),
    /// One of these pods', ascending; never empty. Nothing beyond what all of them may do is to be accepted.
    Candidates(Vec<PodKey>),
    /// Perhaps a pod's; nobody knows whose. What it was last found to be stays.
    Unidentified,
    /// It was one of several pods', and there may be others by now of which nobody knows: what those may do says nothing.
    Doubtful,
    /// Two facts about it contradict each other: nothing is to be accepted until they agree.
    Contradicted,
}

/// What a pass found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identified {
    /// A decision for each of [`Links::host`], by number.
    pub decisions: BTreeMap<u32, Decision>,
    /// Findings that the last pass did not have.
    pub news: Vec<Finding>,
    /// When time alone may change a finding: pass again then.
    pub again_at: Option<Instant>,
}

/// Decides which interface is which pod, and remembers what it saw.
#[derive(Debug)]
pub struct Identifier {
    node: Arc<str>,
    pods: LocalPods,
    links: FxHashMap<u32, Memory>,
    findings: BTreeSet<Finding>,
}

/// What is remembered of an interface until it goes.
#[derive(Clone, Debug)]
struct Memory {
    /// Tells another interface with the same number apart.
    first_seen: Instant,
    /// Every address that it had.
    addresses: BTreeSet<IpAddr>,
    /// Addresses for which a second fact agreed.
    agreed: BTreeSet<IpAddr>,
    /// Whose it was decided to be: name and uid.
    owner: Option<(PodKey, Arc<str>)>,
    /// Whether it was last decided to be one of several pods', or is in doubt since.
    has_candidates: bool,
}

impl Identifier {
    /// Knows nothing yet. Takes the node's name, as pods' `spec.nodeName` has it.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self { node: node.into(), pods: LocalPods::default(), links: FxHashMap::default(), findings: BTreeSet::new() }
    }

    /// Notes when something was learned of a pod; other events do not matter, nor those about other nodes' pods. `now` is
    /// when the event was received.
    pub fn note(&mut self, event: &Event, now: Instant) {
        self.pods.note(&self.node, event, now);
    }

    /// Decides for every interface. The cost is that of this node's pods and interfaces, whatever the cluster's size.
    pub fn identify(&mut self, facts: &Facts<'_>) -> Identified {
        self.pods.settle(if facts.is_first_pass { Origin::Listed } else { Origin::Watched });
        self.remember(facts);
        let pass = Pass::new(facts, &self.node, &self.pods, &self.links);
        let (decisions, findings, again_at) = pass.decide();
        for (ifindex, memory) in &mut self.links {
            memory.has_candidates =
                matches!(decisions.get(ifindex), Some(Decision::Candidates(_) | Decision::Doubtful));
            match decisions.get(ifindex) {
                Some(Decision::Pod(pod)) => {
                    memory.owner = self.pods.get(pod).map(|local| (pod.clone(), local.uid().clone()));
                }
                // Whose it was stays known as long as it is there: it can never be another pod's.
                Some(
                    Decision::Candidates(_)
                    | Decision::Unidentified
                    | Decision::Doubtful
                    | Decision::Contradicted
                    | Decision::Foreign(_),
                )
                | None => {}
            }
        }
        let news = findings.difference(&self.findings).cloned().collect();
        self.findings = findings;
        Identified { decisions, news, again_at }
    }

    /// What is to be told now: all of it, ascending.
    pub fn findings(&self) -> &BTreeSet<Finding> {
        &self.findings
    }

    /// Keeps what an interface has shown; forgets the interfaces that are gone.
    fn remember(&mut self, facts: &Facts<'_>) {
        let is_there = |ifindex: &u32, memory: &Memory| {
            facts.links.host.get(ifindex).is_some_and(|link| link.first_seen == memory.first_seen)
        };
        self.links.retain(|ifindex, memory| is_there(ifindex, memory));
        for link in facts.links.host.values() {
            let memory = self.links.entry(link.ifindex).or_insert_with(|| Memory {
                first_seen: link.first_seen,
                addresses: BTreeSet::new(),
                agreed: BTreeSet::new(),
                owner: None,
                has_candidates: false,
            });
            for &address in &link.addresses {
                if memory.addresses.len() < REMEMBERED_ADDRESSES {
                    memory.addresses.insert(address);
                }
            }
            let lines = (facts.line_addresses)(link.ifindex);
            memory.addresses.extend(lines.iter().copied());
            memory.agreed.extend(lines);
        }
        let routes = decide::Routes::new(facts.links);
        for link in facts.links.host.values() {
            let memory = self.links.get_mut(&link.ifindex).expect("every interface was just remembered");
            let addresses: Vec<IpAddr> = decide::addresses_of(link, memory).collect();
            for address in addresses {
                if decide::evidence(link, address, &routes) == decide::Evidence::Agrees {
                    memory.agreed.insert(address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
