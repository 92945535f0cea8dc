//! The writes whose effect is measured.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde_json::json;

use super::clock::now_ns;
use super::stage::{NAMESPACE, RECEIVER, SENDER};
use super::watch::Event;

/// The label that the label rounds' policy asks of a sender.
const LABEL: &str = "access";
/// The policy that denies everything.
const DENIAL: &str = "deny";
/// The policy that accepts senders with the label.
const ACCEPTANCE: &str = "labelled";

/// A write that was answered.
pub(super) struct Written {
    /// When its answer was read.
    pub(super) answered_ns: u64,
    /// How long the API server took.
    pub(super) took_ns: u64,
    /// The object that was written.
    pub(super) object: &'static str,
    /// What a watch shows of it.
    pub(super) event: Event,
}

/// A client for writes, on a connection of its own.
pub(super) struct Writes {
    pods: Api<Pod>,
    policies: Api<NetworkPolicy>,
}

impl Writes {
    pub(super) fn new(config: Config) -> anyhow::Result<Self> {
        let client = Client::try_from(config)?;
        let pods = Api::namespaced(client.clone(), NAMESPACE);
        Ok(Self { pods, policies: Api::namespaced(client, NAMESPACE) })
    }

    /// Denies all ingress of the receiver.
    pub(super) async fn create_policy(&self) -> anyhow::Result<Written> {
        let policy = policy(DENIAL, json!([]));
        let begin = now_ns();
        let created = self.policies.create(&PostParams::default(), &policy).await;
        let answered_ns = now_ns();
        let version = created.context("create the policy")?.metadata.resource_version;
        written(begin, answered_ns, DENIAL, Event::Version(version.context("a policy without a version")?))
    }

    /// Takes the denial back.
    pub(super) async fn delete_policy(&self) -> anyhow::Result<Written> {
        let begin = now_ns();
        let deleted = self.policies.delete(DENIAL, &DeleteParams::default()).await;
        let answered_ns = now_ns();
        deleted.context("delete the policy")?;
        written(begin, answered_ns, DENIAL, Event::Deletion)
    }

    /// Gives the sender the label.
    pub(super) async fn grant_label(&self) -> anyhow::Result<Written> {
        self.set_label(Some("granted")).await
    }

    /// Takes it away.
    pub(super) async fn revoke_label(&self) -> anyhow::Result<Written> {
        self.set_label(None).await
    }

    /// Makes the policy of the label rounds.
    pub(super) async fn begin_labels(&self) -> anyhow::Result<()> {
        self.grant_label().await?;
        let peers = json!([{"from": [{"podSelector": {"matchLabels": {LABEL: "granted"}}}]}]);
        let created = self.policies.create(&PostParams::default(), &policy(ACCEPTANCE, peers)).await;
        created.map(|_| ()).context("create the policy of the label rounds")
    }

    /// Removes it.
    pub(super) async fn end_labels(&self) -> anyhow::Result<()> {
        let deleted = self.policies.delete(ACCEPTANCE, &DeleteParams::default()).await;
        deleted.map(|_| ()).context("delete the policy of the label rounds")
    }

    async fn set_label(&self, value: Option<&str>) -> anyhow::Result<Written> {
        let patch = json!({"metadata": {"labels": {LABEL: value}}});
        let begin = now_ns();
        let patched = self.pods.patch(SENDER, &PatchParams::default(), &Patch::Merge(&patch)).await;
        let answered_ns = now_ns();
        let version = patched.context("patch the sender's label")?.metadata.resource_version;
        written(begin, answered_ns, SENDER, Event::Version(version.context("a pod without a version")?))
    }
}

fn written(begin: u64, answered_ns: u64, object: &'static str, event: Event) -> anyhow::Result<Written> {
    Ok(Written { answered_ns, took_ns: answered_ns - begin, object, event })
}

/// A policy for the receiver's ingress.
fn policy(name: &str, ingress: serde_json::Value) -> NetworkPolicy {
    let policy = json!({
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"role": RECEIVER}},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    });
    serde_json::from_value(policy).expect("it is a NetworkPolicy")
}
