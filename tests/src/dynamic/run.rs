//! Runs a script, step by step.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use npolicy_agent::model::PodKey;
use npolicy_agent::rig::{Layout, Outcome, Protocol};
use tokio::task::{JoinHandle, JoinSet};

use super::crowd;
use super::flow::{Flow, longest_pause};
use super::message;
use super::probe::{self, Question};
use super::script::{Action, AgentAction, Arrival, Connect, End, FlowState, Line, Objects, Opening, Quote, Script};
use super::socket::RUNTIME;
use super::world::World;

/// Times that a script holds something for are cut to this: what is wrong shows within it, or not at all. With
/// NPOLICY_LONG=1 they are as written.
const LONGEST_HOLD: Duration = Duration::from_secs(2);
/// Times that a script only lets pass are cut to this, likewise.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// How long a new flow may take to run: some SYNs, on a busy machine.
const OPENING: Duration = Duration::from_secs(10);
/// How long a new flow is watched that must stay silent: two SYNs.
const SILENCE: Duration = Duration::from_millis(1500);
/// A flow that runs answers at least so often, unless the script asks for more.
const LIVELY: Duration = Duration::from_secs(3);
/// How often flows are looked at, and questions asked again.
const POLL: Duration = Duration::from_millis(50);
/// How long a new connection may take that is accepted all along: a busy machine is not a denial.
const HELD_PATIENCE: Duration = Duration::from_millis(2500);

/// Runs a script on two nodes of a layout. `binaries` are two builds of the agent with one layout of tables; the first
/// is what it starts with.
///
/// # Errors
///
/// What is not as the script says, with the step, and what the agents last said.
pub fn run(script: &Script, layout: Layout, binaries: [&Path; 2]) -> anyhow::Result<()> {
    let world = World::start(script, layout, binaries).context("the start")?;
    let is_long = std::env::var_os("NPOLICY_LONG").is_some_and(|long| long == "1");
    let (longest, longest_wait) = if is_long { (Duration::MAX, Duration::MAX) } else { (LONGEST_HOLD, LONGEST_WAIT) };
    let mut run = Run { world, flows: BTreeMap::new(), backgrounds: BTreeMap::new(), longest, longest_wait };
    for (number, step) in (1..).zip(&script.steps) {
        if let Err(error) = run.step(&step.action) {
            bail!("{} {layout:?}, step {number} ({}): {error:#}\n{}", script.id, step.say, run.world.last_words());
        }
    }
    ensure!(run.backgrounds.is_empty(), "{}: a background was never finished", script.id);
    Ok(())
}

struct Run {
    world: World,
    flows: BTreeMap<String, Vec<Watched>>,
    backgrounds: BTreeMap<String, Background>,
    longest: Duration,
    longest_wait: Duration,
}

/// A flow over one family, and how it was at the last look.
struct Watched {
    name: String,
    flow: Flow,
    ends: [End; 2],
    looked: Instant,
    lost: Lost,
}

/// What says that a pause was the network's and not the machine's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
struct Lost(u64);

struct Background {
    tasks: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<SeenInBackground>>,
}

#[derive(Default)]
struct SeenInBackground {
    asked: usize,
    wrong: Vec<String>,
}

