//! IPv6 addresses to class numbers.
//!
//! Three places, asked in this order: CLASS6 for single addresses, PREFIX6 for blocks (longest first), CONFIG's default
//! for everything else. [`Image6`] is what they shall say, with *target* numbers where the tables have class numbers.

mod blocks;

use std::io;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use npolicy_common::{CLASS6_WAYS, Class, Class6Bucket, ClassWord, Prefix6Key, class6_buckets};
use rustc_hash::{FxHashMap, FxHashSet};

use super::maps::{Keyed, MappedArray};
use blocks::Blocks;

const FACTS: u32 = ClassWord::NODE | ClassWord::SERVICE;
/// Words of 64 bits before the classes of a bucket.
const ADDRESS_WORDS: usize = 2 * CLASS6_WAYS;

fn host(address: u128) -> Ipv6Net {
    Ipv6Net::new(address.into(), 128).expect("128 bits are an address")
}

/// What the IPv6 tables shall say.
#[derive(Debug)]
pub(super) struct Image6 {
    exact: FxHashMap<u128, ClassWord>,
    /// Where the addresses of `exact` that are new to CLASS6 go.
    places: FxHashMap<u128, Place>,
    blocks: Blocks,
    default: ClassWord,
    unfit: Vec<Ipv6Net>,
}

impl Image6 {
    /// Decides where everything goes. `blocks` are without host bits and each once. An address comes with its target, if
    /// that differs from its block's, and with facts ([`ClassWord`]'s bits); the first come first where room is short.
    /// `unknown` is the target of what does not fit.
    pub(super) fn new(
        table: &Class6,
        blocks: impl IntoIterator<Item = (Ipv6Net, u32)>,
        addresses: impl IntoIterator<Item = (Ipv6Addr, Option<u32>, u32)>,
        unknown: u32,
    ) -> Self {
        let unknown = ClassWord::class_entry(Class(unknown), 0);
        let mut wanted = Blocks::default();
        for (block, target) in blocks {
            wanted.set(block, ClassWord::class_entry(Class(target), 0));
        }
        let mut image = Self {
            exact: FxHashMap::default(),
            places: FxHashMap::default(),
            blocks: Blocks::default(),
            default: ClassWord(0),
            unfit: Vec::new(),
        };
        let mut reserved = FxHashSet::default();
        let blocks = wanted.clone();
        for (address, target, facts) in addresses {
            let address = u128::from(address);
            let around = || blocks.around(address, 128).map_or(Class::PLAIN, |(_, word)| word.class());
            let word = ClassWord::class_entry(target.map_or_else(around, Class), facts);
            if !table.places.contains_key(&address) {
                match table.free_place(address, &reserved) {
                    Some(place) => {
                        reserved.insert(place);
                        image.places.insert(address, place);
                    }
                    None => {
                        wanted.set(host(address), word);
                        continue;
                    }
                }
            }
            image.exact.insert(address, word);
        }
        image.fit_blocks(table, &wanted, unknown);
        image
    }

    /// Goes on with an image that the tables have taken on: lists an address, or gives it another target and facts.
    /// `reserved` are the places that such calls have taken since. `None`: that takes laying everything out anew.
    pub(super) fn set(
        &mut self,
        table: &Class6,
        address: Ipv6Addr,
        target: u32,
        facts: u32,
        reserved: &mut FxHashSet<Place>,
    ) -> Option<()> {
        let number = u128::from(address);
        if self.blocks.get(host(number)).is_some() {
            return None;
        }
        if !table.places.contains_key(&number) {
            let place = table.free_place(number, reserved)?;
            reserved.insert(place);
            self.places.insert(number, place);
        }
        self.exact.insert(number, ClassWord::class_entry(Class(target), facts));
        Some(())
    }

    /// Goes on with an image that the tables have taken on: lists an address no more. `None`: as in [`Self::set`].
    pub(super) fn remove(&mut self, address: Ipv6Addr) -> Option<()> {
        let number = u128::from(address);
        self.exact.remove(&number);
        self.blocks.get(host(number)).is_none().then_some(())
    }

    /// Takes the blocks that PREFIX6 has room for, those it holds already and the shortest first. What would answer for
    /// a block without room becomes UNKNOWN.
    fn fit_blocks(&mut self, table: &Class6, wanted: &Blocks, unknown: ClassWord) {
        let mut room = (table.limit_blocks as usize).saturating_sub(table.blocks.len());
        let mut shortest_first: Vec<_> = wanted.iter().collect();
        shortest_first.sort_unstable_by_key(|&(block, _)| (block.prefix_len(), block.network()));
        for &(block, word) in &shortest_first {
            if table.blocks.get(block).is_some() {
                self.blocks.set(block, word);
            } else if room > 0 {
                room -= 1;
                self.blocks.set(block, word);
            } else {
                self.unfit.push(block);
            }
        }
        for block in &self.unfit {
            match self.blocks.outside(*block) {
                Some((outside, _)) => self.blocks.set(outside, unknown),
                None => self.default = unknown,
            }
        }
    }

