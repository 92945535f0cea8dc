//! Says when a directory of manifests changed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Editors replace files and tools write several: wait until it has been this quiet, so that a half-written set is not
/// read.
const QUIET: Duration = Duration::from_millis(20);
/// But never longer than this.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("watch {path} for changes")]
pub struct DirectoryError {
    path: PathBuf,
    #[source]
    source: notify::Error,
}

/// A watch on a directory, by inotify.
#[derive(Debug)]
pub struct DirectoryWatch {
    changes: mpsc::Receiver<()>,
    /// When the changes under way count as one, unless more come first; kept here, so that whoever stops waiting loses
    /// nothing.
    burst: Option<Burst>,
    // Watching ends when it is dropped.
    _watcher: RecommendedWatcher,
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    quiet: Instant,
    patience: Instant,
}

impl DirectoryWatch {
    /// Starts to watch; what changes from now on is reported.
    ///
    /// # Errors
    /// If the directory does not exist or inotify is exhausted.
    pub fn start(path: &Path) -> Result<Self, DirectoryError> {
        let failed = |source| DirectoryError { path: path.to_owned(), source };
        // One place is enough: a change that finds it taken will be seen by the reading that the earlier one causes.
        let (sender, changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error (a lost event among them) may hide a change, so it counts as one; reading is not a change.
            if !matches!(&event, Ok(event) if event.kind.is_access()) {
                let _full_or_closed = sender.try_send(());
            }
        })
        .map_err(failed)?;
        watcher.watch(path, RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(Self { changes, burst: None, _watcher: watcher })
    }

    /// Waits for a change, then until the directory has been quiet for a moment. May be given up at any time and called
    /// again.
    pub async fn changed(&mut self) {
        loop {
            let Some(burst) = self.burst else {
                if self.changes.recv().await.is_none() {
                    // The watcher is ours and lives as long as we do, so its sender does too.
                    return std::future::pending().await;
                }
                let now = Instant::now();
                self.burst = Some(Burst { quiet: now + QUIET, patience: now + PATIENCE });
                continue;
            };
            let deadline = burst.quiet.min(burst.patience);
            let more = timeout_at(deadline, self.changes.recv()).await;
            let now = Instant::now();
            if more.is_err() || now >= burst.patience {
                self.burst = None;
                return;
            }
            self.burst = Some(Burst { quiet: now + QUIET, ..burst });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn reports_a_file_written_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.yaml");
        let mut watch = DirectoryWatch::start(dir.path()).unwrap();
        let long = Duration::from_secs(5);
        fs::write(&file, "a").unwrap();
        tokio::time::timeout(long, watch.changed()).await.expect("written");
        fs::write(dir.path().join("new"), "b").unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
        tokio::time::timeout(long, watch.changed()).await.expect("replaced");
        fs::remove_file(&file).unwrap();
        tokio::time::timeout(long, watch.changed()).await.expect("removed");
    }

    #[tokio::test]
    async fn a_change_is_not_lost_on_who_stops_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = DirectoryWatch::start(dir.path()).unwrap();
        fs::write(dir.path().join("policy.yaml"), "a").unwrap();
        let mut waits = 0;
        // Much shorter than a burst: every wait but the last is given up.
        while tokio::time::timeout(Duration::from_millis(2), watch.changed()).await.is_err() {
            waits += 1;
            assert!(waits < 1_000, "the change was lost");
        }
        assert!(waits > 0);
    }

    #[tokio::test]
    async fn reading_a_file_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.yaml");
        fs::write(&file, "a").unwrap();
        let mut watch = DirectoryWatch::start(dir.path()).unwrap();
        fs::read(&file).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(300), watch.changed()).await.is_err());
    }
}
