//! npolicy's agent, as a library: Kubernetes network policy, compiled and enforced on one node.
//!
//! ```text
//! YAML directory --+
//! kernel links ----+--> watch --> model --> compile --> datapath ==> pinned maps <== npolicy-ebpf <-- packets
//!                                                          people <-- observe <---------- maps
//! ```
//!
//! Each stage hands a plain value to the next; `agent` alone sees them all. `model` and `compile` are deterministic and
//! do no I/O.

pub mod watch;

pub mod model;

pub mod compile;

pub mod datapath;

pub mod observe;

pub mod agent;

pub mod cli;

pub mod rig;
