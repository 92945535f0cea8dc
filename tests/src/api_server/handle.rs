//! The server as tests hold it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use axum::Router;
use npolicy_agent::rig::Namespace;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::connection::{Connections, Door, Peer};
use super::fault::Faults;
use super::kind::Kind;
use super::store::{Key, Snapshot, Store};
use super::target::{Target, Verb};
use super::{Shared, answer, lock, write};

/// A running API server. It ends, with all its connections, when it is dropped.
///
/// # Panics
///
/// What a test does with it panics where an object has no kind that is served, or no name, and where the machine refuses a
/// socket: a test cannot go on then.
pub struct ApiServer {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    places: Mutex<Vec<Place>>,
}

/// Where the server listens.
struct Place {
    /// None: in the network namespace of the test.
    namespace: Option<Namespace>,
    address: SocketAddr,
    /// None while the server is away.
    serving: Option<JoinHandle<()>>,
}

/// A request that came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// What it wanted done.
    pub verb: Verb,
    /// To objects of which kind; none: it was about the server.
    pub kind: Option<Kind>,
    /// `resourceVersion` in the query.
    pub resource_version: String,
    /// Whether it was to go on after a page.
    pub is_continued: bool,
    /// Whether it was a watch that begins with everything there is.
    pub is_streaming: bool,
}

impl Asked {
    pub(super) fn new(target: &Target) -> Self {
        Self {
            verb: target.verb,
            kind: target.resource.as_ref().map(|resource| resource.kind),
            resource_version: target.value("resourceVersion").into(),
            is_continued: !target.value("continue").is_empty(),
            is_streaming: target.is_set("sendInitialEvents"),
        }
    }
}

/// How often watches get bookmarks. A real server sends them once a minute.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(1);

impl ApiServer {
    /// Starts a server that listens on 127.0.0.1, with the namespaces `default` and `kube-system`.
    pub fn start() -> Self {
        let (changed, _) = tokio::sync::watch::channel(());
        let mut store = Store::new();
        for name in ["default", "kube-system"] {
            let mut namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            write::complete_namespace(name, &mut namespace);
            store.put((Kind::Namespace, String::new(), name.into()), namespace);
        }
        let shared = Arc::new(Shared {
            store: Mutex::new(store),
            faults: Faults::new(changed.clone()),
            changed,
            connections: Connections::default(),
            token: Mutex::default(),
            bookmark_interval_ms: u64::try_from(BOOKMARK_INTERVAL.as_millis()).expect("a short time").into(),
            asked: Mutex::default(),
        });
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("api-server").enable_all().build().expect("an event loop");
        let server = Self { shared, runtime: Some(runtime), places: Mutex::default() };
        server.listen(None);
        server
    }

    /// Listens on the loopback of a network namespace, too, and gives the URL to be used there.
    pub fn listen_in(&self, namespace: &Namespace) -> String {
        format!("http://{}", self.listen(Some(namespace)))
    }

    fn listen(&self, namespace: Option<&Namespace>) -> SocketAddr {
        let mut place = Place { namespace: namespace.cloned(), address: ([127, 0, 0, 1], 0).into(), serving: None };
        self.open(&mut place);
        let address = place.address;
        lock(&self.places).push(place);
        address
    }

