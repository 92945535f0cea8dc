//! A cluster of network namespaces that follows the objects of scenarios.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use npolicy_agent::model::PodKey;
use npolicy_agent::observe::Format;
use npolicy_agent::rig::{
    AgentOptions, AgentProcess, AgentSource, BpfFs, Cluster, Listeners, Node, NodeSettings, Pod, PodSettings,
    SctpMeans, Service, Source, Translation,
};
use npolicy_common::Family;
use tempfile::TempDir;

use super::expect::{Expected, Port};
use super::objects::{Objects, key_of, pod_addresses};
use super::packets::{Setting, protocol_of};
use super::scenario::{Scenario, Step};
use super::services::{cluster_addresses, translations};
use crate::npolicy_binary;

/// Two nodes with an agent each, and whatever pods and Services the objects name. Dropped in the order of the fields: the
/// agents first.
pub(super) struct Lab {
    agents: Vec<AgentProcess>,
    /// Servers by namespace: a pod's, a node's, and the outside's under each of its addresses.
    listeners: BTreeMap<String, (BTreeSet<Service>, Listeners)>,
    guests: BTreeMap<String, Pod>,
    cluster: Cluster,
    _pins: Vec<BpfFs>,
    directory: TempDir,
    families: &'static [Family],
    sctp: SctpMeans,
    translations: Vec<Translation>,
    /// What stands, with the addresses of the cluster's families only.
    objects: Objects,
}

/// How long an agent may take to publish.
const PATIENCE: Duration = Duration::from_secs(60);
/// The nodes.
const NODES: [&str; 2] = ["n1", "n2"];

impl Lab {
    /// Makes the nodes and starts their agents.
    pub(super) fn new(setting: Setting) -> anyhow::Result<Self> {
        let families = setting.families();
        let mut nodes = Vec::new();
        for ((name, number), layout) in NODES.iter().zip(1..).zip(setting.layouts()) {
            let settings = NodeSettings { name: (*name).into(), number, layout };
            let addresses: Vec<IpAddr> = match setting {
                Setting::Worked => vec![format!("192.168.0.{number}").parse()?, format!("fd00:192::{number}").parse()?],
                _ => vec![format!("10.243.0.{number}").parse()?, format!("fd00:10:243::{number}").parse()?],
            };
            let addresses = addresses.into_iter().filter(|address| is_of(families, *address)).collect();
            nodes.push(Node::with_addresses(settings, addresses)?);
        }
        let directory = tempfile::tempdir()?;
        let cluster = Cluster::new(nodes)?;
        let mut lab = Self {
            agents: Vec::new(),
            listeners: BTreeMap::new(),
            guests: BTreeMap::new(),
            cluster,
            _pins: Vec::new(),
            directory,
            families,
            sctp: SctpMeans::find(),
            translations: Vec::new(),
            objects: Objects::default(),
        };
        fs::create_dir(lab.manifests())?;
        lab.write()?;
        for name in NODES {
            let pins = BpfFs::new()?;
            let file = |name: String| lab.directory.path().join(name);
            let options = AgentOptions {
                program: npolicy_binary().to_owned(),
                source: AgentSource::Manifests(lab.manifests()),
                pin_dir: pins.pin_dir(),
                drop_log: file(format!("{name}-drops.log")),
                drop_format: Format::Json,
                ready_file: file(format!("{name}-ready.json")),
                node_name: Some(name.into()),
                pod_cidrs: Vec::new(),
                flows: None,
            };
            let agent = AgentProcess::start(lab.cluster.node(name), options)?;
            agent.wait_published(PATIENCE, |_| true)?;
            lab.agents.push(agent);
            lab._pins.push(pins);
        }
        Ok(lab)
    }

    /// Makes pods, servers and translations as a step's objects have them, hands the objects to the agents and waits until
    /// both enforce them.
    pub(super) fn enter(&mut self, scenario: &Scenario, step: &Step) -> anyhow::Result<()> {
        let objects = step.objects.for_families(self.families);
        self.follow_pods(&objects)?;
        self.translations.clear();
        for node in NODES {
            let translations = translations(&objects, node)?;
            self.cluster.translate_on(node, translations.clone())?;
            self.translations.extend(translations);
        }
        if self.objects != objects {
            let before: Vec<_> = self.digests()?;
            self.objects = objects;
            self.write()?;
            for ((name, agent), before) in NODES.iter().zip(&self.agents).zip(before) {
                let local = self.cluster.node(name).pods().count();
                agent.wait_published(PATIENCE, |published| {
                    Some(published.manifests) != before && published.identified == local
                })?;
            }
        }
        self.serve(scenario, &step.expected)
    }

