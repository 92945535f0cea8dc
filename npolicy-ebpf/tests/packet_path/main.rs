//! The packet path over tables in memory, both families.

mod errors;
mod events;
mod eviction;
mod flows;
mod frames;
mod masks;
mod net;
mod parse;
mod recovery;
mod rulesets;
mod table;
