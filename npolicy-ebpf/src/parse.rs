//! Bytes -> [`Packet`].
//!
//! The plain case (no tag, no option, no extension header, TCP, UDP or SCTP, headers in the linear part) is read in
//! place by [`plain4`] and [`plain6`]. Everything else is read by [`careful4`] and [`careful6`] through the kernel's
//! `skb_load_bytes`, which reaches what is not linear; nothing is waved through for being elsewhere.

use npolicy_common::{Be16, Protocol, Reason};

/// A frame at the hook, from its Ethernet header on.
pub trait Frame: Copy {
    /// Bytes of the whole frame, wherever they are.
    fn length(self) -> u32;
    /// The interface of the hook.
    fn ifindex(self) -> u32;
    /// The interface the packet entered this node by; 0 if the node itself made it.
    fn ingress_ifindex(self) -> u32;
    /// Whether a VLAN tag stands beside the data.
    fn has_outer_tag(self) -> bool;
    /// The first `N` pairs of bytes, if they are in the linear part.
    ///
    /// Pairs, because a frame starts at an even address and no more is sure: headers behind 14 bytes of Ethernet are not
    /// aligned to four. Loads of whole pairs are half as many as loads of bytes.
    fn linear<'a, const N: usize>(self) -> Option<&'a [Be16; N]>
    where
        Self: 'a;
    /// Copies `N` words of four bytes from anywhere, read in host order; nothing if the frame ends before.
    fn load<const N: usize>(self, offset: u32) -> Option<[u32; N]>;
    /// Returns `number`, of which the verifier then knows nothing.
    ///
    /// It walks what follows once for each value it knows: once for each protocol, once for each way of a bucket, where
    /// once for all is enough.
    fn forget(self, number: u32) -> u32;
}

/// EtherTypes that the packet path knows.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.1Q tag.
    pub const TAG: u16 = 0x8100;
    /// IEEE 802.1ad tag.
    pub const SERVICE_TAG: u16 = 0x88a8;
}

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: u32 = 14;

/// What a packet can do to the flow table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A TCP SYN without ACK: opens a flow, always judged.
    Syn,
    /// Any other TCP segment: belongs to a flow or to none.
    Segment,
    /// UDP, SCTP and every protocol but TCP and ICMP: opens a flow if it belongs to none.
    Datagram,
    /// An ICMP echo request: opens a flow by its id.
    EchoRequest,
    /// An ICMP echo reply: answers a flow of its id.
    EchoReply,
    /// An ICMP error, which quotes a packet.
    IcmpError,
    /// Any other ICMP message.
    Icmp,
}

/// What policy and the flow table need to know of a packet of either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Packet {
    /// Source address: two words read in host order; an IPv4 address stands in the lower half of the second.
    pub source: [u64; 2],
    /// Destination address, in the same form.
    pub destination: [u64; 2],
    /// Host order; an ICMP message's type; 0 for protocols without ports.
    pub source_port: u16,
    /// Host order; an ICMP message's code; 0 for protocols without ports.
    pub destination_port: u16,
    /// An echo's id, host order.
    pub echo_id: u16,
    /// IP protocol, behind extension headers.
    pub protocol: Protocol,
    /// What it can do.
    pub kind: Kind,
}

impl Packet {
    /// A packet of which only the addresses and the protocol are known.
    #[inline(always)]
    const fn new(source: [u64; 2], destination: [u64; 2], protocol: Protocol) -> Self {
        Self { source, destination, source_port: 0, destination_port: 0, echo_id: 0, protocol, kind: Kind::Datagram }
    }
}

/// A packet, and what the rules for frames need to know beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Careful {
    /// The packet.
    pub packet: Packet,
    /// Offset of the upper protocol's header in the frame.
    pub upper: u32,
    /// Offset of the packet's end in the frame; what follows is padding.
    pub end: u32,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// Whether the upper header stands behind one hop-by-hop header that holds nothing but a router alert.
    pub router_alert: bool,
    /// Number of the [`Reason`] why nothing but the addresses can be judged, or [`Careful::NO_FAULT`].
    pub fault: u8,
}

impl Careful {
    /// No fault.
    pub const NO_FAULT: u8 = u8::MAX;

    /// A packet that needs no rules for frames.
    #[inline(always)]
    pub const fn plain(packet: Packet) -> Self {
        Self { packet, upper: 0, end: 0, hop_limit: 0, router_alert: false, fault: Self::NO_FAULT }
    }

