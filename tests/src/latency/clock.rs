//! Whether the pods' clocks are ours, and what the machine's processors do.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::traffic::Pod;
use crate::e2e::message::{Answer, Ask};

pub(super) use crate::e2e::peer::now_ns;

/// Exchanges with each pod.
const EXCHANGES: usize = 5;

/// Asks every pod for its clock: what it says must lie between our question and its answer, every time.
///
/// Returns the shortest exchange, which is how far apart the clocks could be at most.
///
/// # Errors
///
/// A pod's clock said something else: then it runs on another machine, or in a time namespace.
pub(super) async fn compare(pods: &[&Pod]) -> anyhow::Result<Duration> {
    let mut within_ns = u64::MAX;
    for pod in pods {
        for _ in 0..EXCHANGES {
            let before = now_ns();
            let Answer::Facts { now_ns: theirs, .. } = pod.ask(Ask::Facts).await? else {
                bail!("pod {}: no facts in its answer", pod.name)
            };
            let after = now_ns();
            ensure!(
                (before..=after).contains(&theirs),
                "pod {}: its clock says {theirs} ns where ours went from {before} to {after}: it is not on this machine's \
                 clock, and times cannot be compared; run this on the machine whose containers the nodes are",
                pod.name
            );
            within_ns = within_ns.min(after - before);
        }
    }
    Ok(Duration::from_nanos(within_ns))
}

/// Time of all processors since the machine started, in ticks.
#[derive(Clone, Copy)]
pub(super) struct Processors {
    idle: u64,
    all: u64,
}

impl Processors {
    /// Reads `/proc/stat`.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub(super) fn now() -> anyhow::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").context("/proc/stat")?).context("/proc/stat: its first line")
    }

    /// The line of all processors: user, nice, system, idle, iowait and more (proc_stat(5)); guests are in user.
    fn parse(text: &str) -> Option<Self> {
        let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let fields: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { idle: fields.get(3)? + fields.get(4)?, all: fields.iter().sum() })
    }

    /// How much of the time since then was idle, in percent.
    pub(super) fn idle_percent_since(self, begin: Self) -> f64 {
        // Ticks of one run are far below 2^52.
        100.0 * (self.idle - begin.idle) as f64 / (self.all - begin.all).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::Processors;

    #[test]
    fn idle_is_a_part_of_all() {
        let at = |line| Processors::parse(line).expect("a line of /proc/stat");
        let (begin, end) = (at("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1"), at("cpu  30 0 20 85 15 0 0 50 9 9\ncpu0 1"));
        assert_eq!(end.idle_percent_since(begin), 20.0);
        assert!(Processors::parse("intr 5").is_none());
    }
}
