//! The programs of a cluster, built out of Kubernetes' published Go modules.
//!
//! `xtask/cluster/go.mod` names them as tools and `go.sum` holds their checksums: the same sources each time. A program
//! is built again only when one of those files or the way of building changes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::{command, go::Go, machine, node::CNI_PLUGINS};
use crate::{process, setup, workspace};

/// The release, as in go.mod.
pub(super) const KUBERNETES: &str = "1.36.1";
/// How often a long step says that it is still there.
const PROGRESS: Duration = Duration::from_secs(15);

/// A program to build.
struct Target {
    name: &'static str,
    package: &'static str,
    kind: Kind,
    /// How long it takes on two cores when what the ones before have in common with it is built.
    expected_s: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A program, below `bin`.
    Program,
    /// A package's tests as a program.
    Tests,
}

const TARGETS: &[Target] = &[
    Target::program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 420),
    Target::program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", 180),
    Target::program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", 10),
    Target::program("kubelet", "k8s.io/kubernetes/cmd/kubelet", 30),
    Target::program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", 11),
    Target::program("kubectl", "k8s.io/kubernetes/cmd/kubectl", 25),
    Target::program("agnhost", "k8s.io/kubernetes/test/images/agnhost", 8),
    Target { name: "e2e.test", package: "k8s.io/kubernetes/test/e2e", kind: Kind::Tests, expected_s: 85 },
];

impl Target {
    const fn program(name: &'static str, package: &'static str, expected_s: u32) -> Self {
        Self { name, package, kind: Kind::Program, expected_s }
    }

    fn output(&self) -> PathBuf {
        match self.kind {
            Kind::Program => machine::binary(self.name),
            Kind::Tests => machine::root().join(self.name),
        }
    }

    fn stamp(&self) -> PathBuf {
        machine::root().join("stamps").join(self.name)
    }
}

/// Programs that come with the system, each with Debian's package.
const SYSTEM: &[(&str, &str)] = &[
    ("etcd", "etcd-server"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("openssl", "openssl"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
];
/// The CNI plugins that pods' interfaces are made with, and Debian's package.
const PLUGINS: (&[&str], &str) =
    (&["ptp", "bridge", "host-local", "loopback", "portmap"], "containernetworking-plugins");

/// Gets everything that a cluster is made of: Debian's packages, and the programs built here.
///
/// # Errors
///
/// Something is missing that this user may not install, with the command to copy; or a program does not build.
pub(super) fn all() -> anyhow::Result<()> {
    system()?;
    programs()
}

/// Finds the programs that come with the system; as root on Debian, installs them.
fn system() -> anyhow::Result<()> {
    setup::install_missing("the cluster", &missing_packages())?;
    match missing_packages()[..] {
        [] => Ok(()),
        ref packages => bail!("still missing, though its package is installed: what {} bring", packages.join(", ")),
    }
}

fn missing_packages() -> Vec<&'static str> {
    let programs = SYSTEM.iter().filter(|(program, _)| command::find(program).is_none()).map(|(_, package)| *package);
    let (plugins, package) = PLUGINS;
    let has_plugins = plugins.iter().all(|plugin| process::is_program(&Path::new(CNI_PLUGINS).join(plugin)));
    let mut packages: Vec<_> = programs.chain((!has_plugins).then_some(package)).collect();
    packages.dedup();
    packages
}

/// Builds the programs that are not as go.mod says.
fn programs() -> anyhow::Result<()> {
    let stale: Vec<_> = TARGETS.iter().map(|target| Ok((target, stamp(target)?))).collect::<anyhow::Result<_>>()?;
    let stale: Vec<_> = stale.into_iter().filter(|(target, stamp)| !is_built(target, stamp)).collect();
    if stale.is_empty() {
        return Ok(());
    }
    let go = Go::find()?;
    for folder in ["bin", "stamps"] {
        let folder = machine::root().join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let begin = Instant::now();
    for (number, (target, stamp)) in (1..).zip(&stale) {
        eprintln!(
            "building {} ({number} of {}; {} after {} s): up to {} s on two cores, less with Go's cache warm",
            target.name,
            stale.len(),
            if number == 1 { "begun" } else { "went on" },
            begin.elapsed().as_secs(),
            target.expected_s,
        );
        build(&go, target).with_context(|| format!("build {}", target.name))?;
        fs::write(target.stamp(), stamp).with_context(|| format!("write {}", target.stamp().display()))?;
    }
    Ok(())
}

fn is_built(target: &Target, stamp: &str) -> bool {
    process::is_program(&target.output()) && fs::read_to_string(target.stamp()).is_ok_and(|found| found == stamp)
}

/// What a program was built from, and how.
fn stamp(target: &Target) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = module().join(file);
        hash.update(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    hash.update(arguments(target).join(" "));
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Distinguishes the programs built now from those before, for what is made of them.
///
/// # Errors
///
/// go.mod cannot be read.
pub(super) fn stamp_of(name: &str) -> anyhow::Result<String> {
    let target = TARGETS.iter().find(|target| target.name == name).with_context(|| format!("no program {name}"))?;
    stamp(target)
}

fn arguments(target: &Target) -> Vec<String> {
    let version = "k8s.io/component-base/version";
    let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
    // Without these a program calls itself v0.0.0, which kubelet and API server compare.
    let ldflags = format!(
        "-s -w -X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor={minor} \
         -X k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES}"
    );
    let verb: &[&str] = match target.kind {
        Kind::Program => &["build"],
        Kind::Tests => &["test", "-c", "-vet=off"],
    };
    let flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags"];
    verb.iter().chain(&flags).map(|flag| (*flag).to_owned()).chain([ldflags]).collect()
}

fn build(go: &Go, target: &Target) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut command = go.command();
    command.args(arguments(target)).arg("-o").arg(target.output()).arg(target.package);
    let mut child = command.spawn().with_context(|| format!("start {}", go.path.display()))?;
    let mut told = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for go")? {
            break status;
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("  {}: {} s of about {}", target.name, begin.elapsed().as_secs(), target.expected_s);
        }
        thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        bail!("`{}` in {} ended with {status}", process::shown(&command), workspace::relative(&module()).display());
    }
    eprintln!("  {}: built in {:.1} s", target.name, begin.elapsed().as_secs_f64());
    Ok(())
}

