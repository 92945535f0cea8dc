//! The maps, and [`Tables`] and [`Frame`] over them. BPF target only.
//!
//! Maps that the agent fills are mapped arrays: it stores, the programs load, and the verifier inlines each lookup. Their
//! values change under the programs' feet, so they are read through pointers, field by field, and no Rust reference to
//! them exists.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP, BPF_SK_STORAGE_GET_F_CREATE, BPF_TCP_CLOSE,
    BPF_TCP_LISTEN, BPF_TCP_NEW_SYN_RECV, BPF_TCP_TIME_WAIT, bpf_sock, bpf_sock_tuple,
};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_skb_load_bytes};
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_sk_release, bpf_sk_storage_get, bpf_skc_lookup_tcp};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use npolicy_common::maps::{
    BUNDLES_ENTRIES, CLASS4_CHUNKS, CLASS6_BUCKETS, COUNTER_SLOTS, ENDPOINTS_ENTRIES, ENDPOINTS_MORE_ENTRIES,
    EVENTS_BYTES, FLOWS_BUCKETS, PORTS_ENTRIES, PORTS_TOP_ENTRIES, PREFIX6_ENTRIES, RULESETS_CHUNKS,
};
use npolicy_common::{
    Be16, Bundle, Class, Class6Bucket, ClassChunk, ClassWord, Config, CounterKey, CounterRow, EndpointLine,
    EndpointWord, FLOW_WAYS, FlowBucket4, FlowBucket6, FlowData, FlowEvent, FlowProtocol, PortsBlock, PortsTop, Reason,
    RulesetChunk, RulesetId, TokenBucket, socket_mark,
};
use npolicy_ebpf::{
    Bucket, Connection, Frame, Line, Listing, Marking, Outcome, Question, Socket, Steps, Tables, ether_type,
};

