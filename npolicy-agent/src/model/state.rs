//! The cluster as a whole, changed by one event at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::cluster::{Namespace, Node, Pod, PodKey, family};
use super::cluster_policy::{ClusterPolicy, Tier};
use super::diagnostic::{Diagnostic, Severity};
use super::labels::Labels;
use super::policy::{NetworkPolicy, PolicyKey};
use super::service::{Backend, EndpointSlice, Frontend, FrontendKind, Service, ServiceKey, ServicePort, SliceKey};

/// An object as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A NetworkPolicy.
    Policy(NetworkPolicy),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(ClusterPolicy),
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
}

impl Object {
    /// What the object is called.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Pod(pod) => ObjectKey::Pod(pod.key.clone()),
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.clone()),
            Self::Node(node) => ObjectKey::Node(node.name.clone()),
            Self::Policy(policy) => ObjectKey::Policy(policy.key.clone()),
            Self::ClusterPolicy(policy) => ObjectKey::ClusterPolicy(policy.name.clone()),
            Self::Service(service) => ObjectKey::Service(service.key.clone()),
            Self::EndpointSlice(slice) => ObjectKey::EndpointSlice(slice.key.clone()),
        }
    }
}

/// What an object is called.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum ObjectKey {
    /// A pod.
    Pod(PodKey),
    /// A namespace.
    Namespace(Arc<str>),
    /// A node.
    Node(Arc<str>),
    /// A NetworkPolicy.
    Policy(PolicyKey),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(Arc<str>),
    /// A Service.
    Service(ServiceKey),
    /// An EndpointSlice.
    EndpointSlice(SliceKey),
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "Pod {key}"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Policy(key) => write!(f, "NetworkPolicy {key}"),
            Self::ClusterPolicy(name) => write!(f, "ClusterNetworkPolicy {name}"),
            Self::Service(key) => write!(f, "Service {key}"),
            Self::EndpointSlice(key) => write!(f, "EndpointSlice {key}"),
        }
    }
}

/// One change of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An object is new, or is now like this.
    Upsert(Object),
    /// An object is gone.
    Delete(ObjectKey),
}

impl Event {
    /// What the object is called that the event is about.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Upsert(object) => object.key(),
            Self::Delete(key) => key.clone(),
        }
    }
}

