//! The cluster from a Kubernetes API server.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::Timestamp;
use tracing::{error, info, warn};

use super::identify::Identifier;
use crate::model::{ClusterState, Event, Severity};
use crate::watch::kubernetes::{Kind, KubernetesConfig, KubernetesWatch};

/// The kubelet writes a pod's addresses soon after the pod's creation reached this watch; one that was silent for longer
/// may have missed a pod.
const LIVE_WITHIN: Duration = Duration::from_secs(5);

/// A watch on the API server, and what tells pods' interfaces apart.
#[derive(Debug)]
pub(super) struct Cluster {
    watch: KubernetesWatch,
    pub(super) identifier: Identifier,
    pub(super) boot: Timestamp,
}

impl Cluster {
    /// Begins to watch. Does not wait for the API server.
    pub(super) async fn start(config: &KubernetesConfig, node: &str) -> anyhow::Result<Self> {
        let watch = KubernetesWatch::start(config.clone()).await?;
        info!(node, "watching the API server");
        Ok(Self { watch, identifier: Identifier::new(node), boot: boot_time()? })
    }

    /// Waits until something in the cluster has changed.
    pub(super) async fn changed(&mut self) {
        self.watch.changed().await;
    }

    /// Takes what has changed, and says what was found.
    pub(super) fn take(&mut self, state: &ClusterState) -> Vec<Event> {
        let batch = self.watch.take(state);
        for finding in &batch.diagnostics {
            match finding.severity {
                Severity::Error => error!("{finding}"),
                Severity::Warning => warn!("{finding}"),
                Severity::Note => info!("{finding}"),
            }
        }
        let now = Instant::now();
        for event in &batch.events {
            self.identifier.note(event, now);
        }
        batch.events
    }

    /// Whether every kind of object was read whole once.
    pub(super) fn is_synced(&self) -> bool {
        self.watch.is_synced()
    }

    /// Up to when all pods are known, if that is a moment ago.
    pub(super) fn pods_known_at(&self) -> Option<Instant> {
        let heard = self.watch.heard(Kind::Pod).filter(|heard| heard.elapsed() < LIVE_WITHIN);
        heard.filter(|_| self.watch.is_caught_up(Kind::Pod))
    }

    /// How many things were found that are not as they should be, and still are there.
    pub(super) fn findings(&self) -> usize {
        self.watch.findings()
    }

    /// What keeps the watch from knowing the cluster as it is, a line for each kind.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.watch.health().into_iter().filter(|kind| !kind.is_well()).map(|kind| kind.to_string())
    }
}

/// When this machine booted, by its own clock.
fn boot_time() -> anyhow::Result<Timestamp> {
    let stat = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|text| text.trim().parse().ok());
    let seconds = seconds.context("/proc/stat says no boot time (btime)")?;
    Timestamp::from_second(seconds).context("the boot time of /proc/stat")
}
