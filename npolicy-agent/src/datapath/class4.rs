//! IPv4 addresses to class numbers.
//!
//! [`Image4`] is what the table shall say, in the table's own shape: 256 roots by the first byte of an address, chunks
//! below them, but with *target* numbers (places in a list of keys) where the table has class numbers. Laying the image
//! over the table gives every region of addresses with the number it has and the target it shall have.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use npolicy_common::{Class, ClassChunk, ClassWord, maps};

use super::maps::MappedArray;
use super::slots::Slots;

const ROOTS: usize = maps::CLASS4_ROOTS as usize;
const FACTS: u32 = ClassWord::NODE | ClassWord::SERVICE;

/// What CLASS4 shall say.
#[derive(Debug)]
pub(super) struct Image4 {
    chunks: Vec<[ClassWord; 256]>,
    unknown: ClassWord,
    /// Chunks that may still be taken from the table.
    budget: u32,
    unfit: Vec<Ipv4Net>,
}

impl Image4 {
    /// An image in which every address has target 0. `unknown` is the target of what does not fit.
    pub(super) fn new(table: &Class4, unknown: u32) -> Self {
        Self {
            chunks: vec![[ClassWord(0); 256]; ROOTS],
            unknown: ClassWord::class_entry(Class(unknown), 0),
            budget: table.free.free(),
            unfit: Vec::new(),
        }
    }

    /// Goes on with an image that the table has taken on.
    pub(super) fn look_again(&mut self, table: &Class4) {
        self.budget = table.free.free();
    }

    /// Gives an address a place of its own before others take the room; says nothing about its target.
    pub(super) fn make_room(&mut self, table: &Class4, address: Ipv4Addr) {
        self.fill_range(table, address.into(), address.into(), &|word| word);
    }

    /// Gives a block a target and facts ([`ClassWord`]'s bits), over everything said before about its addresses. Blocks
    /// that contain others come first.
    pub(super) fn fill(&mut self, table: &Class4, block: Ipv4Net, target: u32, facts: u32) {
        let word = ClassWord::class_entry(Class(target), facts);
        self.fill_range(table, block.network().into(), block.broadcast().into(), &|_| word);
    }

    /// Notes that an address is this node's own.
    pub(super) fn mark_node(&mut self, table: &Class4, address: Ipv4Addr) {
        self.fill_range(table, address.into(), address.into(), &|word| ClassWord(word.0 | ClassWord::NODE));
    }

    /// Blocks whose addresses became UNKNOWN for want of a chunk.
    pub(super) fn unfit(&self) -> &[Ipv4Net] {
        &self.unfit
    }

    fn fill_range(&mut self, table: &Class4, low: u32, high: u32, change: &dyn Fn(ClassWord) -> ClassWord) {
        for first in low >> 24..=high >> 24 {
            let here = Range { base: first << 24, shift: 16 };
            self.fill_chunk(table, first as usize, Some(first), here, (low, high), change);
        }
    }

    /// `twin` is the chunk of the table at the same place, if there is one.
    fn fill_chunk(
        &mut self,
        table: &Class4,
        chunk: usize,
        twin: Option<u32>,
        here: Range,
        (low, high): (u32, u32),
        change: &dyn Fn(ClassWord) -> ClassWord,
    ) {
        let entry_of = |address: u32| ((address - here.base) >> here.shift) as usize;
        let from = entry_of(low.max(here.base));
        let to = entry_of(high.min(here.base + ((1 << (here.shift + 8)) - 1)));
        for entry in from..=to {
            let first = here.base + ((entry as u32) << here.shift);
            let last = first + ((1 << here.shift) - 1);
            let word = self.chunks[chunk][entry];
            let is_whole = low <= first && last <= high;
            if word.chunk().is_none() && is_whole {
                self.chunks[chunk][entry] = change(word);
                continue;
            }
            let twin = twin.and_then(|twin| table.word(twin, entry).chunk());
            match self.chunk_below(chunk, entry, twin.is_some()) {
                Some(below) => {
                    let below_here = Range { base: first, shift: here.shift - 8 };
                    self.fill_chunk(table, below, twin, below_here, (low, high), change);
                }
                None => {
                    let block = Ipv4Net::new(first.into(), 32 - here.shift as u8).expect("shifts are 0, 8 or 16");
                    if self.chunks[chunk][entry] != self.unknown {
                        self.chunks[chunk][entry] = self.unknown;
                        self.unfit.push(block);
                    }
                }
            }
        }
    }

    /// The chunk below an entry; made if there is none, unless the table would have no room for it.
    fn chunk_below(&mut self, chunk: usize, entry: usize, is_in_table: bool) -> Option<usize> {
        let word = self.chunks[chunk][entry];
        if let Some(below) = word.chunk() {
            return Some(below as usize);
        }
        if !is_in_table {
            self.budget = self.budget.checked_sub(1)?;
        }
        let below = self.chunks.len();
        self.chunks.push([word; 256]);
        self.chunks[chunk][entry] = ClassWord::chunk_entry(below as u32);
        Some(below)
    }
}

#[derive(Clone, Copy)]
struct Range {
    base: u32,
    shift: u32,
}

/// CLASS4 as it stands.
#[derive(Debug)]
pub(super) struct Class4 {
    chunks: MappedArray<ClassChunk>,
    free: Slots,
    /// Chunks that were reachable until less than a grace period ago.
    resting: Vec<u32>,
}

