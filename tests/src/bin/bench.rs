//! What a packet costs: the shipped program under `BPF_PROG_TEST_RUN`, its tables filled by the real publisher, beside the
//! kernel's own units, in one interleaved run.
//!
//! Every packet is another flow (see `npolicy-ebpf/src/bench.rs`). A figure is the thread's CPU time a packet, the median
//! of the rounds, less the median of the parse-only program in the same run. Run it by `cargo xtask bench`.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, ProgramArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use npolicy_agent::compile::{Compiler, Scope};
use npolicy_agent::datapath::{Datapath, DatapathConfig};
use npolicy_agent::model::PodKey;
use npolicy_agent::rig::{BpfFs, Layout, Node, NodeSettings, PodSettings};
use npolicy_agent::watch::links::LinkWatch;
use npolicy_agent::watch::manifests::Manifests;
use npolicy_common::{Config, maps};
use rustix::time::{ClockId, clock_gettime};

/// Numbers of peers, each with a class of its own.
const IDENTITIES: [u32; 3] = [1, 1_000, 10_000];
/// Rounds; each runs every row once, so that a slow moment of the machine hits them alike.
const ROUNDS: usize = 15;
/// Packets a row and round.
const PACKETS: u32 = 20_000;
/// Packets of rows that fill the ring buffer, which is emptied after each.
const EVENT_PACKETS: u32 = 8_000;
/// A program that lets the packet pass on.
const NEXT: u32 = u32::MAX;
/// A program that drops it.
const SHOT: u32 = 2;
const POD4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
const PEER4: u32 = 0x0a00_0000;

fn main() -> Result<()> {
    let as_json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        Some(other) => anyhow::bail!("unknown flag {other}, expected --json or nothing"),
    };
    ensure!(rustix::process::geteuid().is_root(), "loading BPF programs takes root");
    let object = PathBuf::from(std::env::var_os("NPOLICY_BENCH_OBJECT").context("run it by `cargo xtask bench`")?);
    if !as_json {
        println!("{:<24} {:>10} {:>9} {:>14}", "", "identities", "ns", "ns over parse");
    }
    for identities in IDENTITIES {
        for row in Bench::run(&object, identities)? {
            if as_json {
                let Row { name, ns, over } = row;
                println!(
                    "{}",
                    serde_json::json!({"name": name, "identities": identities, "ns": ns, "ns_over_parse": over})
                );
            } else {
                println!("{:<24} {identities:>10} {:>9.1} {:>14.1}", row.name, row.ns, row.over);
            }
        }
    }
    Ok(())
}

struct Row {
    name: &'static str,
    ns: f64,
    over: f64,
}

/// What a row runs.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    program: &'static str,
    frame: Frame,
    /// Random bits of the source port, beside those the flow's number chooses.
    port_bits: u32,
    packets: u32,
    /// What the program has to answer; none where it may differ from packet to packet.
    answer: Option<u32>,
    /// Events a slot may make in a burst.
    event_burst: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    Segment4,
    Syn4,
    Denied4,
    Segment6,
    Syn6,
    Denied6,
}

const CASES: [Case; 16] = {
    const fn case(name: &'static str, program: &'static str, frame: Frame) -> Case {
        Case { name, program, frame, port_bits: 0, packets: PACKETS, answer: Some(NEXT), event_burst: 0 }
    }
    const fn deny(name: &'static str, frame: Frame) -> Case {
        Case { answer: Some(SHOT), ..case(name, "to_endpoint", frame) }
    }
    const fn event(case: Case) -> Case {
        Case { packets: EVENT_PACKETS, event_burst: 1 << 20, ..case }
    }
    const fn new(case: Case) -> Case {
        Case { port_bits: 0x7fff, ..case }
    }
    [
        case("empty", "empty", Frame::Segment4),
        case("parse-only", "parse_only", Frame::Segment4),
        case("parse-only-v6", "parse_only", Frame::Segment6),
        case("unit-lru-lookup", "unit_lru_lookup", Frame::Segment4),
        case("unit-lru-lookup-v6", "unit_lru_lookup_v6", Frame::Segment6),
        new(case("unit-lru-insert", "unit_lru_insert", Frame::Syn4)),
        Case { packets: EVENT_PACKETS, ..case("unit-event", "unit_event", Frame::Segment4) },
        case("established", "to_endpoint", Frame::Segment4),
        new(case("new", "to_endpoint", Frame::Syn4)),
        deny("deny", Frame::Denied4),
        event(deny("deny-event", Frame::Denied4)),
        case("established-v6", "to_endpoint", Frame::Segment6),
        new(case("new-v6", "to_endpoint", Frame::Syn6)),
        deny("deny-v6", Frame::Denied6),
        event(deny("deny-event-v6", Frame::Denied6)),
        // Last, for what the rounds before have made of the tables.
        case("established-again", "to_endpoint", Frame::Segment4),
    ]
};

