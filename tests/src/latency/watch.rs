//! A plain watch: the yardstick. Each kind has one on a connection and thread of its own.

use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::TryStreamExt as _;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, WatchEvent};
use kube::{Client, Config};
use serde::Deserialize;

use super::clock::now_ns;
use super::stage::NAMESPACE;

/// The watch of one kind. Its thread lives as long as the process.
pub(super) struct PlainWatch {
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// An event in our namespace, and when it was read.
struct Seen {
    name: String,
    version: String,
    is_deletion: bool,
    at_ns: u64,
}

/// All that is read of an object.
#[derive(Clone, Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    namespace: String,
    name: String,
    resource_version: String,
}

/// All that is read of a list.
#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
}

/// Which event of an object is meant.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The one that brought this version.
    Version(String),
    /// The object's end.
    Deletion,
}

impl PlainWatch {
    /// Watches what is at `path` in the API, and returns once it has begun.
    ///
    /// # Errors
    ///
    /// The API server does not list the kind.
    pub(super) fn start(config: Config, path: &'static str) -> anyhow::Result<Self> {
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let shared = seen.clone();
        let (started, has_started) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("this process may have one more runtime");
            runtime.block_on(keep_watching(config, path, &shared, &started));
        });
        has_started.recv().expect("it says that it has begun, or why not").with_context(|| format!("watch {path}"))?;
        Ok(Self { seen })
    }

    /// Forgets what was seen until now.
    pub(super) fn clear(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// When the event was read, if it was.
    pub(super) fn seen(&self, object: &str, event: &Event) -> Option<u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_meant = |seen: &&Seen| {
            seen.name == object
                && match event {
                    Event::Version(version) => seen.version == *version && !seen.is_deletion,
                    Event::Deletion => seen.is_deletion,
                }
        };
        seen.iter().find(is_meant).map(|seen| seen.at_ns)
    }
}

/// Lists, watches from there, and begins again where a watch ends.
async fn keep_watching(
    config: Config,
    path: &'static str,
    seen: &Mutex<Vec<Seen>>,
    started: &SyncSender<anyhow::Result<()>>,
) {
    // A client belongs to the runtime that it is made in.
    let client = match Client::try_from(config) {
        Ok(client) => client,
        Err(error) => return drop(started.try_send(Err(error.into()))),
    };
    loop {
        // Only the first answer is waited for. A watch that fails later shows in events that were never seen.
        match watch_once(&client, path, seen, started).await {
            Ok(()) => {}
            Err(error) => drop(started.try_send(Err(error))),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn watch_once(
    client: &Client,
    path: &'static str,
    seen: &Mutex<Vec<Seen>>,
    started: &SyncSender<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let request = Request::new(path);
    let list: List = client.request(request.list(&ListParams::default().limit(1))?).await?;
    let parameters = WatchParams::default().timeout(290);
    let watch = request.watch(&parameters, &list.metadata.resource_version)?;
    let mut events = std::pin::pin!(client.request_events::<Object>(watch).await?);
    drop(started.try_send(Ok(())));
    while let Some(event) = events.try_next().await? {
        let at_ns = now_ns();
        let (object, is_deletion) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => bail!("{status}"),
        };
        let Metadata { namespace, name, resource_version: version } = object.metadata;
        if namespace == NAMESPACE {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(Seen { name, version, is_deletion, at_ns });
        }
    }
    Ok(())
}
