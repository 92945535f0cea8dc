//! Rounds: a write that denies, silence, a write that allows, traffic.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::report::{Report, Sample, Wire};
use super::stage::{Pods, Stage};
use super::traffic::Flow;
use super::watch::PlainWatch;
use super::writes::{Writes, Written};

/// Rounds before those that count: connections are opened, caches filled.
const WARM_UP: usize = 3;
/// How long the packets may take to change. An enforcer by iptables and ipset was seen to take two seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long traffic flows freely before the first round: pods that were just made may not be let in yet.
const OPENING: Duration = Duration::from_secs(30);
/// A flow is cut when nothing arrived for so long while the sender went on.
const SILENCE: Duration = Duration::from_millis(100);
/// Between a write and the first look at what arrived, so that looking does not slow what is measured.
const FIRST_LOOK: Duration = Duration::from_millis(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(30);
/// Denials that had no effect, from the start of a case, after which the case is given up.
const HOPELESS: usize = 10;

/// What is written: it denies and allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Write {
    /// A policy that denies all ingress is created and deleted.
    Policy,
    /// A label that a policy asks of the sender is revoked and granted.
    Label,
}

/// What else happens in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Load {
    /// Nothing by us.
    Idle,
    /// 50 label changes a second of other pods.
    Changes,
}

/// Which way a write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    /// The last datagram counts.
    Deny,
    /// The first one does.
    Allow,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Policy => "policy",
            Self::Label => "label",
        })
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Changes => "loaded",
        })
    }
}

/// What a row of the table is about.
pub(super) fn case(write: Write, effect: Effect) -> &'static str {
    match (write, effect) {
        (Write::Policy, Effect::Deny) => "policy create",
        (Write::Policy, Effect::Allow) => "policy delete",
        (Write::Label, Effect::Deny) => "label revoke",
        (Write::Label, Effect::Allow) => "label grant",
    }
}

/// What was seen of a sink.
struct Look {
    /// How much had arrived; none before the first look.
    count: Option<u64>,
    /// Since when.
    since: Instant,
}

/// Everything a round needs.
pub(super) struct Rounds<'a> {
    pods: &'a Pods,
    writes: Writes,
    pod_watch: PlainWatch,
    policy_watch: PlainWatch,
}

impl<'a> Rounds<'a> {
    /// Starts the watches and the datagrams, and waits until these arrive.
    pub(super) async fn new(stage: &Stage, pods: &'a Pods) -> anyhow::Result<Self> {
        let pod_watch = PlainWatch::start(stage.config(), "/api/v1/pods")?;
        let policy_watch = PlainWatch::start(stage.config(), "/apis/networking.k8s.io/v1/networkpolicies")?;
        pods.open_sinks().await?;
        for flow in [Flow::Running, Flow::Fresh] {
            pods.start(flow).await?;
        }
        let rounds = Self { pods, writes: Writes::new(stage.config())?, pod_watch, policy_watch };
        let begin = Instant::now();
        while !rounds.all_arrive().await? {
            ensure!(
                begin.elapsed() < OPENING,
                "no datagram arrived from pod {} at pod {} within {OPENING:.0?}, without a policy that denies it",
                pods.sender.name,
                pods.receiver.name
            );
        }
        Ok(rounds)
    }

    /// Runs the rounds of one write under one load.
    pub(super) async fn run(
        &mut self,
        write: Write,
        load: Load,
        count: usize,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        if write == Write::Label {
            self.writes.begin_labels().await?;
        }
        let (begin, mut without_effect) = (Instant::now(), 0);
        for round in 0..WARM_UP + count {
            let denial = self.deny(write, load).await?;
            let cut: Vec<Flow> = denial.wires.iter().filter_map(|(flow, wire)| wire.map(|_| *flow)).collect();
            without_effect += usize::from(cut.is_empty());
            let allowance = self.allow(write, load, &cut).await?;
            if round >= WARM_UP {
                report.add(denial);
                report.add(allowance);
                let done = round + 1 - WARM_UP;
                if done.is_multiple_of(10) || done == count {
                    let took = begin.elapsed().as_secs();
                    eprintln!("{write}, {load}: {done} of {count} rounds, {took} s, {without_effect} without a cut");
                }
            }
            if without_effect == round + 1 && without_effect >= WARM_UP + HOPELESS {
                eprintln!("{write}, {load}: none of the first {without_effect} denials cut anything: given up");
                break;
            }
        }
        if write == Write::Label {
            self.writes.end_labels().await?;
            self.wait_open().await?;
        }
        Ok(())
    }

