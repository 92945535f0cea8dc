//! What the programs report.

use crate::Direction;

/// Columns of a row of COUNTERS: one for each [`crate::Reason`].
pub type CounterRow = [u64; 32];

/// Key of COUNTERS: `slot * 2 + direction`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CounterKey(pub u32);

impl CounterKey {
    /// Puts slot and direction together.
    #[inline(always)]
    pub const fn new(slot: u16, direction: Direction) -> Self {
        Self((slot as u32) << 1 | direction.index())
    }
}

/// Value of BUCKETS: what is left of a slot's events.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TokenBucket {
    /// Jiffies up to which events were paid out; lower 64 bits of the kernel's counter.
    pub stamp: u64,
    /// Events left.
    pub tokens: u32,
    /// Always zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<TokenBucket>() == 16);

/// Whether the packet of an event opened a flow, belonged to one or answered one.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EventState(pub u8);

impl EventState {
    /// Would have opened a flow, or belongs to none.
    pub const NEW: Self = Self(0);
    /// Belongs to a flow, in its own direction.
    pub const ORIGINAL: Self = Self(1);
    /// Goes against a flow's direction: the answer to a connection, never a new one.
    pub const REPLY: Self = Self(2);
}

/// One record of EVENTS.
///
/// `local` is the endpoint's side and `remote` the other, whatever the direction. IPv4 addresses stand in the first four
/// bytes. Ports are zero for protocols without; ICMP has its type in `remote_port` and its code in `local_port`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEvent {
    /// `jiffies64` when the packet was judged.
    pub jiffies: u64,
    /// Network byte order.
    pub remote: [u8; 16],
    /// Network byte order.
    pub local: [u8; 16],
    /// Generation of the endpoint's word.
    pub generation: u32,
    /// Ruleset that judged.
    pub ruleset: u32,
    /// Class of the remote address, where it was looked up.
    pub class: u32,
    /// Interface.
    pub ifindex: u32,
    /// Endpoint number.
    pub endpoint: u16,
    /// Host order.
    pub remote_port: u16,
    /// Host order.
    pub local_port: u16,
    /// EtherType of a frame that is not IP, else 0x0800 or 0x86dd; host order.
    pub ether_type: u16,
    /// IP protocol.
    pub protocol: u8,
    /// [`crate::Reason`].
    pub reason: u8,
    /// [`Direction`] of the packet: 0 ingress, 1 egress.
    pub direction: u8,
    /// [`EventState`].
    pub state: EventState,
    /// Always zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<FlowEvent>() == 72);
