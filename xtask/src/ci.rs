//! `cargo xtask ci`: all that has to hold before a change is taken.

use anyhow::bail;

use crate::{ebpf, lint, report::Report, test, tidy};

/// Takes every step, also after one has failed, and prints a line for each.
///
/// # Errors
///
/// A step failed.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut report = Report::default();
    report.step("set-up", || ebpf::set_up().into());
    report.step("tidy", || tidy::run().into());
    report.step("format", || lint::format().into());
    report.step("clippy", || lint::clippy().into());
    test::steps(&test::Args::all(), &mut report);
    println!("{report}");
    if !report.is_good() {
        bail!("the checks failed");
    }
    Ok(())
}
