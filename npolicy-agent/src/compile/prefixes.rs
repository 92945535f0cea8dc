//! Blocks of addresses, nested as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::plan::{Fact, PeerId};
use crate::model::IpBlock;

/// Finds the longest of some blocks that contains an address, in as many steps as there are prefix lengths.
#[derive(Clone, Default, Debug)]
pub(super) struct PrefixTable {
    blocks: FxHashMap<IpNet, usize>,
    /// Prefix lengths in use, longest first: IPv4, IPv6.
    lengths: [Vec<u8>; 2],
}

impl PrefixTable {
    /// Numbers blocks by their place in the order given; each must be without host bits.
    pub(super) fn new(blocks: impl IntoIterator<Item = IpNet>) -> Self {
        let mut table = Self::default();
        for (index, block) in blocks.into_iter().enumerate() {
            table.blocks.insert(block, index);
            table.lengths[usize::from(block.addr().is_ipv6())].push(block.prefix_len());
        }
        for lengths in &mut table.lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        table
    }

    /// The number of the longest block that contains an address.
    pub(super) fn find(&self, address: IpAddr) -> Option<usize> {
        self.lengths[usize::from(address.is_ipv6())].iter().find_map(|&length| {
            let block = IpNet::new(address, length).expect("the length is one of this family").trunc();
            self.blocks.get(&block).copied()
        })
    }
}

/// The blocks that peers in use name, and what is said of an address in each.
#[derive(Default, Debug)]
pub(super) struct Blocks {
    peers: BTreeMap<PeerId, IpBlock>,
    split: Vec<(IpNet, Arc<[Fact]>)>,
    table: PrefixTable,
}

impl Blocks {
    /// Takes note of peers that have come into use or gone out of it. Returns the blocks in which other things are said
    /// now; none: nothing has changed.
    pub(super) fn turn_over<'a>(
        &mut self,
        added: impl IntoIterator<Item = (PeerId, &'a IpBlock)>,
        dropped: impl IntoIterator<Item = (PeerId, &'a IpBlock)>,
    ) -> Option<PrefixTable> {
        let mut changed = Vec::new();
        for (id, block) in dropped {
            self.peers.remove(&id);
            changed.push(block.block);
        }
        for (id, block) in added {
            changed.push(block.block);
            self.peers.insert(id, block.clone());
        }
        if changed.is_empty() {
            return None;
        }
        let split = split_at_blocks(self.peers.iter().map(|(&id, block)| (id, block)));
        self.split = split.into_iter().map(|(block, facts)| (block, facts.into())).collect();
        self.table = PrefixTable::new(self.split.iter().map(|&(block, _)| block));
        Some(PrefixTable::new(changed))
    }

    /// Every block with what is said of an address that is in it and in no longer one; ascending.
    pub(super) fn split(&self) -> &[(IpNet, Arc<[Fact]>)] {
        &self.split
    }

    /// Where in [`Self::split`] the longest block stands that contains an address.
    pub(super) fn find(&self, address: IpAddr) -> Option<usize> {
        self.table.find(address)
    }

    /// What the blocks around an address say of it, ascending.
    pub(super) fn at(&self, address: IpAddr) -> &[Fact] {
        self.find(address).map_or(&[], |index| &self.split[index].1)
    }

    /// The peers whose blocks are wanted, ascending.
    pub(super) fn peers(&self, is_wanted: impl Fn(&IpBlock) -> bool) -> Vec<Fact> {
        self.peers.iter().filter(|(_, block)| is_wanted(block)).map(|(&id, _)| Fact::Peer(id)).collect()
    }
}

/// Splits the address space at the boundaries of peers: every block and except, ascending, with the facts of an address
/// that is in it and in no longer one.
pub(super) fn split_at_blocks<'a>(peers: impl IntoIterator<Item = (PeerId, &'a IpBlock)>) -> Vec<(IpNet, Vec<Fact>)> {
    #[derive(Default)]
    struct Change {
        enters: Vec<PeerId>,
        leaves: Vec<PeerId>,
    }
    let mut changes: BTreeMap<IpNet, Change> = BTreeMap::new();
    for (id, peer) in peers {
        // An except that covers the whole block leaves nothing of it; one beside it takes nothing away.
        if peer.excepts.iter().any(|except| except.contains(&peer.block)) {
            continue;
        }
        changes.entry(peer.block).or_default().enters.push(id);
        for &except in peer.excepts.iter().filter(|except| peer.block.contains(*except)) {
            changes.entry(except).or_default().leaves.push(id);
        }
    }
    // Ascending by address, the longer after the shorter: each block comes behind those that contain it.
    let mut split: Vec<(IpNet, Vec<Fact>)> = Vec::with_capacity(changes.len());
    let mut around: Vec<(IpNet, BTreeSet<PeerId>)> = Vec::new();
    for (block, change) in changes {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&block)) {
            around.pop();
        }
        let mut inside = around.last().map(|(_, inside)| inside.clone()).unwrap_or_default();
        inside.extend(change.enters);
        for id in change.leaves {
            inside.remove(&id);
        }
        split.push((block, inside.iter().copied().map(Fact::Peer).collect()));
        around.push((block, inside));
    }
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(block: &str, excepts: &[&str]) -> IpBlock {
        IpBlock::new(block.parse().unwrap(), excepts.iter().map(|except| except.parse().unwrap()))
    }

    #[test]
    fn every_address_has_the_facts_that_its_blocks_say() {
        let peers = [
            block("10.0.0.0/8", &["10.1.0.0/16", "10.2.3.0/24"]),
            block("10.1.2.0/24", &[]),
            block("10.1.0.0/16", &["10.1.2.128/25"]),
            block("0.0.0.0/0", &["10.0.0.0/8"]),
            block("10.9.0.0/16", &["10.9.0.0/16"]),
            block("10.8.0.0/16", &["10.0.0.0/8", "11.0.0.0/8"]),
            block("fd00::/8", &["fd00:1::/32", "10.0.0.0/8"]),
            block("::/0", &[]),
        ];
        let split = split_at_blocks(peers.iter().enumerate().map(|(id, peer)| (PeerId(id as u32), peer)));
        let table = PrefixTable::new(split.iter().map(|&(block, _)| block));
        for address in [
            "10.0.0.1",
            "10.1.0.1",
            "10.1.2.1",
            "10.1.2.129",
            "10.1.2.255",
            "10.1.3.0",
            "10.2.3.4",
            "10.2.4.4",
            "10.9.1.1",
            "10.8.1.1",
            "11.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "fd00::1",
            "fd00:1::1",
            "fd00:2::1",
            "fe80::1",
            "::",
        ] {
            let address: IpAddr = address.parse().unwrap();
            let expected: Vec<_> = (0..)
                .zip(&peers)
                .filter(|(_, peer)| peer.contains(address))
                .map(|(id, _)| Fact::Peer(PeerId(id)))
                .collect();
            let found = table.find(address).map_or(&[][..], |index| &split[index].1);
            assert_eq!(found, expected, "{address}");
        }
    }
}