#[map]
static ENDPOINTS: Array<EndpointLine> = Array::with_max_entries(ENDPOINTS_ENTRIES, BPF_F_MMAPABLE);
#[map]
static ENDPOINTS_MORE: HashMap<u32, EndpointLine> = HashMap::with_max_entries(ENDPOINTS_MORE_ENTRIES, 0);
#[map]
static CLASS4: Array<ClassChunk> = Array::with_max_entries(CLASS4_CHUNKS, BPF_F_MMAPABLE);
#[map]
static CLASS6: Array<Class6Bucket> = Array::with_max_entries(CLASS6_BUCKETS, BPF_F_MMAPABLE);
#[map]
static PREFIX6: LpmTrie<[u8; 16], ClassWord> = LpmTrie::with_max_entries(PREFIX6_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static RULESETS: Array<RulesetChunk> = Array::with_max_entries(RULESETS_CHUNKS, BPF_F_MMAPABLE);
#[map]
static BUNDLES: Array<Bundle> = Array::with_max_entries(BUNDLES_ENTRIES, BPF_F_MMAPABLE);
#[map]
static PORTS_TOP: Array<PortsTop> = Array::with_max_entries(PORTS_TOP_ENTRIES, BPF_F_MMAPABLE);
#[map]
static PORTS: Array<PortsBlock> = Array::with_max_entries(PORTS_ENTRIES, BPF_F_MMAPABLE);
#[map]
static FLOWS4: Array<FlowBucket4> = Array::with_max_entries(FLOWS_BUCKETS, BPF_F_MMAPABLE);
#[map]
static FLOWS6: Array<FlowBucket6> = Array::with_max_entries(FLOWS_BUCKETS, BPF_F_MMAPABLE);
#[btf_map]
static SOCKETS: SkStorage<u64> = SkStorage::new();
#[map]
static COUNTERS: PerCpuArray<CounterRow> = PerCpuArray::with_max_entries(COUNTER_SLOTS * 2, 0);
#[map]
static BUCKETS: Array<TokenBucket> = Array::with_max_entries(COUNTER_SLOTS, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One packet at a hook, and the maps.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    skb: *mut __sk_buff,
    config: *const Config,
}

impl Kernel {
    /// Takes a program's context; nothing if there is no CONFIG.
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Option<Self> {
        Some(Self { skb, config: CONFIG.get_ptr(0)? })
    }
}

/// Loads a field of a map's value by one load.
macro_rules! load {
    ($pointer:expr, $($field:tt)+) => {{
        let pointer = $pointer;
        // SAFETY: `pointer` comes from a successful map lookup and the value's layout is the type it points to.
        let field = unsafe { &raw const (*pointer).$($field)+ };
        // SAFETY: the field lies in the value and is aligned; it may change at any time, which a volatile load bears.
        unsafe { field.read_volatile() }
    }};
}

/// Loads a field of the program's context.
macro_rules! context {
    ($kernel:expr, $($field:ident).+) => {{
        // SAFETY: the kernel hands every classifier a valid context.
        unsafe { (*$kernel.skb).$($field).+ }
    }};
}

/// Loads a field of a socket.
macro_rules! socket_field {
    ($socket:expr, $field:ident) => {{
        // SAFETY: the socket comes from a helper and is not given back yet.
        unsafe { (*$socket).$field }
    }};
}

/// Finding the pod's own sockets.
impl Kernel {
    /// Tells a socket's connections apart: a pod may disconnect a socket and use it for another one.
    #[inline(always)]
    fn tag(self, connection: &Connection) -> u64 {
        let [first, second, ..] = self.secrets();
        let ports = (connection.remote_port as u64) << 16 | connection.local_port as u64;
        let mut x = (connection.remote[0] ^ ports).wrapping_mul(first);
        x ^= x >> 32;
        x = (x ^ connection.remote[1]).wrapping_mul(second);
        (x ^ x >> 29) & TAG
    }

    /// The socket that sent the packet, if it is a full TCP stream socket with the packet's two ports. Behind a raw frame
    /// stands a packet or raw socket, of which a connected one says TCP and ESTABLISHED too.
    #[inline(always)]
    fn sender(self, connection: &Connection) -> Option<*mut bpf_sock> {
        if !connection.may_be_sender {
            return None;
        }
        let socket = context!(self, __bindgen_anon_2.sk);
        if socket.is_null() {
            return None;
        }
        // SAFETY: the helper (5.1) takes what the context calls its socket, and returns it or null.
        let socket = unsafe { bpf_sk_fullsock(socket) };
        if socket.is_null() {
            return None;
        }
        let is_stream = socket_field!(socket, type_) == SOCK_STREAM && socket_field!(socket, protocol) == IPPROTO_TCP;
        // The source port stands in host order, the destination port in network order.
        let has_ports = socket_field!(socket, src_port) == connection.local_port as u32
            && u16::from_be(socket_field!(socket, dst_port)) == connection.remote_port;
        let is_connected = !matches!(state(socket), BPF_TCP_LISTEN | BPF_TCP_CLOSE);
        (is_stream && has_ports && is_connected).then_some(socket)
    }

    /// The socket that would get the other side's packets, in the pod's namespace; to be given back.
    #[inline(always)]
    fn look_up(self, connection: &Connection) -> Option<*mut bpf_sock> {
        let [local, remote] = [connection.local, connection.remote];
        let mut tuple = MaybeUninit::<bpf_sock_tuple>::zeroed();
        let to = tuple.as_mut_ptr().cast::<u32>();
        let ports = u32::from_be((connection.remote_port as u32) << 16 | connection.local_port as u32);
        let words = if connection.is_ipv4 { 3 } else { 9 };
        if connection.is_ipv4 {
            // SAFETY: an IPv4 tuple is three words: source, destination, both ports.
            unsafe { to.cast::<[u32; 3]>().write([(remote[1] as u32).to_be(), (local[1] as u32).to_be(), ports]) };
        } else {
            let halves = [remote[0], remote[1], local[0], local[1]].map(u64::to_be);
            // SAFETY: an IPv6 tuple is four words each for source and destination.
            unsafe { to.cast::<[u64; 4]>().write_unaligned(halves) };
            // SAFETY: both ports stand behind them.
            let to = unsafe { to.add(8) };
            // SAFETY: as above.
            unsafe { to.write(ports) };
        }
        let skb = self.skb.cast::<c_void>();
        let netns_id = connection.netns_id as u64;
        // SAFETY: the tuple is as long as said; the helper (5.2) returns a socket that is given back by `release`.
        let socket = unsafe { bpf_skc_lookup_tcp(skb, tuple.as_mut_ptr(), words * 4, netns_id, 0) };
        (!socket.is_null()).then_some(socket)
    }
}

#[inline(always)]
fn state(socket: *mut bpf_sock) -> u32 {
    socket_field!(socket, state)
}

#[inline(always)]
fn release(socket: *mut bpf_sock) {
    // SAFETY: the socket comes from `look_up` and is not used any more.
    unsafe { bpf_sk_release(socket.cast()) };
}

/// The bits of a mark that say of which connection it was made.
const TAG: u64 = !0xffff;

/// The mark that a full socket carries; 0 if none.
#[inline(always)]
fn mark_of(socket: *mut bpf_sock, tag: u64) -> u32 {
    let map = (&raw const SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: the map and the socket are valid; without a flag the helper (5.2) only looks.
    let mark = unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0) }.cast::<u64>();
    if mark.is_null() {
        return 0;
    }
    // SAFETY: the helper returned the value's place.
    let mark = unsafe { mark.read_volatile() };
    if mark == 0 || mark & TAG == tag { mark as u16 as u32 } else { socket_mark::OTHER }
}

