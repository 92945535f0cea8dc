//! Wires the stages and owns the tasks: the one file that sees them all.
//!
//! ```text
//! directory changed --> read, compile --+
//! links changed ------> enroll, retire -+--> publish --> settle (after the grace period) --> ready file
//! 20 ms --------------> events --> drop lines          1 s --> verify attachment          1 min --> sweep
//! ```
//! One loop, one thing at a time: nothing here is on a packet's way, and nothing needs a lock.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ipnet::IpNet;
use npolicy_common::{Direction, FLOW_WAYS, FlowEvent, Reason, Verdict};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use crate::compile::{Changes, Compiler, Scope};
use crate::datapath::{Datapath, DatapathConfig, Degraded, Enrolled, PublishReport};
use crate::model::{ClusterState, Event, Owner, PodKey, Severity, Tier};
use crate::observe::{DropLine, DropLog, Endpoints, Format, History, Ready, Repeats, write_ready};
use crate::watch::directory::DirectoryWatch;
use crate::watch::links::{HostLink, LinkWatch, Links};
use crate::watch::manifests::Manifests;

mod denial;
pub mod identify;

/// How often denials are read from the ring buffer.
const EVENTS_EVERY: Duration = Duration::from_millis(20);
/// How often the programs' places are checked.
const VERIFY_EVERY: Duration = Duration::from_secs(1);
/// How often the flow tables are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How soon what could not be done is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How soon a publish for which a table was too full, or a file that the system refused, is tried again without any change.
const RETRY_FULL_AFTER: Duration = Duration::from_secs(30);
/// How long equal denials are left out of the drop log after the last one.
const REPEATS_WINDOW: Duration = Duration::from_secs(60);

/// What the agent is told, parsed once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of manifests.
    pub manifests: PathBuf,
    /// This node's name; none: every pod of the manifests may be here.
    pub node_name: Option<String>,
    /// Where programs, links and tables are pinned.
    pub pin_dir: PathBuf,
    /// Addresses that belong to pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Interfaces never to touch.
    pub exclude_interfaces: Vec<String>,
    /// Where denials are written.
    pub drop_log: PathBuf,
    /// How.
    pub drop_format: Format,
    /// File to write after each publish.
    pub ready_file: Option<PathBuf>,
    /// Flows each family's table has room for.
    pub flows: u32,
}

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    node: String,
    directory: DirectoryWatch,
    links: LinkWatch,
    manifests: Manifests,
    state: ClusterState,
    compiler: Compiler,
    datapath: Datapath,
    /// How the compiled plan differs from the one in force; `None`: nobody knows.
    unpublished: Option<Changes>,
    history: History,
    repeats: Repeats,
    drops: DropLog,
    ready: Ready,
    /// What was last said of pods without an interface and of interfaces without a pod.
    unmatched: Vec<String>,
    /// Whether nothing may be published: verdicts of an earlier agent are in force, and the manifests were never read whole.
    is_waiting: bool,
    /// Whether the manifests' directory was gone when it was last looked for: that is said once.
    is_directory_gone: bool,
    /// When to publish again although nothing has changed: because something did not work.
    retry_at: Option<tokio::time::Instant>,
    /// Whether the retry is to read the manifests, too.
    must_read: bool,
}

