//! The scripts as files: what is there at the start, and what is done step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use npolicy_agent::model::PodKey;
use npolicy_agent::rig::{Outcome, Protocol};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A cluster over time.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Like `T3`; the file's name starts with it.
    pub id: String,
    /// In a few words, as in the file's name.
    pub name: String,
    /// Which rule it is about.
    pub why: String,
    /// Whether agents run before the first step.
    #[serde(default = "yes")]
    pub agents_at_start: bool,
    /// Flows that each family's table has room for, if it is not the usual number.
    pub flow_table: Option<u32>,
    /// What there is before the first step.
    pub start: Objects,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// Objects of a cluster.
#[derive(Clone, Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Objects {
    /// Labels by name.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods.
    pub pods: Vec<PodSpec>,
    /// NetworkPolicies, exact.
    pub policies: Vec<Value>,
    /// Services with an address of their own.
    pub services: Vec<ServiceSpec>,
}

/// A Service: an address that nodes translate to its pods'.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// `namespace/name`.
    pub service: Name,
    /// Labels of its pods.
    pub selector: Labels,
    /// Its port, TCP.
    pub port: u16,
    /// The pods' port.
    pub target_port: u16,
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A pod of a script.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    /// `namespace/name`.
    pub pod: Name,
    /// `n1` or `n2`.
    pub node: String,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
    /// Ports with an echo server.
    #[serde(default)]
    pub serves: Vec<Traffic>,
    /// How long it goes on after its deletion.
    pub grace_s: Option<f32>,
}

/// `namespace/name`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(pub PodKey);

/// A protocol and a port, like `TCP/8080`; `ICMP` has none, and 0 here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Traffic {
    /// TCP, UDP or ICMP.
    pub protocol: Protocol,
    /// Host order.
    pub port: u16,
}

/// Who sends, or is sent to.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum End {
    /// `namespace/name`.
    Pod(PodKey),
    /// `node:n1`: the node itself.
    Node(String),
    /// `svc:namespace/name`: a Service's address.
    Service(PodKey),
    /// `outside`: a host behind the nodes, which serves TCP and UDP on 8080.
    Outside,
}

/// A question: `app/a app/b TCP/8080 Deny`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Line {
    /// Who asks.
    pub from: End,
    /// Who is asked.
    pub to: End,
    /// How.
    pub traffic: Traffic,
    /// The right answer.
    pub expect: Outcome,
}

/// `Pod namespace/name`, `Namespace name`, `NetworkPolicy namespace/name`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum Reference {
    /// A pod.
    Pod(PodKey),
    /// A namespace.
    Namespace(String),
    /// A policy.
    Policy(PodKey),
}

/// Something that is done or looked at.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Step {
    /// In plain words.
    pub say: String,
    /// What of it namespaces and manifests cannot do: what, and what it takes.
    pub left_out: BTreeMap<String, String>,
    /// What is done.
    pub action: Action,
}

/// What a step does: its `do` and the fields that go with it.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Creates or replaces objects.
    Apply(Objects),
    /// Deletes objects. A pod with a grace period goes on for so long.
    Delete { objects: Vec<Reference> },
    /// Changes labels.
    Label {
        object: Reference,
        #[serde(default)]
        set: Labels,
        #[serde(default)]
        unset: Vec<String>,
    },
    /// Opens a flow and keeps it busy.
    Connect(Connect),
    /// Looks at flows: each must be in its state within so long, stay there, and not have paused.
    Flows {
        expect: BTreeMap<String, FlowState>,
        #[serde(default = "usual_patience")]
        within_s: f32,
        #[serde(default)]
        for_s: f32,
        longest_pause_ms: Option<u64>,
    },
    /// New connections: right within so long, and right for so long.
    Probe {
        probes: Vec<Line>,
        #[serde(default = "usual_patience")]
        within_s: f32,
        #[serde(default)]
        hold_s: f32,
    },
    /// Probes again and again until `finish`.
    Background { run: String, every_ms: u64, probes: Vec<Line> },
    /// Ends a `background` and counts its wrong answers.
    Finish { run: String, wrong: usize },
    /// Does something to agents: of one node, or of all.
    Agent { action: AgentAction, node: Option<String> },
    /// Lets time pass.
    Wait { seconds: f32 },
    /// A pod's containers end; its object stays.
    End { pod: Name, phase: String },
    /// A new pod gets the addresses of one that is gone.
    ReuseAddress { of: Name, by: PodSpec },
    /// Sets the largest packet that a node sends to others; pods are not told.
    PathMtu { node: String, bytes: u32 },
    /// Sends so much over a new TCP connection; all of it comes back within so long.
    Transfer { from: End, to: End, port: u16, bytes: usize, within_s: f32 },
    /// Short pods that dial as their first act.
    Jobs(Jobs),
    /// Short pods that send from the moment they are guarded; nothing may arrive.
    Burst(Burst),
    /// The same objects in many namespaces, in each order.
    Orders(Orders),
    /// Applies the two in turn. With `crash` every agent is killed after each time, and another started.
    Churn {
        times: u32,
        every_ms: u64,
        between: [Objects; 2],
        #[serde(default)]
        crash: bool,
    },
    /// One datagram between two sockets that stay open.
    Datagram { from: Name, source_port: u16, to: Name, port: u16, expect: Arrival },
    /// An ICMP error that quotes a packet of the pod's.
    IcmpError { from: End, to: Name, kind: ErrorKind, quotes: Quote, expect: Arrival },
}