#[inline(always)]
fn put_mark(socket: *mut bpf_sock, mark: u32, tag: u64) -> Marking {
    let map = (&raw const SOCKETS).cast_mut().cast::<c_void>();
    let create = BPF_SK_STORAGE_GET_F_CREATE as u64;
    // SAFETY: as in `mark_of`; with the flag the helper makes the value if it can.
    let place = unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), create) }.cast::<u64>();
    if place.is_null() {
        return Marking::Refused;
    }
    // SAFETY: the helper returned the value's place.
    unsafe { place.write_volatile(tag | mark as u64) };
    Marking::Done
}

/// `include/linux/net.h`.
const SOCK_STREAM: u32 = 1;
/// `include/uapi/linux/in.h`.
const IPPROTO_TCP: u32 = 6;

/// A line of ENDPOINTS or ENDPOINTS_MORE.
#[derive(Clone, Copy)]
pub(crate) struct LinePointer(*const EndpointLine);

impl Line for LinePointer {
    #[inline(always)]
    fn word(self) -> EndpointWord {
        EndpointWord(load!(self.0, word.0))
    }

    #[inline(always)]
    fn endpoint(self) -> u16 {
        load!(self.0, endpoint)
    }

    #[inline(always)]
    fn slot(self) -> u16 {
        load!(self.0, slot)
    }

    #[inline(always)]
    fn flags(self) -> u16 {
        load!(self.0, flags)
    }

    #[inline(always)]
    fn netns_id(self) -> i32 {
        load!(self.0, netns_id)
    }

    #[inline(always)]
    fn ipv4(self) -> u32 {
        // SAFETY: as in `load`; the field stands at a multiple of four.
        let field = unsafe { &raw const (*self.0).ipv4 }.cast::<u32>();
        // SAFETY: as in `load`.
        u32::from_be(unsafe { field.read_volatile() })
    }

    #[inline(always)]
    fn ipv6(self) -> [u64; 2] {
        // SAFETY: as in `load`; the field stands at a multiple of eight.
        let field = unsafe { &raw const (*self.0).ipv6 }.cast::<u64>();
        // SAFETY: as in `load`.
        let high = unsafe { field.read_volatile() };
        // SAFETY: the field is two words long.
        let next = unsafe { field.add(1) };
        // SAFETY: as in `load`.
        let low = unsafe { next.read_volatile() };
        [u64::from_be(high), u64::from_be(low)]
    }

