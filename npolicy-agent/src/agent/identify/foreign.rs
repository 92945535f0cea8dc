//! Interfaces that are no pod's.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::PodKey;
use crate::watch::links::{HostLink, Links};

/// Why an interface is none of ours.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Foreign {
    /// `--exclude-interfaces` names it.
    Excluded,
    /// It has this address, which the Node lists as its own.
    NodeAddress(IpAddr),
    /// The node's default route leads out of it.
    DefaultRoute,
    /// Its routes and addresses, or its bridge's, are all outside the pod ranges.
    OutsidePodRanges,
    /// It is another interface of this pod's, whose address the pod's object does not list: its policies do not apply.
    SecondOf(PodKey),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Excluded => write!(f, "--exclude-interfaces names it"),
            Self::NodeAddress(address) => write!(f, "it has the node's address {address}"),
            Self::DefaultRoute => write!(f, "the node's default route leads out of it"),
            Self::OutsidePodRanges => write!(f, "it leads only outside the pod ranges"),
            Self::SecondOf(pod) => {
                write!(f, "it is another interface of pod {pod}, whose status.podIPs do not have its addresses")
            }
        }
    }
}

/// What makes interfaces foreign.
pub(super) struct Borders<'a> {
    pub(super) links: &'a Links,
    /// The Node's `status.addresses`.
    pub(super) node_addresses: &'a [IpAddr],
    /// Blocks from which pods have addresses; empty if nobody says.
    pub(super) pod_ranges: Vec<IpNet>,
    /// Interfaces never to touch.
    pub(super) exclude: &'a [String],
}

impl Borders<'_> {
    /// Whether an address may be a pod's, as far as ranges tell.
    pub(super) fn is_inside(&self, address: IpAddr) -> bool {
        self.pod_ranges.is_empty() || self.pod_ranges.iter().any(|range| range.contains(&address))
    }

    /// Why an interface is foreign, if it is.
    ///
    /// 1. Excluded by name.
    /// 2. Else, if it was a pod's or a pod of this node lists an address of it, it is not.
    /// 3. One of the node's own addresses is on it. A gateway's address, which some plugins put on every pod's interface, is
    ///    none of them.
    /// 4. The default route leads out of it.
    /// 5. All that its routes and its bridge lead to is outside the pod ranges, and so are its addresses.
    pub(super) fn foreign(
        &self,
        link: &HostLink,
        is_claimed: bool,
        mut at: impl Iterator<Item = IpAddr>,
    ) -> Option<Foreign> {
        if self.exclude.contains(&link.name) {
            return Some(Foreign::Excluded);
        }
        if is_claimed {
            return None;
        }
        if let Some(&address) = link.host_addresses.iter().find(|address| self.node_addresses.contains(address)) {
            return Some(Foreign::NodeAddress(address));
        }
        if link.routes.iter().any(|route| route.prefix_len() == 0) {
            return Some(Foreign::DefaultRoute);
        }
        let is_outside = !self.pod_ranges.is_empty() && !at.any(|address| self.is_inside(address));
        (is_outside && self.leads_only_outside(link)).then_some(Foreign::OutsidePodRanges)
    }

    fn leads_only_outside(&self, link: &HostLink) -> bool {
        let bridge = link.bridge.and_then(|bridge| self.links.bridges.get(&bridge));
        let routes = link.routes.iter().chain(bridge.into_iter().flat_map(|bridge| &bridge.routes));
        let addresses = link.host_addresses.iter().chain(bridge.into_iter().flat_map(|bridge| &bridge.addresses));
        let addresses = addresses.filter(|address| !matches!(address, IpAddr::V4(address) if address.is_link_local()));
        let mut leads_to =
            routes.filter(|route| route.prefix_len() > 0).copied().chain(addresses.map(|&a| a.into())).peekable();
        let meets = |to: &IpNet| self.pod_ranges.iter().any(|range| range.contains(to) || to.contains(range));
        leads_to.peek().is_some() && !leads_to.any(|to| meets(&to))
    }
}
