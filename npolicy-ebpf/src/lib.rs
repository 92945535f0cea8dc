//! The packet path: what a pod's host-side interface does with every frame.
//!
//! In: a frame and the tables that the agent fills. Out: accept or deny, a count, at times an event, and the flow
//! remembered. The code here is generic over [`Tables`] and [`Frame`] and knows no kernel: the BPF programs (`main.rs`,
//! `maps.rs`) run it over the maps, the tests over a double.
#![cfg_attr(target_arch = "bpf", no_std)]

mod tables;

mod class;
mod events;
mod flow;
mod frames;
mod hook;
mod parse;
mod ruleset;
mod sockets;
mod verdict;

#[cfg(not(target_arch = "bpf"))]
pub mod host;

pub use class::{class_of_ipv4, class_of_ipv6};
pub use events::report;
pub use flow::Address;
pub use hook::{Outcome, Question, Steps, from_endpoint, to_endpoint};
pub use parse::{Careful, Frame, Kind, Packet, ether_type, plain4, plain6};
pub use ruleset::accepts;
pub use sockets::{Connection, Marking, Socket, mark_accepted, mark_opened, recover};
pub use tables::{Bucket, Line, Listing, Tables};
pub use verdict::{decide, judge_error, read, remember};
