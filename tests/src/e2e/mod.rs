//! End-to-end tests on a real cluster: pods, policies and agents through its API.
//!
//! ```text
//! scenarios (tests/scenarios) --+                      +-- pods running `peer`, asked through `kubectl exec`
//! upstream's e2e.test ----------+--> cluster's API --> |
//! life, drops ------------------+                      +-- npolicy's DaemonSet --> its log
//!                               +--> Report --> table, JUnit XML
//! ```
//!
//! Any kubeconfig serves. Everything that is made bears the label `npolicy-e2e=true` and goes in the end.

mod api;
mod channel;
mod drops;
mod install;
mod life;
mod live;
mod made;
pub mod message;
mod nodes;
pub mod peer;
mod remove;
mod report;
mod run;
mod scenarios;
mod stage;
mod traffic;
mod translate;
mod upstream;

pub use api::Api;
pub use install::Install;
pub use life::Machine;
pub use report::{Case, Outcome, Report};
pub use run::{Options, Part, run};
