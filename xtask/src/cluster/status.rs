//! `cargo xtask cluster status`.

use std::{
    fs,
    io::{self, Write as _},
};

use anyhow::{Context as _, bail};

use super::{
    cgroup, command, daemon,
    machine::{self, Machine, Node},
    network, state,
};

/// Prints the processes, their memory and the nodes.
///
/// # Errors
///
/// A program does not run.
pub(super) fn print() -> anyhow::Result<()> {
    let Some(options) = state::read().filter(|_| network::exists()) else {
        if state::is_of_another_folder() {
            bail!("no cluster of this folder runs, but one of another: `cargo xtask cluster down` ends it");
        }
        bail!("no cluster runs: `cargo xtask cluster up` starts one");
    };
    let mut lines = Vec::new();
    lines.push(format!("up with {options}; KUBECONFIG={}", machine::kubeconfig().display()));
    let mut missing = Vec::new();
    for machine in Machine::ALL {
        let name = machine.name();
        for program in daemon::names(machine) {
            match daemon::pid(machine, program).filter(|_| daemon::is_running(machine, program)) {
                Some(pid) => lines.push(format!("{name}  {program:24} pid {pid:>7} {:>5} MiB", resident(pid))),
                None => {
                    lines.push(format!(
                        "{name}  {program:24} does not run; log: {}",
                        daemon::log_file(machine, program).display()
                    ));
                    missing.push(format!("{program} on {name}"));
                }
            }
        }
        if let Some((processes, cached)) = cgroup::memory(machine) {
            let (processes, cached) = (processes >> 20, cached >> 20);
            let what = "all, with pods";
            lines.push(format!("{name}  {what:24} {processes:>17} MiB, and {cached} MiB of files cached"));
        }
    }
    for node in Node::ALL.into_iter().filter(|&node| network::is_cut(node)) {
        lines.push(format!(
            "{node}  is cut off from the control plane: `cargo xtask cluster mend {}`",
            &node.name()[1..]
        ));
    }
    if missing.is_empty() {
        lines.push(command::quiet(command::kubectl().args(["get", "nodes", "-o", "wide"]))?);
    }
    show(&lines.join("\n"))?;
    if !missing.is_empty() {
        bail!("not running: {}; `cargo xtask cluster up` starts them", missing.join(", "));
    }
    Ok(())
}

/// Prints `text`; whoever reads it may have seen enough.
fn show(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("print the status"),
        _ => Ok(()),
    }
}

/// MiB of memory that a process has to itself or shares; 0 if it is gone meanwhile.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib >> 10)
}
