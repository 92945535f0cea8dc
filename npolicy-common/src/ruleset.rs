//! A compiled ruleset: class -> bundle -> port set -> bit.
//!
//! ```text
//! RULESETS[root].rows[class >> 9] -> chunk;  RULESETS[chunk].rows[class & 511] -> bundle
//! BUNDLES[bundle].ports[tcp | udp | sctp]   -> port set: 0 nothing, 1 everything
//! PORTS_TOP[set].blocks[port >> 8]          -> block
//! PORTS[block].bits[(port >> 6) & 3] bit (port & 63)
//! ```

/// Number of a ruleset, 20 bits: its root chunk in RULESETS, or one of the first three.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct RulesetId(pub u32);

impl RulesetId {
    /// Accepts everything: the direction is not governed.
    pub const ACCEPT_ALL: Self = Self(0);
    /// Denies everything but ingress from NODE_SELF, which no policy can deny.
    pub const DENY_ALL: Self = Self(1);
    /// The pod behind the interface is not identified yet; CONFIG says whether it accepts.
    pub const UNIDENTIFIED: Self = Self(2);
    /// Chunks below this one are not given out: 0 is the leaf whose rows are all nothing, 1 the root of
    /// [`Self::DENY_ALL`], 2 is never read, 3 the leaf of [`Self::DENY_ALL`] that admits NODE_SELF.
    pub const FIRST_CHUNK: u32 = 4;
}

/// Value of RULESETS: a root (chunk numbers) or a leaf (bundle numbers). Chunk 0 is a leaf of nothing.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct RulesetChunk {
    /// 512 chunk numbers by the upper nine bits of a class, or bundle numbers by the lower nine.
    pub rows: [u32; 512],
}
const _: () = assert!(size_of::<RulesetChunk>() == 2048);

/// Number of a bundle.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct BundleId(pub u32);

impl BundleId {
    /// Accepts nothing.
    pub const NOTHING: Self = Self(0);
    /// Accepts everything.
    pub const EVERYTHING: Self = Self(1);
}

/// Number of a port set.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct PortSetId(pub u16);

impl PortSetId {
    /// No port.
    pub const NOTHING: Self = Self(0);
    /// Every port.
    pub const EVERYTHING: Self = Self(1);
}

/// Value of BUNDLES: what one class may reach, by protocol.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bundle {
    /// Port sets of TCP, UDP and SCTP, in this order (as [`crate::FlowProtocol`] numbers them).
    pub ports: [PortSetId; 3],
    /// 1 if every other protocol is accepted, else 0.
    pub other: u16,
}
const _: () = assert!(size_of::<Bundle>() == 8);

/// Value of PORTS_TOP: blocks by the port's upper byte. Block 0 is empty, block 1 full.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct PortsTop {
    /// Block numbers.
    pub blocks: [u16; 256],
}
const _: () = assert!(size_of::<PortsTop>() == 512);

/// Value of PORTS: a bit for each of 256 ports.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PortsBlock {
    /// Word `(port >> 6) & 3`, bit `port & 63`.
    pub bits: [u64; 4],
}
const _: () = assert!(size_of::<PortsBlock>() == 32);
