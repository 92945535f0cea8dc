//! The kinds of objects that are served, and where.

/// A kind of object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `v1`.
    Namespace,
    /// `v1`.
    Node,
    /// `v1`.
    Pod,
    /// `v1`.
    Service,
    /// `v1`; for `kubectl describe`, which asks for them.
    Event,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `policy.networking.k8s.io`, in the versions that its CRD serves, if that is installed.
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::Event,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// The kinds that policy depends on.
    pub const WATCHED: [Self; 7] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// Its name, as in `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::Event => "Event",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// Its name in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::Event => "events",
            Self::EndpointSlice => "endpointslices",
            Self::NetworkPolicy => "networkpolicies",
            Self::ClusterNetworkPolicy => "clusternetworkpolicies",
        }
    }

    /// What people type for it.
    pub(super) fn short_names(self) -> &'static [&'static str] {
        match self {
            Self::Namespace => &["ns"],
            Self::Node => &["no"],
            Self::Pod => &["po"],
            Self::Service => &["svc"],
            Self::Event => &["ev"],
            Self::EndpointSlice => &[],
            Self::NetworkPolicy => &["netpol"],
            Self::ClusterNetworkPolicy => &["cnp"],
        }
    }

    /// Its API group; empty for the first one, which has no name.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::Event => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::NetworkPolicy => "networking.k8s.io",
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io",
        }
    }

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::ClusterNetworkPolicy)
    }

    /// Whether its status is written at a path of its own.
    pub(super) fn has_status(self) -> bool {
        matches!(self, Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ClusterNetworkPolicy)
    }

    /// Whether a CRD defines it. Lists of such a kind name kind and version in each item, others only once.
    pub(super) fn is_custom(self) -> bool {
        self == Self::ClusterNetworkPolicy
    }

    /// The kind of an object, by its `apiVersion` and `kind`.
    pub fn of(object: &serde_json::Value) -> Option<Self> {
        let (version, name) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        Self::ALL.into_iter().find(|kind| kind.name() == name && kind.group() == group)
    }

    /// `GROUP/VERSION`, or `VERSION` in the group without a name.
    pub(super) fn api_version(self, version: &str) -> String {
        match self.group() {
            "" => version.into(),
            group => format!("{group}/{version}"),
        }
    }

    /// `PLURAL.GROUP`, as errors name it.
    pub(super) fn qualified(self) -> String {
        match self.group() {
            "" => self.plural().into(),
            group => format!("{}.{group}", self.plural()),
        }
    }
}
