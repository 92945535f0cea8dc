//! The map layouts that the kernel side and the agent share.
//!
//! In: nothing. Out: plain values with a fixed size, their byte order and the arithmetic both sides must agree on.
//! `no_std`, no I/O. Each layout is written once, here.
//!
//! | map | kind | key | value | entries | written by | read by |
//! |---|---|---|---|---|---|---|
//! | [`maps::ENDPOINTS`] | array, mapped | ifindex & 0xffff | [`EndpointLine`] | 65,536 | agent | programs |
//! | [`maps::ENDPOINTS_MORE`] | hash | ifindex | [`EndpointLine`] | 1,024 | agent | programs |
//! | [`maps::CLASS4`] | array, mapped | chunk | [`ClassChunk`] | 8,192 | agent | programs |
//! | [`maps::CLASS6`] | array, mapped | bucket | [`Class6Bucket`] | 65,536 | agent | programs |
//! | [`maps::PREFIX6`] | LPM trie | prefix | [`ClassWord`] | 16,384 | agent | programs |
//! | [`maps::RULESETS`] | array, mapped | chunk | [`RulesetChunk`] | 4,096 | agent | programs |
//! | [`maps::BUNDLES`] | array, mapped | bundle | [`Bundle`] | 16,384 | agent | programs |
//! | [`maps::PORTS_TOP`] | array, mapped | port set | [`PortsTop`] | 4,096 | agent | programs |
//! | [`maps::PORTS`] | array, mapped | block | [`PortsBlock`] | 65,536 | agent | programs |
//! | [`maps::FLOWS4`] | array, mapped | bucket | [`FlowBucket4`] | 65,536 by default | programs, agent erases | programs |
//! | [`maps::FLOWS6`] | array, mapped | bucket | [`FlowBucket6`] | 65,536 by default | programs, agent erases | programs |
//! | [`maps::SOCKETS`] | socket storage | socket | u64: a tag of the connection, [`socket_mark`] | a socket | programs | programs |
//! | [`maps::COUNTERS`] | per-CPU array | [`CounterKey`] | [`CounterRow`] | 2,048 | programs | agent |
//! | [`maps::BUCKETS`] | array | slot | [`TokenBucket`] | 1,024 | programs | programs |
//! | [`maps::EVENTS`] | ring buffer | - | [`FlowEvent`] | 1 MiB | programs | agent |
//! | [`maps::CONFIG`] | array, mapped | 0 | [`Config`] | 1 | agent | programs |
#![no_std]

mod addr;
mod class;
mod config;
mod endpoint;
mod event;
mod flow;
mod ruleset;
mod verdict;

pub mod maps;

pub use addr::{Be16, Direction, Family, Protocol};
pub use class::{CLASS6_WAYS, Class, Class6Bucket, ClassChunk, ClassWord, Prefix6Key, class6_buckets};
pub use config::{Config, config_flags};
pub use endpoint::{EndpointLine, EndpointWord, endpoint_flags};
pub use event::{CounterKey, CounterRow, EventState, FlowEvent, TokenBucket};
pub use flow::{
    FLOW_WAYS, FlowBucket4, FlowBucket6, FlowData, FlowEntry4, FlowEntry6, FlowIndexKey, FlowProtocol, Origin, Tuple4,
    Tuple6, flow_buckets, flow_time, socket_mark, timeouts,
};
pub use ruleset::{Bundle, BundleId, PortSetId, PortsBlock, PortsTop, RulesetChunk, RulesetId};
pub use verdict::{Reason, Verdict};

/// Raised with every change of a layout, of a map's size or of what a number in a map means. The agent compares it with
/// what is pinned before it touches anything.
pub const LAYOUT_VERSION: u32 = 1;
