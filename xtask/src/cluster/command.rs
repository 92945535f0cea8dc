//! Running the programs that a cluster is made with, and waiting for what they start.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::machine::{self, Machine};
use crate::process;

/// Where Debian has programs for the administrator, which not everybody has on PATH.
const SYSTEM_FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What would send the cluster's own connections elsewhere.
const PROXIES: &[&str] = &["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];

/// `program`, with the programs built here first on its PATH, and no proxy.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path()).stdin(Stdio::null());
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    command
}

/// PATH with everything that a cluster uses.
pub(super) fn path() -> String {
    let own = env::var("PATH").unwrap_or_default();
    format!("{}:{own}:{SYSTEM_FOLDERS}", machine::root().join("bin").display())
}

/// A program of that name on [`path`].
pub(super) fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&path()).map(|folder| folder.join(name)).find(|path| process::is_program(path))
}

/// Runs a command given as its words, and returns what it prints.
///
/// # Errors
///
/// It does not start or does not end with 0; with what it said.
pub(super) fn words(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    quiet(command(program).args(words))
}

/// Runs `command` unseen, and returns what it prints.
///
/// # Errors
///
/// It does not start or does not end with 0; with what it said.
pub(super) fn quiet(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("start `{}`", process::shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", process::shown(command), output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what `{}` prints", process::shown(command)))
}

/// `program` in the network namespace of `machine`, which also exists before its processes do.
pub(super) fn in_network_of(machine: Machine, program: &str) -> Command {
    let mut command = command("nsenter");
    command.arg(format!("--net={}", machine.namespace_file().display())).arg("--").arg(program);
    command
}

/// kubectl as the administrator.
pub(super) fn kubectl() -> Command {
    let mut command = command(&machine::binary("kubectl").to_string_lossy());
    command.arg("--kubeconfig").arg(machine::kubeconfig());
    command
}

/// Tries `attempt` until it succeeds.
///
/// # Errors
///
/// It did not for so long; with what, and the last error.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if begin.elapsed() > limit => {
                return Err(error).with_context(|| format!("{what}: not within {} s", limit.as_secs()));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_tells_what_for_and_the_last_error() {
        let mut attempts = 0;
        let outcome: anyhow::Result<()> = wait_for("the sun", Duration::ZERO, || {
            attempts += 1;
            bail!("it is night")
        });
        let told = format!("{:#}", outcome.expect_err("nothing succeeded"));
        assert_eq!(told, "the sun: not within 0 s: it is night");
        assert_eq!(attempts, 1);
    }

    #[test]
    fn waiting_ends_with_the_first_success() {
        let mut attempts = 0;
        let outcome = wait_for("the third", Duration::from_secs(5), || {
            attempts += 1;
            if attempts < 3 { bail!("not yet") } else { Ok(attempts) }
        });
        assert_eq!(outcome.ok(), Some(3));
    }
}
