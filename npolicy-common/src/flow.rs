//! Flow entries: verdict cache and reply memory, without locks.
//!
//! An entry is a key word `b` and data words that are masked by a mix of `b`. A torn or interleaved write decodes to a
//! tuple nobody asked for, so it is a miss and never a false accept. Two mixing steps are needed: one multiplication
//! carries differences only upwards, and then mixed pairs of two writers decode to keys nobody wrote.
//!
//! ```text
//! b = endpoint:16 | protocol:2 | direction:1 | origin:2 | marked:1 | time:18 | generation:24     (0 = free)
//! IPv4: a = (remote:32 | remote port:16 | local port:16) XOR mix(b without time and marked)
//! IPv6: ports, low, high: each XOR a mix of b (the same bits) and all words before it, in this order
//! ```
//! Write order: b = 0, the data words, b. One key (remote, local) serves both directions: the tuple is seen from the
//! endpoint's side.

use crate::{Direction, Protocol};

/// Entries in a bucket.
pub const FLOW_WAYS: usize = 4;

/// Idle windows, in units of the tables' time (about seconds).
pub mod timeouts {
    /// UDP, SCTP and other protocols; extended by the original direction only.
    pub const IDLE: u32 = 120;
    /// ICMP echo.
    pub const ECHO: u32 = 30;
    /// TCP: its socket brings the entry back.
    pub const TCP: u32 = 86_400;
}

/// Bits that a socket's mark is made of.
pub mod socket_mark {
    /// The pod opened the connection.
    pub const OPENED: u32 = 1;
    /// The pod accepted the connection; bits 8 and 9 hold the [`super::Origin`].
    pub const ACCEPTED: u32 = 2;
    /// The socket was marked for another connection, before the pod disconnected it: nothing is known of this one.
    pub const OTHER: u32 = 4;
    /// Where the origin stands.
    pub const ORIGIN_SHIFT: u32 = 8;
}

/// Protocol as a flow entry and a bundle number it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum FlowProtocol {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// SCTP.
    Sctp = 2,
    /// Any other: its number stands in the remote port, an echo's id in the local one.
    Other = 3,
}

impl FlowProtocol {
    /// Sorts an IP protocol.
    #[inline(always)]
    pub const fn of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::TCP => Self::Tcp,
            Protocol::UDP => Self::Udp,
            Protocol::SCTP => Self::Sctp,
            _ => Self::Other,
        }
    }

    /// Reads two bits.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Tcp,
            1 => Self::Udp,
            2 => Self::Sctp,
            _ => Self::Other,
        }
    }
}

/// What a flow was accepted as. Judging again uses the class of the origin: a reply cannot show it.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin(pub u8);

impl Origin {
    /// By the class of the remote address.
    pub const CLASS: Self = Self(0);
    /// This node itself opened it.
    pub const NODE_SELF: Self = Self(1);
    /// The pod reached itself through a Service.
    pub const POD_SELF: Self = Self(2);
}

/// The key word of an entry.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowData(pub u64);

impl FlowData {
    const TIME_SHIFT: u32 = 24;
    const TIME_MASK: u64 = ((1 << 18) - 1) << Self::TIME_SHIFT;
    const MARKED: u64 = 1 << 42;
    const ORIGIN_SHIFT: u32 = 43;
    const DIRECTION_SHIFT: u32 = 45;
    const PROTOCOL_SHIFT: u32 = 46;
    const ENDPOINT_SHIFT: u32 = 48;
    /// Times run from 0 to this and start again.
    pub const TIME_LIMIT: u32 = 1 << 18;

    /// Puts an entry's key word together, not marked.
    #[inline(always)]
    pub const fn new(
        endpoint: u16,
        protocol: FlowProtocol,
        direction: Direction,
        origin: Origin,
        time: u32,
        generation: u32,
    ) -> Self {
        Self(
            (endpoint as u64) << Self::ENDPOINT_SHIFT
                | (protocol as u64) << Self::PROTOCOL_SHIFT
                | (direction.index() as u64) << Self::DIRECTION_SHIFT
                | (origin.0 as u64 & 3) << Self::ORIGIN_SHIFT
                | (time as u64) << Self::TIME_SHIFT & Self::TIME_MASK
                | (generation as u64 & 0xff_ffff),
        )
    }

