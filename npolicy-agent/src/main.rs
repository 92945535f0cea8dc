//! The `npolicy` command: flags, then one call into [`npolicy_agent::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    npolicy_agent::cli::main()
}
