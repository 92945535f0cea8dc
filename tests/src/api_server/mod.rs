//! A Kubernetes API server in the test's own process, with faults on demand: for what a real one cannot be made to do.
//!
//! ```text
//! client --HTTP--> Door -> answer -> Target -> faults? -> read, watch, write, discovery -> Store
//!                                                                                            ^
//! test --apply, delete, compact, restore, end_namespace -------------------------------------+
//! ```
//! Objects are kept as JSON in memory under one resourceVersion for all kinds, each change since the last compaction with
//! them: so pages, old lists and watches are of one moment. It speaks plain HTTP over loopback, in any network namespace
//! that it is told to listen in. It does what clients can tell a server by: pages with `limit` and `continue`, lists and
//! watches by `resourceVersion`, bookmarks, streaming lists, metadata alone, tables, 410 after a compaction, conflicts, the
//! four forms of patches, status and finalizers. It checks no schema and knows no roles: [`Faults`] refuse what is to be
//! refused.

mod apply;
mod connection;
mod discovery;
mod failure;
mod fault;
mod handle;
mod kind;
mod patch;
mod read;
mod selector;
mod shape;
mod store;
mod target;
mod watch;
mod write;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::{Value, json};

use connection::{Connections, Peer, Pipe};
use failure::Failure;
use store::Store;
use target::{Resource, Target};

pub use fault::{Fault, FaultId, Faults, Injection, Schedule, Scope};
pub use handle::{ApiServer, Asked};
pub use kind::Kind;
pub use store::Snapshot;
pub use target::Verb;

/// What all connections of a server share.
struct Shared {
    store: Mutex<Store>,
    faults: Faults,
    /// Wakes every watch.
    changed: tokio::sync::watch::Sender<()>,
    connections: Connections,
    /// The bearer token that requests must have, if any.
    token: Mutex<Option<String>>,
    bookmark_interval_ms: AtomicU64,
    asked: Mutex<Vec<Asked>>,
}

/// The largest body of a request. A real server takes 3 MiB.
const LARGEST_BODY: usize = 3 << 20;

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn bookmark_interval(&self) -> Duration {
        Duration::from_millis(self.bookmark_interval_ms.load(Ordering::Relaxed))
    }

    /// Changes objects, and wakes every watch.
    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store());
        self.changed.send_replace(());
        result
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request.
async fn answer(State(shared): State<Arc<Shared>>, ConnectInfo(peer): ConnectInfo<Peer>, request: Request) -> Response {
    match try_answer(&shared, peer, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn try_answer(shared: &Arc<Shared>, peer: Peer, request: Request) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let target = Target::parse(&head)?;
    let kind = target.resource.as_ref().map(|resource| resource.kind);
    lock(&shared.asked).push(Asked::new(&target));
    if let Some(token) = &*lock(&shared.token) {
        let given = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        if given != Some(&format!("Bearer {token}")) {
            return Err(Failure::unauthorized());
        }
    }
    let asks_for_streaming = target.verb == Verb::Watch && target.is_set("sendInitialEvents");
    let fault = shared.faults.take(kind, target.verb, |fault| match fault {
        Fault::Status { .. } | Fault::Drop | Fault::Stall => Some(fault),
        Fault::RefuseStreaming if asks_for_streaming => Some(fault),
        _ => None,
    });
    match fault {
        Some(Fault::Status { code, retry_after_s }) => return Err(Failure::injected(code, retry_after_s)),
        Some(Fault::RefuseStreaming) => {
            let why =
                "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Failure::invalid_options(kind.expect("a watch must have a kind"), "sendInitialEvents", why));
        }
        Some(Fault::Drop) => peer.cut(),
        _ => {}
    }
    if fault.is_some() {
        // The client's end, or that of the server, ends this too.
        return std::future::pending().await;
    }
    let Some(resource) = &target.resource else { return Ok(about_server(shared, &target.path)) };
    if !shared.store().versions(resource.kind).contains(&resource.version.as_str()) {
        return Ok(no_such_path());
    }
    if target.verb == Verb::Watch {
        return watch::watch(shared, peer, &target, resource);
    }
    let body = to_bytes(body, LARGEST_BODY).await.map_err(|error| Failure::bad_request(error.to_string()))?;
    let (code, object) = about_objects(shared, &target, resource, &body)?;
    let fault = shared.faults.take(kind, target.verb, |fault| fault.is_in_body().then_some(fault));
    match fault {
        // Only events can come twice.
        None | Some(Fault::Duplicate) => Ok((code, Json(object)).into_response()),
        Some(_) => Ok((code, [(CONTENT_TYPE, "application/json")], faulty(peer, object, fault)).into_response()),
    }
}

/// A body to which a fault happens.
fn faulty(peer: Peer, object: Value, fault: Option<Fault>) -> Body {
    let (pipe, body) = Pipe::new(peer);
    tokio::spawn(async move {
        // Nothing follows in any case.
        let _ = pipe.send(object.to_string().into_bytes(), fault).await;
    });
    body
}

/// Does what a request wants with objects; gives the status and the answer.
fn about_objects(
    shared: &Shared,
    target: &Target,
    resource: &Resource,
    body: &[u8],
) -> Result<(StatusCode, Value), Failure> {
    let whole = |object: &Value| shape::Shape::Whole.one(resource.kind, &resource.version, object);
    let written = |written: write::Written| {
        let code = if written.is_new { StatusCode::CREATED } else { StatusCode::OK };
        (code, whole(&written.object))
    };
    let ok = |object| Ok((StatusCode::OK, object));
    match target.verb {
        Verb::Get => ok(read::get(&shared.store(), target, resource)?),
        Verb::List => ok(read::list(&shared.store(), &shared.faults, target, resource)?),
        Verb::Create => shared.change(|store| write::create(store, target, resource, body)).map(written),
        Verb::Update => shared.change(|store| write::update(store, target, resource, body)).map(written),
        Verb::Patch => shared.change(|store| write::patch(store, target, resource, body)).map(written),
        Verb::Delete if resource.name.is_some() => {
            let object = shared.change(|store| write::delete(store, target, resource, body))?;
            let details = json!({
                "name": resource.name, "group": resource.kind.group(), "kind": resource.kind.plural(),
                "uid": object["metadata"]["uid"],
            });
            // An object that is still there is shown; of one that is gone there is only word.
            match object["metadata"]["deletionTimestamp"].is_null() {
                false => ok(whole(&object)),
                true => ok(json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
                })),
            }
        }
        Verb::Delete => {
            let objects = shared.change(|store| write::delete_all(store, target, resource))?;
            let metadata = json!({"resourceVersion": shared.store().revision().to_string()});
            let objects = objects.iter().map(|object| &**object);
            ok(shape::Shape::Whole.list(resource.kind, &resource.version, objects, metadata))
        }
        Verb::Watch | Verb::Discover => Err(Failure::method_not_allowed()),
    }
}

fn about_server(shared: &Shared, path: &[String]) -> Response {
    if matches!(path.first().map(String::as_str), Some("healthz" | "readyz" | "livez")) {
        return "ok".into_response();
    }
    match discovery::discover(&shared.store(), path) {
        Some(object) => Json(object).into_response(),
        None => no_such_path(),
    }
}

/// What a server says about a path that it knows nothing of: a kind without its CRD, too.
fn no_such_path() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}
