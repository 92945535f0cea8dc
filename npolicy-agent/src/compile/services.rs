//! From Services to what their virtual addresses stand for.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use npolicy_common::Family;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::plan::{BackendFacts, Fact, ServiceFacts};
use crate::model::{Backend, ClusterState, Frontend, FrontendKind, Owner, PortProtocol, family};

/// Where Services have ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(super) enum Virtual {
    /// At an address of their own.
    Address(IpAddr),
    /// At every address of a node that is no Service's own: the node ports of a family.
    NodePorts(Family),
}

impl Virtual {
    /// The node ports of both families.
    pub(super) const NODE_PORTS: [Self; 2] = [Self::NodePorts(Family::V4), Self::NodePorts(Family::V6)];
}

/// A Service's port, with the backends that this node uses.
#[derive(Debug)]
struct Port {
    protocol: PortProtocol,
    number: u16,
    backends: Vec<Backend>,
}

#[derive(Debug)]
struct Entry {
    ports: Vec<Port>,
    /// What rulesets can tell of them.
    facts: Arc<[ServiceFacts]>,
}

/// Every virtual address with its Services' ports.
#[derive(Default, Debug)]
pub(super) struct Virtuals {
    entries: FxHashMap<Virtual, Entry>,
    /// By address of a backend: where it is one.
    of_backend: FxHashMap<IpAddr, SmallVec<[Virtual; 1]>>,
    /// Backends that must be told from others with the same facts: a subject reaches itself there in another way than
    /// others reach it.
    selves: FxHashSet<IpAddr>,
    /// Where Services had ports until [`Self::refresh`] found none.
    gone: FxHashSet<Virtual>,
}

impl Virtuals {
    /// Looks at the Services again. `node` is the node whose clients are meant; `None`: no node's, every backend counts.
    /// `own` are addresses that this node has beside those that the cluster says. Addresses that are backends now and were not, or the other way round, go into `moved`.
    ///
    /// An address that a pod has is not a Service's as a cluster address: the pod comes first.
    pub(super) fn refresh(
        &mut self,
        state: &ClusterState,
        node: Option<&str>,
        own: &BTreeSet<IpAddr>,
        which: Virtual,
        moved: &mut FxHashSet<IpAddr>,
    ) {
        let ports = match which {
            Virtual::Address(address) => is_services(state, address).then(|| ports(state, node, own, address)),
            Virtual::NodePorts(wanted) if state.has_node_ports() => {
                let addresses = state.nodes().flat_map(|node| &node.addresses).chain(own).copied();
                let mut plain = addresses.filter(|&at| family(at) == wanted && !is_services(state, at));
                plain.next().map(|address| ports(state, node, own, address))
            }
            Virtual::NodePorts(_) => None,
        };
        let backends = |ports: &[Port]| -> BTreeSet<IpAddr> {
            ports.iter().flat_map(|port| &port.backends).map(|backend| backend.address).collect()
        };
        let now = ports.as_deref().map(backends).unwrap_or_default();
        let before = match (self.entries.get_mut(&which), ports) {
            (Some(entry), Some(ports)) => backends(&std::mem::replace(&mut entry.ports, ports)),
            (None, Some(ports)) => {
                self.entries.insert(which, Entry { ports, facts: Arc::default() });
                BTreeSet::new()
            }
            (Some(_), None) => {
                self.gone.insert(which);
                self.entries.remove(&which).map(|entry| backends(&entry.ports)).unwrap_or_default()
            }
            (None, None) => return,
        };
        for &gone in before.difference(&now) {
            let places = self.of_backend.get_mut(&gone).expect("a backend is listed");
            places.retain(|&mut place| place != which);
            if places.is_empty() {
                self.of_backend.remove(&gone);
                moved.insert(gone);
            }
        }
        for &new in now.difference(&before) {
            let places = self.of_backend.entry(new).or_default();
            if places.is_empty() {
                moved.insert(new);
            }
            places.push(which);
        }
    }

