//! The control plane: etcd, the API server, the controller manager and the scheduler.

use std::{fs, time::Duration};

use anyhow::Context as _;

use super::{
    Options, cgroup, command, daemon, forward,
    machine::{API_PORT, CONTROL_PLANE, Machine, POD_CIDRS, SERVICE_CIDRS, pki},
    network, pki,
};

const CP: Machine = Machine::ControlPlane;
const ETCD_PORT: u16 = 2379;
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// Starts what does not run, and waits until the API server is ready.
///
/// # Errors
///
/// A program does not start or the API server does not become ready; with the end of its log.
pub(super) fn start(options: &Options) -> anyhow::Result<()> {
    fs::create_dir_all(CP.folder()).with_context(|| format!("make {}", CP.folder().display()))?;
    cgroup::make(CP)?;
    forward::start()?;
    start_etcd()?;
    pki::write_admin_kubeconfig()?;
    daemon::wait_for((CP, "etcd"), "etcd", Duration::from_secs(60), || network::expect_listener(CP, ETCD_PORT))?;
    start_api_server(options)?;
    let ready = || command::quiet(command::kubectl().args(["get", "--raw=/readyz", "--request-timeout=5s"]));
    daemon::wait_for((CP, "kube-apiserver"), "the API server", Duration::from_secs(180), ready)?;
    start_controller_manager(options)?;
    let mut scheduler = command::in_network_of(CP, "kube-scheduler");
    scheduler.arg(flag("--kubeconfig", pki::kubeconfig("kube-scheduler"))).arg("--leader-elect=false");
    daemon::start(CP, "kube-scheduler", &scheduler)
}

fn start_etcd() -> anyhow::Result<()> {
    let mut etcd = command::in_network_of(CP, "etcd");
    etcd.arg("--data-dir").arg(CP.folder().join("etcd"));
    etcd.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
    etcd.args(["--listen-peer-urls", ETCD_PEERS, "--initial-advertise-peer-urls", ETCD_PEERS]);
    // The data goes with the cluster: nothing is worth waiting for the disk.
    etcd.args(["--initial-cluster", &format!("default={ETCD_PEERS}"), "--unsafe-no-fsync"]);
    // As kubeadm sets it: without it the API server has no bookmarks for kinds of which nothing changes.
    etcd.arg("--experimental-watch-progress-notify-interval=5s");
    daemon::start(CP, "etcd", &etcd)
}

fn start_api_server(options: &Options) -> anyhow::Result<()> {
    let (certificate, key) = pki::serving(CP);
    let mut server = command::in_network_of(CP, "kube-apiserver");
    server.arg(format!("--etcd-servers={ETCD}"));
    server.arg(format!("--advertise-address={}", options.first.of(CONTROL_PLANE)));
    server.arg(format!("--secure-port={API_PORT}"));
    server.arg(format!("--service-cluster-ip-range={}", options.first.ordered(SERVICE_CIDRS)));
    server.arg(flag("--tls-cert-file", certificate)).arg(flag("--tls-private-key-file", key));
    for (name, file) in [
        ("--client-ca-file", "ca.crt"),
        ("--kubelet-certificate-authority", "ca.crt"),
        ("--kubelet-client-certificate", "apiserver-kubelet.crt"),
        ("--kubelet-client-key", "apiserver-kubelet.key"),
        ("--service-account-key-file", "sa.pub"),
        ("--service-account-signing-key-file", "sa.key"),
    ] {
        server.arg(flag(name, pki().join(file)));
    }
    server.args([
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
    ]);
    daemon::start(CP, "kube-apiserver", &server)
}

fn start_controller_manager(options: &Options) -> anyhow::Result<()> {
    let mut manager = command::in_network_of(CP, "kube-controller-manager");
    manager.arg(flag("--kubeconfig", pki::kubeconfig("kube-controller-manager")));
    for (name, file) in [
        ("--root-ca-file", "ca.crt"),
        ("--cluster-signing-cert-file", "ca.crt"),
        ("--cluster-signing-key-file", "ca.key"),
        ("--service-account-private-key-file", "sa.key"),
    ] {
        manager.arg(flag(name, pki().join(file)));
    }
    manager.arg(format!("--cluster-cidr={}", options.first.ordered(POD_CIDRS)));
    manager.arg(format!("--service-cluster-ip-range={}", options.first.ordered(SERVICE_CIDRS)));
    manager.arg(flag("--flex-volume-plugin-dir", CP.folder().join("volume-plugins")));
    manager.args([
        "--allocate-node-cidrs=true",
        "--node-cidr-mask-size-ipv4=24",
        "--node-cidr-mask-size-ipv6=64",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
    ]);
    daemon::start(CP, "kube-controller-manager", &manager)
}

fn flag(name: &str, path: std::path::PathBuf) -> String {
    format!("{name}={}", path.display())
}
