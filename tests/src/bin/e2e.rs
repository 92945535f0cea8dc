//! The end-to-end tests on a cluster, see `npolicy_tests::e2e`; `cargo xtask e2e` builds what they need and runs them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use npolicy_tests::e2e::{self, Api, Install, Machine, Options, Part, Report};

/// Tests npolicy on a cluster.
#[derive(Parser)]
struct Args {
    /// The cluster
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// A context of it
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubectl that reaches into the pods
    #[arg(long, value_name = "FILE", default_value = "kubectl")]
    kubectl: PathBuf,
    /// The npolicy whose manifests are applied; none: what is installed is tested
    #[arg(long, value_name = "FILE")]
    npolicy: Option<PathBuf>,
    /// Name of npolicy's image, where it is not the manifests' own
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// A flag for `npolicy install`
    #[arg(long = "install-flag", value_name = "FLAG", allow_hyphen_values = true)]
    install_flags: Vec<String>,
    /// Name of the test pods' image
    #[arg(long, value_name = "NAME", default_value = "localhost/npolicy-peer:test")]
    peer_image: String,
    /// Parts that run: a or scenarios, b or upstream, c or life, d or drops
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<Part>,
    /// Run also tests that another one is much alike
    #[arg(long)]
    all: bool,
    /// Install nothing, to show which tests fail then
    #[arg(long)]
    without: bool,
    /// Run the scenarios and tests of upstream with this in their names
    #[arg(long, value_name = "TEXT", default_value = "")]
    focus: String,
    /// Kubernetes' own test program
    #[arg(long, value_name = "FILE")]
    e2e_test: Option<PathBuf>,
    /// How long verdicts may take until they hold, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    settle: u64,
    /// Where reports go
    #[arg(long, value_name = "DIR", default_value = "target/e2e")]
    out: PathBuf,
    /// The program that runs the cluster's machines, and its first argument
    #[arg(long, value_name = "WORDS", num_args = 1..)]
    cluster_command: Vec<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<bool> {
    let api = Api::connect(&args.kubeconfig, args.context, args.kubectl).await?;
    let parts = Part::ALL.into_iter().filter(|part| args.only.is_empty() || args.only.contains(part));
    let options = Options {
        parts: parts.collect(),
        without: args.without,
        all: args.all,
        focus: args.focus,
        install: args.npolicy.map(|npolicy| Install { npolicy, image: args.image, flags: args.install_flags }),
        peer_image: args.peer_image,
        upstream: args.e2e_test,
        machine: (!args.cluster_command.is_empty()).then_some(Machine { command: args.cluster_command }),
        settle: Duration::from_secs(args.settle),
        folder: args.out,
    };
    let mut report = Report::default();
    e2e::run(&api, &options, &mut report).await?;
    // Without npolicy, tests that fail are what is to be shown.
    Ok(options.without || report.is_good())
}
