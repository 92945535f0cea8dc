//! Those who judge, and the comparison of two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use fastrand::Rng;
use npolicy_agent::compile::{Compiler, Engine, Peer, Plan, Scope};
use npolicy_agent::model::{ClusterState, Event, Object, ObjectKey, PodKey};
use npolicy_agent::watch::objects::{Tree, read_document};
use npolicy_common::{FlowProtocol, Verdict};
use serde_json::Value;

use super::counts::Tally;
use super::interest::Step;
use crate::cases::Row;
use crate::oracle::{Answer, Origin, Probe, World};

/// What a judge says to a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Said {
    /// It may.
    Accept,
    /// It may not.
    Deny,
    /// The question has no answer.
    NoAnswer,
    /// This judge cannot be asked that.
    NotAsked,
}

impl Said {
    /// Reads what `questions.jsonl` expects.
    ///
    /// # Panics
    ///
    /// On another word.
    pub fn from_word(word: &str) -> Self {
        match word {
            "Accept" => Self::Accept,
            "Deny" => Self::Deny,
            "error" => Self::NoAnswer,
            other => panic!("{other:?} is no answer"),
        }
    }
}

impl From<Verdict> for Said {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accept => Self::Accept,
            Verdict::Deny => Self::Deny,
        }
    }
}

/// One way to come to verdicts: reads the objects by itself and answers every question.
pub trait Judge<Q> {
    /// As many answers as questions.
    fn judge(&mut self, objects: &[Value], questions: &[Q]) -> Vec<Said>;
}

/// A question on which two judges differ.
#[derive(Clone, Debug)]
pub struct Difference<Q> {
    /// The question.
    pub question: Q,
    /// What the first says.
    pub expected: Said,
    /// What the second says.
    pub got: Said,
}

/// Puts every question to both; returns the first on which they differ.
pub fn compare<Q: Clone>(
    expected: &mut dyn Judge<Q>,
    got: &mut dyn Judge<Q>,
    objects: &[Value],
    questions: &[Q],
    tally: &mut Tally,
) -> Option<Difference<Q>> {
    let (expected, got) = (expected.judge(objects, questions), got.judge(objects, questions));
    assert_eq!((expected.len(), got.len()), (questions.len(), questions.len()), "as many answers as questions");
    tally.count(&got);
    let mut answers = questions.iter().zip(expected.into_iter().zip(got));
    answers
        .find(|(_, (expected, got))| expected != got && *got != Said::NotAsked)
        .map(|(question, (expected, got))| Difference { question: question.clone(), expected, got })
}

/// The cluster as npolicy reads the objects.
pub fn state_of(objects: &[Value]) -> ClusterState {
    let mut state = ClusterState::default();
    for object in objects.iter().flat_map(read) {
        state.apply(Event::Upsert(object));
    }
    state
}

fn read(object: &Value) -> impl Iterator<Item = Object> {
    read_document(&Tree::from(object.clone()), None).objects.into_iter().map(|(object, _)| object)
}

/// The oracle, asked about connections.
#[derive(Debug)]
pub struct OracleAsks;

impl Judge<Probe> for OracleAsks {
    fn judge(&mut self, objects: &[Value], probes: &[Probe]) -> Vec<Said> {
        let world = World::from_objects(objects);
        let said = |probe| match world.ask(probe) {
            Answer::Accept => Said::Accept,
            Answer::Deny => Said::Deny,
            Answer::Error(_) => Said::NoAnswer,
        };
        probes.iter().map(said).collect()
    }
}

/// The engine behind `npolicy can`.
#[derive(Debug)]
pub struct EngineJudge;

impl Judge<Probe> for EngineJudge {
    fn judge(&mut self, objects: &[Value], probes: &[Probe]) -> Vec<Said> {
        let mut engine = Engine::new(state_of(objects));
        let said = |probe: &Probe| engine.verdict(&row(probe).question()).map_or(Said::NoAnswer, Said::from);
        probes.iter().map(said).collect()
    }
}

/// The probe as a line of `questions.jsonl` without an answer.
pub(super) fn row(probe: &Probe) -> Row {
    Row {
        from: probe.from.clone(),
        to: probe.to.clone(),
        protocol: probe.protocol.clone(),
        port: probe.port,
        family: probe.family.clone(),
        expect: String::new(),
        why: String::new(),
    }
}

/// The oracle, asked about one direction of one pod.
#[derive(Debug)]
pub struct OracleSteps;