    #[inline(always)]
    fn mac(self) -> u64 {
        let [a, b, c, d, e, f] = load!(self.0, mac);
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

const _: () = {
    assert!(core::mem::offset_of!(EndpointLine, ipv4) % 4 == 0);
    assert!(core::mem::offset_of!(EndpointLine, ipv6) % 8 == 0);
};

/// A bucket of CLASS6.
#[derive(Clone, Copy)]
pub(crate) struct ListingPointer(*const Class6Bucket);

impl Listing for ListingPointer {
    #[inline(always)]
    fn entry(self, way: usize) -> ClassWord {
        load!(self.0, classes[way])
    }

    #[inline(always)]
    fn address(self, way: usize) -> [u64; 2] {
        [load!(self.0, addresses[way][0]), load!(self.0, addresses[way][1])]
    }
}

/// A bucket of a flow table whose entries are `WORDS` words long, the key word first.
#[derive(Clone, Copy)]
pub(crate) struct BucketPointer<const WORDS: usize>(*mut u64);

impl<const WORDS: usize> BucketPointer<WORDS> {
    #[inline(always)]
    fn at(self, way: usize, word: usize) -> *mut u64 {
        // SAFETY: the bucket holds FLOW_WAYS entries of WORDS words, and the mask and callers keep both within.
        unsafe { self.0.add((way & (FLOW_WAYS - 1)) * WORDS + word) }
    }

    #[inline(always)]
    fn load(self, way: usize, word: usize) -> u64 {
        // SAFETY: `at` lies in the bucket and is aligned; others store to it, which a volatile load bears.
        unsafe { self.at(way, word).read_volatile() }
    }

    #[inline(always)]
    fn store(self, way: usize, word: usize, value: u64) {
        // SAFETY: as in `load`. Other processors may store here too; the entries' masks make that harmless.
        unsafe { self.at(way, word).write_volatile(value) }
    }
}

impl<const WORDS: usize> Bucket for BucketPointer<WORDS> {
    #[inline(always)]
    fn key(self, way: usize) -> FlowData {
        FlowData(self.load(way, 0))
    }

    #[inline(always)]
    fn set_key(self, way: usize, key: FlowData) {
        self.store(way, 0, key.0);
    }

    #[inline(always)]
    fn word(self, way: usize, index: usize) -> u64 {
        self.load(way, 1 + index)
    }

    #[inline(always)]
    fn set_word(self, way: usize, index: usize, word: u64) {
        self.store(way, 1 + index, word);
    }
}

impl Tables for Kernel {
    type Line = LinePointer;
    type Class6 = ListingPointer;
    type Flows4 = BucketPointer<2>;
    type Flows6 = BucketPointer<4>;

    #[inline(always)]
    fn config_flags(self) -> u32 {
        load!(self.config, flags)
    }

    #[inline(always)]
    fn jiffies_shift(self) -> u32 {
        load!(self.config, jiffies_shift)
    }

    #[inline(always)]
    fn secrets(self) -> [u64; 4] {
        [
            load!(self.config, secrets[0]),
            load!(self.config, secrets[1]),
            load!(self.config, secrets[2]),
            load!(self.config, secrets[3]),
        ]
    }

    #[inline(always)]
    fn default_class6(self) -> ClassWord {
        ClassWord(load!(self.config, default_class6))
    }

    #[inline(always)]
    fn event_rate(self) -> (u32, u32) {
        (load!(self.config, event_burst), load!(self.config, event_interval))
    }

    #[inline(always)]
    fn jiffies(self) -> u64 {
        // SAFETY: the helper (5.5) takes nothing and always succeeds.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn endpoint(self, ifindex: u32) -> Option<LinePointer> {
        let line = ENDPOINTS.get_ptr(ifindex & (ENDPOINTS_ENTRIES - 1))?;
        if load!(line, ifindex) == ifindex {
            return Some(LinePointer(line));
        }
        ENDPOINTS_MORE.get_ptr(ifindex).map(LinePointer)
    }

    #[inline(always)]
    fn class4(self, chunk: u32, byte: u8) -> ClassWord {
        match CLASS4.get_ptr(chunk) {
            Some(chunk) => load!(chunk, entries[byte as usize]),
            None => ClassWord::class_entry(Class::UNKNOWN, 0),
        }
    }

    #[inline(always)]
    fn class6(self, bucket: u32) -> Option<ListingPointer> {
        CLASS6.get_ptr(bucket).map(ListingPointer)
    }

    #[inline(always)]
    fn prefix6(self, address: [u64; 2]) -> Option<ClassWord> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address[0].to_be_bytes());
        bytes[8..].copy_from_slice(&address[1].to_be_bytes());
        PREFIX6.get(Key::new(128, bytes)).copied()
    }

    #[inline(always)]
    fn ruleset_row(self, chunk: u32, row: u32) -> u32 {
        match RULESETS.get_ptr(chunk) {
            Some(chunk) => load!(chunk, rows[(row & 511) as usize]),
            None => 0,
        }
    }

