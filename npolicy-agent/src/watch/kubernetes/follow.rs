//! One kind, followed for ever: a list, then a watch from there on, and again whatever happens.
//!
//! ```text
//!            +--> streaming list --(refused)--> list by pages --+
//! discovery -+        |                                         +--> watch --(ended, broken off)--> watch again
//!  (custom)  |        +----------------- whole -----------------+      |
//!            +<---------------------- expired (410), does not fit -----+
//! ```
//! Each kind has its own: one that stalls or is refused holds up no other.

use std::time::Duration;

use kube::Client;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use super::backoff::{Backoff, between};
use super::health::Board;
use super::kind::{CLUSTER_POLICY_GROUP, CLUSTER_POLICY_RESOURCE, Kind};
use super::request::{Cause, Failure, Lines, Timing, get, get_all, readable, rule_for};
use super::update::{Observed, Update, key_of};
use super::wire::{Line, ends_list, parse_line, parse_page, text};
use crate::watch::objects::{CLUSTER_POLICY_VERSIONS, Tree};

/// A watch that ends sooner, and without a word, has not worked.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// Nobody takes updates any more.
pub(super) struct Closed;

/// Why a step ended early.
enum Stop {
    Failed(Failure),
    Closed,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Closed> for Stop {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

/// Follows one kind.
pub(super) struct Follower {
    client: Client,
    kind: Kind,
    timing: Timing,
    updates: mpsc::Sender<Update>,
    board: Board,
    /// Where the objects are; `None`: discovery has not said it yet.
    path: Option<String>,
    /// The resource version up to which everything was heard; `None`: there must be a list first.
    position: Option<String>,
    /// Whether the server may have gone back behind the position.
    is_doubted: bool,
    /// Whether the server has refused to stream a list.
    pages_only: bool,
    /// Whether there ever was an object: then an empty list is asked for twice.
    had_objects: bool,
    /// Whether [`Update::Stale`] was sent, and nothing since that takes it back.
    is_stale: bool,
    /// Whether this step did what it is for: a list alone does not, if no watch follows.
    has_worked: bool,
    /// How often it was said in a row that there is no such kind; after the second time it says nothing new.
    absences: u8,
    /// Whether [`Update::Unreadable`] was sent.
    is_unreadable: bool,
}

impl Follower {
    pub(super) fn new(client: Client, kind: Kind, timing: Timing, updates: mpsc::Sender<Update>, board: Board) -> Self {
        Self {
            client,
            kind,
            timing,
            updates,
            board,
            path: kind.path().map(str::to_owned),
            position: None,
            is_doubted: false,
            pages_only: false,
            had_objects: false,
            is_stale: false,
            has_worked: false,
            absences: 0,
            is_unreadable: false,
        }
    }

    /// Runs until nobody takes updates any more.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.timing.retry.0, self.timing.retry.1);
        loop {
            self.has_worked = false;
            let result = self.step().await;
            if self.has_worked {
                backoff.reset();
            }
            let wait = match result {
                Ok(wait) => wait,
                Err(Stop::Closed) => return,
                Err(Stop::Failed(failure)) => {
                    if self.fail(&failure).await.is_err() {
                        return;
                    }
                    let least = failure.retry_after.map(|least| between(least, least + self.timing.retry.0));
                    Some(backoff.wait().max(least.unwrap_or_default()))
                }
            };
            if let Some(wait) = wait {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = self.updates.closed() => return,
                }
            }
        }
    }

    /// Does what is next; says how long to wait after it, if it went well.
    async fn step(&mut self) -> Result<Option<Duration>, Stop> {
        let Some(path) = self.path.clone() else {
            return match self.discover().await? {
                Some(path) => {
                    self.path = Some(path);
                    Ok(None)
                }
                None => {
                    self.board.set_absent(self.kind, true);
                    self.hear();
                    self.has_worked = true;
                    if self.absences < 2 {
                        self.absences += 1;
                        self.send(Update::Absent(self.kind)).await?;
                    }
                    let wait = self.timing.look_again;
                    Ok(Some(between(wait / 2, wait)))
                }
            };
        };
        if self.position.is_some() {
            return self.watch(&path).await;
        }
        if !self.pages_only {
            match self.stream(&path).await {
                // Without what it takes, some servers refuse, and some answer with an error of their own.
                Err(Stop::Failed(failure)) if matches!(failure.cause, Cause::Refused | Cause::Server) => {
                    debug!(kind = %self.kind, "{failure}; listing by pages");
                    self.pages_only = failure.cause == Cause::Refused;
                }
                other => return other,
            }
        }
        self.list(&path).await?;
        self.pages_only = true;
        Ok(None)
    }

