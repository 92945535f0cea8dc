//! Processes of the machines that run until `down`.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{cgroup, command, machine::Machine};
use crate::workspace;

/// Enters the cgroups whose files are named before `--`, then becomes the rest in a session of its own: no key of the
/// terminal reaches it.
const ENTER: &str = r#"while [ "$1" != -- ]; do echo $$ >"$1" || exit 1; shift; done; shift; exec setsid "$@""#;

/// Starts a program on `machine`, unless it runs. It logs into the machine's folder.
///
/// # Errors
///
/// It cannot be started.
pub(super) fn start(machine: Machine, name: &str, program: &Command) -> anyhow::Result<()> {
    if is_running(machine, name) {
        return Ok(());
    }
    let logs = machine.folder().join("log");
    fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
    let path = log_file(machine, name);
    let log = fs::OpenOptions::new().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("open {}", path.display()))?;
    let errors = log.try_clone().with_context(|| format!("open {} twice", path.display()))?;
    let mut shell = command::command("sh");
    shell.args(["-c", ENTER, "sh"]).args(cgroup::entries(machine)?).arg("--");
    shell.arg(program.get_program()).args(program.get_args());
    let mut child = shell
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("start {name} on {}", machine.name()))?;
    fs::write(pid_file(machine, name), child.id().to_string())
        .with_context(|| format!("remember the process of {name} on {}", machine.name()))?;
    command::wait_for(&format!("{name} in its cgroup"), Duration::from_secs(30), || {
        let ended = child.try_wait().context("ask for a process")?;
        if ended.is_none() && !is_running(machine, name) { bail!("not there yet") } else { Ok(()) }
    })
}

/// Tries `attempt` until it succeeds, as long as the program of that name runs.
///
/// # Errors
///
/// It did not for so long, or the program ended; with the last error and the end of its log.
pub(super) fn wait_for<T>(
    (machine, name): (Machine, &str),
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let outcome = command::wait_for(what, limit, || match attempt() {
        // Nothing is to be waited for any more.
        Err(error) if !is_running(machine, name) => {
            Ok(Err(error.context(format!("{name} on {} has ended", machine.name()))))
        }
        outcome => outcome.map(Ok),
    });
    outcome.and_then(|outcome| outcome).with_context(|| last_words(machine, name))
}

/// Whether the program of that name runs on `machine`.
pub(super) fn is_running(machine: Machine, name: &str) -> bool {
    pid(machine, name).is_some_and(|pid| cgroup::own_processes(machine).contains(&pid))
}

/// The process that was started under that name.
pub(super) fn pid(machine: Machine, name: &str) -> Option<i32> {
    fs::read_to_string(pid_file(machine, name)).ok()?.trim().parse().ok()
}

/// The end of what it logged.
fn last_words(machine: Machine, name: &str) -> String {
    let text = fs::read(log_file(machine, name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(3)..].join("\n");
    format!("{} ends with:\n{last}\n", workspace::relative(&log_file(machine, name)).display())
}

/// Where it logs.
pub(super) fn log_file(machine: Machine, name: &str) -> PathBuf {
    machine.folder().join("log").join(format!("{name}.log"))
}

fn pid_file(machine: Machine, name: &str) -> PathBuf {
    machine.folder().join(format!("{name}.pid"))
}

/// This program, for a part of itself that runs on its own.
///
/// # Errors
///
/// Its file is not known.
pub(super) fn ourselves(arguments: &[&str]) -> anyhow::Result<Command> {
    // Cargo replaces the file when it builds anew; what runs then is the path, not the deleted file.
    let path = env::current_exe().context("find the file of this program")?;
    let path = path.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    let mut command = command::command(&path);
    command.arg("cluster").args(arguments);
    Ok(command)
}

/// The programs of every machine, in the order of their start.
pub(super) fn names(machine: Machine) -> &'static [&'static str] {
    match machine {
        Machine::ControlPlane => &["forwarder", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"],
        Machine::Node(_) => &["init", "containerd", "kubelet", "kube-proxy"],
    }
}

/// Whether every program of every machine runs.
pub(super) fn all_run() -> bool {
    Machine::ALL.iter().all(|&machine| names(machine).iter().all(|name| is_running(machine, name)))
}
