//! `npolicy demo`: a small cluster out of network namespaces, the real agent, and every connection tried.

mod cluster;
mod drops;
mod expected;
mod interrupt;
mod progress;
mod scratch;
mod table;
mod tried;
mod world;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anstyle::Style;
use npolicy_common::{Family, Verdict};
use serde_json::json;

use self::cluster::Cluster;
use self::drops::DropLog;
use self::expected::Expected;
use self::interrupt::Interrupt;
use self::progress::counted;
use self::scratch::Scratch;
use self::table::{Fact, Side};
use self::tried::{Questions, Tried};
use self::world::{Notes, World};
use super::exit;
use crate::model::ObjectKey;
use crate::observe::Format;
use crate::rig::{Layout, Outcome, Pod, PodSettings, Probe, Protocol, SctpMeans, Service, probe_once};
use crate::watch::manifests::Manifests;

/// Flags of `npolicy demo`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo npolicy demo\n  \
    sudo npolicy demo --file ./manifests --hold\n\n\
    Exit code: 0 every connection met the verdict that policy gives, 1 one did not, 2 the flags or the files cannot be \
    used, 3 the machine does not allow it, 130 interrupted.\n\
    The demo keeps to network namespaces of its own, which end with it, however it ends. After `kill -9` a directory \
    npolicy-demo-* stays in the temporary directory; the next demo removes it.")]
pub struct Args {
    /// Manifests to use instead of the demo's own, a file or a directory of .yaml, .yml and .json files: Namespaces, Pods,
    /// NetworkPolicies and ClusterNetworkPolicies. Pods without an address get one; Services are not tried
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Print one JSON object a line for each connection, then one with the totals; without the split policy
    #[arg(long)]
    json: bool,

    /// Keep the cluster up afterwards, under the first policy, and follow its drops until Ctrl-C
    #[arg(long)]
    hold: bool,

    /// Join the pods by a bridge instead of routes
    #[arg(long)]
    bridged: bool,
}

/// The demo's own manifests.
const FILES: [(&str, &str); 3] = [
    ("namespaces.yaml", include_str!("../../demo/namespaces.yaml")),
    ("pods.yaml", include_str!("../../demo/pods.yaml")),
    (POLICY_FILE, POLICY),
];
const POLICY_FILE: &str = "policy.yaml";
const POLICY: &str = include_str!("../../demo/policy.yaml");
/// The policy with its second peer split in two. It has a directory of its own: the others are one cluster's.
const SPLIT_POLICY: &str = include_str!("../../demo/split/policy.yaml");
/// What is tried with the demo's own manifests.
const SERVICES: [Service; 4] = [
    Service { protocol: Protocol::Tcp, port: 8080 },
    Service { protocol: Protocol::Tcp, port: 9090 },
    Service { protocol: Protocol::Udp, port: 8080 },
    Service { protocol: Protocol::Sctp, port: 8080 },
];
/// What is tried with every cluster.
const ECHO: Service = Service { protocol: Protocol::Icmp, port: 0 };

/// How long the demo's first connection is tried: no longer than the kernel waits before it sends a SYN again, so that it
/// leaves one drop line.
const CONNECT_PATIENCE: Duration = Duration::from_millis(900);
/// How long a drop line may take to be written.
const DROP_PATIENCE: Duration = Duration::from_secs(3);

/// Connections that differ and are named one by one.
const DIFFERENT_SHOWN: usize = 10;

const HEADING: Style = Style::new().bold();
const DETAIL: Style = Style::new().dimmed();

/// Runs the command; returns its exit code.
///
/// # Errors
///
/// Where `--file` cannot be read or names no pod. Where the machine does not let the demo do its work, that is said and
/// the code is 3.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let plan = match &args.file {
        Some(path) => Plan::from_manifests(path)?,
        None => Plan::of_demo(),
    };
    show(&args, plan).or_else(|error| {
        anstream::eprintln!("npolicy: {error:#}");
        Ok(exit::UNKNOWN)
    })
}

