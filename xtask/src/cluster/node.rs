//! The nodes: namespaces that look like a machine of their own, with containerd, the kubelet and kube-proxy.

use std::{ffi::CString, fs, io, os::unix::process::CommandExt as _, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, bail};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_move, unmount,
};

use super::{
    Options, cgroup, command, daemon, files,
    machine::{Machine, Node},
    network, pki,
};

/// Where Debian puts the CNI plugins.
pub(super) const CNI_PLUGINS: &str = "/usr/lib/cni";
/// What a node writes to and must not share with this machine.
const OWN_FOLDERS: &[&str] = &["/etc", "/var", "/opt"];
/// What the kubelet sets for the whole machine unless it reads these values already.
const KERNEL_SETTINGS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// A node forwards, and uses the address of a link that it makes at once: nobody else can have it. These are of its own
/// network namespace.
const NETWORK_SETTINGS: &[(&str, &str)] =
    &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1"), ("net/ipv6/conf/default/accept_dad", "0")];
/// With these, frames that a bridge carries pass the rules of Services; the kernel has them with `br_netfilter`.
const BRIDGE_SETTINGS: &[(&str, &str)] =
    &[("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")];
/// Tells that a node's namespaces are ready.
const READY: &str = "/run/node-ready";

/// Starts what does not run of `node`, up to a kubelet that was told everything but its pods' addresses.
///
/// # Errors
///
/// A part does not start; with the end of its log.
pub(super) fn start(node: Node, options: &Options) -> anyhow::Result<()> {
    let machine = Machine::Node(node);
    fs::create_dir_all(machine.folder()).with_context(|| format!("make {}", machine.folder().display()))?;
    if !daemon::is_running(machine, "init") {
        // What is left of it would live on in the namespaces of before.
        cgroup::end(machine)?;
    }
    cgroup::make(machine)?;
    let mut init = command::in_network_of(machine, "unshare");
    init.args(["--mount", "--uts", "--propagation", "private", "--"]);
    let ourselves = daemon::ourselves(&["init", node.name(), &mount_namespace()?])?;
    init.arg(ourselves.get_program()).args(ourselves.get_args());
    daemon::start(machine, "init", &init)?;
    daemon::wait_for((machine, "init"), "the namespaces of a node", Duration::from_secs(60), || {
        command::quiet(inside(node, "test")?.args(["-e", READY]))
    })?;
    files::replace(&files::of_node(node, "kubelet.json"), &files::kubelet(node))?;
    files::replace(&files::of_node(node, "containerd.toml"), &files::containerd())?;
    files::replace(&files::of_node(node, "kube-proxy.json"), &files::kube_proxy(node, options))?;

    let mut containerd = inside(node, "containerd")?;
    containerd.arg("--config").arg(files::of_node(node, "containerd.toml"));
    daemon::start(machine, "containerd", &containerd)?;
    daemon::wait_for((machine, "containerd"), "containerd", Duration::from_secs(60), || {
        command::quiet(inside(node, "ctr")?.args(["--connect-timeout", "3s", "version"]))
    })?;

    let mut kubelet = inside(node, "kubelet")?;
    kubelet.arg(format!("--config={}", files::of_node(node, "kubelet.json").display()));
    kubelet.arg(format!("--kubeconfig={}", pki::kubeconfig(node.name()).display()));
    kubelet.arg(format!("--hostname-override={node}"));
    kubelet.arg(format!("--node-ip={}", files::node_addresses(node, options.first)));
    kubelet.arg("--v=2");
    daemon::start(machine, "kubelet", &kubelet)?;

    let mut proxy = inside(node, "kube-proxy")?;
    proxy.arg(format!("--config={}", files::of_node(node, "kube-proxy.json").display()));
    daemon::start(machine, "kube-proxy", &proxy)
}

/// Gives the pods of `node` their addresses, and leads the other machines to them. Returns once it has a block of them.
///
/// # Errors
///
/// The controller manager gives it none, or a file or route cannot be written.
pub(super) fn give_addresses(node: Node, options: &Options) -> anyhow::Result<()> {
    let kubelet = (Machine::Node(node), "kubelet");
    let cidrs = daemon::wait_for(kubelet, "addresses for pods", Duration::from_secs(120), || {
        let path = "jsonpath={.spec.podCIDRs[*]}";
        let answer = command::quiet(command::kubectl().args(["get", "node", node.name(), "-o", path]))?;
        let cidrs: Vec<_> = answer.split_whitespace().map(str::to_owned).collect();
        if cidrs.is_empty() { bail!("node {node} has no block of them yet") } else { Ok(cidrs) }
    })?;
    let list = files::of_node(node, "cni.conflist");
    files::replace(&list, &files::cni(options.cni, &cidrs))?;
    command::quiet(inside(node, "cp")?.arg(&list).arg("/etc/cni/net.d/10-npolicy-cluster.conflist"))?;
    network::route_pods(node, &cidrs)
}

