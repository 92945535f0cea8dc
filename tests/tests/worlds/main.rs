//! Generated worlds: do all judges say the same, and does what must not matter not matter?
//!
//! Every test prints what it counted. `NPOLICY_WORLDS_TIMES` multiplies the worlds, `NPOLICY_WORLDS_SEED` is the first
//! one's seed; the next worlds have the numbers after it.

mod agreement;
mod properties;

use npolicy_tests::worlds::{Settings, Worlds, first_seed, times};

/// What the compiler takes.
const SETTINGS: Settings = Settings::ALL;

fn worlds(count: u64, questions: usize) -> Worlds {
    let first = first_seed();
    Worlds { seeds: first..first + count * times(), settings: SETTINGS, questions }
}
