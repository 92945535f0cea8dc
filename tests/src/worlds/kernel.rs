//! The shipped programs in the kernel, over tables that the real publisher fills with one world over the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use npolicy_agent::compile::Plan;
use npolicy_agent::datapath::{Datapath, DatapathConfig};
use npolicy_agent::model::PodKey;
use npolicy_agent::rig::{BpfFs, Layout, Node, NodeSettings, PodSettings};
use npolicy_agent::watch::links::{HostLink, LinkWatch};
use npolicy_common::Verdict;
use serde_json::Value;

use super::frames::{Part, SOURCE_PORTS, came_by, frame};
use super::interest::Step;
use super::judges::{Judge, Said, plans, pod_key};

/// Interfaces: as many as a world has pods at most.
const LINKS: usize = 10;
/// One publish of so many is followed by the wait for what was freed.
const SETTLE_EVERY: u64 = 8;

/// One node's datapath with interfaces enough for every world.
#[derive(Debug)]
pub struct KernelJudge {
    datapath: Datapath,
    links: Vec<HostLink>,
    rng: Rng,
    source_port: u16,
    /// Packets that were judged.
    pub packets: u64,
}

impl KernelJudge {
    /// Makes a node, opens its datapath, with so many buckets in each flow table, and runs `work` in its network
    /// namespace.
    ///
    /// # Errors
    ///
    /// The node or the datapath cannot be made; it takes root.
    pub fn run<T: Send>(seed: u64, flow_buckets: u32, work: impl FnOnce(&mut Self) -> T + Send) -> Result<T> {
        let mut node = Node::new(NodeSettings { name: "n1".into(), number: 1, layout: Layout::Routed })?;
        for number in 0..LINKS {
            node.add_pod(PodSettings::new("worlds", &format!("p{number}")))?;
        }
        let bpffs = BpfFs::new()?;
        node.namespace().run(|| {
            let links = links()?;
            let config = DatapathConfig { flow_buckets, ..DatapathConfig::new(bpffs.pin_dir()) };
            let mut datapath = Datapath::open(&config)?;
            for link in &links {
                datapath.enroll(link)?;
            }
            let rng = Rng::with_seed(seed);
            let mut judge = Self { datapath, links, rng, source_port: SOURCE_PORTS.start, packets: 0 };
            Ok(work(&mut judge))
        })?
    }

    /// Publishes a plan with the first pod behind this interface; returns each pod's place among the links.
    fn publish(&mut self, plan: &Plan, first: usize) -> BTreeMap<PodKey, usize> {
        let places: BTreeMap<PodKey, usize> =
            plan.subjects.keys().enumerate().map(|(index, pod)| (pod.clone(), (first + index) % LINKS)).collect();
        let owners: Vec<(u32, PodKey)> =
            places.iter().map(|(pod, &place)| (self.links[place].ifindex, pod.clone())).collect();
        let report = self.datapath.publish(plan, &owners).expect("a plan is published");
        assert!(report.is_complete(), "a small world fits the tables: {report:?}");
        if self.datapath.accepts_unidentified() {
            self.datapath.identify_from_now_on().expect("the time of the unidentified is over");
        }
        if self.rng.u64(0..SETTLE_EVERY) == 0 {
            self.datapath.settle().expect("settled");
        }
        places
    }

    /// The packet that opens a step's flow, from a source port that no flow had for a long time, and none of another origin
    /// ever: a flow that is accepted by its class speaks for the packets that the node or the pod itself sends on it.
    fn open(&mut self, step: &Step, place: usize) -> (Said, u16) {
        const ORIGINS: u16 = 3;
        let port = self.source_port + step.origin as u16;
        let next = self.source_port + ORIGINS;
        self.source_port = if next + ORIGINS <= SOURCE_PORTS.end { next } else { SOURCE_PORTS.start };
        (self.packet(step, place, port, Part::Opening), port)
    }

    /// What the program says about a packet of a step's flow.
    fn packet(&mut self, step: &Step, place: usize, source_port: u16, part: Part) -> Said {
        let link = &self.links[place];
        let direction = part.direction(step);
        let frame = frame(step, part, source_port, link.peer_mac);
        let came_by = came_by(direction, step.origin, link.ifindex, self.links[(place + 1) % LINKS].ifindex);
        let run = self.datapath.test_run(direction, &frame, link.ifindex, came_by, 1);
        self.packets += 1;
        match run.expect("a run").answer.cast_signed() {
            // TC_ACT_UNSPEC: the next program decides.
            -1 => Verdict::Accept.into(),
            // TC_ACT_SHOT.
            2 => Verdict::Deny.into(),
            other => panic!("answer {other} to {step:?}"),
        }
    }

    /// Opens a flow for each step under the policies of `worlds[0]`, then publishes every world in turn and sends a
    /// segment and a reply of each flow that was accepted. The worlds have the same pods and nodes. Returns, by world, what
    /// was said to each step's segment and reply; nothing for a flow that was never accepted.
    pub fn follow(&mut self, worlds: &[&[Value]], steps: &[Step]) -> Vec<Vec<Option<[Said; 2]>>> {
        let mut said = vec![vec![None; steps.len()]; worlds.len()];
        let plans: Vec<_> = worlds.iter().map(|objects| plans(objects, steps)).collect();
        for node in plans[0].keys() {
            let first = self.rng.usize(0..LINKS);
            let mut flows = Vec::new();
            for (turn, plans) in plans.iter().enumerate() {
                let places = self.publish(&plans[node], first);
                if turn == 0 {
                    for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.node == *node) {
                        let Some(&place) = places.get(&pod_key(step)) else { continue };
                        let (opened, port) = self.open(step, place);
                        flows.extend((opened == Said::Accept).then_some((index, place, port)));
                    }
                }
                for &(index, place, port) in &flows {
                    let parts = [Part::Segment, Part::Reply];
                    said[turn][index] = Some(parts.map(|part| self.packet(&steps[index], place, port, part)));
                }
            }
        }
        said
    }
}

impl Judge<Step> for KernelJudge {
    fn judge(&mut self, objects: &[Value], steps: &[Step]) -> Vec<Said> {
        let mut said = vec![Said::NotAsked; steps.len()];
        for (node, plan) in plans(objects, steps) {
            // Every world puts pods behind other interfaces: a line is soon another pod's.
            let first = self.rng.usize(0..LINKS);
            let places = self.publish(&plan, first);
            for (step, said) in steps.iter().zip(&mut said).filter(|(step, _)| step.node == node) {
                *said = places.get(&pod_key(step)).map_or(Said::NoAnswer, |&place| self.open(step, place).0);
            }
        }
        said
    }
}

/// The node's interfaces, once all of them have addresses.
fn links() -> Result<Vec<HostLink>> {
    let watch = LinkWatch::start()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let links: Vec<HostLink> =
            watch.current().host.values().filter(|link| !link.addresses.is_empty()).cloned().collect();
        if links.len() == LINKS {
            return Ok(links);
        }
        ensure!(Instant::now() < deadline, "{} of {LINKS} interfaces show an address", links.len());
        std::thread::sleep(Duration::from_millis(5));
    }
}
