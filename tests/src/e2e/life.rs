//! Agents end, are replaced and are cut off, and nodes restart, under traffic without pause.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::Command;

use super::api::Api;
use super::install::{Agent, NAMESPACE, agents, restart, wait_ready};
use super::live::Live;
use super::message::Protocol;
use super::peer::now_ns;
use super::report::Report;
use super::stage::Stage;
use super::traffic::{Flow, Must, Traffic, flows, pause};

const SUITE: &str = "life";
/// What is served, and what no policy lets in.
const OPEN: u16 = 80;
const CLOSED: u16 = 81;
/// How long a cluster may take until verdicts are as its policies say.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a real cluster of this machine can be made to do.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The program and first arguments of `cargo xtask cluster`.
    pub command: Vec<PathBuf>,
}

impl Machine {
    /// Runs one of its commands about a node, which bears its number last.
    async fn run(&self, what: &str, node: &str) -> anyhow::Result<()> {
        let number = node.trim_start_matches(|c: char| !c.is_ascii_digit());
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args([what, number]);
        let output = command.output().await.with_context(|| format!("start {}", self.command[0].display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cluster {what} {number}: {}", said.trim_end());
        Ok(())
    }
}

/// Pods and policies of the suite.
struct Scene {
    live: Live,
    stage: Stage,
    friends: Vec<String>,
    strangers: Vec<String>,
    servers: Vec<String>,
    /// No policy selects these.
    controls: Vec<String>,
}

/// Does everything to a cluster that it can be made to suffer, and says what cannot be done to it.
///
/// # Errors
///
/// The cluster has no two nodes, or pods do not run.
pub async fn run(api: &Api, image: &str, machine: Option<&Machine>, report: &mut Report) -> anyhow::Result<()> {
    let mut scene = Scene::new(api, image).await?;
    let begin = Instant::now();
    let settled = scene.settle().await;
    let is_settled = settled.is_ok();
    report.add_result(SUITE, "the policies hold", begin, settled.map(|()| String::new()));
    if !is_settled {
        for name in ["agents deleted", "agents killed", "rolling update", "cut", "node restarted"] {
            report.leave_out(SUITE, name, "the policies do not hold before");
        }
        return Ok(());
    }
    let begin = Instant::now();
    let done = scene.agents_deleted().await;
    report.add_result(SUITE, "agents deleted by force, and new ones", begin, done);
    if rustix::process::geteuid().is_root() && machine.is_some() {
        let begin = Instant::now();
        let done = scene.agents_killed().await;
        report.add_result(SUITE, "agents killed by SIGKILL, and started again", begin, done);
    } else {
        let reason = "only root reaches the agents' processes, and only where the nodes are on this machine";
        report.leave_out(SUITE, "agents killed by SIGKILL, and started again", reason);
    }
    let begin = Instant::now();
    let done = scene.rolling_update().await;
    report.add_result(SUITE, "rolling update of the agents", begin, done);
    let names = ["a node cut off from the API server, while a policy changes", "a node restarted, while others go on"];
    let Some(machine) = machine else {
        for name in names {
            report.leave_out(SUITE, name, "only `cargo xtask cluster` can do this to its nodes");
        }
        return Ok(());
    };
    let begin = Instant::now();
    let done = scene.cut(machine).await;
    report.add_result(SUITE, names[0], begin, done);
    let begin = Instant::now();
    let done = scene.node_restarted(machine).await;
    report.add_result(SUITE, names[1], begin, done);
    Ok(())
}

impl Scene {
    async fn new(api: &Api, image: &str) -> anyhow::Result<Self> {
        let live = Live::start(api, image).await?;
        let mut stage = Stage::new("life")?;
        let mut of = |role: &str| -> anyhow::Result<Vec<String>> {
            ["n1", "n2"].into_iter().map(|node| stage.pod(role, node)).collect()
        };
        let (friends, strangers, servers) = (of("friend")?, of("stranger")?, of("server")?);
        let mut controls = of("control")?;
        // While one node restarts, the other has two.
        controls.push(stage.pod("second-control", "n1")?);
        let role = |role: &str| json!({"matchLabels": {"role": role}});
        stage.policy(
            "servers",
            json!({
                "podSelector": role("server"), "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": role("friend")}], "ports": [{"port": OPEN}]}],
            }),
        )?;
        stage.policy(
            "friends",
            json!({
                "podSelector": role("friend"), "policyTypes": ["Ingress", "Egress"],
                "egress": [{"to": [{"podSelector": role("server")}]}],
            }),
        )?;
        let mut scene = Self { live, stage, friends, strangers, servers, controls };
        scene.live.enter(&scene.stage.objects, &BTreeSet::new()).await?;
        scene.serve().await?;
        Ok(scene)
    }

    async fn serve(&mut self) -> anyhow::Result<()> {
        let ports = BTreeSet::from([(Protocol::Tcp, OPEN), (Protocol::Tcp, CLOSED)]);
        let serving = self.servers.iter().chain(&self.controls);
        let wanted: BTreeMap<_, _> = serving.map(|server| (server.clone(), ports.clone())).collect();
        self.live.serve(&wanted).await
    }

    /// Flows between all pods for which `is_meant`.
    fn flows(&self, is_meant: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Flow>> {
        let meant = |keys: &'_ [String]| -> Vec<String> { keys.iter().filter(|key| is_meant(key)).cloned().collect() };
        let (friends, strangers, servers) = (meant(&self.friends), meant(&self.strangers), meant(&self.servers));
        let live = &self.live;
        let controls = meant(&self.controls);
        let mut all = flows(live, &controls, &controls, OPEN, Must::Control)?;
        all.extend(flows(live, &friends, &servers, OPEN, Must::Live)?);
        all.extend(flows(live, &friends, &servers, OPEN, Must::Reach)?);
        all.extend(flows(live, &friends, &servers, CLOSED, Must::Fail)?);
        all.extend(flows(live, &strangers, &servers, OPEN, Must::Fail)?);
        Ok(all)
    }

    /// Waits until all flows do as they must.
    async fn settle(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let traffic = Traffic::start(&self.live, self.flows(|_| true)?).await;
            let came = match traffic {
                Ok(traffic) => {
                    pause(2.0).await;
                    traffic.stop(&self.live).await.map(|_| ())
                }
                Err(error) => Err(error),
            };
            match came {
                Ok(()) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => pause(1.0).await,
            }
        }
    }

    async fn agents_deleted(&self) -> anyhow::Result<String> {
        let traffic = Traffic::start(&self.live, self.flows(|_| true)?).await?;
        pause(1.0).await;
        for _ in 0..2 {
            for agent in agents(&self.live.api).await? {
                self.live.api.delete("Pod", NAMESPACE, &agent.pod).await?;
            }
            pause(0.5).await;
            wait_ready(&self.live.api).await?;
        }
        pause(2.0).await;
        traffic.stop(&self.live).await
    }

    async fn agents_killed(&self) -> anyhow::Result<String> {
        let traffic = Traffic::start(&self.live, self.flows(|_| true)?).await?;
        pause(1.0).await;
        let mut killed = 0;
        for agent in agents(&self.live.api).await? {
            for process in processes_of(&agent)? {
                kill_process(process, Signal::KILL).with_context(|| format!("kill the agent of {}", agent.node))?;
                killed += 1;
            }
        }
        ensure!(killed > 0, "no process of an agent was found");
        pause(1.5).await;
        wait_ready(&self.live.api).await?;
        pause(2.0).await;
        Ok(format!("{killed} processes killed; {}", traffic.stop(&self.live).await?))
    }

    async fn rolling_update(&self) -> anyhow::Result<String> {
        let before = agents(&self.live.api).await?;
        let traffic = Traffic::start(&self.live, self.flows(|_| true)?).await?;
        pause(1.0).await;
        restart(&self.live.api).await?;
        pause(0.5).await;
        wait_ready(&self.live.api).await?;
        pause(2.0).await;
        let came = traffic.stop(&self.live).await?;
        let after = agents(&self.live.api).await?;
        let is_old = |agent: &Agent| before.iter().any(|old| old.uid == agent.uid);
        ensure!(!after.iter().any(is_old), "an agent was not replaced");
        Ok(came)
    }

    /// The first node hears of a change only when it is connected again; until then it enforces what it knows.
    async fn cut(&mut self, machine: &Machine) -> anyhow::Result<String> {
        let [here, there] = [0, 1].map(|place| self.live.nodes[place].name.clone());
        // Strangers are to be let in meanwhile; nothing else changes for anybody.
        let steady: Vec<Flow> =
            self.flows(|_| true)?.into_iter().filter(|flow| !self.strangers.contains(&flow.from)).collect();
        let steady = Traffic::start(&self.live, steady).await?;
        let changing = flows(&self.live, &self.strangers, &self.servers, OPEN, Must::Reach)?;
        let changing = Traffic::start(&self.live, changing).await?;
        pause(1.5).await;
        machine.run("cut", &here).await?;
        let cut = self.while_cut(&changing, &there).await;
        let mended_ns = now_ns();
        // Whatever came of it, the node is not left so.
        machine.run("mend", &here).await?;
        cut?;
        let begin = Instant::now();
        let (here_stranger, there_stranger) = (self.strangers[0].clone(), self.strangers[1].clone());
        let on_here = self.servers[0].clone();
        let first_ns = loop {
            let mut firsts = Vec::new();
            for stranger in [&here_stranger, &there_stranger] {
                match changing.watched(&self.live, stranger).await {
                    Ok(watched) => firsts.extend(watched.into_iter().filter(|(to, _)| *to == on_here)),
                    // The line of the node that was cut off may have to be opened again.
                    Err(error) => ensure!(begin.elapsed() < PATIENCE, "after the node was connected again: {error:#}"),
                }
            }
            if firsts.len() >= 2 && firsts.iter().all(|(_, watched)| watched.accepted.count > 0) {
                break firsts.iter().map(|(_, watched)| watched.accepted.first_ns).min().unwrap_or_default();
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "{PATIENCE:.0?} after it was connected again, {here} does not enforce the new policy: {firsts:?}"
            );
            pause(0.2).await;
        };
        ensure!(first_ns > mended_ns, "{here} let strangers in while it was cut off from the API server");
        let late = (first_ns - mended_ns) as f64 / 1e9;
        let lived = steady.stop(&self.live).await?;
        // Both ends were of the wrong verdict for a while, as they must be; only the connections have to be ended.
        let _ = changing.stop(&self.live).await;
        self.let_strangers_in(false)?;
        self.live.enter(&self.stage.objects, &BTreeSet::new()).await?;
        self.settle().await.context("after the policy was taken back")?;
        Ok(format!("the new policy was in force {late:.1} s after the node was connected again; {lived}"))
    }

    /// Lets strangers in and waits until the node that hears of it does so. A while longer, the other must not.
    async fn while_cut(&mut self, changing: &Traffic, there: &str) -> anyhow::Result<()> {
        pause(1.0).await;
        self.let_strangers_in(true)?;
        self.live.enter(&self.stage.objects, &BTreeSet::new()).await?;
        let begin = Instant::now();
        let (there_stranger, on_there) = (self.strangers[1].clone(), self.servers[1].clone());
        loop {
            let watched = changing.watched(&self.live, &there_stranger).await?;
            let mut to_there = watched.iter().filter(|(to, _)| *to == on_there);
            if to_there.all(|(_, watched)| watched.accepted.count > 0) {
                break;
            }
            ensure!(begin.elapsed() < PATIENCE, "{there}, which is connected, does not enforce the new policy");
            pause(0.2).await;
        }
        pause(4.0).await;
        Ok(())
    }

    fn let_strangers_in(&mut self, is_in: bool) -> anyhow::Result<()> {
        if !is_in {
            return self.stage.objects.delete(&format!("NetworkPolicy {}/strangers", self.stage.namespace));
        }
        let role = |role: &str| json!({"matchLabels": {"role": role}});
        self.stage.policy(
            "strangers",
            json!({
                "podSelector": role("server"), "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": role("stranger")}], "ports": [{"port": OPEN}]}],
            }),
        )
    }

    /// The second node goes and comes; on the first one everything goes on, and nobody gets where he must not.
    async fn node_restarted(&mut self, machine: &Machine) -> anyhow::Result<String> {
        let there = self.live.nodes[1].clone();
        let here = Traffic::start(&self.live, self.flows(|key| key.ends_with("-n1"))?).await?;
        let mut towards: Vec<Flow> = self.flows(|_| true)?;
        towards.retain(|flow| flow.must == Must::Fail && flow.from.ends_with("-n1") && flow.to.ends_with("-n2"));
        let towards = Traffic::start(&self.live, towards).await?;
        pause(1.0).await;
        machine.run("restart-node", &there.name).await?;
        wait_ready(&self.live.api).await?;
        self.live.meet_again(&there.written).await?;
        let lived = here.stop(&self.live).await?;
        // The address was of a pod that is gone. It may be of nobody now, which is a refusal, or of a pod that no policy
        // governs: before that one serves anything, too.
        let mut wrong = Vec::new();
        for stranger in [&self.strangers[0], &self.friends[0]] {
            for (to, watched) in towards.watched(&self.live, stranger).await? {
                if watched.accepted.count > 0 {
                    wrong.push(format!("{stranger} -> {to}: {} accepted", watched.accepted.count));
                }
            }
        }
        let _ = towards.stop(&self.live).await;
        ensure!(wrong.is_empty(), "while {} restarted:\n{}", there.name, wrong.join("\n"));
        self.serve().await?;
        // From the first moment that the new pods serve.
        let mut fresh: Vec<Flow> = self.flows(|_| true)?;
        fresh.retain(|flow| flow.must == Must::Fail);
        let fresh = Traffic::start(&self.live, fresh).await?;
        let settled = self.settle_others().await;
        let denied = fresh.stop(&self.live).await;
        settled.context("after the restart")?;
        denied.context("after the restart")?;
        Ok(lived)
    }

    /// Waits until what must be accepted is.
    async fn settle_others(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let mut flows = self.flows(|_| true)?;
            flows.retain(|flow| flow.must == Must::Reach);
            let traffic = Traffic::start(&self.live, flows).await?;
            pause(2.0).await;
            match traffic.stop(&self.live).await {
                Ok(_) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            }
        }
    }
}

/// The processes of an agent's pod that run the agent: those in its control group.
fn processes_of(agent: &Agent) -> anyhow::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let path = entry?.path();
        let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else { continue };
        // A process may end while we look.
        let Ok(groups) = fs::read_to_string(path.join("cgroup")) else { continue };
        let is_of_pod = groups.contains(&agent.uid) || groups.contains(&agent.uid.replace('-', "_"));
        let Ok(command) = fs::read(path.join("cmdline")) else { continue };
        let mut words = command.split(|byte| *byte == 0);
        let is_agent =
            words.next().is_some_and(|program| program.ends_with(b"npolicy")) && words.next() == Some(b"agent");
        if is_of_pod && is_agent {
            found.extend(Pid::from_raw(number));
        }
    }
    if found.is_empty() {
        bail!("no process of pod {} is seen here; are the nodes on this machine?", agent.pod);
    }
    Ok(found)
}