    /// Denies, and waits until nothing arrives any more.
    async fn deny(&self, write: Write, load: Load) -> anyhow::Result<Sample> {
        self.wait_open().await?;
        self.pods.reset(Flow::Tcp).await?;
        self.pods.start(Flow::Tcp).await?;
        wander().await;
        self.clear();
        let written = match write {
            Write::Policy => self.writes.create_policy().await?,
            Write::Label => self.writes.revoke_label().await?,
        };
        tokio::time::sleep(FIRST_LOOK).await;
        let begin = Instant::now();
        let mut wires = [Flow::Running, Flow::Fresh, Flow::Tcp].map(|flow| (flow, None));
        let mut looks = wires.map(|_| Look { count: None, since: begin });
        while begin.elapsed() < PATIENCE && wires.iter().any(|(_, wire)| wire.is_none()) {
            for ((flow, wire), look) in wires.iter_mut().zip(&mut looks) {
                *wire = self.last(*flow, look).await?;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(self.sample(write, Effect::Deny, load, &written, wires.to_vec()).await)
    }

    /// The last datagram of a flow, once nothing came after it for long enough; none until then.
    async fn last(&self, flow: Flow, look: &mut Look) -> anyhow::Result<Option<Wire>> {
        let now = Instant::now();
        let sunk = self.pods.arrived(flow).await?;
        if look.count != Some(sunk.arrived.count) {
            *look = Look { count: Some(sunk.arrived.count), since: Instant::now() };
            return Ok(None);
        }
        if now.saturating_duration_since(look.since) < SILENCE {
            return Ok(None);
        }
        // A sender that was silent itself shows nothing: at least a quarter of what it should have sent must be missing.
        if self.pods.sent_ns(flow, sunk.last_number + flow.sent_within(SILENCE) / 4).await?.is_none() {
            return Ok(None);
        }
        let next_ns = self.pods.sent_ns(flow, sunk.last_number + 1).await?;
        Ok(next_ns.map(|lost_ns| Wire { arrived_ns: sunk.arrived.last_ns, sent_ns: sunk.last_sent_ns, lost_ns }))
    }

    /// Allows, and waits until datagrams arrive of those flows that were cut.
    async fn allow(&self, write: Write, load: Load, cut: &[Flow]) -> anyhow::Result<Sample> {
        let flows = [Flow::Running, Flow::Fresh].into_iter().filter(|flow| cut.contains(flow));
        for flow in flows.clone() {
            self.pods.reset(flow).await?;
        }
        wander().await;
        for flow in flows.clone() {
            let leaked = self.pods.arrived(flow).await?.arrived.count;
            ensure!(leaked == 0, "{leaked} datagrams of the {flow} flow arrived after it was cut");
        }
        self.clear();
        let written = match write {
            Write::Policy => self.writes.delete_policy().await?,
            Write::Label => self.writes.grant_label().await?,
        };
        tokio::time::sleep(FIRST_LOOK).await;
        let begin = Instant::now();
        let mut wires = Vec::new();
        for flow in flows {
            let wire = loop {
                let sunk = self.pods.arrived(flow).await?;
                if sunk.arrived.count > 0 {
                    let before_ns = match sunk.first_number.checked_sub(1) {
                        Some(before) => self.pods.sent_ns(flow, before).await?,
                        None => None,
                    };
                    break Some(Wire {
                        arrived_ns: sunk.arrived.first_ns,
                        sent_ns: sunk.first_sent_ns,
                        // The first of all has none before it.
                        lost_ns: before_ns.unwrap_or(sunk.first_sent_ns),
                    });
                }
                if begin.elapsed() >= PATIENCE {
                    break None;
                }
                tokio::time::sleep(LOOK).await;
            };
            wires.push((flow, wire));
        }
        self.pods.stop(Flow::Tcp).await?;
        Ok(self.sample(write, Effect::Allow, load, &written, wires).await)
    }

    async fn sample(
        &self,
        write: Write,
        effect: Effect,
        load: Load,
        written: &Written,
        wires: Vec<(Flow, Option<Wire>)>,
    ) -> Sample {
        let watch = match write {
            Write::Policy => &self.policy_watch,
            Write::Label => &self.pod_watch,
        };
        let begin = Instant::now();
        let mut watched_ns = watch.seen(written.object, &written.event);
        while watched_ns.is_none() && begin.elapsed() < PATIENCE {
            tokio::time::sleep(LOOK).await;
            watched_ns = watch.seen(written.object, &written.event);
        }
        let Written { answered_ns, took_ns, object: _, event: _ } = *written;
        Sample { write, effect, load, answered_ns, took_ns, watched_ns, wires }
    }

    fn clear(&self) {
        self.pod_watch.clear();
        self.policy_watch.clear();
    }

    /// Waits until datagrams of both flows arrive.
    async fn wait_open(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while !self.all_arrive().await? {
            ensure!(begin.elapsed() < OPENING, "datagrams that nothing denies did not arrive within {OPENING:.0?}");
        }
        Ok(())
    }

    async fn all_arrive(&self) -> anyhow::Result<bool> {
        let flows = [Flow::Running, Flow::Fresh];
        for flow in flows {
            self.pods.reset(flow).await?;
        }
        tokio::time::sleep(LOOK).await;
        for flow in flows {
            if self.pods.arrived(flow).await.context("whether datagrams arrive")?.arrived.count == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Waits up to 20 ms, so that rounds do not fall in step with the label changes.
async fn wander() {
    tokio::time::sleep(Duration::from_micros(fastrand::u64(0..20_000))).await;
}