    /// Says at which addresses a subject reaches itself in its own way, and at which it did; where these are backends goes
    /// into `changed`.
    pub(super) fn set_selves(&mut self, before: &[IpAddr], now: &[IpAddr], changed: &mut FxHashSet<Virtual>) {
        for address in before.iter().filter(|address| !now.contains(address)) {
            self.selves.remove(address);
            changed.extend(self.places(*address));
        }
        for address in now.iter().filter(|address| !before.contains(address)) {
            self.selves.insert(*address);
            changed.extend(self.places(*address));
        }
    }

    /// Where an address is a backend.
    pub(super) fn places(&self, backend: IpAddr) -> &[Virtual] {
        self.of_backend.get(&backend).map_or(&[], |places| places)
    }

    /// Every address that is a backend.
    pub(super) fn backends(&self) -> impl Iterator<Item = IpAddr> {
        self.of_backend.keys().copied()
    }

    /// Finds out what rulesets can tell of the ports somewhere; `facts_at` is what is said of an address. Returns whether
    /// that is something else than before.
    pub(super) fn resolve(&mut self, which: Virtual, mut facts_at: impl FnMut(IpAddr) -> Arc<[Fact]>) -> bool {
        let was_gone = self.gone.remove(&which);
        let Some(entry) = self.entries.get_mut(&which) else { return was_gone };
        let selves = &self.selves;
        let resolve = |port: &Port| {
            let mut backend = |backend: &Backend| BackendFacts {
                facts: facts_at(backend.address),
                port: backend.port,
                local: selves.contains(&backend.address).then_some(backend.address),
            };
            let mut backends: Vec<_> = port.backends.iter().map(&mut backend).collect();
            backends.sort();
            backends.dedup();
            ServiceFacts { protocol: port.protocol, port: port.number, backends }
        };
        let facts: Arc<[ServiceFacts]> = entry.ports.iter().map(resolve).collect();
        let differ = facts != entry.facts;
        if differ {
            entry.facts = facts;
        }
        differ || was_gone
    }

    /// What rulesets can tell of Services' ports at an address; `None` if it is no virtual address. `own` as in
    /// [`Self::refresh`].
    pub(super) fn at(
        &self,
        state: &ClusterState,
        own: &BTreeSet<IpAddr>,
        address: IpAddr,
    ) -> Option<&Arc<[ServiceFacts]>> {
        if self.entries.is_empty() {
            return None;
        }
        let entry = self.entries.get(&Virtual::Address(address)).or_else(|| {
            let node_ports = self.entries.get(&Virtual::NodePorts(family(address)))?;
            (!node_ports.facts.is_empty() && is_nodes(state, own, address)).then_some(node_ports)
        })?;
        Some(&entry.facts)
    }

    /// Whether Services have ports there.
    pub(super) fn contains(&self, which: Virtual) -> bool {
        self.entries.contains_key(&which)
    }
}

/// Whether a Service has the address as its own.
pub(super) fn is_services(state: &ClusterState, address: IpAddr) -> bool {
    state.services_at(address).next().is_some()
}

/// Whether node ports are open on an address: every node's, and what this node has beside, but for cluster addresses that
/// kube-proxy puts on an interface.
fn is_nodes(state: &ClusterState, own: &BTreeSet<IpAddr>, address: IpAddr) -> bool {
    !state.nodes_at(address).is_empty()
        || (own.contains(&address) && !matches!(state.owner(address), Owner::Service(_)))
}

fn ports(state: &ClusterState, node: Option<&str>, own: &BTreeSet<IpAddr>, address: IpAddr) -> Vec<Port> {
    let is_pods = matches!(state.owner(address), Owner::Pod(_));
    let frontends = state.frontends_at(address, is_nodes(state, own, address)).into_iter();
    let frontends = frontends.filter(|frontend| !is_pods || frontend.kind != FrontendKind::Cluster);
    let port = |frontend: Frontend<'_>| Port {
        protocol: frontend.protocol,
        number: frontend.port,
        backends: match node {
            Some(_) => frontend.usable(node).cloned().collect(),
            None => frontend.every_backend().cloned().collect(),
        },
    };
    frontends.map(port).collect()
}

#[cfg(test)]
mod tests;
