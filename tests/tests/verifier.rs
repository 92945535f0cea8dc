//! Loads the shipped object into this kernel: the verifier's count of instructions against the budget, and one packet
//! for each of the ways a frame can take through it.

use std::collections::BTreeMap;
use std::fs;
use std::mem::offset_of;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use npolicy_common::{
    Config, CounterKey, CounterRow, Direction, EndpointLine, EndpointWord, FlowEvent, Reason, RulesetId, maps,
};

/// Interface of a test run's packets: the loopback of the namespace.
const LOOPBACK: u32 = 1;
/// `TC_ACT_UNSPEC`: the next program decides.
const NEXT: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;
const SLOT: u16 = 5;

#[test]
fn stays_within_the_instruction_budget() {
    with_object(|object| {
        let budget = budget()?;
        for (name, program) in object.programs() {
            let count = program.info()?.verified_instruction_count().context("the kernel counts from 5.16")?;
            let limit = *budget.get(name).with_context(|| format!("no budget for `{name}`"))?;
            println!("{name}: {count} instructions of {limit}");
            ensure!(count <= limit, "`{name}` takes {count} instructions, its budget is {limit}");
        }
        Ok(())
    });
}

fn budget() -> Result<BTreeMap<String, u32>> {
    let path = repository().join("tests/verifier-budget.txt");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (name, limit) = line.split_once(' ').with_context(|| format!("`{line}`: want `PROGRAM COUNT`"))?;
            Ok((name.to_owned(), limit.trim().parse()?))
        })
        .collect()
}

#[test]
fn drops_everything_on_an_interface_without_a_line() {
    with_object(|object| {
        for name in ["from_endpoint", "to_endpoint"] {
            ensure!(run(object, name, &syn())? == SHOT);
        }
        ensure!(counts(object, 0, Direction::Egress)? == [(Reason::NoEndpoint, 1)]);
        ensure!(counts(object, 0, Direction::Ingress)? == [(Reason::NoEndpoint, 1)]);
        Ok(())
    });
}

#[test]
fn accepts_and_remembers_a_flow_that_is_not_governed() {
    with_object(|object| {
        put_line(object, RulesetId::ACCEPT_ALL)?;
        ensure!(run(object, "from_endpoint", &syn())? == NEXT);
        ensure!(run(object, "from_endpoint", &segment())? == NEXT);
        ensure!(counts(object, SLOT, Direction::Egress)? == [(Reason::NewFlow, 1), (Reason::Flow, 1)]);
        ensure!(flows(object)? == 1);
        Ok(())
    });
}

#[test]
fn denies_and_reports_what_no_rule_accepts() {
    with_object(|object| {
        put_line(object, RulesetId::DENY_ALL)?;
        ensure!(run(object, "from_endpoint", &syn())? == SHOT);
        ensure!(counts(object, SLOT, Direction::Egress)? == [(Reason::Policy, 1)]);
        ensure!(flows(object)? == 0);
        let event = event(object)?.context("no event")?;
        ensure!(event[offset_of!(FlowEvent, reason)] == Reason::Policy as u8);
        ensure!(event[offset_of!(FlowEvent, direction)] == Direction::Egress.index() as u8);
        ensure!(event[offset_of!(FlowEvent, protocol)] == 6);
        ensure!(u16_at(&event, offset_of!(FlowEvent, remote_port)) == 8080);
        ensure!(u16_at(&event, offset_of!(FlowEvent, local_port)) == 40000);
        ensure!(event[offset_of!(FlowEvent, remote)..][..4] == REMOTE);
        ensure!(event[offset_of!(FlowEvent, local)..][..4] == POD);
        Ok(())
    });
}

const POD: [u8; 4] = [10, 0, 0, 5];
const REMOTE: [u8; 4] = [10, 0, 1, 7];

fn syn() -> Vec<u8> {
    tcp(0x02)
}

fn segment() -> Vec<u8> {
    tcp(0x10)
}

