//! Faults on demand: what goes wrong, for which kinds and verbs, and how often.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::kind::Kind;
use super::target::Verb;

/// Something that goes wrong with a request or a running watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The answer is this status; with it, how long to wait before the next try. A running watch gets it as an `ERROR`
    /// event, and ends.
    Status {
        /// 401, 403, 404, 410, 422, 429, 500, 503, 504 or another.
        code: u16,
        /// The seconds in `Retry-After`.
        retry_after_s: Option<u32>,
    },
    /// The connection ends without an answer; that of a running watch, at its next event or bookmark.
    Drop,
    /// The request is taken and nothing is sent. A running watch sends nothing more.
    Stall,
    /// The answer ends within its first event or its first bytes, and the connection stays open, silent. Of a running watch
    /// the next event is the one that is cut.
    StallWithin {
        /// Bytes that are still sent.
        bytes: usize,
    },
    /// As `StallWithin`, but the connection ends.
    DropWithin {
        /// Bytes that are still sent.
        bytes: usize,
    },
    /// The answer, or the next event of a watch, is cut off and properly ended, as by a proxy with a limit.
    Truncate {
        /// Bytes that are still sent.
        bytes: usize,
    },
    /// The answer trickles in.
    Slow {
        /// Bytes at a time.
        bytes: usize,
        /// Time between them.
        every: Duration,
    },
    /// Every event of a watch is sent twice.
    Duplicate,
    /// Events of a watch wait, so that those of other kinds come before them. Bookmarks do not overtake them.
    Hold {
        /// How long each burst of events waits.
        by: Duration,
    },
    /// A watch sends bookmarks and nothing else. They do not go beyond the events that are withheld.
    BookmarksOnly,
    /// A list is as it was so many changes ago, and says so by its resourceVersion: a server's cache may be old.
    StaleList {
        /// How many changes.
        changes: u64,
    },
    /// A list is empty, and its resourceVersion is that of now: a lie.
    EmptyList,
    /// A page holds no more than this, and the next one is refused with 410.
    PartialPage {
        /// Objects in the page.
        items: usize,
    },
    /// A watch that asks for a streaming list is refused with 422, as by a server that has none.
    RefuseStreaming,
}

impl Fault {
    /// Whether it happens to bytes on their way.
    pub(super) fn is_in_body(self) -> bool {
        match self {
            Self::StallWithin { .. }
            | Self::DropWithin { .. }
            | Self::Truncate { .. }
            | Self::Slow { .. }
            | Self::Duplicate => true,
            Self::Status { .. }
            | Self::Drop
            | Self::Stall
            | Self::Hold { .. }
            | Self::BookmarksOnly
            | Self::StaleList { .. }
            | Self::EmptyList
            | Self::PartialPage { .. }
            | Self::RefuseStreaming => false,
        }
    }
}

/// Which requests a fault meets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scope {
    kinds: Option<Vec<Kind>>,
    verbs: Option<Vec<Verb>>,
}

impl Scope {
    /// Every request.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those that read: the ones by which an agent lives.
    pub fn reads() -> Self {
        Self::all().verbs(&[Verb::Get, Verb::List, Verb::Watch])
    }

    /// Only those about these kinds.
    pub fn kinds(mut self, kinds: &[Kind]) -> Self {
        self.kinds = Some(kinds.to_vec());
        self
    }

    /// Only these verbs.
    pub fn verbs(mut self, verbs: &[Verb]) -> Self {
        self.verbs = Some(verbs.to_vec());
        self
    }

    fn holds(&self, kind: Option<Kind>, verb: Verb) -> bool {
        let is_kind = match (&self.kinds, kind) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(kinds), Some(kind)) => kinds.contains(&kind),
        };
        is_kind && self.verbs.as_ref().is_none_or(|verbs| verbs.contains(&verb))
    }
}

/// Names a fault that was added.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FaultId(u64);

/// The faults in force. Cloned handles are of the same ones.
#[derive(Clone, Debug)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    /// In the order in which they were added.
    active: Vec<Active>,
    made: u64,
}

#[derive(Debug)]
struct Active {
    id: FaultId,
    scope: Scope,
    fault: Fault,
    /// How often it is still to happen; None: until it is taken away.
    times: Option<u32>,
    happened: u32,
}