/// The folder of go.mod.
pub(super) fn module() -> PathBuf {
    workspace::root().join("xtask/cluster")
}

/// The folder of a module's sources in Go's cache, fetched if it is not there; `sum` is its checksum as in a go.sum.
///
/// # Errors
///
/// There is no Go, the module cannot be fetched, or it is another one.
pub(super) fn module_sources(name: &str, version: &str, sum: &str) -> anyhow::Result<PathBuf> {
    let mut command = Go::find()?.command();
    // Outside of our module, whose versions are not to follow this one.
    command.current_dir("/").args(["mod", "download", "-json"]).arg(format!("{name}@{version}"));
    let answer = command::quiet(command.stdin(Stdio::null())).with_context(|| format!("fetch {name} {version}"))?;
    let answer: serde_json::Value = serde_json::from_str(&answer).context("read what go prints")?;
    let field = |name: &str| answer.get(name).and_then(serde_json::Value::as_str).with_context(|| format!("no {name}"));
    let found = field("Sum")?;
    if found != sum {
        bail!("{name} {version} has the checksum {found}, expected {sum}: it is not what was published");
    }
    Ok(field("Dir")?.into())
}

/// The folder of Kubernetes' sources, as go.mod names them.
///
/// # Errors
///
/// There is no Go, or it cannot fetch them.
pub(super) fn kubernetes_sources() -> anyhow::Result<PathBuf> {
    let mut command = Go::find()?.command();
    command.args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]).stdin(Stdio::null());
    Ok(command::quiet(&mut command)?.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_in_go_mod() {
        let text = fs::read_to_string(module().join("go.mod")).expect("go.mod is committed");
        assert!(text.contains(&format!("k8s.io/kubernetes v{KUBERNETES}")));
        let tools: Vec<_> = TARGETS.iter().map(|target| target.package).collect();
        for tool in tools {
            assert!(text.lines().any(|line| line.trim() == tool), "{tool} is no tool in go.mod");
        }
    }

    #[test]
    fn a_stamp_differs_between_programs_and_tests() {
        let stamp = |name| stamp_of(name).expect("go.mod is committed");
        assert_eq!(stamp("kubelet"), stamp("kubelet"));
        assert_ne!(stamp("kubelet"), stamp("e2e.test"));
    }
}