    /// Nothing yet.
    pub const EMPTY: Self = Self::plain(Packet::new([0; 2], [0; 2], Protocol(0)));
}

/// The two words of an IPv4 address.
#[inline(always)]
const fn from_ipv4(address: u32) -> [u64; 2] {
    [0, address as u64]
}

/// The two words of an IPv6 address that starts at `at`.
#[inline(always)]
pub(crate) fn ipv6_at<const N: usize>(words: &[u32; N], at: usize) -> [u64; 2] {
    let half = |at| (words[at] as u64) << 32 | words[at + 1] as u64;
    [half(at), half(at + 2)]
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[inline(always)]
fn tcp_kind(flags: u8) -> Kind {
    if flags & (SYN | ACK) == SYN { Kind::Syn } else { Kind::Segment }
}

/// Least bytes of the upper protocol's header (RFC 9293, 768, 9260, 792, 4443); 0 for protocols that policy cannot look
/// into.
#[inline(always)]
const fn upper_least(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::TCP => 20,
        Protocol::UDP => 8,
        Protocol::SCTP => 12,
        Protocol::ICMP | Protocol::ICMPV6 => 8,
        _ => 0,
    }
}

/// Whether a UDP source port is one that a DHCP server answers from; such packets are never plain.
#[inline(always)]
const fn is_dhcp_server(protocol: Protocol, source_port: u16) -> bool {
    matches!(protocol, Protocol::UDP) && matches!(source_port, 67 | 547)
}

/// Two pairs of bytes as a number, the first at `pair`.
#[inline(always)]
fn word<const N: usize>(pairs: &[Be16; N], pair: usize) -> u32 {
    (pairs[pair].get() as u32) << 16 | pairs[pair + 1].get() as u32
}

/// Eight pairs of bytes as an IPv6 address, the first at `pair`.
#[inline(always)]
fn address6<const N: usize>(pairs: &[Be16; N], pair: usize) -> [u64; 2] {
    let half = |pair| (word(pairs, pair) as u64) << 32 | word(pairs, pair + 2) as u64;
    [half(pair), half(pair + 4)]
}

/// Reads an IPv4 packet in the plain case: untagged, 20-byte header, whole, TCP, UDP or SCTP, not from a DHCP server's
/// port, headers linear, lengths that agree.
#[inline(always)]
pub fn plain4<F: Frame>(frame: F) -> Option<Packet> {
    // Ethernet, IPv4 and the least upper header: 42 bytes.
    let head = frame.linear::<21>()?;
    if head[6].get() != ether_type::IPV4 || head[7].get() >> 8 != 0x45 {
        return None;
    }
    let protocol = Protocol(head[11].get() as u8);
    // "Don't fragment" alone is a whole packet; the reserved bit, more fragments or an offset is not plain.
    if head[10].get() & 0xbfff != 0 || !protocol.has_ports() {
        return None;
    }
    let total = head[8].get() as u32;
    if total < 20 + upper_least(protocol) || total + ETHERNET > frame.length() {
        return None;
    }
    let (source_port, destination_port) = (head[17].get(), head[18].get());
    if is_dhcp_server(protocol, source_port) {
        return None;
    }
    let kind = match protocol {
        Protocol::TCP => tcp_kind(frame.linear::<27>()?[23].get() as u8),
        _ => Kind::Datagram,
    };
    let packet = Packet::new(from_ipv4(word(head, 13)), from_ipv4(word(head, 15)), protocol);
    Some(Packet { source_port, destination_port, kind, ..packet })
}

/// Reads an IPv6 packet in the plain case, as [`plain4`] does: TCP, UDP or SCTP directly behind the IPv6 header.
#[inline(always)]
pub fn plain6<F: Frame>(frame: F) -> Option<Packet> {
    // Ethernet, IPv6 and the least upper header: 62 bytes.
    let head = frame.linear::<31>()?;
    let protocol = Protocol((head[10].get() >> 8) as u8);
    if head[6].get() != ether_type::IPV6 || head[7].get() >> 12 != 6 || !protocol.has_ports() {
        return None;
    }
    let payload = head[9].get() as u32;
    if payload < upper_least(protocol) || payload + 40 + ETHERNET > frame.length() {
        return None;
    }
    let (source_port, destination_port) = (head[27].get(), head[28].get());
    if is_dhcp_server(protocol, source_port) {
        return None;
    }
    let kind = match protocol {
        Protocol::TCP => tcp_kind(frame.linear::<37>()?[33].get() as u8),
        _ => Kind::Datagram,
    };
    let packet = Packet::new(address6(head, 11), address6(head, 19), protocol);
    Some(Packet { source_port, destination_port, kind, ..packet })
}

