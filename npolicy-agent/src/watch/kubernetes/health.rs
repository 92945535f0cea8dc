//! How each watch is doing.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kind::Kind;

/// How the watch of one kind is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KindHealth {
    /// Which.
    pub kind: Kind,
    /// Whether it was listed whole once, or is known to be absent.
    pub is_synced: bool,
    /// Whether the API server does not have the kind.
    pub is_absent: bool,
    /// When the API server was last heard of it: an object, a bookmark, a list, or that there are none.
    pub heard: Option<Instant>,
    /// What goes wrong; `None`: nothing does.
    pub trouble: Option<Trouble>,
}

/// Why a watch does not work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// Since when.
    pub since: Instant,
    /// What happened last, and what to do where something can be done. One line, without credentials.
    pub message: String,
}

impl KindHealth {
    /// Whether what is known of the kind is all there is, as far as anybody can tell.
    pub fn is_well(&self) -> bool {
        self.is_synced && self.trouble.is_none()
    }
}

/// `NetworkPolicy: not listed yet; for 12 s: the API server answers 403 Forbidden: ...`
impl fmt::Display for KindHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, is_synced, is_absent, heard, trouble } = self;
        write!(f, "{kind}: ")?;
        f.write_str(match (is_synced, is_absent) {
            (false, _) => "not listed yet",
            (true, true) => "the API server does not have it",
            (true, false) => "listed",
        })?;
        if let Some(heard) = heard {
            write!(f, ", last heard {} ago", Span(heard.elapsed()))?;
        }
        match trouble {
            Some(Trouble { since, message }) => write!(f, "; for {}: {message}", Span(since.elapsed())),
            None => Ok(()),
        }
    }
}

/// A time in the largest unit that says enough.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ 0..120 => write!(f, "{seconds} s"),
            seconds @ 120..7200 => write!(f, "{} min", seconds / 60),
            seconds => write!(f, "{} h", seconds / 3600),
        }
    }
}

/// What the watches say of themselves, seen by all.
#[derive(Clone, Debug, Default)]
pub(super) struct Board(Arc<Mutex<[Notice; Kind::ALL.len()]>>);

#[derive(Clone, Debug, Default)]
pub(super) struct Notice {
    pub(super) heard: Option<Instant>,
    pub(super) is_absent: bool,
    pub(super) trouble: Option<Trouble>,
}

impl Board {
    pub(super) fn notice(&self, kind: Kind) -> Notice {
        self.lock()[kind.index()].clone()
    }

    /// The API server spoke of a kind. Gives back the trouble that this ends.
    pub(super) fn hear(&self, kind: Kind) -> Option<Trouble> {
        let notice = &mut self.lock()[kind.index()];
        notice.heard = Some(Instant::now());
        notice.trouble.take()
    }

    pub(super) fn set_absent(&self, kind: Kind, is_absent: bool) {
        self.lock()[kind.index()].is_absent = is_absent;
    }

    /// Something goes wrong; returns whether it is something else than before.
    pub(super) fn complain(&self, kind: Kind, message: &str) -> bool {
        let trouble = &mut self.lock()[kind.index()].trouble;
        match trouble {
            Some(trouble) if trouble.message == message => false,
            Some(trouble) => {
                message.clone_into(&mut trouble.message);
                true
            }
            None => {
                *trouble = Some(Trouble { since: Instant::now(), message: message.to_owned() });
                true
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, [Notice; Kind::ALL.len()]> {
        // Every write leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
