//! What compiling costs: a cluster of 150,000 pods from scratch, and then one event at a time.
//!
//! Every object has strings of its own, as if each had been read by itself. Figures are the thread's CPU time, so that other
//! load on the machine does not count, medians of rounds that run every row once; an event's time is from the event to the
//! list of what differs. Memory is the greatest resident size of a process of its own. Run it by `cargo xtask bench compile`.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use npolicy_agent::compile::{Compiler, Scope};
use npolicy_agent::datapath::{Datapath, DatapathConfig};
use npolicy_agent::model::{
    Action, Age, ClusterMatch, ClusterPeer, ClusterPolicy, ClusterRule, ClusterState, Condition, Endpoint,
    EndpointSlice, Event, IpBlock, Labels, NamedPort, Namespace, Namespaces, NetworkPolicy, Node, Object, ObjectKey,
    Peer, Peers, Phase, Pod, PodKey, PodNetwork, PodPeer, PodSet, PolicyKey, PortEntry, PortProtocol, Ports,
    Requirement, Rule, Selector, Service, ServiceKey, ServicePort, SliceKey, SlicePort, Tier, TrafficPolicy, Values,
};
use npolicy_agent::rig::{BpfFs, Layout, Node as RigNode, NodeSettings, PodSettings};
use npolicy_agent::watch::links::LinkWatch;
use rustix::time::{ClockId, clock_gettime};

const PODS: u32 = 150_000;
/// Pods of the node that is compiled for, of which the first are in one namespace.
const LOCAL: u32 = 250;
const LOCAL_TOGETHER: u32 = 100;
const NAMESPACES: u32 = 300;
/// Pods with equal labels.
const REPLICAS: u32 = 10;
const NODES: u32 = 600;
const POLICIES: u32 = 9_900;
const CLUSTER_POLICIES: u32 = 100;
const SERVICES: u32 = 2_000;
const NODE_PORTS: u32 = 50;
/// Rounds of events, and of the rows that take long.
const ROUNDS: usize = 101;
const SLOW_ROUNDS: usize = 7;

fn main() -> Result<()> {
    let as_json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        // A process of its own, for its memory.
        Some("memory") => {
            let state = cluster();
            let model = peak_kib()?;
            let mut compiler = Compiler::new(Scope::Node("n0".into()));
            compiler.start(&state);
            println!("{model} {}", peak_kib()?);
            return Ok(());
        }
        Some(other) => anyhow::bail!("unknown flag {other}, expected --json or nothing"),
    };
    if !as_json {
        println!("{:<44} {:>12} {:>10}", "", "median", "differing");
    }
    let own = std::env::current_exe()?;
    let output = Command::new(own).arg("memory").output().context("run itself for its memory")?;
    ensure!(output.status.success(), "the process that measures memory failed");
    let text = String::from_utf8(output.stdout)?;
    let (model, compiled) = text.trim().split_once(' ').context("two sizes")?;
    for (name, kib) in [("memory-model", model), ("memory-model-and-compiled", compiled)] {
        let mib = kib.parse::<f64>()? / 1024.0;
        if as_json {
            println!("{}", serde_json::json!({"name": name, "mib": mib}));
        } else {
            println!("{name:<44} {:>8.1} MiB", mib);
        }
    }
    let mut bench = Bench::new();
    let show = |rows: Vec<Row>| {
        for Row { name, us, differing } in rows {
            if as_json {
                println!("{}", serde_json::json!({"name": name, "us": us, "differing": differing}));
            } else {
                println!("{name:<44} {us:>9.1} us {differing:>10}");
            }
        }
    };
    show(bench.run()?);
    ensure!(bench.wrong.is_empty(), "{}", bench.wrong.join("; "));
    if rustix::process::geteuid().is_root() {
        show(bench.publish()?);
    } else {
        eprintln!("publishing is not measured: loading BPF programs takes root");
    }
    Ok(())
}

struct Row {
    name: &'static str,
    us: f64,
    differing: usize,
}