/// Reads an IPv4 packet whose header starts at `start` into `careful`.
///
/// # Errors
/// [`Reason::Malformed`] where the header itself is cut short or contradicts itself, so that even its addresses mean
/// nothing. What is wrong behind the addresses is a [`Careful::fault`].
#[inline(always)]
pub(crate) fn careful4<F: Frame>(frame: F, start: u32, careful: &mut Careful) -> Result<(), Reason> {
    let [first, second, third, source, destination] = frame.load::<5>(start).ok_or(Reason::Malformed)?;
    let header = (first >> 24 & 0xf) * 4;
    let total = first & 0xffff;
    if first >> 28 != 4 || header < 20 || total < header || start + total > frame.length() {
        return Err(Reason::Malformed);
    }
    let protocol = Protocol((third >> 16) as u8);
    let mut packet = Packet::new(from_ipv4(source), from_ipv4(destination), protocol);
    let (upper, end) = (start + header, start + total);
    // The lower half of the second word: reserved bit, don't fragment, more fragments, offset.
    let fault = if second & 0x8000 != 0 || protocol.0 == 0 || protocol.0 == 255 {
        Reason::Malformed as u8
    } else if second & 0x3fff != 0 {
        Reason::Fragment as u8
    } else if header > 20 && has_source_route(frame, start + 20, header - 20) {
        Reason::Unjudgeable as u8
    } else {
        read_upper(frame, &mut packet, upper, end)
    };
    let hop_limit = (third >> 24) as u8;
    *careful = Careful { packet, upper, end, hop_limit, router_alert: false, fault };
    Ok(())
}

/// Options that a walk looks at; a packet with more cannot be judged.
const OPTIONS: u32 = 16;

/// Whether IPv4 options name another destination than the header does (RFC 791: loose and strict source route), or
/// cannot be walked.
#[inline(never)]
fn has_source_route<F: Frame>(frame: F, start: u32, length: u32) -> bool {
    let mut at = 0;
    for _ in 0..OPTIONS {
        if at >= length {
            return false;
        }
        // One byte as the last of a word, which begins in the header before.
        let Some([word]) = frame.load::<1>(start + at - 3) else { return true };
        let size = match word & 0xff {
            0 => return false,
            1 => 1,
            131 | 137 => return true,
            _ => match frame.load::<1>(start + at - 2) {
                Some([word]) if word & 0xff >= 2 => word & 0xff,
                _ => return true,
            },
        };
        // The mask is for the verifier: it takes all ways round the loop for one. A size beyond the options ends the
        // walk without it.
        if size > length {
            return true;
        }
        at = (at + size) & 127;
    }
    at < length
}

/// Reads an IPv6 packet whose header starts at `start` into `careful`. Of extension headers only a hop-by-hop header with nothing but
/// a router alert is read, which multicast listener reports need.
///
/// # Errors
/// As [`careful4`].
#[inline(always)]
pub(crate) fn careful6<F: Frame>(frame: F, start: u32, careful: &mut Careful) -> Result<(), Reason> {
    let head = frame.load::<10>(start).ok_or(Reason::Malformed)?;
    let payload = head[1] >> 16;
    let end = start + 40 + payload;
    if head[0] >> 28 != 6 || end > frame.length() {
        return Err(Reason::Malformed);
    }
    let mut packet = Packet::new(ipv6_at(&head, 2), ipv6_at(&head, 6), Protocol((head[1] >> 8) as u8));
    let hop_limit = head[1] as u8;
    let mut upper = start + 40;
    let mut router_alert = false;
    if packet.protocol.0 == next_header::HOP_BY_HOP
        && payload >= 8
        && let Some([first, second]) = frame.load::<2>(upper)
        && (first & 0xff_ffff, second) == (0x00_0502, 0x0000_0100)
    {
        router_alert = true;
        packet.protocol = Protocol((first >> 24) as u8);
        upper += 8;
    }
    let fault = match packet.protocol.0 {
        _ if payload == 0 => Reason::Malformed as u8,
        next_header::FRAGMENT => Reason::Fragment as u8,
        next_header::HOP_BY_HOP
        | next_header::ROUTING
        | next_header::AUTHENTICATION
        | next_header::DESTINATION
        | next_header::MOBILITY
        | next_header::HOST_IDENTITY
        | next_header::SHIM6
        | 253..=255 => Reason::Unjudgeable as u8,
        _ => read_upper(frame, &mut packet, upper, end),
    };
    *careful = Careful { packet, upper, end, hop_limit, router_alert, fault };
    Ok(())
}

