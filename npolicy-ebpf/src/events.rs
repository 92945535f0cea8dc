//! Counters always, a [`FlowEvent`] when asked.

use npolicy_common::{CounterKey, Direction, FlowEvent, Protocol, Reason, TokenBucket};

use crate::hook::{Hook, Outcome, Question, Steps};
use crate::parse::ether_type;
use crate::tables::{Line, Tables};

/// Offers an event about a packet.
#[inline(always)]
pub fn report<K: Steps>(kernel: K, question: &Question, outcome: Outcome) {
    let Some(hook) = Hook::of(kernel, question) else { return };
    let mut event = describe(&hook, question, outcome);
    offer(kernel, hook.line.slot(), &mut event);
}

/// Describes a packet; of a frame that is not IP no more than its EtherType is known, and the rest is zero.
#[inline(always)]
fn describe<K: Steps>(hook: &Hook<K>, question: &Question, outcome: Outcome) -> FlowEvent {
    let packet = &question.careful.packet;
    let is_icmp = matches!(packet.protocol, Protocol::ICMP | Protocol::ICMPV6);
    let (remote, local, remote_port, local_port) = match hook.direction {
        Direction::Egress => (packet.destination, packet.source, packet.destination_port, packet.source_port),
        Direction::Ingress => (packet.source, packet.destination, packet.source_port, packet.destination_port),
    };
    // ICMP has its type in `remote_port` and its code in `local_port`, whichever way it goes.
    let (remote_port, local_port) =
        if is_icmp { (packet.source_port, packet.destination_port) } else { (remote_port, local_port) };
    let judged = if outcome.is_by_opposite() { hook.direction.opposite() } else { hook.direction };
    FlowEvent {
        jiffies: 0,
        remote: address_bytes(remote, question.ether_type),
        local: address_bytes(local, question.ether_type),
        generation: hook.word.generation(),
        ruleset: hook.word.ruleset(judged).0,
        class: outcome.class().0,
        ifindex: hook.kernel.ifindex(),
        endpoint: hook.line.endpoint(),
        remote_port,
        local_port,
        ether_type: question.ether_type,
        protocol: packet.protocol.0,
        reason: outcome.number(),
        direction: hook.direction.index() as u8,
        state: outcome.state(),
        reserved: 0,
    }
}

/// An address as an event carries it: network byte order, IPv4 in the first four bytes.
#[inline(always)]
fn address_bytes(words: [u64; 2], ether_type: u16) -> [u8; 16] {
    let [high, low] = if ether_type == ether_type::IPV4 { [words[1] << 32, 0] } else { words };
    ((high as u128) << 64 | low as u128).to_be_bytes()
}

/// Offers an event if the slot has a token left; what finds no token or no room is counted as lost, beside the packet's
/// own reason.
#[inline(always)]
fn offer<T: Tables>(tables: T, slot: u16, event: &mut FlowEvent) {
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
