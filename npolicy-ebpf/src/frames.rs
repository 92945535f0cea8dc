//! What a frame must look like before policy is asked: address resolution and its like pass in the forms a stack needs,
//! forged ones never do.
//!
//! Any pod can build any frame (CAP_NET_RAW is in the default set of common runtimes), so these rules hold for every
//! pod, governed or not. Towards a pod they are looser: nobody behind a router can have sent a hop limit of 255.

use npolicy_common::{Direction, Protocol, Reason, endpoint_flags};

use crate::flow::{Address, is_unspecified};
use crate::parse::{Careful, Frame, Kind, Packet, ipv6_at};
use crate::tables::Line;

/// What the rules for frames say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameRule {
    /// Passes, whatever policy says.
    Pass,
    /// Dropped, whatever policy says.
    Deny(Reason),
    /// Policy decides.
    Policy,
}

/// What a pod may do in its own name.
#[derive(Clone, Copy)]
struct Identity<L> {
    line: L,
}

impl<L: Line> Identity<L> {
    fn has(self, flag: u16) -> bool {
        self.line.flags() & flag != 0
    }

    fn is_bridged(self) -> bool {
        self.has(endpoint_flags::BRIDGED)
    }

    fn may_use_any_source(self) -> bool {
        self.has(endpoint_flags::SOURCES_ALLOWED)
    }

    /// Whether the interface has shown an address of either family.
    fn has_address(self) -> bool {
        !(<u32 as Address>::is_absent(self.line) && <[u64; 2] as Address>::is_absent(self.line))
    }

    /// Whether a link-layer address may be the pod's: only a bridge's other ports could be deceived by it.
    fn may_use_mac(self, mac: u64) -> bool {
        !self.is_bridged() || mac == self.line.mac()
    }

    /// Whether a link-local address may be the pod's: any on a routed link, where nobody else is; on a bridge the one
    /// made of its MAC (RFC 4291, appendix A).
    fn may_use_link_local(self, address: [u64; 2]) -> bool {
        if address[0] != LINK_LOCAL {
            return false;
        }
        let mac = self.line.mac();
        let interface_id = (mac >> 24 << 40 | 0xff_fe00_0000 | mac & 0xff_ffff) ^ 0x0200_0000_0000_0000;
        !self.is_bridged() || address[1] == interface_id
    }

    fn owns6(self, address: [u64; 2]) -> bool {
        address.is_pods_own(self.line) || self.may_use_link_local(address)
    }
}

/// `fe80::/64`, the only part of `fe80::/10` that is in use.
const LINK_LOCAL: u64 = 0xfe80 << 48;
/// `ff02::2`.
const ALL_ROUTERS: [u64; 2] = [0xff02 << 48, 2];

/// Whether ARP from a pod passes: its sender is the pod or nobody yet. Everything to a pod does.
#[inline(always)]
pub(crate) fn arp<F: Frame, L: Line>(frame: F, line: L, direction: Direction, start: u32) -> FrameRule {
    if direction as u8 == Direction::Ingress as u8 {
        return FrameRule::Pass;
    }
    let pod = Identity { line };
    // Ethernet and IPv4 by their sizes (RFC 826); another form says nothing about an IPv4 address.
    let Some([types, sizes, mac, rest, sender]) = frame.load::<5>(start) else {
        return FrameRule::Deny(Reason::ForgedNeighbour);
    };
    if types != 0x0001_0800 || sizes >> 16 != 0x0604 {
        return FrameRule::Deny(Reason::ForgedNeighbour);
    }
    let mac = (mac as u64) << 16 | rest as u64 >> 16;
    let sender = rest << 16 | sender >> 16;
    let is_known = pod.may_use_mac(mac) && (sender == 0 || sender.is_pods_own(line) || pod.may_use_any_source());
    let is_first = !pod.has_address() && !pod.is_bridged();
    if is_known || is_first { FrameRule::Pass } else { FrameRule::Deny(Reason::ForgedNeighbour) }
}

/// Applies the rules to an IPv4 packet.
#[inline(always)]
pub(crate) fn ipv4<L: Line>(line: L, direction: Direction, careful: &Careful) -> FrameRule {
    let packet = &careful.packet;
    if direction as u8 == Direction::Ingress as u8 {
        return FrameRule::Policy;
    }
    if packet.protocol == Protocol::ICMP && packet.kind == Kind::Icmp && packet.source_port == icmp_type::REDIRECT {
        return FrameRule::Deny(Reason::RouterMessage);
    }
    if is_dhcp_answer(line, packet) {
        return FrameRule::Deny(Reason::DhcpServer);
    }
    let sender = packet.source[1] as u32;
    let asks_for_address = sender == 0 && u32::is_absent(line) && is_dhcp_request(packet);
    if asks_for_address { FrameRule::Policy } else { source(line, sender) }
}