/// What is to be made and tried.
struct Plan {
    world: World,
    pods: Vec<PodSettings>,
    services: Vec<Service>,
    notes: Notes,
    /// Whether every object could be read.
    is_certain: bool,
}

impl Plan {
    fn of_demo() -> Self {
        let world = World::new(FILES);
        let (pods, notes) = world.pods();
        Self { world, pods, services: SERVICES.into(), notes, is_certain: true }
    }

    fn from_manifests(path: &Path) -> anyhow::Result<Self> {
        let manifests = Manifests::read(&[path.to_owned()])?;
        let mut notes: Notes = manifests.diagnostics().iter().map(ToString::to_string).collect();
        let world = World::read(path)?;
        let (mut pods, more) = world.pods();
        notes.extend(more);
        // The agent would never recognise the others, and the findings name them.
        pods.retain(|pod| manifests.objects().any(|object| object.key() == ObjectKey::Pod(pod.key.clone())));
        if pods.is_empty() {
            let notes: String = notes.iter().map(|note| format!("\n  {note}")).collect();
            anyhow::bail!("{} names no pod to make{notes}", path.display());
        }
        let (services, more) = world.services();
        notes.extend(more);
        Ok(Self { world, pods, services, notes, is_certain: manifests.is_certain() })
    }
}

/// Makes the cluster, tries everything, and says what came of it.
fn show(args: &Args, plan: Plan) -> anyhow::Result<u8> {
    require_root()?;
    let scratch = Scratch::new()?;
    let interrupt = Interrupt::watch(scratch.path().to_owned())?;

    let Plan { mut world, pods, services, mut notes, is_certain } = plan;
    if let [pod] = pods.as_slice() {
        notes.push(format!("{} is the only pod: there is nobody to talk to", pod.key));
    }
    let layout = if args.bridged { Layout::Bridged } else { Layout::Routed };
    let format = if args.json { Format::Json } else { Format::Text };
    let cluster = Cluster::start(pods, &mut world, &services, layout, format, scratch.path())?;
    let mut drops = DropLog::new(cluster::drop_log(scratch.path()));

    let questions = Questions::between_pods(&cluster.node, &[services.as_slice(), &[ECHO]].concat());
    if questions.left_out > 0 {
        notes.push(format!("{} connections are not tried: {} are the most", questions.left_out, questions.len()));
    }
    if !cluster.node.families().contains(&Family::V6) {
        notes.push("IPv6 is not tried: the kernel has none".into());
    }
    if cluster.sctp == SctpMeans::Raw && services.iter().any(|service| service.protocol == Protocol::Sctp) {
        notes.push("the kernel has no SCTP: its packets are made by hand, over raw sockets".into());
    }
    for note in &notes {
        anstream::eprintln!("note: {note}");
    }
    let verdicts = questions.verdicts(Expected::read(cluster.manifests())?)?;

    let mut out = anstream::stdout().lock();
    let mut all_as_expected;
    if args.json {
        let tried = try_all("trying every connection", &cluster, &questions, &verdicts)?;
        all_as_expected = print_json(&mut out, &tried, &notes)?;
    } else {
        show_denial(&mut out, &cluster, &questions, &verdicts, &mut drops)?;
        let before = try_all("trying every connection", &cluster, &questions, &verdicts)?;
        let heading = if args.file.is_some() {
            "Every connection"
        } else {
            "Every connection under prod/database-allow-backends"
        };
        writeln!(out, "\n{HEADING}{heading}{HEADING:#}")?;
        table::print_legend(&mut out)?;
        table::print_mark(&mut out, "observed is not what policy says")?;
        let side = |title, fact| Side { title, tried: &before, fact };
        table::print(&mut out, &side("expected", Fact::Expected), &side("observed", Fact::Observed))?;
        all_as_expected = print_totals(&mut out, &before)?;
        if !is_certain {
            writeln!(out, "  what could not be read (the errors above) is neither enforced nor expected")?;
        }
        if args.file.is_none() {
            all_as_expected &= show_split(&mut out, &cluster, &mut world, &questions, &before)?;
        }
    }
    out.flush()?;
    if args.hold {
        // Where the split policy was shown, it is the one in force.
        if args.file.is_none() && !args.json {
            world.replace(POLICY_FILE, POLICY);
            cluster.rewrite(&world)?;
        }
        // Before it is said: whoever reads it may send the signal at once.
        interrupt.answer_from_now_on();
        if !args.json {
            let in_force = if args.file.is_some() { "" } else { ", under the first policy again" };
            writeln!(out, "\n{HEADING}The cluster stays up until Ctrl-C{HEADING:#}{in_force}")?;
            print_ways_in(&mut out, &cluster, &services, questions.instructive_accept(&verdicts))?;
            writeln!(out, "Drops:")?;
            out.flush()?;
        }
        hold(&mut out, &cluster, &mut drops, &interrupt)?;
    }
    Ok(if all_as_expected { exit::OK } else { exit::DENIED })
}

