//! Ctrl-C and SIGTERM.

use std::fs;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// What a shell reports of a process that SIGINT ended.
const ENDED_BY_SIGINT: i32 = 130;

/// Waits for a signal. Until [`Interrupt::answer_from_now_on`] is called a signal ends the process at once: the kernel takes
/// namespaces, programs and the agent with it, and the directory is removed first.
#[derive(Debug)]
pub(super) struct Interrupt {
    asked: mpsc::Receiver<()>,
    is_waited_for: Arc<AtomicBool>,
}

impl Interrupt {
    /// Begins to wait; `directory` is removed where the process ends at once.
    pub(super) fn watch(directory: PathBuf) -> anyhow::Result<Self> {
        let (ask, asked) = mpsc::channel();
        let is_waited_for = Arc::new(AtomicBool::new(false));
        let waited_for = is_waited_for.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            let what = "wait for signals";
            (signal(SignalKind::interrupt()).context(what)?, signal(SignalKind::terminate()).context(what)?)
        };
        thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if waited_for.load(Ordering::Relaxed) && ask.send(()).is_ok() {
                        continue;
                    }
                    // The next demo removes what stays.
                    let _ = fs::remove_dir_all(&directory);
                    process::exit(ENDED_BY_SIGINT);
                }
            });
        });
        Ok(Self { asked, is_waited_for })
    }

    /// From now on a signal is an answer of [`Interrupt::is_asked_within`], and no longer the end.
    pub(super) fn answer_from_now_on(&self) {
        self.is_waited_for.store(true, Ordering::Relaxed);
    }

    /// Waits for a signal, that long at most.
    pub(super) fn is_asked_within(&self, patience: Duration) -> bool {
        self.asked.recv_timeout(patience).is_ok()
    }
}
