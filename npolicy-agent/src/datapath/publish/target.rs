//! What the address tables shall say.

use std::net::IpAddr;

use ipnet::IpNet;
use npolicy_common::ClassWord;
use rustc_hash::FxHashSet;

use crate::compile::{Changes, ClassIndex, Plan};
use crate::datapath::class4::{Class4, Image4};
use crate::datapath::class6::{Class6, Image6};
use crate::datapath::numbers::PeerKey;

/// What the address tables shall say, and what the targets stand for.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) image4: Image4,
    pub(super) image6: Image6,
    /// By target: the plan's classes.
    keys: Vec<PeerKey>,
}

/// The target of what does not fit; no class has an index this great.
const UNKNOWN: u32 = (1 << 20) - 1;

/// How many blocks may be looked at for addresses that changed; beyond that, everything is laid out again.
const BLOCKS_LOOKED_AT: usize = 200_000;

impl Target {
    /// What the address tables shall say. This node's own pods and addresses get their room first.
    pub(super) fn new(plan: &Plan, class4: &Class4, class6: &Class6) -> Self {
        assert!(!plan.classes.is_empty(), "a plan's first class is the empty one");
        let keys = keys(plan);
        let of_subjects = plan.subjects.values().flat_map(|subject| subject.addresses.iter().copied());
        let local: FxHashSet<IpAddr> = (of_subjects.filter(|address| plan.exact.contains_key(address)))
            .chain(plan.node_addresses.iter().copied())
            .collect();

        let mut image4 = Image4::new(class4, UNKNOWN);
        for address in &local {
            if let IpAddr::V4(address) = address {
                image4.make_room(class4, *address);
            }
        }
        let mut blocks: Vec<&(IpNet, ClassIndex)> = plan.prefixes.iter().collect();
        blocks.sort_unstable_by_key(|(block, _)| block.prefix_len());
        for (block, class) in blocks {
            if let IpNet::V4(block) = block {
                image4.fill(class4, *block, class.0, 0);
            }
        }
        for (&address, class) in &plan.exact {
            if let IpAddr::V4(address) = address {
                image4.fill(class4, address.into(), class.0, service(plan, *class));
            }
        }
        for address in &plan.node_addresses {
            if let IpAddr::V4(address) = address {
                image4.mark_node(class4, *address);
            }
        }

        let exact6 = |address: IpAddr| match address {
            IpAddr::V6(v6) => {
                let node = if plan.node_addresses.contains(&address) { ClassWord::NODE } else { 0 };
                let class = plan.exact.get(&address);
                Some((v6, class.map(|class| class.0), node | class.map_or(0, |&class| service(plan, class))))
            }
            IpAddr::V4(_) => None,
        };
        let others = plan.exact.keys().copied().filter(|address| !local.contains(address));
        let addresses6 = local.iter().copied().chain(others).filter_map(exact6);
        let blocks6 = plan.prefixes.iter().filter_map(|(block, class)| match block {
            IpNet::V6(block) => Some((*block, class.0)),
            IpNet::V4(_) => None,
        });
        let image6 = Image6::new(class6, blocks6, addresses6, UNKNOWN);
        Self { image4, image6, keys }
    }

    /// The same with what changes say, none of them of blocks or of this node's own addresses. `None`: better laid out anew.
    pub(super) fn changed(mut self, plan: &Plan, changes: &Changes, class4: &Class4, class6: &Class6) -> Option<Self> {
        let is_much = changes.addresses.len().saturating_mul(plan.prefixes.len()) > BLOCKS_LOOKED_AT;
        if changes.blocks || changes.node_addresses || is_much || !self.unfit().is_empty() {
            return None;
        }
        self.keys = keys(plan);
        self.image4.look_again(class4);
        let mut reserved = FxHashSet::default();
        for address in &changes.addresses {
            let exact = plan.exact.get(address).copied();
            let is_node = plan.node_addresses.contains(address);
            let class = exact.unwrap_or_else(|| plan.block_class_of(*address));
            let facts = exact.map_or(0, |class| service(plan, class)) | if is_node { ClassWord::NODE } else { 0 };
            match *address {
                IpAddr::V4(address) => self.image4.fill(class4, address.into(), class.0, facts),
                IpAddr::V6(address) if exact.is_some() || is_node => {
                    self.image6.set(class6, address, class.0, facts, &mut reserved)?;
                }
                IpAddr::V6(address) => self.image6.remove(address)?,
            }
        }
        self.unfit().is_empty().then_some(self)
    }

    /// What a target stands for.
    pub(super) fn key(&self, target: u32) -> &PeerKey {
        if target == UNKNOWN { &PeerKey::Unknown } else { &self.keys[target as usize] }
    }

    /// Blocks that did not fit, ascending.
    pub(super) fn unfit(&self) -> Vec<IpNet> {
        let v4 = self.image4.unfit().iter().copied().map(IpNet::V4);
        let v6 = self.image6.unfit().iter().copied().map(IpNet::V6);
        let mut unfit: Vec<IpNet> = v4.chain(v6).collect();
        unfit.sort_unstable();
        unfit.dedup();
        unfit
    }
}

fn keys(plan: &Plan) -> Vec<PeerKey> {
    plan.classes.iter().cloned().map(PeerKey::Class).collect()
}

fn service(plan: &Plan, class: ClassIndex) -> u32 {
    if plan.classes[class.0 as usize].is_service() { ClassWord::SERVICE } else { 0 }
}
