//! A cluster of two nodes under real agents, and what happens to its objects.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use npolicy_agent::model::PodKey;
use npolicy_agent::observe::Format;
use npolicy_agent::rig::{
    AgentOptions, AgentProcess, AgentSource, BpfFs, Cluster, Layout, Namespace, Node, NodeSettings, Pod, PodSettings,
    Protocol, Translation,
};
use npolicy_common::Family;
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use super::manifests::{Directory, PodObject};
use super::script::{AgentAction, End, Labels, Objects, PodSpec, Reference, Script, ServiceSpec, Traffic};
use super::server::{Arrivals, Servers};
use super::socket;

/// The nodes of every script.
pub(super) const NODES: [&str; 2] = ["n1", "n2"];
/// The interface of a pod inside it, and the bridge of a bridged node.
const POD_LINK: &str = "eth0";
const BRIDGE: &str = "cni0";
/// How long an agent may take to publish. Verdicts are expected soon after that.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster, its objects, and the agents that enforce them.
pub(super) struct World {
    agents: Vec<Agent>,
    containers: BTreeMap<PodKey, Container>,
    sockets: HashMap<(PodKey, SocketAddr), Arc<UdpSocket>>,
    pub(super) cluster: Cluster,
    pub(super) directory: Directory,
    pub(super) arrivals: Arrivals,
    services: BTreeMap<PodKey, (u8, ServiceSpec)>,
    /// What the pods' addresses are, or were.
    addresses: BTreeMap<PodKey, Vec<IpAddr>>,
    /// Pods made so far.
    made: u32,
    binaries: [PathBuf; 2],
    flow_table: Option<u32>,
    /// The servers of the host behind the nodes.
    outside: Option<Servers>,
}

/// What runs in a pod.
struct Container {
    servers: Servers,
    grace: Option<Duration>,
    /// When it ends, if it is being deleted.
    ends: Option<Instant>,
}

/// The agent of one node. What it pinned outlives it.
struct Agent {
    node: &'static str,
    process: Option<AgentProcess>,
    pins: BpfFs,
    /// Which of the binaries it runs.
    binary: usize,
}

