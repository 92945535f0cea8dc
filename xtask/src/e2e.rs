//! `cargo xtask e2e`: builds the image and the test pods' program, loads both, and tests npolicy on a cluster.
//!
//! ```text
//! image::agent, peer --> archives --> cluster load | kind load --> nodes
//! npolicy, e2e -------------------------------------------------> API server
//! ```

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    cluster,
    image::{self, Content, Image, ImageFile},
    process, workspace,
};

/// What is tested, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The cluster; without it, the one of `cargo xtask cluster`
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of it
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,
    /// Only these parts: a (our scenarios), b (Kubernetes' own suite), c (agents and nodes that come and go), d (drop lines)
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<String>,
    /// All tests of the parts; without it, of those that are much alike one
    #[arg(long)]
    all: bool,
    /// Install nothing: shows which tests can fail
    #[arg(long)]
    without: bool,
    /// Test what is installed, and install nothing
    #[arg(long, conflicts_with = "without")]
    installed: bool,
    /// Only scenarios and upstream's tests with this in their names
    #[arg(long, value_name = "TEXT")]
    focus: Option<String>,
    /// Kubernetes' own test program; without it, the one that `cargo xtask cluster` has built
    #[arg(long, value_name = "FILE")]
    e2e_test: Option<PathBuf>,
    /// How long verdicts may take until they hold
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    settle: u64,
    /// The images are on the nodes already, load none
    #[arg(long)]
    loaded: bool,
}

impl Args {
    /// These parts, or all, of the cluster that runs here.
    pub(crate) fn of_parts(parts: &[&str]) -> Self {
        Self {
            kubeconfig: None,
            context: None,
            only: parts.iter().map(|&part| part.to_owned()).collect(),
            all: false,
            without: false,
            installed: false,
            focus: None,
            e2e_test: None,
            settle: 10,
            loaded: false,
        }
    }
}

/// Name of the test pods' image.
const PEER: &str = "localhost/npolicy-peer:test";

/// Where the tests run.
struct Target {
    kubeconfig: PathBuf,
    means: Means,
}

/// How images get on its nodes.
#[derive(Debug, PartialEq, Eq)]
enum Means {
    /// It is the cluster of `cargo xtask cluster`.
    Own,
    /// By kind, to a cluster of this name.
    Kind(String),
    /// Nobody knows.
    None,
}

/// Builds, loads, tests.
///
/// # Errors
///
/// There is no cluster, something does not build, or a test fails; the table above it says which.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let target = find(args)?;
    let agent = if args.without || args.installed { None } else { Some(image::agent()?) };
    // The whole workspace decides the features, so that what `cargo xtask test` has built serves here too.
    process::run(workspace::cargo().args(["build", "--locked", "--workspace", "--bin", "npolicy", "--bin", "e2e"]))?;
    let archives: Vec<PathBuf> = agent.into_iter().chain([peer()?]).collect();
    if !args.loaded {
        load(&target.means, &archives)?;
    }
    process::run(&mut command(args, &target)).context("end-to-end tests")
}

