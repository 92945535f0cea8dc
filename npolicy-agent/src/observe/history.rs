//! The last few states of the cluster, so that a denial is explained by what was in force when it happened.
//!
//! Only the state of now is kept whole, by whoever owns it; here is what would undo the changes since. A denial of before
//! the last flip is rare, and for that an earlier state is made.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;

use crate::model::{ClusterState, Event, ObjectKey, PodKey};

/// States that can be gone back to. An event is read some milliseconds after its packet; a pod's rulesets do not flip this
/// often in that time, and if they do, the oldest state explains it.
const STATES: usize = 8;

/// By interface: whose it was, and the generation of its rulesets.
pub type Endpoints = FxHashMap<u32, (PodKey, u32)>;

/// What makes an earlier state of a later one, by object: of several changes of one, what undoes the first.
type Undo = BTreeMap<ObjectKey, Event>;

/// What was in force after one publish.
#[derive(Debug)]
struct Snapshot {
    endpoints: Endpoints,
    /// Leads to the state of the snapshot before.
    undo: Undo,
    number: u64,
}

/// The last few snapshots, newest last.
#[derive(Debug, Default)]
pub struct History {
    snapshots: VecDeque<Snapshot>,
    /// Leads from the state of now to that of the newest snapshot.
    pending: Undo,
    /// The last state that was made, and whose it is.
    made: Option<(u64, ClusterState)>,
    taken: u64,
}

impl History {
    /// Takes note of changes of the state that are not in force yet: events that would undo them, in the order of the
    /// changes.
    pub fn note(&mut self, undo: Vec<Event>) {
        for event in undo {
            self.pending.entry(event.key()).or_insert(event);
        }
    }

    /// Says what a publish put in force: the state of now.
    pub fn record(&mut self, endpoints: Endpoints) {
        if self.snapshots.len() == STATES {
            self.snapshots.pop_front();
        }
        self.taken += 1;
        let undo = std::mem::take(&mut self.pending);
        self.snapshots.push_back(Snapshot { endpoints, undo, number: self.taken });
    }

    /// Says that the state of now means the same verdicts as the newest snapshot, and explains them as well.
    pub fn record_unchanged(&mut self) {
        let Some(newest) = self.snapshots.back_mut() else { return };
        for (key, event) in std::mem::take(&mut self.pending) {
            newest.undo.entry(key).or_insert(event);
        }
        self.made.take_if(|(number, _)| *number == newest.number);
    }

    /// Returns the state in which an interface's rulesets had a generation, and whose interface it was: the newest state
    /// whose generation of it is not later, else the oldest kept. None if no state knows the interface. `now` is the state
    /// of now, with all changes noted.
    pub fn at<'a>(
        &'a mut self,
        now: &'a ClusterState,
        ifindex: u32,
        generation: u32,
    ) -> Option<(&'a ClusterState, PodKey)> {
        let known = || {
            let whose = |(at, snapshot): (usize, &'_ Snapshot)| Some((at, snapshot.endpoints.get(&ifindex)?.clone()));
            self.snapshots.iter().enumerate().rev().filter_map(whose)
        };
        let found = known().find(|(_, (_, recorded))| !is_later(*recorded, generation));
        let (at, (pod, _)) = found.or_else(|| known().next_back())?;
        Some((self.state(now, at), pod))
    }

    fn state<'a>(&'a mut self, now: &'a ClusterState, at: usize) -> &'a ClusterState {
        let later = self.snapshots.iter().skip(at + 1).rev().map(|snapshot| &snapshot.undo);
        let undo: Vec<&Undo> = [&self.pending].into_iter().chain(later).filter(|undo| !undo.is_empty()).collect();
        if undo.is_empty() {
            return now;
        }
        let number = self.snapshots[at].number;
        if self.made.as_ref().is_none_or(|(made, _)| *made != number) {
            let mut state = now.clone();
            for event in undo.into_iter().flat_map(Undo::values) {
                state.apply(event.clone());
            }
            self.made = Some((number, state));
        }
        self.made.as_ref().map_or(now, |(_, state)| state)
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
    use crate::model::{Labels, Namespace, Object};

    fn pod(name: &str) -> PodKey {
        PodKey { namespace: "ns".into(), name: name.into() }
    }

    fn record(history: &mut History, ifindex: u32, name: &str, generation: u32) {
        history.record([(ifindex, (pod(name), generation))].into_iter().collect());
    }

    #[test]
    fn finds_whose_interface_it_was_at_that_generation() {
        let mut history = History::default();
        record(&mut history, 7, "old", 5);
        record(&mut history, 7, "new", 9);
        let now = ClusterState::default();
        let mut owner = |generation| history.at(&now, 7, generation).map(|(_, pod)| pod.name.to_string());
        assert_eq!(owner(5).as_deref(), Some("old"));
        assert_eq!(owner(8).as_deref(), Some("old"), "raised once more after the grace period");
        assert_eq!(owner(9).as_deref(), Some("new"));
        assert_eq!(owner(3).as_deref(), Some("old"), "older than what is kept: the oldest");
        assert!(history.at(&now, 8, 1).is_none());
    }

    #[test]
    fn generations_start_again_after_the_last() {
        let mut history = History::default();
        record(&mut history, 7, "old", 0xff_ffff);
        record(&mut history, 7, "new", 1);
        let now = ClusterState::default();
        assert_eq!(&*history.at(&now, 7, 0xff_ffff).unwrap().1.name, "old");
        assert_eq!(&*history.at(&now, 7, 1).unwrap().1.name, "new");
    }

    #[test]
    fn keeps_a_bounded_number_of_states() {
        let mut history = History::default();
        for generation in 1..100 {
            record(&mut history, 7, "pod", generation);
        }
        assert_eq!(history.snapshots.len(), STATES);
    }

    #[test]
    fn goes_back_to_the_state_that_was_in_force() {
        let mut history = History::default();
        let mut state = ClusterState::default();
        let names = |state: &ClusterState| state.namespace_names().iter().map(ToString::to_string).collect::<Vec<_>>();
        let change = |history: &mut History, state: &mut ClusterState, event| {
            history.note(state.change(event).into_iter().collect());
        };
        let upsert = |name: &str| Event::Upsert(Object::Namespace(Namespace::new(name.into(), &Labels::default())));
        let delete = |name: &str| Event::Delete(ObjectKey::Namespace(name.into()));

        change(&mut history, &mut state, upsert("a"));
        record(&mut history, 7, "pod", 1);
        change(&mut history, &mut state, upsert("b"));
        change(&mut history, &mut state, delete("b"));
        change(&mut history, &mut state, upsert("c"));
        record(&mut history, 7, "pod", 2);
        change(&mut history, &mut state, delete("a"));
        change(&mut history, &mut state, upsert("d"));
        for _ in 0..2 {
            assert_eq!(names(history.at(&state, 7, 1).unwrap().0), ["a"]);
            assert_eq!(names(history.at(&state, 7, 2).unwrap().0), ["a", "c"], "not in force yet");
        }
        history.record_unchanged();
        assert_eq!(names(history.at(&state, 7, 2).unwrap().0), ["c", "d"]);
        assert_eq!(names(history.at(&state, 7, 1).unwrap().0), ["a"]);
        change(&mut history, &mut state, upsert("e"));
        record(&mut history, 7, "pod", 3);
        assert_eq!(names(history.at(&state, 7, 1).unwrap().0), ["a"]);
        assert_eq!(names(history.at(&state, 7, 3).unwrap().0), ["c", "d", "e"]);
    }
}
