//! Says when a directory of manifests changed.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::manifests::is_manifest;

/// Editors replace files and tools write several: wait until it has been this quiet, so that a half-written set is not
/// read.
const QUIET: Duration = Duration::from_millis(20);
/// But never longer than this.
const PATIENCE: Duration = Duration::from_millis(200);

/// A file that is open for writing is half a file: wait for its end this long.
const WRITER_PATIENCE: Duration = Duration::from_secs(10);

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
    path: PathBuf,
    /// Device and inode of what is watched.
    identity: Option<(u64, u64)>,
    /// Files that somebody has changed and not closed yet.
    open: Arc<Mutex<BTreeSet<PathBuf>>>,
    // Watching ends when it is dropped.
    _watcher: RecommendedWatcher,
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    quiet: Instant,
    patience: Instant,
    writer: Instant,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
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
        let open = Arc::new(Mutex::new(BTreeSet::new()));
        let writing = open.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error (a lost event among them) may hide a change, so it counts as one; reading is not a change.
            let mut is_change = true;
            if let Ok(event) = &event {
                let mut writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
                match event.kind {
                    EventKind::Modify(ModifyKind::Data(_)) => {
                        writing.extend(event.paths.iter().filter(|path| is_manifest(path)).cloned());
                    }
                    EventKind::Access(AccessKind::Close(AccessMode::Write))
                    | EventKind::Remove(_)
                    | EventKind::Modify(ModifyKind::Name(_)) => writing.retain(|path| !event.paths.contains(path)),
                    EventKind::Access(_) => is_change = false,
                    _ => {}
                }
            }
            if is_change {
                let _full_or_closed = sender.try_send(());
            }
        })
        .map_err(failed)?;
        watcher.watch(path, RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(Self { changes, burst: None, path: path.to_owned(), identity: identity(path), open, _watcher: watcher })
    }

    /// Whether the path leads to another directory than the one that is watched, or to none.
    pub fn is_stale(&self) -> bool {
        identity(&self.path) != self.identity
    }

    fn is_being_written(&self) -> bool {
        !self.open.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
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
                self.burst =
                    Some(Burst { quiet: now + QUIET, patience: now + PATIENCE, writer: now + WRITER_PATIENCE });
                continue;
            };
            let deadline = burst.quiet.min(burst.patience);
            let more = timeout_at(deadline, self.changes.recv()).await;
            let now = Instant::now();
            let is_over = more.is_err() || now >= burst.patience;
            if is_over && (now >= burst.writer || !self.is_being_written()) {
                self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
                self.burst = None;
                return;
            }
            let patience = if is_over { now + PATIENCE } else { burst.patience };
            self.burst = Some(Burst { quiet: now + QUIET, patience, ..burst });
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
    async fn a_file_that_is_still_being_written_is_waited_for() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let mut watch = DirectoryWatch::start(dir.path()).unwrap();
        let mut file = fs::File::create(dir.path().join("policy.yaml")).unwrap();
        file.write_all(b"kind: NetworkPolicy").unwrap();
        let soon = PATIENCE + Duration::from_millis(300);
        assert!(tokio::time::timeout(soon, watch.changed()).await.is_err(), "half a file is read");
        drop(file);
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.expect("the whole file");
    }

    #[tokio::test]
    async fn another_directory_in_its_place_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("manifests");
        fs::create_dir(&dir).unwrap();
        let watch = DirectoryWatch::start(&dir).unwrap();
        assert!(!watch.is_stale());
        fs::rename(&dir, parent.path().join("old")).unwrap();
        assert!(watch.is_stale());
        fs::create_dir(&dir).unwrap();
        assert!(watch.is_stale());
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
