//! A node's tables and sockets in memory.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;

use npolicy_common::{
    Be16, Bundle, CLASS6_WAYS, Class, Class6Bucket, ClassWord, Config, CounterKey, Direction, EndpointLine,
    EndpointWord, FLOW_WAYS, FlowData, FlowEvent, FlowProtocol, LAYOUT_VERSION, PortSetId, Reason, RulesetId,
    TokenBucket, Verdict, class6_buckets,
};

use super::packet::HostFrame;

use crate::hook::{Outcome, Question, Steps};
use crate::parse::{Frame, ether_type};
use crate::sockets::{Connection, Marking, Socket};
use crate::tables::{Bucket, Line, Listing, Tables};
use crate::{events, hook, sockets, verdict};

/// A socket of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PodSocket {
    /// Waits for connections.
    Listener,
    /// A request that the pod has answered.
    HalfOpen,
    /// A full one, with its mark.
    Full(u32),
}

/// What a socket is found by: namespace, both addresses and both ports, the pod's first.
type SocketKey = (i32, [u64; 2], [u64; 2], u16, u16);

/// All that the packet path asks and changes.
pub struct Node {
    /// CONFIG.
    pub config: Cell<Config>,
    /// The kernel's count of jiffies; with the shift of [`Node::new`] 256 of them are one unit of the flow tables' time.
    pub jiffies: Cell<u64>,
    /// Events that the ring still has room for.
    pub ring_room: Cell<usize>,
    /// Whether sockets take marks.
    pub sockets_take_marks: Cell<bool>,
    lines: RefCell<HashMap<u32, EndpointLine>>,
    class4: RefCell<Vec<[ClassWord; 256]>>,
    class6: RefCell<HashMap<u32, Class6Bucket>>,
    prefixes: RefCell<Vec<([u64; 2], u32, ClassWord)>>,
    rulesets: RefCell<Vec<[u32; 512]>>,
    bundles: RefCell<Vec<Bundle>>,
    ports_top: RefCell<Vec<[u16; 256]>>,
    ports: RefCell<Vec<[u64; 4]>>,
    flows4: Vec<Cell<u64>>,
    flows6: Vec<Cell<u64>>,
    counters: RefCell<HashMap<u32, [u64; 32]>>,
    tokens: RefCell<HashMap<u16, TokenBucket>>,
    events: RefCell<Vec<FlowEvent>>,
    sockets: RefCell<HashMap<SocketKey, PodSocket>>,
}

const WORDS4: usize = 2;
const WORDS6: usize = 4;

impl Node {
    /// A node whose flow tables have so many buckets, a power of two, and which governs nothing.
    pub fn new(buckets: u32) -> Self {
        let config = Config {
            layout_version: LAYOUT_VERSION,
            flags: 0,
            jiffies_shift: 8,
            flow4_mask: buckets - 1,
            flow6_mask: buckets - 1,
            default_class6: 0,
            event_burst: u32::MAX,
            event_interval: 1,
            secrets: [0x9b97_57c6_1a9b_e3c5, 0xd6e8_feb8_6659_fd93, 0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db],
        };
        let node = Self {
            config: Cell::new(config),
            jiffies: Cell::new(1 << 20),
            ring_room: Cell::new(usize::MAX),
            sockets_take_marks: Cell::new(true),
            lines: RefCell::default(),
            class4: RefCell::new(vec![[ClassWord(0); 256]; npolicy_common::maps::CLASS4_ROOTS as usize]),
            class6: RefCell::default(),
            prefixes: RefCell::default(),
            rulesets: RefCell::new(vec![[0; 512]; RulesetId::FIRST_CHUNK as usize]),
            bundles: RefCell::new(vec![Bundle::default(); 2]),
            ports_top: RefCell::new(vec![[0; 256]; 2]),
            ports: RefCell::new(vec![[0; 4], [u64::MAX; 4]]),
            flows4: vec![Cell::new(0); buckets as usize * FLOW_WAYS * WORDS4],
            flows6: vec![Cell::new(0); buckets as usize * FLOW_WAYS * WORDS6],
            counters: RefCell::default(),
            tokens: RefCell::default(),
            events: RefCell::default(),
            sockets: RefCell::default(),
        };
        node.rulesets.borrow_mut()[1][0] = 3;
        node.rulesets.borrow_mut()[3][Class::NODE_SELF.0 as usize] = 1;
        node
    }