    /// Opens a listener at a place: at the port it had, if it had one.
    fn open(&self, place: &mut Place) {
        let address = place.address;
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            io::Result::Ok(listener)
        };
        let listener = match &place.namespace {
            None => bind(),
            Some(namespace) => namespace.run(bind).expect("a network namespace"),
        };
        let listener = listener.unwrap_or_else(|error| panic!("listen on {address}: {error}"));
        place.address = listener.local_addr().expect("an address");
        let _entered = self.runtime().enter();
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let door = Door { listener, connections: self.shared.connections.clone() };
        let application = Router::new().fallback(answer).with_state(self.shared.clone());
        let service = application.into_make_service_with_connect_info::<Peer>();
        place.serving = Some(tokio::spawn(async move {
            // It goes on until it is aborted.
            let _ = axum::serve(door, service).await;
        }));
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the event loop must run as long as the server")
    }

    /// The URL in the test's own network namespace.
    pub fn url(&self) -> String {
        format!("http://{}", lock(&self.places)[0].address)
    }

    /// Writes a kubeconfig for the test's own network namespace, with a bearer token if the server takes only one.
    pub fn kubeconfig(&self, path: &Path) {
        self.kubeconfig_for(path, &self.url());
    }

    /// As `kubeconfig`, for another of the server's URLs.
    pub fn kubeconfig_for(&self, path: &Path, url: &str) {
        let token = lock(&self.shared.token).clone();
        let user = token.map_or_else(|| json!({}), |token| json!({"token": token}));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(path, config.to_string()).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// The faults in force.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Creates or replaces an object as it is, status and deletionTimestamp with it; only uid, resourceVersion, generation
    /// and creationTimestamp are filled in where they are missing, and a namespace's finalizer and the label of its name.
    /// Gives the object as it is stored.
    pub fn apply(&self, mut object: Value) -> Arc<Value> {
        let key = key_of(&object);
        if key.0 == Kind::Namespace && object["spec"].is_null() {
            write::complete_namespace(&key.2, &mut object);
        }
        self.shared.change(|store| store.put(key, object))
    }

    /// Changes an object that is there.
    pub fn edit(&self, kind: Kind, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Arc<Value> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.shared.change(|store| {
            let object = store.get(&key).unwrap_or_else(|| panic!("no {} {namespace}/{name}", kind.name()));
            let mut object = (**object).clone();
            edit(&mut object);
            store.put(key, object)
        })
    }

    /// Deletes an object, as a client's request does: one with finalizers, and a namespace, is only marked.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        let key: Key = (kind, namespace.into(), name.into());
        let gone = self.shared.change(|store| write::remove(store, &key));
        gone.unwrap_or_else(|| panic!("no {} {namespace}/{name}", kind.name()));
    }

    /// Ends a namespace: it goes with everything that is still in it.
    pub fn end_namespace(&self, name: &str) {
        self.shared.change(|store| {
            let inside: Vec<Key> = store.objects().keys().filter(|key| key.1 == name).cloned().collect();
            for key in inside {
                store.remove(&key);
            }
            store.remove(&(Kind::Namespace, String::new(), name.into()));
        });
    }

    /// An object as it is now.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.shared.store().get(&(kind, namespace.into(), name.into())).cloned()
    }

    /// Every object of a kind, in the order of lists.
    pub fn objects(&self, kind: Kind) -> Vec<Arc<Value>> {
        let store = self.shared.store();
        store.objects().iter().filter(|(key, _)| key.0 == kind).map(|(_, object)| object.clone()).collect()
    }

    /// The resourceVersion of now.
    pub fn resource_version(&self) -> u64 {
        self.shared.store().revision()
    }

    /// Serves ClusterNetworkPolicies in these versions, the preferred one first; none: as if their CRD were deleted, and
    /// they with it.
    pub fn install_cluster_policies(&self, versions: &[&str]) {
        self.shared.change(|store| store.serve_cluster_policies(versions));
    }

    /// Forgets every change up to now: who asks for an older one gets 410.
    pub fn compact(&self) {
        self.shared.change(Store::compact);
    }

    /// Everything as it is now.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.store().snapshot()
    }

    /// Makes everything what it was, the resourceVersion too, and ends every connection: a restore from a backup.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.shared.change(|store| store.restore(snapshot));
        self.cut_connections();
    }

    /// Takes only requests with this bearer token; none: with any or without. Running watches go on, as they do when a
    /// token expires.
    pub fn require_token(&self, token: Option<&str>) {
        *lock(&self.shared.token) = token.map(str::to_owned);
    }

    /// Sets how often watches get bookmarks, from each one's next bookmark on.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        let interval_ms = u64::try_from(interval.as_millis()).expect("a bookmark interval of less than an age");
        self.shared.bookmark_interval_ms.store(interval_ms, Ordering::Relaxed);
    }

    /// Ends every connection. Clients can connect again at once.
    pub fn cut_connections(&self) {
        self.shared.connections.cut();
    }

    /// Goes away: nobody listens at its ports, and every connection is cut.
    pub fn go_away(&self) {
        for place in lock(&self.places).iter_mut() {
            if let Some(serving) = place.serving.take() {
                serving.abort();
                // The listener is closed when the task is gone.
                while !serving.is_finished() {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        self.cut_connections();
    }

    /// Comes back at the same ports.
    pub fn come_back(&self) {
        for place in lock(&self.places).iter_mut().filter(|place| place.serving.is_none()) {
            self.open(place);
        }
    }

    /// The requests so far, in the order in which they came.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.cut_connections();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn key_of(object: &Value) -> Key {
    let kind = Kind::of(object).unwrap_or_else(|| panic!("no kind that is served: {object}"));
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    assert!(!name.is_empty() && kind.is_namespaced() != namespace.is_empty(), "no name or namespace: {object}");
    (kind, namespace, name)
}
