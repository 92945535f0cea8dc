//! Packet -> its flow, and inserting.
//!
//! The flow table is a cache without locks: two buckets may hold a flow, each of four entries. Entries are masked by
//! their own key word, so a torn or interleaved write decodes to a tuple nobody asked for: a miss, never a false accept.

use npolicy_common::{
    ClassWord, Direction, FLOW_WAYS, FlowData, FlowEntry4, FlowEntry6, FlowIndexKey, FlowProtocol, Origin, Protocol,
    Tuple4, Tuple6, flow_buckets, timeouts,
};

use crate::parse::{Frame, Kind, Packet};
use crate::tables::{Bucket, Line, Tables};

/// An address of either family: what differs between the two flow tables.
pub trait Address: Copy + PartialEq {
    /// Takes an address as a [`Packet`] holds it.
    fn from_words(words: [u64; 2]) -> Self;
    /// The family's buckets.
    type Bucket<T: Tables>: Bucket;

    /// The table's buckets less one.
    fn mask<T: Tables>(tables: T) -> u32;
    /// Finds a bucket by a hash.
    fn bucket<T: Tables>(tables: T, hash: u32) -> Option<Self::Bucket<T>>;
    /// What chooses the two buckets of a flow with this remote address.
    fn index_key(self, ports: Ports, owner: u32) -> FlowIndexKey;
    /// Whether an entry's data words are this tuple's under its key word.
    fn holds<B: Bucket>(self, ports: Ports, bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]) -> bool;
    /// The remote port of an entry, whatever flow it holds.
    fn remote_port<B: Bucket>(bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]) -> u16;
    /// Stores the data words of this tuple under a key word.
    fn store<B: Bucket>(self, ports: Ports, bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]);
    /// The class of the address.
    fn class<T: Tables>(self, tables: T) -> ClassWord;
    /// Whether it is the routable address that the line gives the pod in this family.
    fn is_pods_own<L: Line>(self, line: L) -> bool;
    /// Whether the line gives the pod no address in this family.
    fn is_absent<L: Line>(line: L) -> bool;
}

/// Both ports of a flow, seen from the endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// Host order; the protocol's number for protocols without ports.
    pub remote: u16,
    /// Host order; an echo's id for ICMP, else 0 for protocols without ports.
    pub local: u16,
}

impl Address for u32 {
    type Bucket<T: Tables> = T::Flows4;

    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Self {
        words[1] as u32
    }

    #[inline(always)]
    fn mask<T: Tables>(tables: T) -> u32 {
        tables.flow4_mask()
    }

    #[inline(always)]
    fn bucket<T: Tables>(tables: T, hash: u32) -> Option<T::Flows4> {
        tables.flows4(hash)
    }

    #[inline(always)]
    fn index_key(self, ports: Ports, owner: u32) -> FlowIndexKey {
        FlowIndexKey { words: [tuple4(self, ports).word(), owner as u64], owner: 0 }
    }

    #[inline(always)]
    fn holds<B: Bucket>(self, ports: Ports, bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]) -> bool {
        bucket.word(way, 0) == FlowEntry4::mask(key, tuple4(self, ports).word(), secrets)
    }

    #[inline(always)]
    fn remote_port<B: Bucket>(bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]) -> u16 {
        (FlowEntry4::mask(key, bucket.word(way, 0), secrets) >> 16) as u16
    }

    #[inline(always)]
    fn store<B: Bucket>(self, ports: Ports, bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]) {
        bucket.set_word(way, 0, FlowEntry4::mask(key, tuple4(self, ports).word(), secrets));
    }

    #[inline(always)]
    fn class<T: Tables>(self, tables: T) -> ClassWord {
        tables.class_of_ipv4(self)
    }

    #[inline(always)]
    fn is_pods_own<L: Line>(self, line: L) -> bool {
        self != 0 && self == line.ipv4()
    }

    #[inline(always)]
    fn is_absent<L: Line>(line: L) -> bool {
        line.ipv4() == 0
    }
}

impl Address for [u64; 2] {
    type Bucket<T: Tables> = T::Flows6;

    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Self {
        words
    }

