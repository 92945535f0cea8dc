//! The bytes of rtnetlink: headers, attributes and the numbers of `include/uapi/linux` (v6.6) that are used here. Numbers
//! are in the machine's byte order, addresses in the network's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::dump::Route;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;

pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
pub(super) const RTM_GETNEIGH: u16 = 30;
pub(super) const RTM_GETQDISC: u16 = 38;
pub(super) const RTM_GETTFILTER: u16 = 46;
pub(super) const RTM_GETNSID: u16 = 90;

/// `struct ifinfomsg`.
pub(super) const LINK_HEADER: usize = 16;
pub(super) const ARPHRD_ETHER: u16 = 1;
pub(super) const IFF_UP: u32 = 1;
pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_LINK: u16 = 5;
pub(super) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_EXT_MASK: u16 = 29;
pub(super) const RTEXT_FILTER_SKIP_STATS: u32 = 8;
pub(super) const IFLA_LINK_NETNSID: u16 = 37;
pub(super) const IFLA_XDP: u16 = 43;
pub(super) const IFLA_XDP_ATTACHED: u16 = 2;
pub(super) const IFLA_TARGET_NETNSID: u16 = 46;

/// `struct ifaddrmsg`.
pub(super) const ADDRESS_HEADER: usize = 8;
pub(super) const IFA_ADDRESS: u16 = 1;
pub(super) const IFA_LOCAL: u16 = 2;
pub(super) const IFA_TARGET_NETNSID: u16 = 10;

/// `struct rtmsg`.
pub(super) const ROUTE_HEADER: usize = 12;
pub(super) const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
/// `struct rtnexthop`: length, flags, hops, interface.
const NEXT_HOP: usize = 8;

/// `struct ndmsg`.
pub(super) const NEIGHBOUR_HEADER: usize = 12;
pub(super) const NUD_PERMANENT: u16 = 0x80;
pub(super) const NDA_LLADDR: u16 = 2;
pub(super) const NDA_MASTER: u16 = 9;

/// `struct rtgenmsg`, padded.
pub(super) const NSID_HEADER: usize = 4;
pub(super) const NETNSA_NSID: u16 = 1;

/// `struct tcmsg`.
pub(super) const TC_HEADER: usize = 20;
pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;
pub(super) const TCA_BPF_NAME: u16 = 7;
/// Parents of filters on what comes in and on what goes out.
pub(super) const INGRESS: u32 = 0xffff_fff2;
pub(super) const EGRESS: u32 = 0xffff_fff3;

/// Bits of an attribute's type that say how it is written.
const TYPE_MASK: u16 = 0x3fff;

/// One message of a datagram.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) body: &'a [u8],
}

/// A request for everything of a kind.
pub(super) fn dump_request(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).expect("a request is short");
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend_from_slice(&sequence.to_ne_bytes());
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(body);
    request
}

/// Adds an attribute.
pub(super) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("an attribute is short");
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The messages of a datagram; one that is cut off ends them.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER)?;
        let length = number(&header[..4])? as usize;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: number(&header[8..12])?,
            body: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes with their types; one that is cut off ends them.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn integer(bytes: &[u8]) -> Option<i32> {
    bytes.try_into().ok().map(i32::from_ne_bytes)
}

pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// The ways out that a route names: one, or one for each of its next hops. None for a route of another table, one that
/// leads nowhere, or to link-local or multicast addresses.
pub(super) fn route(body: &[u8]) -> Option<Vec<Route>> {
    let (header, rest) = body.split_at_checked(ROUTE_HEADER)?;
    if header[4] != RT_TABLE_MAIN || header[7] != RTN_UNICAST {
        return None;
    }
    let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let to = match find(RTA_DST) {
        Some(value) => address(value)?,
        None if i32::from(header[0]) == libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        None => Ipv6Addr::UNSPECIFIED.into(),
    };
    let is_of_link = match to {
        IpAddr::V4(to) => to.is_link_local(),
        IpAddr::V6(to) => to.is_unicast_link_local(),
    };
    if is_of_link || to.is_multicast() {
        return None;
    }
    let to = IpNet::new(to, header[1]).ok()?;
    if let Some(ifindex) = find(RTA_OIF).and_then(number) {
        return Some(vec![Route { to, ifindex }]);
    }
    let mut hops = find(RTA_MULTIPATH)?;
    let mut routes = Vec::new();
    while let Some(hop) = hops.get(..NEXT_HOP) {
        routes.extend(number(&hop[4..8]).map(|ifindex| Route { to, ifindex }));
        let length = usize::from(u16::from_ne_bytes([hop[0], hop[1]])).max(NEXT_HOP);
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(routes)
}

/// Whether an event may change a fact: of neighbours only a bridge's forwarding entries do, of routes only those that lead
/// somewhere. Neighbours that the node asks for come and go all the time.
pub(super) fn is_relevant(message: &Message<'_>) -> bool {
    match message.kind {
        RTM_NEWNEIGH | RTM_DELNEIGH => {
            let is_learned = |state: &[u8]| u16::from_ne_bytes([state[0], state[1]]) & NUD_PERMANENT == 0;
            message.body.first().is_some_and(|&family| i32::from(family) == libc::AF_BRIDGE)
                && message.body.get(8..10).is_some_and(is_learned)
        }
        RTM_NEWROUTE | RTM_DELROUTE => route(message.body).is_some(),
        _ => true,
    }
}
