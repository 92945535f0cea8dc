//! Stage 3: from the cluster to rulesets and classes. Deterministic, no I/O.
mod plan;
mod ports;
mod ruleset;

pub use plan::{ClassIndex, ClassKey, Fact, PeerId, Plan, PortNameId, Subject};
pub use ports::{Bundle, PortSet};
pub use ruleset::{Peer, Ruleset};
