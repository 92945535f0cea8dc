//! The last few states of the cluster, so that a denial is explained by what was in force when it happened.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::model::{ClusterState, PodKey};

/// States kept. An event is read some milliseconds after its packet; a pod's rulesets do not flip this often in that time,
/// and if they do, the oldest state kept explains it.
const STATES: usize = 8;

/// What was in force after one publish.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The cluster as compiled.
    pub state: Arc<ClusterState>,
    /// By interface: whose it was, and the generation of its rulesets.
    pub endpoints: FxHashMap<u32, (PodKey, u32)>,
}

/// The last few snapshots, newest last.
#[derive(Debug, Default)]
pub struct History {
    snapshots: VecDeque<Snapshot>,
}

impl History {
    /// Adds what a publish put in force.
    pub fn record(&mut self, snapshot: Snapshot) {
        if self.snapshots.len() == STATES {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(snapshot);
    }

    /// Returns the state in which an interface's rulesets had a generation, and whose interface it was: the newest state
    /// whose generation of it is not later, else the oldest kept. None if no state knows the interface.
    pub fn at(&self, ifindex: u32, generation: u32) -> Option<(&ClusterState, &PodKey)> {
        let known = || self.snapshots.iter().rev().filter_map(|s| Some((s, s.endpoints.get(&ifindex)?)));
        known()
            .find(|(_, (_, recorded))| !is_later(*recorded, generation))
            .or_else(|| known().next_back())
            .map(|(snapshot, (pod, _))| (&*snapshot.state, pod))
    }
}

/// Whether generation `a` came after `b`. Generations run from 1 to 2^24 - 1 and start again.
fn is_later(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b) & 0xff_ffff;
    ahead != 0 && ahead < 1 << 23
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> PodKey {
        PodKey { namespace: "ns".into(), name: name.into() }
    }

    fn record(history: &mut History, ifindex: u32, name: &str, generation: u32) {
        let endpoints = [(ifindex, (pod(name), generation))].into_iter().collect();
        history.record(Snapshot { state: Arc::default(), endpoints });
    }

    #[test]
    fn finds_whose_interface_it_was_at_that_generation() {
        let mut history = History::default();
        record(&mut history, 7, "old", 5);
        record(&mut history, 7, "new", 9);
        let owner = |generation| history.at(7, generation).map(|(_, pod)| pod.name.to_string());
        assert_eq!(owner(5).as_deref(), Some("old"));
        assert_eq!(owner(8).as_deref(), Some("old"), "raised once more after the grace period");
        assert_eq!(owner(9).as_deref(), Some("new"));
        assert_eq!(owner(3).as_deref(), Some("old"), "older than what is kept: the oldest");
        assert!(history.at(8, 1).is_none());
    }

    #[test]
    fn generations_start_again_after_the_last() {
        let mut history = History::default();
        record(&mut history, 7, "old", 0xff_ffff);
        record(&mut history, 7, "new", 1);
        assert_eq!(&*history.at(7, 0xff_ffff).unwrap().1.name, "old");
        assert_eq!(&*history.at(7, 1).unwrap().1.name, "new");
    }

    #[test]
    fn keeps_a_bounded_number_of_states() {
        let mut history = History::default();
        for generation in 1..100 {
            record(&mut history, 7, "pod", generation);
        }
        assert_eq!(history.snapshots.len(), STATES);
    }
}
