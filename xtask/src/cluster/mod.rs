//! `cargo xtask cluster`: a real Kubernetes of two nodes on one machine, out of namespaces.
//!
//! The control plane has a network namespace; each node has one too, with mounts and a host name of its own. A bridge in
//! a fourth namespace connects them. There is no container engine and no registry, and nothing is added to the machine's
//! own network namespace but one listening port on 127.0.0.1, which leads to the API server.
//!
//! ```text
//! build -> machine, files, pki -> network, cgroup -> control_plane, node -> images, crd
//! ```
//!
//! All of it is below `target/cluster`: what was built stays there, what runs is in `run` and goes with `down`.

mod build;
mod cgroup;
mod command;
mod control_plane;
mod crd;
mod daemon;
mod files;
mod forward;
mod go;
mod guard;
mod images;
mod machine;
mod network;
mod node;
mod pki;
mod state;
mod status;

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Subcommand;

pub(crate) use self::{
    command::wait_for,
    crd::Channel,
    machine::{Family, Node},
    state::{Cni, Options, Proxy, Running, State},
};

use crate::{process, workspace};
use machine::Machine;

/// What of the cluster.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get and build what a cluster is made of (10 to 15 minutes the first time on two cores); `up` does it too
    Build,
    /// Start everything that does not run; from nothing it takes about 15 seconds
    Up {
        #[command(flatten)]
        options: Options,
        /// Add the API of ClusterNetworkPolicy
        #[arg(long, value_name = "CHANNEL", num_args = 0..=1, default_missing_value = "standard")]
        cnp: Option<Channel>,
    },
    /// End every process and remove everything but what was built
    Down,
    /// Say what runs, and with how much memory
    Status,
    /// Run kubectl as the administrator
    Kubectl {
        /// kubectl's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<String>,
    },
    /// Import docker-archives on both nodes, unless they have them
    Load {
        /// Archives, as `docker save` and `cargo xtask image` write them
        #[arg(required = true, value_name = "ARCHIVE")]
        archives: Vec<PathBuf>,
    },
    /// Run a command inside a node: in its network, mounts and host name
    Node {
        /// The node's number
        node: Node,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Switch a node off and on: its processes, network and bpffs go, its disk stays
    RestartNode {
        /// The node's number
        node: Node,
    },
    /// Drop everything between a node and the control plane; the nodes still reach each other
    Cut {
        /// The node's number
        node: Node,
    },
    /// Undo `cut`
    Mend {
        /// The node's number
        node: Node,
    },
    /// Add the API of ClusterNetworkPolicy, or replace it
    Crd {
        /// Which of the published definitions
        #[arg(default_value = "standard")]
        channel: Channel,
    },
    /// Part of a running cluster: carries connections to the API server
    #[command(hide = true)]
    Forward,
    /// Part of a running cluster: a node's first process
    #[command(hide = true)]
    Init { node: Node, outside: String },
    /// Part of `up`: cleans up behind it
    #[command(hide = true)]
    Guard,
}

/// Runs one of the commands. `kubectl` and `node` end with the exit code of what they run.
///
/// # Errors
///
/// It could not be done, and why.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Build => build(),
        Command::Up { options, cnp } => {
            up(options)?;
            cnp.map_or(Ok(()), crd::apply)
        }
        Command::Down => down(),
        Command::Status => status::print(),
        Command::Kubectl { arguments } => {
            running()?;
            let mut kubectl = command::kubectl();
            kubectl.stdin(Stdio::inherit()).args(arguments);
            Err(kubectl.exec()).context("start kubectl")
        }
        Command::Load { archives } => load(archives),
        Command::Node { node, command } => {
            needs_root("entering a node")?;
            let mut program = node::inside(*node, &command[0])?;
            program.stdin(Stdio::inherit()).args(&command[1..]);
            Err(program.exec()).with_context(|| format!("start {}", command[0]))
        }
        Command::RestartNode { node } => restart_node(*node),
        Command::Cut { node } => cut(*node),
        Command::Mend { node } => mend(*node),
        Command::Crd { channel } => {
            running()?;
            crd::apply(*channel)
        }
        Command::Forward => forward::run(),
        Command::Init { node, outside } => node::init(*node, outside),
        Command::Guard => guard::run(),
    }
}

/// Whether everything that a cluster is made of was built here.
pub(crate) fn is_built() -> bool {
    machine::binary("kube-apiserver").exists() && machine::root().join("e2e.test").exists()
}

/// Adds the API of ClusterNetworkPolicy to the running cluster.
///
/// # Errors
///
/// It cannot be fetched, or the API server refuses it.
pub(crate) fn add_cnp(channel: Channel) -> anyhow::Result<()> {
    crd::apply(channel)
}

/// Gets everything that a cluster is made of.
///
/// # Errors
///
/// Something is missing that this user may not install, with the command to copy; or a program does not build.
pub(crate) fn build() -> anyhow::Result<()> {
    build::all()?;
    images::write()
}