    #[inline(always)]
    fn bundle(self, bundle: u32) -> Bundle {
        match BUNDLES.get_ptr(bundle) {
            Some(bundle) => Bundle {
                ports: [load!(bundle, ports[0]), load!(bundle, ports[1]), load!(bundle, ports[2])],
                other: load!(bundle, other),
            },
            None => Bundle::default(),
        }
    }

    #[inline(always)]
    fn ports_block(self, set: u16, upper: u8) -> u16 {
        match PORTS_TOP.get_ptr(set as u32) {
            Some(set) => load!(set, blocks[upper as usize]),
            None => 0,
        }
    }

    #[inline(always)]
    fn ports_bits(self, block: u16, word: u32) -> u64 {
        match PORTS.get_ptr(block as u32) {
            Some(block) => load!(block, bits[(word & 3) as usize]),
            None => 0,
        }
    }

    #[inline(always)]
    fn flow4_mask(self) -> u32 {
        load!(self.config, flow4_mask)
    }

    #[inline(always)]
    fn flow6_mask(self) -> u32 {
        load!(self.config, flow6_mask)
    }

    #[inline(always)]
    fn flows4(self, hash: u32) -> Option<BucketPointer<2>> {
        let bucket = FLOWS4.get_ptr_mut(hash & self.flow4_mask())?;
        Some(BucketPointer(bucket.cast()))
    }

    #[inline(always)]
    fn flows6(self, hash: u32) -> Option<BucketPointer<4>> {
        let bucket = FLOWS6.get_ptr_mut(hash & self.flow6_mask())?;
        Some(BucketPointer(bucket.cast()))
    }

    #[inline(always)]
    fn class_of_ipv4(self, address: u32) -> ClassWord {
        ClassWord(class_of_ipv4(address))
    }

    #[inline(always)]
    fn class_of_ipv6(self, address: [u64; 2]) -> ClassWord {
        ClassWord(class_of_ipv6(address[0], address[1]))
    }

    #[inline(always)]
    fn accepts(self, ruleset: RulesetId, class: Class, protocol: FlowProtocol, port: u16) -> bool {
        accepts(ruleset.0, class.0, protocol as u32, port as u32) != 0
    }

    #[inline(always)]
    fn socket(self, connection: &Connection) -> Socket {
        if let Some(socket) = self.sender(connection) {
            return Socket::Full(mark_of(socket, self.tag(connection)));
        }
        if connection.netns_id < 0 {
            return Socket::Unasked;
        }
        let Some(socket) = self.look_up(connection) else { return Socket::Absent };
        let answer = match state(socket) {
            BPF_TCP_LISTEN => Socket::Listener,
            BPF_TCP_NEW_SYN_RECV => Socket::HalfOpen,
            BPF_TCP_CLOSE | BPF_TCP_TIME_WAIT => Socket::Absent,
            _ => Socket::Full(mark_of(socket, self.tag(connection))),
        };
        release(socket);
        answer
    }

    #[inline(always)]
    fn mark_socket(self, connection: &Connection, mark: u32) -> Marking {
        if let Some(socket) = self.sender(connection) {
            return put_mark(socket, mark, self.tag(connection));
        }
        if connection.netns_id < 0 {
            return Marking::NoSocket;
        }
        let Some(socket) = self.look_up(connection) else { return Marking::NoSocket };
        let marking = match state(socket) {
            BPF_TCP_LISTEN | BPF_TCP_NEW_SYN_RECV => Marking::NotYet,
            BPF_TCP_CLOSE | BPF_TCP_TIME_WAIT => Marking::NoSocket,
            _ => put_mark(socket, mark, self.tag(connection)),
        };
        release(socket);
        marking
    }

    #[inline(always)]
    fn count(self, key: CounterKey, column: u32) {
        let Some(row) = COUNTERS.get_ptr_mut(key.0) else { return };
        // SAFETY: the row has 32 columns and the mask keeps within.
        let column = unsafe { row.cast::<u64>().add((column & 31) as usize) };
        // SAFETY: the row is this processor's own and nothing else runs on it meanwhile.
        let count = unsafe { column.read() };
        // SAFETY: as above.
        unsafe { column.write(count.wrapping_add(1)) }
    }