    #[inline(always)]
    fn mask<T: Tables>(tables: T) -> u32 {
        tables.flow6_mask()
    }

    #[inline(always)]
    fn bucket<T: Tables>(tables: T, hash: u32) -> Option<T::Flows6> {
        tables.flows6(hash)
    }

    #[inline(always)]
    fn index_key(self, ports: Ports, owner: u32) -> FlowIndexKey {
        let ports = (ports.remote as u64) << 16 | ports.local as u64;
        FlowIndexKey { words: [self[0] ^ ports << 32, self[1]], owner }
    }

    #[inline(always)]
    fn holds<B: Bucket>(self, ports: Ports, bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]) -> bool {
        let words = FlowEntry6::mask(key, tuple6(self, ports), secrets);
        bucket.word(way, 0) == words[0] && bucket.word(way, 1) == words[1] && bucket.word(way, 2) == words[2]
    }

    #[inline(always)]
    fn remote_port<B: Bucket>(bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]) -> u16 {
        // The first word is masked by the key word alone, as in IPv4.
        (FlowEntry4::mask(key, bucket.word(way, 0), secrets) >> 16) as u16
    }

    #[inline(always)]
    fn store<B: Bucket>(self, ports: Ports, bucket: B, way: usize, key: FlowData, secrets: &[u64; 4]) {
        let words = FlowEntry6::mask(key, tuple6(self, ports), secrets);
        bucket.set_word(way, 0, words[0]);
        bucket.set_word(way, 1, words[1]);
        bucket.set_word(way, 2, words[2]);
    }

    #[inline(always)]
    fn class<T: Tables>(self, tables: T) -> ClassWord {
        tables.class_of_ipv6(self)
    }

    #[inline(always)]
    fn is_pods_own<L: Line>(self, line: L) -> bool {
        !is_unspecified(self) && self == line.ipv6()
    }

    #[inline(always)]
    fn is_absent<L: Line>(line: L) -> bool {
        is_unspecified(line.ipv6())
    }
}

/// Whether an IPv6 address is `::`.
#[inline(always)]
pub(crate) const fn is_unspecified(address: [u64; 2]) -> bool {
    address[0] | address[1] == 0
}

#[inline(always)]
const fn tuple4(remote: u32, ports: Ports) -> Tuple4 {
    Tuple4 { remote, remote_port: ports.remote, local_port: ports.local }
}

#[inline(always)]
const fn tuple6(remote: [u64; 2], ports: Ports) -> Tuple6 {
    Tuple6 { remote, remote_port: ports.remote, local_port: ports.local }
}

/// A flow as every lookup knows it: whose, with whom, on which ports. The same in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FlowKey<A> {
    /// Endpoint number.
    pub endpoint: u16,
    /// Protocol.
    pub protocol: FlowProtocol,
    /// The other side's address.
    pub remote: A,
    /// Both ports.
    pub ports: Ports,
}

impl<A: Address> FlowKey<A> {
    /// The flow that a packet going in `direction` belongs to.
    #[inline(always)]
    pub(crate) fn of(endpoint: u16, direction: Direction, packet: &Packet) -> Self {
        let protocol = FlowProtocol::of(packet.protocol);
        let (remote, ports) = match direction {
            Direction::Egress => {
                (packet.destination, Ports { remote: packet.destination_port, local: packet.source_port })
            }
            Direction::Ingress => (packet.source, Ports { remote: packet.source_port, local: packet.destination_port }),
        };
        let remote = A::from_words(remote);
        let ports = match protocol {
            FlowProtocol::Other => Ports { remote: packet.protocol.0 as u16, local: packet.echo_id },
            _ => ports,
        };
        Self { endpoint, protocol, remote, ports }
    }

    /// The port that policy judges when a flow opens in `direction`: the destination's.
    #[inline(always)]
    pub(crate) fn judged_port(&self, direction: Direction) -> u16 {
        match direction {
            Direction::Egress => self.ports.remote,
            Direction::Ingress => self.ports.local,
        }
    }
}

/// Where an entry was found, and the key word it had.
#[derive(Clone, Copy)]
pub(crate) struct Found<B> {
    bucket: B,
    way: usize,
    /// The key word read.
    pub key: FlowData,
}

