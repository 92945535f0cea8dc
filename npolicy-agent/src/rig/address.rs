//! Small facts about addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use npolicy_common::Family;

pub(super) fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The prefix length that names one address.
pub(super) fn host_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

pub(super) fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The address with this host number in a range.
pub(super) fn host_of(range: IpNet, host: u32) -> IpAddr {
    match range {
        IpNet::V4(range) => Ipv4Addr::from_bits(range.network().to_bits() | host).into(),
        IpNet::V6(range) => Ipv6Addr::from_bits(range.network().to_bits() | u128::from(host)).into(),
    }
}
