//! Which interfaces carry the programs, and whose they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use tracing::{error, info, warn};

use super::identify::{Decision, Facts};
use super::{Agent, Feed, Unidentified};
use crate::datapath::Enrolled;
use crate::model::{Owner, PodKey, Severity};
use crate::watch::links::{HostLink, Links};

/// Whose the interfaces with programs are, as far as that is known.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Occupants {
    /// Interfaces whose pod is known.
    pub(super) owners: Vec<(u32, PodKey)>,
    /// Interfaces whose pod is one of several; of none, where two facts contradict each other, or where it was one of several
    /// and is in doubt.
    pub(super) candidates: BTreeMap<u32, Vec<PodKey>>,
}

impl Occupants {
    fn decided(decisions: BTreeMap<u32, Decision>, unidentified: Unidentified) -> Self {
        let mut occupants = Self::default();
        for (ifindex, decision) in decisions {
            match decision {
                Decision::Pod(pod) => occupants.owners.push((ifindex, pod)),
                Decision::Candidates(pods) => drop(occupants.candidates.insert(ifindex, pods)),
                Decision::Doubtful if unidentified == Unidentified::Allow => {}
                Decision::Contradicted | Decision::Doubtful => {
                    drop(occupants.candidates.insert(ifindex, Vec::new()));
                }
                Decision::Foreign(_) | Decision::Unidentified => {}
            }
        }
        occupants
    }
}

impl Agent {
    /// Gives every pod's interface a line and its programs, lets go of those that are gone, and finds out whose they are.
    pub(super) fn follow_links(&mut self) {
        let links = self.links.current();
        let decisions = self.decide(&links);
        let is_pods = |link: &HostLink| match &decisions {
            Some(decisions) => !matches!(decisions.get(&link.ifindex), None | Some(Decision::Foreign(_))),
            None => self.is_pods(link),
        };
        let (pods, foreign): (Vec<_>, Vec<_>) = links.host.values().partition(|link| is_pods(link));
        let pods: Vec<HostLink> = pods.into_iter().cloned().collect();
        // From manifests alone nobody can say that an interface which was a pod's is none.
        let foreign: BTreeSet<u32> = foreign.iter().map(|link| link.ifindex).filter(|_| decisions.is_some()).collect();
        let enrolled = self.datapath.interfaces();
        for &ifindex in &enrolled {
            let what = match links.host.contains_key(&ifindex) {
                false => "interface is gone",
                true if foreign.contains(&ifindex) => "interface is no pod's: its programs are removed",
                true => continue,
            };
            match self.datapath.retire(ifindex) {
                Ok(()) => info!(ifindex, "{what}"),
                Err(error) => self.try_again(&error, "let go of an interface"),
            }
        }
        for ifindex in enrolled.iter().filter(|ifindex| decisions.is_none() && links.host.contains_key(ifindex)) {
            if !pods.iter().any(|link| link.ifindex == *ifindex) {
                self.enroll(&links.host[ifindex], true);
            }
        }
        for link in &pods {
            let is_enrolled = enrolled.binary_search(&link.ifindex).is_ok();
            if is_enrolled || self.may_enroll(link) {
                self.enroll(link, is_enrolled);
            }
        }
        self.occupants = match decisions {
            Some(decisions) => Occupants::decided(decisions, self.config.unidentified),
            None => self.occupants_of(&links),
        };
    }

    /// Whether an interface may get programs now. Until the node's own object was read nobody knows its addresses, and
    /// where an earlier agent ended the time in which unidentified pods are accepted, its way to the API server must not be
    /// closed: an interface to a whole network is then left alone.
    fn may_enroll(&self, link: &HostLink) -> bool {
        let is_network = |route: &ipnet::IpNet| route.prefix_len() < route.max_prefix_len();
        !self.is_waiting || self.datapath.accepts_unidentified() || !link.routes.iter().any(is_network)
    }

    fn enroll(&mut self, link: &HostLink, is_enrolled: bool) {
        match self.datapath.enroll(link) {
            Ok(Enrolled::Open) if is_enrolled => {}
            Ok(Enrolled::Open) => info!(interface = link.name, ifindex = link.ifindex, "attached"),
            Ok(Enrolled::Closed) => {
                error!(interface = link.name, ifindex = link.ifindex, "no line is free: everything on it is dropped");
            }
            Err(error) => self.try_again(&error, "attach to an interface"),
        }
    }

    /// Finds out whose the interfaces are after the cluster has changed, which seldom gives or takes programs.
    pub(super) fn identify(&mut self) {
        let links = self.links.current();
        match self.decide(&links) {
            Some(decisions) => {
                let interfaces = self.datapath.interfaces();
                let has = |ifindex: &u32| interfaces.binary_search(ifindex).is_ok();
                let wants = |decision: &Decision| !matches!(decision, Decision::Foreign(_));
                if decisions.iter().any(|(ifindex, decision)| has(ifindex) != wants(decision)) {
                    self.follow_links();
                } else {
                    self.occupants = Occupants::decided(decisions, self.config.unidentified);
                }
            }
            None => self.follow_links(),
        }
    }