struct Bench {
    bench: Ebpf,
    shipped: Ebpf,
    ifindex: u32,
}

impl Bench {
    fn run(object: &Path, identities: u32) -> Result<Vec<Row>> {
        let mut node = Node::new(NodeSettings { name: "bench".into(), number: 1, layout: Layout::Routed })?;
        let key = PodKey { namespace: "bench".into(), name: "subject".into() };
        let pod = node.add_pod(PodSettings { key, addresses: Vec::new() })?;
        let ipv6 = pod.ipv6.context("the pod has no IPv6 address")?;
        ensure!(pod.ipv4 == Some(POD4), "the pod's address is {:?}, expected {POD4}", pod.ipv4);
        let bpffs = BpfFs::new()?;
        node.namespace().run(|| {
            let links = LinkWatch::start()?.current();
            let link = links.host.values().next().context("no veth")?;
            let mut datapath = Datapath::open(&DatapathConfig::new(bpffs.pin_dir()))?;
            datapath.enroll(link)?;
            let state = Manifests::from_text("bench.yaml", &manifests(identities, ipv6)).state();
            let (plan, _) = Compiler::new(Scope::Everything).compile(&state);
            let owner = PodKey { namespace: "bench".into(), name: "subject".into() };
            datapath.publish(&plan, &[(link.ifindex, owner)])?;
            datapath.settle()?;
            let pins = bpffs.pin_dir().join(format!("v{}", npolicy_common::LAYOUT_VERSION));
            let mut bench = Self { bench: load_bench(object)?, shipped: load_shipped(&pins)?, ifindex: link.ifindex };
            bench.fill_units(identities, ipv6)?;
            bench.measure(identities, ipv6)
        })?
    }

    /// Puts the keys of every flow into the units' maps.
    fn fill_units(&mut self, identities: u32, pod6: std::net::Ipv6Addr) -> Result<()> {
        let mut unit4: HashMap<_, [u32; 4], u64> = HashMap::try_from(self.bench.map_mut("UNIT4").context("no UNIT4")?)?;
        for flow in 0..identities {
            let ports = (source_port(flow) << 16) | 8080;
            unit4.insert([PEER4 + flow, POD4.to_bits(), ports, 6], 1, 0)?;
        }
        let mut unit6: HashMap<_, [u32; 10], u64> =
            HashMap::try_from(self.bench.map_mut("UNIT6").context("no UNIT6")?)?;
        let words = |address: std::net::Ipv6Addr| {
            let bits = address.to_bits();
            [(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32]
        };
        for flow in 0..identities {
            let ([a, b, c, d], [e, f, g, h]) = (words(peer6(flow)), words(pod6));
            unit6.insert([a, b, c, d, e, f, g, h, (source_port(flow) << 16) | 8080, 6], 1, 0)?;
        }
        Ok(())
    }

    fn measure(&mut self, identities: u32, pod6: std::net::Ipv6Addr) -> Result<Vec<Row>> {
        // Every flow is opened once, so that its later segments are an accepted flow's.
        for flow in 0..identities {
            for frame in [Frame::Syn4, Frame::Syn6] {
                let mut bytes = build(frame, pod6);
                set_flow(&mut bytes, flow);
                let answer = self.run_once("to_endpoint", &bytes, 1)?;
                ensure!(answer == NEXT, "flow {flow} is not accepted");
            }
        }
        let mut samples: Vec<Vec<f64>> = CASES.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for (case, samples) in CASES.iter().zip(&mut samples) {
                samples.push(self.sample(case, identities, pod6).with_context(|| case.name)?);
            }
        }
        let ns: Vec<f64> = samples.iter_mut().map(|samples| median(samples)).collect();
        let floor = |frame: Frame| match frame {
            Frame::Segment4 | Frame::Syn4 | Frame::Denied4 => ns[1],
            Frame::Segment6 | Frame::Syn6 | Frame::Denied6 => ns[2],
        };
        let row = |(case, &ns): (&Case, &f64)| Row { name: case.name, ns, over: ns - floor(case.frame) };
        Ok(CASES.iter().zip(&ns).map(row).collect())
    }

