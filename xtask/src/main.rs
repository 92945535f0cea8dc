//! Builds, tests and checks npolicy: `cargo xtask --help`.

mod bench;
mod ci;
mod cluster;
mod demo;
mod e2e;
mod ebpf;
mod image;
mod kind;
mod lint;
mod object;
mod process;
mod report;
mod setup;
mod suites;
mod test;
mod tidy;
mod verifier;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the agent, make a small cluster out of network namespaces, enforce a policy in it and try every connection
    Demo(demo::Args),
    /// Run every test that this machine can run, and name the rest with the reason
    Test(test::Args),
    /// Run all that CI runs: format, clippy, tests, the BPF object and the rules of `tidy`
    Ci,
    /// Build the BPF object that the agent embeds, and write it where it is committed
    Ebpf {
        /// Write nothing: rebuild it and compare what the kernel runs with the committed one
        #[arg(long)]
        check: bool,
    },
    /// Build a static npolicy and write the image that the DaemonSet runs, without a container engine
    Image,
    /// Run a real Kubernetes of two nodes out of namespaces on this machine
    Cluster(cluster::Args),
    /// Run a cluster of two nodes by kind, on a machine with docker
    Kind(kind::Args),
    /// Install npolicy on a real cluster and test it there: our scenarios, Kubernetes' own suite, restarts, drop lines
    E2e(e2e::Args),
    /// Load the BPF object and hold the instructions that the verifier walks against their budgets
    Verifier,
    /// Measure what a packet costs, beside the kernel's own units, what compiling does, and how soon a cluster follows its API
    Bench(bench::Args),
    /// Check the rules of this repository that no compiler checks
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => return test::run(&args),
        Command::Ci => return ci::run(),
        Command::Ebpf { check: false } => ebpf::write(),
        Command::Ebpf { check: true } => ebpf::check(),
        Command::Image => image::run(),
        Command::Cluster(args) => cluster::run(&args),
        Command::Kind(args) => kind::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Verifier => verifier::run(),
        Command::Bench(args) => bench::run(&args),
        Command::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
