//! Which ruleset number each direction of an endpoint gets.

use std::collections::BTreeSet;
use std::sync::Arc;

use npolicy_common::{BundleId, Class, RulesetId};
use rustc_hash::{FxHashMap, FxHashSet};

use super::Instead;
use crate::compile::{Plan, Ruleset};
use crate::datapath::bundles::Bundles;
use crate::datapath::error::Full;
use crate::datapath::numbers::{Numbers, PeerKey};
use crate::datapath::rulesets::{LeafIndex, Rulesets};

/// Rows that were computed before, by ruleset and class number. A row depends on nothing but the ruleset and what the
/// number stands for.
#[derive(Debug, Default)]
pub(super) struct RowCache(FxHashMap<Arc<Ruleset>, FxHashMap<Class, BundleId>>);

impl RowCache {
    /// Forgets the rows of numbers that stand for something else now.
    pub(super) fn forget(&mut self, classes: &FxHashSet<Class>) {
        for rows in self.0.values_mut() {
            rows.retain(|class, _| !classes.contains(class));
        }
    }

    /// Forgets what names a bundle that is not used any more.
    pub(super) fn keep(&mut self, is_used: impl Fn(BundleId) -> bool) {
        self.0.values_mut().for_each(|rows| rows.retain(|_, bundle| is_used(*bundle)));
    }
}

/// Rows of a ruleset for a list of classes.
type Rows = Vec<BundleId>;

/// Finds or writes the rulesets of one publish.
pub(super) struct RulesetWriter<'a> {
    rulesets: &'a mut Rulesets,
    bundles: &'a mut Bundles,
    cache: &'a mut RowCache,
    /// The numbers that stand for something, ascending, and what for.
    keys: Vec<(Class, &'a PeerKey)>,
    /// Which of `keys` stand in the address tables.
    in_use: Vec<usize>,
    /// Rows of each ruleset asked for, for all of `keys`.
    wanted: FxHashMap<Arc<Ruleset>, Rows>,
    /// Made when the first ruleset is not the endpoint's last one.
    index: Option<Index>,
    written: usize,
}

/// What the live rulesets hold.
struct Index {
    /// Rulesets by their rows for the numbers in use.
    by_rows: FxHashMap<Rows, RulesetId>,
    leaves: LeafIndex,
}

impl<'a> RulesetWriter<'a> {
    pub(super) fn new(
        numbers: &'a Numbers,
        in_use: &BTreeSet<Class>,
        rulesets: &'a mut Rulesets,
        bundles: &'a mut Bundles,
        cache: &'a mut RowCache,
    ) -> Self {
        let keys = numbers.bound();
        let in_use = (0..keys.len()).filter(|&at| in_use.contains(&keys[at].0)).collect();
        Self { rulesets, bundles, cache, keys, in_use, wanted: FxHashMap::default(), index: None, written: 0 }
    }

    /// Forgets the rows of rulesets that are no subject's; returns how many rulesets were written.
    pub(super) fn finish(self, plan: &Plan) -> usize {
        let Self { cache, wanted, written, .. } = self;
        let of_subjects = plan.subjects.values().flat_map(|subject| [&subject.ingress, &subject.egress]);
        let in_use: FxHashSet<*const Ruleset> = of_subjects.map(Arc::as_ptr).collect();
        cache.0.retain(|ruleset, _| in_use.contains(&Arc::as_ptr(ruleset)) || wanted.contains_key(ruleset));
        written
    }

    /// The number of a ruleset: the endpoint's last one if its rows are right, else another live one with these rows,
    /// else a new one.
    ///
    /// # Errors
    ///
    /// [`Full`], naming the table that has no room.
    pub(super) fn find_or_write(&mut self, ruleset: &Arc<Ruleset>, last: RulesetId) -> Result<RulesetId, Full> {
        if !ruleset.is_governed() {
            return Ok(RulesetId::ACCEPT_ALL);
        }
        if !self.wanted.contains_key(ruleset) {
            let rows = self.rows(ruleset)?;
            self.wanted.insert(Arc::clone(ruleset), rows);
        }
        let rows = &self.wanted[ruleset];
        let rows_in_use: Rows = self.in_use.iter().map(|&at| rows[at]).collect();
        if last.0 >= RulesetId::FIRST_CHUNK && rows_of(self.rulesets, &self.keys, &self.in_use, last) == rows_in_use {
            return Ok(last);
        }
        let index = self.index.get_or_insert_with(|| {
            let of = |&id: &RulesetId| (rows_of(self.rulesets, &self.keys, &self.in_use, id), id);
            // The lowest number wins, so that endpoints come together again.
            let by_rows = self.rulesets.live().iter().rev().map(of).collect();
            Index { by_rows, leaves: self.rulesets.leaf_index() }
        });
        if let Some(&id) = index.by_rows.get(&rows_in_use) {
            return Ok(id);
        }
        let classes = self.keys.iter().map(|&(class, _)| class);
        let rows: Vec<(Class, BundleId)> = classes.zip(rows.iter().copied()).collect();
        let id = self.rulesets.build(&rows, &mut index.leaves)?;
        index.by_rows.insert(rows_in_use, id);
        self.written += 1;
        Ok(id)
    }

    fn rows(&mut self, ruleset: &Arc<Ruleset>) -> Result<Rows, Full> {
        let known = self.cache.0.entry(Arc::clone(ruleset)).or_default();
        let mut row = |&(class, key): &(Class, &PeerKey)| {
            if let Some(&bundle) = known.get(&class) {
                return Ok(bundle);
            }
            let bundle = self.bundles.intern(&ruleset.row(key.peer()))?;
            known.insert(class, bundle);
            Ok(bundle)
        };
        self.keys.iter().map(&mut row).collect()
    }

    /// What a direction gets while its ruleset does not fit: the last one if that allows nothing which the new one denies.
    pub(super) fn instead(&self, ruleset: &Ruleset, last: RulesetId) -> (RulesetId, Instead) {
        let allows_no_more = |&at: &usize| {
            let (class, key) = self.keys[at];
            self.bundles.is_within(self.rulesets.row(last, class), &ruleset.row(key.peer()))
        };
        if last.0 >= RulesetId::FIRST_CHUNK && self.in_use.iter().all(allows_no_more) {
            (last, Instead::Last)
        } else {
            (RulesetId::DENY_ALL, Instead::DenyAll)
        }
    }
}

fn rows_of(rulesets: &Rulesets, keys: &[(Class, &PeerKey)], in_use: &[usize], id: RulesetId) -> Rows {
    in_use.iter().map(|&at| rulesets.row(id, keys[at].0)).collect()
}