/// The first line of the error says what is needed, and the command to copy.
fn require_root() -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let program = std::env::current_exe().map_or_else(|_| "npolicy".into(), |path| path.display().to_string());
    let args = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    anyhow::bail!("the demo makes network namespaces and loads BPF programs, which takes root: sudo {program} {args}")
}

fn try_all(text: &str, cluster: &Cluster, questions: &Questions, verdicts: &[Verdict]) -> anyhow::Result<Vec<Tried>> {
    counted(text, questions.len(), |bar| Ok(questions.try_all(verdicts, cluster.sctp, || bar.inc(1))?))
}

/// Makes one connection that policy denies, and shows the line it leaves in the drop log.
fn show_denial(
    out: &mut impl Write,
    cluster: &Cluster,
    questions: &Questions,
    verdicts: &[Verdict],
    drops: &mut DropLog,
) -> anyhow::Result<()> {
    let Some((from, to, probe)) = questions.instructive_denial(verdicts) else { return Ok(()) };
    let outcome = probe_once(from, probe, CONNECT_PATIENCE, cluster.sctp)?;
    let said = match outcome {
        Outcome::Accept => "an answer came, though policy denies it",
        Outcome::Deny => "no answer",
        Outcome::Refused => "refused, by somebody other than policy",
    };
    writeln!(out, "{HEADING}One connection{HEADING:#}\n  {} to {} ({probe}): {said}", from.key, to.key)?;
    let (source, destination) = (format!(" {} ", from.key), format!(" {} {}", to.key, probe.destination()));
    let line = drops.wait_for(DROP_PATIENCE, |line| line.contains(&source) && line.contains(&destination))?;
    match line {
        Some(line) => writeln!(out, "  {DETAIL}{line}{DETAIL:#}")?,
        None => writeln!(out, "  its line did not appear in the drop log within {DROP_PATIENCE:?}")?,
    }
    Ok(())
}

/// Splits the policy's second peer under the running agent, tries everything again, and shows what that opened.
fn show_split(
    out: &mut impl Write,
    cluster: &Cluster,
    world: &mut World,
    questions: &Questions,
    before: &[Tried],
) -> anyhow::Result<bool> {
    world.replace(POLICY_FILE, SPLIT_POLICY);
    cluster.rewrite(world)?;
    let verdicts = questions.verdicts(Expected::read(cluster.manifests())?)?;
    let after = try_all("trying every connection with the peer split in two", cluster, questions, &verdicts)?;

    writeln!(out, "\n{HEADING}The trap: one dash more, and the second peer is two{HEADING:#}")?;
    for line in [
        "    - namespaceSelector: {matchLabels: {env: dev}}",
        "-     podSelector: {matchLabels: {app: backend}}",
        "+   - podSelector: {matchLabels: {app: backend}}",
    ] {
        writeln!(out, "  {DETAIL}{line}{DETAIL:#}")?;
    }
    table::print_mark(out, "changed by the dash")?;
    let side = |title, tried| Side { title, tried, fact: Fact::Observed };
    table::print(out, &side("before", before), &side("after", &after))?;
    for (_, after) in before.iter().zip(&after).filter(|(before, after)| before.observed != after.observed) {
        let change = if after.observed == Outcome::Accept { "opened" } else { "closed" };
        writeln!(out, "  {change}: {}", after.question())?;
    }
    print_totals(out, &after)
}