impl Agent {
    /// Reads everything once and takes over or makes the kernel's side. Changes no verdict yet.
    ///
    /// # Errors
    /// If the manifests' directory, netlink, the kernel or the drop log refuse.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        anyhow::ensure!(
            config.manifests.is_dir(),
            "--manifests {}: no such directory (a file does not do); expected the one that holds the YAML files to enforce",
            config.manifests.display()
        );
        let directory = DirectoryWatch::start(&config.manifests)?;
        let manifests = Manifests::read(std::slice::from_ref(&config.manifests))?;
        report_findings(&manifests, &Manifests::default());
        let state = manifests.state();
        let drops = DropLog::open(&config.drop_log, config.drop_format)?;
        let flow_buckets = config.flows.div_ceil(FLOW_WAYS as u32).next_power_of_two();
        let datapath = Datapath::open(&DatapathConfig { pin_dir: config.pin_dir.clone(), flow_buckets })?;
        // What the last agent had read is gone with it. Publishing less than what is in force would loosen it; but one that
        // stopped before it had published anything left every pod open, and nothing to wait for.
        let has_verdicts = datapath.is_adopted() && !datapath.accepts_unidentified();
        let is_waiting = has_verdicts && !(manifests.is_certain() && manifests.has_files());
        if is_waiting {
            error!(
                "the manifests have errors, or there are none: the verdicts of the last agent stay in force until there \
                 are some and every document can be read"
            );
        }
        info!(pinned = %config.pin_dir.display(), adopted = datapath.is_adopted(), "datapath is open");
        let links = LinkWatch::start()?;
        let scope = match &config.node_name {
            Some(name) => Scope::NodeAndUnassigned(name.as_str().into()),
            None => Scope::Everything,
        };
        let node = config.node_name.clone().unwrap_or_else(host_name);
        Ok(Self {
            config,
            node,
            directory,
            links,
            manifests,
            state,
            compiler: Compiler::new(scope),
            datapath,
            unpublished: None,
            history: History::default(),
            repeats: Repeats::new(REPEATS_WINDOW),
            drops,
            ready: Ready::default(),
            unmatched: Vec::new(),
            is_waiting,
            is_directory_gone: false,
            retry_at: None,
            must_read: false,
        })
    }

    /// Enforces until SIGTERM or SIGINT. Ending changes no verdict.
    ///
    /// # Errors
    /// If signals cannot be caught. Whatever else goes wrong is reported and tried again; the last complete state stays.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
        let mut events = every(EVENTS_EVERY);
        let mut verify = every(VERIFY_EVERY);
        let mut sweep = every(SWEEP_EVERY);
        self.compile();
        self.follow_links();
        self.publish();
        loop {
            let retry_at = self.retry_at.unwrap_or_else(|| tokio::time::Instant::now() + SWEEP_EVERY);
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = self.directory.changed() => self.read_manifests(),
                _ = self.links.changed() => {
                    self.follow_links();
                    self.publish();
                }
                () = tokio::time::sleep_until(retry_at), if self.retry_at.is_some() => {
                    self.retry_at = None;
                    if std::mem::take(&mut self.must_read) {
                        self.read_manifests();
                    }
                    self.follow_links();
                    self.publish();
                }
                _ = events.tick() => self.report_denials(),
                _ = verify.tick() => self.verify(),
                _ = sweep.tick() => self.sweep(),
            }
        }
        self.report_denials();
        info!("stopping; the last published verdicts stay in force");
        Ok(())
    }

    /// Reads the manifests again and publishes what they change. What cannot be read leaves what was read before.
    fn read_manifests(&mut self) {
        let reading = match Manifests::read(std::slice::from_ref(&self.config.manifests)) {
            // Nobody says "no policy" by taking the pods and nodes away with it.
            Ok(reading) if !reading.has_files() && (self.manifests.has_files() || self.is_waiting) => {
                warn!(
                    directory = %self.config.manifests.display(),
                    "the directory holds no manifests any more; the last reading stays in force"
                );
                return;
            }
            Ok(reading) => reading.or_last_good(&self.manifests),
            Err(error) => {
                warn!(error = chain(&error), "cannot read the manifests; the last reading stays in force");
                self.read_again();
                return;
            }
        };
        if reading.was_refused() {
            self.read_again();
        }
        report_findings(&reading, &self.manifests);
        if self.is_waiting && reading.is_certain() {
            self.is_waiting = false;
            self.unpublished = None;
        }
        let undo: Vec<Event> =
            reading.events_since(&self.manifests).into_iter().filter_map(|event| self.state.change(event)).collect();
        self.manifests = reading;
        self.compile_changes(undo);
        self.follow_links();
        match &self.unpublished {
            Some(changes) if changes.is_empty() => self.keep_verdicts(),
            _ => self.publish(),
        }
    }

    /// Compiles the whole plan.
    fn compile(&mut self) {
        let started = Instant::now();
        self.compiler.start(&self.state);
        for diagnostic in self.state.diagnose_addresses() {
            warn!("{diagnostic}");
        }
        self.unpublished = None;
        let plan = self.compiler.plan();
        info!(
            policies = self.state.policies().count(),
            pods = self.state.pods().count(),
            subjects = plan.subjects.len(),
            classes = plan.classes.len(),
            took = ?started.elapsed(),
            "compiled"
        );
    }

    /// Compiles what changes of the state make of the plan.
    fn compile_changes(&mut self, undo: Vec<Event>) {
        let started = Instant::now();
        let changes = self.compiler.apply(&self.state, &undo);
        for diagnostic in changes.claimed.iter().filter_map(|&address| self.state.diagnose_address(address)) {
            warn!("{diagnostic}");
        }
        info!(
            objects = undo.len(),
            addresses = changes.addresses.len(),
            subjects = changes.subjects.len(),
            took = ?started.elapsed(),
            "compiled what changed"
        );
        self.history.note(undo);
        if let Some(unpublished) = &mut self.unpublished {
            unpublished.merge(changes);
        }
    }

    /// Gives every pod's interface a line and its programs, and lets go of those that are gone.
    fn follow_links(&mut self) {
        let links = self.links.current();
        let enrolled = self.datapath.interfaces();
        for &ifindex in enrolled.iter().filter(|ifindex| !links.host.contains_key(ifindex)) {
            match self.datapath.retire(ifindex) {
                Ok(()) => info!(ifindex, "interface is gone"),
                Err(error) => self.try_again(&error, "let go of an interface"),
            }
        }
        for link in links.host.values() {
            let is_enrolled = enrolled.binary_search(&link.ifindex).is_ok();
            if !is_enrolled && !self.is_pods(link) {
                continue;
            }
            match self.datapath.enroll(link) {
                Ok(Enrolled::Open) if is_enrolled => {}
                Ok(Enrolled::Open) => info!(interface = link.name, ifindex = link.ifindex, "attached"),
                Ok(Enrolled::Closed) => {
                    error!(
                        interface = link.name,
                        ifindex = link.ifindex,
                        "no line is free: everything on it is dropped"
                    );
                }
                Err(error) => self.try_again(&error, "attach to an interface"),
            }
        }
    }

    /// Whether an interface is a pod's: it has shown an address that a pod of the manifests has or that `--pod-cidrs`
    /// names. No other interface of the machine is touched.
    fn is_pods(&self, link: &HostLink) -> bool {
        let is_listed = |address: &IpAddr| self.config.pod_cidrs.iter().any(|block| block.contains(address));
        !self.config.exclude_interfaces.contains(&link.name)
            && (self.owner_of(link).is_some() || link.addresses.iter().any(is_listed))
    }

    /// The pod behind an interface: the subject that has one of its addresses.
    ///
    /// An interface stays the pod's whose address its line has: what a pod adds to its interface or takes off does not
    /// make it another. An address that another interface's line has is that one's.
    fn owner_of(&self, link: &HostLink) -> Option<PodKey> {
        let mut bound = self.datapath.address_of(link.ifindex).into_iter().flatten();
        let bound = bound.find_map(|address| self.pod_at(address));
        let free = link.addresses.iter().filter(|&&address| !self.datapath.is_bound(address));
        bound.or_else(|| free.copied().find_map(|address| self.pod_at(address)))
    }

    fn pod_at(&self, address: IpAddr) -> Option<PodKey> {
        Some(address).and_then(|address| match self.state.owner(address) {
            Owner::Pod(pod) if self.compiler.plan().subjects.contains_key(&pod.key) => Some(pod.key.clone()),
            _ => None,
        })
    }

    /// Makes the kernel equal the plan, then does what waits for a grace period.
    fn publish(&mut self) {
        if self.is_waiting {
            return;
        }
        let links = self.links.current();
        let changes = self.compiler.set_own_addresses(&self.state, &links.own_addresses);
        if let Some(unpublished) = &mut self.unpublished {
            unpublished.merge(changes);
        }
        let interfaces = self.datapath.interfaces();
        let owner = |ifindex: &u32| Some((*ifindex, self.owner_of(links.host.get(ifindex)?)?));
        let owners: Vec<(u32, PodKey)> = interfaces.iter().filter_map(owner).collect();
        let started = Instant::now();
        let published = match self.unpublished.take() {
            Some(changes) => self.datapath.publish_changes(self.compiler.plan(), &changes, &owners),
            None => self.datapath.publish(self.compiler.plan(), &owners),
        };
        let report = match published {
            Ok(report) => report,
            Err(error) => return self.try_again(&error, "publish"),
        };
        let took = started.elapsed();
        for Degraded { pod, direction, instead, full, .. } in &report.degraded {
            error!(%pod, ?direction, ?instead, %full, "ruleset does not fit");
        }
        for block in &report.unfit {
            error!(%block, "addresses do not fit the tables: no governed pod accepts them");
        }
        if report.numbers_missing > 0 {
            error!(report.numbers_missing, "class numbers ran out: what has none is denied by every governed pod");
        }
        if report.is_complete() {
            self.unpublished = Some(Changes::default());
        } else {
            self.retry_after(RETRY_FULL_AFTER);
        }
        self.record(&owners, &report);
        info!(
            endpoints = interfaces.len(),
            identified = owners.len(),
            flipped = report.flipped.len(),
            rulesets = report.rulesets_written,
            addresses = report.addresses_written,
            ?took,
            "published"
        );
        if self.datapath.accepts_unidentified()
            && let Err(error) = self.datapath.identify_from_now_on()
        {
            return self.try_again(&error, "end the time of unidentified pods");
        }
        self.report_unmatched(&links, &interfaces, &owners);
        self.say_ready(&owners, interfaces.len());
        if let Err(error) = self.datapath.settle() {
            self.try_again(&error, "wait for a grace period");
        }
    }

    /// The cluster has changed, but no verdict: nothing is written but who is ready.
    fn keep_verdicts(&mut self) {
        if self.is_waiting {
            return;
        }
        self.history.record_unchanged();
        self.ready.revision += 1;
        self.ready.policies = self.state.policies().count();
        self.ready.findings = self.manifests.diagnostics().len();
        self.ready.manifests = self.manifests.digest();
        self.write_ready();
        info!("no verdict differs: nothing to publish");
    }

    /// Remembers what is in force from now on, and says of each pod that changed which policies select it.
    fn record(&mut self, owners: &[(u32, PodKey)], report: &PublishReport) {
        let endpoints: Endpoints = owners
            .iter()
            .filter_map(|(ifindex, pod)| Some((*ifindex, (pod.clone(), report.words.get(ifindex)?.generation()))))
            .collect();
        for ifindex in &report.flipped {
            let Some((key, generation)) = endpoints.get(ifindex) else { continue };
            let Some(pod) = self.state.pod(key) else { continue };
            let isolating = |direction| {
                let policies = self.state.policies_of(pod).filter(|policy| policy.rules(direction).is_some());
                policies.map(|policy| policy.key.to_string()).collect::<Vec<_>>().join(" ")
            };
            let (ingress, egress) = (isolating(Direction::Ingress), isolating(Direction::Egress));
            let of_tiers =
                [Tier::Admin, Tier::Baseline].into_iter().flat_map(|tier| self.state.cluster_policies_of(pod, tier));
            let cluster_policies = of_tiers.map(|policy| policy.name.to_string()).collect::<Vec<_>>().join(" ");
            info!(
                pod = %key,
                generation,
                isolated_for_ingress = ingress,
                isolated_for_egress = egress,
                cluster_policies,
                "in force"
            );
        }
        self.history.record(endpoints);
    }

    /// Says which governed pods no interface here belongs to, and which interfaces no pod of the manifests: their policies
    /// are not enforced, or by the last verdicts. Said once, and again when it changes.
    fn report_unmatched(&mut self, links: &Links, interfaces: &[u32], owners: &[(u32, PodKey)]) {
        let mut unmatched = Vec::new();
        for (pod, subject) in &self.compiler.plan().subjects {
            let is_governed = subject.ingress.is_governed() || subject.egress.is_governed();
            if !is_governed || owners.iter().any(|(_, owner)| owner == pod) {
                continue;
            }
            let addresses = subject.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            unmatched.push(match addresses.as_str() {
                "" => format!("pod {pod} has no address (status.podIPs): its policies are not enforced"),
                _ => {
                    format!("pod {pod}: {addresses} is on no veth of this machine: its policies are not enforced here")
                }
            });
        }
        for ifindex in interfaces.iter().filter(|ifindex| !owners.iter().any(|(owned, _)| owned == *ifindex)) {
            let name = links.host.get(ifindex).map_or("?", |link| &link.name);
            unmatched
                .push(format!("interface {name}: no pod of the manifests has its address: its last verdicts stay"));
        }
        if owners.is_empty() && !self.compiler.plan().subjects.is_empty() {
            unmatched.push("no pod of the manifests is on this machine: nothing is enforced".into());
        }
        for line in unmatched.iter().filter(|line| !self.unmatched.contains(line)) {
            warn!("{line}");
        }
        self.unmatched = unmatched;
    }

    fn say_ready(&mut self, owners: &[(u32, PodKey)], endpoints: usize) {
        let is_governed = |pod: &PodKey| {
            let subject = self.compiler.plan().subjects.get(pod);
            subject.is_some_and(|subject| subject.ingress.is_governed() || subject.egress.is_governed())
        };
        self.ready = Ready {
            revision: self.ready.revision + 1,
            policies: self.state.policies().count(),
            endpoints,
            identified: owners.len(),
            governed: owners.iter().filter(|(_, pod)| is_governed(pod)).count(),
            findings: self.manifests.diagnostics().len(),
            manifests: self.manifests.digest(),
        };
        self.write_ready();
    }

    fn write_ready(&self) {
        let Some(path) = &self.config.ready_file else { return };
        if let Err(error) = write_ready(path, &self.ready) {
            warn!(path = %path.display(), %error, "cannot write the ready file");
        }
    }

    /// Reads the denials that are there and writes a line for each that is not a repeat.
    fn report_denials(&mut self) {
        let events = self.datapath.events();
        let (time, now) = (jiff::Timestamp::now(), Instant::now());
        for event in &events {
            let Some(repeats) = self.repeats.admit(event, now) else { continue };
            let mut line = DropLine::from_event(event, time, &self.node, repeats);
            self.name_ends(event, &mut line);
            self.drops.write(&line);
        }
    }

    /// Adds what the cluster of that moment says of a denial: names, policies, the nearest miss.
    fn name_ends(&mut self, event: &FlowEvent, line: &mut DropLine) {
        let Some((state, pod)) = self.history.at(&self.state, event.ifindex, event.generation) else { return };
        let Some(pod) = state.pod(&pod) else { return };
        let remote = line.remote_mut();
        let Some(address) = remote.address else { return };
        match state.owner(address) {
            Owner::Pod(owner) => {
                remote.pod = Some((owner.key.namespace.to_string(), owner.key.name.to_string()));
                remote.labels = owner.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            }
            Owner::Node(node) => remote.node = Some(node.name.to_string()),
            Owner::Outside if self.compiler.plan().node_addresses.contains(&address) => {
                remote.node = Some(self.node.clone())
            }
            Owner::Service(_) | Owner::Outside => {}
        }
        let local = line.local_mut();
        local.pod = Some((pod.key.namespace.to_string(), pod.key.name.to_string()));
        local.labels = pod.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let is_own = self.compiler.plan().node_addresses.contains(&address);
        denial::explain_denial(state, pod, event, (address, is_own), line);
    }

    /// Looks whether the programs are where they belong.
    fn verify(&mut self) {
        let was_gone = std::mem::replace(&mut self.is_directory_gone, false);
        if self.directory.is_stale() {
            match DirectoryWatch::start(&self.config.manifests) {
                Ok(directory) => {
                    warn!("the manifests' directory is another one; reading it");
                    self.directory = directory;
                    self.read_manifests();
                }
                Err(error) => {
                    self.is_directory_gone = true;
                    if !was_gone {
                        warn!(
                            error = chain(&error),
                            "the manifests' directory is gone; the last reading stays in force"
                        );
                    }
                }
            }
        }
        for fault in self.datapath.verify() {
            error!("{fault}");
        }
    }

    /// Erases dead flows, and reads the counters: an endpoint that is gone leaves its counters' place once they were read.
    fn sweep(&mut self) {
        let swept = match self.datapath.sweep() {
            Ok(swept) => swept,
            Err(error) => return warn!(error = chain(&error), "cannot sweep the flow tables"),
        };
        let counters = match self.datapath.counters() {
            Ok(counters) => counters,
            Err(error) => return warn!(error = chain(&error), "cannot read the counters"),
        };
        let count = |wanted: fn(&Reason) -> bool| -> u64 {
            let of_row =
                |row: &[u64; 32]| Reason::ALL.iter().filter(|r| wanted(r)).map(|&r| row[r as usize]).sum::<u64>();
            counters.iter().map(|endpoint| of_row(&endpoint.row)).sum()
        };
        info!(
            flows = swept.kept,
            accepted = count(|reason| reason.verdict() == Verdict::Accept),
            denied = count(|reason| reason.verdict() == Verdict::Deny && *reason != Reason::EventLost),
            denials_not_logged = count(|reason| *reason == Reason::EventLost),
            drop_lines_lost = self.drops.lost(),
            "packets so far"
        );
    }

    /// Says what did not work, and publishes again in a moment. The last complete state stays in force.
    fn try_again(&mut self, error: &dyn std::error::Error, what: &str) {
        warn!(error = chain(error), "cannot {what}; trying again");
        self.retry_after(RETRY_AFTER);
    }

    /// Nothing in the directory may change any more, so no event would come.
    fn read_again(&mut self) {
        self.must_read = true;
        self.retry_after(RETRY_FULL_AFTER);
    }

    /// A retry that is due sooner stays: what it is for may be an interface without its programs.
    fn retry_after(&mut self, wait: Duration) {
        let at = tokio::time::Instant::now() + wait;
        self.retry_at = Some(self.retry_at.map_or(at, |sooner| sooner.min(at)));
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Says what was found in the manifests that was not found before.
fn report_findings(reading: &Manifests, previous: &Manifests) {
    for finding in reading.diagnostics().iter().filter(|finding| !previous.diagnostics().contains(finding)) {
        match finding.severity {
            Severity::Error => error!("{finding}"),
            Severity::Warning => warn!("{finding}"),
            Severity::Note => info!("{finding}"),
        }
    }
}