    /// What a cluster's objects and the node's interfaces say of each interface. `None`: they are a directory's.
    fn decide(&mut self, links: &Links) -> Option<BTreeMap<u32, Decision>> {
        let Feed::Cluster(cluster) = &mut self.feed else { return None };
        let line_addresses = |ifindex| self.datapath.address_of(ifindex).into_iter().flatten().collect();
        let facts = Facts {
            links,
            state: &self.state,
            line_addresses: &line_addresses,
            exclude: &self.config.exclude_interfaces,
            pod_cidrs: &self.config.pod_cidrs,
            now: Instant::now(),
            boot: cluster.boot,
            pods_known_at: cluster.pods_known_at(),
            is_first_pass: !self.faults.has_published(),
        };
        let identified = cluster.identifier.identify(&facts);
        // Before everything was read once, a pod that nobody knows is only one that was not read yet.
        if !self.is_waiting {
            for finding in &identified.news {
                match finding.severity() {
                    Severity::Error => error!("{finding}"),
                    Severity::Warning => warn!("{finding}"),
                    Severity::Note => info!("{finding}"),
                }
            }
        }
        if let Some(at) = identified.again_at {
            self.retry_after(at.saturating_duration_since(facts.now));
        }
        Some(identified.decisions)
    }

    /// The pods of the manifests behind the interfaces that have programs.
    fn occupants_of(&self, links: &Links) -> Occupants {
        let interfaces = self.datapath.interfaces();
        let owner = |ifindex: &u32| Some((*ifindex, self.owner_of(links.host.get(ifindex)?)?));
        Occupants { owners: interfaces.iter().filter_map(owner).collect(), candidates: BTreeMap::new() }
    }

    /// Whether an interface is a pod's: it has shown an address that a pod of the manifests has or that `--pod-cidrs`
    /// names. No other interface of the machine is touched.
    fn is_pods(&self, link: &HostLink) -> bool {
        let is_listed = |address: &IpAddr| self.config.pod_cidrs.iter().any(|block| block.contains(address));
        !self.config.exclude_interfaces.contains(&link.name)
            && (self.owner_of(link).is_some() || link.addresses.iter().any(is_listed))
    }

    /// The pod behind an interface: the subject that has one of its addresses.
    ///
    /// An interface stays the pod's whose address its line has: what a pod adds to its interface or takes off does not
    /// make it another. An address that another interface's line has is that one's.
    fn owner_of(&self, link: &HostLink) -> Option<PodKey> {
        let mut bound = self.datapath.address_of(link.ifindex).into_iter().flatten();
        let bound = bound.find_map(|address| self.pod_at(address));
        let free = link.addresses.iter().filter(|&&address| !self.datapath.is_bound(address));
        bound.or_else(|| free.copied().find_map(|address| self.pod_at(address)))
    }

    fn pod_at(&self, address: IpAddr) -> Option<PodKey> {
        Some(address).and_then(|address| match self.state.owner(address) {
            Owner::Pod(pod) if self.compiler.plan().subjects.contains_key(&pod.key) => Some(pod.key.clone()),
            _ => None,
        })
    }

    /// Says which governed pods no interface here belongs to, and which interfaces no pod of the manifests: their policies
    /// are not enforced, or by the last verdicts. Said once, and again when it changes. Of a cluster, findings say it.
    pub(super) fn report_unmatched(&mut self, links: &Links) {
        if let Feed::Cluster(_) = &self.feed {
            return;
        }
        let (owners, interfaces) = (&self.occupants.owners, self.datapath.interfaces());
        let mut unmatched = Vec::new();
        for (pod, subject) in &self.compiler.plan().subjects {
            let is_governed = subject.ingress.is_governed() || subject.egress.is_governed();
            if !is_governed || owners.iter().any(|(_, owner)| owner == pod) {
                continue;
            }
            let addresses = subject.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            unmatched.push(match addresses.as_str() {
                "" => format!("pod {pod} has no address (status.podIPs): its policies are not enforced"),
                _ => {
                    format!("pod {pod}: {addresses} is on no veth of this machine: its policies are not enforced here")
                }
            });
        }
        for ifindex in interfaces.iter().filter(|ifindex| !owners.iter().any(|(owned, _)| owned == *ifindex)) {
            let name = links.host.get(ifindex).map_or("?", |link| &link.name);
            unmatched
                .push(format!("interface {name}: no pod of the manifests has its address: its last verdicts stay"));
        }
        if owners.is_empty() && !self.compiler.plan().subjects.is_empty() {
            unmatched.push("no pod of the manifests is on this machine: nothing is enforced".into());
        }
        for line in unmatched.iter().filter(|line| !self.unmatched.contains(line)) {
            warn!("{line}");
        }
        self.unmatched = unmatched;
    }
}