struct Bench {
    state: ClusterState,
    compiler: Compiler,
    /// Rows that did not do what they say.
    wrong: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        let state = cluster();
        let mut compiler = Compiler::new(Scope::Node("n0".into()));
        compiler.start(&state);
        Self { state, compiler, wrong: Vec::new() }
    }

    fn run(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut cold = Vec::new();
        for _ in 0..SLOW_ROUNDS {
            let mut compiler = Compiler::new(Scope::Node("n0".into()));
            let start = cpu_micros();
            compiler.start(&self.state);
            cold.push(cpu_micros() - start);
            self.compiler = compiler;
        }
        let plan = self.compiler.plan();
        ensure!(plan.subjects.len() == LOCAL as usize, "{} subjects", plan.subjects.len());
        rows.push(Row { name: "cold", us: median(&mut cold), differing: plan.exact.len() });

        let cases = cases();
        let mut samples: Vec<(Vec<f64>, usize)> = cases.iter().map(|_| Default::default()).collect();
        for round in 0..ROUNDS {
            for (case, (times, most)) in cases.iter().zip(&mut samples) {
                // There, and back again: the cluster is the same for every row.
                for event in (case.events)(round as u32) {
                    let start = cpu_micros();
                    let undo = self.state.change(event).with_context(|| format!("{}: no change", case.name))?;
                    let changes = self.compiler.apply(&self.state, std::slice::from_ref(&undo));
                    times.push(cpu_micros() - start);
                    let differing = changes.addresses.len() + changes.subjects.len() + usize::from(changes.blocks);
                    *most = differing.max(*most);
                }
            }
        }
        for (case, (mut times, differing)) in cases.iter().zip(samples) {
            if !case.differing.contains(&differing) {
                self.wrong.push(format!("{}: {differing} differences, expected {:?}", case.name, case.differing));
            }
            rows.push(Row { name: case.name, us: median(&mut times), differing });
        }
        Ok(rows)
    }

    /// What it costs to make the kernel's tables equal the plan, with one endpoint.
    fn publish(&mut self) -> Result<Vec<Row>> {
        let mut node = RigNode::new(NodeSettings { name: "bench".into(), number: 1, layout: Layout::Routed })?;
        let key = pod(0).key;
        node.add_pod(PodSettings { key: key.clone(), addresses: Vec::new() })?;
        let bpffs = BpfFs::new()?;
        node.namespace().run(|| {
            let links = LinkWatch::start()?.current();
            let link = links.host.values().next().context("no veth")?;
            let mut datapath = Datapath::open(&DatapathConfig::new(bpffs.pin_dir()))?;
            datapath.enroll(link)?;
            let owners = [(link.ifindex, key.clone())];
            let mut rows = Vec::new();
            let mut timed = |name, times: &mut Vec<f64>, differing| {
                rows.push(Row { name, us: median(times), differing });
            };
            let micros = |start: f64| cpu_micros() - start;

            let start = cpu_micros();
            let report = datapath.publish(self.compiler.plan(), &owners)?;
            timed("publish, empty tables", &mut vec![micros(start)], report.addresses_written);
            ensure!(report.is_complete(), "the cluster does not fit the tables");
            datapath.settle()?;

            let (mut settle, mut times, mut written) = (Vec::new(), [const { Vec::new() }; 3], [0; 3]);
            for round in 0..4 * SLOW_ROUNDS as u32 {
                let start = cpu_micros();
                written[0] = datapath.publish(self.compiler.plan(), &owners)?.addresses_written;
                times[0].push(micros(start));

                let new = Pod { key: pod_key(0, PODS + round), ..new_pod(0, PODS + round) };
                let (name, app) = (new.key.clone(), labels(&[("app", &format!("other-{round}"))]));
                let local = pod(0);
                let events = [
                    (Event::Upsert(Object::Pod(new)), 1),
                    (Event::Delete(ObjectKey::Pod(name)), 1),
                    (Event::Upsert(Object::Pod(Pod { labels: app, ..local.clone() })), 2),
                    (Event::Upsert(Object::Pod(local)), 2),
                ];
                for (event, row) in events {
                    let undo = self.state.change(event).context("no change")?;
                    let changes = self.compiler.apply(&self.state, &[undo]);
                    let start = cpu_micros();
                    let report = datapath.publish_changes(self.compiler.plan(), &changes, &owners)?;
                    times[row].push(micros(start));
                    written[row] = report.addresses_written.max(written[row]);
                    let start = cpu_micros();
                    datapath.settle()?;
                    settle.push(micros(start));
                }
            }
            let names = ["publish, whole, nothing differs", "publish, one address", "publish, a local pod's labels"];
            for ((name, times), written) in names.into_iter().zip(&mut times).zip(written) {
                timed(name, times, written);
            }
            timed("settle, without its grace period", &mut settle, 0);
            Ok(rows)
        })?
    }
}

/// Events that each change something and, together, nothing.
struct Case {
    name: &'static str,
    events: fn(u32) -> Vec<Event>,
    /// How many differences the plan may have after one of them.
    differing: std::ops::RangeInclusive<usize>,
}

fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "pod that no rule here means, new and gone",
            events: |round| {
                let labels = labels(&[("app", "nobody")]);
                let pod = Pod { labels, ports: Vec::new(), ..new_pod(round, PODS + round) };
                vec![Event::Upsert(Object::Pod(pod.clone())), Event::Delete(ObjectKey::Pod(pod.key))]
            },
            differing: 0..=0,
        },
        Case {
            name: "pod that rules here mean, new and gone",
            events: |round| {
                let pod = Pod { key: pod_key(0, PODS + round), ..new_pod(0, PODS + round) };
                vec![Event::Upsert(Object::Pod(pod.clone())), Event::Delete(ObjectKey::Pod(pod.key))]
            },
            differing: 1..=1,
        },
        Case {
            name: "label of a backend",
            events: |round| {
                let pod = pod(PODS / 2 + round);
                let other = Pod { labels: pod.labels.with("app", "other"), ..pod.clone() };
                vec![Event::Upsert(Object::Pod(other)), Event::Upsert(Object::Pod(pod))]
            },
            differing: 0..=3,
        },
        Case {
            name: "label of a local pod",
            events: |round| {
                let pod = pod(round);
                let other = Pod { labels: pod.labels.with("app", "other"), ..pod.clone() };
                vec![Event::Upsert(Object::Pod(other)), Event::Upsert(Object::Pod(pod))]
            },
            differing: 1..=NODES as usize + 3,
        },
        Case {
            name: "slice of a Service",
            events: |round| {
                let slice = slice(round + 100);
                let mut fewer = slice.clone();
                fewer.endpoints.pop();
                vec![Event::Upsert(Object::EndpointSlice(fewer)), Event::Upsert(Object::EndpointSlice(slice))]
            },
            differing: 0..=3,
        },
        Case {
            name: "slice of a Service with node ports",
            events: |round| {
                let slice = slice(round % NODE_PORTS);
                let mut fewer = slice.clone();
                fewer.endpoints.pop();
                vec![Event::Upsert(Object::EndpointSlice(fewer)), Event::Upsert(Object::EndpointSlice(slice))]
            },
            differing: 0..=2 * NODES as usize + 3,
        },
        Case {
            name: "policy of 100 local pods, other ports",
            events: |_| {
                let all = |port| Event::Upsert(Object::Policy(all_of_namespace(&[block("172.16.0.0/12")], port)));
                vec![all(1), all(2)]
            },
            differing: 100..=100,
        },
        Case {
            name: "policy of 100 local pods, new pod peers",
            events: |round| {
                let app = format!("app-{}", round + 3);
                let peer = Peer::Pods(PodPeer { namespaces: matching("team", "t7"), pods: wants("app", &app) });
                let policy = all_of_namespace(&[peer], 1);
                vec![Event::Upsert(Object::Policy(policy)), Event::Upsert(Object::Policy(base_policy()))]
            },
            differing: 101..=1_000,
        },
        Case {
            name: "policy of 100 local pods, new block",
            events: |round| {
                let policy = all_of_namespace(&[block(&format!("172.16.{round}.0/24"))], 1);
                vec![Event::Upsert(Object::Policy(policy)), Event::Upsert(Object::Policy(base_policy()))]
            },
            differing: 101..=101,
        },
        Case {
            name: "policy of pods elsewhere",
            events: |round| {
                let policy = policy(NAMESPACES + 1 + round % 100, 9);
                let key = ObjectKey::Policy(policy.key.clone());
                vec![Event::Upsert(Object::Policy(policy)), Event::Delete(key)]
            },
            differing: 0..=0,
        },
        Case {
            name: "ClusterNetworkPolicy of all local pods",
            events: |_| {
                let policy = ClusterPolicy {
                    name: "all".into(),
                    subject: PodSet { namespaces: Selector::everything(), pods: Selector::everything() },
                    ..cluster_policy(0)
                };
                let key = ObjectKey::ClusterPolicy(policy.name.clone());
                vec![Event::Upsert(Object::ClusterPolicy(policy)), Event::Delete(key)]
            },
            differing: 250..=250,
        },
        Case {
            name: "label of a namespace of 500 pods",
            events: |round| {
                let namespace = namespace(round + 20);
                let other = Namespace::new(namespace.name.clone(), &labels(&[("team", "t99")]));
                vec![Event::Upsert(Object::Namespace(other)), Event::Upsert(Object::Namespace(namespace))]
            },
            differing: 0..=600,
        },
    ]
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn cpu_micros() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// The greatest resident size that this process ever had (`VmHWM`, proc(5)).
fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn wants(key: &str, value: &str) -> Selector {
    Selector::all(vec![Requirement { key: key.into(), condition: Condition::In(Values::one(value.into())) }])
}