impl Class4 {
    /// Takes over the table; what its roots do not lead to is free.
    pub(super) fn new(chunks: MappedArray<ClassChunk>, capacity: u32) -> Self {
        let end = capacity.min(chunks.entries());
        let mut table = Self { chunks, free: Slots::new(maps::CLASS4_ROOTS, end), resting: Vec::new() };
        for chunk in table.reachable() {
            table.free.claim(chunk);
        }
        table
    }

    fn word(&self, chunk: u32, entry: usize) -> ClassWord {
        ClassWord(self.chunks.load32(chunk, entry))
    }

    /// Chunks below the roots, parents first.
    fn reachable(&self) -> Vec<u32> {
        let mut found: Vec<u32> = Vec::new();
        let mut level: Vec<u32> = (0..maps::CLASS4_ROOTS).collect();
        for _ in 0..2 {
            level = level.iter().flat_map(|&chunk| (0..256).filter_map(move |e| self.word(chunk, e).chunk())).collect();
            found.extend(&level);
        }
        found
    }

    /// Chunks given out, and how many there are.
    pub(super) fn usage(&self) -> (u32, u32) {
        (self.free.used(), self.free.used() + self.free.free())
    }

    /// Calls `found` with the number each region has and the target it shall have.
    pub(super) fn survey(&self, image: &Image4, found: &mut dyn FnMut(Class, u32)) {
        for root in 0..maps::CLASS4_ROOTS {
            for entry in 0..256 {
                self.survey_entry(self.word(root, entry), image, image.chunks[root as usize][entry], found);
            }
        }
    }

    fn survey_entry(&self, now: ClassWord, image: &Image4, then: ClassWord, found: &mut dyn FnMut(Class, u32)) {
        if now.chunk().is_none() && then.chunk().is_none() {
            return found(now.class(), then.class().0);
        }
        for entry in 0..256 {
            let now = now.chunk().map_or(now, |chunk| self.word(chunk, entry));
            let then = then.chunk().map_or(then, |chunk| image.chunks[chunk as usize][entry]);
            self.survey_entry(now, image, then, found);
        }
    }

    /// Gives every region the number that `number` says for the number it has and its target; returns how many entries
    /// were written. The image's room was taken from what is free here, so a chunk is always found.
    pub(super) fn apply(&mut self, image: &Image4, number: &dyn Fn(Class, u32) -> Class) -> usize {
        let mut writes = 0;
        for root in 0..maps::CLASS4_ROOTS {
            self.apply_chunk(root, image, Below::Chunk(root as usize), number, &mut writes);
        }
        writes
    }

    fn apply_chunk(
        &mut self,
        chunk: u32,
        image: &Image4,
        below: Below,
        number: &dyn Fn(Class, u32) -> Class,
        writes: &mut usize,
    ) {
        for entry in 0..256 {
            let now = self.word(chunk, entry);
            let then = below.entry(image, entry);
            let word = match now.chunk() {
                Some(child) => {
                    self.apply_chunk(child, image, then, number, writes);
                    match then {
                        Below::Word(_) => self.uniform(child).unwrap_or(now),
                        Below::Chunk(_) => now,
                    }
                }
                None => self.grow(now, image, then, number),
            };
            if word != now {
                self.chunks.flip32(chunk, entry, word.0);
                self.resting.extend(now.chunk());
                *writes += 1;
            }
        }
    }

    /// The new word of an entry that leads to no chunk; the chunks it needs are complete when this returns.
    fn grow(&mut self, now: ClassWord, image: &Image4, then: Below, number: &dyn Fn(Class, u32) -> Class) -> ClassWord {
        match then {
            Below::Word(then) => ClassWord::class_entry(number(now.class(), then.class().0), then.0 & FACTS),
            Below::Chunk(_) => {
                let chunk = self.free.take().expect("the image takes no more chunks than are free");
                for entry in 0..256 {
                    let word = self.grow(now, image, then.entry(image, entry), number);
                    self.chunks.store32(chunk, entry, word.0);
                }
                ClassWord::chunk_entry(chunk)
            }
        }
    }

    /// The word that all entries of a chunk have in common.
    fn uniform(&self, chunk: u32) -> Option<ClassWord> {
        let first = self.word(chunk, 0);
        (first.chunk().is_none() && (1..256).all(|entry| self.word(chunk, entry) == first)).then_some(first)
    }

    /// The chunks that rest now.
    pub(super) fn resting(&self) -> Vec<u32> {
        self.resting.clone()
    }

    /// Gives back chunks that [`Self::resting`] named a grace period ago.
    pub(super) fn reclaim(&mut self, chunks: &[u32]) {
        chunks.iter().for_each(|&chunk| self.free.give_back(chunk));
        self.resting.retain(|chunk| !chunks.contains(chunk));
    }
}

/// What an image says below an entry of the table.
#[derive(Clone, Copy)]
enum Below {
    Chunk(usize),
    Word(ClassWord),
}

impl Below {
    fn entry(self, image: &Image4, entry: usize) -> Self {
        match self {
            Self::Chunk(chunk) => {
                let word = image.chunks[chunk][entry];
                word.chunk().map_or(Self::Word(word), |below| Self::Chunk(below as usize))
            }
            Self::Word(word) => Self::Word(word),
        }
    }
}