/// A TCP segment from the pod's port 40000 to the remote port 8080.
fn tcp(flags: u8) -> Vec<u8> {
    let mut frame = vec![0; 54];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&40u16.to_be_bytes());
    frame[22] = 64;
    frame[23] = 6;
    frame[26..30].copy_from_slice(&POD);
    frame[30..34].copy_from_slice(&REMOTE);
    frame[34..36].copy_from_slice(&40000u16.to_be_bytes());
    frame[36..38].copy_from_slice(&8080u16.to_be_bytes());
    frame[46] = 0x50;
    frame[47] = flags;
    frame
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs `test` on a freshly loaded object. Without the privileges to load one, says so and does nothing, unless
/// `NPOLICY_REQUIRE` is set.
#[track_caller]
fn with_object(test: impl FnOnce(&mut Ebpf) -> Result<()>) {
    let is_root = rustix::process::geteuid().is_root();
    if !npolicy_tests::require((!is_root).then_some("loading the object takes root")) {
        return;
    }
    let result = load().and_then(|mut object| test(&mut object));
    if let Err(error) = result {
        panic!("{error:#}");
    }
}

/// Loads both programs of the object over maps of their own.
fn load() -> Result<Ebpf> {
    let path = match std::env::var_os("NPOLICY_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => repository().join("npolicy-agent/bpf/npolicy.o"),
    };
    let mut object = EbpfLoader::new().load_file(&path).with_context(|| format!("load `{}`", path.display()))?;
    for name in ["from_endpoint", "to_endpoint"] {
        let program: &mut SchedClassifier = object.program_mut(name).context("no such program")?.try_into()?;
        program.load().with_context(|| format!("load `{name}`"))?;
    }
    let mut config: Array<_, Config> = Array::try_from(object.map_mut(maps::CONFIG).context("no CONFIG")?)?;
    let secrets = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0xff51_afd7_ed55_8ccd];
    let value = Config {
        layout_version: npolicy_common::LAYOUT_VERSION,
        flags: 0,
        jiffies_shift: 8,
        flow4_mask: maps::FLOWS_BUCKETS - 1,
        flow6_mask: maps::FLOWS_BUCKETS - 1,
        default_class6: 0,
        event_burst: 10,
        event_interval: 1,
        secrets,
    };
    config.set(0, value, 0)?;
    Ok(object)
}

fn put_line(object: &mut Ebpf, ruleset: RulesetId) -> Result<()> {
    let mut lines: Array<_, EndpointLine> = Array::try_from(object.map_mut(maps::ENDPOINTS).context("no ENDPOINTS")?)?;
    let line = EndpointLine {
        word: EndpointWord::new(ruleset, ruleset, 1),
        ifindex: LOOPBACK,
        endpoint: 9,
        slot: SLOT,
        ipv4: POD,
        ..EndpointLine::EMPTY
    };
    Ok(lines.set(LOOPBACK, line, 0)?)
}

fn run(object: &Ebpf, name: &str, frame: &[u8]) -> Result<u32> {
    let program: &SchedClassifier = object.program(name).context("no such program")?.try_into()?;
    let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
    Ok(program.test_run(options)?.return_value)
}

/// What has been counted in a row, all processors together; columns that did not move are left out.
fn counts(object: &Ebpf, slot: u16, direction: Direction) -> Result<Vec<(Reason, u64)>> {
    let map = object.map(maps::COUNTERS).context("no COUNTERS")?;
    let map: PerCpuArray<_, CounterRow> = PerCpuArray::try_from(map)?;
    let rows = map.get(&CounterKey::new(slot, direction).0, 0)?;
    let total = |reason: &Reason| rows.iter().map(|row| row[*reason as usize]).sum::<u64>();
    Ok(Reason::ALL.iter().map(|reason| (*reason, total(reason))).filter(|(_, count)| *count != 0).collect())
}

/// Entries of FLOWS4 in use.
fn flows(object: &Ebpf) -> Result<usize> {
    let map: Array<_, [u64; 8]> = Array::try_from(object.map(maps::FLOWS4).context("no FLOWS4")?)?;
    let mut used = 0;
    for bucket in map.iter() {
        used += bucket?.iter().step_by(2).filter(|key| **key != 0).count();
    }
    Ok(used)
}

/// Where the reason, the direction and the rest of an event stand, as [`FlowEvent`] lays them out.
fn event(object: &mut Ebpf) -> Result<Option<Vec<u8>>> {
    let mut ring = RingBuf::try_from(object.map_mut(maps::EVENTS).context("no EVENTS")?)?;
    let Some(record) = ring.next() else { return Ok(None) };
    ensure!(record.len() == size_of::<FlowEvent>(), "an event has {} bytes", record.len());
    Ok(Some(record.to_vec()))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}
