//! The packet path on the host: tables in memory, frames from a builder.
//!
//! [`Node`] plays the maps and the pods' sockets, [`packet`] builds frames, and [`Node::run`] sends one through a hook.
//! What the agent would write is written here by hand, one verdict at a time.

mod node;
mod packet;

pub use node::{Node, PodSocket};
pub use packet::{Builder, HostFrame, packet};
