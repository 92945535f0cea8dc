//! Services and their backends.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::policy::PortProtocol;

/// A Service's namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service, as far as addresses go. A headless one or an `ExternalName` has none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `spec.clusterIPs`, in written order.
    pub cluster_addresses: Vec<IpAddr>,
    /// `spec.externalIPs` and `status.loadBalancer.ingress[].ip`, except those with `ipMode: Proxy`.
    pub external_addresses: Vec<IpAddr>,
    /// `spec.ports`, in written order.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`: which backends a pod reaches through a cluster address.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`: whether a node hides who comes from outside the cluster.
    pub external_policy: TrafficPolicy,
}

impl Service {
    /// Whether it has an address of its own, be it for clients in the cluster or outside.
    pub fn has_address(&self) -> bool {
        !self.cluster_addresses.is_empty() || !self.external_addresses.is_empty()
    }
}

/// Which backends a node uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TrafficPolicy {
    /// All of the cluster.
    Cluster,
    /// Its own.
    Local,
}

/// One item of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServicePort {
    /// `name`; empty if it has none. Slices name their ports alike.
    pub name: Arc<str>,
    /// `protocol`, TCP if absent.
    pub protocol: PortProtocol,
    /// `port`.
    pub port: u16,
    /// `nodePort`, open on every node's addresses.
    pub node_port: Option<u16>,
}

/// An EndpointSlice's namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SliceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for SliceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Some of a Service's backends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: SliceKey,
    /// The Service's name, in the same namespace (label `kubernetes.io/service-name`); `None`: it belongs to none.
    pub service: Option<Arc<str>>,
    /// `ports` that have a number.
    pub ports: Vec<SlicePort>,
    /// `endpoints`, ready or not: those with an IP address.
    pub endpoints: Vec<Endpoint>,
}

/// One item of a slice's `ports`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SlicePort {
    /// `name`; empty if it has none.
    pub name: Arc<str>,
    /// `protocol`, TCP if absent.
    pub protocol: PortProtocol,
    /// `port`.
    pub number: u16,
}

/// One item of a slice's `endpoints`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// The first of its `addresses`: kube-proxy uses no other.
    pub address: IpAddr,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
}

/// A port of a Service at one of its addresses, and where it leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frontend<'a> {
    /// Whose it is.
    pub service: &'a Arc<Service>,
    /// How the address belongs to the Service.
    pub kind: FrontendKind,
    /// Protocol.
    pub protocol: PortProtocol,
    /// Port at the address.
    pub port: u16,
    /// Backends of the address's family, ready or not, ascending, each once. Traffic policies are not applied yet.
    pub backends: Vec<Backend>,
    /// Backends of other Services that claim the same port, as two may claim one external address: nobody can say whose a
    /// proxy takes.
    pub others: Vec<Backend>,
}

/// How an address belongs to a Service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum FrontendKind {
    /// A cluster address: nobody's but the Service's, on every port.
    Cluster,
    /// An external or load balancer's address: the Service's on its ports, else whoever's it is.
    External,
    /// A node's address on a node port.
    NodePort,
}

/// Where a Service leads.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Backend {
    /// Address.
    pub address: IpAddr,
    /// Port: the Service's `targetPort`, as the slices have resolved it.
    pub port: u16,
    /// The node it runs on, as the slice says.
    pub node: Option<Arc<str>>,
}

impl Frontend<'_> {
    /// The backends that clients in the pod network of a node are sent to: all, or that node's own where a cluster
    /// address has a Local policy. External addresses and node ports lead pods to every node's, whatever the policy.
    pub fn usable(&self, node: Option<&str>) -> impl Iterator<Item = &Backend> {
        let own_only = self.kind == FrontendKind::Cluster && self.service.internal_policy == TrafficPolicy::Local;
        let is_usable = move |backend: &&Backend| !own_only || (node.is_some() && backend.node.as_deref() == node);
        self.backends.iter().filter(is_usable).chain(&self.others)
    }

    /// Every backend, of whatever node.
    pub fn every_backend(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().chain(&self.others)
    }
}
