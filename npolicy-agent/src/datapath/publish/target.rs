//! What the address tables shall say.

use std::net::IpAddr;

use ipnet::IpNet;
use npolicy_common::ClassWord;
use rustc_hash::FxHashSet;

use crate::compile::{ClassIndex, Plan};
use crate::datapath::class4::{Class4, Image4};
use crate::datapath::class6::{Class6, Image6};
use crate::datapath::numbers::PeerKey;

/// What the address tables shall say, and what the targets stand for.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) image4: Image4,
    pub(super) image6: Image6,
    /// By target: the plan's classes, then UNKNOWN.
    pub(super) keys: Vec<PeerKey>,
}

impl Target {
    /// What the address tables shall say. This node's own pods and addresses get their room first.
    pub(super) fn new(plan: &Plan, class4: &Class4, class6: &Class6) -> Self {
        assert!(!plan.classes.is_empty(), "a plan's first class is the empty one");
        let unknown = plan.classes.len() as u32;
        let mut keys: Vec<PeerKey> = plan.classes.iter().cloned().map(PeerKey::Class).collect();
        keys.push(PeerKey::Unknown);
        let of_subjects = plan.subjects.values().flat_map(|subject| subject.addresses.iter().copied());
        let service = |class: ClassIndex| match plan.classes[class.0 as usize].is_service() {
            true => ClassWord::SERVICE,
            false => 0,
        };
        let local: FxHashSet<IpAddr> = (of_subjects.filter(|address| plan.exact.contains_key(address)))
            .chain(plan.node_addresses.iter().copied())
            .collect();

        let mut image4 = Image4::new(class4, unknown);
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
                image4.fill(class4, address.into(), class.0, service(*class));
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
                Some((v6, class.map(|class| class.0), node | class.map_or(0, |&class| service(class))))
            }
            IpAddr::V4(_) => None,
        };
        let others = plan.exact.keys().copied().filter(|address| !local.contains(address));
        let addresses6 = local.iter().copied().chain(others).filter_map(exact6);
        let blocks6 = plan.prefixes.iter().filter_map(|(block, class)| match block {
            IpNet::V6(block) => Some((*block, class.0)),
            IpNet::V4(_) => None,
        });
        let image6 = Image6::new(class6, blocks6, addresses6, unknown);
        Self { image4, image6, keys }
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
