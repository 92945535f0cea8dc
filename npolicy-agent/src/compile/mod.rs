//! Stage 3: from the cluster to rulesets and classes. Deterministic, no I/O.
//!
//! In: [`ClusterState`](crate::model::ClusterState). Out: a [`Plan`] for one node, and diagnostics. [`Engine`] puts
//! questions to a plan of the whole cluster, and [`explain()`] says why a verdict is what it is.

mod changes;
mod classes;
mod compiler;
mod engine;
mod explain;
mod groups;
mod intern;
mod names;
mod plan;
mod ports;
mod prefixes;
mod resolve;
mod ruleset;
mod services;
mod subjects;

pub use changes::Changes;
pub use compiler::{Compiler, Scope};
pub use engine::{
    Answer, BackendAnswer, Brief, End, Engine, Judgement, Protocol, Question, Seen, ServiceAnswer, Unanswerable,
};
pub use explain::{
    Accepted, BackendExplanation, Decision, Explanation, Matched, Miss, Remote, ServiceExplanation, TierRule, explain,
    explain_service,
};
pub use plan::{BackendFacts, ClassIndex, ClassKey, Fact, PeerId, Plan, PortNameId, ServiceFacts, Subject};
pub use ports::{Bundle, PortSet};
pub use ruleset::{Accepts, Own, Peer, Ruleset, Step, Tiers};
