//! Generated worlds: small clusters with policies of both kinds, questions at every boundary, and the judges that have to
//! agree on them.
//!
//! ```text
//! seed --generate--> World (objects as an API server hands them over) --Interest--> probes, steps
//!                      |                                                               |
//!                      +--> Judge (oracle) ------- says ---\                           |
//!                      +--> Judge (engine, plan, host, kernel) --+-- compare <---------------+
//!                                                          difference --shrink--> regress/KIND-SEED
//! ```
//!
//! The same seed and settings give the same world. A world travels as objects alone, so each judge reads it by itself.

mod alphabet;
pub mod changes;
mod cluster;
mod cluster_policies;
mod counts;
mod frames;
mod harness;
mod host;
mod interest;
mod judges;
mod kernel;
mod policies;
mod regress;
mod services;
mod shrink;

use serde_json::Value;

pub use counts::{Tally, first_seed, times};
pub use harness::{Change, Concerns, Found, Question, Worlds, agree, keeps, smallest};
pub use host::HostJudge;
pub use interest::{Interest, Step};
pub use judges::{
    DetourJudge, Difference, EngineJudge, Judge, OracleAsks, OracleSteps, PlanJudge, Said, compare, governed, state_of,
};
pub use kernel::KernelJudge;
pub use regress::{Kept, kept, root, write};
pub use shrink::shrink;

use alphabet::Draw;

/// What a world may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// ClusterNetworkPolicies, of both tiers.
    pub cluster_policies: bool,
    /// Services and their EndpointSlices.
    pub services: bool,
    /// Fields that no API server takes, and rules that cannot be represented.
    pub broken: bool,
    /// Addresses of policies: without them no verdict depends on an address.
    pub blocks: bool,
}

impl Settings {
    /// Everything.
    pub const ALL: Self = Self { cluster_policies: true, services: true, broken: true, blocks: true };
    /// NetworkPolicies alone.
    pub const NETWORK_POLICIES: Self = Self { cluster_policies: false, services: false, broken: true, blocks: true };
}

/// A small cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct World {
    /// What it was made of.
    pub seed: u64,
    /// Its objects, in no particular order, each name of a kind once.
    pub objects: Vec<Value>,
}

/// Makes the world of a seed.
pub fn generate(seed: u64, settings: Settings) -> World {
    let mut draw = Draw::new(seed, settings);
    let mut objects = cluster::nodes(&mut draw);
    objects.extend(cluster::namespaces(&mut draw));
    objects.extend(cluster::pods(&mut draw));
    if settings.services {
        objects.extend(services::services(&mut draw));
    }
    objects.extend(policies::network_policies(&mut draw));
    if settings.cluster_policies {
        objects.extend(cluster_policies::cluster_policies(&mut draw));
    }
    draw.rng.shuffle(&mut objects);
    World { seed, objects }
}