    /// Writes an interface's line.
    pub fn put_line(&self, line: EndpointLine) {
        self.lines.borrow_mut().insert(line.ifindex, line);
    }

    /// Changes an interface's line.
    pub fn change_line(&self, ifindex: u32, change: impl FnOnce(&mut EndpointLine)) {
        change(self.lines.borrow_mut().get_mut(&ifindex).expect("the interface must have a line"));
    }

    /// Gives an address a class and [`ClassWord`]'s facts about it.
    pub fn put_class(&self, address: IpAddr, class: Class, bits: u32) {
        match address {
            IpAddr::V4(address) => self.put_class4(address.octets(), ClassWord::class_entry(class, bits)),
            IpAddr::V6(address) => {
                let entry = ClassWord::class_entry(class, bits | ClassWord::LISTED);
                self.put_class6(words(address.octets()), entry);
            }
        }
    }

    fn put_class4(&self, [a, b, c, d]: [u8; 4], entry: ClassWord) {
        let mut chunks = self.class4.borrow_mut();
        let mut chunk = a as usize;
        for byte in [b, c] {
            let next = match chunks[chunk][byte as usize].chunk() {
                Some(next) => next,
                None => {
                    let inherited = chunks[chunk][byte as usize];
                    chunks.push([inherited; 256]);
                    chunks.len() as u32 - 1
                }
            };
            chunks[chunk][byte as usize] = ClassWord::chunk_entry(next);
            chunk = next as usize;
        }
        chunks[chunk][d as usize] = entry;
    }

    fn put_class6(&self, address: [u64; 2], entry: ClassWord) {
        let (first, second) = class6_buckets(address, self.config.get().secrets[2]);
        let mut buckets = self.class6.borrow_mut();
        let empty =
            Class6Bucket { addresses: [[0; 2]; CLASS6_WAYS], classes: [ClassWord(0); CLASS6_WAYS], reserved: [0; 7] };
        for number in [first, second] {
            let bucket = buckets.entry(number).or_insert(empty);
            if let Some(way) = bucket.classes.iter().position(|class| class.0 == 0) {
                bucket.addresses[way] = address;
                bucket.classes[way] = entry;
                return;
            }
        }
        panic!("no place for an address in CLASS6");
    }

    /// Fills the first choice of an IPv6 address with others, so that the address itself goes to its second.
    pub fn crowd_class6(&self, address: std::net::Ipv6Addr) {
        let (first, second) = class6_buckets(words(address.octets()), self.config.get().secrets[2]);
        assert_ne!(first, second, "the address must have two choices");
        let others = Class6Bucket {
            addresses: [[u64::MAX; 2]; CLASS6_WAYS],
            classes: [ClassWord(ClassWord::LISTED); CLASS6_WAYS],
            reserved: [0; 7],
        };
        self.class6.borrow_mut().insert(first, others);
    }

    /// Leaves an IPv6 address in its bucket with a class, but not listed, as while it is written or taken away.
    pub fn put_unlisted6(&self, address: std::net::Ipv6Addr, class: Class) {
        self.put_class6(words(address.octets()), ClassWord::class_entry(class, 0));
    }

    /// Gives an IPv6 prefix a class.
    pub fn put_prefix6(&self, address: std::net::Ipv6Addr, bits: u32, class: Class) {
        let entry = ClassWord::class_entry(class, 0);
        self.prefixes.borrow_mut().push((words(address.octets()), bits, entry));
        let mut config = self.config.get();
        config.flags |= npolicy_common::config_flags::PREFIX6_USED;
        self.config.set(config);
    }

