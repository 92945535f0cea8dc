//! Builders, harness and scenarios of the suites.

pub mod api_server;
pub mod cases;
pub mod dynamic;
pub mod e2e;
pub mod oracle;
pub mod scenarios;
pub mod worlds;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

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

/// Whether tests with clusters of several nodes can run here.
#[track_caller]
pub fn require_cluster() -> bool {
    let has_nft = Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success());
    require_root()
        && require((!has_nft).then_some("translating Service addresses takes `nft`: apt-get install nftables"))
}

/// The `npolicy` binary that belongs to the running tests, built first.
pub fn npolicy_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a path to the test");
        // target/PROFILE/deps/TEST
        let profile = test.ancestors().nth(2).expect("a profile's directory");
        let target = profile.parent().expect("a target directory");
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // The whole workspace decides the features, as for the tests: what they have built serves here too.
        build.args(["build", "--quiet", "--locked", "--workspace", "--bin", "npolicy", "--target-dir"]);
        build.arg(target).args(profile.ends_with("release").then_some("--release"));
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo");
        assert!(built.success(), "npolicy does not build");
        profile.join("npolicy")
    })
}
