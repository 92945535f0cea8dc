//! Counters always, a [`FlowEvent`] when asked.

use npolicy_common::{CounterKey, Direction, EventState, FlowEvent, Protocol, Reason, TokenBucket};

use crate::parse::{Packet, ether_type};
use crate::tables::{Line, Tables};

/// What an event says beside the packet itself.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Interface.
    pub ifindex: u32,
    /// EtherType, host order.
    pub ether_type: u16,
    /// Direction of the packet.
    pub direction: Direction,
    /// Generation of the word that judged.
    pub generation: u32,
    /// Ruleset that judged.
    pub ruleset: u32,
    /// Class of the remote address, where it was looked up.
    pub class: u32,
    /// Whether the packet was new, of a flow, or its reply.
    pub state: EventState,
}

/// Describes an IP packet.
#[inline(always)]
pub fn describe<L: Line>(line: L, context: &Context, packet: &Packet, reason: u8) -> FlowEvent {
    let (remote, local) = match context.direction {
        Direction::Egress => (packet.destination, packet.source),
        Direction::Ingress => (packet.source, packet.destination),
    };
    let is_icmp = matches!(packet.protocol, Protocol::ICMP | Protocol::ICMPV6);
    let (remote_port, local_port) = match context.direction {
        // ICMP has its type in `remote_port` and its code in `local_port`, whichever way it goes.
        Direction::Egress if !is_icmp => (packet.destination_port, packet.source_port),
        _ => (packet.source_port, packet.destination_port),
    };
    FlowEvent {
        remote: address_bytes(remote, context.ether_type),
        local: address_bytes(local, context.ether_type),
        remote_port,
        local_port,
        protocol: packet.protocol.0,
        ..describe_frame(line, context, reason)
    }
}

/// An address as an event carries it: network byte order, IPv4 in the first four bytes.
#[inline(always)]
fn address_bytes(words: [u64; 2], ether_type: u16) -> [u8; 16] {
    let [high, low] = if ether_type == ether_type::IPV4 { [words[1] << 32, 0] } else { words };
    ((high as u128) << 64 | low as u128).to_be_bytes()
}

/// Describes a frame of which no more than its EtherType is known.
#[inline(always)]
pub fn describe_frame<L: Line>(line: L, context: &Context, reason: u8) -> FlowEvent {
    FlowEvent {
        jiffies: 0,
        remote: [0; 16],
        local: [0; 16],
        generation: context.generation,
        ruleset: context.ruleset,
        class: context.class,
        ifindex: context.ifindex,
        endpoint: line.endpoint(),
        remote_port: 0,
        local_port: 0,
        ether_type: context.ether_type,
        protocol: 0,
        reason,
        direction: context.direction.index() as u8,
        state: context.state,
        reserved: 0,
    }
}

/// Offers an event if the slot has a token left; what finds no token or no room is counted as lost, beside the packet's
/// own reason.
#[inline(always)]
pub fn offer<T: Tables>(tables: T, slot: u16, event: &mut FlowEvent) {
    let now = tables.jiffies();
    let (burst, interval) = tables.event_rate();
    event.jiffies = now;
    let paid = tables.take_token(slot, |bucket| take_token(bucket, now, burst, interval));
    if !paid || !tables.emit(event) {
        tables.count(CounterKey::new(slot, Direction::from_index(event.direction as u32)), Reason::EventLost as u32);
    }
}

/// Pays a token out of a bucket that earns one each `interval` jiffies and holds `burst` at most.
///
/// Two processors may pay the same token twice: events are a sample.
#[inline(always)]
fn take_token(bucket: &mut TokenBucket, now: u64, burst: u32, interval: u32) -> bool {
    let interval = if interval == 0 { 1 } else { interval as u64 };
    let earned = now.wrapping_sub(bucket.stamp) / interval;
    if earned >= burst as u64 {
        bucket.tokens = burst;
        bucket.stamp = now;
    } else if earned != 0 {
        let tokens = bucket.tokens as u64 + earned;
        bucket.tokens = if tokens > burst as u64 { burst } else { tokens as u32 };
        bucket.stamp = bucket.stamp.wrapping_add(earned * interval);
    }
    if bucket.tokens == 0 {
        return false;
    }
    bucket.tokens -= 1;
    true
}
