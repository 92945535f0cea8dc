//! The pods, Services and policies of scenarios in a real cluster, changed from step to step by what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use npolicy_common::Family;
use serde_json::{Value, json};

use super::api::{Api, OURS, key, relabelled};
use super::channel::Channel;
use super::made::{Written, labels_of, pod_object, service_object, written};
use super::message::{Answer, Ask, Protocol};
use super::nodes::{Node, find_nodes};
use super::remove::remove_all;
use super::translate::{Addresses, Moved, PREFIX, namespace, node_label};
use crate::scenarios::Objects;

/// How long pods may take to run, and namespaces to go.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a pod may take to answer what it does at once.
pub(super) const ANSWER: Duration = Duration::from_secs(20);
/// The namespace of the pods that stand for the nodes.
const NODES: &str = "nodes";

/// A pod that runs.
pub(super) struct Pod {
    /// Its node and addresses as the scenario has them; another pod of the name has others.
    written: Written,
    labels: Value,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) channel: Channel,
    pub(super) sctp: bool,
    served: BTreeSet<(Protocol, u16)>,
}

/// What stands in the cluster of all that was made here.
pub(super) struct Live {
    pub(super) api: Api,
    image: String,
    pub(super) nodes: Vec<Node>,
    /// By `NAMESPACE/NAME` of the scenario; those of the nodes are in the namespace `nodes`.
    pods: BTreeMap<String, Pod>,
    /// Labels by the scenario's name.
    namespaces: BTreeMap<String, Value>,
    /// Services, their slices and policies as they were applied, by kind and real namespace and name.
    applied: BTreeMap<(String, String, String), Value>,
    /// Addresses of Services by `NAMESPACE/NAME` of the scenario.
    services: BTreeMap<String, Vec<IpAddr>>,
}

impl Live {
    /// Finds two nodes, removes what an earlier run has left, and makes a pod on each node's network.
    ///
    /// # Errors
    ///
    /// There are no two nodes, a namespace that would be made is somebody else's, or pods do not run.
    pub(super) async fn start(api: &Api, image: &str) -> anyhow::Result<Self> {
        let mut live = Self {
            api: api.clone(),
            image: image.to_owned(),
            nodes: find_nodes(api).await?,
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            applied: BTreeMap::new(),
            services: BTreeMap::new(),
        };
        remove_all(api).await?;
        for (node, role) in live.nodes.iter().zip(["worker", "control-plane"]) {
            let patch = json!({"metadata": {"labels": {node_label("role"): role, OURS: "true"}}});
            api.patch("Node", "", &node.name, &patch).await?;
        }
        live.follow_namespaces(&[(NODES.to_owned(), json!({}))].into()).await?;
        let mut wanted = BTreeMap::new();
        for node in &live.nodes {
            let pod = json!({
                "metadata": {"name": node.written, "namespace": NODES},
                "spec": {"nodeName": node.written, "hostNetwork": true},
                "status": {"podIPs": []},
            });
            wanted.insert(format!("{NODES}/{}", node.written), pod);
        }
        live.follow_pods(wanted.iter().map(|(key, pod)| (key.clone(), pod)).collect()).await?;
        Ok(live)
    }

    /// Makes the cluster what a step's objects say. What lies in `elsewhere`, namespaces of other worlds, stays, but for
    /// its policies.
    ///
    /// # Errors
    ///
    /// The API server refuses an object, or pods do not run.
    pub(super) async fn enter(&mut self, objects: &Objects, elsewhere: &BTreeSet<String>) -> anyhow::Result<()> {
        let mut wanted_namespaces: BTreeMap<String, Value> = self.namespaces.clone();
        wanted_namespaces.retain(|name, _| elsewhere.contains(name) || name == NODES);
        for object in objects.of_kind("Namespace") {
            let (_, _, name) = key(object)?;
            wanted_namespaces.insert(name.to_owned(), object["metadata"]["labels"].clone());
        }
        // Policies first: of those that stay nobody waits for pods that come.
        let addresses = self.addresses(objects);
        let mut policies = BTreeMap::new();
        for kind in ["NetworkPolicy", "ClusterNetworkPolicy"] {
            for object in objects.of_kind(kind) {
                let made = addresses.policy(object)?;
                policies.insert(owned(key(&made)?), made);
            }
        }
        self.delete_others(&["NetworkPolicy", "ClusterNetworkPolicy"], &policies, |_| true).await?;
        self.follow_namespaces(&wanted_namespaces).await?;
        let mut pods: BTreeMap<String, &Value> = BTreeMap::new();
        for object in objects.of_kind("Pod") {
            let (_, namespace, name) = key(object)?;
            pods.insert(format!("{namespace}/{name}"), object);
        }
        self.pods_gone(|pod| {
            let namespace = pod.split('/').next().unwrap_or_default();
            pods.contains_key(pod) || elsewhere.contains(namespace) || namespace == NODES
        })
        .await?;
        self.follow_pods(pods).await?;
        self.follow_services(objects, elsewhere).await?;
        // Pods that have just come have addresses now.
        let addresses = self.addresses(objects);
        for kind in ["NetworkPolicy", "ClusterNetworkPolicy"] {
            let changed =
                objects.of_kind(kind).map(|object| addresses.policy(object)).collect::<Result<Vec<_>, _>>()?;
            self.apply_changed(changed).await?;
        }
        Ok(())
    }