    /// Where probes of an end start.
    pub(super) fn source(&mut self, end: &str) -> anyhow::Result<Source> {
        if let Some(node) = self.node_of(end) {
            return Ok(Source::new(format!("node:{node}"), self.cluster.node(&node).namespace()));
        }
        if let Some(address) = end.strip_prefix("ip:") {
            let address: IpAddr = address.parse()?;
            if let Some(node) = self.node_at(address) {
                if !self.guests.contains_key(&node) {
                    let guest = self.cluster.add_guest(&node)?;
                    self.guests.insert(node.clone(), guest);
                }
                return Ok(Source::new(end, &self.guests[&node].namespace));
            }
            self.cluster.add_outside_host(address)?;
            return Ok(Source::new(end, self.cluster.outside()).leaving_by([address]));
        }
        Ok(Source::from(self.pod(end)?))
    }

    /// The address of an end.
    pub(super) fn address(&self, end: &str, family: Family) -> anyhow::Result<IpAddr> {
        let missing = || format!("{end} has no {family:?} address");
        if let Some(node) = self.node_of(end) {
            return self.cluster.node(&node).address(family).with_context(missing);
        }
        if let Some(address) = end.strip_prefix("ip:") {
            return Ok(address.parse()?);
        }
        if let Some(service) = end.strip_prefix("svc:") {
            let found = self.objects.of_kind("Service").find(|object| key_of(&object["metadata"]) == service);
            let addresses = cluster_addresses(found.with_context(|| format!("there is no Service {service}"))?)?;
            return addresses.into_iter().find(|address| is_of(&[family], *address)).with_context(missing);
        }
        self.pod(end)?.address(family).with_context(missing)
    }

    pub(super) fn sctp(&self) -> SctpMeans {
        self.sctp
    }

    /// Removes and adds pods until they are those of the objects.
    fn follow_pods(&mut self, objects: &Objects) -> anyhow::Result<()> {
        let mut wanted = BTreeMap::new();
        for key in objects.pods() {
            let pod = objects.pod(&key).expect("it is listed");
            let node = pod["spec"]["nodeName"].as_str().with_context(|| format!("{key} is on no node"))?.to_owned();
            let mut addresses = pod_addresses(pod)?;
            addresses.sort();
            wanted.insert(key, (node, addresses));
        }
        let mut gone: Vec<PodKey> = Vec::new();
        for node in self.cluster.nodes() {
            for pod in node.pods() {
                let mut addresses: Vec<_> = pod.addresses().collect();
                addresses.sort();
                let found = (node.name().to_owned(), addresses);
                if wanted.get(&pod.key.to_string()) == Some(&found) {
                    wanted.remove(&pod.key.to_string());
                } else {
                    gone.push(pod.key.clone());
                }
            }
        }
        for key in gone {
            self.listeners.remove(&key.to_string());
            self.cluster.remove_pod(&key)?;
        }
        for (key, (node, addresses)) in wanted {
            let (namespace, name) = key.split_once('/').expect("a key");
            let settings = PodSettings { addresses, ..PodSettings::new(namespace, name) };
            self.cluster.add_pod(&node, settings)?;
        }
        Ok(())
    }