/// Starts everything that does not run, and returns once both nodes are ready.
///
/// # Errors
///
/// We are not root, this machine's layout is another one, a cluster of other options or of another folder runs, or a part
/// does not start.
pub(crate) fn up(options: &Options) -> anyhow::Result<()> {
    needs_root("a cluster makes namespaces and mounts")?;
    check_machine(options)?;
    build()?;
    let _lock = state::lock()?;
    let begin = Instant::now();
    let told = |what: &str| eprintln!("{what} after {:.1} s", begin.elapsed().as_secs_f64());
    if state::is_of_another_folder() {
        bail!(
            "a cluster of another folder runs on this machine: `cargo xtask cluster down` ends it, here or there; there can \
             be one at a time"
        );
    }
    match state::read() {
        Some(former) if network::exists() && former != *options => {
            bail!("the cluster runs with {former}: `cargo xtask cluster down` first, then `up` with {options}");
        }
        Some(_) if network::exists() => {}
        // Of a former boot of the machine, or half done.
        _ => remove()?,
    }
    let guard = if daemon::all_run() { None } else { Some(guard::start()?) };
    let outcome = start(options, &told);
    if let Some(guard) = guard {
        guard.dismiss()?;
    }
    outcome.context(
        "the cluster does not start; its logs are target/cluster/run/*/log, and `cargo xtask cluster down` ends what runs",
    )?;
    told("up");
    eprintln!("KUBECONFIG={}", running()?.kubeconfig.display());
    Ok(())
}

fn start(options: &Options, told: &dyn Fn(&str)) -> anyhow::Result<()> {
    state::write(options)?;
    network::make()?;
    for machine in Machine::ALL.into_iter().filter(|&machine| !network::is_whole(machine)) {
        // What runs in half a network is of no use.
        cgroup::end(machine)?;
        network::remove_machine(machine)?;
        network::make_machine(machine)?;
    }
    pki::make()?;
    control_plane::start(options)?;
    told("control plane ready");
    for node in Node::ALL {
        node::start(node, options)?;
    }
    told("nodes started");
    images::import_own()?;
    for node in Node::ALL {
        node::give_addresses(node, options)?;
    }
    told("images imported, pods' networks made");
    for node in Node::ALL {
        if network::is_cut(node) {
            eprintln!("{node} is cut off from the control plane: not waiting for it");
        } else {
            node::wait_until_ready(node)?;
        }
    }
    // A pod is refused until its namespace has this.
    let account = || command::quiet(command::kubectl().args(["get", "serviceaccount", "default"]));
    wait_for("the default service account", Duration::from_secs(60), account)?;
    Ok(())
}

/// Ends every process and removes everything but what was built; also after a crash, and what another folder started.
///
/// # Errors
///
/// We are not root, or something stays.
pub(crate) fn down() -> anyhow::Result<()> {
    needs_root("removing a cluster")?;
    let _lock = state::lock()?;
    let begin = Instant::now();
    remove()?;
    eprintln!("down after {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn remove() -> anyhow::Result<()> {
    // Nodes first: they have nobody to complain to then.
    for machine in Machine::ALL.into_iter().rev() {
        cgroup::end(machine)?;
    }
    network::remove()?;
    cgroup::remove_all()?;
    remove_if_there(&machine::kubeconfig(), |path| fs::remove_file(path))?;
    remove_if_there(&machine::run(), |path| fs::remove_dir_all(path))
}

fn remove_if_there(path: &Path, remove: impl Fn(&Path) -> std::io::Result<()>) -> anyhow::Result<()> {
    match remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Imports docker-archives on both nodes, but those that they have.
///
/// # Errors
///
/// There is no cluster, or an archive is none.
pub(crate) fn load(archives: &[PathBuf]) -> anyhow::Result<()> {
    needs_root("entering a node")?;
    running()?;
    images::import(archives)
}

/// Switches a node off and on, and returns once it is ready; at once if it is cut off.
///
/// # Errors
///
/// There is no cluster, or the node does not start again.
pub(crate) fn restart_node(node: Node) -> anyhow::Result<()> {
    needs_root("restarting a node")?;
    let _lock = state::lock()?;
    let begin = Instant::now();
    node::restart(node, &running()?.options())?;
    eprintln!("{node} is back after {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Drops everything between a node and the control plane.
///
/// # Errors
///
/// There is no cluster, or the kernel has no rules for bridges.
pub(crate) fn cut(node: Node) -> anyhow::Result<()> {
    needs_root("cutting a node off")?;
    running()?;
    network::cut(node)
}

/// Undoes [`cut`].
///
/// # Errors
///
/// There is no cluster, or the rules stay.
pub(crate) fn mend(node: Node) -> anyhow::Result<()> {
    needs_root("mending")?;
    running()?;
    network::mend(node)
}

/// The list of CNI plugins that gives pods their interfaces, with addresses out of `cidrs`.
pub(crate) fn cni_plugins(kind: Cni, cidrs: &[String]) -> String {
    files::cni(kind, cidrs)
}

fn running() -> anyhow::Result<Running> {
    let Some(running) = State::running() else {
        if state::read().is_some() && network::exists() {
            bail!(
                "not all of the cluster runs: `cargo xtask cluster status` says what, `cargo xtask cluster up` starts it"
            );
        }
        bail!("there is no cluster: run `cargo xtask cluster up` first");
    };
    Ok(running)
}

fn needs_root(what: &str) -> anyhow::Result<()> {
    if process::is_root() { Ok(()) } else { bail!("{what}: this needs root; run the same command as root") }
}

/// Refuses a machine on which a cluster cannot work, before anything is built.
fn check_machine(options: &Options) -> anyhow::Result<()> {
    cgroup::check()?;
    let hidden = ["/etc", "/var", "/opt", "/run", "/sys", "/proc", "/dev"];
    if let Some(folder) = hidden.iter().find(|folder| workspace::root().starts_with(folder)) {
        bail!(
            "the repository is in {}: nodes have a {folder} of their own and would not see it; put it elsewhere",
            workspace::root().display()
        );
    }
    if options.cni == Cni::Bridge && !node::has_bridge_filter() {
        bail!(
            "--cni bridge: frames on a bridge do not pass the rules of Services here; run `modprobe br_netfilter` first"
        );
    }
    Ok(())
}
