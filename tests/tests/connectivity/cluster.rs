//! The six pods of the demo's policy under a real agent.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use npolicy_agent::datapath::{self, Datapath, DatapathConfig};
use npolicy_agent::observe::{Format, Ready};
use npolicy_agent::rig::{
    AgentOptions, AgentProcess, AgentSource, BpfFs, Layout, Listeners, Node, NodeSettings, Outcome, Pod, PodSettings,
    Probe, Protocol, SctpMeans, Service, probe_all,
};
use npolicy_common::LAYOUT_VERSION;
use npolicy_tests::{npolicy_binary, require_root};
use tempfile::TempDir;

pub(crate) const PODS: [&str; 6] =
    ["prod/database", "prod/backend", "prod/frontend", "dev/backend", "dev/frontend", "staging/backend"];
pub(crate) const POLICY: &str = include_str!("../../../npolicy-agent/demo/policy.yaml");
pub(crate) const OPEN: u16 = 8080;
pub(crate) const CLOSED: u16 = 9090;

/// How long the agent may take to publish.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    agent: Option<AgentProcess>,
    _listeners: Vec<Listeners>,
    pub(crate) node: Node,
    pub(crate) sctp: SctpMeans,
    pins: BpfFs,
    directory: TempDir,
}

impl Cluster {
    /// The pods under the demo's policy; nothing where this machine cannot run it.
    pub(crate) fn start(layout: Layout) -> Option<Self> {
        if !require_root() {
            return None;
        }
        let sctp = SctpMeans::find();
        let mut node = Node::new(NodeSettings { name: "n1".into(), number: 1, layout }).expect("a node");
        let mut services = vec![Service { protocol: Protocol::Tcp, port: CLOSED }];
        services
            .extend([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| Service { protocol, port: OPEN }));
        let mut listeners = Vec::new();
        for pod in PODS {
            let (namespace, name) = pod.split_once('/').expect("a namespace and a name");
            let pod = node.add_pod(PodSettings::new(namespace, name)).expect("a pod");
            listeners.push(Listeners::start(pod, &services, sctp).expect("servers"));
        }
        let directory = tempfile::tempdir().expect("a directory");
        let pins = BpfFs::new().expect("a BPF file system");
        let mut cluster = Self { agent: None, _listeners: listeners, node, sctp, pins, directory };
        fs::create_dir(cluster.manifests()).expect("a directory");
        cluster.write("cluster.yaml", &cluster.objects());
        cluster.write("policy.yaml", POLICY);
        cluster.start_agent();
        Some(cluster)
    }

