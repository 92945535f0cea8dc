//! The kinds that are watched: where the API server has each, and what is read of it.

use std::fmt;

use super::prune::Keep;
use crate::model::ObjectKey;

/// A kind of object that bears on policy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Kind {
    /// `v1`.
    Pod,
    /// `v1`.
    Namespace,
    /// `v1`.
    Node,
    /// `v1`.
    Service,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `policy.networking.k8s.io`, in the newest of the known versions that is served; a cluster need not have it.
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind, in the order of [`Kind::index`].
    pub const ALL: [Self; 7] = [
        Self::Pod,
        Self::Namespace,
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// The kind of an object.
    pub fn of(key: &ObjectKey) -> Self {
        match key {
            ObjectKey::Pod(_) => Self::Pod,
            ObjectKey::Namespace(_) => Self::Namespace,
            ObjectKey::Node(_) => Self::Node,
            ObjectKey::Service(_) => Self::Service,
            ObjectKey::EndpointSlice(_) => Self::EndpointSlice,
            ObjectKey::Policy(_) => Self::NetworkPolicy,
            ObjectKey::ClusterPolicy(_) => Self::ClusterNetworkPolicy,
        }
    }

    /// Its place in [`Kind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name in the API, like `NetworkPolicy`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// The group and the plural name, as rules of a ClusterRole have them; the group of the core is empty.
    pub(super) const fn resource(self) -> (&'static str, &'static str) {
        match self {
            Self::Pod => ("", "pods"),
            Self::Namespace => ("", "namespaces"),
            Self::Node => ("", "nodes"),
            Self::Service => ("", "services"),
            Self::EndpointSlice => ("discovery.k8s.io", "endpointslices"),
            Self::NetworkPolicy => ("networking.k8s.io", "networkpolicies"),
            Self::ClusterNetworkPolicy => (CLUSTER_POLICY_GROUP, CLUSTER_POLICY_RESOURCE),
        }
    }

    /// Where its objects are; `None`: whatever discovery says.
    pub(super) const fn path(self) -> Option<&'static str> {
        Some(match self {
            Self::Pod => "/api/v1/pods",
            Self::Namespace => "/api/v1/namespaces",
            Self::Node => "/api/v1/nodes",
            Self::Service => "/api/v1/services",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::ClusterNetworkPolicy => return None,
        })
    }

    /// What is kept of an object of it: what the reader of objects asks for, and what says where a watch is.
    ///
    /// Of policies everything in `spec` is kept, since a field of the future may narrow what a rule means. Of the other kinds
    /// an unknown field means nothing here, and the API server has checked what is known.
    pub(super) const fn keep(self) -> &'static Keep {
        match self {
            Self::Pod => &POD,
            Self::Namespace => &NAMESPACE,
            Self::Node => &NODE,
            Self::Service => &SERVICE,
            Self::EndpointSlice => &SLICE,
            Self::NetworkPolicy | Self::ClusterNetworkPolicy => &POLICY,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The group of the kind that is a custom resource.
pub(super) const CLUSTER_POLICY_GROUP: &str = "policy.networking.k8s.io";
/// Its plural name.
pub(super) const CLUSTER_POLICY_RESOURCE: &str = "clusternetworkpolicies";

/// The annotation of the bookmark that ends the list in a streaming list (`api/meta/v1/types.go`, since v1.27).
pub(super) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

const METADATA: Keep = Keep::Fields(&[
    ("name", Keep::All),
    ("namespace", Keep::All),
    ("labels", Keep::All),
    ("uid", Keep::All),
    ("creationTimestamp", Keep::All),
    ("deletionTimestamp", Keep::All),
    ("resourceVersion", Keep::All),
    ("annotations", Keep::Fields(&[(INITIAL_EVENTS_END, Keep::All)])),
]);

/// `metadata`, and what a `Status` says, which may stand in an object's place.
macro_rules! object {
    ($($field:tt)*) => {
        Keep::Fields(&[
            ("metadata", METADATA),
            ("code", Keep::All),
            ("reason", Keep::All),
            ("message", Keep::All),
            ("details", Keep::Fields(&[("retryAfterSeconds", Keep::All)])),
            $($field)*
        ])
    };
}

const CONTAINERS: Keep = Keep::Each(&Keep::Fields(&[
    ("ports", Keep::Each(&Keep::Fields(&[("name", Keep::All), ("containerPort", Keep::All), ("protocol", Keep::All)]))),
    ("restartPolicy", Keep::All),
]));

static POD: Keep = object! {
    ("spec", Keep::Fields(&[
        ("nodeName", Keep::All),
        ("hostNetwork", Keep::All),
        ("containers", CONTAINERS),
        ("initContainers", CONTAINERS),
    ])),
    ("status", Keep::Fields(&[
        ("phase", Keep::All),
        ("podIP", Keep::All),
        ("podIPs", Keep::Each(&Keep::Fields(&[("ip", Keep::All)]))),
        ("startTime", Keep::All),
        ("conditions", Keep::Each(&Keep::Fields(&[
            ("type", Keep::All),
            ("status", Keep::All),
            ("lastTransitionTime", Keep::All),
        ]))),
        ("containerStatuses", Keep::Each(&Keep::Fields(&[
            ("state", Keep::Fields(&[("running", Keep::Fields(&[("startedAt", Keep::All)]))])),
        ]))),
    ])),
};

static NAMESPACE: Keep = object! {};

static NODE: Keep = object! {
    ("spec", Keep::Fields(&[("podCIDRs", Keep::All)])),
    ("status", Keep::Fields(&[
        ("addresses", Keep::Each(&Keep::Fields(&[("type", Keep::All), ("address", Keep::All)]))),
    ])),
};

static SERVICE: Keep = object! {
    ("spec", Keep::Fields(&[
        ("type", Keep::All),
        ("clusterIP", Keep::All),
        ("clusterIPs", Keep::All),
        ("externalIPs", Keep::All),
        ("externalTrafficPolicy", Keep::All),
        ("internalTrafficPolicy", Keep::All),
        ("ports", Keep::Each(&Keep::Fields(&[
            ("name", Keep::All),
            ("protocol", Keep::All),
            ("port", Keep::All),
            ("nodePort", Keep::All),
        ]))),
    ])),
    ("status", Keep::Fields(&[
        ("loadBalancer", Keep::Fields(&[
            ("ingress", Keep::Each(&Keep::Fields(&[("ip", Keep::All), ("ipMode", Keep::All)]))),
        ])),
    ])),
};

static SLICE: Keep = object! {
    ("addressType", Keep::All),
    ("ports", Keep::Each(&Keep::Fields(&[("name", Keep::All), ("protocol", Keep::All), ("port", Keep::All)]))),
    ("endpoints", Keep::Each(&Keep::Fields(&[("addresses", Keep::All), ("nodeName", Keep::All)]))),
};

static POLICY: Keep = object! { ("spec", Keep::All) };