impl<B: Bucket> Found<B> {
    /// Stores a key word with another time or mark, on which the tuple's mask does not depend.
    #[inline(always)]
    pub(crate) fn set_key(&self, key: FlowData) {
        self.bucket.set_key(self.way, key);
    }

    /// Writes the flow again under another key word. While it is written its entry is free, so that no mixture is read.
    #[inline(always)]
    pub(crate) fn write<A: Address>(&self, flow: &FlowKey<A>, key: FlowData, secrets: &[u64; 4]) {
        self.bucket.set_key(self.way, FlowData::default());
        flow.remote.store(flow.ports, self.bucket, self.way, key, secrets);
        self.bucket.set_key(self.way, key);
    }
}

/// The two buckets of a flow and its entry, if it has one.
#[derive(Clone, Copy)]
pub(crate) struct Search<B> {
    first: B,
    second: B,
    /// The flow's entry, alive or idle for too long: where a new one has to go, for two of one flow would hide each
    /// other.
    place: Option<Found<B>>,
    is_alive: bool,
    /// Whether both are the same bucket, so that each of its entries is met twice.
    is_single: bool,
}

impl<B: Bucket> Search<B> {
    /// The flow's entry, if it is alive.
    #[inline(always)]
    pub(crate) fn found(&self) -> Option<Found<B>> {
        if self.is_alive { self.place } else { None }
    }
}

/// How long an entry speaks after a packet last extended it. TCP's ends by the agent's sweep, not by a lookup: its
/// socket would bring it back.
#[inline(always)]
const fn idle_window(protocol: FlowProtocol, remote_port: u16) -> u32 {
    const ICMP: u16 = Protocol::ICMP.0 as u16;
    const ICMPV6: u16 = Protocol::ICMPV6.0 as u16;
    match (protocol, remote_port) {
        (FlowProtocol::Tcp, _) => timeouts::TCP,
        (FlowProtocol::Other, ICMP | ICMPV6) => timeouts::ECHO,
        _ => timeouts::IDLE,
    }
}

/// Looks for a flow. An entry of another protocol than TCP whose idle window has passed is a miss.
///
/// Returns nothing only where the table itself is missing.
#[inline(always)]
pub(crate) fn search<A: Address, T: Tables>(tables: T, flow: &FlowKey<A>, now: u32) -> Option<Search<A::Bucket<T>>> {
    let secrets = tables.secrets();
    let owner = (flow.endpoint as u32) << 2 | flow.protocol as u32;
    let hashes = flow_buckets(flow.remote.index_key(flow.ports, owner), &secrets);
    let is_single = (hashes.0 ^ hashes.1) & A::mask(tables) == 0;
    let first = A::bucket(tables, hashes.0)?;
    let second = A::bucket(tables, hashes.1)?;
    let place = match search_bucket(first, flow, &secrets) {
        Some(found) => Some(found),
        None => search_bucket(second, flow, &secrets),
    };
    let is_alive = match place {
        Some(found) => {
            flow.protocol as u8 == FlowProtocol::Tcp as u8
                || found.key.age(now) <= idle_window(flow.protocol, flow.ports.remote)
        }
        None => false,
    };
    Some(Search { first, second, place, is_alive, is_single })
}

#[inline(always)]
fn search_bucket<A: Address, B: Bucket>(bucket: B, flow: &FlowKey<A>, secrets: &[u64; 4]) -> Option<Found<B>> {
    let mut way = 0;
    while way < FLOW_WAYS {
        let key = bucket.key(way);
        if key.endpoint() == flow.endpoint
            && key.protocol() as u8 == flow.protocol as u8
            && !key.is_free()
            && flow.remote.holds(flow.ports, bucket, way, key, secrets)
        {
            return Some(Found { bucket, way, key });
        }
        way += 1;
    }
    None
}

/// Whether a packet in `direction` keeps an accepted entry alive: TCP both ways, everything else its own way only.
#[inline(always)]
pub(crate) fn extends(key: FlowData, direction: Direction) -> bool {
    key.protocol() as u8 == FlowProtocol::Tcp as u8 || key.direction() as u8 == direction as u8
}

