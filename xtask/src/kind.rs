//! `cargo xtask kind`: a cluster of two nodes by kind, on a machine with docker.
//!
//! kind's own network, kindnet, enforces NetworkPolicies too, and has no switch to leave that out. Two enforcers would
//! hide each other's faults, so the nodes get the same CNI plugins and routes as those of `cargo xtask cluster`;
//! `docs/cluster.md` cites what this relies on.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    cluster::{self, Cni, Family},
    image, process, workspace,
};

/// The cluster's name, from which those of its containers follow.
const NAME: &str = "npolicy";
/// Where the control plane's own kubectl finds its administrator.
const ADMIN: &str = "/etc/kubernetes/admin.conf";
/// Pods' and Services' addresses; kind has no default for pods' without its own network.
const POD_SUBNETS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
const SERVICE_SUBNETS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// What of the cluster.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the cluster, give its pods a network without an enforcer, and load the agent's image
    Up {
        /// The first family of addresses of pods, Services and nodes; both are always there
        #[arg(long, default_value = "4")]
        first: Family,
    },
    /// Delete the cluster
    Down,
}

/// Runs one of the commands.
///
/// # Errors
///
/// Docker or kind is missing, with what to do; or one of them refuses.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    check_machine()?;
    match args.command {
        Verb::Up { first } => up(first),
        Verb::Down => down(),
    }
}

fn check_machine() -> anyhow::Result<()> {
    if process::on_path("docker").is_none() {
        bail!(
            "there is no `docker` on PATH: kind makes its nodes with it; without docker use `cargo xtask cluster up`"
        );
    }
    let info = Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]).stdin(Stdio::null()).output();
    let info = info.context("start docker")?;
    if !info.status.success() || info.stdout.trim_ascii().is_empty() {
        bail!(
            "docker has no engine to talk to: {}; start it, or use `cargo xtask cluster up`, which needs none",
            String::from_utf8_lossy(&info.stderr).trim()
        );
    }
    if process::on_path("kind").is_none() {
        bail!(
            "go install sigs.k8s.io/kind@latest\n\
             run the line above and put Go's bin folder on PATH: there is no `kind`"
        );
    }
    Ok(())
}

fn up(first: Family) -> anyhow::Result<()> {
    let config = config(first);
    if exists()? {
        if !fs::read_to_string(config_file()).is_ok_and(|found| found == config) {
            bail!("the cluster {NAME} was made with other options: `cargo xtask kind down` first");
        }
        eprintln!("the cluster {NAME} is there");
    } else {
        fs::create_dir_all(folder()).with_context(|| format!("make {}", folder().display()))?;
        fs::write(config_file(), config).with_context(|| format!("write {}", config_file().display()))?;
        let mut create = kind("create");
        create.args(["cluster", "--name", NAME, "--config"]).arg(config_file());
        process::run(create.arg("--kubeconfig").arg(kubeconfig()))?;
        // Both nodes are for pods.
        let control_plane = format!("{NAME}-control-plane");
        let taint = ["taint", "nodes", &control_plane, "node-role.kubernetes.io/control-plane:NoSchedule-"];
        process::run(kubectl().args(taint))?;
    }
    connect_pods()?;
    process::run(kubectl().args(["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"]))?;
    let archive = image::agent()?;
    process::run(kind("load").args(["image-archive", "--name", NAME]).arg(archive))?;
    eprintln!("KUBECONFIG={}", kubeconfig().display());
    eprintln!("nodes of kind have no bpffs: `npolicy install --mount-bpffs | kubectl apply -f -`");
    Ok(())
}

fn down() -> anyhow::Result<()> {
    process::run(kind("delete").args(["cluster", "--name", NAME, "--kubeconfig"]).arg(kubeconfig()))?;
    match fs::remove_dir_all(folder()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder().display()))
        }
        _ => Ok(()),
    }
}

/// kind's configuration. JSON is YAML too.
fn config(first: Family) -> String {
    let config = json!({
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": [{ "role": "control-plane" }, { "role": "worker" }],
        "networking": {
            "ipFamily": "dual",
            "disableDefaultCNI": true,
            "podSubnet": first.ordered(POD_SUBNETS),
            // kind orders nodes' addresses as these.
            "serviceSubnet": first.ordered(SERVICE_SUBNETS),
        },
    });
    format!("{config:#}\n")
}

/// Gives every node the list of CNI plugins, and routes to the pods of the others.
fn connect_pods() -> anyhow::Result<()> {
    let nodes = cluster::wait_for("addresses for pods", Duration::from_secs(60), || {
        let mut list = kubectl();
        let list = list.args(["get", "nodes", "-o", "json"]).stderr(Stdio::inherit()).output();
        let list = serde_json::from_slice(&list.context("list the nodes")?.stdout).context("read the list of nodes")?;
        nodes(&list)
    })?;
    for node in &nodes {
        install_cni(node)?;
        for other in nodes.iter().filter(|other| other.name != node.name) {
            for (cidr, via) in other.routes()? {
                let family = if cidr.contains(':') { "-6" } else { "-4" };
                let route = ["ip", family, "route", "replace", cidr, "via", via];
                process::run(Command::new("docker").args(["exec", &node.name]).args(route))?;
            }
        }
    }
    Ok(())
}

