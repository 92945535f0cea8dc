//! Samples, and what is said of them: a table and JSON.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::figures::{Percentiles, from_to_us, milliseconds};
use super::labels::Changed;
use super::rounds::{Effect, Load, Write, case};
use super::settings::Settings;
use super::stage::Stage;
use super::traffic::Flow;

/// What is asked of the time after the watch, in microseconds: at p50 and at p99.
const GOALS_US: (i64, i64) = (2_000, 10_000);

/// One write and what followed. Times are on CLOCK_MONOTONIC, in nanoseconds.
pub(super) struct Sample {
    pub(super) write: Write,
    pub(super) effect: Effect,
    pub(super) load: Load,
    /// The API server's answer was read.
    pub(super) answered_ns: u64,
    /// From the request to the answer.
    pub(super) took_ns: u64,
    /// The plain watch read the event; none if it did not by the end of the round.
    pub(super) watched_ns: Option<u64>,
    /// By flow, when the packets changed; none if they never did.
    pub(super) wires: Vec<(Flow, Option<Wire>)>,
}

/// The last datagram before silence, or the first after it.
#[derive(Clone, Copy)]
pub(super) struct Wire {
    /// The receiver read it.
    pub(super) arrived_ns: u64,
    /// It was sent.
    pub(super) sent_ns: u64,
    /// Between it and its neighbour on the other side of the change: how exactly that is known.
    pub(super) gap_ns: u64,
}

/// All samples of a run.
pub(super) struct Report {
    samples: Vec<Sample>,
    rounds: usize,
    nodes: [String; 2],
    clocks_within: Duration,
    /// How the load went, once it is over.
    pub(super) changes: Option<Changed>,
    /// By load, how much of the machine's processor time was nobody's, in percent.
    pub(super) idle_percent: Vec<(Load, f64)>,
}

/// A line of the table; times in microseconds.
struct Row {
    case: &'static str,
    load: Load,
    flow: Flow,
    rounds: usize,
    never: usize,
    /// From the answer to the plain watch.
    watch: Option<Percentiles>,
    /// From the answer to the datagram's arrival.
    wire: Option<Percentiles>,
    /// From the plain watch to the datagram's arrival.
    over_watch: Option<Percentiles>,
    /// From the datagram's sending to its arrival.
    path: Option<Percentiles>,
    /// Between the two datagrams around the change.
    gap: Option<Percentiles>,
}

impl Report {
    pub(super) fn new(settings: &Settings, stage: &Stage, clocks_within: Duration) -> Self {
        let nodes = stage.nodes.clone();
        Self {
            samples: Vec::new(),
            rounds: settings.rounds.get(),
            nodes,
            clocks_within,
            changes: None,
            idle_percent: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Writes `latency.txt` and `latency.json`.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        for (name, text) in [("latency.txt", self.to_string()), ("latency.json", format!("{:#}\n", self.to_json()))] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
            eprintln!("wrote {}", path.display());
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for load in [Load::Idle, Load::Changes] {
            for write in [Write::Policy, Write::Label] {
                for effect in [Effect::Deny, Effect::Allow] {
                    for flow in [Flow::Running, Flow::Fresh, Flow::Tcp] {
                        rows.extend(self.row(write, effect, load, flow));
                    }
                }
            }
        }
        rows
    }

    /// None where the flow was never looked at: TCP when it is allowed again, what was never cut.
    fn row(&self, write: Write, effect: Effect, load: Load, flow: Flow) -> Option<Row> {
        let of_row = |sample: &&Sample| sample.write == write && sample.effect == effect && sample.load == load;
        let of_flow = |sample: &'_ Sample| {
            let wire = sample.wires.iter().find(|(wired, _)| *wired == flow)?.1;
            Some((sample.answered_ns, sample.watched_ns, wire))
        };
        let all: Vec<_> = self.samples.iter().filter(of_row).filter_map(of_flow).collect();
        let wires = || all.iter().filter_map(|&(answered, watched, wire)| Some((answered, watched, wire?)));
        let row = Row {
            case: case(write, effect),
            load,
            flow,
            rounds: all.len(),
            never: all.iter().filter(|(_, _, wire)| wire.is_none()).count(),
            watch: Percentiles::of(
                all.iter().filter_map(|&(answered, watched, _)| Some(from_to_us(answered, watched?))),
            ),
            wire: Percentiles::of(wires().map(|(answered, _, wire)| from_to_us(answered, wire.arrived_ns))),
            over_watch: Percentiles::of(
                wires().filter_map(|(_, watched, wire)| Some(from_to_us(watched?, wire.arrived_ns))),
            ),
            path: Percentiles::of(wires().map(|(_, _, wire)| from_to_us(wire.sent_ns, wire.arrived_ns))),
            gap: Percentiles::of(wires().map(|(_, _, wire)| from_to_us(0, wire.gap_ns))),
        };
        (row.rounds > 0).then_some(row)
    }

    fn to_json(&self) -> Value {
        let Self { samples, rounds, nodes, clocks_within, changes, idle_percent } = self;
        let idle: serde_json::Map<_, _> =
            idle_percent.iter().map(|(load, percent)| (load.to_string(), json!(percent))).collect();
        json!({
            "rounds": rounds,
            "nodes": nodes,
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "clocks_within_us": clocks_within.as_micros(),
            "processors_idle_percent": idle,
            "label_changes_a_second": changes.as_ref().map(|changes| changes.rate),
            "label_changes_refused": changes.as_ref().map(|changes| changes.refused),
            "goal_over_watch_us": {"p50": GOALS_US.0, "p99": GOALS_US.1},
            "rows": self.rows().iter().map(Row::to_json).collect::<Vec<_>>(),
            "samples": samples.iter().map(Sample::to_json).collect::<Vec<_>>(),
        })
    }
}