impl Judge<Step> for OracleSteps {
    fn judge(&mut self, objects: &[Value], steps: &[Step]) -> Vec<Said> {
        let world = World::from_objects(objects);
        let is_pod = |object: &Value, (namespace, name): &(String, String)| {
            let metadata = &object["metadata"];
            object["kind"] == "Pod" && metadata["namespace"] == **namespace && metadata["name"] == **name
        };
        let said = |step: &Step| {
            if !objects.iter().any(|object| is_pod(object, &step.pod)) {
                return Said::NoAnswer;
            }
            let Step { pod: (namespace, name), direction, remote, origin, protocol, port, .. } = step;
            world.step((namespace, name), *direction, *remote, *origin, protocol, *port).into()
        };
        steps.iter().map(said).collect()
    }
}

/// What each node would publish.
#[derive(Debug)]
pub struct PlanJudge;

impl Judge<Step> for PlanJudge {
    fn judge(&mut self, objects: &[Value], steps: &[Step]) -> Vec<Said> {
        let plans = plans(objects, steps);
        steps.iter().map(|step| by_plan(&plans[&step.node], step)).collect()
    }
}

fn by_plan(plan: &Plan, step: &Step) -> Said {
    let Some(subject) = plan.subjects.get(&pod_key(step)) else { return Said::NoAnswer };
    let peer = match step.origin {
        Origin::NodeSelf => Peer::NodeSelf,
        Origin::PodSelf => Peer::PodSelf,
        Origin::ByAddress => Peer::Class(plan.class_of(step.remote)),
    };
    let accepts = subject.ruleset(step.direction).row(peer).accepts(flow_protocol(step.protocol), step.port);
    if accepts { Said::Accept } else { Said::Deny }
}

/// The plans of compilers that have seen other worlds before, of a cluster that went through other states: whatever came
/// before, the same objects have to mean the same.
#[derive(Debug)]
pub struct DetourJudge {
    rng: Rng,
    state: ClusterState,
    seen: BTreeSet<ObjectKey>,
    compilers: BTreeMap<String, Compiler>,
}

impl DetourJudge {
    /// Starts with an empty cluster.
    pub fn new(seed: u64) -> Self {
        let (seen, compilers) = (BTreeSet::new(), BTreeMap::new());
        Self { rng: Rng::with_seed(seed), state: ClusterState::default(), seen, compilers }
    }

    /// Goes from the last world to this one, by way of some that never were.
    fn go(&mut self, objects: &[Value]) {
        let mut wanted: Vec<Object> = objects.iter().flat_map(read).collect();
        self.rng.shuffle(&mut wanted);
        for object in &wanted {
            self.state.apply(Event::Upsert(object.clone()));
            if self.rng.u32(0..4) == 0 {
                self.state.apply(Event::Delete(object.key()));
            }
        }
        let keys: BTreeSet<ObjectKey> = wanted.iter().map(Object::key).collect();
        for key in std::mem::replace(&mut self.seen, keys.clone()).difference(&keys) {
            self.state.apply(Event::Delete(key.clone()));
        }
        self.rng.shuffle(&mut wanted);
        for object in wanted {
            self.state.apply(Event::Upsert(object));
        }
        assert_eq!(self.state, state_of(objects), "the same objects make an equal state");
    }
}

impl Judge<Step> for DetourJudge {
    fn judge(&mut self, objects: &[Value], steps: &[Step]) -> Vec<Said> {
        self.go(objects);
        let mut plans = BTreeMap::new();
        for step in steps {
            let new = || Compiler::new(Scope::Node(step.node.as_str().into()));
            let compiler = self.compilers.entry(step.node.clone()).or_insert_with(new);
            plans.entry(step.node.clone()).or_insert_with(|| compiler.compile(&self.state).0);
        }
        steps.iter().map(|step| by_plan(&plans[&step.node], step)).collect()
    }
}

/// Keeps the steps in whose direction some policy governs the pod.
pub fn governed(objects: &[Value], mut steps: Vec<Step>) -> Vec<Step> {
    let plans = plans(objects, &steps);
    steps.retain(|step| {
        let subject = plans[&step.node].subjects.get(&pod_key(step));
        subject.is_some_and(|subject| subject.ruleset(step.direction).is_governed())
    });
    steps
}

/// The plan of each node that the steps name.
pub(super) fn plans(objects: &[Value], steps: &[Step]) -> BTreeMap<String, Plan> {
    let state = state_of(objects);
    let mut plans = BTreeMap::new();
    for step in steps {
        plans
            .entry(step.node.clone())
            .or_insert_with(|| Compiler::new(Scope::Node(step.node.as_str().into())).compile(&state).0);
    }
    plans
}

/// The pod of a step.
pub(super) fn pod_key(step: &Step) -> PodKey {
    PodKey { namespace: step.pod.0.as_str().into(), name: step.pod.1.as_str().into() }
}

fn flow_protocol(name: &str) -> FlowProtocol {
    match name {
        "TCP" => FlowProtocol::Tcp,
        "UDP" => FlowProtocol::Udp,
        "SCTP" => FlowProtocol::Sctp,
        _ => FlowProtocol::Other,
    }
}
