//! The cluster from a directory of manifests.

use std::path::PathBuf;

use tracing::{error, info, warn};

use super::chain;
use crate::model::{Event, Severity};
use crate::watch::directory::DirectoryWatch;
use crate::watch::manifests::Manifests;

/// A directory of manifests, and what was read from it.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    directory: DirectoryWatch,
    pub(super) manifests: Manifests,
    /// Whether the directory was gone when it was last looked for: that is said once.
    is_gone: bool,
    /// Whether it is to be read again although nothing in it may change any more.
    pub(super) must_read: bool,
}

impl Files {
    /// Reads everything once.
    pub(super) fn start(path: PathBuf) -> anyhow::Result<Self> {
        anyhow::ensure!(
            path.is_dir(),
            "--manifests {}: no such directory (a file does not do); expected the one that holds the YAML files to enforce",
            path.display()
        );
        let directory = DirectoryWatch::start(&path)?;
        let manifests = Manifests::read(std::slice::from_ref(&path))?;
        report_findings(&manifests, &Manifests::default());
        Ok(Self { path, directory, manifests, is_gone: false, must_read: false })
    }

    /// Waits until something in the directory has changed.
    pub(super) async fn changed(&mut self) {
        self.directory.changed().await;
    }

    /// Whether every document could be read, and there was one.
    pub(super) fn is_certain(&self) -> bool {
        self.manifests.is_certain() && self.manifests.has_files()
    }

    /// Reads the manifests again; returns what they change. `None`: what was read before stays in force, since now nothing
    /// can be read, or since nothing is there: nobody says "no policy" by taking the pods and nodes away with it.
    pub(super) fn read(&mut self, is_waiting: bool) -> Option<Vec<Event>> {
        self.must_read = false;
        let reading = match Manifests::read(std::slice::from_ref(&self.path)) {
            Ok(reading) if !reading.has_files() && (self.manifests.has_files() || is_waiting) => {
                warn!(
                    directory = %self.path.display(),
                    "the directory holds no manifests any more; the last reading stays in force"
                );
                return None;
            }
            Ok(reading) => reading.or_last_good(&self.manifests),
            Err(error) => {
                warn!(error = chain(&error), "cannot read the manifests; the last reading stays in force");
                self.must_read = true;
                return None;
            }
        };
        self.must_read = reading.was_refused();
        report_findings(&reading, &self.manifests);
        let events = reading.events_since(&self.manifests);
        self.manifests = reading;
        Some(events)
    }

    /// Looks whether the directory is still the one that is watched. Returns whether another one is to be read.
    pub(super) fn verify(&mut self) -> bool {
        let was_gone = std::mem::replace(&mut self.is_gone, false);
        if !self.directory.is_stale() {
            return false;
        }
        match DirectoryWatch::start(&self.path) {
            Ok(directory) => {
                warn!("the manifests' directory is another one; reading it");
                self.directory = directory;
                true
            }
            Err(error) => {
                self.is_gone = true;
                if !was_gone {
                    warn!(error = chain(&error), "the manifests' directory is gone; the last reading stays in force");
                }
                false
            }
        }
    }
}

/// Says what was found in the manifests that was not found before.
fn report_findings(reading: &Manifests, previous: &Manifests) {
    for finding in reading.diagnostics().iter().filter(|finding| !previous.diagnostics().contains(finding)) {
        match finding.severity {
            Severity::Error => error!("{finding}"),
            Severity::Warning => warn!("{finding}"),
            Severity::Note => info!("{finding}"),
        }
    }
}