    /// Whether the entry is free.
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 == 0
    }

    /// Endpoint number.
    #[inline(always)]
    pub const fn endpoint(self) -> u16 {
        (self.0 >> Self::ENDPOINT_SHIFT) as u16
    }

    /// Protocol.
    #[inline(always)]
    pub const fn protocol(self) -> FlowProtocol {
        FlowProtocol::from_bits(self.0 >> Self::PROTOCOL_SHIFT)
    }

    /// The direction the first packet took.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        Direction::from_index((self.0 >> Self::DIRECTION_SHIFT) as u32)
    }

    /// What it was accepted as.
    #[inline(always)]
    pub const fn origin(self) -> Origin {
        Origin((self.0 >> Self::ORIGIN_SHIFT) as u8 & 3)
    }

    /// Whether the pod's socket carries its mark already.
    #[inline(always)]
    pub const fn is_marked(self) -> bool {
        self.0 & Self::MARKED != 0
    }

    /// When a packet last extended it.
    #[inline(always)]
    pub const fn time(self) -> u32 {
        ((self.0 & Self::TIME_MASK) >> Self::TIME_SHIFT) as u32
    }

    /// Generation of the endpoint's word when it was last accepted.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 & 0xff_ffff) as u32
    }

    /// The same entry, extended.
    #[inline(always)]
    pub const fn with_time(self, time: u32) -> Self {
        Self(self.0 & !Self::TIME_MASK | (time as u64) << Self::TIME_SHIFT & Self::TIME_MASK)
    }

    /// The same entry, accepted again under a generation. The mask depends on it: see [`Self::mixed_bits`].
    #[inline(always)]
    pub const fn with_generation(self, generation: u32) -> Self {
        Self(self.0 & !0xff_ffff | generation as u64 & 0xff_ffff)
    }

    /// The same entry, its socket marked.
    #[inline(always)]
    pub const fn with_mark(self) -> Self {
        Self(self.0 | Self::MARKED)
    }

    /// The bits that mask the data words: all but time and mark, so that refreshing an entry does not lose it.
    #[inline(always)]
    pub const fn mixed_bits(self) -> u64 {
        self.0 & !(Self::TIME_MASK | Self::MARKED)
    }

    /// How long ago a packet extended it, `now` being [`flow_time`]. Wraps after about three days.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        now.wrapping_sub(self.time()) & (Self::TIME_LIMIT - 1)
    }
}

/// Returns the tables' time for a count of jiffies.
#[inline(always)]
pub const fn flow_time(jiffies: u64, shift: u32) -> u32 {
    (jiffies >> (shift & 63)) as u32 & (FlowData::TIME_LIMIT - 1)
}

/// Mixes a word with the two data secrets of CONFIG, both odd.
#[inline(always)]
const fn mix(word: u64, secrets: &[u64; 4]) -> u64 {
    let mut x = word.wrapping_mul(secrets[0]);
    x ^= x >> 32;
    x = x.wrapping_mul(secrets[1]);
    x ^ (x >> 29)
}

/// An IPv4 tuple from the endpoint's side. `local` needs no address: an endpoint has one IPv4 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple4 {
    /// The packet's bytes read in host order.
    pub remote: u32,
    /// Host order; the protocol's number for [`FlowProtocol::Other`].
    pub remote_port: u16,
    /// Host order; an echo's id for [`FlowProtocol::Other`].
    pub local_port: u16,
}

impl Tuple4 {
    /// The tuple as one word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.remote as u64) << 32 | (self.remote_port as u64) << 16 | self.local_port as u64
    }
}

/// An IPv6 tuple from the endpoint's side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple6 {
    /// The packet's bytes as two words in host order.
    pub remote: [u64; 2],
    /// As in [`Tuple4`].
    pub remote_port: u16,
    /// As in [`Tuple4`].
    pub local_port: u16,
}

/// One IPv4 flow.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowEntry4 {
    /// Key word; zero while the entry is free or being written.
    pub b: FlowData,
    /// Masked tuple.
    pub a: u64,
}

impl FlowEntry4 {
    /// Returns the masked tuple that belongs to a key word. Its own inverse: given `a`, returns the tuple's word.
    #[inline(always)]
    pub const fn mask(b: FlowData, word: u64, secrets: &[u64; 4]) -> u64 {
        word ^ mix(b.mixed_bits(), secrets)
    }
}

/// One IPv6 flow.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowEntry6 {
    /// Key word; zero while the entry is free or being written.
    pub b: FlowData,
    /// Masked ports and the two masked halves of the remote address.
    pub words: [u64; 3],
}

impl FlowEntry6 {
    /// Returns the masked words of a tuple under a key word. Each is masked by a mix of `b` and *all* words before it: a
    /// mask from `b` alone would let halves of two entries combine.
    #[inline(always)]
    pub const fn mask(b: FlowData, tuple: Tuple6, secrets: &[u64; 4]) -> [u64; 3] {
        let ports = (tuple.remote_port as u64) << 16 | tuple.local_port as u64;
        let m0 = mix(b.mixed_bits(), secrets);
        let w0 = ports ^ m0;
        let m1 = mix(m0 ^ w0, secrets);
        let w1 = tuple.remote[1] ^ m1;
        let m2 = mix(m1 ^ w1, secrets);
        let w2 = tuple.remote[0] ^ m2;
        [w0, w1, w2]
    }
}

/// Value of FLOWS4: one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowBucket4 {
    /// Four entries.
    pub entries: [FlowEntry4; FLOW_WAYS],
}
const _: () = assert!(size_of::<FlowBucket4>() == 64);

/// Value of FLOWS6.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowBucket6 {
    /// Four entries.
    pub entries: [FlowEntry6; FLOW_WAYS],
}
const _: () = assert!(size_of::<FlowBucket6>() == 128);

/// What every lookup of a flow knows, as one or two words: endpoint, protocol, remote address and both ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowIndexKey {
    /// Remote address and ports.
    pub words: [u64; 2],
    /// Endpoint and protocol.
    pub owner: u32,
}

/// Returns the two buckets that may hold a flow, before the table's mask is applied; they can be the same.
#[inline(always)]
pub const fn flow_buckets(key: FlowIndexKey, secrets: &[u64; 4]) -> (u32, u32) {
    let mut x = (key.words[0] ^ key.owner as u64).wrapping_mul(secrets[2]);
    x ^= x >> 32;
    x = (x ^ key.words[1]).wrapping_mul(secrets[3]);
    x ^= x >> 29;
    (x as u32, (x >> 32) as u32)
}
