//! A node whose pods the reference CNI plugins join, and an identifier that watches it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;
use npolicy_agent::agent::identify::{Decision, Facts, Identified, Identifier};
use npolicy_agent::model::{
    Age, ClusterState, Event, Labels, Node as NodeObject, Object, ObjectKey, Phase, Pod, PodKey, PodNetwork, family,
};
use npolicy_agent::rig::{Layout, Namespace, Node, NodeSettings};
use npolicy_agent::watch::links::{HostLink, LinkWatch, Links};
use npolicy_common::Family;
use npolicy_tests::{require, require_root};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where Debian and CNI's own packages have the plugins.
const PLUGIN_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// How long something may take to be seen.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the suite can run here.
#[track_caller]
pub(crate) fn require_plugins() -> bool {
    let missing = plugin_dir().is_none().then_some(
        "the reference CNI plugins ptp, bridge, host-local and macvlan are missing: apt-get install \
         containernetworking-plugins",
    );
    require_root() && require(missing) && require_ip()
}

fn require_ip() -> bool {
    let has_ip = Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success());
    require((!has_ip).then_some("there is no `ip` command: apt-get install iproute2"))
}

fn plugin_dir() -> Option<&'static str> {
    let has_all = |dir: &&&str| {
        ["ptp", "bridge", "host-local", "macvlan"].iter().all(|plugin| Path::new(dir).join(plugin).exists())
    };
    PLUGIN_DIRS.iter().find(has_all).copied()
}

/// A node without pods. Everything in it ends with it.
pub(crate) struct CniNode {
    pub(crate) node: Node,
    /// Where host-local keeps what it gave away.
    leases: TempDir,
    containers: BTreeMap<String, Namespace>,
}

/// How a container is to be joined.
pub(crate) struct Network {
    plugin: &'static str,
    config: Value,
    ranges: Vec<IpNet>,
    gateways: Vec<IpAddr>,
}

impl Network {
    fn new(plugin: &'static str, config: Value, ranges: Vec<IpNet>) -> Self {
        Self { plugin, config, ranges, gateways: Vec::new() }
    }

    /// A host route to each, as in many clouds.
    pub(crate) fn ptp(node: &CniNode) -> Self {
        Self::new("ptp", json!({}), node.ranges())
    }

    /// The same in another range; the host's end has the gateway's address.
    pub(crate) fn ptp_in(range: &str, gateway: &str) -> Self {
        let range = range.parse().expect("a range");
        Self { gateways: vec![gateway.parse().expect("an address")], ..Self::new("ptp", json!({}), vec![range]) }
    }

    /// Ports of one bridge.
    pub(crate) fn bridge(node: &CniNode) -> Self {
        Self::bridge_in("cni0", node.ranges())
    }

    pub(crate) fn bridge_in(name: &str, ranges: Vec<IpNet>) -> Self {
        Self::new("bridge", json!({"bridge": name, "isGateway": true, "hairpinMode": true}), ranges)
    }

    /// A second link-layer address of an interface of the node.
    pub(crate) fn macvlan(node: &CniNode, master: &str) -> Self {
        Self::new("macvlan", json!({"master": master, "mode": "bridge"}), node.ranges())
    }
}

impl CniNode {
    pub(crate) fn new() -> Self {
        let settings = NodeSettings { name: "n1".into(), number: 1, layout: Layout::Routed };
        let node = Node::new(settings).expect("a node");
        Self { node, leases: TempDir::new().expect("a directory"), containers: BTreeMap::new() }
    }

    fn ranges(&self) -> Vec<IpNet> {
        self.node.families().iter().map(|&family| self.node.range(family)).collect()
    }

    /// Runs a command in the node's namespace.
    pub(crate) fn run(&self, command: &str) {
        run_in(self.node.namespace(), command);
    }

    pub(crate) fn container(&self, name: &str) -> &Namespace {
        &self.containers[name]
    }

