//! Stage 4: from rulesets to the kernel. Alone in changing kernel state.
//!
//! ```text
//! Plan --publish--> class4, class6 (address -> number)   rulesets, bundles (number -> ports)   lines (pod -> rulesets)
//!                        \_______________ mapped memory of pinned maps, single stores _______________/
//! HostLink --enroll--> lines, attach (links, pinned, first in their chains)
//! programs --> COUNTERS, EVENTS, FLOWS --> counters, events, sweep
//! ```
//!
//! The agent may stop at any instruction without changing a verdict: pinned maps and links keep the last complete rulesets.

mod attach;
mod bundles;
mod class4;
mod class6;
mod clock;
mod counters;
mod error;
mod flows;
mod grace;
mod lines;
mod load;
mod maps;
mod node;
mod numbers;
mod pin;
mod publish;
mod rulesets;
mod schema;
mod slots;
mod sys;
mod tables;
#[cfg(test)]
mod walk;

pub use attach::{Fault, Problem};
pub use counters::EndpointCounters;
pub use error::{DatapathError, Full};
pub use node::{Datapath, DatapathConfig, Enrolled, SweepReport, check_kernel, remove_all};
pub use publish::{Degraded, Instead, PublishReport, Settling, TableUsage};
pub use sys::TestRun;