    /// Makes an empty ruleset: it accepts nothing but, like every ingress ruleset, what the node itself makes.
    pub fn new_ruleset(&self) -> RulesetId {
        let mut chunks = self.rulesets.borrow_mut();
        let number = chunks.len() as u32;
        let mut root = [0; 512];
        root[0] = number + 1;
        let mut leaf = [0; 512];
        leaf[Class::NODE_SELF.0 as usize] = 1;
        chunks.push(root);
        chunks.push(leaf);
        RulesetId(number)
    }

    /// Lets a ruleset accept everything from a class.
    pub fn accept_all(&self, ruleset: RulesetId, class: Class) {
        self.put_row(ruleset, class, 1);
    }

    /// Takes a class out of a ruleset.
    pub fn accept_nothing(&self, ruleset: RulesetId, class: Class) {
        self.put_row(ruleset, class, 0);
    }

    /// Lets a ruleset accept some ports of a class, and nothing else of it.
    pub fn accept_ports(&self, ruleset: RulesetId, class: Class, protocol: FlowProtocol, ports: &[u16]) {
        let set = self.put_ports(ports);
        let mut bundle = Bundle::default();
        match protocol {
            FlowProtocol::Other => bundle.other = 1,
            protocol => bundle.ports[protocol as usize] = PortSetId(set),
        }
        self.bundles.borrow_mut().push(bundle);
        let number = self.bundles.borrow().len() as u32 - 1;
        self.put_row(ruleset, class, number);
    }

    fn put_row(&self, ruleset: RulesetId, class: Class, bundle: u32) {
        let mut chunks = self.rulesets.borrow_mut();
        let upper = class.0 as usize >> 9;
        let mut leaf = chunks[ruleset.0 as usize][upper];
        if leaf == 0 {
            leaf = chunks.len() as u32;
            chunks.push([0; 512]);
            chunks[ruleset.0 as usize][upper] = leaf;
        }
        chunks[leaf as usize][class.0 as usize & 511] = bundle;
    }

    fn put_ports(&self, ports: &[u16]) -> u16 {
        let mut top = [0; 256];
        let mut blocks = self.ports.borrow_mut();
        for port in ports {
            let block = &mut top[(port >> 8) as usize];
            if *block == 0 {
                blocks.push([0; 4]);
                *block = blocks.len() as u16 - 1;
            }
            blocks[*block as usize][(port >> 6) as usize & 3] |= 1 << (port & 63);
        }
        self.ports_top.borrow_mut().push(top);
        self.ports_top.borrow().len() as u16 - 1
    }

    /// Gives a pod a socket, or takes it away.
    pub fn put_socket(&self, netns_id: i32, local: (IpAddr, u16), remote: (IpAddr, u16), socket: Option<PodSocket>) {
        let key = (netns_id, address_words(local.0), address_words(remote.0), local.1, remote.1);
        match socket {
            Some(socket) => self.sockets.borrow_mut().insert(key, socket),
            None => self.sockets.borrow_mut().remove(&key),
        };
    }

    /// A pod's socket of a connection.
    pub fn socket_of(&self, netns_id: i32, local: (IpAddr, u16), remote: (IpAddr, u16)) -> Option<PodSocket> {
        let key = (netns_id, address_words(local.0), address_words(remote.0), local.1, remote.1);
        self.sockets.borrow().get(&key).copied()
    }

    /// Lets time pass, in units of the flow tables' (about seconds).
    pub fn pass_time(&self, units: u32) {
        self.jiffies.set(self.jiffies.get() + ((units as u64) << self.config.get().jiffies_shift));
    }

    /// Key words of all entries in use, IPv4's first.
    pub fn flows(&self) -> Vec<FlowData> {
        let fours = self.flows4.iter().step_by(WORDS4);
        let sixes = self.flows6.iter().step_by(WORDS6);
        fours.chain(sixes).map(|word| FlowData(word.get())).filter(|key| !key.is_free()).collect()
    }

