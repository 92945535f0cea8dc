//! Wires the stages and owns the tasks: the one file that sees them all.
//!
//! ```text
//! objects changed ----> read, compile --+
//! links changed ------> enroll, retire -+--> publish --> ready file --> settle (after the grace period)
//! 20 ms --------------> events --> drop lines          1 s --> verify attachment          1 min --> sweep
//! ```
//! One loop, one thing at a time: nothing here is on a packet's way, and nothing needs a lock.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ipnet::IpNet;
use npolicy_common::{Direction, FLOW_WAYS, Reason, Verdict};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, info, warn};

use crate::compile::{Changes, Compiler, Scope};
use crate::datapath::{Datapath, DatapathConfig, DatapathError, Degraded, PublishReport, Settling};
use crate::model::{ClusterState, Event, PodKey, Tier};
use crate::observe::{DropLog, Endpoints, Format, Health, History, Ready, Repeats, write_ready};
use crate::watch::kubernetes::KubernetesConfig;
use crate::watch::links::LinkWatch;

use cluster::Cluster;
use endpoints::Occupants;
use files::Files;

mod cluster;
mod denial;
mod endpoints;
mod files;
mod health;
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

/// How long numbers and rulesets that are of no use any more may wait for a grace period during which nothing is published;
/// then everything else waits for them.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// Where the cluster's objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// A Kubernetes API server.
    Kubernetes(KubernetesConfig),
}

/// What becomes of a pod's interface while nobody can say which pod's it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Unidentified {
    /// Everything on it is dropped but what the node itself sends to the pod, and the answers.
    Deny,
    /// Everything on it is accepted.
    Allow,
}

/// What the agent is told, parsed once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the cluster's objects come from.
    pub source: Source,
    /// This node's name; none: every pod of the manifests may be here, and in Kubernetes the host's name is the node's.
    pub node_name: Option<String>,
    /// What becomes of pods that are not identified.
    pub unidentified: Unidentified,
    /// Where to answer questions about the agent's health.
    pub health_address: Option<std::net::SocketAddr>,
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

/// The source of the cluster's objects, open.
#[derive(Debug)]
enum Feed {
    Files(Box<Files>),
    Cluster(Box<Cluster>),
}

impl Feed {
    async fn changed(&mut self) {
        match self {
            Self::Files(files) => files.changed().await,
            Self::Cluster(cluster) => cluster.changed().await,
        }
    }
}

/// A wait for a grace period on a thread of its own.
type Wait = JoinHandle<(Settling, Result<(), DatapathError>)>;

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    node: String,
    feed: Feed,
    links: LinkWatch,
    state: ClusterState,
    compiler: Compiler,
    datapath: Datapath,
    /// Whose the interfaces are.
    occupants: Occupants,
    /// Whose they were at the last publish.
    published_occupants: Occupants,
    /// How the compiled plan differs from the one in force; `None`: nobody knows.
    unpublished: Option<Changes>,
    history: History,
    repeats: Repeats,
    drops: DropLog,
    ready: Ready,
    health: Health,
    /// What keeps verdicts from being those of the policies, for whoever asks about health.
    faults: health::Faults,
    /// What was last said of pods without an interface and of interfaces without a pod.
    unmatched: Vec<String>,
    /// Whether nothing may be published: the cluster's objects were never read whole, and publishing less than what is
    /// in force would loosen it.
    is_waiting: bool,
    /// When to publish again although nothing has changed: because something did not work.
    retry_at: Option<tokio::time::Instant>,
    wait: Option<Wait>,
    /// Since when something has been waiting for a grace period.
    unsettled_since: Option<Instant>,
}

