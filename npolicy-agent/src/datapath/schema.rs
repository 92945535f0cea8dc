//! What every map must be, checked before anything is read or written.

use std::path::Path;

use aya::maps::{MapInfo, MapType};
use npolicy_common as common;
use npolicy_common::maps::*;

use super::error::DatapathError;

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What a map must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schema {
    /// Its name, in the object and as a pin.
    pub(super) name: &'static str,
    kind: MapType,
    key_bytes: usize,
    value_bytes: usize,
    entries: Entries,
    flags: u32,
}

#[derive(Clone, Copy, Debug)]
enum Entries {
    /// This many.
    Exactly(u32),
    /// A power of two, chosen when the map was made.
    PowerOfTwo,
    /// The kernel's affair.
    Any,
}

const fn mapped<T>(name: &'static str, entries: u32) -> Schema {
    let value_bytes = size_of::<T>();
    let entries = Entries::Exactly(entries);
    Schema { name, kind: MapType::Array, key_bytes: 4, value_bytes, entries, flags: BPF_F_MMAPABLE }
}

const fn flows<T>(name: &'static str) -> Schema {
    Schema { entries: Entries::PowerOfTwo, ..mapped::<T>(name, 0) }
}

/// Every map that an object must have.
pub(super) const REQUIRED: [Schema; 15] = [
    mapped::<common::EndpointLine>(ENDPOINTS, ENDPOINTS_ENTRIES),
    Schema { kind: MapType::Hash, flags: 0, ..mapped::<common::EndpointLine>(ENDPOINTS_MORE, ENDPOINTS_MORE_ENTRIES) },
    mapped::<common::ClassChunk>(CLASS4, CLASS4_CHUNKS),
    mapped::<common::Class6Bucket>(CLASS6, CLASS6_BUCKETS),
    Schema {
        kind: MapType::LpmTrie,
        key_bytes: size_of::<common::Prefix6Key>(),
        flags: BPF_F_NO_PREALLOC,
        ..mapped::<common::ClassWord>(PREFIX6, PREFIX6_ENTRIES)
    },
    mapped::<common::RulesetChunk>(RULESETS, RULESETS_CHUNKS),
    mapped::<common::Bundle>(BUNDLES, BUNDLES_ENTRIES),
    mapped::<common::PortsTop>(PORTS_TOP, PORTS_TOP_ENTRIES),
    mapped::<common::PortsBlock>(PORTS, PORTS_ENTRIES),
    flows::<common::FlowBucket4>(FLOWS4),
    flows::<common::FlowBucket6>(FLOWS6),
    Schema { kind: MapType::PerCpuArray, flags: 0, ..mapped::<common::CounterRow>(COUNTERS, COUNTER_SLOTS * 2) },
    Schema { flags: 0, ..mapped::<common::TokenBucket>(BUCKETS, COUNTER_SLOTS) },
    Schema { kind: MapType::RingBuf, key_bytes: 0, flags: 0, ..mapped::<()>(EVENTS, EVENTS_BYTES) },
    mapped::<common::Config>(CONFIG, 1),
];

/// Maps that an object may have.
pub(super) const OPTIONAL: [Schema; 1] =
    [Schema { kind: MapType::SkStorage, entries: Entries::Any, flags: BPF_F_NO_PREALLOC, ..mapped::<u64>(SOCKETS, 0) }];

impl Schema {
    /// Checks the map pinned in a directory under this name.
    ///
    /// # Errors
    ///
    /// [`DatapathError::PinnedMap`], naming the pin and the difference.
    pub(super) fn check(&self, dir: &Path) -> Result<(), DatapathError> {
        let path = dir.join(self.name);
        let refuse = |problem: String| DatapathError::PinnedMap { path: path.clone(), problem };
        let info = MapInfo::from_pin(&path).map_err(|error| refuse(format!("cannot be opened: {error}")))?;
        let kind = info.map_type().map_err(|error| refuse(format!("has a type nobody knows: {error}")))?;
        if kind != self.kind {
            return Err(refuse(format!("is of type {kind:?}, expected {:?}", self.kind)));
        }
        let entries = info.max_entries();
        let expected_entries = match self.entries {
            Entries::Exactly(expected) => expected,
            Entries::PowerOfTwo if entries.is_power_of_two() => entries,
            Entries::PowerOfTwo => return Err(refuse(format!("has {entries} entries, expected a power of two"))),
            Entries::Any => entries,
        };
        for (what, found, expected) in [
            ("bytes in a key", info.key_size(), self.key_bytes as u32),
            ("bytes in a value", info.value_size(), self.value_bytes as u32),
            ("entries", entries, expected_entries),
            ("as flags", info.map_flags(), self.flags),
        ] {
            if found != expected {
                return Err(refuse(format!("has {found} {what}, expected {expected}")));
            }
        }
        Ok(())
    }
}
