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
/// Who made a route: somebody on the link, by ICMP.
const RTPROT_REDIRECT: u8 = 1;
const RTPROT_RA: u8 = 9;
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
/// leads nowhere, or to link-local or multicast addresses, and one that a pod may have made by advertising it.
pub(super) fn route(body: &[u8]) -> Option<Vec<Route>> {
    let (header, rest) = body.split_at_checked(ROUTE_HEADER)?;
    if header[4] != RT_TABLE_MAIN || header[7] != RTN_UNICAST {
        return None;
    }
    if matches!(header[5], RTPROT_REDIRECT | RTPROT_RA) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct rtmsg` of a unicast route of the main table, and attributes.
    fn route_message(length: u8, protocol: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![libc::AF_INET as u8, length, 0, 0, RT_TABLE_MAIN, protocol, 0, RTN_UNICAST, 0, 0, 0, 0];
        for (kind, value) in attributes {
            put(&mut body, *kind, value);
        }
        body
    }

    fn ways(body: &[u8]) -> Vec<(String, u32)> {
        route(body).unwrap_or_default().into_iter().map(|route| (route.to.to_string(), route.ifindex)).collect()
    }

    #[test]
    fn a_route_leads_out_of_its_interface_or_of_each_of_its_next_hops() {
        let host = route_message(32, 3, &[(RTA_DST, &[10, 1, 0, 5]), (RTA_OIF, &7_u32.to_ne_bytes())]);
        assert_eq!(ways(&host), [("10.1.0.5/32".to_owned(), 7)]);
        let default = route_message(0, 3, &[(RTA_OIF, &7_u32.to_ne_bytes())]);
        assert_eq!(ways(&default), [("0.0.0.0/0".to_owned(), 7)]);
        let hop = |ifindex: u32| {
            let length = 16_u16.to_ne_bytes();
            // An attribute with the hop's gateway follows each.
            [&length[..], &[0, 0], &ifindex.to_ne_bytes(), &8_u16.to_ne_bytes(), &[5, 0, 10, 0, 0, 1]].concat()
        };
        let many = route_message(0, 3, &[(RTA_MULTIPATH, &[hop(7), hop(8)].concat())]);
        assert_eq!(ways(&many), [("0.0.0.0/0".to_owned(), 7), ("0.0.0.0/0".to_owned(), 8)]);
    }

    #[test]
    fn what_a_pod_can_advertise_and_what_is_of_the_link_is_no_route() {
        let out = (RTA_OIF, &7_u32.to_ne_bytes()[..]);
        assert_eq!(ways(&route_message(0, RTPROT_RA, &[out])), []);
        assert_eq!(ways(&route_message(0, RTPROT_REDIRECT, &[out])), []);
        assert_eq!(ways(&route_message(16, 2, &[(RTA_DST, &[169, 254, 0, 0]), out])), []);
        let mut local = route_message(32, 2, &[(RTA_DST, &[10, 1, 0, 1]), out]);
        local[7] = 2;
        assert_eq!(ways(&local), []);
        let mut other_table = route_message(32, 2, &[(RTA_DST, &[10, 1, 0, 1]), out]);
        other_table[4] = 100;
        assert_eq!(ways(&other_table), []);
    }

    #[test]
    fn what_is_cut_off_ends_a_datagram() {
        let whole = dump_request(RTM_GETLINK, 9, &[1, 2, 3, 4]);
        let twice = [whole.clone(), whole.clone()].concat();
        assert_eq!(messages(&twice).map(|message| message.body.to_vec()).collect::<Vec<_>>(), [[1, 2, 3, 4]; 2]);
        for end in 0..whole.len() {
            assert_eq!(messages(&whole[..end]).count(), 0, "{end}");
        }
        let mut nested = Vec::new();
        put(&mut nested, 1, b"veth\0");
        put(&mut nested, 2 | 0x8000, &[7]);
        let found: Vec<(u16, Vec<u8>)> = attributes(&nested).map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(found, [(1, b"veth\0".to_vec()), (2, vec![7])]);
        // A length below the header's own ends them, too.
        assert_eq!(attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
    }

    #[test]
    fn neighbours_matter_only_as_learned_forwarding_entries() {
        let neighbour = |family: i32, state: u16| {
            let mut body = vec![0; NEIGHBOUR_HEADER];
            body[0] = family as u8;
            body[8..10].copy_from_slice(&state.to_ne_bytes());
            is_relevant(&Message { kind: RTM_NEWNEIGH, flags: 0, sequence: 0, body: &body })
        };
        assert!(neighbour(libc::AF_BRIDGE, 2));
        assert!(!neighbour(libc::AF_BRIDGE, NUD_PERMANENT));
        assert!(!neighbour(libc::AF_INET, 2));
        assert!(!neighbour(libc::AF_INET6, 2));
    }
}