/// Who an address belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner<'a> {
    /// A pod with a network namespace of its own.
    Pod(&'a Arc<Pod>),
    /// A Service, as one of its cluster addresses.
    Service(&'a Arc<Service>),
    /// A node, or a pod in its network namespace.
    Node(&'a Arc<Node>),
    /// Nobody in the cluster.
    Outside,
}

/// The cluster as plain values. Any sequence of events that ends in the same objects ends in an equal state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterState {
    pods: BTreeMap<PodKey, Arc<Pod>>,
    namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    policies: BTreeMap<PolicyKey, Arc<NetworkPolicy>>,
    cluster_policies: BTreeMap<Arc<str>, Arc<ClusterPolicy>>,
    services: BTreeMap<ServiceKey, Arc<Service>>,
    slices: BTreeMap<SliceKey, Arc<EndpointSlice>>,
    /// Slices by the Service that they belong to, which need not exist; ascending by name.
    slices_by_service: FxHashMap<ServiceKey, BTreeSet<Arc<str>>>,
    /// Services by cluster address, ascending by key.
    cluster_addresses: FxHashMap<IpAddr, Claims<Service>>,
    /// Services by external address, ascending by key.
    external_addresses: FxHashMap<IpAddr, Claims<Service>>,
    /// Services with a port that is open on nodes.
    node_ports: BTreeSet<ServiceKey>,
    /// Enforceable pods by address, newest sandbox first.
    pod_addresses: FxHashMap<IpAddr, Claims<Pod>>,
    /// Nodes by address, ascending by name.
    node_addresses: FxHashMap<IpAddr, Claims<Node>>,
}

/// Those who claim one address; the first has it.
type Claims<T> = smallvec::SmallVec<[Arc<T>; 1]>;

impl ClusterState {
    /// Makes one change; returns whether anything is different now.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Upsert(Object::Pod(pod)) => self.upsert_pod(pod),
            Event::Upsert(Object::Namespace(namespace)) => {
                replace(&mut self.namespaces, namespace.name.clone(), Arc::new(namespace))
            }
            Event::Upsert(Object::Node(node)) => self.upsert_node(node),
            Event::Upsert(Object::Policy(policy)) => replace(&mut self.policies, policy.key.clone(), Arc::new(policy)),
            Event::Upsert(Object::ClusterPolicy(policy)) => {
                replace(&mut self.cluster_policies, policy.name.clone(), Arc::new(policy))
            }
            Event::Upsert(Object::Service(service)) => self.upsert_service(service),
            Event::Upsert(Object::EndpointSlice(slice)) => self.upsert_slice(slice),
            Event::Delete(ObjectKey::Pod(key)) => self.remove_pod(&key),
            Event::Delete(ObjectKey::Namespace(name)) => self.namespaces.remove(&name).is_some(),
            Event::Delete(ObjectKey::Node(name)) => self.remove_node(&name),
            Event::Delete(ObjectKey::Policy(key)) => self.policies.remove(&key).is_some(),
            Event::Delete(ObjectKey::ClusterPolicy(name)) => self.cluster_policies.remove(&name).is_some(),
            Event::Delete(ObjectKey::Service(key)) => self.remove_service(&key),
            Event::Delete(ObjectKey::EndpointSlice(key)) => self.remove_slice(&key),
        }
    }

    /// Makes one change; returns the event that would undo it, if anything is different now.
    pub fn change(&mut self, event: Event) -> Option<Event> {
        let key = event.key();
        let before = self.object(&key);
        self.apply(event).then(|| before.map_or(Event::Delete(key), Event::Upsert))
    }

    /// An object by name.
    pub fn object(&self, key: &ObjectKey) -> Option<Object> {
        Some(match key {
            ObjectKey::Pod(key) => Object::Pod((**self.pods.get(key)?).clone()),
            ObjectKey::Namespace(name) => Object::Namespace((**self.namespaces.get(name)?).clone()),
            ObjectKey::Node(name) => Object::Node((**self.nodes.get(name)?).clone()),
            ObjectKey::Policy(key) => Object::Policy((**self.policies.get(key)?).clone()),
            ObjectKey::ClusterPolicy(name) => Object::ClusterPolicy((**self.cluster_policies.get(name)?).clone()),
            ObjectKey::Service(key) => Object::Service((**self.services.get(key)?).clone()),
            ObjectKey::EndpointSlice(key) => Object::EndpointSlice((**self.slices.get(key)?).clone()),
        })
    }

    /// Every pod, ascending by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// A pod by name.
    pub fn pod(&self, key: &PodKey) -> Option<&Arc<Pod>> {
        self.pods.get(key)
    }

    /// Every namespace, ascending by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.namespaces.values()
    }

    /// A namespace by name.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// Every node, ascending by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// Every NetworkPolicy, ascending by namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.policies.values()
    }

    /// The NetworkPolicies of a namespace, ascending by name.
    pub fn policies_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        let first = PolicyKey { namespace: namespace.clone(), name: "".into() };
        self.policies.range(first..).map(|(_, policy)| policy).take_while(|policy| policy.key.namespace == *namespace)
    }

    /// The NetworkPolicies that select a pod, ascending by name.
    pub fn policies_of(&self, pod: &Pod) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.policies_in(&pod.key.namespace).filter(|policy| policy.subject.matches(&pod.labels))
    }

    /// A NetworkPolicy by name.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<NetworkPolicy>> {
        self.policies.get(key)
    }

    /// A ClusterNetworkPolicy by name.
    pub fn cluster_policy(&self, name: &str) -> Option<&Arc<ClusterPolicy>> {
        self.cluster_policies.get(name)
    }

    /// Every ClusterNetworkPolicy, ascending by name.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &Arc<ClusterPolicy>> {
        self.cluster_policies.values()
    }

    /// The ClusterNetworkPolicies of a tier that select a pod, in the order in which they are asked: by priority, then by
    /// the bytes of their names.
    pub fn cluster_policies_of(&self, pod: &Pod, tier: Tier) -> Vec<&Arc<ClusterPolicy>> {
        if self.cluster_policies.is_empty() {
            return Vec::new();
        }
        let namespace = self.namespace_labels(&pod.key.namespace);
        let selects =
            |policy: &&Arc<ClusterPolicy>| policy.tier == tier && policy.subject.matches(&namespace, &pod.labels);
        let mut found: Vec<_> = self.cluster_policies.values().filter(selects).collect();
        found.sort_by_key(|policy| policy.priority);
        found
    }

    /// Every Service, ascending by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// A Service by name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Every EndpointSlice, ascending by namespace and name.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices.values()
    }

    /// An EndpointSlice by name.
    pub fn slice(&self, key: &SliceKey) -> Option<&Arc<EndpointSlice>> {
        self.slices.get(key)
    }

    /// The Services that have an address as their own, as a cluster address or an external one; in no order, and some
    /// twice.
    pub fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let claims = [self.cluster_addresses.get(&address), self.external_addresses.get(&address)];
        claims.into_iter().flatten().flatten()
    }

    /// Whether some Service has a port that is open on nodes.
    pub fn has_node_ports(&self) -> bool {
        !self.node_ports.is_empty()
    }

    /// The EndpointSlices of a Service, ascending by name.
    pub fn slices_of(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let names = self.slices_by_service.get(key).into_iter().flatten();
        names.map(|name| {
            let slice = SliceKey { namespace: key.namespace.clone(), name: name.clone() };
            self.slices.get(&slice).expect("an indexed slice exists")
        })
    }

    /// Every address at which some Service has a frontend, nodes' among them; in no order, and some twice.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let nodes = (!self.node_ports.is_empty()).then(|| self.node_addresses.keys()).into_iter().flatten();
        self.cluster_addresses.keys().chain(self.external_addresses.keys()).chain(nodes).copied()
    }

    /// What Services have at an address, as a destination: ascending by protocol and port, each once. Where several Services
    /// claim one port, a cluster address comes before an external one and that before a node port, then the first by
    /// namespace and name; where the others lead counts too.
    pub fn frontends<'a>(&'a self, address: IpAddr) -> Vec<Frontend<'a>> {
        self.frontends_at(address, self.node_addresses.contains_key(&address))
    }

    /// The same, where the caller knows whether a node has the address: this node has some that the cluster does not list,
    /// and its node ports are open on them too.
    pub fn frontends_at<'a>(&'a self, address: IpAddr, is_nodes: bool) -> Vec<Frontend<'a>> {
        let mut found = Vec::new();
        let mut add = |service: &'a Arc<Service>, kind, ports: &dyn Fn(&ServicePort) -> Option<u16>| {
            for (at, port) in service.ports.iter().filter_map(|at| Some((at, ports(at)?))) {
                found.push((at.protocol, port, kind, service, at));
            }
        };
        for service in self.cluster_addresses.get(&address).into_iter().flatten() {
            add(service, FrontendKind::Cluster, &|port| Some(port.port));
        }
        for service in self.external_addresses.get(&address).into_iter().flatten() {
            add(service, FrontendKind::External, &|port| Some(port.port));
        }
        if is_nodes {
            for key in &self.node_ports {
                let service = &self.services[key];
                // A node port is open in the families of the Service alone.
                if service.cluster_addresses.iter().any(|cluster| family(*cluster) == family(address)) {
                    add(service, FrontendKind::NodePort, &|port| port.node_port);
                }
            }
        }
        found.sort_by(|a, b| (a.0, a.1, a.2, &a.3.key).cmp(&(b.0, b.1, b.2, &b.3.key)));
        let mut frontends: Vec<Frontend<'a>> = Vec::with_capacity(found.len());
        for (protocol, port, kind, service, at) in found {
            let backends = self.backends(service, at, address);
            match frontends.last_mut().filter(|first| (first.protocol, first.port) == (protocol, port)) {
                Some(first) => {
                    let new = backends.into_iter().filter(|backend| !first.backends.contains(backend));
                    first.others.extend(new);
                }
                None => {
                    frontends.push(Frontend { service, kind, protocol, port, backends, others: Vec::new() });
                }
            }
        }
        frontends
    }

    fn backends(&self, service: &Service, port: &ServicePort, at: IpAddr) -> Vec<Backend> {
        let mut backends = Vec::new();
        for slice in self.slices_of(&service.key) {
            let ports = slice.ports.iter().filter(|known| known.name == port.name && known.protocol == port.protocol);
            for known in ports {
                let endpoints = slice.endpoints.iter().filter(|endpoint| family(endpoint.address) == family(at));
                backends.extend(endpoints.map(|endpoint| Backend {
                    address: endpoint.address,
                    port: known.number,
                    node: endpoint.node.clone(),
                }));
            }
        }
        backends.sort();
        backends.dedup();
        backends
    }

    /// Names of the namespaces that exist, as objects or because something is in them.
    pub fn namespace_names(&self) -> BTreeSet<&Arc<str>> {
        let used = self.pods.keys().map(|key| &key.namespace).chain(self.policies.keys().map(|key| &key.namespace));
        self.namespaces.keys().chain(used).collect()
    }

    /// The labels of a namespace; one that only occurs in other objects has the automatic label alone.
    pub fn namespace_labels(&self, name: &Arc<str>) -> Labels {
        match self.namespaces.get(name) {
            Some(namespace) => namespace.labels.clone(),
            None => Namespace::new(name.clone(), &Labels::default()).labels,
        }
    }

    /// Who has an address.
    ///
    /// 1. The enforceable pod that claims it; of several, the one with the newest sandbox.
    /// 2. Else the Service of which it is a cluster address; of several, the first by namespace and name.
    /// 3. Else the node that has it; of several, the first by name.
    /// 4. Else nobody in the cluster.
    pub fn owner(&self, address: IpAddr) -> Owner<'_> {
        if let Some(pods) = self.pod_addresses.get(&address) {
            return Owner::Pod(&pods[0]);
        }
        if let Some(services) = self.cluster_addresses.get(&address) {
            return Owner::Service(&services[0]);
        }
        self.node_addresses.get(&address).map_or(Owner::Outside, |nodes| Owner::Node(&nodes[0]))
    }

    /// The addresses that a pod claims and has. None for a pod that policy cannot apply to.
    pub fn addresses_of<'a>(&'a self, pod: &'a Arc<Pod>) -> impl Iterator<Item = IpAddr> + 'a {
        pod.addresses.iter().copied().filter(|&address| match self.owner(address) {
            Owner::Pod(owner) => owner.key == pod.key,
            Owner::Service(_) | Owner::Node(_) | Owner::Outside => false,
        })
    }

    /// Every node that has an address, ascending by name.
    pub fn nodes_at(&self, address: IpAddr) -> &[Arc<Node>] {
        self.node_addresses.get(&address).map_or(&[], |nodes| nodes)
    }

    /// Says of each address that several live pods claim who has it.
    pub fn diagnose_addresses(&self) -> Vec<Diagnostic> {
        let mut found: Vec<_> =
            self.pod_addresses.keys().filter_map(|&address| self.diagnose_address(address)).collect();
        found.sort();
        found
    }

    /// Says who has an address, if several live pods claim it.
    pub fn diagnose_address(&self, address: IpAddr) -> Option<Diagnostic> {
        let [first, second, ..] = &**self.pod_addresses.get(&address)? else { return None };
        Some(Diagnostic {
            place: None,
            severity: Severity::Warning,
            object: Some(ObjectKey::Pod(second.key.clone()).to_string().into()),
            field: Some("status.podIPs".into()),
            message: format!("{address} belongs to {}, {}", first.key, precedence(first, second)),
        })
    }

    fn upsert_pod(&mut self, pod: Pod) -> bool {
        if self.pods.get(&pod.key).is_some_and(|known| **known == pod) {
            return false;
        }
        self.remove_pod(&pod.key);
        let pod = Arc::new(pod);
        if pod.is_enforceable() {
            for &address in &pod.addresses {
                let claims = self.pod_addresses.entry(address).or_default();
                claims.push(pod.clone());
                claims.sort_by(|a, b| (&b.age, &b.key).cmp(&(&a.age, &a.key)));
            }
        }
        self.pods.insert(pod.key.clone(), pod);
        true
    }

    fn remove_pod(&mut self, key: &PodKey) -> bool {
        let Some(pod) = self.pods.remove(key) else { return false };
        for address in &pod.addresses {
            withdraw(&mut self.pod_addresses, address, |claimant| claimant.key == *key);
        }
        true
    }

    fn upsert_node(&mut self, node: Node) -> bool {
        if self.nodes.get(&node.name).is_some_and(|known| **known == node) {
            return false;
        }
        self.remove_node(&node.name);
        let node = Arc::new(node);
        for &address in &node.addresses {
            let claims = self.node_addresses.entry(address).or_default();
            if !claims.iter().any(|known| known.name == node.name) {
                claims.push(node.clone());
                claims.sort_by(|a, b| a.name.cmp(&b.name));
            }
        }
        self.nodes.insert(node.name.clone(), node);
        true
    }

    fn remove_node(&mut self, name: &Arc<str>) -> bool {
        let Some(node) = self.nodes.remove(name) else { return false };
        for address in &node.addresses {
            withdraw(&mut self.node_addresses, address, |claimant| claimant.name == *name);
        }
        true
    }

    fn upsert_service(&mut self, service: Service) -> bool {
        if self.services.get(&service.key).is_some_and(|known| **known == service) {
            return false;
        }
        self.remove_service(&service.key);
        let service = Arc::new(service);
        for (index, addresses) in [
            (&mut self.cluster_addresses, &service.cluster_addresses),
            (&mut self.external_addresses, &service.external_addresses),
        ] {
            for &address in addresses {
                let claims = index.entry(address).or_default();
                if !claims.iter().any(|known| known.key == service.key) {
                    claims.push(service.clone());
                    claims.sort_by(|a, b| a.key.cmp(&b.key));
                }
            }
        }
        if service.ports.iter().any(|port| port.node_port.is_some()) {
            self.node_ports.insert(service.key.clone());
        }
        self.services.insert(service.key.clone(), service);
        true
    }

    fn remove_service(&mut self, key: &ServiceKey) -> bool {
        let Some(service) = self.services.remove(key) else { return false };
        for address in &service.cluster_addresses {
            withdraw(&mut self.cluster_addresses, address, |claimant| claimant.key == *key);
        }
        for address in &service.external_addresses {
            withdraw(&mut self.external_addresses, address, |claimant| claimant.key == *key);
        }
        self.node_ports.remove(key);
        true
    }

    fn upsert_slice(&mut self, slice: EndpointSlice) -> bool {
        if self.slices.get(&slice.key).is_some_and(|known| **known == slice) {
            return false;
        }
        self.remove_slice(&slice.key);
        if let Some(service) = &slice.service {
            let service = ServiceKey { namespace: slice.key.namespace.clone(), name: service.clone() };
            self.slices_by_service.entry(service).or_default().insert(slice.key.name.clone());
        }
        self.slices.insert(slice.key.clone(), Arc::new(slice));
        true
    }

    fn remove_slice(&mut self, key: &SliceKey) -> bool {
        let Some(slice) = self.slices.remove(key) else { return false };
        if let Some(service) = &slice.service {
            let service = ServiceKey { namespace: key.namespace.clone(), name: service.clone() };
            if let Some(names) = self.slices_by_service.get_mut(&service) {
                names.remove(&key.name);
                if names.is_empty() {
                    self.slices_by_service.remove(&service);
                }
            }
        }
        true
    }
}

fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    if map.get(&key) == Some(&value) {
        return false;
    }
    map.insert(key, value);
    true
}

/// Why the first of two pods has an address that both claim.
fn precedence(first: &Pod, second: &Pod) -> &'static str {
    if first.age.started != second.age.started {
        "whose sandbox is newer"
    } else if first.age.created != second.age.created {
        "which was created later"
    } else if first.age.uid != second.age.uid {
        "which comes later by uid"
    } else {
        "which comes later by name"
    }
}

fn withdraw<T>(claims: &mut FxHashMap<IpAddr, Claims<T>>, address: &IpAddr, is_claimant: impl Fn(&T) -> bool) {
    if let Some(claimants) = claims.get_mut(address) {
        claimants.retain(|claimant| !is_claimant(claimant));
        if claimants.is_empty() {
            claims.remove(address);
        }
    }
}

#[cfg(test)]
mod tests;