    /// Says what is wrong, once, and decides where to go on.
    async fn fail(&mut self, failure: &Failure) -> Result<(), Closed> {
        match failure.cause {
            // The server may have been replaced by one that takes less, or by one that never had what was watched.
            Cause::Expired | Cause::Unfit | Cause::Refused => self.position = None,
            Cause::NotFound => {
                self.position = None;
                self.path = self.kind.path().map(str::to_owned);
            }
            // A server that is restored breaks off every watch.
            Cause::Silent | Cause::Other => self.is_doubted = true,
            Cause::Forbidden | Cause::Server => {}
        }
        // After a long break a server has forgotten what came in between, and a custom resource may go.
        // If a silent watch was a dead one, the next does not come up, and that is told.
        let is_usual = matches!(failure.cause, Cause::Expired | Cause::Silent)
            || (failure.cause == Cause::NotFound && self.path.is_none());
        if is_usual {
            debug!(kind = %self.kind, "{failure}");
        } else {
            let message = match failure.cause {
                Cause::Forbidden => {
                    format!("{failure}; the agent's ClusterRole needs the rule {}", rule_for(self.kind))
                }
                _ => failure.message.clone(),
            };
            if self.board.complain(self.kind, &message) {
                warn!(kind = %self.kind, "{message}; trying again, what is known stays in force");
            }
        }
        self.grow_stale().await
    }

    /// Says, once, that what was heard may be old.
    async fn grow_stale(&mut self) -> Result<(), Closed> {
        if std::mem::replace(&mut self.is_stale, true) { Ok(()) } else { self.send(Update::Stale(self.kind)).await }
    }