/// The cluster that is meant.
fn find(args: &Args) -> anyhow::Result<Target> {
    let own = cluster::State::running().map(|running| running.kubeconfig);
    let kubeconfig = match (&args.kubeconfig, own) {
        (None, None) => {
            bail!("no cluster runs here: `cargo xtask cluster up` makes one, or --kubeconfig names another")
        }
        (None, Some(own)) => return Ok(Target { kubeconfig: own, means: Means::Own }),
        (Some(named), Some(own)) if is_same(named, &own) => return Ok(Target { kubeconfig: own, means: Means::Own }),
        (Some(named), _) => named.clone(),
    };
    let text = fs::read_to_string(&kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let means = kind_of(&text, args.context.as_deref()).map_or(Means::None, Means::Kind);
    Ok(Target { kubeconfig, means })
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The name of the kind cluster that a context is of: kind calls it `kind-NAME`.
fn kind_of(kubeconfig: &str, context: Option<&str>) -> Option<String> {
    let current = || kubeconfig.lines().find_map(|line| line.strip_prefix("current-context:")).map(str::trim);
    let context = context.or_else(current)?.trim_matches(['"', '\'']);
    context.strip_prefix("kind-").map(str::to_owned)
}

/// Builds the test pods' program, static, and writes its image: `target/image/npolicy-peer.tar`.
pub(crate) fn peer() -> anyhow::Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.args(["rustc", "--locked", "-p", "npolicy-tests", "--bin", "peer", "--"]);
    // For this program alone: what it is linked of serves the tests too, as it is. Lines of sources would be most of it.
    cargo.args(["-Ctarget-feature=+crt-static", "-Cstrip=debuginfo"]);
    process::run(&mut cargo)?;
    let archive = workspace::root().join("target/image/npolicy-peer.tar");
    let program = workspace::target().join("debug/peer");
    let image = Image {
        names: vec![PEER.to_owned()],
        entrypoint: vec!["/peer".to_owned()],
        files: vec![ImageFile { path: "/peer".to_owned(), content: Content::Host(program) }],
    };
    image.write(&archive)?;
    Ok(archive)
}

fn load(means: &Means, archives: &[PathBuf]) -> anyhow::Result<()> {
    match means {
        Means::Own => cluster::load(archives),
        Means::Kind(name) => {
            for archive in archives {
                process::run(Command::new("kind").args(["load", "image-archive", "--name", name]).arg(archive))?;
            }
            Ok(())
        }
        Means::None => {
            let shown: Vec<String> =
                archives.iter().map(|archive| workspace::relative(archive).display().to_string()).collect();
            bail!("load {} on every node of that cluster, and say so by --loaded", shown.join(" and "))
        }
    }
}

/// The tests' program with its flags.
fn command(args: &Args, target: &Target) -> Command {
    let built = workspace::root().join("target/cluster");
    let debug = workspace::target().join("debug");
    let mut command = Command::new(debug.join("e2e"));
    command.current_dir(workspace::root()).arg("--kubeconfig").arg(&target.kubeconfig);
    command.args(args.context.iter().flat_map(|context| ["--context", context]));
    let kubectl = built.join("bin/kubectl");
    if process::is_program(&kubectl) {
        command.arg("--kubectl").arg(kubectl);
    }
    if !args.without && !args.installed {
        command.arg("--npolicy").arg(debug.join("npolicy"));
        // Nodes of kind have no bpffs.
        command.args(matches!(target.means, Means::Kind(_)).then_some("--install-flag=--mount-bpffs"));
    }
    command.args(["--peer-image", PEER, "--settle", &args.settle.to_string()]);
    let flag = |is_set: bool, name: &'static str| is_set.then_some(name);
    command.args(flag(args.all, "--all")).args(flag(args.without, "--without"));
    command.args(args.only.iter().flat_map(|part| ["--only", part]));
    command.args(args.focus.iter().flat_map(|focus| ["--focus", focus]));
    let upstream = args.e2e_test.clone().or_else(|| Some(built.join("e2e.test")).filter(|it| process::is_program(it)));
    if let Some(upstream) = upstream {
        command.arg("--e2e-test").arg(upstream);
    }
    command.arg("--out").arg(workspace::root().join("target/e2e"));
    if target.means == Means::Own {
        // Nothing between us and a cluster of this machine.
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        let ourselves = env::current_exe().unwrap_or_else(|_| "cargo-xtask".into());
        command.arg("--cluster-command").arg(ourselves).arg("cluster");
    }
    command
}

#[cfg(test)]
mod tests {
    use super::kind_of;

    #[test]
    fn a_context_of_kind_is_known_by_its_name() {
        let kubeconfig = "apiVersion: v1\ncurrent-context: kind-npolicy\nkind: Config\n";
        assert_eq!(kind_of(kubeconfig, None).as_deref(), Some("npolicy"));
        assert_eq!(kind_of(kubeconfig, Some("other")), None);
        assert_eq!(kind_of("current-context: \"kind-a\"\n", None).as_deref(), Some("a"));
        assert_eq!(kind_of("", None), None);
    }
}