    /// Makes a container if there is none of this name, and joins it by an interface. Returns its addresses there.
    pub(crate) fn add(&mut self, network: &Network, name: &str, interface: &str, wanted: &[IpAddr]) -> Vec<IpAddr> {
        let namespace = self.containers.entry(name.into()).or_insert_with(|| {
            let namespace = Namespace::new().expect("a namespace");
            // Nobody else is on these links: an address need not be asked for.
            let setting = "/proc/sys/net/ipv6/conf/default/accept_dad";
            if Path::new(setting).exists() {
                namespace.run(|| fs::write(setting, "0")).expect("a thread").expect("a setting");
            }
            run_in(&namespace, "ip link set lo up");
            namespace
        });
        let namespace = namespace.clone();
        let output = self.call("ADD", network, name, interface, &namespace, wanted);
        let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
        let ips = result["ips"].as_array().unwrap_or_else(|| panic!("no addresses in {result}"));
        ips.iter()
            .map(|ip| ip["address"].as_str().expect("an address").parse::<IpNet>().expect("an address").addr())
            .collect()
    }

    /// Ends a container, as the container runtime does.
    pub(crate) fn delete(&mut self, network: &Network, name: &str) {
        let namespace = self.containers[name].clone();
        self.call("DEL", network, name, "eth0", &namespace, &[]);
        self.containers.remove(name);
    }

    fn call(
        &self,
        command: &str,
        network: &Network,
        name: &str,
        interface: &str,
        namespace: &Namespace,
        wanted: &[IpAddr],
    ) -> Output {
        let Network { plugin, config, ranges, gateways } = network;
        let range = |(at, subnet): (usize, &IpNet)| match gateways.get(at) {
            Some(gateway) => json!([{"subnet": subnet.to_string(), "gateway": gateway}]),
            None => json!([{"subnet": subnet.to_string()}]),
        };
        let mut config = config.clone();
        config["cniVersion"] = json!("1.0.0");
        // Networks of one range give away its addresses together.
        config["name"] = json!(format!("range-{}", ranges[0].addr()));
        config["type"] = json!(plugin);
        config["ipam"] = json!({
            "type": "host-local",
            "dataDir": self.leases.path(),
            "ranges": ranges.iter().enumerate().map(range).collect::<Vec<_>>(),
            "routes": ranges.iter().map(|range| match range {
                IpNet::V4(_) => json!({"dst": "0.0.0.0/0"}),
                IpNet::V6(_) => json!({"dst": "::/0"}),
            }).collect::<Vec<_>>(),
        });
        if interface != "eth0" {
            // A second interface leads to its own range alone.
            config["ipam"]["routes"] = json!([]);
        }
        if !wanted.is_empty() {
            config["args"] = json!({"cni": {"ips": wanted}});
        }
        let dir = plugin_dir().expect("the plugins");
        let output = (self.node.namespace())
            .run(|| {
                let mut child = Command::new(Path::new(dir).join(plugin))
                    .env("CNI_COMMAND", command)
                    .env("CNI_CONTAINERID", name)
                    .env("CNI_NETNS", namespace.path())
                    .env("CNI_IFNAME", interface)
                    .env("CNI_PATH", dir)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("the plugin starts");
                let mut stdin = child.stdin.take().expect("standard input");
                stdin.write_all(config.to_string().as_bytes()).expect("the plugin reads");
                drop(stdin);
                child.wait_with_output().expect("the plugin ends")
            })
            .expect("a thread in the node's namespace");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{command} {plugin} {name}: {said} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }
}