    /// Blocks that found no room.
    pub(super) fn unfit(&self) -> &[Ipv6Net] {
        &self.unfit
    }

    fn around(&self, address: u128, bits: u8) -> ClassWord {
        self.blocks.around(address, bits).map_or(self.default, |(_, word)| word)
    }

    fn outside(&self, block: Ipv6Net) -> ClassWord {
        self.blocks.outside(block).map_or(self.default, |(_, word)| word)
    }
}

/// Bucket and way of an address in CLASS6.
pub(super) type Place = (u32, usize);

/// The IPv6 tables as they stand.
pub(super) struct Class6 {
    buckets: MappedArray<Class6Bucket>,
    prefixes: Box<dyn Keyed<Prefix6Key, u32>>,
    secret: u64,
    limit_addresses: u32,
    limit_blocks: u32,
    /// Where each address of CLASS6 stands.
    places: FxHashMap<u128, Place>,
    /// Ways that held an address until less than a grace period ago.
    resting: FxHashSet<Place>,
    /// What stands in PREFIX6.
    blocks: Blocks,
    default: ClassWord,
}

/// What [`Class6::apply`] did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applied6 {
    /// Words written.
    pub writes: usize,
    /// What CONFIG's default class shall be.
    pub default: ClassWord,
    /// Whether PREFIX6 must be asked.
    pub is_prefix6_used: bool,
}

impl Class6 {
    /// Takes over the tables. `secret` chooses the buckets; `default` is CONFIG's default class.
    ///
    /// # Errors
    ///
    /// The kernel's, when PREFIX6 is read.
    pub(super) fn new(
        buckets: MappedArray<Class6Bucket>,
        prefixes: Box<dyn Keyed<Prefix6Key, u32>>,
        secret: u64,
        default: ClassWord,
        limits: &super::tables::Limits,
    ) -> io::Result<Self> {
        let mut table = Self {
            buckets,
            prefixes,
            secret,
            limit_addresses: limits.class6_addresses,
            limit_blocks: limits.prefix6,
            places: FxHashMap::default(),
            resting: FxHashSet::default(),
            blocks: Blocks::default(),
            default,
        };
        for bucket in 0..table.buckets.entries() {
            for way in 0..CLASS6_WAYS {
                if table.word((bucket, way)) != ClassWord(0) {
                    let high = table.buckets.load64(bucket, 2 * way);
                    let low = table.buckets.load64(bucket, 2 * way + 1);
                    table.places.insert(u128::from(high) << 64 | u128::from(low), (bucket, way));
                }
            }
        }
        for (key, word) in table.prefixes.entries()? {
            let block = Ipv6Net::new(key.address.into(), key.bits.min(128) as u8).expect("at most 128 bits");
            table.blocks.set(block, ClassWord(word));
        }
        Ok(table)
    }

    fn word(&self, (bucket, way): Place) -> ClassWord {
        ClassWord(self.buckets.load32(bucket, 2 * ADDRESS_WORDS + way))
    }

    fn set_word(&self, (bucket, way): Place, word: ClassWord) {
        self.buckets.flip32(bucket, 2 * ADDRESS_WORDS + way, word.0);
    }

    fn free_place(&self, address: u128, reserved: &FxHashSet<Place>) -> Option<Place> {
        if self.places.len() + self.resting.len() + reserved.len() >= self.limit_addresses as usize {
            return None;
        }
        let (one, other) = class6_buckets([(address >> 64) as u64, address as u64], self.secret);
        let places = [one, other].into_iter().flat_map(|bucket| (0..CLASS6_WAYS).map(move |way| (bucket, way)));
        let mut free = places.filter(|place| {
            self.word(*place) == ClassWord(0) && !self.resting.contains(place) && !reserved.contains(place)
        });
        free.next()
    }

    /// Addresses and blocks in the tables, each with how many there may be.
    pub(super) fn usage(&self) -> [(u32, u32); 2] {
        [(self.places.len() as u32, self.limit_addresses), (self.blocks.len() as u32, self.limit_blocks)]
    }

    fn around(&self, address: u128, bits: u8) -> ClassWord {
        self.blocks.around(address, bits).map_or(self.default, |(_, word)| word)
    }

    fn outside(&self, block: Ipv6Net) -> ClassWord {
        self.blocks.outside(block).map_or(self.default, |(_, word)| word)
    }

