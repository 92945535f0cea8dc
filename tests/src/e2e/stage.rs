//! Pods for the tests that need a few of them: their objects, in the form that scenarios have.

use serde_json::{Value, json};

use crate::scenarios::Objects;

/// Objects of a small world: its namespace and its two nodes.
pub(super) struct Stage {
    pub(super) namespace: String,
    pub(super) objects: Objects,
    next: u8,
}

impl Stage {
    pub(super) fn new(namespace: &str) -> anyhow::Result<Self> {
        let mut objects = Objects::default();
        objects.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))?;
        Ok(Self { namespace: namespace.to_owned(), objects, next: 0 })
    }

    /// A pod of that role on that node: `ROLE-NODE`, with the label `role`.
    pub(super) fn pod(&mut self, role: &str, node: &str) -> anyhow::Result<String> {
        self.next += 1;
        let (name, number) = (format!("{role}-{node}"), self.next);
        self.objects.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": name, "labels": {"role": role}},
            "spec": {"nodeName": node, "containers": [{"name": "server"}]},
            // No policy here has blocks: these tell pods apart and mean nothing else.
            "status": {"podIPs": [{"ip": format!("192.0.2.{number}")}, {"ip": format!("2001:db8::{number}")}]},
        }))?;
        Ok(format!("{}/{name}", self.namespace))
    }

    /// A NetworkPolicy with this specification.
    pub(super) fn policy(&mut self, name: &str, spec: Value) -> anyhow::Result<()> {
        let metadata = json!({"namespace": self.namespace, "name": name});
        let (version, kind) = ("networking.k8s.io/v1", "NetworkPolicy");
        self.objects.apply(json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}))
    }

    /// A ClusterNetworkPolicy with this specification.
    pub(super) fn cluster_policy(&mut self, name: &str, spec: Value) -> anyhow::Result<()> {
        let (version, kind) = ("policy.networking.k8s.io/v1beta1", "ClusterNetworkPolicy");
        self.objects.apply(json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}))
    }
}