impl Run {
    fn step(&mut self, action: &Action) -> anyhow::Result<()> {
        self.world.reap()?;
        match action {
            Action::Apply(objects) => self.world.apply(objects),
            Action::Delete { objects } => {
                objects.iter().try_for_each(|object| self.world.delete(object))?;
                self.world.settle()
            }
            Action::Label { object, set, unset } => {
                self.world.label(object, |labels| {
                    labels.extend(set.clone());
                    labels.retain(|key, _| !unset.contains(key));
                })?;
                self.world.settle()
            }
            Action::Connect(connect) => self.connect(connect),
            Action::Flows { expect, within_s, for_s, longest_pause_ms } => {
                let hold = Duration::from_secs_f32(*for_s).min(self.longest);
                let pause = longest_pause_ms.map(Duration::from_millis);
                expect.iter().try_for_each(|(name, _)| {
                    self.flows.get(name).map(|_| ()).with_context(|| format!("no flow {name}"))
                })?;
                self.watch(expect, Duration::from_secs_f32(*within_s), hold, pause)
            }
            Action::Probe { probes, within_s, hold_s } => self.probe(probes, *within_s, *hold_s),
            Action::Background { run, every_ms, probes } => self.start_background(run, *every_ms, probes),
            Action::Finish { run, wrong } => self.finish(run, *wrong),
            Action::Agent { action, node } => self.world.handle_agents(*action, node.as_deref()),
            Action::Wait { seconds } => {
                thread::sleep(Duration::from_secs_f32(*seconds).min(self.longest_wait));
                Ok(())
            }
            Action::End { pod, phase } => {
                self.world.end_with(&pod.0, phase)?;
                self.world.settle()
            }
            Action::ReuseAddress { of, by } => {
                let addresses = self.world.addresses_of(&of.0)?;
                self.world.start_pod(by, addresses)?;
                self.world.settle()
            }
            Action::PathMtu { node, bytes } => Ok(self.world.cluster.narrow(node, *bytes)?),
            Action::Transfer { from, to, port, bytes, within_s } => {
                let within = Duration::from_secs_f32(*within_s);
                for family in self.world.families() {
                    let server = SocketAddr::new(self.world.address(to, family)?, *port);
                    let took = probe::transfer(&self.world.namespace(from)?, server, *bytes, within);
                    took.with_context(|| format!("{bytes} bytes from {from} to {to} over {family:?}"))?;
                }
                Ok(())
            }
            Action::Jobs(jobs) => crowd::jobs(&mut self.world, jobs, self.longest),
            Action::Burst(burst) => crowd::burst(&mut self.world, burst, self.longest),
            Action::Orders(orders) => {
                let lines = crowd::orders(&mut self.world, orders)?;
                self.probe(&lines, orders.within_s, orders.hold_s)
            }
            Action::Churn { times, every_ms, between, crash } => {
                self.churn(*times, Duration::from_millis(*every_ms), between, *crash)
            }
            Action::Datagram { from, source_port, to, port, expect } => {
                self.datagram((&from.0, *source_port), (&to.0, *port), *expect)
            }
            Action::IcmpError { from, to, kind, quotes, expect } => {
                let (name, is_flow) = match quotes {
                    Quote::Flow(name) => (name, true),
                    Quote::NoFlow(name) => (name, false),
                };
                for (nonce, watched) in (1..).zip(self.flows.get(name).with_context(|| format!("no flow {name}"))?) {
                    let Flow { mut client, server, protocol, .. } = watched.flow;
                    if !is_flow {
                        client.set_port(client.port() ^ 1);
                    }
                    let message = message::error_about(*kind, protocol, client, server, nonce)?;
                    let target = End::Pod(to.0.clone());
                    let (from, to) = (self.world.namespace(from)?, self.world.namespace(&target)?);
                    let is_received = message::is_received(&from, &to, client.ip(), &message)?;
                    ensure!(is_received == (*expect == Arrival::Arrives), "{}: received: {is_received}", watched.name);
                }
                Ok(())
            }
        }
    }

