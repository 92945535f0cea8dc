//! What runs, and with which options: a file that `up` writes, believed only while the processes are there.

use std::{fmt, fs, fs::File, path::PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{
    cgroup, daemon,
    machine::{self, Family, Machine},
};

/// What gives a pod its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cni {
    /// A link of its own into the node, and a route.
    Ptp,
    /// A port of a bridge.
    Bridge,
}

/// How kube-proxy translates the addresses of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Proxy {
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

/// How a cluster is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    /// What gives a pod its interface
    #[arg(long, default_value = "ptp")]
    pub(crate) cni: Cni,
    /// The first family of addresses of pods, Services and nodes; both are always there
    #[arg(long, default_value = "4")]
    pub(crate) first: Family,
    /// How kube-proxy translates the addresses of Services
    #[arg(long, default_value = "nftables")]
    pub(crate) proxy: Proxy,
}

impl Default for Options {
    fn default() -> Self {
        Self { cni: Cni::Ptp, first: Family::V4, proxy: Proxy::Nftables }
    }
}

fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word(*self))
    }
}

/// As on the command line.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cni, first, proxy } = *self;
        write!(f, "--cni {} --first {} --proxy {proxy}", word(cni), word(first))
    }
}

/// A cluster that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    /// The administrator's way in, from the machine's own network namespace.
    pub(crate) kubeconfig: PathBuf,
    /// What gives a pod its interface.
    pub(crate) cni: Cni,
    /// The first family of addresses.
    pub(crate) first: Family,
    /// How kube-proxy translates the addresses of Services.
    pub(crate) proxy: Proxy,
}

impl Running {
    /// How it was made.
    pub(crate) fn options(&self) -> Options {
        let Self { kubeconfig: _, cni, first, proxy } = *self;
        Options { cni, first, proxy }
    }
}

/// What is known of the cluster of this folder.
pub(crate) struct State;

impl State {
    /// The cluster of this folder, if every program of it runs.
    pub(crate) fn running() -> Option<Running> {
        let Options { cni, first, proxy } = read()?;
        daemon::all_run().then(|| Running { kubeconfig: machine::kubeconfig(), cni, first, proxy })
    }
}

/// The options of the cluster that was started last, if `down` did not follow.
pub(super) fn read() -> Option<Options> {
    parse(&fs::read_to_string(file()).ok()?)
}

fn parse(text: &str) -> Option<Options> {
    let value: Value = serde_json::from_str(text).ok()?;
    let field = |name: &str| value.get(name)?.as_str();
    Some(Options {
        cni: Cni::from_str(field("cni")?, false).ok()?,
        first: Family::from_str(field("first")?, false).ok()?,
        proxy: Proxy::from_str(field("proxy")?, false).ok()?,
    })
}

/// Remembers how the cluster is made.
///
/// # Errors
///
/// The file cannot be written.
pub(super) fn write(options: &Options) -> anyhow::Result<()> {
    fs::create_dir_all(machine::run()).with_context(|| format!("make {}", machine::run().display()))?;
    super::files::replace(&file(), &render(options))
}

fn render(&Options { cni, first, proxy }: &Options) -> String {
    format!("{:#}\n", json!({ "cni": word(cni), "first": word(first), "proxy": word(proxy) }))
}

fn file() -> PathBuf {
    machine::run().join("options.json")
}

/// Whether processes of a cluster run here and none of them is ours.
pub(super) fn is_of_another_folder() -> bool {
    let runs = Machine::ALL.iter().any(|&machine| !cgroup::own_processes(machine).is_empty());
    let ours = |machine: Machine| daemon::names(machine).iter().any(|name| daemon::is_running(machine, name));
    runs && !Machine::ALL.into_iter().any(ours)
}

/// One command at a time changes the cluster. Released when dropped.
///
/// # Errors
///
/// The file cannot be locked.
pub(super) fn lock() -> anyhow::Result<File> {
    fs::create_dir_all(machine::root()).with_context(|| format!("make {}", machine::root().display()))?;
    let path = machine::root().join("lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another `cargo xtask cluster`");
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn options_are_told_as_they_are_typed_and_read_as_they_are_written() {
        let options = Options { cni: Cni::Bridge, first: Family::V6, proxy: Proxy::Iptables };
        let shown = options.to_string();
        let typed =
            Cli::try_parse_from(["up"].into_iter().chain(shown.split(' '))).expect("what is shown can be typed");
        assert_eq!(typed.options, options);
        assert_eq!(parse(&render(&options)), Some(options));
    }

    #[test]
    fn without_flags_the_options_are_the_default() {
        assert_eq!(Cli::try_parse_from(["up"]).expect("every flag has a default").options, Options::default());
        assert!(Cli::try_parse_from(["up", "--first", "5"]).is_err());
    }

    #[test]
    fn a_state_that_says_something_else_is_none() {
        assert_eq!(parse(r#"{"cni": "ptp", "first": "4"}"#), None);
        assert_eq!(parse(r#"{"cni": "vlan", "first": "4", "proxy": "nftables"}"#), None);
    }
}
