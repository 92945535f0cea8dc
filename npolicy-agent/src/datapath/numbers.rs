//! Which class number stands for what.

use npolicy_common::Class;
use rustc_hash::{FxHashMap, FxHashSet};

use super::slots::Slots;
use crate::compile::{ClassKey, Peer};

/// What a class number stands for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum PeerKey {
    /// Packets this node itself makes.
    NodeSelf,
    /// The pod reaching itself through a Service.
    PodSelf,
    /// An address that does not fit the tables.
    Unknown,
    /// Addresses about which policies can tell this.
    Class(ClassKey),
}

impl PeerKey {
    /// The same, as a ruleset wants to be asked.
    pub(super) fn peer(&self) -> Peer<'_> {
        match self {
            Self::NodeSelf => Peer::NodeSelf,
            Self::PodSelf => Peer::PodSelf,
            Self::Unknown => Peer::Unknown,
            Self::Class(key) => Peer::Class(key),
        }
    }
}

/// The class numbers given out, and what each stands for.
///
/// A key can have several numbers for a while: the first is its own, the others are for addresses whose verdicts were
/// different when they moved. A number found in the tables of an earlier agent stands for nothing known.
#[derive(Debug)]
pub(super) struct Numbers {
    free: Slots,
    keys: FxHashMap<Class, PeerKey>,
    numbers: FxHashMap<PeerKey, Vec<Class>>,
    /// Numbers that came to stand for something else, or nothing, since they were last asked for.
    rebound: FxHashSet<Class>,
    bindings: u64,
}

impl Numbers {
    /// The reserved numbers, and room for others up to `limit`.
    pub(super) fn new(limit: u32) -> Self {
        let free = Slots::new(Class::FIRST.0, limit.min(Class::LIMIT));
        let mut numbers = Self {
            free,
            keys: FxHashMap::default(),
            numbers: FxHashMap::default(),
            rebound: FxHashSet::default(),
            bindings: 0,
        };
        numbers.bind(Class::PLAIN, PeerKey::Class(ClassKey::default()));
        numbers.bind(Class::NODE_SELF, PeerKey::NodeSelf);
        numbers.bind(Class::POD_SELF, PeerKey::PodSelf);
        numbers.bind(Class::UNKNOWN, PeerKey::Unknown);
        numbers
    }

    /// Takes a number that stands in the tables already.
    pub(super) fn adopt(&mut self, class: Class) {
        self.free.claim(class.0);
    }

    /// Takes a fresh number, which stands for nothing yet.
    pub(super) fn take(&mut self) -> Option<Class> {
        self.free.take().map(Class)
    }

    /// Gives a number back.
    pub(super) fn give_back(&mut self, class: Class) {
        self.unbind(class);
        self.free.give_back(class.0);
    }

    /// Says what a number stands for from now on.
    pub(super) fn bind(&mut self, class: Class, key: PeerKey) {
        self.unbind(class);
        self.bindings += 1;
        self.numbers.entry(key.clone()).or_default().push(class);
        self.keys.insert(class, key);
    }

    fn unbind(&mut self, class: Class) {
        let Some(key) = self.keys.remove(&class) else { return };
        self.rebound.insert(class);
        let numbers = self.numbers.get_mut(&key).expect("a bound number is listed under its key");
        numbers.retain(|&other| other != class);
        if numbers.is_empty() {
            self.numbers.remove(&key);
        }
    }

    /// Takes the numbers that came to stand for something else, or nothing, since the last call.
    pub(super) fn take_rebound(&mut self) -> FxHashSet<Class> {
        std::mem::take(&mut self.rebound)
    }

    /// How often a number came to stand for something: while that stays the same, every number in use means what it meant.
    pub(super) fn bindings(&self) -> u64 {
        self.bindings
    }

    /// Whether some key has several numbers.
    pub(super) fn has_twins(&self) -> bool {
        self.numbers.len() != self.keys.len()
    }

    /// What a number stands for, if that is known.
    pub(super) fn key(&self, class: Class) -> Option<&PeerKey> {
        self.keys.get(&class)
    }

    /// The numbers that stand for a key, its own first.
    pub(super) fn numbers(&self, key: &PeerKey) -> &[Class] {
        self.numbers.get(key).map_or(&[], Vec::as_slice)
    }

    /// All numbers that stand for something, ascending.
    pub(super) fn bound(&self) -> Vec<(Class, &PeerKey)> {
        let mut bound: Vec<_> = self.keys.iter().map(|(&class, key)| (class, key)).collect();
        bound.sort_unstable_by_key(|&(class, _)| class);
        bound
    }

    /// The numbers given out beside the reserved ones, ascending.
    pub(super) fn taken(&self) -> impl Iterator<Item = Class> {
        self.free.taken().map(Class)
    }

    /// Numbers given out, and how many there are.
    pub(super) fn usage(&self) -> (u32, u32) {
        (self.free.used(), self.free.used() + self.free.free())
    }
}
