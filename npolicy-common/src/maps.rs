//! Names and capacities of the maps. What happens when one is full is said beside its capacity.

/// One line an interface; slot = ifindex & 0xffff.
pub const ENDPOINTS: &str = "ENDPOINTS";
/// Lines of [`ENDPOINTS`]. A taken slot sends the interface to [`ENDPOINTS_MORE`].
pub const ENDPOINTS_ENTRIES: u32 = 65_536;
/// Lines whose slot in [`ENDPOINTS`] is taken.
pub const ENDPOINTS_MORE: &str = "ENDPOINTS_MORE";
/// Lines of [`ENDPOINTS_MORE`]. Full: the interface gets its programs without a line, so everything on it is dropped.
pub const ENDPOINTS_MORE_ENTRIES: u32 = 1_024;
/// IPv4 address to class, strides of 16, 8 and 8 bits.
pub const CLASS4: &str = "CLASS4";
/// Chunks of [`CLASS4`]. Full: the address's whole /24 becomes UNKNOWN.
pub const CLASS4_CHUNKS: u32 = 8_192;
/// The first chunks of [`CLASS4`] are its roots, one for each first byte of an address.
pub const CLASS4_ROOTS: u32 = 256;
/// IPv6 address to class, exact.
pub const CLASS6: &str = "CLASS6";
/// Buckets of [`CLASS6`]. An address that finds no place becomes a /128 of [`PREFIX6`].
pub const CLASS6_BUCKETS: u32 = 65_536;
/// IPv6 prefix to class.
pub const PREFIX6: &str = "PREFIX6";
/// Entries of [`PREFIX6`]. Full: the default class becomes UNKNOWN.
pub const PREFIX6_ENTRIES: u32 = 16_384;
/// Rows of rulesets: root chunk and leaf chunks.
pub const RULESETS: &str = "RULESETS";
/// Chunks of [`RULESETS`]. Full: the endpoint keeps its ruleset or gets the deny-all one.
pub const RULESETS_CHUNKS: u32 = 4_096;
/// Port sets by protocol.
pub const BUNDLES: &str = "BUNDLES";
/// Entries of [`BUNDLES`]. Full: as for [`RULESETS`].
pub const BUNDLES_ENTRIES: u32 = 16_384;
/// First level of a port set.
pub const PORTS_TOP: &str = "PORTS_TOP";
/// Entries of [`PORTS_TOP`]. Full: as for [`RULESETS`].
pub const PORTS_TOP_ENTRIES: u32 = 4_096;
/// Second level of a port set.
pub const PORTS: &str = "PORTS";
/// Entries of [`PORTS`]. Full: as for [`RULESETS`].
pub const PORTS_ENTRIES: u32 = 65_536;
/// IPv4 flows.
pub const FLOWS4: &str = "FLOWS4";
/// IPv6 flows.
pub const FLOWS6: &str = "FLOWS6";
/// Buckets of [`FLOWS4`] and [`FLOWS6`] unless a flag says otherwise; a power of two. Full: see `flow`.
pub const FLOWS_BUCKETS: u32 = 65_536;
/// Mark on a pod's TCP socket.
pub const SOCKETS: &str = "SOCKETS";
/// Verdicts counted by slot, direction and reason.
pub const COUNTERS: &str = "COUNTERS";
/// Counter slots; slot 0 is shared by what has no line and by endpoints beyond the others.
pub const COUNTER_SLOTS: u32 = 1_024;
/// Token buckets of events.
pub const BUCKETS: &str = "BUCKETS";
/// Denials, as a sample.
pub const EVENTS: &str = "EVENTS";
/// Bytes of [`EVENTS`]. Full: the event is lost and counted.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// One [`crate::Config`].
pub const CONFIG: &str = "CONFIG";