impl Agent {
    /// Opens the source of objects, and takes over or makes the kernel's side. Changes no verdict yet. An API server that
    /// cannot be reached is waited for.
    ///
    /// # Errors
    /// If the manifests' directory, the Kubernetes configuration, netlink, the kernel, the drop log or the health address
    /// refuse.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let node = config.node_name.clone().unwrap_or_else(host_name);
        let feed = match &config.source {
            Source::Manifests(path) => Feed::Files(Box::new(Files::start(path.clone())?)),
            Source::Kubernetes(kubernetes) => Feed::Cluster(Box::new(Cluster::start(kubernetes, &node).await?)),
        };
        let health = Health::new();
        if let Some(address) = config.health_address {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("--health-address {address}: cannot listen there"))?;
            tokio::spawn(health.clone().serve(listener));
        }
        let drops = DropLog::open(&config.drop_log, config.drop_format)?;
        let flow_buckets = config.flows.div_ceil(FLOW_WAYS as u32).next_power_of_two();
        let datapath = Datapath::open(&DatapathConfig { pin_dir: config.pin_dir.clone(), flow_buckets })?;
        let (state, is_waiting) = match &feed {
            Feed::Files(files) => {
                // What the last agent had read is gone with it. Publishing less than what is in force would loosen it; but
                // one that stopped before it had published anything left every pod open, and nothing to wait for.
                let has_verdicts = datapath.is_adopted() && !datapath.accepts_unidentified();
                let is_waiting = has_verdicts && !files.is_certain();
                if is_waiting {
                    error!(
                        "the manifests have errors, or there are none: the verdicts of the last agent stay in force until \
                         there are some and every document can be read"
                    );
                }
                (files.manifests.state(), is_waiting)
            }
            Feed::Cluster(_) => (ClusterState::default(), true),
        };
        info!(pinned = %config.pin_dir.display(), adopted = datapath.is_adopted(), "datapath is open");
        let links = LinkWatch::start()?;
        let scope = match (&config.source, &config.node_name) {
            (Source::Kubernetes(_), _) => Scope::Node(node.as_str().into()),
            (Source::Manifests(_), Some(name)) => Scope::NodeAndUnassigned(name.as_str().into()),
            (Source::Manifests(_), None) => Scope::Everything,
        };
        Ok(Self {
            config,
            node,
            feed,
            links,
            state,
            compiler: Compiler::new(scope),
            datapath,
            occupants: Occupants::default(),
            published_occupants: Occupants::default(),
            unpublished: None,
            history: History::default(),
            repeats: Repeats::new(REPEATS_WINDOW),
            drops,
            ready: Ready::default(),
            health,
            faults: health::Faults::default(),
            unmatched: Vec::new(),
            is_waiting,
            retry_at: None,
            wait: None,
            unsettled_since: None,
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
        if let Feed::Files(_) = &self.feed {
            self.compile();
        }
        self.follow_links();
        self.publish();
        loop {
            let retry_at = self.retry_at.unwrap_or_else(|| tokio::time::Instant::now() + SWEEP_EVERY);
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = self.feed.changed() => self.take_changes(),
                _ = self.links.changed() => {
                    self.follow_links();
                    self.publish();
                }
                () = tokio::time::sleep_until(retry_at), if self.retry_at.is_some() => {
                    self.retry_at = None;
                    if let Feed::Files(files) = &self.feed
                        && files.must_read
                    {
                        self.take_changes();
                    }
                    self.follow_links();
                    self.publish();
                }
                waited = waited(&mut self.wait) => self.end_settling(waited),
                _ = events.tick() => self.report_denials(),
                _ = verify.tick() => self.verify(),
                _ = sweep.tick() => self.sweep(),
            }
            self.health.beat();
        }
        self.report_denials();
        info!("stopping; the last published verdicts stay in force");
        Ok(())
    }

    /// Takes what has changed in the cluster, and publishes what it changes.
    fn take_changes(&mut self) {
        let started = Instant::now();
        let events = match &mut self.feed {
            Feed::Files(files) => {
                let events = files.read(self.is_waiting);
                let is_certain = files.is_certain();
                if files.must_read {
                    self.retry_after(RETRY_FULL_AFTER);
                }
                let Some(events) = events else { return };
                self.is_waiting &= !is_certain;
                events
            }
            Feed::Cluster(cluster) => {
                let events = cluster.take(&self.state);
                let was_waiting = std::mem::replace(&mut self.is_waiting, !cluster.is_synced());
                if was_waiting {
                    for event in events {
                        self.state.apply(event);
                    }
                    if !self.is_waiting {
                        info!("every kind of object was read once");
                        self.compile();
                        self.follow_links();
                        self.publish();
                    }
                    return;
                }
                if events.is_empty() {
                    return;
                }
                events
            }
        };
        let undo = events.into_iter().filter_map(|event| self.state.change(event)).collect();
        self.compile_changes(undo, started);
        self.identify();
        let is_same = self.unpublished.as_ref().is_some_and(Changes::is_empty);
        if is_same && self.occupants == self.published_occupants {
            self.keep_verdicts();
        } else {
            self.publish();
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
    fn compile_changes(&mut self, undo: Vec<Event>, started: Instant) {
        let changes = self.compiler.apply(&self.state, &undo);
        for diagnostic in changes.claimed.iter().filter_map(|&address| self.state.diagnose_address(address)) {
            warn!("{diagnostic}");
        }
        debug!(
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
        let Occupants { owners, candidates } = self.occupants.clone();
        self.datapath.set_candidates(candidates);
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
        self.published_occupants = self.occupants.clone();
        self.faults.note_publish(&report);
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
            endpoints = self.datapath.interfaces().len(),
            identified = owners.len(),
            flipped = report.flipped.len(),
            rulesets = report.rulesets_written,
            addresses = report.addresses_written,
            ?took,
            "published"
        );
        if let Err(error) = self.set_unidentified() {
            return self.try_again(&error, "end the time of unidentified pods");
        }
        self.report_unmatched(&links);
        self.say_ready();
        self.begin_settling();
    }

    /// From the first publish on, pods that are not identified are what the flag says.
    fn set_unidentified(&mut self) -> Result<(), DatapathError> {
        match (self.config.unidentified, self.datapath.accepts_unidentified()) {
            (Unidentified::Deny, true) => self.datapath.identify_from_now_on(),
            (Unidentified::Allow, false) => {
                self.datapath.accept_unidentified();
                Ok(())
            }
            (Unidentified::Deny, false) | (Unidentified::Allow, true) => Ok(()),
        }
    }

    /// Begins to wait for a grace period, beside everything else; only what has been waiting too long stops the rest.
    fn begin_settling(&mut self) {
        if !self.datapath.is_unsettled() {
            self.unsettled_since = None;
            return;
        }
        let since = *self.unsettled_since.get_or_insert_with(Instant::now);
        if since.elapsed() > SETTLE_WITHIN {
            self.unsettled_since = None;
            if let Err(error) = self.datapath.settle() {
                self.try_again(&error, "wait for a grace period");
            }
        } else if self.wait.is_none() {
            let settling = self.datapath.begin_settling();
            self.wait = Some(tokio::task::spawn_blocking(move || {
                let waited = settling.wait();
                (settling, waited)
            }));
        }
    }

    fn end_settling(&mut self, waited: (Settling, Result<(), DatapathError>)) {
        let (settling, waited) = waited;
        if let Err(error) = waited.and_then(|()| self.datapath.end_settling(settling)) {
            self.try_again(&error, "wait for a grace period");
        }
        self.begin_settling();
    }

    /// The cluster has changed, but no verdict: nothing is written but who is ready.
    fn keep_verdicts(&mut self) {
        if self.is_waiting {
            return;
        }
        self.history.record_unchanged();
        self.ready.revision += 1;
        self.ready.policies = self.state.policies().count();
        (self.ready.findings, self.ready.manifests) = self.findings();
        self.write_ready();
        debug!("no verdict differs: nothing to publish");
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

    fn say_ready(&mut self) {
        let is_governed = |pod: &PodKey| {
            let subject = self.compiler.plan().subjects.get(pod);
            subject.is_some_and(|subject| subject.ingress.is_governed() || subject.egress.is_governed())
        };
        let owners = &self.occupants.owners;
        let (findings, manifests) = self.findings();
        self.ready = Ready {
            revision: self.ready.revision + 1,
            policies: self.state.policies().count(),
            endpoints: self.datapath.interfaces().len(),
            identified: owners.len(),
            governed: owners.iter().filter(|(_, pod)| is_governed(pod)).count(),
            findings,
            manifests,
        };
        self.write_ready();
    }

    /// How much was found that is not as it should be, and a digest of what was read from files.
    fn findings(&self) -> (usize, u64) {
        match &self.feed {
            Feed::Files(files) => (files.manifests.diagnostics().len(), files.manifests.digest()),
            Feed::Cluster(cluster) => (cluster.findings(), 0),
        }
    }

    fn write_ready(&self) {
        let Some(path) = &self.config.ready_file else { return };
        if let Err(error) = write_ready(path, &self.ready) {
            warn!(path = %path.display(), %error, "cannot write the ready file");
        }
    }

    /// Looks whether the programs are where they belong.
    fn verify(&mut self) {
        if let Feed::Files(files) = &mut self.feed
            && files.verify()
        {
            self.take_changes();
        }
        let faults = self.datapath.verify();
        for fault in &faults {
            error!("{fault}");
        }
        self.faults.note_verify(&faults);
        self.report_health();
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

    /// A retry that is due sooner stays: what it is for may be an interface without its programs.
    fn retry_after(&mut self, wait: Duration) {
        let at = tokio::time::Instant::now() + wait;
        self.retry_at = Some(self.retry_at.map_or(at, |sooner| sooner.min(at)));
    }
}

/// Waits for a wait that is under way; for ever if none is.
async fn waited(wait: &mut Option<Wait>) -> (Settling, Result<(), DatapathError>) {
    let Some(handle) = wait else { return std::future::pending().await };
    let waited = handle.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    *wait = None;
    waited
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
