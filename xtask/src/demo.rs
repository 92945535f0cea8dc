//! `cargo xtask demo`: builds the agent and runs `npolicy demo`, as root or by sudo.

use std::{
    io::{self, IsTerminal as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{process, workspace};

/// What `npolicy demo` is given.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Flags of `npolicy demo`; `cargo xtask demo -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    demo: Vec<String>,
}

/// Builds, then becomes the demo: its exit code and signals are ours.
///
/// # Errors
///
/// We are not root and cannot become it, the agent does not build, or the demo does not start.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let binary = workspace::target().join("debug/npolicy");
    // `--help` needs nobody's permission.
    let asks_only = args.demo.iter().any(|argument| matches!(argument.as_str(), "--help" | "-h"));
    let become_root = if process::is_root() || asks_only { None } else { Some(sudo(&binary, args)?) };
    eprintln!("building the agent (some minutes the first time, then seconds)");
    // The whole workspace decides the features, so that what `cargo xtask test` has built serves here too.
    process::run(workspace::cargo().args(["build", "--locked", "--workspace", "--bin", "npolicy"]))?;
    let mut command = match become_root {
        None => Command::new(&binary),
        Some(sudo) => {
            eprintln!("asking sudo for the run alone: it makes network namespaces and loads BPF programs");
            let mut command = Command::new(sudo);
            command.arg("--").arg(&binary);
            command
        }
    };
    command.arg("demo").args(&args.demo);
    eprintln!("$ {}", process::shown(&command));
    Err(command.exec()).with_context(|| format!("start `{}`", process::shown(&command)))
}

/// Finds sudo, before anything is built; refuses where it would refuse.
fn sudo(binary: &std::path::Path, args: &Args) -> anyhow::Result<PathBuf> {
    let needs = format!(
        "the demo needs root (it makes network namespaces and loads BPF programs): run `cargo xtask demo` as root, or \
         `cargo build` as yourself and `{}` as root",
        process::shown(Command::new(binary).arg("demo").args(&args.demo))
    );
    let Some(sudo) = process::on_path("sudo") else { bail!("{needs}\nthere is no sudo on this machine") };
    let mut question = Command::new(&sudo);
    question.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let without_password = question.status().is_ok_and(|status| status.success());
    if !without_password && !io::stdin().is_terminal() {
        bail!("{needs}\nsudo wants a password, and there is no terminal to type it");
    }
    Ok(sudo)
}
