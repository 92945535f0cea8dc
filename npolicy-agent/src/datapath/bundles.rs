//! Port sets in the kernel's tables: equal content, one copy.

use std::hash::Hash;

use npolicy_common::{self as common, BundleId, PortSetId, PortsBlock, PortsTop};
use rustc_hash::{FxHashMap, FxHashSet};

use super::error::Full;
use super::maps::MappedArray;
use super::slots::Slots;
use super::tables::Limits;
use crate::compile::{Bundle, PortSet};

/// Bundles 0 and 1, port sets 0 and 1 and blocks 0 and 1 mean nothing and everything, for ever.
const FIRST: u32 = 2;

type BlockContent = [u64; 4];
type TopContent = Box<[u16; 256]>;

/// The tables BUNDLES, PORTS_TOP and PORTS, and what stands in them.
#[derive(Debug)]
pub(super) struct Bundles {
    bundles: Interned<common::Bundle, common::Bundle>,
    tops: Interned<PortsTop, TopContent>,
    blocks: Interned<PortsBlock, BlockContent>,
    /// Bundles that were asked for since the last [`Self::reclaim`].
    known: FxHashMap<Bundle, BundleId>,
}

/// A table whose entries are immutable while they are taken, and which entry holds which content.
struct Interned<T, C> {
    table: MappedArray<T>,
    name: &'static str,
    free: Slots,
    entries: FxHashMap<C, u32>,
}

impl<T, C: Hash + Eq> Interned<T, C> {
    fn new(table: MappedArray<T>, capacity: u32, name: &'static str) -> Self {
        let free = Slots::new(FIRST, capacity.min(table.entries()));
        Self { table, name, free, entries: FxHashMap::default() }
    }

    fn full(&self) -> Full {
        Full { table: self.name, capacity: FIRST + self.free.used() + self.free.free() }
    }

    fn intern(&mut self, content: C, write: impl FnOnce(&MappedArray<T>, u32, &C)) -> Result<u32, Full> {
        if let Some(&entry) = self.entries.get(&content) {
            return Ok(entry);
        }
        let entry = self.free.take().ok_or_else(|| self.full())?;
        write(&self.table, entry, &content);
        self.entries.insert(content, entry);
        Ok(entry)
    }

    fn adopt(&mut self, entry: u32, content: C) {
        if entry >= FIRST {
            self.free.claim(entry);
            self.entries.entry(content).or_insert(entry);
        }
    }

    fn retain(&mut self, used: &FxHashSet<u32>) {
        self.free.retain(|entry| used.contains(&entry));
        self.entries.retain(|_, entry| used.contains(entry));
    }
}

impl<T, C> std::fmt::Debug for Interned<T, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({} used)", self.name, self.free.used())
    }
}

/// Entries of the three tables that something leads to.
#[derive(Debug, Default)]
struct UsedBundles {
    bundles: FxHashSet<u32>,
    tops: FxHashSet<u32>,
    blocks: FxHashSet<u32>,
}

impl Bundles {
    /// Takes over the tables; `live` are the bundles that rulesets in force use.
    pub(super) fn new(
        bundles: MappedArray<common::Bundle>,
        tops: MappedArray<PortsTop>,
        blocks: MappedArray<PortsBlock>,
        limits: &Limits,
        live: impl IntoIterator<Item = BundleId>,
    ) -> Self {
        let mut tables = Self {
            bundles: Interned::new(bundles, limits.bundles, common::maps::BUNDLES),
            tops: Interned::new(tops, limits.port_sets, common::maps::PORTS_TOP),
            blocks: Interned::new(blocks, limits.port_blocks, common::maps::PORTS),
            known: FxHashMap::default(),
        };
        let used = tables.used(live);
        for &entry in &used.blocks {
            tables.blocks.adopt(entry, tables.block(entry));
        }
        for &entry in &used.tops {
            tables.tops.adopt(entry, tables.top(entry));
        }
        for &entry in &used.bundles {
            tables.bundles.adopt(entry, tables.bundle(BundleId(entry)));
        }
        tables
    }

    /// Writes the entries that never change. Done once, before anything can read them.
    pub(super) fn write_constants(&self) {
        for word in 0..4 {
            self.blocks.table.store64(1, word, u64::MAX);
        }
        write_top(&self.tops.table, 1, &Box::new([1; 256]));
        write_bundle(&self.bundles.table, 1, &common::Bundle { ports: [PortSetId::EVERYTHING; 3], other: 1 });
    }

