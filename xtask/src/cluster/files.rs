//! The configuration files, rendered from values.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::json;

use super::{
    Cni, Options, cgroup,
    images::PAUSE,
    machine::{Family, Machine, Node, POD_CIDRS, pki},
    pki,
};

/// Where containerd listens, as a node sees it.
pub(super) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Replaces `path` by `text` if it differs: kube-proxy ends when its file is touched.
///
/// # Errors
///
/// It cannot be written.
pub(super) fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    let written = path.with_extension("new");
    fs::write(&written, text).with_context(|| format!("write {}", written.display()))?;
    fs::rename(&written, path).with_context(|| format!("replace {}", path.display()))
}

/// A kubeconfig of `client`, whose certificate is in `pki`.
pub(super) fn kubeconfig(server: &str, pki: &Path, client: &str) -> String {
    let file = |name: String| pki.join(name).display().to_string();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "npolicy",
            "cluster": { "server": server, "certificate-authority": file("ca.crt".to_owned()) },
        }],
        "users": [{
            "name": client,
            "user": {
                "client-certificate": file(format!("{client}.crt")),
                "client-key": file(format!("{client}.key")),
            },
        }],
        "contexts": [{ "name": "npolicy", "context": { "cluster": "npolicy", "user": client } }],
        "current-context": "npolicy",
    });
    pretty(&config)
}

/// JSON is YAML too.
fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// The kubelet's configuration.
pub(super) fn kubelet(node: Node) -> String {
    let (certificate, key) = pki::serving(Machine::Node(node));
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // It refuses version 1 hierarchies unless told.
        "failCgroupV1": false,
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup::kubelet_root(Machine::Node(node)),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki().join("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": certificate,
        "tlsPrivateKeyFile": key,
        "clusterDomain": "cluster.local",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // The machine's disk and memory are shared: pods go only when it is really short.
        "evictionHard": {
            "memory.available": "200Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        // No image can be fetched again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
    });
    pretty(&config)
}

/// containerd's configuration.
pub(super) fn containerd() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without CAP_SYS_RESOURCE a container's score may only be raised; runc says nothing useful when it is refused.
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"#
    )
}

/// kube-proxy's configuration.
pub(super) fn kube_proxy(node: Node, options: &Options) -> String {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": options.proxy.to_string(),
        "hostnameOverride": node.name(),
        "clusterCIDR": options.first.ordered(POD_CIDRS),
        "clientConnection": { "kubeconfig": pki::kubeconfig("kube-proxy") },
        // The size of the connection table is the whole machine's.
        "conntrack": { "maxPerCore": 0 },
    });
    pretty(&config)
}

/// The list of CNI plugins that give a pod its interface, with addresses out of `cidrs`.
pub(super) fn cni(kind: Cni, cidrs: &[String]) -> String {
    let mut interface = match kind {
        Cni::Ptp => json!({ "type": "ptp", "ipMasq": false, "mtu": 1500 }),
        Cni::Bridge => json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1500,
        }),
    };
    interface["ipam"] = json!({
        "type": "host-local",
        // Below /run: a node that starts anew has given no address to anybody.
        "dataDir": "/run/cni-ipam",
        "ranges": cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect::<Vec<_>>(),
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
    });
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "npolicy-cluster",
        "plugins": [interface, { "type": "portmap", "capabilities": { "portMappings": true } }],
    });
    pretty(&list)
}

/// A node's own configuration files.
pub(super) fn of_node(node: Node, name: &str) -> PathBuf {
    Machine::Node(node).folder().join(name)
}

/// The addresses that the kubelet reports, the first family's first.
pub(super) fn node_addresses(node: Node, first: Family) -> String {
    first.ordered(node.addresses())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Proxy, machine::Family},
        *,
    };

    fn json(text: &str) -> serde_json::Value {
        serde_json::from_str(text).expect("JSON was written")
    }

    #[test]
    fn kube_proxy_gets_mode_and_order_of_families() {
        let options = Options { cni: Cni::Ptp, first: Family::V6, proxy: Proxy::Iptables };
        let config = json(&kube_proxy(Node::N2, &options));
        assert_eq!(config["mode"], "iptables");
        assert_eq!(config["hostnameOverride"], "n2");
        assert_eq!(config["clusterCIDR"], "fd64::/56,10.64.0.0/16");
    }

    #[test]
    fn both_kinds_of_interface_take_every_block_of_addresses() {
        let cidrs = ["10.64.0.0/24".to_owned(), "fd64::/64".to_owned()];
        for (kind, name) in [(Cni::Ptp, "ptp"), (Cni::Bridge, "bridge")] {
            let list = json(&cni(kind, &cidrs));
            assert_eq!(list["plugins"][0]["type"], name);
            assert_eq!(list["plugins"][0]["ipam"]["ranges"][1][0]["subnet"], "fd64::/64");
            assert_eq!(list["plugins"].as_array().map(Vec::len), Some(2));
        }
    }

    #[test]
    fn each_kubelet_has_its_own_cgroup() {
        assert_eq!(json(&kubelet(Node::N1))["cgroupRoot"], "/npolicy-cluster/n1");
        assert_eq!(json(&kubelet(Node::N2))["cgroupRoot"], "/npolicy-cluster/n2");
    }

    #[test]
    fn a_kubeconfig_names_server_and_client() {
        let config = json(&kubeconfig("https://127.0.0.1:1234", Path::new("/pki"), "admin"));
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://127.0.0.1:1234");
        assert_eq!(config["users"][0]["user"]["client-key"], "/pki/admin.key");
        assert_eq!(config["current-context"], config["contexts"][0]["name"]);
    }
}
