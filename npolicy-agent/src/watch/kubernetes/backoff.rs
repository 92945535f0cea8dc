//! How long to wait before asking again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Waits that double up to a ceiling, each with chance in it: a thousand nodes do not come back at one moment.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    ceiling: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first`.
    pub(super) fn new(first: Duration, ceiling: Duration) -> Self {
        Self { first, ceiling, next: first }
    }

    /// The next wait: between a half and the whole of the current one.
    pub(super) fn wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.ceiling);
        between(whole / 2, whole)
    }

    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A duration by chance.
pub(super) fn between(least: Duration, most: Duration) -> Duration {
    // Each RandomState has keys of its own, so this is a random number.
    let chance = RandomState::new().build_hasher().finish() as u32;
    least + (most - least).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_ceiling_and_start_again_after_a_success() {
        let (first, ceiling) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, ceiling);
        for whole in [100, 200, 400, 800, 1000, 1000] {
            let (wait, whole) = (backoff.wait(), Duration::from_millis(whole));
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= first);
    }

    #[test]
    fn waits_differ() {
        let waits: std::collections::HashSet<_> =
            (0..20).map(|_| between(Duration::ZERO, Duration::from_secs(1))).collect();
        assert!(waits.len() > 10, "{waits:?}");
    }
}
