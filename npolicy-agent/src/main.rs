//! The npolicy command.
fn main() {}