    #[inline(always)]
    fn take_token(self, slot: u16, change: impl FnOnce(&mut TokenBucket) -> bool) -> bool {
        let Some(place) = BUCKETS.get_ptr_mut(slot as u32) else { return false };
        // SAFETY: `place` comes from a successful lookup; what other processors store meanwhile costs an event at most.
        let mut bucket = unsafe { place.read() };
        let is_paid = change(&mut bucket);
        // SAFETY: as above.
        unsafe { place.write(bucket) };
        is_paid
    }

    #[inline(always)]
    fn emit(self, event: &FlowEvent) -> bool {
        let Some(mut record) = EVENTS.reserve::<FlowEvent>(0) else { return false };
        record.write(*event);
        // The reader polls: a wake-up for each event would cost more than the packet.
        record.submit(BPF_RB_NO_WAKEUP as u64);
        true
    }
}

impl Frame for Kernel {
    #[inline(always)]
    fn length(self) -> u32 {
        context!(self, len)
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        context!(self, ifindex)
    }

    #[inline(always)]
    fn ingress_ifindex(self) -> u32 {
        context!(self, ingress_ifindex)
    }

    #[inline(always)]
    fn has_outer_tag(self) -> bool {
        context!(self, vlan_present) != 0
    }

    #[inline(always)]
    fn linear<'a, const N: usize>(self) -> Option<&'a [Be16; N]>
    where
        Self: 'a,
    {
        let data = context!(self, data) as usize;
        let data_end = context!(self, data_end) as usize;
        if data + 2 * N > data_end {
            return None;
        }
        // SAFETY: the bytes up to `data_end` belong to the packet, which starts at an even address and which nobody
        // changes while the program runs; every pair of bytes is a valid number.
        Some(unsafe { &*(data as *const [Be16; N]) })
    }

    #[inline(always)]
    fn load<const N: usize>(self, offset: u32) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        let to = words.as_mut_ptr().cast::<c_void>();
        let length = size_of::<[u32; N]>() as u32;
        // SAFETY: the helper writes `length` bytes to a place that has them, or fails.
        let failed = unsafe { bpf_skb_load_bytes(self.skb.cast::<c_void>().cast_const(), offset, to, length) };
        if failed != 0 {
            return None;
        }
        // SAFETY: the helper has filled all of it.
        Some(unsafe { words.assume_init() }.map(u32::from_be))
    }

    #[inline(always)]
    fn forget(self, number: u32) -> u32 {
        // The length does not change between the two loads, which only the verifier cannot know.
        let length = load!(self.skb.cast_const(), len);
        number.wrapping_add(load!(self.skb.cast_const(), len)).wrapping_sub(length)
    }
}

/// Table walks that need numbers only, each a global function: the verifier walks it once (5.6), whatever its callers know.
macro_rules! walks {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) = |$tables:ident| $body:expr;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name($($argument: $kind),*) -> u32 {
            // No packet: what follows asks tables only.
            match Kernel::new(core::ptr::null_mut()) {
                Some($tables) => $body,
                None => 0,
            }
        }
    )*};
}

walks! {
    fn class_of_ipv4(address: u32) = |tables| npolicy_ebpf::class_of_ipv4(tables, address).0;
    fn class_of_ipv6(high: u64, low: u64) = |tables| npolicy_ebpf::class_of_ipv6(tables, [high, low]).0;
    fn accepts(ruleset: u32, class: u32, protocol: u32, port: u32) = |tables| {
        let protocol = FlowProtocol::from_bits(protocol as u64);
        npolicy_ebpf::accepts(tables, RulesetId(ruleset), Class(class), protocol, port as u16) as u32
    };
}

impl Steps for Kernel {
    #[inline(always)]
    fn read(self, question: &mut Question) -> Outcome {
        Outcome(step_read(self.skb, question))
    }

    #[inline(always)]
    fn decide(self, question: &Question) -> Outcome {
        Outcome(match question.ether_type {
            ether_type::IPV4 => step_decide4(self.skb, question),
            _ => step_decide6(self.skb, question),
        })
    }