    /// Returns the bundle that accepts exactly this, writing what is missing.
    ///
    /// # Errors
    ///
    /// [`Full`], naming the table without room. What was written before is given back by [`Self::reclaim`].
    pub(super) fn intern(&mut self, bundle: &Bundle) -> Result<BundleId, Full> {
        if let Some(&id) = self.known.get(bundle) {
            return Ok(id);
        }
        let mut ports = [PortSetId::NOTHING; 3];
        for (id, set) in ports.iter_mut().zip(&bundle.ports) {
            *id = self.intern_ports(set)?;
        }
        let id = match (ports, bundle.other) {
            ([PortSetId::NOTHING, PortSetId::NOTHING, PortSetId::NOTHING], false) => BundleId::NOTHING,
            ([PortSetId::EVERYTHING, PortSetId::EVERYTHING, PortSetId::EVERYTHING], true) => BundleId::EVERYTHING,
            (ports, other) => {
                let content = common::Bundle { ports, other: other.into() };
                BundleId(self.bundles.intern(content, write_bundle)?)
            }
        };
        self.known.insert(bundle.clone(), id);
        Ok(id)
    }

    fn intern_ports(&mut self, ports: &PortSet) -> Result<PortSetId, Full> {
        if ports.is_nothing() {
            return Ok(PortSetId::NOTHING);
        }
        if ports.is_everything() {
            return Ok(PortSetId::EVERYTHING);
        }
        let mut top = Box::new([0; 256]);
        for (entry, bits) in top.iter_mut().zip(bits_of(ports)) {
            *entry = match bits {
                [0, 0, 0, 0] => 0,
                [u64::MAX, u64::MAX, u64::MAX, u64::MAX] => 1,
                bits => self.blocks.intern(bits, |table, entry, bits| {
                    bits.iter().enumerate().for_each(|(word, &bits)| table.store64(entry, word, bits));
                })? as u16,
            };
        }
        let id = self.tops.intern(top, write_top)?;
        Ok(PortSetId(id as u16))
    }

    fn bundle(&self, id: BundleId) -> common::Bundle {
        let word = self.bundles.table.load64(id.0, 0).to_ne_bytes();
        let number = |at: usize| u16::from_ne_bytes([word[at], word[at + 1]]);
        common::Bundle { ports: [0, 2, 4].map(|at| PortSetId(number(at))), other: number(6) }
    }

    fn top(&self, set: u32) -> TopContent {
        let mut blocks = Box::new([0; 256]);
        for (word, four) in blocks.chunks_exact_mut(4).enumerate() {
            let bytes = self.tops.table.load64(set, word).to_ne_bytes();
            for (block, bytes) in four.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *block = u16::from_ne_bytes(*bytes);
            }
        }
        blocks
    }

    fn block(&self, block: u32) -> BlockContent {
        std::array::from_fn(|word| self.blocks.table.load64(block, word))
    }

    /// Whether a bundle of the tables accepts nothing that `wanted` denies.
    pub(super) fn is_within(&self, id: BundleId, wanted: &Bundle) -> bool {
        let bundle = self.bundle(id);
        (bundle.other == 0 || wanted.other)
            && bundle.ports.iter().zip(&wanted.ports).all(|(&set, wanted)| {
                let top = self.top(set.0.into());
                top.iter().zip(bits_of(wanted)).all(|(&block, wanted)| {
                    self.block(block.into()).iter().zip(wanted).all(|(&bits, wanted)| bits & !wanted == 0)
                })
            })
    }

    fn used(&self, bundles: impl IntoIterator<Item = BundleId>) -> UsedBundles {
        let mut used = UsedBundles::default();
        for id in bundles {
            if !used.bundles.insert(id.0) {
                continue;
            }
            for set in self.bundle(id).ports {
                if used.tops.insert(set.0.into()) {
                    used.blocks.extend(self.top(set.0.into()).iter().map(|&block| u32::from(block)));
                }
            }
        }
        used
    }

    /// Gives back everything that these bundles do not lead to. Nothing else must have led to it for a grace period.
    pub(super) fn reclaim(&mut self, live: impl IntoIterator<Item = BundleId>) {
        let used = self.used(live);
        self.bundles.retain(&used.bundles);
        self.tops.retain(&used.tops);
        self.blocks.retain(&used.blocks);
        self.known.retain(|_, id| id.0 < FIRST || used.bundles.contains(&id.0));
    }

    /// Whether a bundle is given out; the fixed ones always are.
    pub(super) fn is_taken(&self, id: BundleId) -> bool {
        id.0 < FIRST || self.bundles.free.is_taken(id.0)
    }

    /// By table: its name, entries given out, and how many there are.
    pub(super) fn usage(&self) -> [(&'static str, u32, u32); 3] {
        let of = |name, free: &Slots| (name, free.used(), free.used() + free.free());
        [
            of(self.bundles.name, &self.bundles.free),
            of(self.tops.name, &self.tops.free),
            of(self.blocks.name, &self.blocks.free),
        ]
    }
}

