//! The watches against a server that answers by a script, on a clock that runs as fast as nothing happens.

mod assembling;
mod configuring;
mod reading;
mod server;
mod watching;
