//! Builds, tests and checks npolicy.
fn main() {}
