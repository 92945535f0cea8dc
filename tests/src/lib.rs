//! Builders, harness and scenarios of the suites.

pub mod cases;

use std::{
    io::{self, Write as _},
    thread,
};

/// Whether a test can run here: `missing` names what this machine lacks, if anything. Then the reason is printed and the
/// test is to return at once.
///
/// # Panics
///
/// Under `NPOLICY_REQUIRE=1`, where nothing may be skipped.
#[track_caller]
pub fn require(missing: Option<&str>) -> bool {
    let Some(missing) = missing else { return true };
    assert!(std::env::var_os("NPOLICY_REQUIRE").is_none_or(|value| value != "1"), "cannot run here: {missing}");
    // The harness names a test's thread after it. Past its capture, so that `cargo xtask test` can count the line.
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    writeln!(io::stdout(), "skipped: {test}: {missing}").expect("standard output takes a line");
    false
}

/// Whether tests with network namespaces can run here.
#[track_caller]
pub fn require_root() -> bool {
    require((!rustix::process::geteuid().is_root()).then_some("network namespaces take root"))
}
