//! `cargo xtask bench`: what a packet costs, and what compiling does.

use crate::{ebpf, process, workspace};

/// Flags of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything if left out
    #[arg(value_enum)]
    part: Option<Part>,
    /// One JSON object a line: of packets name, identities, ns, ns_over_parse; of compiling name and us or mib
    #[arg(long)]
    json: bool,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// A packet, in the kernel; takes root
    Packet,
    /// Compiling a cluster of 150,000 pods, and one event of it
    Compile,
}

/// Builds the programs to compare with and the benchmarks, and runs them.
///
/// # Errors
///
/// A tool is missing, something does not build, or a benchmark fails.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let is_wanted = |part| args.part.is_none_or(|only| only == part);
    if is_wanted(Part::Packet) {
        let object = ebpf::write_bench()?;
        let mut bench = workspace::cargo();
        // The time is the kernel's: how our own side is built does not matter.
        bench.args(["run", "--quiet", "--locked", "-p", "npolicy-tests", "--bin", "bench", "--"]);
        bench.args(args.json.then_some("--json")).env("NPOLICY_BENCH_OBJECT", object);
        process::run(&mut bench)?;
    }
    if is_wanted(Part::Compile) {
        let mut bench = workspace::cargo();
        bench.args(["run", "--quiet", "--locked", "--release", "-p", "npolicy-tests", "--bin", "bench-compile", "--"]);
        bench.args(args.json.then_some("--json"));
        process::run(&mut bench)?;
    }
    Ok(())
}
