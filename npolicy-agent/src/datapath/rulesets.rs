//! Rows of rulesets in the kernel's table.
//!
//! A ruleset's number is its root chunk; a root leads to leaf chunks of 512 rows. Equal leaves are shared. Rows that a
//! live ruleset gives to a class in use never change; a row of a class that nobody has yet is written through
//! [`Rulesets::copy_row`].

use std::hash::BuildHasher;

use npolicy_common::{BundleId, Class, RulesetChunk, RulesetId, maps};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use super::error::Full;
use super::maps::MappedArray;
use super::slots::Slots;

/// The leaf whose rows are all nothing.
const EMPTY_LEAF: u32 = 0;
/// The leaf that admits NODE_SELF alone.
const NODE_LEAF: u32 = 3;
const ROWS: u32 = 512;

/// The table RULESETS, and which rulesets are live: in some endpoint's word, or less than a grace period ago.
#[derive(Debug)]
pub(super) struct Rulesets {
    chunks: MappedArray<RulesetChunk>,
    free: Slots,
    live: Vec<RulesetId>,
}

impl Rulesets {
    /// Takes over the table; chunks that no live ruleset leads to are free.
    pub(super) fn new(
        chunks: MappedArray<RulesetChunk>,
        capacity: u32,
        live: impl IntoIterator<Item = RulesetId>,
    ) -> Self {
        let end = capacity.min(chunks.entries());
        let mut table = Self { chunks, free: Slots::new(RulesetId::FIRST_CHUNK, end), live: Vec::new() };
        table.set_live(live);
        for chunk in table.used() {
            table.free.claim(chunk);
        }
        table
    }

    /// Writes the ruleset that never changes. Done once, before anything can read it.
    pub(super) fn write_constants(&self) {
        self.chunks.store32(NODE_LEAF, Class::NODE_SELF.0 as usize, BundleId::EVERYTHING.0);
        self.chunks.store32(RulesetId::DENY_ALL.0, 0, NODE_LEAF);
    }

    /// Says which rulesets are live from now on; the three fixed ones need no mention.
    pub(super) fn set_live(&mut self, live: impl IntoIterator<Item = RulesetId>) {
        self.live = live.into_iter().filter(|id| id.0 >= RulesetId::FIRST_CHUNK).collect();
        self.live.sort_unstable();
        self.live.dedup();
    }

    /// The rulesets that are live, ascending, without the three fixed ones.
    pub(super) fn live(&self) -> &[RulesetId] {
        &self.live
    }

    fn leaf(&self, id: RulesetId, class: Class) -> u32 {
        self.chunks.load32(id.0, (class.0 / ROWS) as usize)
    }

    /// The row a ruleset with rows gives to a class.
    pub(super) fn row(&self, id: RulesetId, class: Class) -> BundleId {
        BundleId(self.chunks.load32(self.leaf(id, class), (class.0 % ROWS) as usize))
    }

    /// Whether every live ruleset gives two classes the same row.
    pub(super) fn are_alike(&self, one: Class, other: Class) -> bool {
        self.live.iter().all(|&id| self.row(id, one) == self.row(id, other))
    }