/// Applies the rules to an IPv6 packet.
#[inline(always)]
pub(crate) fn ipv6<F: Frame, L: Line>(frame: F, line: L, direction: Direction, careful: &Careful) -> FrameRule {
    let packet = &careful.packet;
    let is_icmp = packet.protocol == Protocol::ICMPV6 && packet.kind == Kind::Icmp;
    if direction as u8 == Direction::Ingress as u8 {
        // A hop limit of 255 shows that no router was on the way; one of 1 does not, but a router forwards no link-local
        // source.
        let is_near = packet.source[0] == LINK_LOCAL || is_unspecified(packet.source);
        return match (is_icmp, packet.source_port, careful.hop_limit) {
            (true, 133..=137, 255) => FrameRule::Pass,
            (true, 130..=132 | 143, 1) if is_near => FrameRule::Pass,
            _ => FrameRule::Policy,
        };
    }
    // What stands behind an extension header that is not read may be a neighbour or router message: receivers take those
    // with a hop limit of 255 only, and behind destination options too.
    if careful.fault == Reason::Unjudgeable as u8 && careful.hop_limit == 255 {
        return FrameRule::Deny(Reason::Unjudgeable);
    }
    if is_icmp {
        let rule = match packet.source_port {
            icmp_type::ROUTER_ADVERTISEMENT | icmp_type::REDIRECT6 => FrameRule::Deny(Reason::RouterMessage),
            icmp_type::ROUTER_SOLICITATION | icmp_type::NEIGHBOUR_SOLICITATION | icmp_type::NEIGHBOUR_ADVERTISEMENT => {
                neighbour(frame, line, careful)
            }
            icmp_type::LISTENER_REPORT | icmp_type::LISTENER_DONE | icmp_type::LISTENER_REPORT2 => {
                listener(line, careful)
            }
            _ => FrameRule::Policy,
        };
        if rule != FrameRule::Policy {
            return rule;
        }
    }
    if is_dhcp_answer(line, packet) {
        return FrameRule::Deny(Reason::DhcpServer);
    }
    source(line, packet.source)
}

mod icmp_type {
    pub(super) const REDIRECT: u16 = 5;
    pub(super) const LISTENER_REPORT: u16 = 131;
    pub(super) const LISTENER_DONE: u16 = 132;
    pub(super) const ROUTER_SOLICITATION: u16 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u16 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u16 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u16 = 136;
    pub(super) const REDIRECT6: u16 = 137;
    pub(super) const LISTENER_REPORT2: u16 = 143;
}

/// A source must be one of the pod's own, once the interface has shown any.
#[inline(always)]
pub(crate) fn source<A: SourceAddress, L: Line>(line: L, source: A) -> FrameRule {
    let pod = Identity { line };
    if source.may_be_used_by(line) || pod.may_use_any_source() || !pod.has_address() {
        FrameRule::Policy
    } else {
        FrameRule::Deny(Reason::Spoof)
    }
}

/// An address as a source.
pub(crate) trait SourceAddress: Address {
    /// Whether it is one of the pod's own, or such a link-local one.
    fn may_be_used_by<L: Line>(self, line: L) -> bool;
}

impl SourceAddress for u32 {
    #[inline(always)]
    fn may_be_used_by<L: Line>(self, line: L) -> bool {
        self.is_pods_own(line)
    }
}

impl SourceAddress for [u64; 2] {
    #[inline(always)]
    fn may_be_used_by<L: Line>(self, line: L) -> bool {
        Identity { line }.owns6(self)
    }
}

/// Whether a bridged pod answers as a DHCP server and may not: others on the bridge would believe it.
#[inline(always)]
fn is_dhcp_answer<L: Line>(line: L, packet: &Packet) -> bool {
    line.flags() & (endpoint_flags::BRIDGED | endpoint_flags::DHCP_SERVER_ALLOWED) == endpoint_flags::BRIDGED
        && packet.protocol == Protocol::UDP
        && matches!(packet.source_port, 67 | 547)
}

/// Whether a packet asks for an IPv4 address (RFC 2131).
#[inline(always)]
pub(crate) fn is_dhcp_request(packet: &Packet) -> bool {
    packet.protocol == Protocol::UDP && packet.source_port == 68 && packet.destination_port == 67
}