/// Runs a command in a namespace.
pub(crate) fn run_in(namespace: &Namespace, command: &str) {
    let mut words = command.split_whitespace();
    let mut command = Command::new(words.next().expect("a command"));
    let output = namespace.run(|| command.args(words).output().expect("the command starts")).expect("a thread");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What an agent on the node would decide.
pub(crate) struct Agent {
    watch: LinkWatch,
    identifier: RefCell<Identifier>,
    state: ClusterState,
    is_first_pass: bool,
}

pub(crate) fn key(name: &str) -> PodKey {
    PodKey { namespace: "shop".into(), name: name.into() }
}

impl Agent {
    /// Starts on a node; these pods are listed.
    pub(crate) fn start(node: &CniNode, pods: &[(&str, &[IpAddr])]) -> Self {
        let watch = node.node.namespace().run(LinkWatch::start).expect("a thread").expect("a watch");
        let mut agent = Self {
            watch,
            identifier: RefCell::new(Identifier::new("n1")),
            state: ClusterState::default(),
            is_first_pass: true,
        };
        agent.set_node(node.node.addresses().collect(), node.ranges());
        for (name, addresses) in pods {
            agent.upsert(name, addresses);
        }
        agent.pass();
        agent.is_first_pass = false;
        agent
    }

    pub(crate) fn set_node(&mut self, addresses: Vec<IpAddr>, pod_cidrs: Vec<IpNet>) {
        let node = NodeObject { name: "n1".into(), labels: Labels::default(), addresses, pod_cidrs };
        self.event(Event::Upsert(Object::Node(node)));
    }

    fn event(&mut self, event: Event) {
        self.identifier.borrow_mut().note(&event, Instant::now());
        self.state.apply(event);
    }

    /// The API server tells of a pod with these addresses.
    pub(crate) fn upsert(&mut self, name: &str, addresses: &[IpAddr]) {
        let pod = Pod {
            key: key(name),
            labels: Labels::default(),
            node: Some("n1".into()),
            network: PodNetwork::Own,
            ports: Vec::new(),
            addresses: addresses.to_vec(),
            phase: Phase::Running,
            age: Age { uid: name.into(), ..Age::default() },
            sandbox: (!addresses.is_empty()).then(Timestamp::now),
        };
        self.event(Event::Upsert(Object::Pod(pod)));
    }

    pub(crate) fn delete(&mut self, name: &str) {
        self.event(Event::Delete(ObjectKey::Pod(key(name))));
    }

    pub(crate) fn pass(&self) -> Identified {
        self.pass_at(Instant::now())
    }

    pub(crate) fn pass_at(&self, now: Instant) -> Identified {
        self.identifier.borrow_mut().identify(&Facts {
            links: &self.links(),
            state: &self.state,
            line_addresses: &|_| Vec::new(),
            exclude: &[],
            pod_cidrs: &[],
            now,
            boot: Timestamp::now() - jiff::SignedDuration::from_hours(1),
            pods_known_at: Some(Instant::now()),
            is_first_pass: self.is_first_pass,
        })
    }

    pub(crate) fn told(&self) -> String {
        let identifier = self.identifier.borrow();
        identifier.findings().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn links(&self) -> Arc<Links> {
        self.watch.current()
    }

    /// The interface whose peer has an address.
    pub(crate) fn link_at(&self, address: IpAddr) -> Option<HostLink> {
        self.links().host.values().find(|link| link.addresses.contains(&address)).cloned()
    }

    /// Waits until what the interface with this address is decided to be is what is expected.
    #[track_caller]
    pub(crate) fn expect(&self, address: IpAddr, expected: &Decision) {
        self.wait_for(&format!("{address} to be {expected:?}"), || {
            let Some(link) = self.link_at(address) else { return Err("on no interface".into()) };
            match self.pass().decisions.get(&link.ifindex) {
                Some(decision) if decision == expected => Ok(()),
                decision => Err(format!("{decision:?}: {link:?}")),
            }
        });
    }

    #[track_caller]
    pub(crate) fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match look() {
                Ok(found) => return found,
                Err(found) => assert!(Instant::now() < deadline, "waited for {what}; {found}\n{}", self.told()),
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The address of one family.
pub(crate) fn of(addresses: &[IpAddr], wanted: Family) -> IpAddr {
    *addresses.iter().find(|&&address| family(address) == wanted).expect("an address of the family")
}