/// IPv6 next headers behind which another header stands (IANA "IPv6 Extension Header Types").
mod next_header {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const HOST_IDENTITY: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
}

/// Reads ports, TCP flags or ICMP type into `packet`, or returns the number of the reason why it cannot.
#[inline(always)]
fn read_upper<F: Frame>(frame: F, packet: &mut Packet, at: u32, end: u32) -> u8 {
    let least = upper_least(packet.protocol);
    if at + least > end {
        return Reason::Malformed as u8;
    }
    if least == 0 {
        return Careful::NO_FAULT;
    }
    let Some([first, second]) = frame.load::<2>(at) else { return Reason::Malformed as u8 };
    match packet.protocol {
        Protocol::ICMP | Protocol::ICMPV6 => {
            packet.source_port = (first >> 24) as u16;
            packet.destination_port = (first >> 16) as u16 & 0xff;
            packet.kind = icmp_kind(packet.protocol, (first >> 24) as u8);
            if matches!(packet.kind, Kind::EchoRequest | Kind::EchoReply) {
                packet.echo_id = (second >> 16) as u16;
            }
        }
        protocol => {
            packet.source_port = (first >> 16) as u16;
            packet.destination_port = first as u16;
            if protocol == Protocol::TCP {
                let Some([flags]) = frame.load::<1>(at + 12) else { return Reason::Malformed as u8 };
                packet.kind = tcp_kind((flags >> 16) as u8);
            }
        }
    }
    Careful::NO_FAULT
}

/// Sorts ICMP types (RFC 792 and 4443). An ICMP protocol under the other IP version is a protocol like any other, but
/// nobody answers it; it is sorted all the same.
#[inline(always)]
fn icmp_kind(protocol: Protocol, icmp_type: u8) -> Kind {
    match (protocol, icmp_type) {
        (Protocol::ICMP, 8) | (Protocol::ICMPV6, 128) => Kind::EchoRequest,
        (Protocol::ICMP, 0) | (Protocol::ICMPV6, 129) => Kind::EchoReply,
        (Protocol::ICMP, 3 | 11 | 12) | (Protocol::ICMPV6, 1..=4) => Kind::IcmpError,
        _ => Kind::Icmp,
    }
}

/// Reads the IPv4 packet quoted at `start`, of which at least 8 bytes behind its header are there (RFC 792).
#[inline(always)]
pub(crate) fn quote4<F: Frame>(frame: F, start: u32, end: u32) -> Option<Packet> {
    if start + 28 > end {
        return None;
    }
    let [first, second, third, source, destination] = frame.load::<5>(start)?;
    let upper = start + (first >> 24 & 0xf) * 4;
    if first >> 28 != 4 || upper < start + 20 || second & 0x9fff != 0 || upper + 8 > end {
        return None;
    }
    quoted(frame, Packet::new(from_ipv4(source), from_ipv4(destination), Protocol((third >> 16) as u8)), upper)
}

/// Reads the IPv6 packet quoted at `start`, if its upper header stands directly behind the IPv6 header.
#[inline(always)]
pub(crate) fn quote6<F: Frame>(frame: F, start: u32, end: u32) -> Option<Packet> {
    if start + 48 > end {
        return None;
    }
    let head = frame.load::<10>(start)?;
    if head[0] >> 28 != 6 {
        return None;
    }
    quoted(frame, Packet::new(ipv6_at(&head, 2), ipv6_at(&head, 6), Protocol((head[1] >> 8) as u8)), start + 40)
}

/// Reads what a flow needs of a quoted packet's upper header.
#[inline(always)]
fn quoted<F: Frame>(frame: F, packet: Packet, at: u32) -> Option<Packet> {
    let [first, second] = frame.load::<2>(at)?;
    match packet.protocol {
        Protocol::ICMP | Protocol::ICMPV6 => {
            let kind = icmp_kind(packet.protocol, (first >> 24) as u8);
            let is_echo = matches!(kind, Kind::EchoRequest | Kind::EchoReply);
            is_echo.then_some(Packet { kind, echo_id: (second >> 16) as u16, ..packet })
        }
        protocol if protocol.has_ports() => {
            Some(Packet { source_port: (first >> 16) as u16, destination_port: first as u16, ..packet })
        }
        _ => Some(packet),
    }
}