    fn objects(&self) -> String {
        let mut text = String::new();
        for namespace in ["prod", "dev", "staging"] {
            text += &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{env: {namespace}}}}}\n---\n"
            );
        }
        for pod in self.node.pods() {
            let addresses =
                pod.addresses().map(|address| format!("{{ip: '{address}'}}")).collect::<Vec<_>>().join(", ");
            let (namespace, name) = (&pod.key.namespace, &pod.key.name);
            text += &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, labels: {{app: {name}}}}}\n\
                 spec: {{containers: [{{name: server}}]}}\nstatus: {{phase: Running, podIPs: [{addresses}]}}\n---\n"
            );
        }
        text
    }

    fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// What the running agent has published, if anything.
    pub(crate) fn published(&self) -> Option<Ready> {
        self.agent.as_ref().expect("a running agent").published().expect("a ready file")
    }

    /// Leaves what an agent leaves that stops before its first publish.
    pub(crate) fn forget_verdicts(&self) {
        let pin_dir = self.pins.pin_dir_from_outside();
        let config = DatapathConfig::new(pin_dir.clone());
        let renewed = self.node.namespace().run(|| {
            datapath::remove_all(&pin_dir)?;
            Datapath::open(&config).map(drop)
        });
        renewed.expect("the node's namespace").expect("a datapath without verdicts");
    }

    /// Adds a pod to the node and to the manifests.
    pub(crate) fn add_pod(&mut self, namespace: &str, name: &str) {
        self.node.add_pod(PodSettings::new(namespace, name)).expect("a pod");
        self.write("cluster.yaml", &self.objects());
    }

    /// Where the agent pins its links, as seen from here.
    pub(crate) fn link_pins(&self) -> PathBuf {
        self.pins.pin_dir_from_outside().join(format!("v{LAYOUT_VERSION}")).join("links")
    }

    /// Puts a manifest in its place, whole.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let partial = self.directory.path().join("partial");
        fs::write(&partial, text).expect("a manifest");
        fs::rename(&partial, self.manifests().join(name)).expect("a manifest");
    }

    /// Takes every manifest away.
    pub(crate) fn remove_manifests(&self) {
        for file in fs::read_dir(self.manifests()).expect("the manifests' directory") {
            fs::remove_file(file.expect("a file").path()).expect("a manifest");
        }
    }

    /// What the running agent has logged.
    pub(crate) fn agent_log(&self) -> Vec<String> {
        self.agent.as_ref().expect("a running agent").log()
    }

    /// Changes the policy under the running agent and waits until it is enforced.
    pub(crate) fn change_policy(&self, text: &str) {
        let agent = self.agent.as_ref().expect("a running agent");
        let before = agent.published().expect("a ready file").expect("a publish").manifests;
        self.write("policy.yaml", text);
        agent.wait_published(PATIENCE, |published| published.manifests != before).expect("a publish");
    }

    /// Starts an agent, which finds what an earlier one pinned, and waits until it enforces.
    pub(crate) fn start_agent(&mut self) {
        self.launch_agent();
        self.wait_until_all_are_identified();
    }

    /// Waits until the agent has published something for every pod.
    pub(crate) fn wait_until_all_are_identified(&self) {
        let agent = self.agent.as_ref().expect("a running agent");
        agent.wait_published(PATIENCE, |published| published.identified == PODS.len()).expect("a publish");
    }

    /// Starts an agent and waits for nothing.
    pub(crate) fn launch_agent(&mut self) {
        let options = AgentOptions {
            program: npolicy_binary().to_owned(),
            source: AgentSource::Manifests(self.manifests()),
            pin_dir: self.pins.pin_dir(),
            drop_log: self.directory.path().join("drops.log"),
            drop_format: Format::Json,
            ready_file: self.directory.path().join("ready.json"),
            node_name: None,
            pod_cidrs: Vec::new(),
            flows: None,
        };
        self.agent = Some(AgentProcess::start(&self.node, options).expect("an agent"));
    }

    /// Kills the agent as a crash would.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().expect("a running agent").kill().expect("a signal");
    }

    pub(crate) fn pod(&self, key: &str) -> &Pod {
        let (namespace, name) = key.split_once('/').expect("a namespace and a name");
        self.node.pod(namespace, name).expect("a pod of the cluster")
    }

    /// Drop lines so far, as JSON.
    pub(crate) fn drop_lines(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.directory.path().join("drops.log")).expect("a drop log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Tries every ordered pair, protocol and family against `expected`.
    #[track_caller]
    pub(crate) fn check_table(&self, expected: impl Fn(&str, &str, Protocol, u16) -> Outcome) {
        let services = [
            (Protocol::Tcp, OPEN),
            (Protocol::Tcp, CLOSED),
            (Protocol::Udp, OPEN),
            (Protocol::Sctp, OPEN),
            (Protocol::Icmp, 0),
        ];
        let mut asked = Vec::new();
        let mut answers = Vec::new();
        for (from, to) in
            PODS.iter().flat_map(|from| PODS.iter().map(move |to| (*from, *to))).filter(|(from, to)| from != to)
        {
            for address in self.pod(to).addresses() {
                for (protocol, port) in services {
                    asked.push((self.pod(from), Probe { to: address, protocol, port }));
                    answers.push(expected(from, to, protocol, port));
                }
            }
        }
        assert_eq!(asked.len(), 30 * services.len() * self.node.families().len());
        let outcomes = probe_all(&asked, self.sctp, || {}).expect("probes");
        let wrong: Vec<_> = asked
            .iter()
            .zip(answers.iter().zip(&outcomes))
            .filter(|(_, (expected, observed))| expected != observed)
            .map(|((from, probe), (expected, observed))| format!("{} to {probe}: {observed}, not {expected}", from.key))
            .collect();
        assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), asked.len(), wrong.join("\n"));
    }
}

/// What the demo's policy says, read from the policy by a person.
pub(crate) fn seed_verdict(from: &str, to: &str, protocol: Protocol, port: u16) -> Outcome {
    let is_named = protocol == Protocol::Tcp && port == OPEN && ["prod/backend", "dev/backend"].contains(&from);
    if to != "prod/database" || is_named { Outcome::Accept } else { Outcome::Deny }
}

/// Connects from inside a pod; the connection can then be used from anywhere.
pub(crate) fn connect(pod: &Pod, to: IpAddr, port: u16) -> io::Result<TcpStream> {
    let to = SocketAddr::new(to, port);
    pod.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).expect("the pod's namespace")
}

/// Sends a line and waits for its echo.
pub(crate) fn echo(stream: &mut TcpStream, number: u64, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&number.to_be_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    assert_eq!(u64::from_be_bytes(answer), number, "an echo out of order");
    Ok(())
}

/// Something that is done again and again while a test goes on.
pub(crate) struct Steady<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<T>>,
}

impl<T: Send + 'static> Steady<T> {
    /// Repeats `work`, handing it a number, until it is stopped.
    pub(crate) fn start(mut work: impl FnMut(u64) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut results = Vec::new();
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                results.push(work(number));
                thread::sleep(Duration::from_millis(2));
            }
            results
        });
        Self { stop, thread }
    }

    /// Stops and hands over every result.
    pub(crate) fn stop(self) -> Vec<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("steady work")
    }
}

/// TCP segments that a pod has sent more than once since it was made.
pub(crate) fn retransmissions(pod: &Pod) -> u64 {
    let text =
        pod.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).expect("the pod's namespace").expect("counters");
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let place = names.split_whitespace().position(|name| name == "RetransSegs").expect("RetransSegs");
    values.split_whitespace().nth(place).expect("a value").parse().expect("a number")
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