/// A flow to open.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// Its name from now on.
    pub flow: String,
    /// The client: a pod or a node.
    pub from: End,
    /// The server.
    pub to: End,
    /// TCP, UDP or ICMP.
    pub traffic: Traffic,
    /// How many of them, over each family.
    #[serde(default = "one")]
    pub times: usize,
    /// What comes of it at once.
    pub expect: Opening,
    /// The client's port; none: any.
    pub source_port: Option<u16>,
    /// Who says something every 100 ms. The other side echoes the client, and is silent to the server.
    #[serde(default)]
    pub speaker: Speaker,
}

/// Who keeps a flow busy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Speaker {
    /// A byte and its echo.
    #[default]
    Client,
    /// After the client's first byte the server alone.
    Server,
}

/// What comes of a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opening {
    /// It runs.
    Open,
    /// No answer and no refusal.
    Silent,
}

/// The state of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// What one side says arrives at the other.
    Running,
    /// Nothing arrives at either side, and nobody refuses.
    Stopped,
}

/// What is done to an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentAction {
    /// SIGTERM, then the same binary again.
    Restart,
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Stop,
    /// After `kill` or `stop`.
    Start,
    /// SIGTERM, then another binary with the same layout of tables.
    Upgrade,
}

/// Whether something gets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// It is received.
    Arrives,
    /// It is received and answered.
    Answered,
    /// Nobody receives it.
    Lost,
}

/// Which ICMP error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Fragmentation needed; over IPv6 packet too big.
    TooBig,
    /// Time exceeded.
    TimeExceeded,
    /// Destination unreachable: port.
    PortUnreachable,
}

/// The packet that an error is about.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Quote {
    /// One that the client of a flow sent.
    Flow(String),
    /// The same with another source port: of a flow that never was.
    NoFlow(String),
}

/// Short pods that dial.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jobs {
    /// How many, spread over the nodes.
    pub count: usize,
    /// Where.
    pub nodes: Vec<String>,
    /// How many run at a time on all nodes together.
    pub at_once: usize,
    /// Their namespace.
    pub namespace: String,
    /// Their labels.
    pub labels: Labels,
    /// What they dial.
    pub dial: Dial,
    /// What comes of it.
    pub expect: Dialled,
    /// The slowest that is right.
    pub slowest_s: Option<f32>,
    /// Whether every agent is killed while they dial, and another started.
    #[serde(default)]
    pub crash: bool,
}

/// Whom a job calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dial {
    /// The server.
    pub to: Name,
    /// How.
    pub traffic: Traffic,
    /// How long it tries.
    pub timeout_s: f32,
}

/// What comes of a job's call. A refusal is always wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialled {
    /// An answer.
    Connected,
    /// Silence.
    Timeout,
}

/// Short pods that send.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// How many, spread over the nodes.
    pub count: usize,
    /// How many run at a time on all nodes together.
    pub at_once: usize,
    /// Where.
    pub nodes: Vec<String>,
    /// Their namespace.
    pub namespace: String,
    /// Their labels.
    #[serde(default)]
    pub labels: Labels,
    /// What they send to: `web/near TCP/8080`.
    pub to: Vec<Target>,
    /// How often a datagram is sent; a connection is tried every 20 ms.
    pub every_ms: u64,
    /// For how long.
    pub for_s: f32,
    /// How much may arrive at a server.
    pub arrived_at_server: usize,
}