/// Waits until `node` is ready and its kubelet answers.
///
/// # Errors
///
/// It does not become ready; with the end of the kubelet's log.
pub(super) fn wait_until_ready(node: Node) -> anyhow::Result<()> {
    let kubelet = (Machine::Node(node), "kubelet");
    let answers = format!("--raw=/api/v1/nodes/{node}/proxy/healthz");
    daemon::wait_for(kubelet, &format!("the kubelet of {node}"), Duration::from_secs(120), || {
        command::quiet(command::kubectl().args(["get", &answers, "--request-timeout=3s"]))
    })?;
    daemon::wait_for(kubelet, &format!("{node} to be ready"), Duration::from_secs(120), || {
        let wait = ["wait", "--for=condition=Ready", "node", node.name(), "--timeout=5s"];
        command::quiet(command::kubectl().args(wait))
    })?;
    Ok(())
}

/// Ends all of `node` and starts it again, as if it was switched off and on: what it had in memory is gone, its disk is
/// there.
///
/// # Errors
///
/// A part does not end or start.
pub(super) fn restart(node: Node, options: &Options) -> anyhow::Result<()> {
    let machine = Machine::Node(node);
    let before = heartbeat(node).context("ask when the node was last heard")?;
    // Processes end one by one here, and with the first its bpffs: on a node that is switched off none outlives another.
    network::unplug(machine);
    cgroup::end(machine)?;
    network::remove_machine(machine)?;
    network::make_machine(machine)?;
    start(node, options)?;
    for other in Node::ALL {
        give_addresses(other, options)?;
    }
    if network::is_cut(node) {
        eprintln!("{node} is cut off from the control plane: not waiting for it");
        return Ok(());
    }
    // Until it is heard again, what is known of it is of before.
    daemon::wait_for(
        (machine, "kubelet"),
        &format!("a word from {node}"),
        Duration::from_secs(120),
        || match heartbeat(node)? {
            now if now == before => bail!("it was last heard at {now}"),
            _ => Ok(()),
        },
    )?;
    wait_until_ready(node)
}

/// When the kubelet of `node` last told that it is ready or not, as the API server writes it.
fn heartbeat(node: Node) -> anyhow::Result<String> {
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].lastHeartbeatTime}";
    command::quiet(command::kubectl().args(["get", "node", node.name(), "-o", path]))
}

/// `program` inside `node`: its network, mounts and host name.
///
/// # Errors
///
/// The node does not run.
pub(super) fn inside(node: Node, program: &str) -> anyhow::Result<Command> {
    let machine = Machine::Node(node);
    let Some(pid) = daemon::pid(machine, "init").filter(|_| daemon::is_running(machine, "init")) else {
        bail!("node {node} does not run: `cargo xtask cluster up` starts it");
    };
    let mut nsenter = command::command("nsenter");
    nsenter.args(["--target", &pid.to_string(), "--net", "--mount", "--uts", "--"]).arg(program);
    Ok(nsenter)
}

/// The first process of a node, in new namespaces: makes them look like a machine, then waits until it is ended.
/// `outside` is the mount namespace that must not be touched.
///
/// # Errors
///
/// A mount or a setting is refused.
pub(super) fn init(node: Node, outside: &str) -> anyhow::Result<()> {
    if mount_namespace()? == outside {
        bail!("still in the mount namespace {outside}: only `cargo xtask cluster up` starts this command");
    }
    let folder = Machine::Node(node).folder();
    rustix::system::sethostname(node.name().as_bytes()).context("set the host name")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("make mounts private")?;
    // Copies of others' mounts below /run would keep their network namespaces alive.
    for target in mounted_below("/run")? {
        unmount(&target, UnmountFlags::DETACH).with_context(|| format!("leave {target}"))?;
    }
    mount_sys(&folder)?;
    for own in OWN_FOLDERS {
        overlay(own, &folder)?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", "/run", "tmpfs", flags, Some(c"mode=755")).context("mount a tmpfs at /run")?;
    for kept in ["kubelet", "containerd"] {
        let (source, target) = (folder.join(kept), Path::new("/var/lib").join(kept));
        make_folders([source.as_path(), target.as_path()])?;
        mount_bind(&source, &target).with_context(|| format!("bind {}", target.display()))?;
    }
    make_folders(["/opt/cni/bin", "/etc/cni/net.d", "/run/netns", "/run/containerd"].map(Path::new))?;
    mount_bind(CNI_PLUGINS, "/opt/cni/bin").context("bind the CNI plugins")?;
    for (name, value) in KERNEL_SETTINGS {
        pretend(name, value, &folder)?;
    }
    for (name, value) in NETWORK_SETTINGS.iter().chain(if has_bridge_filter() { BRIDGE_SETTINGS } else { &[] }) {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).with_context(|| format!("set {} to {value}", path.display()))?;
    }
    // What pods mount below a volume with propagation is to be seen here too.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("share mounts with pods")?;
    fs::write(READY, "").with_context(|| format!("write {READY}"))?;
    Err(Command::new("sleep").arg("infinity").exec()).context("wait")
}