fn matching(key: &str, value: &str) -> Namespaces {
    Namespaces::Matching(wants(key, value))
}

fn block(text: &str) -> Peer {
    Peer::Block(IpBlock::new(text.parse().expect("a block"), []))
}

/// The local pods first: some in namespace 0, the others one in each; then the rest, namespace by namespace.
fn namespace_of(pod: u32) -> u32 {
    match pod {
        0..LOCAL_TOGETHER => 0,
        _ if pod < LOCAL => pod % NAMESPACES,
        _ => pod / (PODS / NAMESPACES) % NAMESPACES,
    }
}

fn namespace_name(namespace: u32) -> Arc<str> {
    format!("ns-{namespace}").into()
}

fn pod_key(namespace: u32, pod: u32) -> PodKey {
    let name = format!("app-{}-7c9f{:05x}-{pod:06}", pod / REPLICAS % 50, pod / REPLICAS);
    PodKey { namespace: namespace_name(namespace), name: name.into() }
}

fn pod_address(pod: u32) -> IpAddr {
    // A /24 a node.
    let (node, place) = if pod < LOCAL { (0, pod) } else { (1 + pod % (NODES - 1), (pod - LOCAL) / (NODES - 1)) };
    Ipv4Addr::from_bits((10 << 24) + (node << 9) + place + 1).into()
}

fn new_pod(namespace: u32, pod: u32) -> Pod {
    let app = pod / REPLICAS % 50;
    let node = if pod < LOCAL { 0 } else { 1 + pod % (NODES - 1) };
    Pod {
        key: pod_key(namespace % NAMESPACES, pod),
        labels: labels(&[
            ("app", &format!("app-{app}")),
            ("pod-template-hash", &format!("7c9f{:05x}", pod / REPLICAS)),
            ("tier", if app.is_multiple_of(3) { "web" } else { "back" }),
            ("version", &format!("v{}", app % 4)),
        ]),
        node: Some(format!("n{node}").into()),
        network: PodNetwork::Own,
        ports: vec![NamedPort { name: "http".into(), protocol: PortProtocol::Tcp, number: 8080 }],
        addresses: vec![pod_address(pod)],
        phase: Phase::Running,
        age: Age { started: None, created: None, uid: format!("5f0c1d2e-0000-4000-8000-{pod:012}").into() },
        sandbox: None,
    }
}

fn pod(pod: u32) -> Pod {
    new_pod(namespace_of(pod), pod)
}

fn namespace(namespace: u32) -> Namespace {
    Namespace::new(namespace_name(namespace), &labels(&[("team", &format!("t{}", namespace % 20))]))
}

fn node(node: u32) -> Node {
    Node {
        name: format!("n{node}").into(),
        labels: labels(&[("zone", &format!("z{}", node % 3)), ("kubernetes.io/os", "linux")]),
        addresses: vec![Ipv4Addr::from_bits(0xc0a8_0000 + node).into()],
        pod_cidrs: Vec::new(),
    }
}

fn range(port: u16) -> PortEntry {
    PortEntry::Range { protocol: PortProtocol::Tcp, first: port, last: port }
}

/// One of a namespace's policies: who may reach an application, and whom it may reach.
fn policy(namespace: u32, number: u32) -> NetworkPolicy {
    let app = |app: u32| wants("app", &format!("app-{}", app % 50));
    let own = |selector| Peer::Pods(PodPeer { namespaces: Namespaces::Own, pods: selector });
    let team = format!("t{}", (namespace + number) % 20);
    let ingress = vec![
        Rule::Accept {
            peers: Peers::Of(vec![own(app(number + 1)), own(app(number + 2))]),
            ports: Ports::Of(vec![range(8080)]),
        },
        Rule::Accept {
            peers: Peers::Of(vec![Peer::Pods(PodPeer {
                namespaces: matching("team", &team),
                pods: wants("tier", "web"),
            })]),
            ports: Ports::Of(vec![range(9000 + (number % 8) as u16)]),
        },
    ];
    let dns = PodPeer { namespaces: matching("kubernetes.io/metadata.name", "ns-1"), pods: wants("app", "app-1") };
    let egress = vec![
        Rule::Accept { peers: Peers::Of(vec![Peer::Pods(dns)]), ports: Ports::Of(vec![range(53)]) },
        Rule::Accept {
            peers: Peers::Of(vec![own(app(number + 3)), block(&format!("203.0.{}.0/24", number % 100))]),
            ports: Ports::Of(vec![PortEntry::Named { protocol: PortProtocol::Tcp, name: "http".into() }, range(443)]),
        },
    ];
    NetworkPolicy {
        key: PolicyKey { namespace: namespace_name(namespace), name: format!("policy-{number}").into() },
        subject: app(number),
        ingress: Some(ingress),
        egress: Some(egress),
    }
}

