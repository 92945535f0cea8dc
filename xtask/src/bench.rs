//! `cargo xtask bench`: what a packet costs.

use crate::{ebpf, process, workspace};

/// Flags of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object a line: name, identities, ns, ns_over_parse
    #[arg(long)]
    json: bool,
}

/// Builds the programs to compare with and the benchmark, and runs it. Takes root.
///
/// # Errors
///
/// A tool is missing, something does not build, or the benchmark fails.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let object = ebpf::write_bench()?;
    let mut bench = workspace::cargo();
    // The time is the kernel's: how our own side is built does not matter.
    bench.args(["run", "--quiet", "--locked", "-p", "npolicy-tests", "--bin", "bench", "--"]);
    bench.args(args.json.then_some("--json")).env("NPOLICY_BENCH_OBJECT", object);
    process::run(&mut bench)
}
