//! The network between the machines: a bridge in a namespace of its own, and a link from it into each machine's.
//!
//! ```text
//! npolicy-sw:  br0 -- cp -- npolicy-cp eth0    172.31.0.1, fd31::1
//!                  -- n1 -- npolicy-n1 eth0    172.31.0.11, fd31::11
//!                  -- n2 -- npolicy-n2 eth0    172.31.0.12, fd31::12
//! ```
//!
//! This machine's own namespace gets no address, no route and no interface.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};

use super::{
    command::{self, words},
    machine::{self, CONTROL_PLANE, Machine, Node, SWITCH},
};

/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";

/// Whether anybody's cluster of these names has a network here.
pub(super) fn exists() -> bool {
    Path::new(NAMESPACES).join(SWITCH).exists()
}

/// Makes the bridge that connects the machines, unless it is there.
///
/// # Errors
///
/// A part cannot be made.
pub(super) fn make() -> anyhow::Result<()> {
    if exists() {
        return Ok(());
    }
    remember_mount()?;
    words(&format!("ip netns add {SWITCH}"))?;
    words(&format!("ip -n {SWITCH} link set lo up"))?;
    // Without a querier it would have to guess who listens to whom.
    words(&format!("ip -n {SWITCH} link add br0 type bridge mcast_snooping 0"))?;
    words(&format!("ip -n {SWITCH} link set br0 up"))?;
    Ok(())
}

/// Whether the network of one machine was made to the end.
pub(super) fn is_whole(machine: Machine) -> bool {
    let port = format!("ip -n {SWITCH} -o link show dev {} master br0", machine.name());
    machine.namespace_file().exists() && words(&port).is_ok_and(|port| !port.trim().is_empty())
}

/// Makes the network of one machine.
///
/// # Errors
///
/// A part cannot be made.
pub(super) fn make_machine(machine: Machine) -> anyhow::Result<()> {
    let (name, namespace) = (machine.name(), machine.namespace());
    let [v4, v6] = machine.addresses();
    words(&format!("ip netns add {namespace}"))?;
    // Always the same: a node that starts anew is still known to its neighbours.
    let mac = machine.mac();
    words(&format!("ip link add eth0 address {mac} netns {namespace} type veth peer name {name} netns {SWITCH}"))?;
    words(&format!("ip -n {namespace} link set lo up"))?;
    words(&format!("ip -n {namespace} link set eth0 up"))?;
    words(&format!("ip -n {namespace} addr add {v4}/24 dev eth0"))?;
    words(&format!("ip -n {namespace} addr add {v6}/64 dev eth0 nodad"))?;
    if let Machine::Node(_) = machine {
        let [v4, v6] = CONTROL_PLANE;
        words(&format!("ip -n {namespace} route add default via {v4}"))?;
        words(&format!("ip -n {namespace} -6 route add default via {v6}"))?;
    }
    // The last step, by which it is told that it is whole.
    words(&format!("ip -n {SWITCH} link set {name} master br0 up"))?;
    Ok(())
}

/// Removes the network of one machine.
///
/// # Errors
///
/// A part stays.
pub(super) fn remove_machine(machine: Machine) -> anyhow::Result<()> {
    // The namespace ends in the background; its link is to be gone at once, for the next one has the same name.
    let _ = words(&format!("ip -n {SWITCH} link del {}", machine.name()));
    remove_namespace(machine.namespace())
}

/// Takes a machine off the network, as a power cut does: what still runs on it is heard by nobody.
pub(super) fn unplug(machine: Machine) {
    // A link that is gone already is as good.
    let _ = words(&format!("ip -n {SWITCH} link set {} down", machine.name()));
}

fn remove_namespace(namespace: &str) -> anyhow::Result<()> {
    let path = Path::new(NAMESPACES).join(namespace);
    if path.exists() {
        words(&format!("ip netns del {namespace}"))?;
    }
    Ok(())
}

/// Removes everything.
///
/// # Errors
///
/// A part stays.
pub(super) fn remove() -> anyhow::Result<()> {
    for machine in Machine::ALL {
        remove_machine(machine)?;
    }
    remove_namespace(SWITCH)?;
    let is_empty = fs::read_dir(NAMESPACES).is_ok_and(|mut entries| entries.next().is_none());
    if mount_record().exists() && is_empty {
        words(&format!("umount {NAMESPACES}"))?;
        fs::remove_dir(NAMESPACES).with_context(|| format!("remove {NAMESPACES}"))?;
    }
    Ok(())
}

