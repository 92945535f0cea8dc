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
    // Watching ends when it is dropped.
    _watcher: RecommendedWatcher,
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
        Ok(Self { changes, _watcher: watcher })
    }

    /// Waits for a change, then until the directory has been quiet for a moment.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The watcher is ours and lives as long as we do, so its sender does too.
            return std::future::pending().await;
        }
        let patience = Instant::now() + PATIENCE;
        loop {
            let quiet = (Instant::now() + QUIET).min(patience);
            match timeout_at(quiet, self.changes.recv()).await {
                Ok(_) if Instant::now() < patience => {}
                _ => return,
            }
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
    async fn reading_a_file_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.yaml");
        fs::write(&file, "a").unwrap();
        let mut watch = DirectoryWatch::start(dir.path()).unwrap();
        fs::read(&file).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(300), watch.changed()).await.is_err());
    }
}