impl World {
    /// Makes the start of a script, with agents that enforce it. `binaries` are two builds of the agent.
    pub(super) fn start(script: &Script, layout: Layout, binaries: [&Path; 2]) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        let mut agents = Vec::new();
        for (number, name) in (1..).zip(NODES) {
            let node = Node::new(NodeSettings { name: name.into(), number, layout })?;
            quicken(node.namespace(), if layout == Layout::Bridged { BRIDGE } else { "lo" }, node.families())?;
            nodes.push(node);
            agents.push(Agent { node: name, process: None, pins: BpfFs::new()?, binary: 0 });
        }
        let mut world = Self {
            agents,
            containers: BTreeMap::new(),
            sockets: HashMap::new(),
            cluster: Cluster::new(nodes)?,
            directory: Directory::new()?,
            arrivals: Arrivals::default(),
            services: BTreeMap::new(),
            addresses: BTreeMap::new(),
            made: 0,
            binaries: binaries.map(Path::to_owned),
            flow_table: script.flow_table,
            outside: None,
        };
        world.serve_outside()?;
        world.create(&script.start)?;
        for place in 0..NODES.len() {
            if script.agents_at_start {
                world.launch(place)?;
            }
        }
        world.settle()?;
        Ok(world)
    }

    fn serve_outside(&mut self) -> anyhow::Result<()> {
        let addresses: Vec<IpAddr> = self.families().into_iter().map(outside_address).collect();
        addresses.iter().try_for_each(|&address| self.cluster.add_outside_host(address))?;
        let serves = [Protocol::Tcp, Protocol::Udp].map(|protocol| Traffic { protocol, port: 8080 });
        let servers = Servers::start(self.cluster.outside(), &addresses, &serves, &self.arrivals)?;
        self.outside = Some(servers);
        Ok(())
    }

    /// The families every pod has.
    pub(super) fn families(&self) -> Vec<Family> {
        self.cluster.families().to_vec()
    }

    /// Creates or replaces objects, and waits until they are enforced.
    pub(super) fn apply(&mut self, objects: &Objects) -> anyhow::Result<()> {
        self.create(objects)?;
        self.settle()
    }

    /// Creates or replaces objects.
    pub(super) fn create(&mut self, objects: &Objects) -> anyhow::Result<()> {
        let Objects { namespaces, pods, policies, services } = objects;
        for (name, labels) in namespaces {
            self.directory.put_namespace(name, labels.clone())?;
        }
        for policy in policies {
            self.directory.put_policy(policy)?;
        }
        for pod in pods {
            self.start_pod(pod, Vec::new())?;
        }
        for service in services {
            let number = u8::try_from(self.services.len() + 1).context("too many Services")?;
            self.services.insert(service.service.0.clone(), (number, service.clone()));
        }
        self.translate()
    }

    /// Makes a pod, with these addresses if there are any, and its object after it, as a kubelet does.
    pub(super) fn start_pod(&mut self, spec: &PodSpec, addresses: Vec<IpAddr>) -> anyhow::Result<Pod> {
        let PodSpec { pod, node, labels, serves, grace_s } = spec;
        let key = pod.0.clone();
        ensure!(!self.containers.contains_key(&key), "pod {key} is there already");
        let pod = self.cluster.add_pod(node, PodSettings { key: key.clone(), addresses })?.clone();
        quicken(&pod.namespace, POD_LINK, self.cluster.families())?;
        let addresses: Vec<IpAddr> = pod.addresses().collect();
        let servers = Servers::start(&pod.namespace, &addresses, serves, &self.arrivals)
            .with_context(|| format!("servers of {key}"))?;
        self.containers
            .insert(key.clone(), Container { servers, grace: grace_s.map(Duration::from_secs_f32), ends: None });
        self.addresses.insert(key.clone(), addresses.clone());
        self.made += 1;
        let object = PodObject {
            node: node.clone(),
            labels: labels.clone(),
            serves: serves.clone(),
            addresses,
            phase: "Running".into(),
            uid: self.made,
            is_terminating: false,
        };
        self.directory.put_pod(&key, object)?;
        Ok(pod)
    }

    /// Deletes an object; a pod with a grace period goes on for so long.
    pub(super) fn delete(&mut self, object: &Reference) -> anyhow::Result<()> {
        match object {
            Reference::Policy(key) => self.directory.remove_policy(key),
            Reference::Namespace(name) => bail!("namespace {name} is not to be deleted"),
            Reference::Pod(key) => match self.containers.get_mut(key).map(|container| (container.grace, container)) {
                Some((Some(grace), container)) => {
                    container.ends = Some(Instant::now() + grace);
                    self.directory.change_pod(key, |pod| pod.is_terminating = true)
                }
                _ => self.remove_pod(key),
            },
        }
    }

    /// Ends a pod's containers and takes its interface and its object away.
    pub(super) fn remove_pod(&mut self, key: &PodKey) -> anyhow::Result<()> {
        self.end(key)?;
        self.directory.remove_pod(key)
    }

    /// Ends a pod's containers: its interface goes, and then its servers and their connections, unheard.
    fn end(&mut self, key: &PodKey) -> anyhow::Result<()> {
        self.cluster.remove_pod(key)?;
        self.sockets.retain(|(owner, _), _| owner != key);
        self.containers.remove(key);
        self.translate()
    }

    /// Ends a pod's containers; its object stays and says how they ended.
    pub(super) fn end_with(&mut self, key: &PodKey, phase: &str) -> anyhow::Result<()> {
        self.end(key)?;
        self.directory.change_pod(key, |pod| pod.phase = phase.into())
    }

    /// Changes labels of a pod or a namespace.
    pub(super) fn label(
        &mut self,
        object: &Reference,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> anyhow::Result<()> {
        match object {
            Reference::Pod(key) => self.directory.change_pod(key, |pod| change(&mut pod.labels))?,
            Reference::Namespace(name) => self.directory.change_namespace(name, change)?,
            Reference::Policy(key) => bail!("policy {key} is not to be labelled"),
        }
        self.translate()
    }

    /// Makes the objects of the Services, and has the nodes translate their addresses, for the pods that are there now.
    fn translate(&mut self) -> anyhow::Result<()> {
        let mut translations = Vec::new();
        for (key, (number, service)) in &self.services {
            let families = self.cluster.families();
            let addresses: Vec<IpAddr> = families.iter().map(|&family| service_address(*number, family)).collect();
            self.directory.put_service("service", &key.to_string(), &service_object(key, service, &addresses))?;
            let is_backend = |pod: &&Pod| {
                let labels = self.directory.pod(&pod.key).map(|object| &object.labels);
                let is_selected = |labels: &Labels| service.selector.iter().all(|(k, v)| labels.get(k) == Some(v));
                pod.key.namespace == key.namespace && labels.is_some_and(is_selected)
            };
            for (&family, &address) in families.iter().zip(&addresses) {
                let backends = self.cluster.pods().filter(is_backend);
                let backends: Vec<(&PodKey, IpAddr)> =
                    backends.filter_map(|pod| Some((&pod.key, pod.address(family)?))).collect();
                let name = format!("{key}-{family:?}").to_lowercase();
                self.directory.put_service("slice", &name, &slice_object(key, service, family, &backends))?;
                translations.push(Translation {
                    protocol: Protocol::Tcp,
                    address: SocketAddr::new(address, service.port),
                    backends: backends.iter().map(|(_, ip)| SocketAddr::new(*ip, service.target_port)).collect(),
                    masquerade: false,
                });
            }
        }
        Ok(self.cluster.translate(&translations)?)
    }

    /// Waits until every running agent enforces what the manifests say, on every pod of its node.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        self.reap()?;
        let digest = self.directory.digest()?;
        for agent in &self.agents {
            let Some(process) = &agent.process else { continue };
            let pods = self.cluster.node(agent.node).pods().count();
            process
                .wait_published(PATIENCE, |ready| {
                    ready.manifests == digest && ready.endpoints == pods && ready.identified == pods
                })
                .with_context(|| format!("agent of {}, {pods} pods", agent.node))?;
        }
        Ok(())
    }

    /// Takes pods away whose grace period is over.
    pub(super) fn reap(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let is_over = |container: &Container| container.ends.is_some_and(|ends| ends <= now);
        let over: Vec<_> = self.containers.iter().filter(|(_, it)| is_over(it)).map(|(key, _)| key.clone()).collect();
        over.iter().try_for_each(|key| self.remove_pod(key))
    }

    /// Does something to the agent of a node, or to all, and waits until those that run enforce.
    pub(super) fn handle_agents(&mut self, action: AgentAction, node: Option<&str>) -> anyhow::Result<()> {
        self.signal_agents(action, node)?;
        self.settle()
    }

    /// Does something to the agent of a node, or to all.
    pub(super) fn signal_agents(&mut self, action: AgentAction, node: Option<&str>) -> anyhow::Result<()> {
        for place in 0..self.agents.len() {
            if node.is_some_and(|node| node != self.agents[place].node) {
                continue;
            }
            if action != AgentAction::Start {
                let process = self.agents[place].process.take().context("no agent runs")?;
                if action == AgentAction::Kill {
                    process.kill()?;
                } else {
                    let status = process.stop()?;
                    ensure!(status.success(), "the agent ended with {status}");
                }
            }
            if action == AgentAction::Upgrade {
                self.agents[place].binary = 1 - self.agents[place].binary;
            }
            if matches!(action, AgentAction::Start | AgentAction::Restart | AgentAction::Upgrade) {
                self.launch(place)?;
            }
        }
        Ok(())
    }

    fn launch(&mut self, place: usize) -> anyhow::Result<()> {
        let agent = &mut self.agents[place];
        ensure!(agent.process.is_none(), "the agent of {} runs already", agent.node);
        let node = self.cluster.node(agent.node);
        let file = |kind: &str| self.directory.beside().join(format!("{}.{kind}", agent.node));
        let options = AgentOptions {
            program: self.binaries[agent.binary].clone(),
            source: AgentSource::Manifests(self.directory.manifests()),
            pin_dir: agent.pins.pin_dir(),
            drop_log: file("drops"),
            drop_format: Format::Text,
            ready_file: file("ready"),
            node_name: Some(agent.node.into()),
            pod_cidrs: node.families().iter().map(|&family| node.range(family)).collect::<Vec<IpNet>>(),
            flows: self.flow_table,
        };
        agent.process = Some(AgentProcess::start(node, options)?);
        Ok(())
    }

    /// How many interfaces of a node carry the programs, as far as its agent has said.
    pub(super) fn guarded(&self, node: &str) -> anyhow::Result<usize> {
        let agent = self.agents.iter().find(|agent| agent.node == node).context("no such node")?;
        let process = agent.process.as_ref().context("no agent runs")?;
        Ok(process.published()?.map_or(0, |ready| ready.endpoints))
    }

    /// What the agents last said, for whoever reads a failure.
    pub(super) fn last_words(&self) -> String {
        let mut text = String::new();
        for agent in &self.agents {
            let lines = agent.process.as_ref().map(AgentProcess::log).unwrap_or_default();
            let shown = &lines[lines.len().saturating_sub(40)..];
            text += &format!("agent of {}:\n{}\n", agent.node, shown.join("\n"));
            let drops = self.directory.beside().join(format!("{}.drops", agent.node));
            let drops = fs::read_to_string(drops).unwrap_or_else(|error| error.to_string());
            let lines: Vec<_> = drops.lines().collect();
            text += &format!("denials:\n{}\n", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        text + &self.directory.text().unwrap_or_else(|error| error.to_string())
    }

    /// A pod.
    pub(super) fn pod(&self, key: &PodKey) -> anyhow::Result<&Pod> {
        self.cluster.pod(&key.namespace, &key.name).with_context(|| format!("no pod {key}"))
    }

    /// The addresses that a pod has, or had.
    pub(super) fn addresses_of(&self, key: &PodKey) -> anyhow::Result<Vec<IpAddr>> {
        self.addresses.get(key).cloned().with_context(|| format!("there never was a pod {key}"))
    }

    /// Where an end lives.
    pub(super) fn namespace(&self, end: &End) -> anyhow::Result<Namespace> {
        match end {
            End::Pod(key) => Ok(self.pod(key)?.namespace.clone()),
            End::Node(name) => Ok(self.cluster.node(name).namespace().clone()),
            End::Outside => Ok(self.cluster.outside().clone()),
            End::Service(key) => bail!("Service {key} sends nothing"),
        }
    }

    /// By which address of a family an end is reached.
    pub(super) fn address(&self, end: &End, family: Family) -> anyhow::Result<IpAddr> {
        let address = match end {
            End::Pod(key) => self.pod(key)?.address(family),
            End::Node(name) => self.cluster.node(name).address(family),
            End::Service(key) => self.services.get(key).map(|(number, _)| service_address(*number, family)),
            End::Outside => Some(outside_address(family)),
        };
        address.with_context(|| format!("{end:?} has no address of {family:?}"))
    }

    /// The UDP socket at a pod's address: the server's, or one that stays open from its first use.
    pub(super) fn datagram_socket(&mut self, key: &PodKey, at: SocketAddr) -> anyhow::Result<(Arc<UdpSocket>, bool)> {
        if let Some(socket) = self.containers.get(key).and_then(|container| container.servers.datagram_socket(at)) {
            return Ok((socket, true));
        }
        if let Some(socket) = self.sockets.get(&(key.clone(), at)) {
            return Ok((socket.clone(), false));
        }
        let socket = Arc::new(socket::udp(&self.pod(key)?.namespace, at)?);
        self.sockets.insert((key.clone(), at), socket.clone());
        Ok((socket, false))
    }
}

/// The address of the host behind the nodes: of the blocks for documentation (RFC 5737, RFC 3849).
fn outside_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, 7).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
    }
}