impl Faults {
    pub(super) fn new(changed: watch::Sender<()>) -> Self {
        Self { inner: Arc::default(), changed }
    }

    /// Adds a fault until it is taken away.
    pub fn add(&self, scope: Scope, fault: Fault) -> FaultId {
        self.insert(scope, fault, None)
    }

    /// Adds a fault that happens so often.
    pub fn add_times(&self, scope: Scope, fault: Fault, times: u32) -> FaultId {
        self.insert(scope, fault, Some(times))
    }

    /// Takes a fault away. Requests that already wait because of it go on waiting.
    pub fn remove(&self, id: FaultId) {
        self.lock().active.retain(|active| active.id != id);
        self.changed.send_replace(());
    }

    /// Takes every fault away.
    pub fn clear(&self) {
        self.lock().active.clear();
        self.changed.send_replace(());
    }

    /// How often a fault has happened; 0 also after it was taken away.
    pub fn happened(&self, id: FaultId) -> u32 {
        self.lock().active.iter().find(|active| active.id == id).map_or(0, |active| active.happened)
    }

    fn insert(&self, scope: Scope, fault: Fault, times: Option<u32>) -> FaultId {
        let mut inner = self.lock();
        inner.made += 1;
        let id = FaultId(inner.made);
        inner.active.push(Active { id, scope, fault, times, happened: 0 });
        drop(inner);
        self.changed.send_replace(());
        id
    }

    /// The first fault that meets a request and that `choose` takes. It counts as having happened.
    pub(super) fn take<T>(&self, kind: Option<Kind>, verb: Verb, choose: impl Fn(Fault) -> Option<T>) -> Option<T> {
        let mut inner = self.lock();
        let mut meets =
            inner.active.iter_mut().filter(|active| active.times != Some(0) && active.scope.holds(kind, verb));
        meets.find_map(|active| {
            let chosen = choose(active.fault)?;
            active.happened += 1;
            active.times = active.times.map(|times| times - 1);
            Some(chosen)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Faults by a seed: the same seed gives the same ones, in the same order.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: fastrand::Rng,
}

/// What a schedule gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Injection {
    /// Which requests it meets.
    pub scope: Scope,
    /// What happens to them.
    pub fault: Fault,
    /// How long.
    pub lasts: Duration,
}

impl Schedule {
    /// The schedule of a seed. It never lies: every answer it lets through is, or was, the truth of some moment.
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed) }
    }
}

impl Iterator for Schedule {
    type Item = Injection;

    fn next(&mut self) -> Option<Injection> {
        let random = &mut self.random;
        let mut scope = Scope::all();
        if random.u8(..4) > 0 {
            let count = random.usize(1..4);
            scope = scope.kinds(&random.choose_multiple(Kind::WATCHED, count));
        }
        scope = scope.verbs(match random.u8(..3) {
            0 => &[Verb::List],
            1 => &[Verb::Watch],
            _ => &[Verb::List, Verb::Watch],
        });
        let bytes = random.usize(..400);
        let fault = match random.u8(..15) {
            0 | 1 => {
                let code = *random.choice(&[401, 403, 410, 429, 500, 503, 504]).expect("a code");
                let retry_after_s = (random.bool() && matches!(code, 429 | 503)).then_some(1);
                Fault::Status { code, retry_after_s }
            }
            2 => Fault::Drop,
            3 => Fault::Stall,
            4 => Fault::StallWithin { bytes },
            5 => Fault::DropWithin { bytes },
            6 => Fault::Truncate { bytes },
            7 => Fault::Slow { bytes: random.usize(20..200), every: Duration::from_millis(random.u64(1..20)) },
            8 => Fault::Duplicate,
            9 | 10 => Fault::Hold { by: Duration::from_millis(random.u64(10..400)) },
            11 => Fault::BookmarksOnly,
            12 => Fault::StaleList { changes: random.u64(1..20) },
            13 => Fault::PartialPage { items: random.usize(1..5) },
            _ => Fault::RefuseStreaming,
        };
        Some(Injection { scope, fault, lasts: Duration::from_millis(random.u64(20..800)) })
    }
}
