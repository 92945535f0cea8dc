//! The commands for people, one file each.

pub mod agent;
mod answer;
pub mod can;
pub mod demo;
pub mod install;
pub mod matrix;
pub mod prepare;
mod question;
mod style;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit codes of every command.
pub mod exit {
    /// Allowed, clean, done.
    pub const OK: u8 = 0;
    /// Denied, or findings.
    pub const DENIED: u8 = 1;
    /// The command line or the input cannot be used.
    pub const USAGE: u8 = 2;
    /// The question could not be answered with certainty.
    pub const UNKNOWN: u8 = 3;
}

#[derive(Parser)]
#[command(name = "npolicy", version, about = "Kubernetes NetworkPolicy and ClusterNetworkPolicy, enforced on the node", long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enforce the policies of a cluster, or of a directory of manifests, on this node's pods
    Agent(agent::Args),
    /// Build a small cluster out of network namespaces, enforce a policy in it and try every connection
    Demo(demo::Args),
    /// Say whether a pod may reach another, or a Service, and why
    Can(can::Args),
    /// Show who may reach whom as a table
    Matrix(matrix::Args),
    /// Print the manifests that put npolicy on a cluster
    Install(install::Args),
    /// Make a node fit for the agent: mount the BPF file system where it is missing, and look at the kernel
    PrepareNode(prepare::Args),
}

/// Parses the command line, runs the command and turns its outcome into an exit code.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Agent(args) => agent::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Can(args) => can::run(args),
        Command::Matrix(args) => matrix::run(args),
        Command::Install(args) => install::run(args),
        Command::PrepareNode(args) => prepare::run(&args),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            anstream::eprintln!("npolicy: {error:#}");
            ExitCode::from(exit::USAGE)
        }
    }
}
