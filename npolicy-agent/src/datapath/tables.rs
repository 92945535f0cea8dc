//! The tables a publisher writes, and how much it may put into each.

use npolicy_common::{
    Bundle, CLASS6_WAYS, Class, Class6Bucket, ClassChunk, Config, EndpointLine, PortsBlock, PortsTop, Prefix6Key,
    RulesetChunk, maps,
};

use super::maps::{Keyed, MappedArray};

/// Word of CONFIG at which its secrets begin.
pub(super) const CONFIG_SECRETS_WORD: usize = std::mem::offset_of!(Config, secrets) / 8;

/// How much a publisher may put into each table; by default all there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Endpoint numbers, from 1 to the one before this.
    pub endpoints: u32,
    /// Lines of ENDPOINTS_MORE.
    pub endpoints_more: u32,
    /// Slots of COUNTERS, slot 0 among them.
    pub counter_slots: u32,
    /// Class numbers, the reserved ones among them.
    pub classes: u32,
    /// Chunks of CLASS4, the roots among them.
    pub class4_chunks: u32,
    /// Addresses of CLASS6.
    pub class6_addresses: u32,
    /// Entries of PREFIX6.
    pub prefix6: u32,
    /// Chunks of RULESETS, the fixed ones among them.
    pub ruleset_chunks: u32,
    /// Entries of BUNDLES, the fixed ones among them.
    pub bundles: u32,
    /// Entries of PORTS_TOP, the fixed ones among them.
    pub port_sets: u32,
    /// Entries of PORTS, the fixed ones among them.
    pub port_blocks: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            endpoints: 1 << 16,
            endpoints_more: maps::ENDPOINTS_MORE_ENTRIES,
            counter_slots: maps::COUNTER_SLOTS,
            classes: Class::LIMIT,
            class4_chunks: maps::CLASS4_CHUNKS,
            class6_addresses: maps::CLASS6_BUCKETS * CLASS6_WAYS as u32,
            prefix6: maps::PREFIX6_ENTRIES,
            ruleset_chunks: maps::RULESETS_CHUNKS,
            bundles: maps::BUNDLES_ENTRIES,
            port_sets: maps::PORTS_TOP_ENTRIES,
            port_blocks: maps::PORTS_ENTRIES,
        }
    }
}

/// The tables a publisher writes.
pub(super) struct Tables {
    /// CONFIG.
    pub config: MappedArray<Config>,
    /// ENDPOINTS.
    pub endpoints: MappedArray<EndpointLine>,
    /// ENDPOINTS_MORE.
    pub endpoints_more: Box<dyn Keyed<u32, EndpointLine>>,
    /// CLASS4.
    pub class4: MappedArray<ClassChunk>,
    /// CLASS6.
    pub class6: MappedArray<Class6Bucket>,
    /// PREFIX6.
    pub prefix6: Box<dyn Keyed<Prefix6Key, u32>>,
    /// RULESETS.
    pub rulesets: MappedArray<RulesetChunk>,
    /// BUNDLES.
    pub bundles: MappedArray<Bundle>,
    /// PORTS_TOP.
    pub tops: MappedArray<PortsTop>,
    /// PORTS.
    pub blocks: MappedArray<PortsBlock>,
}
