//! Format and clippy, as errors.

use std::process::Command;

use anyhow::bail;

use crate::{process, workspace};

/// Checks that the sources are formatted.
///
/// # Errors
///
/// Some are not, or rustfmt is missing.
pub(crate) fn format() -> anyhow::Result<()> {
    has("fmt", "rustfmt", "rustfmt-web")?;
    process::run(workspace::cargo().args(["fmt", "--all", "--check"]))
}

/// Runs clippy on everything that builds on the host; a warning is an error.
///
/// # Errors
///
/// There are warnings, or clippy is missing.
pub(crate) fn clippy() -> anyhow::Result<()> {
    has("clippy", "clippy", "rust-web-clippy")?;
    let lint = |what: &[&str]| {
        let mut cargo = workspace::cargo();
        cargo.args(["clippy", "--locked"]).args(what).args(["--", "-D", "warnings"]);
        process::run(&mut cargo)
    };
    lint(&["--workspace", "--exclude", "npolicy-ebpf", "--all-targets"])?;
    // The packet path's binary builds for BPF only.
    lint(&["-p", "npolicy-ebpf", "--lib", "--tests"])
}

fn has(subcommand: &str, component: &str, package: &str) -> anyhow::Result<()> {
    let mut question: Command = workspace::cargo();
    if process::answer(question.args([subcommand, "--version"])).is_none() {
        bail!("rustup component add {component}\nor Debian's package `{package}`: `cargo {subcommand}` is missing");
    }
    Ok(())
}