/// The first `ip netns add` of a machine mounts the folder of namespaces; if that is ours, it is ours to undo.
fn remember_mount() -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    if !mounts.lines().any(|line| line.split(' ').nth(1) == Some(NAMESPACES)) {
        fs::write(mount_record(), "").context("remember that we mount the folder of namespaces")?;
    }
    Ok(())
}

fn mount_record() -> std::path::PathBuf {
    machine::run().join("mounted-namespaces")
}

/// Leads each node's pods from the other machines to it.
///
/// # Errors
///
/// A route cannot be set.
pub(super) fn route_pods(node: Node, cidrs: &[String]) -> anyhow::Result<()> {
    for machine in Machine::ALL.into_iter().filter(|machine| *machine != Machine::Node(node)) {
        for cidr in cidrs {
            words(&route(machine, node, cidr))?;
        }
    }
    Ok(())
}

fn route(machine: Machine, node: Node, cidr: &str) -> String {
    let [v4, v6] = node.addresses();
    let (family, via) = if cidr.contains(':') { ("-6", v6) } else { ("-4", v4) };
    format!("ip -n {} {family} route replace {cidr} via {via}", machine.namespace())
}

/// Drops every frame between `node` and the control plane, at the bridge; the nodes still reach each other.
///
/// # Errors
///
/// The rules cannot be set: the kernel has no nftables for bridges.
pub(super) fn cut(node: Node) -> anyhow::Result<()> {
    mend(node)?;
    let mut nft = command::command("ip");
    nft.args(["netns", "exec", SWITCH, "nft"]).arg(cut_rules(node));
    command::quiet(&mut nft).context("drop frames at the bridge")?;
    Ok(())
}

fn cut_rules(node: Node) -> String {
    let table = cut_table(node);
    let cp = Machine::ControlPlane.name();
    format!(
        "add table bridge {table}; add chain bridge {table} forward {{ type filter hook forward priority 0; }}; \
         add rule bridge {table} forward iifname {node} oifname {cp} drop; \
         add rule bridge {table} forward iifname {cp} oifname {node} drop"
    )
}

fn cut_table(node: Node) -> String {
    format!("cut_{node}")
}

/// Whether `node` is cut off.
pub(super) fn is_cut(node: Node) -> bool {
    words(&format!("ip netns exec {SWITCH} nft list table bridge {}", cut_table(node))).is_ok()
}

/// Ends what [`cut`] did; nothing if it did nothing.
///
/// # Errors
///
/// The rules stay.
pub(super) fn mend(node: Node) -> anyhow::Result<()> {
    if !exists() {
        bail!("there is no cluster: run `cargo xtask cluster up` first");
    }
    if is_cut(node) {
        words(&format!("ip netns exec {SWITCH} nft delete table bridge {}", cut_table(node)))?;
    }
    Ok(())
}

/// Tells whether something listens on a port of `machine`.
///
/// # Errors
///
/// Nothing does.
pub(super) fn expect_listener(machine: Machine, port: u16) -> anyhow::Result<()> {
    let mut ss = command::in_network_of(machine, "ss");
    let listening = command::quiet(ss.args(["-Htln", &format!("sport = {port}")]))?;
    if listening.trim().is_empty() {
        bail!("nothing listens on port {port} of {}", machine.name());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_led_to_their_node_in_their_family() {
        let of = |cidr| route(Machine::ControlPlane, Node::N2, cidr);
        assert_eq!(of("10.64.1.0/24"), "ip -n npolicy-cp -4 route replace 10.64.1.0/24 via 172.31.0.12");
        assert_eq!(of("fd64:0:0:1::/64"), "ip -n npolicy-cp -6 route replace fd64:0:0:1::/64 via fd31::12");
    }

    #[test]
    fn a_cut_names_both_ways_and_no_other_node() {
        let rules = cut_rules(Node::N1);
        assert!(
            rules.contains("iifname n1 oifname cp drop") && rules.contains("iifname cp oifname n1 drop"),
            "{rules}"
        );
        assert!(!rules.contains("n2"), "{rules}");
    }
}
