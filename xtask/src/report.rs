//! What was done, how long it took and how it ended.

use std::{
    fmt,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Steps, in the order they were taken.
#[derive(Default)]
pub(crate) struct Report {
    steps: Vec<Step>,
    totals: Totals,
}

struct Step {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
}

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should.
    Done,
    /// It could not be taken here, and why.
    Skipped(String),
    /// It failed, and why.
    Failed(String),
}

/// Tests, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Those that held.
    pub(crate) passed: u64,
    /// Those that did not.
    pub(crate) failed: u64,
    /// Those that could not run.
    pub(crate) skipped: u64,
}

impl From<anyhow::Result<()>> for Outcome {
    fn from(result: anyhow::Result<()>) -> Self {
        result.map_or_else(|error| Self::Failed(format!("{error:#}")), |()| Self::Done)
    }
}

impl Report {
    /// Takes a step, and says so when it begins and when it ends.
    pub(crate) fn step(&mut self, name: &'static str, work: impl FnOnce() -> Outcome) {
        eprintln!("== {name}");
        let begin = Instant::now();
        let outcome = work();
        let took = begin.elapsed();
        match &outcome {
            Outcome::Done => eprintln!("== {name}: {}", seconds(took)),
            Outcome::Skipped(reason) => eprintln!("== {name}: skipped after {}: {reason}", seconds(took)),
            Outcome::Failed(reason) => eprintln!("== {name}: FAILED after {}: {reason}", seconds(took)),
        }
        self.steps.push(Step { name, took, outcome });
    }

    /// Takes a step that counts as one test.
    pub(crate) fn counted_step(&mut self, name: &'static str, work: impl FnOnce() -> Outcome) {
        self.step(name, work);
        let Totals { passed, failed, skipped } = &mut self.totals;
        match self.steps.last().map(|step| &step.outcome) {
            Some(Outcome::Done) => *passed += 1,
            Some(Outcome::Failed(_)) => *failed += 1,
            Some(Outcome::Skipped(_)) => *skipped += 1,
            None => {}
        }
    }

    /// Adds tests that ran inside a step.
    pub(crate) fn add(&mut self, totals: Totals) {
        self.totals.passed += totals.passed;
        self.totals.failed += totals.failed;
        self.totals.skipped += totals.skipped;
    }

    /// What we end with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Whether nothing failed.
    fn is_good(&self) -> bool {
        self.totals.failed == 0 && !self.steps.iter().any(|step| matches!(step.outcome, Outcome::Failed(_)))
    }
}

/// A line for each step, and the totals as the last.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
        for Step { name, took, outcome } in &self.steps {
            // The first line tells enough here; the whole was printed when it happened.
            let first_line = |text: &str| text.lines().next().unwrap_or_default().to_owned();
            let outcome = match outcome {
                Outcome::Done => "ok".to_owned(),
                Outcome::Skipped(reason) => format!("skipped: {}", first_line(reason)),
                Outcome::Failed(reason) => format!("FAILED: {}", first_line(reason)),
            };
            writeln!(f, "{name:width$}  {:>8}  {outcome}", seconds(*took))?;
        }
        let Totals { passed, failed, skipped } = self.totals;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_totals() {
        let mut report = Report::default();
        report.add(Totals { passed: 3, failed: 0, skipped: 1 });
        report.counted_step("object", || Outcome::Skipped("no compiler\nnor linker".to_owned()));
        let shown = report.to_string();
        assert!(shown.starts_with("object"), "{shown}");
        assert!(shown.ends_with("skipped: no compiler\n3 passed, 0 failed, 2 skipped"), "{shown}");
        assert!(report.is_good());
    }

    #[test]
    fn a_failed_step_is_never_good() {
        let mut report = Report::default();
        report.step("format", || Outcome::Failed("one file differs".to_owned()));
        assert!(!report.is_good());
    }
}
