//! Watching: changes as they happen, one JSON line each.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep, sleep_until};

use super::connection::{Peer, Pipe};
use super::failure::Failure;
use super::fault::Fault;
use super::kind::Kind;
use super::selector::Scope;
use super::store::{Expired, Store};
use super::target::{Resource, Target, Verb};
use super::{Shared, shape::Shape};

/// How long a watch goes on that does not say so itself.
const LONGEST: Duration = Duration::from_secs(1800);

/// A running watch.
struct Watch {
    shared: Arc<Shared>,
    pipe: Pipe,
    kind: Kind,
    version: String,
    shape: Shape,
    scope: Scope,
    takes_bookmarks: bool,
    /// The changes up to here are told.
    position: u64,
}

/// What a watch sends first.
enum Start {
    /// Changes since the position.
    Changes,
    /// Everything there is; then, if `marks_end`, a bookmark that says so.
    Everything { marks_end: bool },
    /// That its position is not kept any more.
    Expired(Failure),
}

/// Answers a watch: at once, with events that follow.
pub(super) fn watch(
    shared: &Arc<Shared>,
    peer: Peer,
    target: &Target,
    resource: &Resource,
) -> Result<Response, Failure> {
    // A watch of one object by its path is one of all with a selector.
    let by_name = resource.name.as_ref().map(|name| format!("metadata.name={name}"));
    let fields = by_name.as_deref().unwrap_or_else(|| target.value("fieldSelector"));
    let scope = Scope::parse(resource.namespace.clone(), target.value("labelSelector"), fields)?;
    let (position, start) = start(&shared.store(), target, resource)?;
    let timeout = target.number("timeoutSeconds")?.map_or(LONGEST, Duration::from_secs);
    let (pipe, body) = Pipe::new(peer);
    let watch = Watch {
        shared: shared.clone(),
        pipe,
        kind: resource.kind,
        version: resource.version.clone(),
        shape: target.shape,
        scope,
        takes_bookmarks: target.is_set("allowWatchBookmarks"),
        position,
    };
    let changed = shared.changed.subscribe();
    tokio::spawn(async move {
        // Nothing is left to do about a watch that broke off.
        let _ = watch.run(start, changed, Instant::now() + timeout).await;
    });
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// The meaning of `resourceVersion` and `sendInitialEvents`, as the API's concepts define them.
fn start(store: &Store, target: &Target, resource: &Resource) -> Result<(u64, Start), Failure> {
    let now = store.revision();
    let asked = target.number("resourceVersion")?.unwrap_or(0);
    let matching = target.value("resourceVersionMatch");
    if !target.value("sendInitialEvents").is_empty() {
        if matching != "NotOlderThan" {
            let why = "Forbidden: resourceVersionMatch must be NotOlderThan where sendInitialEvents is set";
            return Err(Failure::invalid_options(resource.kind, "resourceVersionMatch", why));
        }
        if asked > now {
            return Err(Failure::too_large(asked, now));
        }
        if target.is_set("sendInitialEvents") {
            return Ok((now, Start::Everything { marks_end: true }));
        }
    } else if !matching.is_empty() {
        let why = "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        return Err(Failure::invalid_options(resource.kind, "resourceVersionMatch", why));
    }
    if asked == 0 {
        return Ok((now, Start::Everything { marks_end: false }));
    }
    // A version that has not been reached is waited for, in silence, as a real server does.
    Ok(match store.since(asked) {
        Ok(_) => (asked, Start::Changes),
        Err(Expired(oldest)) => (asked, Start::Expired(Failure::expired(asked, oldest))),
    })
}

impl Watch {
    async fn run(mut self, start: Start, mut changed: Receiver<()>, ends: Instant) -> ControlFlow<()> {
        match start {
            Start::Changes => {}
            Start::Expired(failure) => return self.send("ERROR", &failure.object()).await,
            Start::Everything { marks_end } => self.send_everything(marks_end).await?,
        }
        let mut bookmark = Instant::now() + self.shared.bookmark_interval();
        loop {
            changed.mark_unchanged();
            self.meet_faults().await?;
            if !self.is_withheld() {
                self.send_changes().await?;
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep_until(bookmark) => {
                    self.send_bookmark().await?;
                    bookmark = Instant::now() + self.shared.bookmark_interval();
                }
                () = sleep_until(ends) => return self.send_bookmark().await,
                () = self.pipe.closed() => return ControlFlow::Break(()),
            }
        }
    }

    /// What happens to a running watch without an event.
    async fn meet_faults(&self) -> ControlFlow<()> {
        let fault = self.shared.faults.take(Some(self.kind), Verb::Watch, |fault| {
            matches!(fault, Fault::Status { .. } | Fault::Drop | Fault::Stall).then_some(fault)
        });
        match fault {
            Some(Fault::Status { code, retry_after_s }) => {
                self.send("ERROR", &Failure::injected(code, retry_after_s).object()).await?;
                ControlFlow::Break(())
            }
            Some(Fault::Drop) => self.pipe.cut(),
            Some(Fault::Stall) => self.pipe.stall().await,
            _ => ControlFlow::Continue(()),
        }
    }

    fn is_withheld(&self) -> bool {
        let withholds = |fault| (fault == Fault::BookmarksOnly).then_some(());
        self.shared.faults.take(Some(self.kind), Verb::Watch, withholds).is_some()
    }

    async fn send_everything(&mut self, marks_end: bool) -> ControlFlow<()> {
        let (revision, objects) = {
            let store = self.shared.store();
            let objects = store.objects().iter().filter(|(key, object)| key.0 == self.kind && self.scope.holds(object));
            (store.revision(), objects.map(|(_, object)| object.clone()).collect::<Vec<_>>())
        };
        self.position = revision;
        for object in objects {
            self.send("ADDED", &self.shape.one(self.kind, &self.version, &object)).await?;
        }
        if marks_end && self.takes_bookmarks {
            self.send("BOOKMARK", &self.shape.bookmark(self.kind, &self.version, revision, true)).await?;
        }
        ControlFlow::Continue(())
    }

    async fn send_changes(&mut self) -> ControlFlow<()> {
        let has_changes = self.pending().is_ok_and(|(changes, ..)| !changes.is_empty());
        let hold = |fault| if let Fault::Hold { by } = fault { Some(by) } else { None };
        if has_changes && let Some(by) = self.shared.faults.take(Some(self.kind), Verb::Watch, hold) {
            sleep(by).await;
        }
        let (changes, position, is_served) = match self.pending() {
            Ok(pending) => pending,
            Err(failure) => {
                self.send("ERROR", &failure.object()).await?;
                return ControlFlow::Break(());
            }
        };
        for (kind, object) in changes {
            self.send(kind, &object).await?;
        }
        self.position = position;
        // Its CRD is gone.
        if is_served { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// The events of the changes after the position, what the position is after them, and whether the kind is still served.
    #[expect(clippy::type_complexity, reason = "three answers of one look at the store")]
    fn pending(&self) -> Result<(Vec<(&'static str, Value)>, u64, bool), Failure> {
        let store = self.shared.store();
        let changes = store.since(self.position).map_err(|Expired(oldest)| Failure::expired(self.position, oldest))?;
        let mut events = Vec::new();
        for change in changes.iter().filter(|change| change.key.0 == self.kind) {
            let before = change.before.as_deref().filter(|object| self.scope.holds(object));
            let after = change.after.as_deref().filter(|object| self.scope.holds(object));
            let (kind, object) = match (before, after) {
                (None, None) => continue,
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                (Some(before), None) => ("DELETED", before),
            };
            let mut object = self.shape.one(self.kind, &self.version, object);
            // An object that is gone, or does not match any more, is told with the version at which it went.
            if self.shape != Shape::Table {
                object["metadata"]["resourceVersion"] = change.revision.to_string().into();
            }
            events.push((kind, object));
        }
        let is_served = store.versions(self.kind).contains(&self.version.as_str());
        Ok((events, store.revision().max(self.position), is_served))
    }

    async fn send_bookmark(&self) -> ControlFlow<()> {
        // After a restore from a backup a watch may be ahead of everything.
        if !self.takes_bookmarks || self.position > self.shared.store().revision() {
            return ControlFlow::Continue(());
        }
        self.send("BOOKMARK", &self.shape.bookmark(self.kind, &self.version, self.position, false)).await
    }

    async fn send(&self, kind: &str, object: &Value) -> ControlFlow<()> {
        let fault = self.shared.faults.take(Some(self.kind), Verb::Watch, |fault| fault.is_in_body().then_some(fault));
        let mut line = json!({"type": kind, "object": object}).to_string().into_bytes();
        line.push(b'\n');
        self.pipe.send(line, fault).await
    }
}
