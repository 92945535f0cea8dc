//! From what is said of addresses to classes: what the policies in force can tell apart, and nothing else.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::plan::{ClassIndex, ClassKey, Plan};
use super::prefixes::PrefixTable;
use crate::model::PodKey;

/// The classes of ends whose address nobody knows.
#[derive(Default, Debug)]
pub(super) struct Unaddressed {
    /// Pods that no cluster has run yet.
    pub(super) pods: FxHashMap<PodKey, Bounds>,
    /// Whatever is not a pod.
    pub(super) nobody: Bounds,
}

/// What can be said of an unknown address: facts in `least` are certain, those that only `most` has may hold or not, each by
/// itself. Ordered rules can deny by a fact, so equal verdicts under both bounds prove nothing.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Bounds {
    /// In the blocks that hold a whole family, by family.
    pub(super) least: [ClassIndex; 2],
    /// In every block.
    pub(super) most: ClassIndex,
}

/// Which class keys something leads to. The keys themselves stand in the plan.
#[derive(Default, Debug)]
pub(super) struct Classes {
    known: FxHashMap<ClassKey, ClassIndex>,
    /// By index: how many addresses and blocks have the class.
    uses: Vec<u32>,
    /// Indexes that no key has.
    free: Vec<ClassIndex>,
    /// Indexes that may have come out of use since the last [`Self::settle`].
    idle: Vec<ClassIndex>,
}

impl Classes {
    /// Starts with the empty key, which is always in use.
    pub(super) fn new(keys: &mut Vec<ClassKey>) -> Self {
        let mut classes = Self::default();
        let empty = classes.index(keys, ClassKey::default());
        classes.hold(empty);
        classes
    }

    /// The index of a key; it stays the key's until [`Self::settle`] finds that nobody holds it.
    pub(super) fn index(&mut self, keys: &mut Vec<ClassKey>, key: ClassKey) -> ClassIndex {
        if let Some(&index) = self.known.get(&key) {
            return index;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            keys.push(ClassKey::default());
            self.uses.push(0);
            ClassIndex(u32::try_from(keys.len() - 1).expect("fewer than 4 billion classes"))
        });
        keys[index.0 as usize] = key.clone();
        self.known.insert(key, index);
        self.idle.push(index);
        index
    }

    pub(super) fn hold(&mut self, index: ClassIndex) {
        self.uses[index.0 as usize] += 1;
    }

    pub(super) fn release(&mut self, index: ClassIndex) {
        let uses = &mut self.uses[index.0 as usize];
        *uses -= 1;
        if *uses == 0 {
            self.idle.push(index);
        }
    }

    /// Frees the indexes that nobody holds.
    pub(super) fn settle(&mut self, keys: &mut [ClassKey]) {
        for index in std::mem::take(&mut self.idle) {
            let at = index.0 as usize;
            if self.uses[at] == 0 && self.known.get(&keys[at]) == Some(&index) {
                self.known.remove(&keys[at]);
                keys[at] = ClassKey::default();
                self.free.push(index);
            }
        }
    }
}

/// Finds classes in a finished plan, faster than [`Plan::class_of`].
#[derive(Debug)]
pub(super) struct ClassFinder {
    prefixes: PrefixTable,
}

impl ClassFinder {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { prefixes: PrefixTable::new(plan.prefixes.iter().map(|&(block, _)| block)) }
    }

    pub(super) fn find(&self, plan: &Plan, address: IpAddr) -> ClassIndex {
        plan.exact
            .get(&address)
            .copied()
            .unwrap_or_else(|| self.prefixes.find(address).map_or(ClassIndex(0), |index| plan.prefixes[index].1))
    }
}
