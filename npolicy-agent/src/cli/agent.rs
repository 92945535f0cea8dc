//! `npolicy agent`: enforces policy on this node's pods.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use ipnet::IpNet;

use tracing_subscriber::EnvFilter;

use crate::agent::{Agent, Config, Source, Unidentified};
use crate::cli::exit;
use crate::observe::Format;
use crate::watch::kubernetes::KubernetesConfig;

/// Flags of `npolicy agent`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    npolicy agent                                      in a pod: watches the API server of its cluster\n  \
    npolicy agent --kubeconfig ~/.kube/config --node-name n1\n  \
    npolicy agent --manifests /etc/npolicy --drop-format text\n\n\
    Verdicts stay in force when the agent ends, however it ends: its programs and tables are pinned under --pin-dir. \
    The next agent takes them over without a gap. `npolicy agent --remove` takes them away.\n\n\
    Exit code: 0 ended by a signal, or removed; 2 it cannot start, or cannot go on. NPOLICY_LOG=debug says more on stderr.")]
pub struct Args {
    /// Directory of YAML or JSON manifests to enforce instead of a cluster's objects, read again when they change: Pods
    /// (with status.podIPs), Namespaces, Nodes, Services, EndpointSlices, NetworkPolicies and ClusterNetworkPolicies
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    manifests: Option<PathBuf>,

    /// Kubeconfig of the cluster to watch. Default: the service account of the pod that this runs in
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig. Default: its current one
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,

    /// Name of this node; pods whose spec.nodeName is another are peers only. Default: the host's name, and with
    /// --manifests every pod of the manifests may be here
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node_name: Option<String>,

    /// What becomes of a pod's interface while nobody can say which pod's it is: deny drops everything on it but what the
    /// node itself sends to the pod, and the answers
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Unidentified::Deny)]
    unidentified_pods: Unidentified,

    /// Address and port to answer probes on: /livez, and /readyz, which says why not
    #[arg(long, value_name = "ADDRESS:PORT")]
    health_address: Option<SocketAddr>,

    /// Directory on a BPF file system for programs, links and tables; made with mode 0700
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/npolicy")]
    pin_dir: PathBuf,

    /// Addresses that belong to pods. In a cluster: where the nodes' spec.podCIDRs do not say. With --manifests: a veth
    /// with one is guarded even before a manifest names it. May be given several times
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<IpNet>,

    /// Interfaces never to touch. May be given several times
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    exclude_interfaces: Vec<String>,

    /// Where denials are written: a file, or - for standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    drop_log: PathBuf,

    /// How denials are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Auto)]
    drop_format: Format,

    /// File to write after each publish: what is enforced, as JSON
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,

    /// Flows each family's table has room for; rounded up to a power of two. Counts for new tables only
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    flows: u32,

    /// End when the thread that started the agent ends, as the demo and the tests want it
    #[arg(long, hide = true)]
    exit_with_parent: bool,

    /// Remove every program, link and table under --pin-dir: nothing is enforced any more
    #[arg(long, conflicts_with_all = ["manifests", "ready_file"])]
    remove: bool,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start; once it runs, it goes on with the last complete state and says what is wrong.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let Args {
        manifests,
        kubeconfig,
        context,
        node_name,
        unidentified_pods,
        health_address,
        pin_dir,
        pod_cidrs,
        exclude_interfaces,
        drop_log,
        drop_format,
        ready_file,
        flows,
        exit_with_parent,
        remove,
    } = args;
    start_logging()?;
    if exit_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    }
    anyhow::ensure!(
        may_load_programs(),
        "the agent loads BPF programs and listens to the pods' interfaces, which takes root, or CAP_BPF, CAP_PERFMON, \
         CAP_NET_ADMIN and CAP_NET_BROADCAST: sudo npolicy agent ..."
    );
    if remove {
        if !pin_dir.exists() {
            anstream::println!("nothing is pinned under {}", pin_dir.display());
            return Ok(exit::OK);
        }
        crate::datapath::remove_all(&pin_dir)?;
        anstream::println!("removed every program, link and table under {}", pin_dir.display());
        return Ok(exit::OK);
    }
    let config = Config {
        source: match manifests {
            Some(directory) => Source::Manifests(directory),
            None => Source::Kubernetes(KubernetesConfig { kubeconfig, context }),
        },
        node_name,
        unidentified: unidentified_pods,
        health_address,
        pin_dir,
        pod_cidrs,
        exclude_interfaces,
        drop_log,
        drop_format,
        ready_file,
        flows,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { Agent::start(config).await?.run().await })?;
    Ok(exit::OK)
}

/// Whether the process has the two capabilities, or is root of old.
fn may_load_programs() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    // The verifier lets programs compare pointers for CAP_PERFMON alone; NETLINK_LISTEN_ALL_NSID asks for CAP_NET_BROADCAST.
    let net = CapabilitySet::NET_ADMIN | CapabilitySet::NET_BROADCAST;
    let bpf = CapabilitySet::BPF | CapabilitySet::PERFMON;
    capabilities(None).is_ok_and(|sets| {
        sets.effective.contains(net)
            && (sets.effective.contains(bpf) || sets.effective.contains(CapabilitySet::SYS_ADMIN))
    })
}

/// Log lines go to standard error, filtered by NPOLICY_LOG (`info` by default); drop lines are data and go elsewhere. What
/// the API server answers is told by the watch, once for each change.
fn start_logging() -> anyhow::Result<()> {
    let wanted = match std::env::var("NPOLICY_LOG") {
        Ok(wanted) => wanted,
        Err(std::env::VarError::NotPresent) => String::new(),
        Err(not_unicode) => return Err(not_unicode).context("NPOLICY_LOG: expected error, warn, info, debug or trace"),
    };
    // A single word that is no level is taken for a module's name, and everything else falls silent.
    let is_word = !wanted.is_empty() && wanted.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let filter = EnvFilter::try_new(if wanted.is_empty() { "info" } else { &wanted });
    let filter = filter.ok().filter(|_| !is_word || wanted.parse::<tracing_subscriber::filter::LevelFilter>().is_ok());
    let filter = filter.with_context(|| {
        format!("NPOLICY_LOG={wanted}: expected error, warn, info, debug or trace, or TARGET=LEVEL,... for parts of it")
    })?;
    let filter = match wanted.contains("kube_client") {
        true => filter,
        false => filter.add_directive("kube_client=off".parse().expect("a directive")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    Ok(())
}