    /// Starts servers for everything that is probed.
    fn serve(&mut self, scenario: &Scenario, expected: &[Expected]) -> anyhow::Result<()> {
        let mut wanted: BTreeMap<String, BTreeSet<Service>> = BTreeMap::new();
        for pod in self.cluster.pods() {
            wanted.entry(pod.key.to_string()).or_default().extend(services(&scenario.ports));
        }
        for name in NODES.iter().filter(|_| !scenario.node_ports.is_empty()) {
            wanted.entry(format!("node:{name}")).or_default().extend(services(&scenario.node_ports));
        }
        let is_served = |expected: &&Expected| !self.is_virtual(&expected.to, &expected.port);
        for expected in expected.iter().filter(is_served) {
            let to = self.node_of(&expected.to).map_or(expected.to.clone(), |node| format!("node:{node}"));
            wanted.entry(to).or_default().extend(services(std::slice::from_ref(&expected.port)));
        }
        for translation in &self.translations {
            for backend in &translation.backends {
                let pod = self.cluster.pods().find(|pod| pod.addresses().any(|own| own == backend.ip()));
                let service = Service { protocol: translation.protocol, port: backend.port() };
                let end = match (pod, self.node_at(backend.ip())) {
                    (Some(pod), _) => pod.key.to_string(),
                    (None, Some(node)) => format!("node:{node}"),
                    (None, None) => format!("ip:{}", backend.ip()),
                };
                wanted.entry(end).or_default().insert(service);
            }
        }
        for (end, services) in wanted {
            if self.listeners.get(&end).is_some_and(|(served, _)| services.is_subset(served)) {
                continue;
            }
            let kept = self.listeners.remove(&end).map(|(served, _)| served).unwrap_or_default();
            let services: BTreeSet<_> = services.union(&kept).copied().collect();
            let list: Vec<_> = services.iter().copied().collect();
            let listeners = if let Some(node) = end.strip_prefix("node:") {
                let node = self.cluster.node(node);
                Listeners::start_at(&end, node.namespace(), node.addresses().collect(), &list, self.sctp)?
            } else if let Some(address) = end.strip_prefix("ip:") {
                let address = address.parse()?;
                self.cluster.add_outside_host(address)?;
                Listeners::start_at(&end, self.cluster.outside(), vec![address], &list, self.sctp)?
            } else {
                Listeners::start(self.pod(&end)?, &list, self.sctp)?
            };
            self.listeners.insert(end, (services, listeners));
        }
        Ok(())
    }

    /// Whether packets to an end are translated on the way.
    fn is_virtual(&self, to: &str, port: &Port) -> bool {
        let node = to.strip_prefix("node:").map(|node| self.cluster.node(node));
        let addresses: Vec<IpAddr> = match node {
            Some(node) => node.addresses().collect(),
            None => to.strip_prefix("ip:").and_then(|address| address.parse().ok()).into_iter().collect(),
        };
        let is_at = |translation: &Translation| {
            addresses.contains(&translation.address.ip()) && Some(translation.address.port()) == port.number
        };
        to.starts_with("svc:") || self.translations.iter().any(is_at)
    }

    /// The node that an end is on, if it is no pod with a network of its own.
    fn node_of(&self, end: &str) -> Option<String> {
        if let Some(node) = end.strip_prefix("node:") {
            return Some(node.into());
        }
        let pod = self.objects.pod(end).filter(|pod| pod["spec"]["hostNetwork"] == true)?;
        Some(pod["spec"]["nodeName"].as_str()?.into())
    }

    fn node_at(&self, address: IpAddr) -> Option<String> {
        let found = self.cluster.nodes().iter().find(|node| node.addresses().any(|own| own == address));
        found.map(|node| node.name().to_owned())
    }

    fn pod(&self, key: &str) -> anyhow::Result<&Pod> {
        let (namespace, name) = key.split_once('/').with_context(|| format!("{key:?} is no end"))?;
        self.cluster.pod(namespace, name).with_context(|| format!("there is no pod {key}"))
    }

    fn digests(&self) -> anyhow::Result<Vec<Option<u64>>> {
        self.agents.iter().map(|agent| Ok(agent.published()?.map(|published| published.manifests))).collect()
    }

    fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// Puts the objects in the agents' directory, whole.
    fn write(&self) -> anyhow::Result<()> {
        let partial = self.directory.path().join("partial");
        fs::write(&partial, self.objects.text())?;
        Ok(fs::rename(&partial, self.manifests().join("objects.yaml"))?)
    }
}

fn services(ports: &[Port]) -> impl Iterator<Item = Service> {
    ports.iter().filter_map(|port| Some(Service { protocol: protocol_of(&port.protocol), port: port.number? }))
}

fn is_of(families: &[Family], address: IpAddr) -> bool {
    families.contains(if address.is_ipv4() { &Family::V4 } else { &Family::V6 })
}
