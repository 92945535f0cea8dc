//! Pods out of network namespaces, with real sockets in them: what the demo and the tests stand on.
//!
//! ```text
//! Node (a namespace of its own) -- vethN ==== eth0 -- Pod (a namespace) -- Listeners, probes
//!   |                                                   one of each for every pod
//!   +-- AgentProcess, with its pins in a BpfFs
//! ```
//!
//! A [`Cluster`] joins several nodes by a link, has an outside, and translates Service addresses.
//!
//! Nothing here touches the namespace the caller lives in, and nothing has a name in a file system: namespaces and the
//! BPF file system are held by open file descriptors alone, so the kernel takes everything down with the process, also
//! after SIGKILL.

mod address;
mod agent;
mod bpffs;
mod cluster;
mod error;
mod link;
mod listen;
mod namespace;
mod node;
mod ping;
mod pod;
mod probe;
mod sctp;
mod translation;

pub use agent::{AgentOptions, AgentProcess, AgentSource};
pub use bpffs::BpfFs;
pub use cluster::Cluster;
pub use error::{Result, RigError};
pub use listen::{Listeners, Service};
pub use namespace::Namespace;
pub use node::{Layout, Node, NodeSettings};
pub use pod::{Pod, PodSettings};
pub use probe::{Outcome, Patience, Probe, Protocol, Source, is_refusal, probe_all, probe_each, probe_once};
pub use sctp::SctpMeans;
pub use translation::Translation;