    /// One row of one round: nanoseconds of this thread's CPU time a packet.
    fn sample(&mut self, case: &Case, identities: u32, pod6: std::net::Ipv6Addr) -> Result<f64> {
        let flows = self.bench.map_mut("FLOWS").context("no FLOWS")?;
        let mut flows: Array<_, u32> = Array::try_from(flows)?;
        flows.set(0, identities, 0)?;
        flows.set(1, case.port_bits, 0)?;
        let config = self.shipped.map_mut(maps::CONFIG).context("no CONFIG")?;
        let mut config: Array<_, Config> = Array::try_from(config)?;
        let value = Config { event_burst: case.event_burst, event_interval: 1, ..config.get(&0, 0)? };
        config.set(0, value, 0)?;
        // Every slot starts the row with a full bucket of tokens.
        let buckets = self.shipped.map_mut(maps::BUCKETS).context("no BUCKETS")?;
        let mut buckets: Array<_, [u64; 2]> = Array::try_from(buckets)?;
        for slot in 0..maps::COUNTER_SLOTS {
            buckets.set(slot, [u64::MAX, u64::from(case.event_burst)], 0)?;
        }
        let of_shipped = case.program == "to_endpoint";
        let program = if of_shipped { &self.shipped } else { &self.bench };
        let program: &SchedClassifier = program.program(case.program).context("no such program")?.try_into()?;
        let fd = program.fd()?.try_clone()?;
        let mut jump = ProgramArray::try_from(self.bench.map_mut("JUMP").context("no JUMP")?)?;
        jump.set(0, &fd, 0)?;
        let frame = build(case.frame, pod6);
        // Warms caches and, for events, shows that the row does what it says.
        self.run_once("vary", &frame, 64)?;
        self.drain()?;
        let start = cpu_time();
        let answer = self.run_once("vary", &frame, case.packets)?;
        let ns = (cpu_time() - start) / f64::from(case.packets);
        ensure!(case.answer.is_none_or(|expected| answer == expected), "the program answers {answer:#x}");
        let events = self.drain()?;
        ensure!(case.event_burst == 0 || events > case.packets / 2, "{events} events of {} packets", case.packets);
        Ok(ns)
    }

    /// Empties both rings; returns how many of the shipped program's events there were.
    fn drain(&mut self) -> Result<u32> {
        let mut own = RingBuf::try_from(self.bench.map_mut("UNIT_EVENTS").context("no UNIT_EVENTS")?)?;
        while own.next().is_some() {}
        let mut shipped = RingBuf::try_from(self.shipped.map_mut(maps::EVENTS).context("no EVENTS")?)?;
        let mut events = 0;
        while shipped.next().is_some() {
            events += 1;
        }
        Ok(events)
    }

    fn run_once(&self, name: &str, frame: &[u8], repeat: u32) -> Result<u32> {
        let object = if name == "to_endpoint" { &self.shipped } else { &self.bench };
        let program: &SchedClassifier = object.program(name).context("no such program")?.try_into()?;
        // `struct __sk_buff`: ifindex stands at byte 40, ingress_ifindex at 36 (include/uapi/linux/bpf.h).
        let mut context = [0; 192];
        context[36..40].copy_from_slice(&1u32.to_ne_bytes());
        context[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat, ..TestRunOptions::default() };
        Ok(program.test_run(options)?.return_value)
    }
}