fn service_object(key: &PodKey, service: &ServiceSpec, addresses: &[IpAddr]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": *key.namespace, "name": *key.name},
        "spec": {
            "clusterIP": addresses.first(),
            "clusterIPs": addresses,
            "selector": service.selector,
            "ports": [{"port": service.port, "protocol": "TCP", "targetPort": service.target_port}],
        },
    })
}

fn slice_object(key: &PodKey, service: &ServiceSpec, family: Family, backends: &[(&PodKey, IpAddr)]) -> Value {
    let endpoint = |(pod, address): &(&PodKey, IpAddr)| {
        let target = json!({"kind": "Pod", "namespace": *pod.namespace, "name": *pod.name});
        json!({"addresses": [address], "conditions": {"ready": true}, "targetRef": target})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": *key.namespace,
            "name": format!("{}-{family:?}", key.name).to_lowercase(),
            "labels": {"kubernetes.io/service-name": *key.name},
        },
        "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" },
        "ports": [{"port": service.target_port, "protocol": "TCP"}],
        "endpoints": backends.iter().map(endpoint).collect::<Vec<Value>>(),
    })
}

/// The address of the Service with a number.
fn service_address(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Settings of a namespace's stack, below /proc/sys/net: TCP sends again at least once a second, where the kernel can be
/// told (6.15), and does not give up. So a connection that was stopped for long goes on soon after it may.
const PATIENT_TCP: [(&str, &str); 4] = [
    ("ipv4/tcp_rto_max_ms", "1000"),
    ("ipv4/tcp_retries2", "255"),
    ("ipv4/tcp_syn_retries", "127"),
    ("ipv4/tcp_synack_retries", "127"),
];
/// Settings of an interface: a neighbour is asked again soon whether it is still there. So an address that moves to
/// another pod of a bridge is found there, although nobody announces it as a CNI plugin would.
const CURIOUS_NEIGHBOUR: [(&str, &str); 5] = [
    ("base_reachable_time_ms", "500"),
    ("delay_first_probe_time", "1"),
    ("retrans_time_ms", "200"),
    ("ucast_solicit", "1"),
    // The first time it is asked as long as it takes: until its pod is identified nothing leaves a bridged interface, and
    // giving up would look like a refusal.
    ("mcast_solicit", "100"),
];

/// Makes the stack of a namespace, behind one interface, quicker than the kernel's defaults.
fn quicken(namespace: &Namespace, link: &str, families: &[Family]) -> anyhow::Result<()> {
    let mut settings: Vec<(String, &str)> = PATIENT_TCP.map(|(name, value)| (name.to_owned(), value)).to_vec();
    for family in families {
        let family = if *family == Family::V4 { "ipv4" } else { "ipv6" };
        settings.extend(CURIOUS_NEIGHBOUR.map(|(name, value)| (format!("{family}/neigh/{link}/{name}"), value)));
    }
    namespace.run(|| {
        for (name, value) in settings {
            match fs::write(Path::new("/proc/sys/net").join(&name), value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with("tcp_rto_max_ms") => {}
                written => written.with_context(|| format!("write {value} to {name}"))?,
            }
        }
        Ok(())
    })?
}