/// A server: `web/near TCP/8080`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Target {
    /// Where it runs.
    pub pod: PodKey,
    /// What it serves.
    pub traffic: Traffic,
}

/// The same objects in many namespaces.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    /// In how many.
    pub times: usize,
    /// The namespace that stands for each of them.
    pub namespace: String,
    /// The objects.
    pub objects: Objects,
    /// What is right then, in each.
    pub then: Vec<Line>,
    /// Within so long,
    #[serde(default = "usual_patience")]
    pub within_s: f32,
    /// and for so long.
    #[serde(default)]
    pub hold_s: f32,
}

const fn yes() -> bool {
    true
}

const fn one() -> usize {
    1
}

const fn usual_patience() -> f32 {
    5.0
}

impl TryFrom<Map<String, Value>> for Step {
    type Error = serde_json::Error;

    fn try_from(mut fields: Map<String, Value>) -> Result<Self, Self::Error> {
        let say = serde_json::from_value(fields.remove("say").unwrap_or_default())?;
        let left_out = fields.remove("left_out").unwrap_or_else(|| Map::new().into());
        let left_out = serde_json::from_value(left_out)?;
        Ok(Self { say, left_out, action: serde_json::from_value(fields.into())? })
    }
}

fn pod_key(text: &str) -> anyhow::Result<PodKey> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(PodKey { namespace: namespace.into(), name: name.into() })
        }
        _ => bail!("`{text}` is not namespace/name"),
    }
}

impl TryFrom<String> for Name {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        pod_key(&text).map(Self)
    }
}

impl TryFrom<String> for End {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        match text.split_once(':') {
            Some(("node", name)) => Ok(Self::Node(name.into())),
            Some(("svc", name)) => pod_key(name).map(Self::Service),
            None if text == "outside" => Ok(Self::Outside),
            _ => pod_key(&text).map(Self::Pod),
        }
    }
}

impl TryFrom<String> for Traffic {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        let (protocol, port) = match text.split_once('/') {
            Some(("TCP", port)) => (Protocol::Tcp, port.parse()?),
            Some(("UDP", port)) => (Protocol::Udp, port.parse()?),
            None if text == "ICMP" => (Protocol::Icmp, 0),
            _ => bail!("`{text}` is not TCP/port, UDP/port or ICMP"),
        };
        Ok(Self { protocol, port })
    }
}

impl TryFrom<String> for Line {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let &[from, to, traffic, expect] = &*words else { bail!("`{text}` is not `from to traffic verdict`") };
        let expect = match expect {
            "Accept" => Outcome::Accept,
            "Deny" => Outcome::Deny,
            other => bail!("`{other}` is not Accept or Deny"),
        };
        let (from, to) = (from.to_owned().try_into()?, to.to_owned().try_into()?);
        Ok(Self { from, to, traffic: traffic.to_owned().try_into()?, expect })
    }
}

impl TryFrom<String> for Reference {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        match text.split_once(' ') {
            Some(("Pod", name)) => Ok(Self::Pod(pod_key(name)?)),
            Some(("NetworkPolicy", name)) => Ok(Self::Policy(pod_key(name)?)),
            Some(("Namespace", name)) => Ok(Self::Namespace(name.into())),
            _ => bail!("`{text}` is not `Pod`, `Namespace` or `NetworkPolicy` and a name"),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        let (pod, traffic) = text.split_once(' ').with_context(|| format!("`{text}` is not `pod traffic`"))?;
        Ok(Self { pod: pod_key(pod)?, traffic: traffic.to_owned().try_into()? })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Service(key) => write!(f, "svc:{key}"),
            Self::Outside => write!(f, "outside"),
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Icmp => write!(f, "ICMP"),
            protocol => write!(f, "{protocol}/{}", self.port),
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/dynamic")
}

/// Reads one script by its file's name without `.yaml`.
///
/// # Errors
///
/// A file that is no script.
pub fn load(name: &str) -> anyhow::Result<Script> {
    let path = folder().join(name).with_extension("yaml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let script: Script = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
    ensure!(name == format!("{}-{}", script.id, script.name), "{name}: the file is named otherwise than the script");
    ensure!(!script.steps.is_empty(), "{name} has no steps");
    Ok(script)
}

/// The names of all scripts, ascending.
///
/// # Errors
///
/// A folder that cannot be read.
pub fn all() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder()).context("cases/dynamic")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            names.push(path.file_stem().expect("a file has a name").to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