    #[inline(always)]
    fn judge_error(self, question: &Question) -> Outcome {
        Outcome(match question.ether_type {
            ether_type::IPV4 => step_judge_error4(self.skb, question),
            _ => step_judge_error6(self.skb, question),
        })
    }

    #[inline(always)]
    fn recover(self, question: &Question) -> Outcome {
        Outcome(match question.ether_type {
            ether_type::IPV4 => step_recover4(self.skb, question),
            _ => step_recover6(self.skb, question),
        })
    }

    #[inline(always)]
    fn mark_opened(self, question: &Question, outcome: Outcome) -> Outcome {
        Outcome(step_mark_opened(self.skb, question, outcome.0))
    }

    #[inline(always)]
    fn mark_accepted(self, question: &Question, outcome: Outcome) -> Outcome {
        Outcome(match question.ether_type {
            ether_type::IPV4 => step_mark_accepted4(self.skb, question, outcome.0),
            _ => step_mark_accepted6(self.skb, question, outcome.0),
        })
    }

    #[inline(always)]
    fn remember(self, question: &Question, outcome: Outcome) -> Outcome {
        Outcome(match question.ether_type {
            ether_type::IPV4 => step_remember4(self.skb, question, outcome.0),
            _ => step_remember6(self.skb, question, outcome.0),
        })
    }

    #[inline(always)]
    fn report(self, question: &Question, outcome: Outcome) {
        step_report(self.skb, question, outcome.0);
    }
}

/// Returned where the verifier thinks that there may be no question.
const NO_QUESTION: u64 = Outcome::of(Reason::NoEndpoint).0;

/// A global function's view of its arguments: nothing is known of the question but that it may be null.
#[inline(always)]
fn arguments<'a>(skb: *mut __sk_buff, question: *const Question) -> Option<(Kernel, &'a Question)> {
    // SAFETY: callers hand over a question of their own, which lives until they return.
    let question = unsafe { question.as_ref() }?;
    Some((Kernel::new(skb)?, question))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_read(skb: *mut __sk_buff, question: *mut Question) -> u64 {
    // SAFETY: as in `arguments`; nobody else looks at it meanwhile.
    let Some(question) = (unsafe { question.as_mut() }) else { return NO_QUESTION };
    let Some(kernel) = Kernel::new(skb) else { return NO_QUESTION };
    npolicy_ebpf::read(kernel, question).0
}

/// Steps that take a question, and those that take what the step before made of it too.
macro_rules! steps {
    ($($name:ident = $step:path;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(skb: *mut __sk_buff, question: *const Question) -> u64 {
            let Some((kernel, question)) = arguments(skb, question) else { return NO_QUESTION };
            $step(kernel, question).0
        }
    )*};
    ($($name:ident(outcome) = $step:path;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(skb: *mut __sk_buff, question: *const Question, outcome: u64) -> u64 {
            let Some((kernel, question)) = arguments(skb, question) else { return NO_QUESTION };
            $step(kernel, question, Outcome(outcome)).0
        }
    )*};
}

steps! {
    step_decide4 = npolicy_ebpf::decide::<u32, Kernel>;
    step_decide6 = npolicy_ebpf::decide::<[u64; 2], Kernel>;
    step_judge_error4 = npolicy_ebpf::judge_error::<u32, Kernel>;
    step_judge_error6 = npolicy_ebpf::judge_error::<[u64; 2], Kernel>;
    step_recover4 = npolicy_ebpf::recover::<u32, Kernel>;
    step_recover6 = npolicy_ebpf::recover::<[u64; 2], Kernel>;
}

steps! {
    step_mark_opened(outcome) = npolicy_ebpf::mark_opened::<Kernel>;
    step_mark_accepted4(outcome) = npolicy_ebpf::mark_accepted::<u32, Kernel>;
    step_mark_accepted6(outcome) = npolicy_ebpf::mark_accepted::<[u64; 2], Kernel>;
    step_remember4(outcome) = npolicy_ebpf::remember::<u32, Kernel>;
    step_remember6(outcome) = npolicy_ebpf::remember::<[u64; 2], Kernel>;
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_report(skb: *mut __sk_buff, question: *const Question, outcome: u64) -> u64 {
    if let Some((kernel, question)) = arguments(skb, question) {
        npolicy_ebpf::report(kernel, question, Outcome(outcome));
    }
    0
}