    fn connect(&mut self, connect: &Connect) -> anyhow::Result<()> {
        let Connect { flow: name, from, to, traffic, expect, source_port, times, speaker } = connect;
        let client = self.world.namespace(from)?;
        let ends = [from, to].map(Clone::clone);
        let mut watched = Vec::new();
        for family in self.world.families() {
            let own = SocketAddr::new(self.world.address(from, family)?, source_port.unwrap_or(0));
            let server = SocketAddr::new(self.world.address(to, family)?, traffic.port);
            for number in 1..=*times {
                let flow = Flow::start(&client, own, server, *traffic, *speaker, &self.world.arrivals)?;
                let name = format!("{name} {number} over {family:?}");
                let (ends, looked, lost) = (ends.clone(), Instant::now(), Lost(0));
                watched.push(Watched { name, flow, ends, looked, lost });
            }
        }
        self.flows.insert(name.clone(), watched);
        match expect {
            Opening::Open => {
                let expect = BTreeMap::from([(name.clone(), FlowState::Running)]);
                self.watch(&expect, OPENING, Duration::ZERO, None)
            }
            Opening::Silent => {
                thread::sleep(SILENCE);
                for Watched { name, flow, .. } in &self.flows[name] {
                    let seen = flow.look();
                    ensure!(seen.last.is_none_or(|last| last < Instant::now() - SILENCE), "{name} got through");
                    ensure!(seen.ended.is_none(), "{name}: {}", seen.ended.unwrap_or_default());
                }
                Ok(())
            }
        }
    }

