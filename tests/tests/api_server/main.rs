//! The API server in the test's process: what clients see of it, and the agent under its faults.

mod agent;
mod client;
mod faults;
mod hour;
mod kubectl;
mod objects;
mod traffic;
mod world;
