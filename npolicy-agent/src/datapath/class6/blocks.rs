//! IPv6 blocks in this process: what answers for an address that has no entry of its own.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ipnet::Ipv6Net;
use npolicy_common::ClassWord;
use rustc_hash::FxHashMap;

/// Blocks and the word of each; the longest that contains an address counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks(BTreeMap<Reverse<u8>, FxHashMap<u128, ClassWord>>);

fn masked(address: u128, bits: u8) -> u128 {
    address & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

impl Blocks {
    pub(super) fn set(&mut self, block: Ipv6Net, word: ClassWord) {
        self.0.entry(Reverse(block.prefix_len())).or_default().insert(block.network().into(), word);
    }

    pub(super) fn remove(&mut self, block: Ipv6Net) {
        if let Some(blocks) = self.0.get_mut(&Reverse(block.prefix_len())) {
            blocks.remove(&block.network().into());
        }
    }

    pub(super) fn get(&self, block: Ipv6Net) -> Option<ClassWord> {
        self.0.get(&Reverse(block.prefix_len()))?.get(&block.network().into()).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.0.values().map(FxHashMap::len).sum()
    }

    /// The longest block of at most `bits` bits that contains an address.
    pub(super) fn around(&self, address: u128, bits: u8) -> Option<(Ipv6Net, ClassWord)> {
        self.0.range(Reverse(bits)..).find_map(|(&Reverse(bits), blocks)| {
            let network = masked(address, bits);
            let block = Ipv6Net::new(network.into(), bits).expect("a block has at most 128 bits");
            blocks.get(&network).map(|&word| (block, word))
        })
    }

    /// The longest block that contains another and is not the same.
    pub(super) fn outside(&self, block: Ipv6Net) -> Option<(Ipv6Net, ClassWord)> {
        self.around(block.network().into(), block.prefix_len().checked_sub(1)?)
    }

    /// All of them, the longest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ipv6Net, ClassWord)> {
        self.0.iter().flat_map(|(&Reverse(bits), blocks)| {
            blocks.iter().map(move |(&network, &word)| {
                (Ipv6Net::new(network.into(), bits).expect("a block has at most 128 bits"), word)
            })
        })
    }
}
