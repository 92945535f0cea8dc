//! Objects from an API server: every kind that bears on policy, listed once and watched from there on.
//!
//! ```text
//! API server --> follow (one task a kind) --> updates --> assemble --> Batch --> model
//!                  | reads JSON into a pruned tree,         | pure: what is new,
//!                  | that into a value of the model         | relative to a state
//!                  +--> board --> KindHealth
//! ```
//!
//! Nothing is ever taken away because the server cannot be asked: the last state stays, however long, and
//! [`KubernetesWatch::health`] tells since when. All times are those of a monotonic clock.

mod assemble;
mod backoff;
mod config;
mod follow;
mod health;
mod kind;
mod prune;
mod request;
mod update;
mod wire;

#[cfg(test)]
mod tests;

use std::time::Instant;

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::info;

pub use assemble::Batch;
pub use config::{KubernetesConfig, KubernetesError};
pub use health::{KindHealth, Trouble};
pub use kind::Kind;

use assemble::Assembler;
use follow::Follower;
use health::{Board, Notice};
use request::Timing;
use update::Update;

/// Updates that may wait for whoever takes them; the watches wait when there are more. Some hundred bytes each.
const WAITING_UPDATES: usize = 8192;

/// The watches of every kind. They end when it is dropped.
pub struct KubernetesWatch {
    updates: mpsc::Receiver<Update>,
    /// Taken from the channel and not from here yet.
    waiting: Vec<Update>,
    assembler: Assembler,
    board: Board,
    followers: JoinSet<()>,
}

impl KubernetesWatch {
    /// Starts to watch. Does not wait for the API server: one that does not answer is asked again for ever, and
    /// [`KubernetesWatch::health`] says so.
    ///
    /// # Errors
    /// If there is no configuration that leads to a server: a kubeconfig that cannot be read or has no such context, or no
    /// environment of a pod.
    pub async fn start(config: KubernetesConfig) -> Result<Self, KubernetesError> {
        let (client, server) = config::client(&config).await?;
        info!(server, "watching the API server");
        Ok(Self::with_client(client, Timing::default()))
    }

    fn with_client(client: Client, timing: Timing) -> Self {
        let (sender, updates) = mpsc::channel(WAITING_UPDATES);
        let board = Board::default();
        let mut followers = JoinSet::new();
        for kind in Kind::ALL {
            followers.spawn(Follower::new(client.clone(), kind, timing, sender.clone(), board.clone()).run());
        }
        Self { updates, waiting: Vec::new(), assembler: Assembler::default(), board, followers }
    }

    /// Waits until [`KubernetesWatch::take`] has something to look at. May be given up at any time and called again.
    pub async fn changed(&mut self) {
        if self.waiting.is_empty() {
            tokio::select! {
                Some(update) = self.updates.recv() => self.waiting.push(update),
                // Watches go on for ever. One that has panicked would leave its kind as it is, and nobody would know.
                Some(Err(ended)) = self.followers.join_next() => panic!("a watch must not end: {ended}"),
                else => std::future::pending().await,
            }
        }
    }

    /// Everything that was heard until now, as changes of a state. The changes of the batch before must have been made to
    /// it. Does not wait.
    pub fn take(&mut self, state: &crate::model::ClusterState) -> Batch {
        let mut updates = std::mem::take(&mut self.waiting);
        while updates.len() < WAITING_UPDATES
            && let Ok(update) = self.updates.try_recv()
        {
            updates.push(update);
        }
        self.assembler.assemble(state, updates)
    }

    /// Whether every kind was listed whole once, or is known to be absent, and batches have said so.
    pub fn is_synced(&self) -> bool {
        self.assembler.is_synced()
    }

    /// How many findings there are in objects that are there.
    pub fn findings(&self) -> usize {
        self.assembler.findings()
    }

    /// How each watch is doing, in the order of [`Kind::ALL`]. Each prints as one line.
    pub fn health(&self) -> Vec<KindHealth> {
        let of = |kind| {
            let Notice { heard, is_absent, trouble } = self.board.notice(kind);
            KindHealth { kind, is_synced: self.assembler.has_synced(kind), is_absent, heard, trouble }
        };
        Kind::ALL.into_iter().map(of).collect()
    }

    /// Whether batches have told all that was heard of a kind, and nothing of it is still to come: no list is under way, and
    /// no watch has to be made up for.
    pub fn is_caught_up(&self, kind: Kind) -> bool {
        self.waiting.is_empty() && self.updates.is_empty() && self.assembler.is_caught_up(kind)
    }

    /// When the API server was last heard of a kind; `None`: never.
    pub fn heard(&self, kind: Kind) -> Option<Instant> {
        self.board.notice(kind).heard
    }
}

impl std::fmt::Debug for KubernetesWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesWatch").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}