    /// Calls `found` with the number each region has and the target it shall have.
    pub(super) fn survey(&self, image: &Image6, found: &mut dyn FnMut(Class, u32)) {
        for (&address, then) in &image.exact {
            let now = self.places.get(&address).map_or_else(|| self.around(address, 128), |&place| self.word(place));
            found(now.class(), then.class().0);
        }
        for (&address, &place) in self.places.iter().filter(|(address, _)| !image.exact.contains_key(address)) {
            found(self.word(place).class(), image.around(address, 128).class().0);
        }
        for (block, then) in image.blocks.iter() {
            let now = self.blocks.get(block).unwrap_or_else(|| self.outside(block));
            found(now.class(), then.class().0);
        }
        for (block, now) in self.blocks.iter().filter(|(block, _)| image.blocks.get(*block).is_none()) {
            found(now.class(), image.outside(block).class().0);
        }
        found(self.default.class(), image.default.class().0);
    }

    /// Gives every region the number that `number` says for the number it has and its target. What the image does not
    /// list goes as soon as that changes no number. CONFIG is the caller's to write, after this.
    ///
    /// # Errors
    ///
    /// The kernel's, when PREFIX6 is written.
    pub(super) fn apply(&mut self, image: &Image6, number: &dyn Fn(Class, u32) -> Class) -> io::Result<Applied6> {
        let mut writes = 0;
        let word = |now: ClassWord, then: ClassWord| {
            ClassWord::class_entry(number(now.class(), then.class().0), then.0 & FACTS)
        };
        let listed = |word: ClassWord| ClassWord(word.0 | ClassWord::LISTED);
        // Addresses first: the number of a new one is that of the block it was in before.
        for (&address, &then) in &image.exact {
            match self.places.get(&address) {
                Some(&place) => {
                    let now = self.word(place);
                    let word = listed(word(now, then));
                    if word != now {
                        self.set_word(place, word);
                        writes += 1;
                    }
                }
                None => {
                    let place @ (bucket, way) = image.places[&address];
                    self.buckets.store64(bucket, 2 * way, (address >> 64) as u64);
                    self.buckets.store64(bucket, 2 * way + 1, address as u64);
                    self.set_word(place, listed(word(self.around(address, 128), then)));
                    self.places.insert(address, place);
                    writes += 1;
                }
            }
        }
        for (address, place) in self.going(image) {
            let now = self.word(place);
            let word = listed(word(now, image.around(address, 128)));
            if word != now {
                self.set_word(place, word);
                writes += 1;
            }
        }
        // Then blocks, the longest first, so that a new one meets the block around it as it was.
        let mut changes: Vec<(Ipv6Net, ClassWord)> = Vec::new();
        for (block, then) in image.blocks.iter() {
            let now = self.blocks.get(block);
            let word = word(now.unwrap_or_else(|| self.outside(block)), then);
            if now != Some(word) {
                changes.push((block, word));
            }
        }
        for (block, now) in self.blocks.iter().filter(|(block, _)| image.blocks.get(*block).is_none()) {
            let word = word(now, image.outside(block));
            if word != now {
                changes.push((block, word));
            }
        }
        writes += changes.len();
        for (block, word) in changes {
            self.prefixes.set(key(block), word.0)?;
            self.blocks.set(block, word);
        }
        self.default = word(self.default, image.default);
        Ok(Applied6 { writes, default: self.default, is_prefix6_used: self.blocks.len() > 0 })
    }