/// Whether a packet of this kind, going against the entry's direction, is a reply of the flow. What is not is judged as
/// new.
#[inline(always)]
pub(crate) fn is_reply(kind: Kind) -> bool {
    !matches!(kind, Kind::Syn | Kind::EchoRequest)
}

/// Puts a flow into the table: over its own entry if it has one, else into a free one, else by evicting.
///
/// Two full buckets evict, in this order: an expired entry; the oldest of the same endpoint; the oldest of the endpoint
/// that holds most of the eight; if each endpoint holds one, the oldest TCP entry, whose socket brings it back. Returns
/// false if none of this gives a place: then the newcomer has to live without an entry.
#[inline(always)]
pub(crate) fn insert<A: Address, T: Tables + Frame>(tables: T, flow: &FlowKey<A>, key: FlowData) -> bool {
    let secrets = tables.secrets();
    let Some(search) = search(tables, flow, key.time()) else { return false };
    let Search { first, second, place, .. } = search;
    let (bucket, way) = match place {
        Some(found) => (found.bucket, found.way),
        None => match free_way(first) {
            Some(way) => (first, way),
            None => match free_way(second) {
                Some(way) => (second, way),
                None => match evict::<A, T>(tables, &search, key) {
                    way if way < FLOW_WAYS => (first, way),
                    way if way < PAIR => (second, way - FLOW_WAYS),
                    _ => return false,
                },
            },
        },
    };
    let way = tables.forget(way as u32) as usize;
    Found { bucket, way, key }.write(flow, key, &secrets);
    true
}

#[inline(always)]
fn free_way<B: Bucket>(bucket: B) -> Option<usize> {
    let mut way = 0;
    while way < FLOW_WAYS {
        if bucket.key(way).is_free() {
            return Some(way);
        }
        way += 1;
    }
    None
}

/// Entries of both buckets.
const PAIR: usize = 2 * FLOW_WAYS;

/// 1 if both are equal, else 0; by arithmetic, for each branch here would double the ways the verifier has to walk.
#[inline(always)]
const fn equal(a: u32, b: u32) -> u64 {
    ((a ^ b) as u64).wrapping_sub(1) >> 63
}

/// Chooses the entry that has to go for a newcomer: counted through both buckets, or [`PAIR`] for none.
#[inline(always)]
fn evict<A: Address, T: Tables + Frame>(tables: T, search: &Search<A::Bucket<T>>, newcomer: FlowData) -> usize {
    let Search { first, second, is_single, .. } = *search;
    let secrets = tables.secrets();
    let now = newcomer.time();
    // Each entry's claim to be evicted: the rank of its case, then its age. The highest goes.
    let mut best = 0;
    let mut victim = PAIR;
    let mut index = 0;
    while index < PAIR {
        let (bucket, way) = if index < FLOW_WAYS { (first, index) } else { (second, index - FLOW_WAYS) };
        let key = bucket.key(way);
        let age = key.age(now);
        let mut held = 0;
        let mut other = 0;
        while other < PAIR {
            let key_of_other = if other < FLOW_WAYS { first.key(other) } else { second.key(other - FLOW_WAYS) };
            held += equal(key.endpoint() as u32, key_of_other.endpoint() as u32);
            other += 1;
        }
        // A single bucket shows each entry twice.
        let held = held >> is_single as u32;
        let rank = if age > idle_window(key.protocol(), A::remote_port(bucket, way, key, &secrets)) {
            11
        } else if key.endpoint() == newcomer.endpoint() {
            10
        } else if held > 1 {
            held
        } else {
            (key.protocol() as u8 == FlowProtocol::Tcp as u8) as u64
        };
        let claim = rank << 18 | age as u64;
        if rank != 0 && claim >= best {
            best = claim;
            victim = tables.forget(index as u32) as usize;
        }
        index += 1;
    }
    victim
}

/// What a flow is accepted as, told by who made its first packet.
#[inline(always)]
pub(crate) fn new_key<A>(
    flow: &FlowKey<A>,
    direction: Direction,
    origin: Origin,
    now: u32,
    generation: u32,
) -> FlowData {
    FlowData::new(flow.endpoint, flow.protocol, direction, origin, now, generation)
}
