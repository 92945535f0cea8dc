//! Rules for the crates we build on.

use std::collections::BTreeMap;

use super::{Finding, tree::Tree};
use crate::{process, workspace};

/// Crates that may not come in, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("aws-lc-rs", "a second crypto provider, needs cmake: TLS is rustls with ring"),
    ("aws-lc-sys", "a second crypto provider, needs cmake: TLS is rustls with ring"),
    ("native-tls", "TLS is rustls with ring"),
    ("openssl-sys", "ties the binary to the machine's library: TLS is rustls with ring"),
    ("serde_yaml", "no longer maintained: YAML is serde-saphyr"),
];

/// Crates of which others force more than one version, and who they are.
const SEVERAL: &[(&str, &str)] = &[
    ("base64", "0.22: k8s-openapi and tower-http; 0.23: kube and serde-saphyr"),
    ("getrandom", "0.2: ring; 0.3: ahash; 0.4: tempfile"),
    ("hashbrown", "0.16: kube-runtime; 0.17: indexmap, aya and object"),
    ("syn", "version 2: darling, num-derive and tracing-attributes; 3: the derives of serde, clap and tokio"),
];

/// Cargo.lock is there, says what the manifests say, and holds nothing forbidden.
pub(super) fn lock_has_no_forbidden_crate(tree: &Tree) -> Vec<Finding> {
    let Some(lock) = tree.text("Cargo.lock") else {
        return vec![Finding::new("Cargo.lock", "is missing; it is committed with the sources")];
    };
    let mut findings = forbidden(lock);
    let mut metadata = workspace::cargo();
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    if process::answer(&mut metadata).is_none() {
        findings.push(Finding::new(
            "Cargo.lock",
            format!("`{}` does not end well; commit the new lock", process::shown(&metadata)),
        ));
    }
    findings
}

fn forbidden(lock: &str) -> Vec<Finding> {
    let packages = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    let findings = packages.filter_map(|package| {
        let (name, reason) = FORBIDDEN.iter().find(|(name, _)| *name == package)?;
        Some(Finding::new("Cargo.lock", format!("crate {name} may not come in: {reason}")))
    });
    findings.collect()
}

/// No crate is built in two versions, but where others force it.
pub(super) fn one_copy_of_a_crate(_: &Tree) -> Vec<Finding> {
    let mut cargo = workspace::cargo();
    cargo.args(["tree", "--locked", "--workspace", "--duplicates", "--edges", "normal,build"]);
    cargo.args(["--depth", "0", "--prefix", "none"]);
    match process::answer(&mut cargo) {
        Some(tree) => several(&tree),
        None => vec![Finding::new("Cargo.lock", format!("`{}` does not end well", process::shown(&cargo)))],
    }
}

/// `tree` has one `name vVERSION` a line, more than once for one version built with several sets of features.
fn several(tree: &str) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
        let known = versions.entry(name).or_default();
        if !known.contains(&version) {
            known.push(version);
        }
    }
    versions.retain(|name, versions| versions.len() > 1 && SEVERAL.iter().all(|(forced, _)| forced != name));
    let finding = |(name, versions): (&str, Vec<&str>)| {
        Finding::new(
            "Cargo.lock",
            format!("crate {name} is built in {} versions: {}", versions.len(), versions.join(", ")),
        )
    };
    versions.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_crate_is_found_by_its_whole_name() {
        let lock = "[[package]]\nname = \"openssl-sys\"\n\n[[package]]\nname = \"nix-like\"\n";
        assert_eq!(forbidden(lock).len(), 1);
    }

    #[test]
    fn two_versions_are_found_and_two_builds_of_one_are_not() {
        let tree = "hex v1.0.0\nhex v2.0.0 (*)\n\nlog v0.4.0\nlog v0.4.0\n";
        assert_eq!(several(tree), [Finding::new("Cargo.lock", "crate hex is built in 2 versions: v1.0.0, v2.0.0")]);
    }
}