fn write_bundle(table: &MappedArray<common::Bundle>, entry: u32, content: &common::Bundle) {
    let mut word = [0; 8];
    let numbers = content.ports.iter().map(|set| set.0).chain([content.other]);
    for (bytes, number) in word.as_chunks_mut::<2>().0.iter_mut().zip(numbers) {
        *bytes = number.to_ne_bytes();
    }
    table.store64(entry, 0, u64::from_ne_bytes(word));
}

fn write_top(table: &MappedArray<PortsTop>, entry: u32, content: &TopContent) {
    for (word, four) in content.as_chunks::<4>().0.iter().enumerate() {
        let mut bytes = [0; 8];
        for (bytes, block) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(four) {
            *bytes = block.to_ne_bytes();
        }
        table.store64(entry, word, u64::from_ne_bytes(bytes));
    }
}

/// The 256 blocks of 256 bits that a set of ports makes.
fn bits_of(ports: &PortSet) -> impl Iterator<Item = BlockContent> {
    let mut words = vec![0_u64; 1024];
    for &(first, last) in ports.ranges() {
        let (first, last) = (usize::from(first), usize::from(last));
        for (word, bits) in words.iter_mut().enumerate().take(last / 64 + 1).skip(first / 64) {
            let from = first.max(word * 64) - word * 64;
            let to = last.min(word * 64 + 63) - word * 64;
            *bits |= (u64::MAX >> (63 - (to - from))) << from;
        }
    }
    (0..256).map(move |block| std::array::from_fn(|word| words[block * 4 + word]))
}

#[cfg(test)]
mod tests {
    use super::super::maps::double::array;
    use super::*;

    fn tables(limits: &Limits) -> Bundles {
        let tables = Bundles::new(array(64), array(64), array(64), limits, []);
        tables.write_constants();
        tables
    }

    fn tcp(ranges: &[(u16, u16)]) -> Bundle {
        let mut bundle = Bundle::nothing();
        ranges.iter().for_each(|&(first, last)| bundle.ports[0].add(&PortSet::range(first, last)));
        bundle
    }

    fn accepts(tables: &Bundles, id: BundleId, port: u16) -> bool {
        let top = tables.top(tables.bundle(id).ports[0].0.into());
        let block = tables.block(top[usize::from(port >> 8)].into());
        block[usize::from((port >> 6) & 3)] >> (port & 63) & 1 == 1
    }

    #[test]
    fn the_tables_hold_the_ports_of_the_ranges() {
        let mut tables = tables(&Limits::default());
        let bundle = tcp(&[(0, 0), (63, 64), (255, 256), (1000, 3000), (65535, 65535)]);
        let id = tables.intern(&bundle).unwrap();
        for port in 0..=u16::MAX {
            assert_eq!(accepts(&tables, id, port), bundle.ports[0].contains(port), "port {port}");
        }
        assert_eq!(tables.intern(&Bundle::nothing()), Ok(BundleId::NOTHING));
        assert_eq!(tables.intern(&Bundle::everything()), Ok(BundleId::EVERYTHING));
    }

    #[test]
    fn equal_blocks_and_sets_are_written_once_and_given_back_when_unused() {
        let mut tables = tables(&Limits::default());
        let a = tables.intern(&tcp(&[(80, 80)])).unwrap();
        let mut udp = tcp(&[(80, 80)]);
        udp.ports.swap(0, 1);
        let b = tables.intern(&udp).unwrap();
        assert_ne!(a, b);
        assert_eq!(tables.usage().map(|(_, used, _)| used), [2, 1, 1]);
        tables.reclaim([b]);
        assert_eq!(tables.usage().map(|(_, used, _)| used), [1, 1, 1]);
        tables.reclaim([]);
        assert_eq!(tables.usage().map(|(_, used, _)| used), [0, 0, 0]);
    }

    #[test]
    fn compares_sets_and_not_their_numbers() {
        let mut tables = tables(&Limits::default());
        let id = tables.intern(&tcp(&[(80, 90), (7000, 7000)])).unwrap();
        assert!(tables.is_within(id, &tcp(&[(80, 90), (7000, 7001)])));
        assert!(!tables.is_within(id, &tcp(&[(80, 89), (7000, 7001)])));
        assert!(!tables.is_within(BundleId::EVERYTHING, &tcp(&[(0, 65535)])));
        assert!(tables.is_within(BundleId::NOTHING, &Bundle::nothing()));
    }

    #[test]
    fn says_which_table_is_full() {
        let limits = Limits { port_blocks: 3, ..Limits::default() };
        let mut tables = tables(&limits);
        tables.intern(&tcp(&[(80, 80)])).unwrap();
        assert_eq!(tables.intern(&tcp(&[(81, 81)])), Err(Full { table: "PORTS", capacity: 3 }));
        tables.intern(&tcp(&[(80, 80)])).unwrap();
    }
}
