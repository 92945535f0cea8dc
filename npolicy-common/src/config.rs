//! What the programs must know that is not policy.

/// Bits of [`Config::flags`].
pub mod config_flags {
    /// Ruleset 2 (not identified yet) accepts. Turned off once, after the first complete publish, never on again.
    pub const UNIDENTIFIED_ACCEPTS: u32 = 1;
    /// PREFIX6 is not empty and must be asked.
    pub const PREFIX6_USED: u32 = 1 << 1;
    /// New accepted flows make an event too.
    pub const LOG_ACCEPTS: u32 = 1 << 2;
}

/// Value of CONFIG.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// [`crate::LAYOUT_VERSION`] of whoever made the maps.
    pub layout_version: u32,
    /// [`config_flags`].
    pub flags: u32,
    /// Jiffies are shifted right by this much to give the flow tables' time, about seconds.
    pub jiffies_shift: u32,
    /// Buckets of FLOWS4 less one.
    pub flow4_mask: u32,
    /// Buckets of FLOWS6 less one.
    pub flow6_mask: u32,
    /// Class word of IPv6 addresses found nowhere.
    pub default_class6: u32,
    /// Events a slot may make in one burst.
    pub event_burst: u32,
    /// Jiffies that earn a slot one event; at least 1.
    pub event_interval: u32,
    /// Odd random numbers, made with the flow tables and kept as long as they are: two that mix an entry's data, two
    /// that choose its buckets.
    pub secrets: [u64; 4],
}
const _: () = assert!(size_of::<Config>() == 64);

// SAFETY: `repr(C)`, no padding (asserted by the size), every bit pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Config {}
