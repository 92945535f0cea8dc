//! Kinds: those that are read, those that bear on policy and are not, and those that are likely a typing error.

use crate::model::Severity;

use super::cluster_policy;
use super::cursor::nearest;
use super::slice;

/// Kinds that are read, with the `apiVersion` to write.
const READ: &[(&str, &str)] = &[
    ("Pod", "v1"),
    ("Namespace", "v1"),
    ("Node", "v1"),
    ("Service", "v1"),
    ("EndpointSlice", slice::VERSION),
    ("NetworkPolicy", "networking.k8s.io/v1"),
    ("ClusterNetworkPolicy", cluster_policy::VERSIONS[0]),
];

/// Kinds of `networking.k8s.io` that have nothing to do with policy.
const BESIDE: &[&str] = &["Ingress", "IngressClass", "IPAddress", "ServiceCIDR"];

/// Kinds of the core group that sound like one that is read.
const ALIKE: &[&str] = &["Endpoints", "EndpointsList"];

/// A kind that bears on policy and is not read.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NotEnforced {
    group: &'static str,
    kind: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// What it means that it is not read: an error where it could change a verdict.
    pub severity: Severity,
    /// What to write in its place, if a kind that is read can say the same.
    pub instead: Option<&'static str>,
}

impl NotEnforced {
    const fn policy(group: &'static str, kind: &'static str, name: &'static str) -> Self {
        Self { group, kind, name, severity: Severity::Error, instead: None }
    }

    const fn written_as(self, instead: &'static str) -> Self {
        Self { instead: Some(instead), ..self }
    }
}

static NOT_ENFORCED: [NotEnforced; 9] = [
    NotEnforced::policy("policy.networking.k8s.io", "AdminNetworkPolicy", "AdminNetworkPolicy")
        .written_as("a ClusterNetworkPolicy with `tier: Admin`"),
    NotEnforced::policy("policy.networking.k8s.io", "BaselineAdminNetworkPolicy", "BaselineAdminNetworkPolicy")
        .written_as("a ClusterNetworkPolicy with `tier: Baseline`"),
    NotEnforced::policy("networking.k8s.aws", "ClusterNetworkPolicy", "AWS ClusterNetworkPolicy")
        .written_as("a ClusterNetworkPolicy of policy.networking.k8s.io/v1beta1"),
    NotEnforced::policy("cilium.io", "CiliumNetworkPolicy", "CiliumNetworkPolicy"),
    NotEnforced::policy("cilium.io", "CiliumClusterwideNetworkPolicy", "CiliumClusterwideNetworkPolicy"),
    NotEnforced::policy("projectcalico.org", "NetworkPolicy", "Calico NetworkPolicy"),
    NotEnforced::policy("projectcalico.org", "GlobalNetworkPolicy", "Calico GlobalNetworkPolicy"),
    NotEnforced::policy("crd.projectcalico.org", "NetworkPolicy", "Calico NetworkPolicy"),
    NotEnforced::policy("crd.projectcalico.org", "GlobalNetworkPolicy", "Calico GlobalNetworkPolicy"),
];

/// The kind, if it bears on policy and is not read. Without a group, the kind alone says it.
pub(super) fn not_enforced(kind: &str, group: Option<&str>) -> Option<&'static NotEnforced> {
    NOT_ENFORCED.iter().find(|known| known.kind == kind && group.is_none_or(|group| group == known.group))
}

/// Whether it is a list of anything, or of a kind that is read.
pub(super) fn is_list_of_ours(kind: &str) -> bool {
    kind.strip_suffix("List").is_some_and(|item| item.is_empty() || READ.iter().any(|(read, _)| *read == item))
}

/// Why a kind that is not read may have been meant as one that is: the field to blame and the problem.
///
/// A group with a dot in its name, other than those that are read, is somebody else's, and so are its kinds; but a
/// NetworkPolicy or ClusterNetworkPolicy of any group is worth a word.
pub(super) fn doubt(kind: &str, group: Option<&str>, has_items: bool) -> Option<(&'static str, String)> {
    let group = group.unwrap_or_default();
    let is_policy_group = matches!(group, "networking.k8s.io" | "policy.networking.k8s.io");
    let is_foreign = group.contains('.') && !is_policy_group;
    if let Some((kind, version)) = READ.iter().find(|(read, _)| *read == kind) {
        let is_meant = !is_foreign || kind.ends_with("NetworkPolicy");
        return is_meant
            .then(|| ("apiVersion", format!("{kind} of the group `{group}` is not read, expected {version}")));
    }
    if is_foreign || is_list_of_ours(kind) || ALIKE.contains(&kind) || (is_policy_group && BESIDE.contains(&kind)) {
        return None;
    }
    let ours = READ.iter().map(|(read, _)| *read);
    let policies = NOT_ENFORCED.iter().filter(|known| known.group == group && is_policy_group).map(|known| known.kind);
    let mut known: Vec<_> = ours.chain(policies).chain(has_items.then_some("List")).collect();
    if is_policy_group {
        known.extend(BESIDE);
    }
    match nearest(kind, &known) {
        Some(meant) => Some(("kind", format!("unknown kind `{kind}`, did you mean `{meant}`?"))),
        None => is_policy_group.then(|| ("kind", format!("unknown kind `{kind}` of the group `{group}`"))),
    }
}