    /// Gives a class that nobody has yet the rows of another class, in every live ruleset. Rulesets that share a leaf and
    /// now differ get leaves of their own.
    ///
    /// # Errors
    ///
    /// [`Full`]; then some live rulesets have the row already, which nobody can see.
    pub(super) fn copy_row(&mut self, from: Class, to: Class) -> Result<(), Full> {
        let (block, row) = ((to.0 / ROWS) as usize, (to.0 % ROWS) as usize);
        let mut by_leaf: FxHashMap<u32, FxHashMap<BundleId, Vec<RulesetId>>> = FxHashMap::default();
        for &id in &self.live {
            let bundles = by_leaf.entry(self.leaf(id, to)).or_default();
            bundles.entry(self.row(id, from)).or_default().push(id);
        }
        for (leaf, mut sharers) in by_leaf {
            // The fixed leaves stay as they are; in another, the larger part stays.
            let staying = if leaf < RulesetId::FIRST_CHUNK {
                Some(BundleId(self.chunks.load32(leaf, row)))
            } else {
                sharers.iter().max_by_key(|(bundle, ids)| (ids.len(), bundle.0)).map(|(&bundle, _)| bundle)
            };
            let staying = staying.expect("a leaf is listed because somebody has it");
            sharers.remove(&staying);
            for (bundle, ids) in sharers {
                let copy = self.take()?;
                for other in 0..ROWS as usize {
                    self.chunks.store32(copy, other, self.chunks.load32(leaf, other));
                }
                self.chunks.store32(copy, row, bundle.0);
                for id in ids {
                    self.chunks.flip32(id.0, block, copy);
                }
            }
            if leaf >= RulesetId::FIRST_CHUNK {
                self.chunks.store32(leaf, row, staying.0);
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Result<u32, Full> {
        let capacity = RulesetId::FIRST_CHUNK + self.free.used() + self.free.free();
        self.free.take().ok_or(Full { table: maps::RULESETS, capacity })
    }

    /// Writes a ruleset with these rows, ascending by class; every other row is nothing. `leaves` finds equal leaves.
    ///
    /// # Errors
    ///
    /// [`Full`]; then nothing was taken.
    pub(super) fn build(&mut self, rows: &[(Class, BundleId)], leaves: &mut LeafIndex) -> Result<RulesetId, Full> {
        let mut root = [EMPTY_LEAF; ROWS as usize];
        let mut taken = Vec::new();
        for block in rows.chunk_by(|a, b| a.0.0 / ROWS == b.0.0 / ROWS) {
            let mut leaf = [BundleId::NOTHING.0; ROWS as usize];
            for &(class, bundle) in block {
                leaf[(class.0 % ROWS) as usize] = bundle.0;
            }
            let chunk = match self.find_leaf(leaves, &leaf) {
                Some(chunk) => chunk,
                None => {
                    let chunk = self.take().inspect_err(|_| self.undo(&taken, leaves))?;
                    taken.push(chunk);
                    self.write(chunk, &leaf);
                    leaves.0.entry(hash(&leaf)).or_default().push(chunk);
                    chunk
                }
            };
            root[(block[0].0.0 / ROWS) as usize] = chunk;
        }
        let id = self.take().inspect_err(|_| self.undo(&taken, leaves))?;
        self.write(id, &root);
        let id = RulesetId(id);
        let at = self.live.partition_point(|&other| other < id);
        self.live.insert(at, id);
        Ok(id)
    }

    fn undo(&mut self, taken: &[u32], leaves: &mut LeafIndex) {
        for &chunk in taken {
            self.free.give_back(chunk);
            leaves.0.values_mut().for_each(|chunks| chunks.retain(|&other| other != chunk));
        }
    }

    fn write(&self, chunk: u32, content: &[u32; ROWS as usize]) {
        for (row, &value) in content.iter().enumerate() {
            self.chunks.store32(chunk, row, value);
        }
    }

    fn content(&self, chunk: u32) -> [u32; ROWS as usize] {
        std::array::from_fn(|row| self.chunks.load32(chunk, row))
    }

    /// Every leaf of a live ruleset by its content, to be used before a row is copied again.
    pub(super) fn leaf_index(&self) -> LeafIndex {
        let mut index: FxHashMap<u64, Vec<u32>> = FxHashMap::default();
        for leaf in self.leaves().into_iter().chain([EMPTY_LEAF, NODE_LEAF]) {
            index.entry(hash(&self.content(leaf))).or_default().push(leaf);
        }
        LeafIndex(index)
    }

    fn find_leaf(&self, leaves: &LeafIndex, content: &[u32; ROWS as usize]) -> Option<u32> {
        leaves.0.get(&hash(content))?.iter().copied().find(|&chunk| self.content(chunk) == *content)
    }

    fn leaves(&self) -> FxHashSet<u32> {
        let all = self.live.iter().flat_map(|id| (0..ROWS as usize).map(|block| self.chunks.load32(id.0, block)));
        all.filter(|&leaf| leaf >= RulesetId::FIRST_CHUNK).collect()
    }

    /// Roots and leaves of the live rulesets.
    fn used(&self) -> FxHashSet<u32> {
        self.live.iter().map(|id| id.0).chain(self.leaves()).collect()
    }

    /// Every bundle that a live ruleset names, also for classes that nobody has.
    pub(super) fn bundles(&self) -> FxHashSet<BundleId> {
        let leaves = self.leaves();
        leaves.iter().flat_map(|&leaf| self.content(leaf)).map(BundleId).chain([BundleId::EVERYTHING]).collect()
    }

    /// Gives back chunks that no live ruleset leads to. Nothing must have led to them for a grace period.
    pub(super) fn reclaim(&mut self) {
        let used = self.used();
        self.free.retain(|chunk| used.contains(&chunk));
    }

    /// Chunks given out, and how many there are.
    pub(super) fn usage(&self) -> (u32, u32) {
        (self.free.used(), self.free.used() + self.free.free())
    }
}

/// Leaves by a hash of their content.
#[derive(Debug)]
pub(super) struct LeafIndex(FxHashMap<u64, Vec<u32>>);

fn hash(content: &[u32; ROWS as usize]) -> u64 {
    FxBuildHasher.hash_one(content.as_slice())
}