/// A node as the API server knows it.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    name: String,
    addresses: Vec<String>,
    pod_cidrs: Vec<String>,
}

impl Node {
    /// Its blocks of pods' addresses, each with its own address of that family.
    fn routes(&self) -> anyhow::Result<Vec<(&str, &str)>> {
        let route = |cidr| {
            let is_v6 = |text: &str| text.contains(':');
            let via = self.addresses.iter().find(|address| is_v6(address) == is_v6(cidr));
            Ok((cidr, via.with_context(|| format!("node {} has no address to reach {cidr} by", self.name))?.as_str()))
        };
        self.pod_cidrs.iter().map(|cidr| route(cidr.as_str())).collect()
    }
}

fn nodes(list: &Value) -> anyhow::Result<Vec<Node>> {
    let items = list["items"].as_array().context("no nodes")?;
    let strings = |values: &Value| -> Vec<String> {
        let values = values.as_array().into_iter().flatten();
        values.filter_map(|value| Some(value.as_str()?.to_owned())).collect()
    };
    let node = |item: &Value| {
        let name = item["metadata"]["name"].as_str().context("a node without a name")?.to_owned();
        let addresses = item["status"]["addresses"].as_array().into_iter().flatten();
        let internal = addresses.filter(|address| address["type"] == "InternalIP");
        let addresses = internal.filter_map(|address| Some(address["address"].as_str()?.to_owned())).collect();
        let pod_cidrs = strings(&item["spec"]["podCIDRs"]);
        if pod_cidrs.is_empty() {
            bail!("node {name} has no addresses for pods yet");
        }
        Ok(Node { name, addresses, pod_cidrs })
    };
    items.iter().map(node).collect()
}

fn install_cni(node: &Node) -> anyhow::Result<()> {
    let script = "mkdir -p /etc/cni/net.d && cat >/etc/cni/net.d/10-npolicy.conflist";
    let mut write = Command::new("docker");
    write.args(["exec", "--interactive", &node.name, "sh", "-c", script]);
    let mut child = write.stdin(Stdio::piped()).spawn().context("start docker")?;
    let mut input = child.stdin.take().context("write to docker")?;
    input.write_all(cluster::cni_plugins(Cni::Ptp, &node.pod_cidrs).as_bytes()).context("write to docker")?;
    drop(input);
    let status = child.wait().context("wait for docker")?;
    if !status.success() {
        bail!("writing the list of CNI plugins on {} ended with {status}", node.name);
    }
    Ok(())
}

fn exists() -> anyhow::Result<bool> {
    let output = kind("get").arg("clusters").stderr(Stdio::inherit()).output().context("start kind")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line == NAME))
}

fn kind(verb: &str) -> Command {
    let mut command = Command::new("kind");
    command.arg(verb);
    command
}

/// The kubectl of the control plane, which every node image has.
fn kubectl() -> Command {
    let kubectl = ["kubectl", "--kubeconfig", ADMIN];
    let mut command = Command::new("docker");
    command.args(["exec", &format!("{NAME}-control-plane")]).args(kubectl);
    command
}

fn folder() -> PathBuf {
    workspace::root().join("target/kind")
}

fn kubeconfig() -> PathBuf {
    folder().join("kubeconfig")
}

fn config_file() -> PathBuf {
    folder().join("config.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_brings_no_enforcer_and_both_families() {
        let config: Value = serde_json::from_str(&config(Family::V6)).expect("JSON was written");
        let networking = &config["networking"];
        assert_eq!(networking["disableDefaultCNI"], true);
        assert_eq!(networking["ipFamily"], "dual");
        assert_eq!(networking["serviceSubnet"], "fd00:10:96::/112,10.96.0.0/16");
        assert_eq!(config["nodes"].as_array().map(Vec::len), Some(2));
    }

    fn list(cidrs: &[&str], addresses: &[&str]) -> Value {
        let address = |address: &&str| json!({ "type": "InternalIP", "address": address });
        let mut addresses: Vec<_> = addresses.iter().map(address).collect();
        addresses.push(json!({ "type": "Hostname", "address": "w" }));
        json!({ "items": [{
            "metadata": { "name": "w" }, "spec": { "podCIDRs": cidrs }, "status": { "addresses": addresses },
        }] })
    }

    #[test]
    fn pods_of_a_node_are_reached_by_its_address_of_their_family() {
        let list = list(&["fd00:10:244::/64", "10.244.0.0/24"], &["172.18.0.2", "fc00::2"]);
        let nodes = nodes(&list).expect("a node with both");
        assert_eq!(
            nodes[0].routes().expect("both are reached"),
            [("fd00:10:244::/64", "fc00::2"), ("10.244.0.0/24", "172.18.0.2")]
        );
    }

    #[test]
    fn a_node_without_an_address_of_a_family_is_an_error() {
        let nodes = nodes(&list(&["fd00:10:244::/64"], &["172.18.0.2"])).expect("a node");
        let told = nodes[0].routes().expect_err("no way").to_string();
        assert_eq!(told, "node w has no address to reach fd00:10:244::/64 by");
        assert!(super::nodes(&list(&[], &["172.18.0.2"])).is_err());
    }
}
