//! npolicy on the cluster: installed by its own manifests, waited for, asked for its log.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::api::Api;

/// Where the DaemonSet is, and what it is called.
pub(super) const NAMESPACE: &str = "kube-system";
pub(super) const NAME: &str = "npolicy";
/// The label of its pods.
const LABEL: &str = "app.kubernetes.io/name=npolicy";
/// How long a roll-out may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is installed.
#[derive(Clone, Debug)]
pub struct Install {
    /// The program that prints the manifests.
    pub npolicy: PathBuf,
    /// Name of the image; none: what the manifests say.
    pub image: Option<String>,
    /// More flags of `npolicy install`.
    pub flags: Vec<String>,
}

/// Whether npolicy's DaemonSet is on the cluster.
///
/// # Errors
///
/// As the API server says.
pub async fn is_installed(api: &Api) -> anyhow::Result<bool> {
    Ok(api.get("DaemonSet", NAMESPACE, NAME).await?.is_some())
}

/// Applies what `npolicy install` prints and waits until every agent is ready. Agents that are there already are replaced:
/// their image may have another content now.
///
/// # Errors
///
/// The manifests are refused, or agents do not get ready; their log is part of the message.
pub async fn install(api: &Api, what: &Install) -> anyhow::Result<String> {
    let was_there = is_installed(api).await?;
    let mut command = Command::new(&what.npolicy);
    command.arg("install").args(what.image.iter().flat_map(|image| ["--image", image]));
    command.args(&what.flags).stdin(Stdio::null());
    let named = || format!("{} install", what.npolicy.display());
    let printed = command.output().await.with_context(named)?;
    ensure!(printed.status.success(), "{}: {}", named(), String::from_utf8_lossy(&printed.stderr).trim_end());
    let mut apply = api.kubectl(&["apply", "-f", "-"]);
    apply.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut apply = apply.spawn().context("start kubectl")?;
    let mut stdin = apply.stdin.take().expect("it is piped");
    stdin.write_all(&printed.stdout).await.context("write to kubectl")?;
    drop(stdin);
    let applied = apply.wait_with_output().await?;
    ensure!(applied.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&applied.stderr).trim_end());
    if was_there {
        restart(api).await?;
    }
    let begin = Instant::now();
    wait_ready(api).await?;
    Ok(format!("ready after {:.1} s", begin.elapsed().as_secs_f64()))
}

/// Begins a rolling update to the same.
pub(super) async fn restart(api: &Api) -> anyhow::Result<()> {
    let stamp = super::peer::now_ns().to_string();
    let annotations = json!({"npolicy-e2e/restarted": stamp});
    let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    api.patch("DaemonSet", NAMESPACE, NAME, &patch).await
}

/// Waits until the agents of the DaemonSet's present form are ready, on every node.
pub(super) async fn wait_ready(api: &Api) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let set = api.get("DaemonSet", NAMESPACE, NAME).await?.context("npolicy's DaemonSet is gone")?;
        let status = &set["status"];
        let wanted = status["desiredNumberScheduled"].as_u64().unwrap_or_default();
        let is_seen = status["observedGeneration"] == set["metadata"]["generation"];
        let is_ready = |field: &str| status[field].as_u64().unwrap_or_default() == wanted;
        if is_seen && wanted > 0 && is_ready("numberReady") && is_ready("updatedNumberScheduled") {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            let pods = api.run_kubectl(&["get", "pods", "-n", NAMESPACE, "-l", LABEL, "-o", "wide"]).await?;
            let log = api.run_kubectl(&["logs", "-n", NAMESPACE, "-l", LABEL, "--tail=20", "--prefix"]).await;
            let log = log.unwrap_or_else(|error| format!("{error:#}"));
            anyhow::bail!("the agents are not ready after {PATIENCE:.0?}: {status}\n{pods}\n{log}");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// An agent's pod.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) uid: String,
}

/// The agents, one a node.
pub(super) async fn agents(api: &Api) -> anyhow::Result<Vec<Agent>> {
    let pods = api.list("Pod", NAMESPACE, LABEL).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let living = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(living
        .map(|pod| Agent {
            pod: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
            uid: text(&pod["metadata"]["uid"]),
        })
        .collect())
}

/// What an agent has written in the last seconds.
pub(super) async fn log(api: &Api, agent: &Agent, seconds: u64) -> anyhow::Result<String> {
    api.run_kubectl(&["logs", "-n", NAMESPACE, &agent.pod, &format!("--since={seconds}s")]).await
}
