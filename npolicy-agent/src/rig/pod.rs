//! A pod: a namespace with one interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use npolicy_common::Family;

use super::error::Result;
use super::namespace::Namespace;
use crate::model::PodKey;

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// Its namespace and name.
    pub key: PodKey,
    /// Its addresses, at most one a family; none: one of each family that the kernel has, from the node's range.
    pub addresses: Vec<IpAddr>,
}

impl PodSettings {
    /// A pod with addresses from its node's range.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { key: PodKey { namespace: namespace.into(), name: name.into() }, addresses: Vec::new() }
    }
}

/// A pod on a [`super::Node`].
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace and name.
    pub key: PodKey,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Name of the interface on the node's side.
    pub host_link: String,
    /// Index of the interface on the node's side.
    pub host_ifindex: u32,
}

impl Pod {
    /// The address of one family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.map(IpAddr::V4),
            Family::V6 => self.ipv6.map(IpAddr::V6),
        }
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Family::V4, Family::V6].into_iter().filter_map(|family| self.address(family))
    }

    /// Runs `work` on a thread of its own inside the pod.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace.run(work)
    }
}