    /// Where the ends of these objects really are, as far as they run.
    pub(super) fn addresses(&self, objects: &Objects) -> Addresses {
        let mut ends = Vec::new();
        let mut add = |written: &[IpAddr], real: &[IpAddr]| {
            for &written in written {
                let found = real.iter().find(|real| real.is_ipv4() == written.is_ipv4());
                ends.extend(found.map(|&real| Moved { written, real }));
            }
        };
        for object in objects.of_kind("Pod").filter(|pod| pod["spec"]["hostNetwork"] != true) {
            let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            if let Some(pod) = self.pods.get(&format!("{}/{}", name("namespace"), name("name"))) {
                add(&pod.written.addresses, &pod.addresses);
            }
        }
        for object in objects.of_kind("Node") {
            let listed = object["status"]["addresses"].as_array().into_iter().flatten();
            let written: Vec<IpAddr> = listed.filter_map(|address| address["address"].as_str()?.parse().ok()).collect();
            if let Some(node) = self.nodes.iter().find(|node| object["metadata"]["name"] == *node.written) {
                add(&written, &node.addresses);
            }
        }
        Addresses { ends, ranges: self.nodes.iter().flat_map(|node| node.ranges.clone()).collect() }
    }

    /// A pod by its key in the scenario.
    pub(super) fn pod(&self, key: &str) -> anyhow::Result<&Pod> {
        self.pods.get(key).with_context(|| format!("there is no pod {key}"))
    }

    /// The address of a Service, of a family.
    pub(super) fn service(&self, key: &str, family: Family) -> anyhow::Result<IpAddr> {
        let addresses = self.services.get(key).with_context(|| format!("there is no Service {key}"))?;
        let found = addresses.iter().find(|address| address.is_ipv4() == (family == Family::V4));
        found.copied().with_context(|| format!("Service {key} has no {family:?} address"))
    }

    /// Lets pods serve ports, each by its key.
    ///
    /// # Errors
    ///
    /// A pod cannot be asked, or a port is taken.
    pub(super) async fn serve(&mut self, wanted: &BTreeMap<String, BTreeSet<(Protocol, u16)>>) -> anyhow::Result<()> {
        let mut asked = Vec::new();
        for (key, ports) in wanted {
            let pod = self.pod(key)?;
            let ports: Vec<_> = ports
                .iter()
                .filter(|(protocol, port)| !pod.served.contains(&(*protocol, *port)))
                .filter(|(protocol, _)| *protocol != Protocol::Icmp && (*protocol != Protocol::Sctp || pod.sctp))
                .copied()
                .collect();
            if !ports.is_empty() {
                asked.push((key.clone(), ports));
            }
        }
        let serving = asked.iter().map(|(key, ports)| {
            let channel = &self.pods[key].channel;
            channel.ask(Ask::Serve { ports: ports.clone() }, ANSWER)
        });
        try_join_all(serving).await?;
        for (key, ports) in asked {
            self.pods.get_mut(&key).expect("it was asked").served.extend(ports);
        }
        Ok(())
    }

