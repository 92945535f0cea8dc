//! `cargo xtask bench`: what a packet costs, what compiling does, and how soon a cluster's packets follow its API.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::{e2e, ebpf, process, workspace};

/// Flags of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything if left out
    #[arg(value_enum)]
    part: Option<Part>,
    /// One JSON object a line: of packets name, identities, ns, ns_over_parse; of compiling name and us or mib
    #[arg(long)]
    json: bool,
    /// Instead, on a running cluster with npolicy: from the API server's answer to a write until the packets change
    #[arg(long, conflicts_with_all = ["part", "json"])]
    cluster: bool,
    #[command(flatten)]
    on_cluster: ClusterArgs,
}

/// Flags of `cargo xtask bench --cluster`.
#[derive(clap::Args)]
struct ClusterArgs {
    /// The cluster; without it, the one of `cargo xtask cluster`
    #[arg(long, value_name = "FILE", requires = "cluster")]
    kubeconfig: Option<PathBuf>,
    /// A context of it
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,
    /// Rounds for each write and load
    #[arg(long, value_name = "NUMBER", default_value = "100", requires = "cluster")]
    rounds: NonZeroUsize,
    /// Sender and receiver share a node
    #[arg(long, requires = "cluster")]
    same_node: bool,
    /// The test pods' image is on the nodes already, load none
    #[arg(long, requires = "cluster")]
    loaded: bool,
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
/// A tool or the cluster is missing, something does not build, or a benchmark fails.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.cluster {
        return on_cluster(&args.on_cluster);
    }
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

/// Loads the test pods' image and measures, with results under `target/bench`.
fn on_cluster(args: &ClusterArgs) -> anyhow::Result<()> {
    let ClusterArgs { kubeconfig, context, rounds, same_node, loaded } = args;
    let target = e2e::find(kubeconfig.as_deref(), context.as_deref())?;
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--locked", "-p", "npolicy-tests", "--bin", "bench-cluster"]);
    process::run(&mut build)?;
    let peer = e2e::peer()?;
    if !loaded {
        e2e::load(&target, &[peer])?;
    }
    let mut bench = e2e::on_target("bench-cluster", &target, context.as_deref());
    bench.args(["--peer-image", e2e::PEER, "--rounds", &rounds.to_string()]);
    bench.args(same_node.then_some("--same-node"));
    bench.arg("--out").arg(workspace::root().join("target/bench"));
    process::run(&mut bench).context("latency on a cluster")
}
