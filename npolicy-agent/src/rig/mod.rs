//! Pods out of network namespaces, with real sockets in them: what the demo and the tests stand on.
//!
//! ```text
//! Node (a namespace of its own) -- vethN ==== eth0 -- Pod (a namespace) -- Listeners, probes
//!   |                                                   one of each for every pod
//!   +-- AgentProcess, with its pins in a BpfFs
//! ```
//!
//! Nothing here touches the namespace the caller lives in, and nothing has a name in a file system: namespaces and the
//! BPF file system are held by open file descriptors alone, so the kernel takes everything down with the process, also
//! after SIGKILL.

mod agent;
mod bpffs;
mod error;
mod link;
mod listen;
mod namespace;
mod node;
mod ping;
mod pod;
mod probe;
mod sctp;

pub use agent::{AgentOptions, AgentProcess};
pub use bpffs::BpfFs;
pub use error::{Result, RigError};
pub use listen::{Listeners, Service};
pub use namespace::Namespace;
pub use node::{Layout, Node, NodeSettings};
pub use pod::{Pod, PodSettings};
pub use probe::{Outcome, Probe, Protocol, probe_all, probe_once};
pub use sctp::SctpMeans;
