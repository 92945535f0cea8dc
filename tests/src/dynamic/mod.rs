//! Scripts: clusters over time, with running connections, as data; and what runs them on real packets.
//!
//! ```text
//! cases/dynamic/ID.yaml -> Script -> Run: step by step over a World
//!                                           |-- nodes and pods (rig), an agent for each node, their manifests
//!                                           |-- Servers in the pods, which note what arrives
//!                                           +-- Flows kept busy, probes, crowds of short pods, raw messages
//! ```
//! Every connection and probe is made over IPv4 and over IPv6, and all of them must meet what the script says.

mod crowd;
mod flow;
mod manifests;
mod message;
mod probe;
mod run;
mod script;
mod server;
mod socket;
mod world;

pub use run::run;
pub use script::{Script, Step, all, load};
