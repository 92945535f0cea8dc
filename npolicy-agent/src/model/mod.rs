//! Stage 2: the cluster as plain values.
//!
//! In: [`Event`]s with objects that were read and checked once. Out: [`ClusterState`], and whether an event changed it.
//! Deterministic, no I/O.

mod cluster;
mod cluster_policy;
mod diagnostic;
mod labels;
mod policy;
mod service;
mod state;

pub use cluster::{Age, NamedPort, Namespace, Node, Phase, Pod, PodKey, PodNetwork, family, of_family};
pub use cluster_policy::{Action, ClusterMatch, ClusterPeer, ClusterPolicy, ClusterRule, PodSet, Tier};
pub use diagnostic::{Diagnostic, Place, Severity};
pub use labels::{Condition, Labels, NAMESPACE_NAME_LABEL, Requirement, Selector, Values};
pub use policy::{
    IpBlock, Namespaces, NetworkPolicy, Peer, Peers, PodPeer, PolicyKey, PortEntry, PortProtocol, Ports, Rule,
};
pub use service::{
    Backend, Endpoint, EndpointSlice, Frontend, FrontendKind, Service, ServiceKey, ServicePort, SliceKey, SlicePort,
    TrafficPolicy,
};
pub use state::{ClusterState, Event, Object, ObjectKey, Owner};
