//! `cargo xtask ci`: all that has to hold before a change is taken.

use std::process::ExitCode;

use crate::{ebpf, lint, report::Report, test, tidy};

/// Takes every step, also after one has failed, and prints a line for each; the last line counts the tests.
pub(crate) fn run() -> ExitCode {
    let mut report = Report::default();
    report.step("set-up", || ebpf::set_up().into());
    report.step("tidy", || tidy::run().into());
    report.step("format", || lint::format().into());
    report.step("clippy", || lint::clippy().into());
    report.step("clippy, BPF side", || ebpf::clippy().into());
    test::steps(&test::Args::all(), &mut report);
    println!("{report}");
    report.exit_code()
}
