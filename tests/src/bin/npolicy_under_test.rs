//! The `npolicy` command, built with the suites so that they run the code they were built with.

use std::process::ExitCode;

fn main() -> ExitCode {
    npolicy_agent::cli::main()
}