    /// Erases all entries: what eviction and a lost table do.
    pub fn erase_flows(&self) {
        for word in self.flows4.iter().chain(&self.flows6) {
            word.set(0);
        }
    }

    /// What has been counted in a row.
    pub fn counters(&self, key: CounterKey) -> [u64; 32] {
        self.counters.borrow().get(&key.0).copied().unwrap_or_default()
    }

    /// Takes the events that were emitted.
    pub fn take_events(&self) -> Vec<FlowEvent> {
        core::mem::take(&mut self.events.borrow_mut())
    }

    /// Sends a frame through the hook of a direction. Returns the verdict, and the reasons counted for it, which must be
    /// one.
    pub fn run(&self, direction: Direction, frame: &HostFrame) -> (Verdict, Vec<Reason>) {
        let before = self.counters.borrow().clone();
        let host = Host { node: self, frame };
        let verdict = match direction {
            Direction::Ingress => hook::to_endpoint(host),
            Direction::Egress => hook::from_endpoint(host),
        };
        let mut reasons = Vec::new();
        for (key, row) in self.counters.borrow().iter() {
            let old = before.get(key).copied().unwrap_or_default();
            for (column, (count, old)) in row.iter().zip(old).enumerate() {
                let reason = Reason::try_from(column as u8);
                for _ in old..*count {
                    reasons.push(reason.expect("only reasons are counted"));
                }
            }
        }
        reasons.retain(|reason| *reason != Reason::EventLost);
        (verdict, reasons)
    }
}

/// The two words of sixteen bytes.
fn words(bytes: [u8; 16]) -> [u64; 2] {
    let number = u128::from_be_bytes(bytes);
    [(number >> 64) as u64, number as u64]
}

/// An address as a [`crate::Packet`] holds it.
fn address_words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, u32::from(address) as u64],
        IpAddr::V6(address) => words(address.octets()),
    }
}

/// A frame at one of a node's hooks.
#[derive(Clone, Copy)]
struct Host<'a> {
    node: &'a Node,
    frame: &'a HostFrame,
}

impl Host<'_> {
    fn socket_key(connection: &Connection) -> SocketKey {
        let Connection { netns_id, local, remote, local_port, remote_port, .. } = *connection;
        (netns_id, local, remote, local_port, remote_port)
    }

    fn find_socket(self, connection: &Connection) -> Option<(SocketKey, PodSocket)> {
        let is_ipv4 = |address: [u64; 2]| address[0] == 0 && address[1] >> 32 == 0;
        // The kernel's table of the other family would be asked, which knows nobody by this address.
        if connection.is_ipv4 != is_ipv4(connection.local) {
            return None;
        }
        let sockets = self.node.sockets.borrow();
        let key = Self::socket_key(connection);
        let listener = (key.0, key.1, [0; 2], key.3, 0);
        let found = |key: SocketKey| sockets.get(&key).map(|socket| (key, *socket));
        found(key).or_else(|| found(listener))
    }
}

impl Line for EndpointLine {
    fn word(self) -> EndpointWord {
        self.word
    }

    fn endpoint(self) -> u16 {
        self.endpoint
    }

    fn slot(self) -> u16 {
        self.slot
    }

    fn flags(self) -> u16 {
        self.flags
    }

    fn netns_id(self) -> i32 {
        self.netns_id
    }

    fn ipv4(self) -> u32 {
        u32::from_be_bytes(self.ipv4)
    }

    fn ipv6(self) -> [u64; 2] {
        words(self.ipv6)
    }

    fn mac(self) -> u64 {
        let [a, b, c, d, e, f] = self.mac;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

#[derive(Clone, Copy)]
struct HostListing(Class6Bucket);

impl Listing for HostListing {
    fn entry(self, way: usize) -> ClassWord {
        self.0.classes[way]
    }

    fn address(self, way: usize) -> [u64; 2] {
        self.0.addresses[way]
    }
}

#[derive(Clone, Copy)]
struct HostBucket<'a, const WORDS: usize>(&'a [Cell<u64>]);

impl<const WORDS: usize> Bucket for HostBucket<'_, WORDS> {
    fn key(self, way: usize) -> FlowData {
        FlowData(self.0[way * WORDS].get())
    }