/// Counts, and names what differs; returns whether nothing does.
fn print_totals(out: &mut impl Write, tried: &[Tried]) -> anyhow::Result<bool> {
    let different: Vec<_> = tried.iter().filter(|tried| !tried.is_as_expected()).collect();
    for tried in different.iter().take(DIFFERENT_SHOWN) {
        let Tried { expected, observed, .. } = tried;
        writeln!(out, "  different: {}: expected {expected:?}, observed {observed}", tried.question())?;
    }
    if different.len() > DIFFERENT_SHOWN {
        writeln!(out, "  and {} more that differ", different.len() - DIFFERENT_SHOWN)?;
    }
    writeln!(out, "  {} connections tried, {} as expected", tried.len(), tried.len() - different.len())?;
    Ok(different.is_empty())
}

/// One object a connection, then the totals; returns whether all is as expected.
fn print_json(out: &mut impl Write, tried: &[Tried], notes: &[String]) -> anyhow::Result<bool> {
    for tried in tried {
        writeln!(out, "{}", tried.to_json()?)?;
    }
    let as_expected = tried.iter().filter(|tried| tried.is_as_expected()).count();
    let different = tried.len() - as_expected;
    let totals = json!({"probes": tried.len(), "as_expected": as_expected, "different": different, "notes": notes});
    writeln!(out, "{totals}")?;
    Ok(different == 0)
}

/// Says how to look into the cluster: what listens, how to run something in a pod, and a connection to copy.
fn print_ways_in(
    out: &mut impl Write,
    cluster: &Cluster,
    services: &[Service],
    example: Option<(&Pod, &Pod, Probe)>,
) -> anyhow::Result<()> {
    let served: Vec<_> = services.iter().map(|Service { protocol, port }| format!("{protocol} {port}")).collect();
    writeln!(out, "  every pod serves {}; to run something in one:", served.join(", "))?;
    let width = cluster.node.pods().map(|pod| pod.key.to_string().len()).max().unwrap_or(0);
    for pod in cluster.node.pods() {
        let addresses = pod.addresses().map(|address| address.to_string()).collect::<Vec<_>>().join(" ");
        let (key, path) = (pod.key.to_string(), pod.namespace.path());
        writeln!(out, "  {key:width$}  nsenter --net={} COMMAND   {DETAIL}{addresses}{DETAIL:#}", path.display())?;
    }
    if let Some((from, to, Probe { to: address, port, .. })) = example {
        writeln!(out, "  from {} to {}, which policy accepts:", from.key, to.key)?;
        let path = from.namespace.path();
        let path = path.display();
        writeln!(out, "  nsenter --net={path} bash -c '</dev/tcp/{address}/{port}' && echo connected")?;
    }
    let pins = cluster.pins.pin_dir_from_outside();
    writeln!(out, "  {DETAIL}(programs and tables are pinned in {}){DETAIL:#}", pins.display())?;
    Ok(())
}

/// Follows the drop log until a signal comes.
fn hold(out: &mut impl Write, cluster: &Cluster, drops: &mut DropLog, interrupt: &Interrupt) -> anyhow::Result<()> {
    // Lines of the connections tried above are not news.
    drops.new_lines()?;
    while !interrupt.is_asked_within(drops::POLL) {
        for line in drops.new_lines()? {
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        anyhow::ensure!(!cluster.agent.has_ended(), "the agent ended:\n{}", cluster.agent.log().join("\n"));
    }
    Ok(())
}
