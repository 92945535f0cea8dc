//! The cluster's API: objects by the kube client, everything else by kubectl.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use kube::api::{Api as KubeApi, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::process::Command;

/// A label that everything made here has; what bears it is removed.
pub const OURS: &str = "npolicy-e2e";

/// A connection to a cluster, with whatever rights its kubeconfig has.
#[derive(Clone)]
pub struct Api {
    client: Client,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    context: Option<String>,
}

impl Api {
    /// Connects by a kubeconfig.
    ///
    /// # Errors
    ///
    /// The file or the context is not there, or no API server answers.
    pub async fn connect(kubeconfig: &Path, context: Option<String>, kubectl: PathBuf) -> anyhow::Result<Self> {
        let named = || format!("kubeconfig {}", kubeconfig.display());
        let read = Kubeconfig::read_from(kubeconfig).with_context(named)?;
        let options = KubeConfigOptions { context: context.clone(), ..Default::default() };
        let mut config = Config::from_custom_kubeconfig(read, &options).await.with_context(named)?;
        config.read_timeout = Some(Duration::from_secs(60));
        config.connect_timeout = Some(Duration::from_secs(5));
        let client = Client::try_from(config).with_context(named)?;
        let version = client.apiserver_version().await;
        let version = version.with_context(|| format!("no API server answers by {}", kubeconfig.display()))?;
        eprintln!("Kubernetes {} by {}", version.git_version, kubeconfig.display());
        Ok(Self { client, kubectl, kubeconfig: kubeconfig.to_owned(), context })
    }

    /// The kubeconfig that it was made of.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The context of the kubeconfig, if it is not the file's own.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// A kubectl that talks to the same cluster.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.args(self.context.iter().flat_map(|context| ["--context", context]));
        command.args(arguments).kill_on_drop(true);
        command
    }

    /// Runs kubectl and returns what it prints.
    ///
    /// # Errors
    ///
    /// It does not end with 0; its errors are named.
    pub async fn run_kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.kubectl(arguments).output().await.context("start kubectl")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), errors.trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All objects of a kind in a namespace, or everywhere; those with a label, if one is named.
    ///
    /// # Errors
    ///
    /// As the API server says.
    pub async fn list(&self, kind: &str, namespace: &str, label: &str) -> anyhow::Result<Vec<Value>> {
        let parameters = if label.is_empty() { ListParams::default() } else { ListParams::default().labels(label) };
        let listed = self.of_kind(kind, namespace)?.list(&parameters).await;
        let listed = listed.with_context(|| format!("list {kind} in {namespace:?}"))?;
        listed.items.into_iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
    }

    /// One object; none if it is not there.
    ///
    /// # Errors
    ///
    /// As the API server says.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<Option<Value>> {
        match self.of_kind(kind, namespace)?.get_opt(name).await {
            Ok(found) => found.map(|object| Ok(serde_json::to_value(object)?)).transpose(),
            Err(error) => Err(error).with_context(|| format!("get {kind} {namespace}/{name}")),
        }
    }

    /// Makes an object what `object` says, by a server-side apply with strict validation.
    ///
    /// # Errors
    ///
    /// As the API server says.
    pub async fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let (kind, namespace, name) = key(object)?;
        let parameters = PatchParams::apply(OURS).force().validation_strict();
        let applied = self.of_kind(kind, namespace)?.patch(name, &parameters, &Patch::Apply(object)).await;
        applied.map(|_| ()).with_context(|| format!("apply {kind} {namespace}/{name}"))
    }

    /// Changes an object by a merge patch.
    ///
    /// # Errors
    ///
    /// As the API server says.
    pub async fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
        let patched = self.of_kind(kind, namespace)?.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(|_| ()).with_context(|| format!("patch {kind} {namespace}/{name}"))
    }

    /// Deletes an object at once; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// As the API server says.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let parameters = DeleteParams::default().grace_period(0);
        match self.of_kind(kind, namespace)?.delete(name, &parameters).await {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("delete {kind} {namespace}/{name}")),
        }
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    ///
    /// It is still there after `within`.
    pub async fn wait_gone(&self, kind: &str, namespace: &str, name: &str, within: Duration) -> anyhow::Result<()> {
        let begin = Instant::now();
        while self.get(kind, namespace, name).await?.is_some() {
            ensure!(begin.elapsed() < within, "{kind} {namespace}/{name} is still there after {within:.0?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Whether the cluster knows ClusterNetworkPolicies.
    ///
    /// # Errors
    ///
    /// As the API server says.
    pub async fn has_cluster_policies(&self) -> anyhow::Result<bool> {
        match self.of_kind("ClusterNetworkPolicy", "")?.list(&ListParams::default().limit(1)).await {
            Ok(_) => Ok(true),
            Err(Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error).context("list ClusterNetworkPolicy"),
        }
    }

    fn of_kind(&self, kind: &str, namespace: &str) -> anyhow::Result<KubeApi<DynamicObject>> {
        let (group, version, plural) = match kind {
            "Namespace" => ("", "v1", "namespaces"),
            "Node" => ("", "v1", "nodes"),
            "Pod" => ("", "v1", "pods"),
            "Service" => ("", "v1", "services"),
            "DaemonSet" => ("apps", "v1", "daemonsets"),
            "EndpointSlice" => ("discovery.k8s.io", "v1", "endpointslices"),
            "NetworkPolicy" => ("networking.k8s.io", "v1", "networkpolicies"),
            "ClusterNetworkPolicy" => ("policy.networking.k8s.io", "v1beta1", "clusternetworkpolicies"),
            other => bail!("{other} is no kind that is used here"),
        };
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Ok(match namespace {
            "" => KubeApi::all_with(self.client.clone(), &resource),
            namespace => KubeApi::namespaced_with(self.client.clone(), namespace, &resource),
        })
    }
}

/// Kind, namespace and name of an object; what has no namespace has an empty one.
///
/// # Errors
///
/// It has no kind or no name.
pub fn key(object: &Value) -> anyhow::Result<(&str, &str, &str)> {
    let kind = object["kind"].as_str().context("an object has no kind")?;
    let name = object["metadata"]["name"].as_str().with_context(|| format!("a {kind} has no name"))?;
    Ok((kind, object["metadata"]["namespace"].as_str().unwrap_or_default(), name))
}

/// A merge patch that makes labels `after` out of `before`.
pub fn relabelled(before: &Value, after: &Value) -> Value {
    let mut labels = after.as_object().cloned().unwrap_or_default();
    for name in before.as_object().into_iter().flat_map(|before| before.keys()) {
        labels.entry(name.clone()).or_insert(Value::Null);
    }
    json!({"metadata": {"labels": labels}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_is_gone_is_taken_away() {
        let patch = relabelled(&json!({"a": "1", "b": "2"}), &json!({"b": "3", "c": "4"}));
        assert_eq!(patch, json!({"metadata": {"labels": {"a": null, "b": "3", "c": "4"}}}));
        assert_eq!(relabelled(&Value::Null, &Value::Null), json!({"metadata": {"labels": {}}}));
    }
}
