//! Which interfaces carry the programs, and whose they are.

use std::net::IpAddr;

use tracing::{error, info, warn};

use super::Agent;
use crate::datapath::Enrolled;
use crate::model::{Owner, PodKey};
use crate::watch::links::{HostLink, Links};

/// Whose the interfaces with programs are, as far as that is known.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Occupants {
    /// Interfaces whose pod is known.
    pub(super) owners: Vec<(u32, PodKey)>,
    /// Interfaces whose pod is one of several.
    pub(super) candidates: BTreeMap<u32, Vec<PodKey>>,
}

impl Agent {
    /// Gives every pod's interface a line and its programs, and lets go of those that are gone.
    fn follow_links(&mut self) {
        let links = self.links.current();
        let enrolled = self.datapath.interfaces();
        for &ifindex in enrolled.iter().filter(|ifindex| !links.host.contains_key(ifindex)) {
            match self.datapath.retire(ifindex) {
                Ok(()) => info!(ifindex, "interface is gone"),
                Err(error) => self.try_again(&error, "let go of an interface"),
            }
        }
        for link in links.host.values() {
            let is_enrolled = enrolled.binary_search(&link.ifindex).is_ok();
            if !is_enrolled && !self.is_pods(link) {
                continue;
            }
            match self.datapath.enroll(link) {
                Ok(Enrolled::Open) if is_enrolled => {}
                Ok(Enrolled::Open) => info!(interface = link.name, ifindex = link.ifindex, "attached"),
                Ok(Enrolled::Closed) => {
                    error!(
                        interface = link.name,
                        ifindex = link.ifindex,
                        "no line is free: everything on it is dropped"
                    );
                }
                Err(error) => self.try_again(&error, "attach to an interface"),
            }
        }
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
    /// are not enforced, or by the last verdicts. Said once, and again when it changes.
    fn report_unmatched(&mut self, links: &Links, interfaces: &[u32], owners: &[(u32, PodKey)]) {
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
