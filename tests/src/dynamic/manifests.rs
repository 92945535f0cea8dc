//! A script's objects as the agents' manifests: one file an object, replaced whole.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use npolicy_agent::model::PodKey;
use npolicy_agent::rig::Protocol;
use npolicy_agent::watch::manifests::Manifests;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::script::{Labels, Traffic};

/// A pod's object.
#[derive(Clone, Debug)]
pub(super) struct PodObject {
    /// `spec.nodeName`.
    pub(super) node: String,
    /// `metadata.labels`.
    pub(super) labels: Labels,
    /// What its container's ports say.
    pub(super) serves: Vec<Traffic>,
    /// `status.podIPs`.
    pub(super) addresses: Vec<IpAddr>,
    /// `status.phase`.
    pub(super) phase: String,
    /// Grows with each pod: of two that claim one address, the greater has the newer sandbox.
    pub(super) uid: u32,
    /// Whether it is being deleted.
    pub(super) is_terminating: bool,
}

/// The objects there are, and a directory that says so.
#[derive(Debug)]
pub(super) struct Directory {
    root: TempDir,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<PodKey, PodObject>,
}

impl Directory {
    /// An empty one.
    pub(super) fn new() -> anyhow::Result<Self> {
        let root = tempfile::tempdir().context("make a directory")?;
        fs::create_dir(root.path().join("manifests"))?;
        Ok(Self { root, namespaces: BTreeMap::new(), pods: BTreeMap::new() })
    }

    /// The manifests' place.
    pub(super) fn manifests(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    /// A place beside the manifests, for files of the agents.
    pub(super) fn beside(&self) -> &Path {
        self.root.path()
    }

    /// What an agent says it has read when it has read everything that is there now.
    pub(super) fn digest(&self) -> anyhow::Result<u64> {
        Ok(Manifests::read(&[self.manifests()])?.digest())
    }

    /// Creates or replaces a namespace.
    pub(super) fn put_namespace(&mut self, name: &str, labels: Labels) -> anyhow::Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.namespaces.insert(name.into(), labels);
        self.write(&file_name("namespace", name), &object)
    }

    /// Changes a namespace's labels.
    pub(super) fn change_namespace(&mut self, name: &str, change: impl FnOnce(&mut Labels)) -> anyhow::Result<()> {
        let mut labels = self.namespaces.get(name).with_context(|| format!("no namespace {name}"))?.clone();
        change(&mut labels);
        self.put_namespace(name, labels)
    }

    /// Creates or replaces a pod.
    pub(super) fn put_pod(&mut self, key: &PodKey, pod: PodObject) -> anyhow::Result<()> {
        let PodObject { node, labels, serves, addresses, phase, uid, is_terminating } = &pod;
        let ports: Vec<Value> = serves
            .iter()
            .map(|Traffic { protocol, port }| {
                let protocol = if *protocol == Protocol::Udp { "UDP" } else { "TCP" };
                json!({"containerPort": port, "protocol": protocol})
            })
            .collect();
        let addresses: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": *key.namespace, "name": *key.name, "labels": labels, "uid": format!("{uid:08}")},
            "spec": {"nodeName": node, "containers": [{"name": "main", "ports": ports}]},
            "status": {"phase": phase, "podIPs": addresses},
        });
        if *is_terminating {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        self.pods.insert(key.clone(), pod);
        self.write(&file_name("pod", &key.to_string()), &object)
    }

    /// Changes a pod's object.
    pub(super) fn change_pod(&mut self, key: &PodKey, change: impl FnOnce(&mut PodObject)) -> anyhow::Result<()> {
        let mut pod = self.pods.get(key).with_context(|| format!("no pod {key}"))?.clone();
        change(&mut pod);
        self.put_pod(key, pod)
    }

    /// Takes a pod's object away.
    pub(super) fn remove_pod(&mut self, key: &PodKey) -> anyhow::Result<()> {
        self.pods.remove(key).with_context(|| format!("no pod {key}"))?;
        self.remove(&file_name("pod", &key.to_string()))
    }

    /// A pod's object.
    pub(super) fn pod(&self, key: &PodKey) -> Option<&PodObject> {
        self.pods.get(key)
    }

    /// Creates or replaces a policy.
    pub(super) fn put_policy(&self, policy: &Value) -> anyhow::Result<()> {
        let text = |field: &str| policy["metadata"][field].as_str();
        let name = text("name").context("a policy has no name")?;
        // One of the whole cluster has no namespace.
        let name = text("namespace").map_or(name.to_owned(), |namespace| format!("{namespace}/{name}"));
        self.write(&file_name("policy", &name), policy)
    }

    /// Creates or replaces a Service's object, or one of its EndpointSlices.
    pub(super) fn put_service(&self, kind: &str, name: &str, object: &Value) -> anyhow::Result<()> {
        self.write(&file_name(kind, name), object)
    }

    /// Takes a policy away.
    pub(super) fn remove_policy(&self, key: &PodKey) -> anyhow::Result<()> {
        self.remove(&file_name("policy", &key.to_string()))
    }

    fn write(&self, name: &str, object: &Value) -> anyhow::Result<()> {
        let partial = self.root.path().join("partial");
        fs::write(&partial, object.to_string())?;
        fs::rename(&partial, self.manifests().join(name)).with_context(|| format!("write {name}"))
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        fs::remove_file(self.manifests().join(name)).with_context(|| format!("remove {name}"))
    }

    /// The directory's files and their text, for whoever reads a failure.
    pub(super) fn text(&self) -> io::Result<String> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.manifests())? {
            let path = entry?.path();
            files.push(format!("{}: {}", path.display(), fs::read_to_string(&path)?));
        }
        files.sort();
        Ok(files.join("\n"))
    }
}

fn file_name(kind: &str, name: &str) -> String {
    format!("{kind}.{}.json", name.replace('/', "."))
}