    fn set_key(self, way: usize, key: FlowData) {
        self.0[way * WORDS].set(key.0);
    }

    fn word(self, way: usize, index: usize) -> u64 {
        self.0[way * WORDS + 1 + index].get()
    }

    fn set_word(self, way: usize, index: usize, word: u64) {
        self.0[way * WORDS + 1 + index].set(word);
    }
}

impl<'a> Tables for Host<'a> {
    type Line = EndpointLine;
    type Class6 = HostListing;
    type Flows4 = HostBucket<'a, WORDS4>;
    type Flows6 = HostBucket<'a, WORDS6>;

    fn config_flags(self) -> u32 {
        self.node.config.get().flags
    }

    fn jiffies_shift(self) -> u32 {
        self.node.config.get().jiffies_shift
    }

    fn secrets(self) -> [u64; 4] {
        self.node.config.get().secrets
    }

    fn default_class6(self) -> ClassWord {
        ClassWord(self.node.config.get().default_class6)
    }

    fn event_rate(self) -> (u32, u32) {
        (self.node.config.get().event_burst, self.node.config.get().event_interval)
    }

    fn jiffies(self) -> u64 {
        self.node.jiffies.get()
    }

    fn endpoint(self, ifindex: u32) -> Option<EndpointLine> {
        self.node.lines.borrow().get(&ifindex).copied()
    }

    fn class4(self, chunk: u32, byte: u8) -> ClassWord {
        self.node.class4.borrow()[chunk as usize][byte as usize]
    }

    fn class6(self, bucket: u32) -> Option<HostListing> {
        self.node.class6.borrow().get(&bucket).copied().map(HostListing)
    }

    fn prefix6(self, address: [u64; 2]) -> Option<ClassWord> {
        let number = |words: [u64; 2]| (words[0] as u128) << 64 | words[1] as u128;
        let differs = |prefix, bits| (number(address) ^ number(prefix)).checked_shr(128 - bits).unwrap_or(0) != 0;
        let prefixes = self.node.prefixes.borrow();
        let matching = prefixes.iter().filter(|(prefix, bits, _)| !differs(*prefix, *bits));
        matching.max_by_key(|(_, bits, _)| *bits).map(|(_, _, entry)| *entry)
    }

    fn ruleset_row(self, chunk: u32, row: u32) -> u32 {
        self.node.rulesets.borrow().get(chunk as usize).map_or(0, |chunk| chunk[row as usize])
    }

    fn bundle(self, bundle: u32) -> Bundle {
        self.node.bundles.borrow().get(bundle as usize).copied().unwrap_or_default()
    }

    fn ports_block(self, set: u16, upper: u8) -> u16 {
        self.node.ports_top.borrow().get(set as usize).map_or(0, |set| set[upper as usize])
    }

    fn ports_bits(self, block: u16, word: u32) -> u64 {
        self.node.ports.borrow().get(block as usize).map_or(0, |block| block[word as usize])
    }

    fn flow4_mask(self) -> u32 {
        self.node.config.get().flow4_mask
    }

    fn flow6_mask(self) -> u32 {
        self.node.config.get().flow6_mask
    }

