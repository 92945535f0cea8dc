//! The few lookups and writes that the packet path may make.
//!
//! The BPF maps implement [`Tables`] (`maps.rs`) and so does a double on the host (`host.rs`). Values that the agent may
//! change at any moment are handed out field by field, each accessor being one load: no reference to them ever exists.

use npolicy_common::{
    Bundle, Class, ClassWord, CounterKey, EndpointWord, FlowBucket4, FlowBucket6, FlowData, FlowEvent, FlowProtocol,
    RulesetId, TokenBucket,
};

use crate::class::{class_of_ipv4, class_of_ipv6};
use crate::ruleset::accepts;
use crate::sockets::{Connection, Marking, Socket};

/// One pod's interface, as `ENDPOINTS` describes it.
pub trait Line: Copy {
    /// Both rulesets and the generation; read it once a packet.
    fn word(self) -> EndpointWord;
    /// Endpoint number.
    fn endpoint(self) -> u16;
    /// Row of COUNTERS and BUCKETS.
    fn slot(self) -> u16;
    /// [`npolicy_common::endpoint_flags`].
    fn flags(self) -> u16;
    /// The pod's network namespace as the node's numbers it, or -1.
    fn netns_id(self) -> i32;
    /// The pod's IPv4 address read in host order; 0 where absent.
    fn ipv4(self) -> u32;
    /// The pod's IPv6 address as two words read in host order; zero where absent.
    fn ipv6(self) -> [u64; 2];
    /// The pod's MAC address as a number of 48 bits, read in host order; zero where unknown.
    fn mac(self) -> u64;
}

/// A bucket of a flow table: [`npolicy_common::FLOW_WAYS`] entries of a key word and one or three data words.
///
/// Every access is one 64-bit load or store; a way beyond the bucket's is never asked for.
pub trait Bucket: Copy {
    /// Loads an entry's key word.
    fn key(self, way: usize) -> FlowData;
    /// Stores an entry's key word.
    fn set_key(self, way: usize, key: FlowData);
    /// Loads one of an entry's data words.
    fn word(self, way: usize, index: usize) -> u64;
    /// Stores one of an entry's data words.
    fn set_word(self, way: usize, index: usize, word: u64);
}

/// A bucket of CLASS6: [`npolicy_common::CLASS6_WAYS`] addresses and their classes.
///
/// The agent writes an address first and its class word last, so the class word is read first.
pub trait Listing: Copy {
    /// Loads a class word; zero while the way is free.
    fn entry(self, way: usize) -> ClassWord;
    /// Loads an address, read in host order.
    fn address(self, way: usize) -> [u64; 2];
}

/// What the packet path may ask and change.
pub trait Tables: Copy {
    /// A line of ENDPOINTS.
    type Line: Line;
    /// A bucket of CLASS6.
    type Class6: Listing;
    /// A bucket of FLOWS4, in the layout of [`FlowBucket4`].
    type Flows4: Bucket;
    /// A bucket of FLOWS6, in the layout of [`FlowBucket6`].
    type Flows6: Bucket;

    /// [`npolicy_common::config_flags`].
    fn config_flags(self) -> u32;
    /// How far jiffies are shifted to give the flow tables' time.
    fn jiffies_shift(self) -> u32;
    /// The secrets of the flow tables.
    fn secrets(self) -> [u64; 4];
    /// Class word of IPv6 addresses found nowhere.
    fn default_class6(self) -> ClassWord;
    /// Events a slot may make in one burst, and jiffies that earn it one.
    fn event_rate(self) -> (u32, u32);
    /// The kernel's count of jiffies.
    fn jiffies(self) -> u64;

    /// Finds the line of an interface.
    fn endpoint(self, ifindex: u32) -> Option<Self::Line>;
    /// Loads an entry of CLASS4; class 3 (unknown) if there is no such chunk.
    fn class4(self, chunk: u32, byte: u8) -> ClassWord;
    /// Finds a bucket of CLASS6.
    fn class6(self, bucket: u32) -> Option<Self::Class6>;
    /// Asks PREFIX6 for the longest prefix.
    fn prefix6(self, address: [u64; 2]) -> Option<ClassWord>;
    /// Loads a row of a chunk of RULESETS; 0 if there is no such chunk.
    fn ruleset_row(self, chunk: u32, row: u32) -> u32;
    /// Loads a bundle; nothing if there is no such bundle.
    fn bundle(self, bundle: u32) -> Bundle;
    /// Loads a block number of a port set; 0 if there is no such set.
    fn ports_block(self, set: u16, upper: u8) -> u16;
    /// Loads a word of a block; 0 if there is no such block.
    fn ports_bits(self, block: u16, word: u32) -> u64;

    /// Buckets of FLOWS4 less one.
    fn flow4_mask(self) -> u32;
    /// Buckets of FLOWS6 less one.
    fn flow6_mask(self) -> u32;
    /// Finds a bucket of FLOWS4 by a hash, which may exceed the table.
    fn flows4(self, hash: u32) -> Option<Self::Flows4>;
    /// Finds a bucket of FLOWS6 by a hash, which may exceed the table.
    fn flows6(self, hash: u32) -> Option<Self::Flows6>;

    /// Returns the class of an IPv4 address.
    #[inline(always)]
    fn class_of_ipv4(self, address: u32) -> ClassWord {
        class_of_ipv4(self, address)
    }
    /// Returns the class of an IPv6 address.
    #[inline(always)]
    fn class_of_ipv6(self, address: [u64; 2]) -> ClassWord {
        class_of_ipv6(self, address)
    }
    /// Whether a ruleset accepts a class on a port.
    #[inline(always)]
    fn accepts(self, ruleset: RulesetId, class: Class, protocol: FlowProtocol, port: u16) -> bool {
        accepts(self, ruleset, class, protocol, port)
    }

    /// Asks for the pod's own socket of a connection.
    fn socket(self, connection: &Connection) -> Socket;
    /// Puts a mark on the pod's own socket of a connection, if it is a full one.
    fn mark_socket(self, connection: &Connection, mark: u32) -> Marking;

    /// Counts one packet, or one lost event, in the column of a [`Reason`](npolicy_common::Reason).
    fn count(self, key: CounterKey, column: u32);
    /// Lets `change` work on a slot's token bucket; false if there is no such slot or `change` says so.
    fn take_token(self, slot: u16, change: impl FnOnce(&mut TokenBucket) -> bool) -> bool;
    /// Offers an event; false if the ring has no room.
    fn emit(self, event: &FlowEvent) -> bool;
}

/// The packet path reads the buckets of these layouts word by word.
const _: () = {
    assert!(size_of::<FlowBucket4>() == npolicy_common::FLOW_WAYS * 16);
    assert!(size_of::<FlowBucket6>() == npolicy_common::FLOW_WAYS * 32);
};