    /// Asks which version of the custom resource there is. `None`: none.
    async fn discover(&mut self) -> Result<Option<String>, Stop> {
        #[derive(Deserialize)]
        struct Group {
            versions: Vec<Version>,
        }
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        #[derive(Deserialize)]
        struct Resources {
            resources: Vec<Resource>,
        }
        #[derive(Deserialize)]
        struct Resource {
            name: String,
        }
        let unreadable = |path: &str, error: serde_json::Error| Failure::new(Cause::Other, format!("{path}: {error}"));
        let path = format!("/apis/{CLUSTER_POLICY_GROUP}");
        let group: Group = match get_all(&self.client, &path, &self.timing).await {
            Ok(body) => serde_json::from_slice(&body).map_err(|error| unreadable(&path, error))?,
            Err(failure) if failure.cause == Cause::NotFound => return Ok(None),
            Err(failure) => return Err(failure.into()),
        };
        let mut others = Vec::new();
        let known = CLUSTER_POLICY_VERSIONS.iter().filter_map(|version| version.split('/').nth(1));
        let served = |version: &str| group.versions.iter().any(|served| served.version == version);
        let unknown =
            |version: &&str| !CLUSTER_POLICY_VERSIONS.iter().any(|known| known.ends_with(&format!("/{version}")));
        let rest = group.versions.iter().map(|served| &*served.version).filter(unknown);
        for (version, is_known) in known
            .filter(|version| served(version))
            .map(|version| (version, true))
            .chain(rest.map(|version| (version, false)))
        {
            if !version.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
                continue;
            }
            let path = format!("/apis/{CLUSTER_POLICY_GROUP}/{version}");
            let resources: Resources = match get_all(&self.client, &path, &self.timing).await {
                Ok(body) => serde_json::from_slice(&body).map_err(|error| unreadable(&path, error))?,
                Err(failure) if failure.cause == Cause::NotFound => continue,
                Err(failure) => return Err(failure.into()),
            };
            if !resources.resources.iter().any(|resource| resource.name == CLUSTER_POLICY_RESOURCE) {
                continue;
            }
            if is_known {
                return Ok(Some(format!("{path}/{CLUSTER_POLICY_RESOURCE}")));
            }
            others.push(version);
        }
        if others.is_empty() {
            return Ok(None);
        }
        // There are such policies, and nobody here can say what they mean.
        if !std::mem::replace(&mut self.is_unreadable, true) {
            self.send(Update::Unreadable(self.kind)).await?;
        }
        let message = format!(
            "the API server has ClusterNetworkPolicy in {} alone, expected one of {}; install a newer npolicy",
            others.join(", "),
            CLUSTER_POLICY_VERSIONS.join(", ")
        );
        Err(Failure::new(Cause::Other, message).into())
    }

    /// A list as the beginning of a watch (`sendInitialEvents`, since v1.27).
    async fn stream(&mut self, path: &str) -> Result<Option<Duration>, Stop> {
        // Without a resource version it shows the newest state, not one that some server remembers.
        let query = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        let response = get(&self.client, &self.watch_path(path, query), &self.timing).await?;
        self.send(Update::Listing(self.kind)).await?;
        let mut lines = Lines::new(response);
        let mut objects = 0_usize;
        loop {
            let line = match timeout_at(Instant::now() + self.timing.response, lines.next()).await {
                Ok(line) => line?,
                // A server that does not know the query sends every object and no end.
                Err(_elapsed) => return Err(refused("the list that it streams does not end").into()),
            };
            let Some(line) = line else {
                return Err(Failure::new(Cause::Unfit, "the API server has broken off a list").into());
            };
            match parse_line(line, self.kind).map_err(does_not_fit)? {
                Line::Object(tree) => {
                    objects += 1;
                    self.pass_on(&tree).await?;
                }
                Line::Gone(tree) => self.pass_on_gone(&tree).await?,
                Line::Bookmark(tree) if ends_list(&tree) => {
                    let Some(position) = text(&tree, &["metadata", "resourceVersion"]) else {
                        return Err(refused("the end of the list that it streams has no resourceVersion").into());
                    };
                    self.position = Some(position.to_owned());
                    break;
                }
                Line::Bookmark(_) => {}
                Line::Error(status) => return Err(Failure::from_status(status).into()),
            }
            self.hear();
        }
        self.hear();
        self.end_list(path, objects).await?;
        self.follow(lines).await
    }

    /// A list by pages, all of one state.
    async fn list(&mut self, path: &str) -> Result<(), Stop> {
        self.send(Update::Listing(self.kind)).await?;
        let mut next = String::new();
        let mut objects = 0_usize;
        loop {
            let mut page_path = format!("{path}?limit={}", self.timing.page);
            if !next.is_empty() {
                page_path.push_str("&continue=");
                escape(&next, &mut page_path);
            }
            let page = get_all(&self.client, &page_path, &self.timing).await?;
            let mut read = Vec::new();
            let metadata = parse_page(&page, self.kind, &mut |tree| read.push(Observed::read(&tree, self.kind)))
                .map_err(does_not_fit)?;
            drop(page);
            objects += read.len();
            for observed in read {
                self.pass_on_read(observed).await?;
            }
            self.hear();
            if metadata.next.is_empty() {
                self.position = Some(metadata.resource_version);
                return self.end_list(path, objects).await;
            }
            next = metadata.next;
        }
    }

    /// Says that a list is whole. An empty one where there was something is asked for once more.
    async fn end_list(&mut self, path: &str, objects: usize) -> Result<(), Stop> {
        self.board.set_absent(self.kind, false);
        self.absences = 0;
        self.send(Update::Listed(self.kind)).await?;
        self.is_stale = false;
        if objects > 0 || !self.had_objects {
            return Ok(());
        }
        let position = self.position.take();
        let page = get_all(&self.client, &format!("{path}?limit=1"), &self.timing).await?;
        let mut again = 0;
        parse_page(&page, self.kind, &mut |_| again += 1).map_err(does_not_fit)?;
        if again > 0 {
            return Err(Failure::new(Cause::Unfit, "the API server says of one list that it is empty and not").into());
        }
        self.hear();
        self.send(Update::Listing(self.kind)).await?;
        self.send(Update::Listed(self.kind)).await?;
        self.had_objects = false;
        self.position = position;
        Ok(())
    }

    /// A watch from where the last one ended.
    async fn watch(&mut self, path: &str) -> Result<Option<Duration>, Stop> {
        let position = self.position.as_deref().unwrap_or_default();
        let mut query = String::from("&resourceVersion=");
        escape(position, &mut query);
        if self.is_doubted {
            // To a watch that is ahead of it, a server that was restored from a backup says nothing. It refuses a list that is
            // to be as new as that (`storage/errors.go`, v1.33), which the smallest one shows.
            get_all(&self.client, &format!("{path}?limit=1&resourceVersionMatch=NotOlderThan{query}"), &self.timing)
                .await?;
            self.is_doubted = false;
        }
        let response = get(&self.client, &self.watch_path(path, &query), &self.timing).await?;
        self.follow(Lines::new(response)).await
    }

    /// Passes on what a watch says until it ends.
    async fn follow(&mut self, mut lines: Lines) -> Result<Option<Duration>, Stop> {
        let opened = Instant::now();
        self.hear();
        let mut heard = opened;
        let mut has_lines = false;
        loop {
            let settled = opened + self.timing.settle;
            let silent = heard + self.timing.silence;
            let until = if self.is_stale { settled.min(silent) } else { silent };
            let line = match timeout_at(until, lines.next()).await {
                Ok(line) => line?,
                Err(_elapsed) if self.is_stale && until == settled => {
                    self.is_stale = false;
                    self.send(Update::Current(self.kind)).await?;
                    continue;
                }
                Err(_elapsed) => {
                    let message = format!("nothing was heard for {:?}, not even a bookmark", self.timing.silence);
                    return Err(Failure::new(Cause::Silent, message).into());
                }
            };
            let Some(line) = line else {
                // A server ends each watch after a while.
                if !has_lines && opened.elapsed() < SHORTEST_WATCH {
                    return Err(Failure::new(Cause::Other, "the API server ends each watch at once").into());
                }
                self.has_worked = true;
                // Until the next one is up, a namespace may begin to be deleted, and policies with it; and pods may come.
                if matches!(self.kind, Kind::Namespace | Kind::Pod) {
                    self.grow_stale().await?;
                }
                return Ok(None);
            };
            has_lines = true;
            self.has_worked = true;
            let (tree, gone) = match parse_line(line, self.kind).map_err(does_not_fit)? {
                Line::Object(tree) => (tree, Some(false)),
                Line::Gone(tree) => (tree, Some(true)),
                Line::Bookmark(tree) => (tree, None),
                Line::Error(status) => return Err(Failure::from_status(status).into()),
            };
            self.advance(&tree)?;
            match gone {
                Some(false) => self.pass_on(&tree).await?,
                Some(true) => self.pass_on_gone(&tree).await?,
                None => {}
            }
            heard = Instant::now();
            self.hear();
        }
    }

    /// Notes how far the watch has come. It never goes back, unless the server's data does.
    fn advance(&mut self, tree: &Tree) -> Result<(), Failure> {
        let Some(version) = text(tree, &["metadata", "resourceVersion"]) else {
            return Err(Failure::new(Cause::Unfit, "the API server sends an object without resourceVersion"));
        };
        // A version that is no number has no order; then it is only remembered.
        let number = |version: &str| version.parse::<u64>().ok();
        if let (Some(last), Some(now)) = (self.position.as_deref().and_then(number), number(version))
            && now < last
        {
            let message = format!("the API server went back from resourceVersion {last} to {now}");
            return Err(Failure::new(Cause::Unfit, message));
        }
        if self.position.as_deref() != Some(version) {
            self.position = Some(version.to_owned());
        }
        Ok(())
    }

    async fn pass_on(&mut self, tree: &Tree) -> Result<(), Closed> {
        self.pass_on_read(Observed::read(tree, self.kind)).await
    }

    async fn pass_on_read(&mut self, observed: Result<Observed, String>) -> Result<(), Closed> {
        self.had_objects = true;
        match observed {
            Ok(observed) => self.send(Update::Object(Box::new(observed))).await,
            Err(problem) => {
                warn!(kind = %self.kind, "an object of the API server is left out: {problem}");
                Ok(())
            }
        }
    }

    async fn pass_on_gone(&mut self, tree: &Tree) -> Result<(), Closed> {
        match key_of(tree, self.kind) {
            Some(key) => self.send(Update::Gone(key)).await,
            None => Ok(()),
        }
    }

    async fn send(&self, update: Update) -> Result<(), Closed> {
        self.updates.send(update).await.map_err(|_closed| Closed)
    }

    /// The server speaks.
    fn hear(&self) {
        if let Some(trouble) = self.board.hear(self.kind) {
            info!(kind = %self.kind, after = ?trouble.since.elapsed(), "the API server is heard again");
        }
    }

    fn watch_path(&self, path: &str, query: &str) -> String {
        let (least, most) = self.timing.watch_seconds;
        // Not all watches are to end at one moment.
        let seconds = between(Duration::from_secs(least), Duration::from_secs(most)).as_secs();
        format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}{query}")
    }
}

fn refused(message: &str) -> Failure {
    Failure::new(Cause::Refused, format!("the API server cannot stream: {message}"))
}

/// After what cannot be read, nobody knows what was missed.
fn does_not_fit(error: serde_json::Error) -> Failure {
    Failure::new(
        Cause::Unfit,
        format!("the API server sends something else than expected: {}", readable(&error.to_string())),
    )
}

/// Adds a value to a query, all but letters, digits and `-._~` escaped.
fn escape(value: &str, query: &mut String) {
    use std::fmt::Write;
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => query.push(char::from(byte)),
            _ => write!(query, "%{byte:02X}").expect("writing to a string"),
        }
    }
}
