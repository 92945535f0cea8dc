//! `cargo xtask test`: every test that this machine can run; the rest is named with the reason.
//!
//! A test that finds its machine wanting prints one line, `skipped: NAME: REASON`, past the capture of the test harness,
//! and returns. Those lines are counted here and listed again at the end. With `NPOLICY_REQUIRE=1` such a test fails
//! instead, and so does a step here.

use std::{
    env,
    io::{self, BufRead as _, Write as _},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{
    ebpf, process,
    report::{Outcome, Report, Totals},
    setup, suites, workspace,
};

/// By how much `--long` multiplies the worlds.
const LONG_TIMES: &str = "20";

/// Which tests, and how built.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the tests with optimisation
    #[arg(long)]
    release: bool,
    /// Try twenty times as many generated worlds, in about an hour
    ///
    /// Without it NPOLICY_WORLDS_TIMES says how many times as many. NPOLICY_WORLDS_SEED is the seed of the first world.
    #[arg(long)]
    long: bool,
    /// Run only the tests whose name contains this
    filter: Option<String>,
}

impl Args {
    /// Every test, as they are built from day to day.
    pub(crate) fn all() -> Self {
        Self { release: false, long: false, filter: None }
    }
}

/// Runs the tests and prints what happened; the last line is `N passed, N failed, N skipped`.
pub(crate) fn run(args: &Args) -> ExitCode {
    let mut report = Report::default();
    steps(args, &mut report);
    println!("{report}");
    report.exit_code()
}

/// Takes the steps of this command as part of `report`.
pub(crate) fn steps(args: &Args, report: &mut Report) {
    report.step("build the tests", || process::run(cargo_test(args).arg("--no-run")).into());
    report.step("set up what the tests use", || match setup::test_tools() {
        Ok(None) => Outcome::Done,
        // The tests that miss it say so themselves.
        Ok(Some(missing)) => Outcome::Skipped(missing),
        Err(error) if !required() => Outcome::Skipped(format!("{error:#}")),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    });
    let mut totals = Totals::default();
    report.step("run the tests", || match run_tests(&mut cargo_test(args), &mut totals) {
        Ok(()) => Outcome::Done,
        Err(error) => {
            // A suite that dies says no result.
            totals.failed = totals.failed.max(1);
            Outcome::Failed(format!("{error:#}"))
        }
    });
    report.add(totals);
    if args.filter.is_none() {
        report.counted_step("BPF object", object_step);
        suites::steps(required(), report);
    }
}

/// The committed object against the sources; skipped where nothing can build it.
fn object_step() -> Outcome {
    match ebpf::check() {
        Err(error) if !required() && (error.is::<setup::Missing>() || error.is::<ebpf::OtherCompiler>()) => {
            Outcome::Skipped(format!("{error:#}"))
        }
        result => result.into(),
    }
}

/// Whether a skip is a failure.
fn required() -> bool {
    env::var_os("NPOLICY_REQUIRE").is_some_and(|value| value == "1")
}

/// The packet path's binary is not among the tests: it builds for BPF only.
fn cargo_test(args: &Args) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    if args.release {
        cargo.arg("--release");
    }
    if args.long {
        cargo.env("NPOLICY_WORLDS_TIMES", LONG_TIMES);
    }
    cargo.args(&args.filter);
    cargo
}

/// Runs `cargo test`, counting what it prints.
///
/// # Errors
///
/// A test failed or did not build.
pub(crate) fn run_tests(cargo: &mut Command, totals: &mut Totals) -> anyhow::Result<()> {
    eprintln!("$ {}", process::shown(cargo));
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.stdout.take().expect("stdout is piped");
    let mut skips = Vec::new();
    let mut terminal = io::stdout().lock();
    for line in io::BufReader::new(output).lines() {
        let line = line.context("read what the tests print")?;
        writeln!(terminal, "{line}")?;
        if let Some(result) = result_line(&line) {
            totals.passed += result.passed;
            totals.failed += result.failed;
            totals.skipped += result.skipped;
        }
        skips.extend(skip_line(&line).map(str::to_owned));
    }
    let status = child.wait().context("wait for cargo")?;
    for skip in &skips {
        eprintln!("skipped: {skip}");
    }
    // The harness counted each of them as passed.
    let skipped = skips.len() as u64;
    totals.passed = totals.passed.saturating_sub(skipped);
    totals.skipped += skipped;
    if !status.success() {
        bail!("`cargo test` ended with {status}");
    }
    Ok(())
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn result_line(line: &str) -> Option<Totals> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        let number = counts.split("; ").find_map(|part| part.strip_suffix(what))?;
        number.trim().parse().ok()
    };
    Some(Totals { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

/// Reads `skipped: NAME: REASON`, which may stand behind the `test NAME ... ` of a harness with one thread.
fn skip_line(line: &str) -> Option<&str> {
    let (before, skip) = line.split_once("skipped: ")?;
    (before.is_empty() || (before.starts_with("test ") && before.ends_with(" ... "))).then_some(skip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_result_of_a_suite() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some(Totals { passed: 12, failed: 3, skipped: 1 }));
        assert_eq!(result_line("test result_line ... ok"), None);
    }

    #[test]
    fn reads_a_skip_wherever_the_harness_puts_it() {
        assert_eq!(skip_line("skipped: kernel: needs root"), Some("kernel: needs root"));
        assert_eq!(skip_line("test kernel ... skipped: kernel: needs root"), Some("kernel: needs root"));
        assert_eq!(skip_line("2 were skipped: see above"), None);
    }
}
