//! From Services to what their virtual addresses stand for, and to the pods that reach themselves through them.

use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::classes::Facts;
use super::plan::{BackendFacts, Fact, Plan, ServiceFacts};
use super::ruleset::Ruleset;
use crate::model::{Backend, ClusterState, Frontend, FrontendKind, Owner, PortProtocol};

/// A Service's port at an address, with the backends that this node uses.
struct Port {
    protocol: PortProtocol,
    number: u16,
    backends: Vec<Backend>,
}

/// Every virtual address with its Services' ports. Addresses with equal ports share them.
pub(super) struct Virtuals(Vec<(IpAddr, Arc<[Port]>)>);

impl Virtuals {
    /// Takes the frontends of every virtual address. `node` is the node whose clients are meant; `None`: no node's, every
    /// backend counts.
    ///
    /// An address that a pod has is not a Service's as a cluster address: the pod comes first.
    pub(super) fn new(state: &ClusterState, node: Option<&str>) -> Self {
        let ports = |address: IpAddr| -> Arc<[Port]> {
            let is_pods = matches!(state.owner(address), Owner::Pod(_));
            let frontends = state.frontends(address).into_iter();
            let frontends = frontends.filter(|frontend| !is_pods || frontend.kind != FrontendKind::Cluster);
            let port = |frontend: Frontend<'_>| Port {
                protocol: frontend.protocol,
                number: frontend.port,
                backends: match node {
                    Some(_) => frontend.usable(node).cloned().collect(),
                    None => frontend.backends,
                },
            };
            frontends.map(port).collect()
        };
        let services = || state.services();
        let own: FxHashSet<IpAddr> = services()
            .flat_map(|service| service.cluster_addresses.iter().chain(&service.external_addresses))
            .copied()
            .collect();
        // What a node has beside Services' own addresses are the node ports of the address's family, on every node.
        let mut node_ports: [Option<Arc<[Port]>>; 2] = [None, None];
        let mut addresses: Vec<IpAddr> = state.virtual_addresses().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let with_ports = addresses.into_iter().map(|address| {
            let ports = if own.contains(&address) {
                ports(address)
            } else {
                node_ports[usize::from(address.is_ipv6())].get_or_insert_with(|| ports(address)).clone()
            };
            (address, ports)
        });
        Self(with_ports.collect())
    }

    fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.0.iter().flat_map(|(_, ports)| ports.iter()).flat_map(|port| &port.backends)
    }

    /// Gives each subject rulesets that know what it is to itself. Returns the addresses at which a subject reaches itself
    /// through a Service in another way than others reach it.
    pub(super) fn set_subjects_apart<'a>(
        &self,
        state: &'a ClusterState,
        facts: &mut Facts<'a>,
        plan: &mut Plan,
    ) -> FxHashSet<IpAddr> {
        let backends: FxHashSet<IpAddr> = self.backends().map(|backend| backend.address).collect();
        let mut shared: FxHashMap<Arc<Ruleset>, ()> = FxHashMap::default();
        let mut share = |given: &Arc<Ruleset>, own: Ruleset| {
            let own = if own == **given { Arc::clone(given) } else { Arc::new(own) };
            let (known, ()) = shared.get_key_value(&own).unwrap_or((&own, &()));
            let known = Arc::clone(known);
            shared.insert(Arc::clone(&known), ());
            known
        };
        let mut selves = FxHashSet::default();
        for (key, subject) in &mut plan.subjects {
            let pod = state.pod(key).expect("a subject is a pod of the cluster");
            let own = facts.of_pod(pod);
            let as_backend: Vec<(IpAddr, Vec<Fact>)> = subject
                .addresses
                .iter()
                .filter(|address| backends.contains(address))
                .map(|&address| (address, facts.at(address)))
                .collect();
            let as_backend = as_backend.iter().map(|(address, facts)| (*address, &**facts));
            subject.ingress = share(&subject.ingress, subject.ingress.for_subject(&own, []));
            subject.egress = share(&subject.egress, subject.egress.for_subject(&own, as_backend));
            selves.extend(subject.egress.tiers().into_iter().flat_map(|tiers| &tiers.own.backends));
        }
        selves
    }

    /// What rulesets can tell of every virtual address. `selves` are the backends that must be told from others with the
    /// same facts.
    pub(super) fn resolve(
        &self,
        facts: &mut Facts<'_>,
        selves: &FxHashSet<IpAddr>,
    ) -> Vec<(IpAddr, Arc<[ServiceFacts]>)> {
        let mut facts_at: FxHashMap<IpAddr, Arc<[Fact]>> = FxHashMap::default();
        let mut known: FxHashMap<*const Port, Arc<[ServiceFacts]>> = FxHashMap::default();
        let mut resolve = |port: &Port| {
            let mut backend = |backend: &Backend| BackendFacts {
                facts: facts_at.entry(backend.address).or_insert_with(|| facts.at(backend.address).into()).clone(),
                port: backend.port,
                local: selves.contains(&backend.address).then_some(backend.address),
            };
            let mut backends: Vec<_> = port.backends.iter().map(&mut backend).collect();
            backends.sort();
            backends.dedup();
            ServiceFacts { protocol: port.protocol, port: port.number, backends }
        };
        let mut all = |ports: &Arc<[Port]>| {
            known.entry(ports.as_ptr()).or_insert_with(|| ports.iter().map(&mut resolve).collect()).clone()
        };
        self.0.iter().map(|(address, ports)| (*address, all(ports))).collect()
    }
}

#[cfg(test)]
mod tests;
