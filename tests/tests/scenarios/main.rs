//! Do the acceptance scenarios hold: for the oracle, for the engine, for the nodes' plans, and for real packets?

mod coverage;
mod host;
mod packets;