impl Sample {
    fn to_json(&self) -> Value {
        let Self { write, effect, load, answered_ns, took_ns, watched_ns, wires } = self;
        let wires = wires.iter().map(|(flow, wire)| {
            let wire = wire.map(|Wire { arrived_ns, sent_ns, gap_ns }| {
                json!({
                    "arrived_us": from_to_us(*answered_ns, arrived_ns),
                    "sent_us": from_to_us(*answered_ns, sent_ns),
                    "gap_us": gap_ns / 1000,
                })
            });
            (flow.to_string(), wire.unwrap_or_default())
        });
        json!({
            "case": case(*write, *effect),
            "load": load.to_string(),
            "answered_ns": answered_ns,
            "api_us": took_ns / 1000,
            "watch_us": watched_ns.map(|watched_ns| from_to_us(*answered_ns, watched_ns)),
            "wire": wires.collect::<serde_json::Map<_, _>>(),
        })
    }
}

impl Row {
    /// Whether the goals are met; not without figures.
    fn is_met(&self) -> bool {
        self.never == 0 && self.over_watch.is_some_and(|over| over.p50 <= GOALS_US.0 && over.p99 <= GOALS_US.1)
    }

    fn to_json(&self) -> Value {
        let Self { case, load, flow, rounds, never, watch, wire, over_watch, path, gap } = self;
        json!({
            "case": case, "load": load.to_string(), "flow": flow.to_string(), "rounds": rounds, "never": never,
            "watch_us": watch, "wire_us": wire, "over_watch_us": over_watch, "path_us": path, "gap_us": gap,
            "is_met": self.is_met(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, load, flow, rounds, never, watch, wire, over_watch, path: _, gap: _ } = self;
        write!(f, "{case:<13}  {load:<6}  {flow:<7} {rounds:>6} {never:>5}")?;
        for percentiles in [watch, wire, over_watch] {
            match percentiles {
                Some(percentiles) => write!(f, "  {percentiles}")?,
                None => write!(f, "  {:>8} {:>8} {:>8}", "-", "-", "-")?,
            }
        }
        write!(f, "  {}", if self.is_met() { "met" } else { "missed" })
    }
}

/// The table, and below it how exact it is.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, rounds: _, nodes: [from, to], clocks_within, changes, idle_percent } = self;
        writeln!(f, "from the API server's answer, in ms; sender on {from}, receiver on {to}\n")?;
        writeln!(
            f,
            "{:<13}  {:<6}  {:<7} {:>6} {:>5}  {:^26}  {:^26}  {:^26}",
            "", "", "", "", "", "to the plain watch", "to the wire", "wire after the watch"
        )?;
        write!(f, "{:<13}  {:<6}  {:<7} {:>6} {:>5}", "case", "load", "flow", "rounds", "never")?;
        for _ in 0..3 {
            write!(f, "  {:>8} {:>8} {:>8}", "p50", "p90", "p99")?;
        }
        let (p50, p99) = GOALS_US;
        writeln!(f, "  goal: {} and {}", milliseconds(p50), milliseconds(p99))?;
        let rows = self.rows();
        for row in &rows {
            writeln!(f, "{row}")?;
        }
        writeln!(f)?;
        let loads = [Load::Idle, Load::Changes];
        for load in loads {
            let of_load = || samples.iter().filter(move |sample| sample.load == load);
            let wires = || of_load().flat_map(|sample| &sample.wires).filter_map(|(_, wire)| *wire);
            let figures = [
                ("API server's answer to a write", Percentiles::of(of_load().map(|one| from_to_us(0, one.took_ns)))),
                (
                    "datagram, sent to read",
                    Percentiles::of(wires().map(|wire| from_to_us(wire.sent_ns, wire.arrived_ns))),
                ),
                (
                    "between the datagrams around a change",
                    Percentiles::of(wires().map(|one| from_to_us(0, one.gap_ns))),
                ),
                (
                    "running flow cut after fresh ones",
                    Percentiles::of(of_load().filter_map(|sample| sample.between(Flow::Fresh, Flow::Running))),
                ),
                (
                    "TCP flow cut after fresh ones",
                    Percentiles::of(of_load().filter_map(|sample| sample.between(Flow::Fresh, Flow::Tcp))),
                ),
            ];
            for (name, percentiles) in figures {
                if let Some(percentiles) = percentiles {
                    writeln!(f, "{load:<6}  {name:<40}  {percentiles}")?;
                }
            }
        }
        for (load, percent) in idle_percent {
            writeln!(f, "{load:<6}  processors were idle {percent:.0} % of the time, of all that this machine does")?;
        }
        if let Some(Changed { rate, refused }) = changes {
            writeln!(f, "load: {rate:.1} label changes a second, {refused} refused")?;
        }
        let unwatched = samples.iter().filter(|sample| sample.watched_ns.is_none()).count();
        writeln!(
            f,
            "the plain watch missed {unwatched} of {} events; clocks agree within {clocks_within:.1?}",
            samples.len()
        )
    }
}

impl Sample {
    /// From the last datagram of one flow to that of another; none of what was allowed, or never cut.
    fn between(&self, from: Flow, to: Flow) -> Option<i64> {
        let arrived = |flow| self.wires.iter().find(|(wired, _)| *wired == flow)?.1.map(|wire| wire.arrived_ns);
        (self.effect == Effect::Deny).then_some(())?;
        Some(from_to_us(arrived(from)?, arrived(to)?))
    }
}