    /// Waits until each flow is in its state, for `hold`; then judges the pauses of those that run since the last look.
    fn watch(
        &mut self,
        expect: &BTreeMap<String, FlowState>,
        within: Duration,
        hold: Duration,
        longest: Option<Duration>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let now = Instant::now();
            let mut not_yet = None;
            for (name, state) in expect {
                for Watched { name, flow, .. } in &self.flows[name] {
                    let seen = flow.look();
                    if let Some(ended) = seen.ended {
                        bail!("{name} was ended: {ended}");
                    }
                    let since = match state {
                        FlowState::Running => {
                            // What was sent before may be answered after; the second answer is of this step.
                            let new = seen.answers.iter().copied().filter(|&answer| answer > start);
                            let second = new.clone().nth(1);
                            if let Some(second) = second {
                                let (pause, when) = longest_pause(&seen.answers, second, now);
                                ensure!(
                                    pause < LIVELY,
                                    "{name} paused for {pause:?}, {:?} into the step",
                                    when - start
                                );
                            }
                            second
                        }
                        FlowState::Stopped => Some(seen.last.map_or(start, |last| last.max(start))),
                    };
                    let is_late = now > start + within + hold + POLL;
                    match since {
                        Some(since) if now >= since + hold => {}
                        Some(since) if since <= start + within => not_yet = Some(name.clone()),
                        _ if is_late => bail!("{name} is not {state:?} within {within:?}, for {hold:?}"),
                        _ => not_yet = Some(name.clone()),
                    }
                }
            }
            if not_yet.is_none() {
                break;
            }
            thread::sleep(POLL);
        }
        let now = Instant::now();
        let stopped = expect.iter().filter(|(_, state)| **state == FlowState::Stopped);
        let trying: Vec<End> =
            stopped.flat_map(|(name, _)| &self.flows[name]).flat_map(|watched| watched.ends.clone()).collect();
        for (name, state) in expect {
            for watched in self.flows.get_mut(name).expect("it was looked at") {
                let lost = watched.lost(&self.world)?;
                if let (FlowState::Running, Some(longest)) = (state, longest) {
                    let (pause, when) = longest_pause(&watched.flow.look().answers, watched.looked, now);
                    // Where another flow is stopped and tries again, that says nothing of this one.
                    let is_clear = !watched.ends.iter().any(|end| trying.contains(end));
                    let is_networks = is_clear && lost > watched.lost;
                    ensure!(
                        pause <= longest || !is_networks,
                        "{} paused for {pause:?}, {:?} before the end of the step, and something was lost",
                        watched.name,
                        now - when
                    );
                }
                (watched.looked, watched.lost) = (now, lost);
            }
        }
        Ok(())
    }

    /// Asks until all answers are right, then again and again as long as they must stay so.
    fn probe(&mut self, lines: &[Line], within_s: f32, hold_s: f32) -> anyhow::Result<()> {
        let mut wrong: Vec<_> = questions(&self.world, lines)?;
        let all = wrong.clone();
        let deadline = Instant::now() + Duration::from_secs_f32(within_s);
        loop {
            let asked = ask_all(wrong, probe::PATIENCE)?;
            wrong = asked.into_iter().filter(|(_, is)| *is).map(|(question, _)| question).collect();
            let Some((name, _, expected)) = wrong.first() else { break };
            let count = wrong.len();
            ensure!(Instant::now() < deadline, "{count} are wrong after {within_s} s, first {name}: not {expected}");
            thread::sleep(POLL);
        }
        let held = Instant::now() + Duration::from_secs_f32(hold_s).min(self.longest);
        while Instant::now() < held {
            let asked = ask_all(all.clone(), HELD_PATIENCE)?;
            let wrong = asked.into_iter().find(|(_, is)| *is);
            ensure!(wrong.is_none(), "{} does not stay right", wrong.map(|((name, ..), _)| name).unwrap_or_default());
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn start_background(&mut self, run: &str, every_ms: u64, lines: &[Line]) -> anyhow::Result<()> {
        let seen = Arc::new(Mutex::new(SeenInBackground::default()));
        let start = Instant::now();
        let ask = |(name, question, expected): Asked| {
            let seen = seen.clone();
            RUNTIME.spawn(async move {
                let patience = if expected == Outcome::Accept { HELD_PATIENCE } else { probe::PATIENCE };
                loop {
                    let outcome = question.ask(patience).await;
                    {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.asked += 1;
                        if !matches!(outcome, Ok(outcome) if outcome == expected) {
                            seen.wrong.push(format!("{name}: {outcome:?}, {:?} after the start", start.elapsed()));
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(every_ms)).await;
                }
            })
        };
        let tasks = questions(&self.world, lines)?.into_iter().map(ask).collect();
        let background = Background { tasks, seen };
        ensure!(self.backgrounds.insert(run.into(), background).is_none(), "{run} runs already");
        Ok(())
    }

    fn finish(&mut self, run: &str, allowed: usize) -> anyhow::Result<()> {
        let Background { tasks, seen } =
            self.backgrounds.remove(run).with_context(|| format!("no background {run}"))?;
        tasks.iter().for_each(JoinHandle::abort);
        let SeenInBackground { asked, wrong } = &*seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(*asked > tasks.len(), "{asked} answers came to {} questions", tasks.len());
        ensure!(wrong.len() <= allowed, "{} of {asked} answers were wrong:\n{}", wrong.len(), wrong.join("\n"));
        Ok(())
    }

    fn churn(&mut self, times: u32, every: Duration, between: &[Objects; 2], crash: bool) -> anyhow::Result<()> {
        for number in 0..times {
            self.world.create(&between[(number % 2) as usize])?;
            thread::sleep(every);
            if crash {
                // Wherever they are: reading, compiling, publishing.
                self.world.signal_agents(AgentAction::Kill, None)?;
                self.world.signal_agents(AgentAction::Start, None)?;
            }
        }
        self.world.settle()
    }

    fn datagram(&mut self, from: (&PodKey, u16), to: (&PodKey, u16), expect: Arrival) -> anyhow::Result<()> {
        for family in self.world.families() {
            let at = |world: &World, (pod, port): (&PodKey, u16)| {
                anyhow::Ok(SocketAddr::new(world.address(&End::Pod(pod.clone()), family)?, port))
            };
            let (source, destination) = (at(&self.world, from)?, at(&self.world, to)?);
            let (sender, is_served) = self.world.datagram_socket(from.0, source)?;
            let (receiver, echoes) = self.world.datagram_socket(to.0, destination)?;
            let name = format!("{source} to {destination}");
            let before = self.world.arrivals.of(Protocol::Udp, source).len();
            let payload = format!("datagram {before} of {name} at {:?}", Instant::now());
            RUNTIME.block_on(sender.send_to(payload.as_bytes(), destination)).with_context(|| name.clone())?;
            let listener = if expect == Arrival::Answered { &sender } else { &receiver };
            let is_received = if echoes && expect != Arrival::Answered {
                let deadline = Instant::now() + probe::PATIENCE;
                loop {
                    let arrived = self.world.arrivals.of(Protocol::Udp, source).len() > before;
                    if arrived || Instant::now() > deadline {
                        break arrived;
                    }
                    thread::sleep(POLL / 10);
                }
            } else {
                ensure!(expect != Arrival::Answered || !is_served, "{name}: the server's own socket hears no answer");
                let listening = async {
                    let mut buffer = [0; 256];
                    loop {
                        // An error here is an ICMP message about another datagram.
                        if let Ok((length, _)) = listener.recv_from(&mut buffer).await
                            && &buffer[..length] == payload.as_bytes()
                        {
                            return;
                        }
                    }
                };
                RUNTIME.block_on(async { tokio::time::timeout(probe::PATIENCE, listening).await.is_ok() })
            };
            ensure!(is_received == (expect != Arrival::Lost), "{name}: received: {is_received}");
        }
        Ok(())
    }
}

impl Watched {
    /// For TCP, what its ends had to send again so far; for others, what was not answered.
    fn lost(&self, world: &World) -> anyhow::Result<Lost> {
        if self.flow.protocol != Protocol::Tcp {
            let seen = self.flow.look();
            // One may be under way.
            return Ok(Lost((seen.sent.saturating_sub(seen.answers.len()) as u64).saturating_sub(1)));
        }
        let mut sum = 0;
        // An end that is gone sends nothing again.
        for namespace in self.ends.iter().filter_map(|end| world.namespace(end).ok()) {
            let read = |file: &str| {
                anyhow::Ok(namespace.run(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))??)
            };
            // New connections that are not answered, as those of a pod that nobody knows yet, count in both.
            let all = counter(&read("snmp")?, "Tcp:", "RetransSegs")?;
            let of_handshakes = counter(&read("netstat")?, "TcpExt:", "TCPSynRetrans")?;
            sum += all.saturating_sub(of_handshakes);
        }
        Ok(Lost(sum))
    }
}

/// A counter out of pairs of lines: names, then values.
fn counter(text: &str, group: &str, name: &str) -> anyhow::Result<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let place = names.split_whitespace().position(|it| it == name).with_context(|| format!("no counter {name}"))?;
    Ok(values.split_whitespace().nth(place).context("a value")?.parse()?)
}

