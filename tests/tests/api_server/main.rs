//! The API server in the test's process: what clients see of it, and the agent under its faults.

mod agent;
mod client;
mod faults;
mod kubectl;
mod objects;
mod world;
