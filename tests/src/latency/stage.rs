//! What is made in the cluster, and removed again: a namespace with the pods and the policies that stay.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::settings::Settings;
use super::traffic::Pod;
use crate::e2e::Api;

/// Everything is in it.
pub(super) const NAMESPACE: &str = "npolicy-latency";
/// The pod whose label is granted and revoked.
pub(super) const SENDER: &str = "sender";
/// The pod that the policies select.
pub(super) const RECEIVER: &str = "receiver";
/// Pods whose labels change under load.
pub(super) const OTHERS: usize = 10;
/// How long pods may take to run.
const STARTING: Duration = Duration::from_secs(120);
/// How long a namespace may take to be gone.
const REMOVING: Duration = Duration::from_secs(60);

/// The cluster, and what we make in it.
pub(super) struct Stage {
    pub(super) api: Api,
    config: Config,
    image: String,
    /// The nodes of sender and receiver.
    pub(super) nodes: [String; 2],
}

/// The pods that traffic runs between.
pub(super) struct Pods {
    pub(super) sender: Pod,
    pub(super) receiver: Pod,
}

/// The name of one of the other pods.
pub(super) fn other(number: usize) -> String {
    format!("other-{number}")
}

impl Stage {
    /// Connects, and chooses the nodes.
    pub(super) async fn new(settings: &Settings) -> anyhow::Result<Self> {
        let Settings { kubeconfig, context, kubectl, peer_image, rounds: _, out: _, same_node } = settings;
        let api = Api::connect(kubeconfig, context.clone(), PathBuf::clone(kubectl)).await?;
        let options = KubeConfigOptions { context: context.clone(), ..Default::default() };
        let read = Kubeconfig::read_from(kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(read, &options).await?;
        // A watch is silent for as long as nothing happens.
        config.read_timeout = None;
        let mut nodes: Vec<String> = Vec::new();
        for node in api.list("Node", "", "").await? {
            let is_ready = node["status"]["conditions"].as_array().is_some_and(|conditions| {
                conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            });
            let taints = node["spec"]["taints"].as_array().map_or(0, Vec::len);
            if let Some(name) = node["metadata"]["name"].as_str()
                && is_ready
                && taints == 0
            {
                nodes.push(name.to_owned());
            }
        }
        nodes.sort();
        if *same_node {
            nodes.truncate(1);
            nodes.extend_from_within(..);
        }
        ensure!(nodes.len() >= 2, "nodes that are ready and without taints: {nodes:?}, expected two");
        nodes.truncate(2);
        let nodes = <[String; 2]>::try_from(nodes).expect("it was shortened to two");
        Ok(Self { api, config, image: peer_image.clone(), nodes })
    }

    /// What a client of its own is made of.
    pub(super) fn config(&self) -> Config {
        self.config.clone()
    }

    /// Makes the namespace with everything in it, and waits until the pods run.
    pub(super) async fn make(&self) -> anyhow::Result<Pods> {
        // An earlier run may have been killed.
        if self.api.get("Namespace", "", NAMESPACE).await?.is_some() {
            eprintln!("removing namespace {NAMESPACE} of an earlier run");
            self.remove().await?;
        }
        let [from, to] = &self.nodes;
        eprintln!("making namespace {NAMESPACE}: sender on {from}, receiver on {to}, {OTHERS} other pods");
        self.api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await?;
        self.api.apply(&self.bystanders_policy()).await?;
        let mut pods = vec![self.pod(SENDER, from, "sender"), self.pod(RECEIVER, to, "receiver")];
        for pod in &mut pods {
            // What measures must not wait for whatever else the node runs: without a request it would come last.
            pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "250m"}});
        }
        pods.push(self.pod("bystander", to, "bystander"));
        pods.extend((0..OTHERS).map(|number| self.pod(&other(number), &self.nodes[number % 2], "other")));
        for pod in &pods {
            self.api.apply(pod).await?;
        }
        self.wait_running(pods.len()).await?;
        Ok(Pods { sender: self.connect(SENDER).await?, receiver: self.connect(RECEIVER).await? })
    }

    /// Removes all of it.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        self.api.delete("Namespace", "", NAMESPACE).await?;
        self.api.wait_gone("Namespace", "", NAMESPACE, REMOVING).await
    }

    async fn wait_running(&self, count: usize) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let pods = self.api.list("Pod", NAMESPACE, "").await?;
            let is_running = |pod: &&Value| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
            };
            let running = pods.iter().filter(is_running).count();
            if running >= count {
                return Ok(());
            }
            let waiting = pods.iter().find(|pod| !is_running(pod)).map(|pod| {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                let why = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                format!("{name} {why}")
            });
            ensure!(
                begin.elapsed() < STARTING,
                "{running} of {count} pods run after {STARTING:.0?}; for one, {}",
                waiting.unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn connect(&self, name: &'static str) -> anyhow::Result<Pod> {
        let pod = self.api.get("Pod", NAMESPACE, name).await?.with_context(|| format!("pod {name} is gone"))?;
        let address = pod["status"]["podIP"].as_str().with_context(|| format!("pod {name} has no address"))?;
        let address = address.parse().with_context(|| format!("pod {name}: address {address}"))?;
        Ok(Pod::new(&self.api, name, address))
    }

    fn pod(&self, name: &str, node: &str, role: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"role": role}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "containers": [{
                    "name": "peer",
                    "image": self.image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/peer", "serve", name],
                    "env": [{"name": "POD_IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}],
                }],
            },
        })
    }

    /// What makes the label changes of other pods mean something: each one moves a peer of a policy in force.
    fn bystanders_policy(&self) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "bystander", "namespace": NAMESPACE},
            "spec": {
                "podSelector": {"matchLabels": {"role": "bystander"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"state": "even"}}}]}],
            },
        })
    }
}
