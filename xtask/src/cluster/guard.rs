//! Cleans up when `up` is interrupted.
//!
//! A process in a session of its own, out of reach of the terminal's Ctrl-C, waits for a word from `up`. If the pipe
//! closes without it, `up` is dead, however it died.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Stdio},
};

use anyhow::Context as _;

use super::daemon;

/// What `up` says when it ends by itself.
const WORD: &[u8] = b"done";

/// The process that waits.
pub(super) struct Guard {
    child: Child,
    pipe: ChildStdin,
}

/// Starts it.
///
/// # Errors
///
/// It does not start.
pub(super) fn start() -> anyhow::Result<Guard> {
    let mut ourselves = daemon::ourselves(&["guard"])?;
    let mut child = ourselves.process_group(0).stdin(Stdio::piped()).spawn().context("start the guard")?;
    let pipe = child.stdin.take().context("talk to the guard")?;
    Ok(Guard { child, pipe })
}

impl Guard {
    /// Tells it that there is nothing to clean up.
    ///
    /// # Errors
    ///
    /// It does not listen.
    pub(super) fn dismiss(mut self) -> anyhow::Result<()> {
        self.pipe.write_all(WORD).context("dismiss the guard")?;
        drop(self.pipe);
        self.child.wait().context("wait for the guard")?;
        Ok(())
    }
}

/// Waits for the word; without it, ends what was started.
///
/// # Errors
///
/// Something stays.
pub(super) fn run() -> anyhow::Result<()> {
    let mut heard = Vec::new();
    io::stdin().read_to_end(&mut heard).context("listen to `up`")?;
    if heard == WORD {
        return Ok(());
    }
    eprintln!("interrupted: ending what was started");
    super::down()
}