fn mount_namespace() -> anyhow::Result<String> {
    let link = fs::read_link("/proc/self/ns/mnt").context("ask for our mount namespace")?;
    Ok(link.to_string_lossy().into_owned())
}

/// Whether the kernel shows frames on bridges to the rules of Services.
pub(super) fn has_bridge_filter() -> bool {
    BRIDGE_SETTINGS.iter().all(|(name, _)| Path::new("/proc/sys").join(name).exists())
}

/// A sysfs shows the network namespace that it was mounted in: a new one, with the cgroups of the old one and file
/// systems of this node's own for BPF and traces.
fn mount_sys(folder: &Path) -> anyhow::Result<()> {
    let aside = folder.join("cgroup");
    make_folders([aside.as_path()])?;
    mount_move(cgroup::MOUNT, &aside).context("put the cgroups aside")?;
    unmount("/sys", UnmountFlags::DETACH).context("leave the machine's /sys")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sysfs", "/sys", "sysfs", flags, None).context("mount /sys")?;
    mount_move(&aside, cgroup::MOUNT).context("put the cgroups back")?;
    mount("bpf", "/sys/fs/bpf", "bpf", flags, Some(c"mode=700")).context("mount /sys/fs/bpf")?;
    // Nothing but people's curiosity needs it, and a kernel may have none.
    let _ = mount("tracefs", "/sys/kernel/tracing", "tracefs", flags, None);
    Ok(())
}

/// Lets the node write to `own` without anybody else seeing it.
fn overlay(own: &str, folder: &Path) -> anyhow::Result<()> {
    let name = own.trim_start_matches('/');
    let (upper, work) = (folder.join(format!("{name}.upper")), folder.join(format!("{name}.work")));
    make_folders([upper.as_path(), work.as_path()])?;
    let options = format!("lowerdir={own},upperdir={},workdir={}", upper.display(), work.display());
    let options = CString::new(options).context("name the folders of an overlay")?;
    mount("overlay", own, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .with_context(|| format!("mount an overlay at {own}"))
}

/// Lets the node read `value`; what it writes goes to a file.
fn pretend(name: &str, value: &str, folder: &Path) -> anyhow::Result<()> {
    let setting = Path::new("/proc/sys").join(name);
    if !setting.exists() {
        return Ok(());
    }
    let file = folder.join(format!("sysctl-{}", name.replace('/', "-")));
    fs::write(&file, format!("{value}\n")).with_context(|| format!("write {}", file.display()))?;
    mount_bind(&file, &setting).with_context(|| format!("bind {}", setting.display()))
}

fn make_folders<const N: usize>(folders: [&Path; N]) -> anyhow::Result<()> {
    let make = |folder: &Path| fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()));
    folders.into_iter().try_for_each(make)
}

/// What is mounted at or below `folder`, the last mount first.
fn mounted_below(folder: &str) -> io::Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(targets_below(&mounts, folder))
}

fn targets_below(mounts: &str, folder: &str) -> Vec<String> {
    let is_below =
        |target: &&str| target.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(is_below);
    // The kernel writes a space as \040.
    let mut targets: Vec<_> = targets.map(|target| target.replace("\\040", " ")).collect();
    targets.reverse();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_folder_are_left_from_the_last_to_the_first() {
        let mounts = "tmpfs /run tmpfs rw 0 0\ntmpfs /run/netns tmpfs rw 0 0\nnsfs /run/netns/a\\040b nsfs rw 0 0\n\
                      tmpfs /runner tmpfs rw 0 0\n";
        assert_eq!(targets_below(mounts, "/run"), ["/run/netns/a b", "/run/netns", "/run"]);
    }
}