    /// Removes what the image does not list, where the block around it says the same; returns how many entries went.
    /// CONFIG's default must have been written.
    ///
    /// # Errors
    ///
    /// The kernel's, when PREFIX6 is written.
    pub(super) fn prune(&mut self, image: &Image6) -> io::Result<usize> {
        let same = |a: ClassWord, b: ClassWord| a.0 & !ClassWord::LISTED == b.0 & !ClassWord::LISTED;
        let mut gone = 0;
        for (address, place) in self.going(image) {
            if same(self.word(place), self.around(address, 128)) {
                self.set_word(place, ClassWord(0));
                self.places.remove(&address);
                self.resting.insert(place);
                gone += 1;
            }
        }
        let going: Vec<_> = self.blocks.iter().filter(|(block, _)| image.blocks.get(*block).is_none()).collect();
        for (block, now) in going {
            if same(now, self.outside(block)) {
                self.prefixes.remove(key(block))?;
                self.blocks.remove(block);
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// Addresses of CLASS6 that an image does not list.
    fn going(&self, image: &Image6) -> Vec<(u128, Place)> {
        let going = self.places.iter().filter(|(address, _)| !image.exact.contains_key(address));
        going.map(|(&address, &place)| (address, place)).collect()
    }

    /// The ways that rest now.
    pub(super) fn resting(&self) -> Vec<Place> {
        self.resting.iter().copied().collect()
    }

    /// Gives back ways that [`Self::resting`] named a grace period ago.
    pub(super) fn reclaim(&mut self, places: &[Place]) {
        for place in places {
            self.resting.remove(place);
        }
    }

    /// Whether PREFIX6 holds anything.
    pub(super) fn is_prefix6_used(&self) -> bool {
        self.blocks.len() > 0
    }
}

fn key(block: Ipv6Net) -> Prefix6Key {
    Prefix6Key { bits: block.prefix_len().into(), address: block.network().octets() }
}

impl std::fmt::Debug for Class6 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Class6({} addresses, {} blocks)", self.places.len(), self.blocks.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::maps::double::{Double, File};
    use super::super::tables::Limits;
    use super::*;

    /// Numbers are targets: what is asked of the tables alone.
    fn as_target(_: Class, target: u32) -> Class {
        Class(target)
    }

    fn apply(table: &mut Class6, blocks: &[(&str, u32)], addresses: &[(&str, u32)]) -> Vec<Ipv6Net> {
        let blocks = blocks.iter().map(|&(block, target)| (block.parse().unwrap(), target));
        let addresses = addresses.iter().map(|&(address, target)| (address.parse().unwrap(), Some(target), 0));
        let image = Image6::new(table, blocks, addresses, 99);
        table.apply(&image, &as_target).unwrap();
        table.prune(&image).unwrap();
        image.unfit().to_vec()
    }

    fn class(table: &Class6, address: &str) -> u32 {
        let address = u128::from(address.parse::<Ipv6Addr>().unwrap());
        let word = table.places.get(&address).map_or_else(|| table.around(address, 128), |&place| table.word(place));
        word.class().0
    }

    fn start(file: &File, prefixes: &Double<Prefix6Key, u32>, limits: Limits) -> Class6 {
        Class6::new(file.map(), Box::new(prefixes.clone()), 12_345, ClassWord(0), &limits).unwrap()
    }

    #[test]
    fn what_does_not_fit_makes_what_would_answer_for_it_unknown() {
        let (file, prefixes) = (File::new::<Class6Bucket>(65_536), Double::default());
        let mut table = start(&file, &prefixes, Limits { prefix6: 2, class6_addresses: 1, ..Limits::default() });
        let blocks = [("fd00::/16", 4), ("fd00:1::/32", 5), ("fd00:2::/32", 6)];
        let unfit = apply(&mut table, &blocks, &[("fd00:1::1", 7), ("2001:db8::1", 8)]);
        assert_eq!(unfit, ["fd00:2::/32", "2001:db8::1/128"].map(|block| block.parse().unwrap()));
        assert_eq!(class(&table, "fd00:1::1"), 7);
        assert_eq!(class(&table, "fd00:1::2"), 5);
        assert_eq!(class(&table, "fd00:2::1"), 99, "its block has no room");
        assert_eq!(class(&table, "fd00:3::1"), 99, "so the block around it answers for none");
        assert_eq!(class(&table, "2001:db8::1"), 99);
    }

    #[test]
    fn a_bucket_that_is_full_sends_the_address_to_the_blocks() {
        let (file, prefixes) = (File::new::<Class6Bucket>(65_536), Double::default());
        let mut table = start(&file, &prefixes, Limits::default());
        let address = "2001:db8::5";
        let number = u128::from(address.parse::<Ipv6Addr>().unwrap());
        let (one, other) = class6_buckets([(number >> 64) as u64, number as u64], table.secret);
        for place in [one, other].into_iter().flat_map(|bucket| (0..CLASS6_WAYS).map(move |way| (bucket, way))) {
            table.resting.insert(place);
        }
        assert!(apply(&mut table, &[], &[(address, 4)]).is_empty());
        assert_eq!(prefixes.0.lock().unwrap().len(), 1);
        assert_eq!(class(&table, address), 4);
        assert_eq!(class(&start(&file, &prefixes, Limits::default()), address), 4, "after a restart too");
    }

    #[test]
    fn a_way_rests_until_it_is_reclaimed() {
        let (file, prefixes) = (File::new::<Class6Bucket>(65_536), Double::default());
        let mut table = start(&file, &prefixes, Limits { class6_addresses: 1, prefix6: 0, ..Limits::default() });
        assert!(apply(&mut table, &[], &[("2001:db8::1", 4)]).is_empty());
        apply(&mut table, &[], &[]);
        assert_eq!(class(&table, "2001:db8::1"), 0);
        assert_eq!(apply(&mut table, &[], &[("2001:db8::2", 4)]).len(), 1, "no room yet");
        let resting = table.resting();
        table.reclaim(&resting);
        assert!(apply(&mut table, &[], &[("2001:db8::2", 4)]).is_empty());
        assert_eq!(class(&table, "2001:db8::2"), 4);
    }
}
