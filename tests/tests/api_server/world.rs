//! A node under a real agent that watches the server, and its pods.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use npolicy_agent::observe::{Format, Ready};
use npolicy_agent::rig::{
    AgentOptions, AgentProcess, AgentSource, BpfFs, Layout, Listeners, Node, NodeSettings, Outcome, Patience, Pod,
    PodSettings, Probe, Protocol, SctpMeans, Service, Source, probe_each,
};
use npolicy_tests::api_server::{ApiServer, Kind};
use npolicy_tests::{npolicy_binary, require_root};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The pods, and the label `app` of each.
pub(crate) const PODS: [(&str, &str); 5] = [
    ("shop/db", "db"),
    ("shop/web", "web"),
    ("shop/guest", "guest"),
    ("shop/mark", "mark"),
    ("other/client", "client"),
];
/// What every pod serves, over TCP and UDP.
pub(crate) const PORT: u16 = 8080;
/// How long the agent may take for what it does at once on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A question, and the answer that is expected over both families, by TCP and by UDP.
pub(crate) type Expected = (&'static str, &'static str, Outcome);

/// What the policy of the start says: only web reaches db, and everybody else is reached by everybody.
pub(crate) const AT_START: [Expected; 5] = [
    ("shop/web", "shop/db", Outcome::Accept),
    ("shop/guest", "shop/db", Outcome::Deny),
    ("other/client", "shop/db", Outcome::Deny),
    ("shop/guest", "shop/mark", Outcome::Accept),
    ("shop/db", "other/client", Outcome::Accept),
];

pub(crate) struct World {
    agent: Option<AgentProcess>,
    _listeners: Vec<Listeners>,
    pub(crate) node: Node,
    pins: BpfFs,
    pub(crate) server: ApiServer,
    directory: TempDir,
}

impl World {
    /// The pods under the policy of the start, enforced; nothing where this machine cannot run it.
    #[track_caller]
    pub(crate) fn start() -> Option<Self> {
        let mut world = Self::without_agent()?;
        world.start_agent();
        world.check(&AT_START);
        Some(world)
    }

