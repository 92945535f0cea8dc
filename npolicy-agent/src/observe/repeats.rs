//! One drop line a connection: a SYN that is sent again and again is one denial, not six.

use std::time::{Duration, Instant};

use npolicy_common::FlowEvent;
use rustc_hash::FxHashMap;

/// What makes two events the same denial.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Denial {
    remote: [u8; 16],
    local: [u8; 16],
    ports: (u16, u16),
    endpoint: u16,
    protocol: u8,
    reason: u8,
    direction: u8,
    state: u8,
    ether_type: u16,
}

impl From<&FlowEvent> for Denial {
    fn from(event: &FlowEvent) -> Self {
        Self {
            remote: event.remote,
            local: event.local,
            ports: (event.remote_port, event.local_port),
            endpoint: event.endpoint,
            protocol: event.protocol,
            reason: event.reason,
            direction: event.direction,
            state: event.state.0,
            ether_type: event.ether_type,
        }
    }
}

/// Remembers denials for a window, so that only the first of each is written.
///
/// Bounded: when full, what is older than the window goes, and if that frees nothing, everything: then a repeat is written
/// once more, never lost. The tuples are chosen by whoever sends, so nothing but this bound is trusted.
#[derive(Debug)]
pub struct Repeats {
    window: Duration,
    seen: FxHashMap<Denial, (Instant, u64)>,
}

impl Repeats {
    /// Denials remembered at once.
    const CAPACITY: usize = 8_192;

    /// Remembers for this long after the last repeat.
    pub fn new(window: Duration) -> Self {
        Self { window, seen: FxHashMap::default() }
    }

    /// Says whether an event is to be written, and if so how many of its kind were left out since the last one written.
    pub fn admit(&mut self, event: &FlowEvent, now: Instant) -> Option<u64> {
        if let Some((last, count)) = self.seen.get_mut(&Denial::from(event)) {
            let quiet = now.duration_since(*last);
            *last = now;
            if quiet <= self.window {
                *count += 1;
                return None;
            }
            return Some(std::mem::take(count));
        }
        if self.seen.len() >= Self::CAPACITY {
            let window = self.window;
            self.seen.retain(|_, (last, _)| now.duration_since(*last) <= window);
            if self.seen.len() >= Self::CAPACITY {
                self.seen.clear();
            }
        }
        self.seen.insert(Denial::from(event), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npolicy_common::EventState;

    fn event(remote_port: u16) -> FlowEvent {
        FlowEvent {
            jiffies: 0,
            remote: [1; 16],
            local: [2; 16],
            generation: 1,
            ruleset: 4,
            class: 5,
            ifindex: 3,
            endpoint: 1,
            remote_port,
            local_port: 8080,
            ether_type: 0x0800,
            protocol: 6,
            reason: 8,
            direction: 0,
            state: EventState::NEW,
            reserved: 0,
        }
    }

    #[test]
    fn writes_the_first_of_a_kind_and_counts_the_rest() {
        let start = Instant::now();
        let mut repeats = Repeats::new(Duration::from_secs(60));
        assert_eq!(repeats.admit(&event(40_000), start), Some(0));
        for second in [1, 3, 7, 15, 31] {
            assert_eq!(repeats.admit(&event(40_000), start + Duration::from_secs(second)), None);
        }
        assert_eq!(repeats.admit(&event(40_001), start), Some(0), "another connection");
        assert_eq!(repeats.admit(&event(40_000), start + Duration::from_secs(92)), Some(5), "after a quiet window");
    }

    #[test]
    fn a_later_generation_is_the_same_denial_and_another_state_is_not() {
        let now = Instant::now();
        let mut repeats = Repeats::new(Duration::from_secs(60));
        repeats.admit(&event(1), now);
        assert_eq!(repeats.admit(&FlowEvent { generation: 9, ..event(1) }, now), None);
        assert_eq!(repeats.admit(&FlowEvent { state: EventState::REPLY, ..event(1) }, now), Some(0));
    }

    #[test]
    fn stays_within_its_bound_under_a_flood() {
        let now = Instant::now();
        let mut repeats = Repeats::new(Duration::from_secs(60));
        for port in 0..u16::MAX {
            assert_eq!(repeats.admit(&event(port), now), Some(0));
            assert!(repeats.seen.len() <= Repeats::CAPACITY);
        }
    }
}
