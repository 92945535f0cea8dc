//! The real agent as a child process inside a node.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use ipnet::IpNet;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::{Attempt, Result, RigError};
use super::node::Node;
use crate::observe::{Format, Ready};

/// Where an agent reads the cluster's objects.
#[derive(Clone, Debug)]
pub enum AgentSource {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server that a kubeconfig names; the node's name must be given, too.
    Kubeconfig(PathBuf),
}

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The `npolicy` binary.
    pub program: PathBuf,
    /// Where the cluster's objects come from.
    pub source: AgentSource,
    /// Where it pins: [`super::BpfFs::pin_dir`] for one that leaves no trace.
    pub pin_dir: PathBuf,
    /// Where it writes its drop log.
    pub drop_log: PathBuf,
    /// How it writes it.
    pub drop_format: Format,
    /// Where it says what it has published.
    pub ready_file: PathBuf,
    /// The node it is told to be on: pods of other nodes are peers only. None: every pod of the manifests may be here.
    pub node_name: Option<String>,
    /// Addresses that belong to pods: an interface with one is guarded before a manifest names it.
    pub pod_cidrs: Vec<IpNet>,
    /// Flows that each family's table has room for. None: the usual number.
    pub flows: Option<u32>,
}

/// A running agent. Dropping it kills it; what it pinned stays.
#[derive(Debug)]
pub struct AgentProcess {
    options: AgentOptions,
    handle: OwnedFd,
    log: Arc<Mutex<VecDeque<String>>>,
    /// Waits for the child. The child gets a signal when the thread that started it ends, so that is this one.
    waiter: Option<JoinHandle<Result<ExitStatus>>>,
}

/// Lines of the agent's stderr that are kept.
const LOG_LINES: usize = 200;
/// Of those, the ones an error shows.
const LOG_LINES_SHOWN: usize = 12;
/// How often files of the agent are looked at.
const POLL: Duration = Duration::from_millis(10);

impl AgentProcess {
    /// Starts the agent inside the node. It need not be ready when this returns.
    pub fn start(node: &Node, options: AgentOptions) -> Result<Self> {
        let drop_format = options.drop_format.to_possible_value().expect("every format has a name");
        let mut command = Command::new(&options.program);
        command
            .arg("agent")
            .arg("--exit-with-parent")
            .arg(match &options.source {
                AgentSource::Manifests(_) => "--manifests",
                AgentSource::Kubeconfig(_) => "--kubeconfig",
            })
            .arg(match &options.source {
                AgentSource::Manifests(path) | AgentSource::Kubeconfig(path) => path,
            })
            .arg("--pin-dir")
            .arg(&options.pin_dir)
            .arg("--drop-log")
            .arg(&options.drop_log)
            .args(["--drop-format", drop_format.get_name()])
            .arg("--ready-file")
            .arg(&options.ready_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal is for the parent alone.
            .process_group(0);
        if let Some(name) = &options.node_name {
            command.arg("--node-name").arg(name);
        }
        for range in &options.pod_cidrs {
            command.arg("--pod-cidrs").arg(range.to_string());
        }
        if let Some(flows) = options.flows {
            command.arg("--flows").arg(flows.to_string());
        }
        // A file of an earlier agent would be taken for this one's.
        match fs::remove_file(&options.ready_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).attempt(|| format!("remove {}", options.ready_file.display()));
            }
            _ => {}
        }
        let program = options.program.display().to_string();
        let (started, is_started) = mpsc::channel();
        let waiter = node.namespace().spawn("agent", move || {
            let mut child = command.spawn().attempt(|| format!("start {program}"))?;
            let pid = Pid::from_raw(child.id().cast_signed()).expect("a child's pid must be positive");
            let handle = pidfd_open(pid, PidfdFlags::empty()).attempt(|| format!("open process {}", child.id()))?;
            let stderr = child.stderr.take().expect("stderr must be piped");
            // Nobody waits any more only if the caller's thread is gone; then the child is waited for all the same.
            let _ = started.send((handle, stderr));
            child.wait().attempt(|| format!("wait for {program}"))
        })?;
        let Ok((handle, stderr)) = is_started.recv() else {
            let ended = waiter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            return Err(RigError::Agent { what: format!("ended at once ({ended})"), log: String::new() });
        };
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let kept = log.clone();
        // Ends with the pipe, which ends with the child.
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == LOG_LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        });
        Ok(Self { options, handle, log, waiter: Some(waiter) })
    }

    /// Waits until the agent has published something that `enough` accepts.
    pub fn wait_published(&self, patience: Duration, enough: impl Fn(&Ready) -> bool) -> Result<Ready> {
        let deadline = Instant::now() + patience;
        loop {
            let last = match self.published()? {
                Some(published) if enough(&published) => return Ok(published),
                last => last,
            };
            if self.has_ended() {
                return Err(self.error("ended before it had published".into()));
            }
            if Instant::now() > deadline {
                return Err(self.error(shortfall(last.as_ref(), patience)));
            }
            thread::sleep(POLL);
        }
    }

    /// What it last said it has published, if anything.
    pub fn published(&self) -> Result<Option<Ready>> {
        let path = &self.options.ready_file;
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.attempt(|| format!("read {}", path.display()))?,
        };
        let ready = serde_json::from_slice(&text).map_err(io::Error::from);
        ready.attempt(|| format!("read {}", path.display())).map(Some)
    }

    /// Whether the process is gone.
    pub fn has_ended(&self) -> bool {
        self.waiter.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The last lines it wrote to stderr.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.end(Signal::KILL)?;
        Ok(())
    }

    /// Asks it to stop, as a service manager does, and waits until it is gone.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let waiter = self.waiter.take().expect("an agent must be ended once");
        match pidfd_send_signal(&self.handle, signal) {
            // It was gone before.
            Err(rustix::io::Errno::SRCH) => {}
            sent => sent.attempt(|| "signal the agent".into())?,
        }
        waiter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn error(&self, what: String) -> RigError {
        let lines = self.log();
        let log = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        RigError::Agent { what, log }
    }
}

/// How far an agent got that did not come to what was waited for.
fn shortfall(last: Option<&Ready>, patience: Duration) -> String {
    let seconds = patience.as_secs();
    let Some(&Ready { identified, endpoints, policies, .. }) = last else {
        return format!("published nothing in {seconds} s");
    };
    if identified < endpoints {
        format!("recognised {identified} of {endpoints} pods in {seconds} s")
    } else {
        format!(
            "did not get further in {seconds} s than to recognise {identified} pods, with {policies} policies in force"
        )
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        if self.waiter.is_some() {
            // Nothing is left to do about an agent that cannot be killed.
            let _ = self.end(Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_far_the_agent_got() {
        let ready = |identified, endpoints| Ready { identified, endpoints, policies: 4, ..Ready::default() };
        let patience = Duration::from_secs(60);
        assert_eq!(shortfall(None, patience), "published nothing in 60 s");
        assert_eq!(shortfall(Some(&ready(2, 3)), patience), "recognised 2 of 3 pods in 60 s");
        assert_eq!(
            shortfall(Some(&ready(3, 3)), patience),
            "did not get further in 60 s than to recognise 3 pods, with 4 policies in force"
        );
    }
}
