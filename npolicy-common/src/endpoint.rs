//! One pod's interface, one cache line.

use crate::{Direction, RulesetId};

/// Ingress ruleset (20 bits), egress ruleset (20), generation (24): one aligned store flips all three.
///
/// A used line's word is never zero: generations run from 1 to 2^24 - 1 and start again at 1.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EndpointWord(pub u64);

impl EndpointWord {
    /// The highest generation.
    pub const GENERATION_MAX: u32 = (1 << 24) - 1;
    const RULESET: u64 = (1 << 20) - 1;

    /// Puts the three numbers together.
    #[inline(always)]
    pub const fn new(ingress: RulesetId, egress: RulesetId, generation: u32) -> Self {
        Self(
            (ingress.0 as u64 & Self::RULESET)
                | (egress.0 as u64 & Self::RULESET) << 20
                | ((generation & Self::GENERATION_MAX) as u64) << 40,
        )
    }

    /// The ruleset of one direction.
    #[inline(always)]
    pub const fn ruleset(self, direction: Direction) -> RulesetId {
        match direction {
            Direction::Ingress => RulesetId((self.0 & Self::RULESET) as u32),
            Direction::Egress => RulesetId(((self.0 >> 20) & Self::RULESET) as u32),
        }
    }

    /// The generation, 1 to 2^24 - 1.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 40) as u32
    }

    /// The generation after this word's.
    #[inline(always)]
    pub const fn next_generation(self) -> u32 {
        let generation = self.generation();
        if generation >= Self::GENERATION_MAX { 1 } else { generation + 1 }
    }
}

/// Bits of [`EndpointLine::flags`].
pub mod endpoint_flags {
    /// The interface is a port of a bridge.
    pub const BRIDGED: u16 = 1;
    /// VLAN tags pass.
    pub const TAGS_ALLOWED: u16 = 1 << 1;
    /// Sources beside the pod's own pass.
    pub const SOURCES_ALLOWED: u16 = 1 << 2;
    /// The pod may answer as a DHCP server.
    pub const DHCP_SERVER_ALLOWED: u16 = 1 << 3;
    /// The interface was up before its programs, or the socket marks were lost: an unmarked socket may be older.
    pub const SOCKETS_MAY_BE_OLDER: u16 = 1 << 4;
}

/// Value of ENDPOINTS and ENDPOINTS_MORE: one pod's interface, one cache line.
///
/// The agent fills a line through `mmap`, with a number, before it attaches the programs; both programs read it for
/// every packet. `word` is written last and read once. A used line is never zero.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct EndpointLine {
    /// Both rulesets and the generation.
    pub word: EndpointWord,
    /// Interface index that owns the slot; a mismatch means a collision, not this endpoint.
    pub ifindex: u32,
    /// Reused only after a sweep of the flow tables met no entry of it.
    pub endpoint: u16,
    /// Row of COUNTERS and BUCKETS, 1 to 1,023; 0 is shared by what has no line and by endpoints beyond that.
    pub slot: u16,
    /// [`endpoint_flags`]; one store each time they change.
    pub flags: u16,
    /// Always zero.
    pub reserved: u16,
    /// The pod's network namespace as ours numbers it, for the socket lookup; -1: never look up (the helper would
    /// search the node's).
    pub netns_id: i32,
    /// The only IPv4 source this pod may use; network byte order, zero where absent.
    pub ipv4: [u8; 4],
    /// The pod's MAC address; zero where unknown.
    pub mac: [u8; 6],
    /// Always zero.
    pub reserved2: [u8; 6],
    /// The only routable IPv6 source this pod may use; network byte order, zero where absent.
    pub ipv6: [u8; 16],
    /// Always zero.
    pub reserved3: [u8; 8],
}
const _: () = assert!(size_of::<EndpointLine>() == 64);

impl EndpointLine {
    /// A line that is not used.
    pub const EMPTY: Self = Self {
        word: EndpointWord(0),
        ifindex: 0,
        endpoint: 0,
        slot: 0,
        flags: 0,
        reserved: 0,
        netns_id: -1,
        ipv4: [0; 4],
        mac: [0; 6],
        reserved2: [0; 6],
        ipv6: [0; 16],
        reserved3: [0; 8],
    };

    /// Whether the interface has shown an address of either family. A line without any is not checked for forged sources.
    #[inline(always)]
    pub const fn has_address(&self) -> bool {
        u32::from_ne_bytes(self.ipv4) != 0 || u128::from_ne_bytes(self.ipv6) != 0
    }
}

// SAFETY: `repr(C)`, every byte is a named field (asserted by the size), every bit pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for EndpointLine {}
