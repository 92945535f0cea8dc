//! `cargo xtask verifier`: the instructions that the kernel's verifier walks, against their budgets.

use anyhow::bail;

use crate::{report::Totals, test, workspace};

/// The test that holds the numbers against `tests/verifier-budget.txt`.
const TEST: &str = "stays_within_the_instruction_budget";

/// Runs that one test, with what it prints.
///
/// # Errors
///
/// A program is over its budget, or the kernel could not be asked.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--locked", "--workspace", "--test", "verifier", TEST, "--", "--exact", "--nocapture"]);
    let mut totals = Totals::default();
    test::run_tests(&mut cargo, &mut totals)?;
    if totals.passed == 0 {
        bail!("no program was verified: loading them takes root");
    }
    Ok(())
}
