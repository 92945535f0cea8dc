//! What a run is told.

use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Measures how long after a write to the API of a cluster the packets change.
#[derive(clap::Parser, Debug)]
pub struct Settings {
    /// The cluster; whoever it names must be allowed to make namespaces, pods and policies
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// A context of it
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The kubectl that reaches into the pods
    #[arg(long, value_name = "FILE", default_value = "kubectl")]
    pub kubectl: PathBuf,
    /// Name of the test pods' image; the nodes have it
    #[arg(long, value_name = "NAME", default_value = "localhost/npolicy-peer:test")]
    pub peer_image: String,
    /// Rounds for each write and load
    #[arg(long, value_name = "NUMBER", default_value = "100")]
    pub rounds: NonZeroUsize,
    /// Where the results go; it is made
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
    /// Sender and receiver share a node
    #[arg(long)]
    pub same_node: bool,
}