    async fn follow_namespaces(&mut self, wanted: &BTreeMap<String, Value>) -> anyhow::Result<()> {
        let gone: Vec<String> = self.namespaces.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in &gone {
            self.api.delete("Namespace", "", &namespace(name)).await?;
        }
        for name in gone {
            self.namespaces.remove(&name);
            let real = namespace(&name);
            self.applied.retain(|(_, namespace, _), _| *namespace != real);
            self.pods.retain(|key, _| key.split('/').next() != Some(&name));
            self.services.retain(|key, _| key.split('/').next() != Some(&name));
        }
        for (name, labels) in wanted {
            let mut labels = if labels.is_null() { json!({}) } else { labels.clone() };
            labels[OURS] = "true".into();
            // Pods on the node's network, and with raw sockets.
            labels["pod-security.kubernetes.io/enforce"] = "privileged".into();
            match self.namespaces.get(name) {
                None => {
                    // One of that name may still be going.
                    self.api.wait_gone("Namespace", "", &namespace(name), PATIENCE).await?;
                    let metadata = json!({"name": namespace(name), "labels": labels});
                    self.api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})).await?;
                }
                Some(before) if *before != labels => {
                    let patch = relabelled(before, &labels);
                    self.api.patch("Namespace", "", &namespace(name), &patch).await?;
                }
                Some(_) => {}
            }
            self.namespaces.insert(name.clone(), labels);
        }
        Ok(())
    }

    /// Deletes pods that are not to stay.
    async fn pods_gone(&mut self, stays: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let gone: Vec<String> = self.pods.keys().filter(|key| !stays(key)).cloned().collect();
        self.delete_pods(gone).await
    }

    async fn delete_pods(&mut self, gone: Vec<String>) -> anyhow::Result<()> {
        for key in &gone {
            let (of, name) = key.split_once('/').expect("a key");
            self.api.delete("Pod", &namespace(of), name).await?;
        }
        for key in gone {
            let (of, name) = key.split_once('/').expect("a key");
            self.api.wait_gone("Pod", &namespace(of), name, PATIENCE).await?;
            self.pods.remove(&key);
        }
        Ok(())
    }

    /// Makes these pods run, with these labels.
    async fn follow_pods(&mut self, wanted: BTreeMap<String, &Value>) -> anyhow::Result<()> {
        let mut others = Vec::new();
        for (key, object) in &wanted {
            if self.pods.get(key).is_some_and(|pod| written(object).is_ok_and(|written| written != pod.written)) {
                others.push(key.clone());
            }
        }
        self.delete_pods(others).await?;
        let mut new = BTreeMap::new();
        for (key, object) in wanted {
            let labels = labels_of(object);
            match self.pods.get_mut(&key) {
                Some(pod) if pod.labels != labels => {
                    let (of, name) = key.split_once('/').expect("a key");
                    self.api.patch("Pod", &namespace(of), name, &relabelled(&pod.labels, &labels)).await?;
                    pod.labels = labels;
                }
                Some(_) => {}
                None => {
                    new.insert(key, (written(object)?, labels, pod_object(object, &self.nodes, &self.image)?));
                }
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        try_join_all(new.values().map(|(_, _, object)| self.create_pod(object))).await?;
        for (key, (written, labels, object)) in new {
            let (_, of, name) = super::api::key(&object)?;
            let channel = Channel::new(&self.api, of, name);
            wait_running(&self.api, of, name, PATIENCE).await?;
            let pod = Pod { written, labels, addresses: Vec::new(), channel, sctp: false, served: BTreeSet::new() };
            self.pods.insert(key, pod);
        }
        self.meet().await
    }

    /// Asks every pod of which nothing is known yet.
    async fn meet(&mut self) -> anyhow::Result<()> {
        let strangers = self.pods.iter_mut().filter(|(_, pod)| pod.addresses.is_empty());
        let asked = strangers.map(|(_, pod)| async move {
            let Answer::Facts { addresses, sctp, now_ns: _ } = pod.channel.ask(Ask::Facts, ANSWER).await? else {
                bail!("a pod answers something else");
            };
            (pod.addresses, pod.sctp) = (addresses, sctp);
            Ok(())
        });
        try_join_all(asked).await.map(|_| ())
    }

    /// Waits until a node's pods run again and asks for their new addresses; what they served is gone.
    ///
    /// # Errors
    ///
    /// They do not run.
    pub(super) async fn meet_again(&mut self, node: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        for (key, pod) in self.pods.iter_mut().filter(|(_, pod)| pod.written.node == node) {
            let (of, name) = key.split_once('/').expect("a key");
            pod.served.clear();
            pod.addresses.clear();
            while pod.addresses.is_empty() {
                // The API server says for a while that the pod of before the restart runs.
                wait_running(&self.api, &namespace(of), name, PATIENCE).await?;
                pod.channel = Channel::new(&self.api, &namespace(of), name);
                match pod.channel.ask(Ask::Facts, ANSWER).await {
                    Ok(Answer::Facts { addresses, sctp: _, now_ns: _ }) => pod.addresses = addresses,
                    Ok(other) => bail!("{key} answers {other:?}"),
                    Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                    Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
                }
            }
        }
        Ok(())
    }

    /// A pod is refused until the controller manager has made its namespace's service account.
    async fn create_pod(&self, object: &Value) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            match self.api.apply(object).await {
                Err(error) if format!("{error:#}").contains("serviceaccount") && begin.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                other => return other,
            }
        }
    }

    async fn follow_services(&mut self, objects: &Objects, elsewhere: &BTreeSet<String>) -> anyhow::Result<()> {
        let addresses = self.addresses(objects);
        let mut wanted = BTreeMap::new();
        for object in objects.of_kind("Service").chain(objects.of_kind("EndpointSlice")) {
            if let Some(made) = service_object(object, &addresses, &self.nodes)? {
                wanted.insert(owned(key(&made)?), made);
            }
        }
        let kept: BTreeSet<String> = elsewhere.iter().map(|name| namespace(name)).collect();
        self.delete_others(&["Service", "EndpointSlice"], &wanted, |namespace| !kept.contains(namespace)).await?;
        let is_new = wanted.keys().any(|key| key.0 == "Service" && !self.applied.contains_key(key));
        self.apply_changed(wanted.into_values().collect()).await?;
        if is_new {
            for service in self.api.list("Service", "", OURS).await? {
                let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default();
                let (of, name) = (text("namespace").strip_prefix(PREFIX).unwrap_or_default(), text("name"));
                let listed = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
                let addresses = listed.filter_map(|address| address.as_str()?.parse().ok()).collect();
                self.services.insert(format!("{of}/{name}"), addresses);
            }
        }
        Ok(())
    }

    async fn delete_others(
        &mut self,
        kinds: &[&str],
        wanted: &BTreeMap<(String, String, String), Value>,
        is_meant: impl Fn(&str) -> bool,
    ) -> anyhow::Result<()> {
        let is_gone = |key: &&(String, String, String)| {
            kinds.contains(&key.0.as_str()) && !wanted.contains_key(*key) && is_meant(&key.1)
        };
        let gone: Vec<_> = self.applied.keys().filter(is_gone).cloned().collect();
        try_join_all(gone.iter().map(|(kind, namespace, name)| self.api.delete(kind, namespace, name))).await?;
        for key in gone {
            self.applied.remove(&key);
        }
        Ok(())
    }

    /// Applies those that are not there, or not so.
    pub(super) async fn apply_changed(&mut self, objects: Vec<Value>) -> anyhow::Result<()> {
        let mut changed = Vec::new();
        for object in objects {
            let key = owned(key(&object)?);
            if self.applied.get(&key) != Some(&object) {
                changed.push((key, object));
            }
        }
        // What is refused may still stand in part.
        self.applied.extend(changed.iter().cloned());
        try_join_all(changed.iter().map(|(_, object)| self.api.apply(object))).await.map(|_| ())
    }
}

/// The key of the pod that stands for a node.
pub(super) fn host_key(node: &str) -> String {
    format!("{NODES}/{node}")
}

fn owned((kind, namespace, name): (&str, &str, &str)) -> (String, String, String) {
    (kind.to_owned(), namespace.to_owned(), name.to_owned())
}

/// Waits until a pod runs and has addresses.
async fn wait_running(api: &Api, namespace: &str, name: &str, within: Duration) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let pod = api.get("Pod", namespace, name).await?.unwrap_or_default();
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        if conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
            return Ok(());
        }
        // Evicted, or never taken in: it will not run any more.
        let has_failed = pod["status"]["phase"] == "Failed";
        ensure!(!has_failed, "pod {namespace}/{name}: {} {}", pod["status"]["reason"], pod["status"]["message"]);
        let waits = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let reason = waits["reason"].as_str().unwrap_or_default();
        let hint = if reason.contains("Image") { "; is the image loaded on every node?" } else { "" };
        ensure!(
            begin.elapsed() < within && hint.is_empty(),
            "pod {namespace}/{name} does not run: {} {reason} {}{hint}",
            pod["status"]["phase"],
            waits["message"]
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
