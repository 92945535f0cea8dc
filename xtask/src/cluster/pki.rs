//! Keys and certificates: one authority, certificates for client and server alike, and a kubeconfig for each client.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::{
    command::{self, quiet},
    files, forward,
    machine::{self, API_PORT, API_SERVICE, CONTROL_PLANE, Machine, Node, pki},
};

/// The names under which the API server is called.
const API_NAMES: &[&str] = &[
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];

/// Clients of the control plane: the file's name, the user and its group.
const CLIENTS: &[(&str, &str, &str)] = &[
    ("admin", "admin", "system:masters"),
    ("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
    ("kube-controller-manager", "system:kube-controller-manager", "npolicy-cluster"),
    ("kube-scheduler", "system:kube-scheduler", "npolicy-cluster"),
    ("kube-proxy", "system:kube-proxy", "npolicy-cluster"),
];

/// Makes every key, certificate and kubeconfig but the administrator's; what is there stays.
///
/// # Errors
///
/// openssl refuses, or a file cannot be written.
pub(super) fn make() -> anyhow::Result<()> {
    fs::create_dir_all(pki()).with_context(|| format!("make {}", pki().display()))?;
    authority()?;
    service_account_key()?;
    let names = API_NAMES.iter().map(|name| format!("DNS:{name}"));
    let addresses = ["127.0.0.1", "::1"].into_iter().chain(API_SERVICE).chain(CONTROL_PLANE);
    let names: Vec<_> = names.chain(addresses.map(|address| format!("IP:{address}"))).collect();
    certificate("apiserver", "kube-apiserver", "kubernetes", &names)?;
    for (file, user, group) in CLIENTS {
        certificate(file, user, group, &[])?;
    }
    for node in Node::ALL {
        let [v4, v6] = node.addresses();
        let names = [format!("DNS:{node}"), format!("IP:{v4}"), format!("IP:{v6}")];
        certificate(node.name(), &format!("system:node:{node}"), "system:nodes", &names)?;
    }
    let [address, _] = CONTROL_PLANE;
    let server = format!("https://{address}:{API_PORT}");
    for client in clients() {
        files::replace(&kubeconfig(client), &files::kubeconfig(&server, &pki(), client))?;
    }
    Ok(())
}

fn clients() -> impl Iterator<Item = &'static str> {
    ["kube-controller-manager", "kube-scheduler", "kube-proxy"].into_iter().chain(Node::ALL.map(Node::name))
}

/// Writes the administrator's kubeconfig, which leads through the forwarder.
///
/// # Errors
///
/// The forwarder does not run, or the file cannot be written.
pub(super) fn write_admin_kubeconfig() -> anyhow::Result<()> {
    let server = format!("https://127.0.0.1:{}", forward::port()?);
    files::replace(&machine::kubeconfig(), &files::kubeconfig(&server, &pki(), "admin"))
}

/// The kubeconfig of a part of the cluster, which connects inside of it.
pub(super) fn kubeconfig(client: &str) -> std::path::PathBuf {
    machine::run().join(format!("{client}.kubeconfig"))
}

fn authority() -> anyhow::Result<()> {
    let (key, certificate) = (pki().join("ca.key"), pki().join("ca.crt"));
    if certificate.exists() {
        return Ok(());
    }
    let mut openssl = command::command("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"]);
    openssl.arg("-keyout").arg(key).arg("-out").arg(certificate).args(["-subj", "/CN=npolicy-cluster"]);
    quiet(&mut openssl).context("make the certificate authority")?;
    Ok(())
}

/// The key that signs the tokens of service accounts.
fn service_account_key() -> anyhow::Result<()> {
    let (key, public) = (pki().join("sa.key"), pki().join("sa.pub"));
    if public.exists() {
        return Ok(());
    }
    quiet(command::command("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"))?;
    quiet(command::command("openssl").args(["rsa", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public))?;
    Ok(())
}

fn certificate(file: &str, user: &str, group: &str, names: &[String]) -> anyhow::Result<()> {
    let path = |ending: &str| pki().join(format!("{file}.{ending}"));
    if path("crt").exists() {
        return Ok(());
    }
    let mut request = command::command("openssl");
    request.args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    request.arg("-keyout").arg(path("key")).arg("-out").arg(path("csr"));
    request.args(["-subj", &format!("/O={group}/CN={user}")]);
    quiet(&mut request).with_context(|| format!("make the key of {user}"))?;
    fs::write(path("ext"), extensions(names)).with_context(|| format!("write the extensions for {user}"))?;
    let written = path("new");
    let mut sign = command::command("openssl");
    sign.args(["x509", "-req", "-days", "3650", "-CAcreateserial", "-in"]).arg(path("csr"));
    sign.arg("-CA").arg(pki().join("ca.crt")).arg("-CAkey").arg(pki().join("ca.key"));
    sign.arg("-extfile").arg(path("ext")).arg("-out").arg(&written);
    quiet(&mut sign).with_context(|| format!("sign the certificate of {user}"))?;
    rename(&written, &path("crt"))
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
}

fn extensions(names: &[String]) -> String {
    let mut text = "keyUsage=digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n".to_owned();
    if !names.is_empty() {
        text.push_str(&format!("subjectAltName={}\n", names.join(",")));
    }
    text
}

/// The files by which `machine` serves.
pub(super) fn serving(machine: Machine) -> (std::path::PathBuf, std::path::PathBuf) {
    let name = match machine {
        Machine::ControlPlane => "apiserver",
        Machine::Node(node) => node.name(),
    };
    (pki().join(format!("{name}.crt")), pki().join(format!("{name}.key")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_no_names_and_a_server_has_all() {
        assert!(!extensions(&[]).contains("subjectAltName"));
        let names = ["DNS:n1".to_owned(), "IP:fd31::11".to_owned()];
        assert!(extensions(&names).ends_with("subjectAltName=DNS:n1,IP:fd31::11\n"));
    }
}
