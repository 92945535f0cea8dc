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

/// The last datagram before silence or the first after it, and its neighbour on the other side of the change.
#[derive(Clone, Copy)]
pub(super) struct Wire {
    /// The receiver read it.
    pub(super) arrived_ns: u64,
    /// It was sent.
    pub(super) sent_ns: u64,
    /// Its neighbour was sent, which did not arrive: the next one before silence, the one before after it.
    pub(super) lost_ns: u64,
}

impl Wire {
    /// Between which two times of sending the verdict changed.
    fn bounds_ns(self) -> (u64, u64) {
        (self.sent_ns.min(self.lost_ns), self.sent_ns.max(self.lost_ns))
    }

    /// When the datagram was sent that shows the new verdict: the first that did not arrive, or the first that did. Then
    /// the verdict has changed, whoever has read what when.
    fn shown_ns(self) -> u64 {
        self.bounds_ns().1
    }

    fn gap_us(self) -> i64 {
        let (from_ns, to_ns) = self.bounds_ns();
        from_to_us(from_ns, to_ns)
    }
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
    /// From the answer to the first datagram that shows the new verdict.
    wire: Option<Percentiles>,
    /// From the plain watch to that datagram.
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
            wire: Percentiles::of(wires().map(|(answered, _, wire)| from_to_us(answered, wire.shown_ns()))),
            over_watch: Percentiles::of(
                wires().filter_map(|(_, watched, wire)| Some(from_to_us(watched?, wire.shown_ns()))),
            ),
            path: Percentiles::of(wires().map(|(_, _, wire)| from_to_us(wire.sent_ns, wire.arrived_ns))),
            gap: Percentiles::of(wires().map(|(_, _, wire)| wire.gap_us())),
        };
        (row.rounds > 0).then_some(row)
    }

    /// How many rounds cut flows at different moments, and of how many this can be said.
    fn cut_apart(&self) -> (usize, usize) {
        let at_once: Vec<bool> = self.samples.iter().filter_map(Sample::is_cut_at_once).collect();
        (at_once.iter().filter(|is_at_once| !**is_at_once).count(), at_once.len())
    }

    fn to_json(&self) -> Value {
        let (apart, cut) = self.cut_apart();
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
            "rounds_cut_apart": apart,
            "rounds_cut": cut,
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
            let wire = wire.map(|Wire { arrived_ns, sent_ns, lost_ns }| {
                json!({
                    "arrived_us": from_to_us(*answered_ns, arrived_ns),
                    "sent_us": from_to_us(*answered_ns, sent_ns),
                    "lost_us": from_to_us(*answered_ns, lost_ns),
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
                ("between the datagrams around a change", Percentiles::of(wires().map(|one| one.gap_us()))),
            ];
            for (name, percentiles) in figures {
                if let Some(percentiles) = percentiles {
                    writeln!(f, "{load:<6}  {name:<40}  {percentiles}")?;
                }
            }
        }
        let (apart, cut) = self.cut_apart();
        writeln!(f, "running, fresh and TCP flows were cut at different moments in {apart} of {cut} rounds")?;
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
    /// Whether one moment explains what was seen of all flows that were cut; none of a round without two of them.
    fn is_cut_at_once(&self) -> Option<bool> {
        if self.effect == Effect::Allow {
            return None;
        }
        let bounds: Vec<(u64, u64)> = self.wires.iter().filter_map(|(_, wire)| Some((*wire)?.bounds_ns())).collect();
        let latest_begin = bounds.iter().map(|(begin, _)| begin).max()?;
        let earliest_end = bounds.iter().map(|(_, end)| end).min()?;
        (bounds.len() > 1).then_some(latest_begin <= earliest_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(sent_ns: u64, lost_ns: u64) -> Option<Wire> {
        Some(Wire { arrived_ns: sent_ns + 50, sent_ns, lost_ns })
    }

    fn sample(effect: Effect, wires: &[(Flow, Option<Wire>)]) -> Sample {
        let (write, load, wires) = (Write::Policy, Load::Idle, wires.to_vec());
        Sample { write, effect, load, answered_ns: 1000, took_ns: 5, watched_ns: Some(1200), wires }
    }

    #[test]
    fn what_shows_a_verdict_is_the_later_of_two_datagrams() {
        assert_eq!(wire(300, 500).expect("it is one").shown_ns(), 500, "the first that was lost");
        assert_eq!(wire(500, 300).expect("it is one").shown_ns(), 500, "the first that arrived");
    }

    #[test]
    fn flows_are_cut_at_once_if_one_moment_explains_them_all() {
        let is_at_once = |wires: &[_]| sample(Effect::Deny, wires).is_cut_at_once();
        assert_eq!(is_at_once(&[(Flow::Running, wire(300, 500)), (Flow::Fresh, wire(450, 600))]), Some(true));
        assert_eq!(is_at_once(&[(Flow::Running, wire(300, 500)), (Flow::Fresh, wire(550, 600))]), Some(false));
        assert_eq!(is_at_once(&[(Flow::Running, wire(300, 500)), (Flow::Fresh, None)]), None);
        let allowed = [(Flow::Running, wire(500, 300)), (Flow::Fresh, wire(700, 600))];
        assert_eq!(sample(Effect::Allow, &allowed).is_cut_at_once(), None);
    }
}