/// Whether a packet answers [`is_dhcp_request`].
#[inline(always)]
pub(crate) fn is_dhcp_reply(packet: &Packet) -> bool {
    packet.protocol == Protocol::UDP && packet.source_port == 67 && packet.destination_port == 68
}

/// Router and neighbour solicitation and neighbour advertisement from a pod (RFC 4861).
///
/// They pass in the forms a stack needs: hop limit 255, directly behind the IPv6 header, in the pod's own name, with no
/// more than one link-layer address option and, to a group, one nonce (RFC 7527). A hop limit of 255 is routable and a
/// longer form would be a way out of any policy. An advertisement of another's address never passes.
#[inline(always)]
fn neighbour<F: Frame, L: Line>(frame: F, line: L, careful: &Careful) -> FrameRule {
    let packet = &careful.packet;
    let pod = Identity { line };
    if careful.hop_limit != 255 {
        return FrameRule::Policy;
    }
    let is_advertisement = packet.source_port == icmp_type::NEIGHBOUR_ADVERTISEMENT;
    // Code and reserved bits say nothing, so they would carry whatever the pod likes past any policy.
    let Some([reserved]) = frame.load::<1>(careful.upper + 4) else { return FrameRule::Policy };
    let flags = if is_advertisement { 0xe000_0000 } else { 0 };
    if packet.destination_port != 0 || reserved & !flags != 0 {
        return FrameRule::Policy;
    }
    let is_router_solicitation = packet.source_port == icmp_type::ROUTER_SOLICITATION;
    let mut options = careful.upper + 8;
    let mut target = [0, 0];
    if !is_router_solicitation {
        let Some(words) = frame.load::<4>(options) else { return FrameRule::Policy };
        target = ipv6_at(&words, 0);
        options += 16;
    }
    if is_advertisement && !pod.owns6(target) && !pod.may_use_any_source() {
        let is_first = !pod.has_address() && !pod.is_bridged();
        return if is_first { FrameRule::Pass } else { FrameRule::Deny(Reason::ForgedNeighbour) };
    }
    let is_source_fit =
        pod.owns6(packet.source) || pod.may_use_any_source() || (is_unspecified(packet.source) && !is_advertisement);
    let is_destination_fit = if is_router_solicitation {
        packet.destination == ALL_ROUTERS
    } else {
        is_advertisement || packet.destination == target || packet.destination == solicited_node(target)
    };
    let fits = !careful.router_alert
        && is_source_fit
        && is_destination_fit
        && options_fit(frame, pod, options, careful.end, is_group(packet.destination));
    if fits { FrameRule::Pass } else { FrameRule::Policy }
}

/// Whether what follows a neighbour message is at most one link-layer address option and, to a group, one nonce.
#[inline(always)]
fn options_fit<F: Frame, L: Line>(frame: F, pod: Identity<L>, start: u32, end: u32, to_group: bool) -> bool {
    let mut at = start;
    let mut has_address = false;
    let mut has_nonce = false;
    for _ in 0..2 {
        if at == end {
            return true;
        }
        if at + 8 > end {
            return false;
        }
        let Some([first, second]) = frame.load::<2>(at) else { return false };
        let mac = (first as u64 & 0xffff) << 32 | second as u64;
        // Kind and size, the size in units of eight bytes.
        match first >> 16 {
            0x0101 | 0x0201 if !has_address && pod.may_use_mac(mac) => has_address = true,
            0x0e01 if !has_nonce && to_group => has_nonce = true,
            _ => return false,
        }
        at += 8;
    }
    at == end
}

/// Multicast listener reports from a pod (RFC 2710, 3810): to a group, hop limit 1, behind one router alert, from a
/// link-local address of its own or none.
#[inline(always)]
fn listener<L: Line>(line: L, careful: &Careful) -> FrameRule {
    let packet = &careful.packet;
    let fits = careful.hop_limit == 1
        && careful.router_alert
        && is_group(packet.destination)
        && (is_unspecified(packet.source) || Identity { line }.may_use_link_local(packet.source));
    if fits { FrameRule::Pass } else { FrameRule::Policy }
}

#[inline(always)]
fn is_group(address: [u64; 2]) -> bool {
    address[0] >> 56 == 0xff
}

/// The group that an address's owner listens to (RFC 4291, 2.7.1).
#[inline(always)]
fn solicited_node(address: [u64; 2]) -> [u64; 2] {
    [0xff02 << 48, 0x1_ff00_0000 | address[1] & 0xff_ffff]
}