    fn flows4(self, hash: u32) -> Option<HostBucket<'a, WORDS4>> {
        let words = FLOW_WAYS * WORDS4;
        let start = (hash & self.flow4_mask()) as usize * words;
        Some(HostBucket(&self.node.flows4[start..start + words]))
    }

    fn flows6(self, hash: u32) -> Option<HostBucket<'a, WORDS6>> {
        let words = FLOW_WAYS * WORDS6;
        let start = (hash & self.flow6_mask()) as usize * words;
        Some(HostBucket(&self.node.flows6[start..start + words]))
    }

    fn socket(self, connection: &Connection) -> Socket {
        if connection.netns_id < 0 {
            return Socket::Unasked;
        }
        match self.find_socket(connection) {
            None => Socket::Absent,
            Some((_, PodSocket::Listener)) => Socket::Listener,
            Some((_, PodSocket::HalfOpen)) => Socket::HalfOpen,
            Some((_, PodSocket::Full(mark))) => Socket::Full(mark),
        }
    }

    fn mark_socket(self, connection: &Connection, mark: u32) -> Marking {
        match self.find_socket(connection) {
            None => Marking::NoSocket,
            Some((_, PodSocket::Listener | PodSocket::HalfOpen)) => Marking::NotYet,
            Some((_, PodSocket::Full(_))) if !self.node.sockets_take_marks.get() => Marking::Refused,
            Some((key, PodSocket::Full(_))) => {
                self.node.sockets.borrow_mut().insert(key, PodSocket::Full(mark));
                Marking::Done
            }
        }
    }

    fn count(self, key: CounterKey, column: u32) {
        self.node.counters.borrow_mut().entry(key.0).or_default()[column as usize] += 1;
    }

    fn take_token(self, slot: u16, change: impl FnOnce(&mut TokenBucket) -> bool) -> bool {
        change(self.node.tokens.borrow_mut().entry(slot).or_default())
    }

    fn emit(self, event: &FlowEvent) -> bool {
        let room = self.node.ring_room.get();
        if room == 0 {
            return false;
        }
        self.node.ring_room.set(room - 1);
        self.node.events.borrow_mut().push(*event);
        true
    }
}

impl Frame for Host<'_> {
    fn length(self) -> u32 {
        self.frame.bytes.len() as u32
    }

    fn ifindex(self) -> u32 {
        self.frame.ifindex
    }

    fn ingress_ifindex(self) -> u32 {
        self.frame.ingress_ifindex
    }

    fn has_outer_tag(self) -> bool {
        self.frame.has_outer_tag
    }

    fn linear<'b, const N: usize>(self) -> Option<&'b [Be16; N]>
    where
        Self: 'b,
    {
        self.frame.pairs.first_chunk()
    }

    fn load<const N: usize>(self, offset: u32) -> Option<[u32; N]> {
        let bytes = self.frame.bytes.get(offset as usize..offset as usize + 4 * N)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Some(words)
    }

    fn forget(self, number: u32) -> u32 {
        number
    }
}

impl Steps for Host<'_> {
    fn read(self, question: &mut Question) -> Outcome {
        verdict::read(self, question)
    }

    fn decide(self, question: &Question) -> Outcome {
        match question.ether_type {
            ether_type::IPV4 => verdict::decide::<u32, _>(self, question),
            _ => verdict::decide::<[u64; 2], _>(self, question),
        }
    }

    fn judge_error(self, question: &Question) -> Outcome {
        match question.ether_type {
            ether_type::IPV4 => verdict::judge_error::<u32, _>(self, question),
            _ => verdict::judge_error::<[u64; 2], _>(self, question),
        }
    }

    fn recover(self, question: &Question) -> Outcome {
        match question.ether_type {
            ether_type::IPV4 => sockets::recover::<u32, _>(self, question),
            _ => sockets::recover::<[u64; 2], _>(self, question),
        }
    }

    fn mark_opened(self, question: &Question, outcome: Outcome) -> Outcome {
        sockets::mark_opened(self, question, outcome)
    }

    fn mark_accepted(self, question: &Question, outcome: Outcome) -> Outcome {
        match question.ether_type {
            ether_type::IPV4 => sockets::mark_accepted::<u32, _>(self, question, outcome),
            _ => sockets::mark_accepted::<[u64; 2], _>(self, question, outcome),
        }
    }

    fn remember(self, question: &Question, outcome: Outcome) -> Outcome {
        match question.ether_type {
            ether_type::IPV4 => verdict::remember::<u32, _>(self, question, outcome),
            _ => verdict::remember::<[u64; 2], _>(self, question, outcome),
        }
    }

    fn report(self, question: &Question, outcome: Outcome) {
        events::report(self, question, outcome);
    }
}