fn load_bench(object: &Path) -> Result<Ebpf> {
    let mut bench = EbpfLoader::new().load(&fs::read(object).with_context(|| object.display().to_string())?)?;
    load_programs(&mut bench)?;
    Ok(bench)
}

/// Loads the shipped programs a second time, over the maps that the datapath has pinned.
fn load_shipped(pins: &Path) -> Result<Ebpf> {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../npolicy-agent/bpf/npolicy.o");
    let mut loader = EbpfLoader::new();
    for pin in fs::read_dir(pins)? {
        let pin = pin?;
        if !pin.file_type()?.is_dir() {
            let name = pin.file_name().into_string().ok().context("a map's name is text")?;
            loader.map_pin_path(Box::leak(name.into_boxed_str()), pin.path());
        }
    }
    let mut shipped = loader.load(&fs::read(object)?)?;
    load_programs(&mut shipped)?;
    Ok(shipped)
}

fn load_programs(object: &mut Ebpf) -> Result<()> {
    for (name, program) in object.programs_mut() {
        let program: &mut SchedClassifier = program.try_into()?;
        program.load().with_context(|| format!("load `{name}`"))?;
    }
    Ok(())
}

fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn peer6(flow: u32) -> std::net::Ipv6Addr {
    (0xfd00_0064_0000_0000_0000_0000_0a00_0000_u128 | u128::from(flow)).into()
}

/// The port that `vary` gives a flow where no bits are random.
fn source_port(flow: u32) -> u32 {
    20_000 + (flow & 0x3fff)
}

/// One subject, and for every identity a pod and a rule of its own; 4,000 different ports.
fn manifests(identities: u32, pod6: std::net::Ipv6Addr) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: bench, name: subject, labels: {{app: subject}}}}\n\
         status: {{phase: Running, podIPs: [{{ip: {POD4}}}, {{ip: '{pod6}'}}]}}\n"
    );
    for flow in 0..identities {
        let (ip4, ip6) = (Ipv4Addr::from_bits(PEER4 + flow), peer6(flow));
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: bench, name: p{flow}, labels: {{id: i{flow}}}}}\n\
             status: {{phase: Running, podIPs: [{{ip: {ip4}}}, {{ip: '{ip6}'}}]}}\n"
        );
    }
    text.push_str(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: bench, name: subject}\n\
         spec:\n  podSelector: {matchLabels: {app: subject}}\n  policyTypes: [Ingress]\n  ingress:\n",
    );
    for flow in 0..identities {
        let port = 10_000 + flow % 4_000;
        let _ = writeln!(
            text,
            "  - {{from: [{{podSelector: {{matchLabels: {{id: i{flow}}}}}}}], ports: [{{port: 8080}}, {{port: {port}}}]}}"
        );
    }
    text
}

/// A TCP segment of flow 0 to the subject.
fn build(frame: Frame, pod6: std::net::Ipv6Addr) -> Vec<u8> {
    let (is_v6, flags, port): (bool, u8, u16) = match frame {
        Frame::Segment4 => (false, 0x10, 8080),
        Frame::Syn4 => (false, 0x02, 8080),
        Frame::Denied4 => (false, 0x02, 9),
        Frame::Segment6 => (true, 0x10, 8080),
        Frame::Syn6 => (true, 0x02, 8080),
        Frame::Denied6 => (true, 0x02, 9),
    };
    let mut bytes = vec![0; 12];
    if is_v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        bytes.extend(peer6(0).octets());
        bytes.extend(pod6.octets());
    } else {
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        bytes.extend(PEER4.to_be_bytes());
        bytes.extend(POD4.octets());
    }
    bytes.extend(20_000u16.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    // `vary` looks at 64 bytes; what follows the packet is padding.
    bytes.resize(bytes.len().max(74), 0);
    bytes
}

/// Makes a frame another flow's, as `vary` does.
fn set_flow(bytes: &mut [u8], flow: u32) {
    let (address, port) = if bytes[14] >> 4 == 4 { (27, 34) } else { (35, 54) };
    bytes[address..address + 3].copy_from_slice(&flow.to_be_bytes()[1..]);
    bytes[port..port + 2].copy_from_slice(&(source_port(flow) as u16).to_be_bytes());
}