/// A policy of every pod in namespace 0.
fn all_of_namespace(peers: &[Peer], port: u16) -> NetworkPolicy {
    let rule = Rule::Accept { peers: Peers::Of(peers.to_vec()), ports: Ports::Of(vec![range(port)]) };
    NetworkPolicy {
        key: PolicyKey { namespace: namespace_name(0), name: "all".into() },
        subject: Selector::everything(),
        ingress: Some(vec![rule]),
        egress: None,
    }
}

fn base_policy() -> NetworkPolicy {
    all_of_namespace(&[block("172.16.0.0/12")], 2)
}

fn cluster_policy(number: u32) -> ClusterPolicy {
    let of_team = |team: u32| wants("team", &format!("t{}", team % 20));
    let rule = |action, peer, ports| ClusterRule {
        name: None,
        action,
        matches: ClusterMatch::Of { peers: vec![peer], ports },
    };
    let network = format!("198.18.{number}.0/24").parse().expect("a block");
    ClusterPolicy {
        name: format!("policy-{number}").into(),
        tier: if number.is_multiple_of(2) { Tier::Admin } else { Tier::Baseline },
        priority: (number % 50) as u16,
        subject: PodSet { namespaces: of_team(number), pods: Selector::everything() },
        ingress: vec![rule(
            Action::Deny,
            ClusterPeer::Pods(PodSet { namespaces: of_team(number + 1), pods: wants("version", "v3") }),
            Ports::Of(vec![range(2379)]),
        )],
        egress: vec![
            rule(Action::Deny, ClusterPeer::Networks(vec![network]), Ports::Any),
            rule(
                Action::Pass,
                ClusterPeer::Nodes(wants("zone", &format!("z{}", number % 3))),
                Ports::Of(vec![range(10_250)]),
            ),
        ],
    }
}

fn service(number: u32) -> Service {
    Service {
        key: ServiceKey { namespace: namespace_name(number % NAMESPACES), name: format!("service-{number}").into() },
        cluster_addresses: vec![Ipv4Addr::from_bits((10 << 24) + (96 << 16) + (1 << 23) + number).into()],
        external_addresses: Vec::new(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: PortProtocol::Tcp,
            port: 80,
            node_port: (number < NODE_PORTS).then_some(30_000 + number as u16),
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
    }
}

fn slice(number: u32) -> EndpointSlice {
    let ServiceKey { namespace, name } = service(number).key;
    let first = number * (PODS / SERVICES);
    let endpoint = |pod: u32| Endpoint { address: pod_address(pod), node: new_pod(0, pod).node };
    EndpointSlice {
        key: SliceKey { namespace, name: format!("{name}-x7k2p").into() },
        service: Some(name),
        ports: vec![SlicePort { name: "http".into(), protocol: PortProtocol::Tcp, number: 8080 }],
        endpoints: (first..first + 10).map(endpoint).collect(),
    }
}

fn cluster() -> ClusterState {
    let mut state = ClusterState::default();
    let mut add = |object| _ = state.apply(Event::Upsert(object));
    (0..NODES).map(node).map(Object::Node).for_each(&mut add);
    (0..NAMESPACES).map(namespace).map(Object::Namespace).for_each(&mut add);
    (0..PODS).map(pod).map(Object::Pod).for_each(&mut add);
    let policies = (0..POLICIES - 1).map(|number| policy(number % NAMESPACES, number / NAMESPACES));
    policies.map(Object::Policy).for_each(&mut add);
    add(Object::Policy(base_policy()));
    (0..CLUSTER_POLICIES).map(cluster_policy).map(Object::ClusterPolicy).for_each(&mut add);
    (0..SERVICES).map(service).map(Object::Service).for_each(&mut add);
    (0..SERVICES).map(slice).map(Object::EndpointSlice).for_each(&mut add);
    state
}