    /// The pods and their objects.
    #[track_caller]
    pub(crate) fn without_agent() -> Option<Self> {
        if !require_root() {
            return None;
        }
        let settings = NodeSettings { name: "n1".into(), number: 1, layout: Layout::Routed };
        let mut node = Node::new(settings).expect("a node");
        let listeners = PODS.iter().map(|(pod, _)| add_pod(&mut node, pod)).collect();
        let server = ApiServer::start();
        let directory = tempfile::tempdir().expect("a directory");
        let url = server.listen_in(node.namespace());
        server.kubeconfig_for(&directory.path().join("kubeconfig"), &url);
        let world = Self {
            agent: None,
            _listeners: listeners,
            node,
            pins: BpfFs::new().expect("a BPF file system"),
            server,
            directory,
        };
        world.server.apply(world.node_object());
        for namespace in ["shop", "other"] {
            let labels = json!({"team": namespace});
            world.server.apply(json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels},
            }));
        }
        for (pod, app) in PODS {
            world.server.apply(world.pod_object(pod, app));
        }
        world.server.apply(allow("db", &["web"]));
        Some(world)
    }

    fn node_object(&self) -> Value {
        let ranges: Vec<String> =
            self.node.families().iter().map(|&family| self.node.range(family).to_string()).collect();
        let addresses: Vec<Value> =
            self.node.addresses().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDRs": ranges},
            "status": {"addresses": addresses},
        })
    }

    /// The object of a pod that runs.
    pub(crate) fn pod_object(&self, key: &str, app: &str) -> Value {
        let pod = self.pod(key);
        let addresses: Vec<Value> = pod.addresses().map(|address| json!({"ip": address})).collect();
        let now = jiff::Timestamp::now().to_string();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": *pod.key.namespace, "name": *pod.key.name, "labels": {"app": app}},
            "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "none"}]},
            "status": {
                "phase": "Running", "podIPs": addresses, "startTime": now,
                "conditions": [{"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": now}],
            },
        })
    }

    /// One more pod, which serves as long as what is returned lives. The API server is not told.
    #[must_use]
    pub(crate) fn add_pod(&mut self, key: &str) -> Listeners {
        add_pod(&mut self.node, key)
    }

    pub(crate) fn pod(&self, key: &str) -> &Pod {
        let (namespace, name) = key.split_once('/').expect("a namespace and a name");
        self.node.pod(namespace, name).expect("a pod of the node")
    }

    /// Starts an agent and waits until it enforces for every pod.
    #[track_caller]
    pub(crate) fn start_agent(&mut self) {
        self.launch_agent();
        self.agent().wait_published(PATIENCE, |ready| ready.identified == PODS.len()).expect("a publish");
    }

    /// Starts an agent and waits for nothing.
    pub(crate) fn launch_agent(&mut self) {
        let options = AgentOptions {
            program: npolicy_binary().to_owned(),
            source: AgentSource::Kubeconfig(self.directory.path().join("kubeconfig")),
            pin_dir: self.pins.pin_dir(),
            drop_log: self.directory.path().join("drops.log"),
            drop_format: Format::Text,
            ready_file: self.directory.path().join("ready.json"),
            node_name: Some("n1".into()),
            pod_cidrs: self.node.families().iter().map(|&family| self.node.range(family)).collect::<Vec<IpNet>>(),
            flows: None,
        };
        self.agent = Some(AgentProcess::start(&self.node, options).expect("an agent"));
    }

    /// Kills the agent as a crash would.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().expect("a running agent").kill().expect("a signal");
    }

    fn agent(&self) -> &AgentProcess {
        self.agent.as_ref().expect("a running agent")
    }

    /// What the running agent has published, if anything.
    pub(crate) fn published(&self) -> Option<Ready> {
        self.agent().published().expect("a ready file")
    }

    /// Waits until the agent has published something.
    #[track_caller]
    pub(crate) fn wait_published(&self, enough: impl Fn(&Ready) -> bool) {
        self.agent().wait_published(PATIENCE, enough).expect("a publish");
    }

    /// The last lines of the agent's log.
    pub(crate) fn log(&self) -> String {
        self.agent().log().join("\n")
    }

    /// Waits until a line of the agent's log holds all of these.
    #[track_caller]
    pub(crate) fn wait_log(&self, words: &[&str]) {
        let says = || self.agent().log().iter().any(|line| words.iter().all(|word| line.contains(word)));
        let deadline = Instant::now() + PATIENCE;
        while !says() {
            assert!(Instant::now() < deadline, "no line with {words:?}:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the server was asked for every kind once more.
    #[track_caller]
    pub(crate) fn wait_asked(&self, from: usize, kinds: &[Kind]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = self.server.asked();
            let is_asked = |kind: &Kind| asked[from..].iter().any(|asked| asked.kind == Some(*kind));
            if kinds.iter().all(is_asked) {
                return;
            }
            assert!(Instant::now() < deadline, "not asked for all of {kinds:?}:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Checks that packets meet what is expected, now.
    #[track_caller]
    pub(crate) fn check(&self, expected: &[Expected]) {
        let wrong = self.differences(expected);
        assert!(wrong.is_empty(), "{}\nthe agent's log:\n{}", wrong.join("\n"), self.log_if_any());
    }

    /// Waits until packets meet what is expected.
    #[track_caller]
    pub(crate) fn eventually(&self, patience: Duration, expected: &[Expected]) {
        let deadline = Instant::now() + patience;
        loop {
            let wrong = self.differences(expected);
            if wrong.is_empty() {
                return;
            }
            let log = self.log_if_any();
            assert!(
                Instant::now() < deadline,
                "not within {patience:?}:\n{}\nthe agent's log:\n{log}",
                wrong.join("\n")
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn log_if_any(&self) -> String {
        self.agent.as_ref().map(|agent| agent.log().join("\n")).unwrap_or_default()
    }

    /// What packets meet otherwise than expected, a line each.
    pub(crate) fn differences(&self, expected: &[Expected]) -> Vec<String> {
        let sources: Vec<Source> = expected.iter().map(|(from, ..)| Source::from(self.pod(from))).collect();
        let mut asked = Vec::new();
        let mut answers = Vec::new();
        for ((from, to, outcome), source) in expected.iter().zip(&sources) {
            let patience = if *outcome == Outcome::Accept { Patience::THOROUGH } else { Patience::BRIEF };
            for address in self.pod(to).addresses() {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    asked.push((source, Probe { to: address, protocol, port: PORT }, patience));
                    answers.push((from, to, outcome));
                }
            }
        }
        let outcomes = probe_each(&asked, SctpMeans::Raw, || {}).expect("probes");
        asked
            .iter()
            .zip(answers.iter().zip(&outcomes))
            .filter(|(_, ((.., expected), observed))| expected != observed)
            .map(|((_, probe, _), ((from, to, expected), observed))| {
                format!("{from} to {to} ({probe}): {observed}, not {expected}")
            })
            .collect()
    }

    /// The addresses of a pod, with a port.
    pub(crate) fn sockets(&self, key: &str, port: u16) -> Vec<SocketAddr> {
        self.pod(key).addresses().map(|address: IpAddr| SocketAddr::new(address, port)).collect()
    }

    /// Writes the kubeconfig anew, with the token that the server takes now.
    pub(crate) fn renew_kubeconfig(&self) {
        let path = self.directory.path().join("kubeconfig");
        let config: Value = serde_json::from_slice(&fs::read(&path).expect("a kubeconfig")).expect("JSON");
        let url = config["clusters"][0]["cluster"]["server"].as_str().expect("a URL");
        self.server.kubeconfig_for(&path, url);
    }
}

fn add_pod(node: &mut Node, key: &str) -> Listeners {
    let (namespace, name) = key.split_once('/').expect("a namespace and a name");
    let pod = node.add_pod(PodSettings::new(namespace, name)).expect("a pod");
    let services = [Protocol::Tcp, Protocol::Udp].map(|protocol| Service { protocol, port: PORT });
    Listeners::start(pod, &services, SctpMeans::Raw).expect("servers")
}

/// The policy `shop/APP`: pods of that app are reached from pods of these apps in their namespace, and from nobody else.
pub(crate) fn allow(app: &str, from: &[&str]) -> Value {
    let peers: Vec<Value> = from.iter().map(|app| json!({"podSelector": {"matchLabels": {"app": app}}})).collect();
    // No peers would be any peer.
    let rules = if peers.is_empty() { json!([]) } else { json!([{"from": peers}]) };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": app},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": rules},
    })
}

/// The ClusterNetworkPolicy `deny-APP`: in the Admin tier, nobody reaches pods of that app.
pub(crate) fn deny_all(app: &str, version: &str) -> Value {
    json!({
        "apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": "ClusterNetworkPolicy",
        "metadata": {"name": format!("deny-{app}")},
        "spec": {
            "tier": "Admin", "priority": 10,
            "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}},
            "ingress": [{"name": "nobody", "action": "Deny", "from": [{"namespaces": {}}]}],
        },
    })
}
