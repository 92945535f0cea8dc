//! From a write to the API of a running cluster to its packets, see `npolicy_tests::latency`; `cargo xtask bench --cluster`
//! builds what it needs and runs it.

use std::process::ExitCode;

use clap::Parser as _;
use npolicy_tests::latency::{Settings, run};

fn main() -> ExitCode {
    match run(&Settings::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