/// A question with its name and the right answer.
type Asked = (String, Question, Outcome);

/// Every line over every family.
fn questions(world: &World, lines: &[Line]) -> anyhow::Result<Vec<Asked>> {
    let mut questions = Vec::new();
    for Line { from, to, traffic, expect } in lines {
        for family in world.families() {
            let question = Question { from: world.namespace(from)?, to: world.address(to, family)?, traffic: *traffic };
            questions.push((format!("{from} to {to} {traffic} over {family:?}"), question, *expect));
        }
    }
    Ok(questions)
}

/// Asks every question at once; says of each whether the answer was wrong.
fn ask_all(questions: Vec<Asked>, patience: Duration) -> anyhow::Result<Vec<(Asked, bool)>> {
    let mut asking = JoinSet::new();
    for (name, question, expected) in questions {
        let patience = if expected == Outcome::Accept { patience } else { probe::PATIENCE };
        asking.spawn_on(
            async move {
                let outcome = question.ask(patience).await;
                ((name, question, expected), outcome)
            },
            RUNTIME.handle(),
        );
    }
    let mut answers = Vec::new();
    for (asked, outcome) in RUNTIME.block_on(asking.join_all()) {
        let outcome = outcome.with_context(|| asked.0.clone())?;
        let is_wrong = outcome != asked.2;
        answers.push((asked, is_wrong));
    }
    Ok(answers)
}
