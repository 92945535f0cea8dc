//! Scenarios on the host: against the oracle, the engine, and the plans that nodes enforce.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use npolicy_agent::compile::{Compiler, Engine, Peer, Plan, Protocol, Scope};
use npolicy_agent::model::{ClusterState, Event, Object, PodKey};
use npolicy_agent::watch::manifests::Manifests;
use npolicy_common::{Direction, Family, Verdict};
use serde_json::Value;

use super::expect::Expected;
use super::objects::{Objects, pod_addresses};
use super::scenario::{Scenario, Step};
use super::world::pod_behind;
use crate::oracle::{Answer, World as Oracle};

/// An answer that is not the expected one, for people to read.
pub type Difference = String;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Puts every probe to `answer`, once for each family, and says which answers differ.
fn compare(
    scenario: &Scenario,
    step: (usize, &Step),
    who: &str,
    mut answer: impl FnMut(&Expected, Family) -> String,
) -> (usize, Vec<Difference>) {
    let (mut asked, mut differences) = (0, Vec::new());
    let (number, step) = step;
    for expected in &step.expected {
        for family in FAMILIES.into_iter().filter(|family| expected.family.is_none_or(|own| own == *family)) {
            asked += 1;
            let said = answer(expected, family);
            let wanted = if expected.is_accepted { "Accept" } else { "Deny" };
            if said != wanted {
                let line = expected.row(Some(family)).line();
                differences.push(format!("{}, step {number}: {line}: {who}: {said}, not {wanted}", scenario.name));
            }
        }
    }
    (asked, differences)
}

/// What the oracle says of every probe. Returns how many there are, and the answers that differ.
pub fn check_oracle(scenario: &Scenario) -> (usize, Vec<Difference>) {
    let mut total = (0, Vec::new());
    for step in (1..).zip(&scenario.steps) {
        let objects: Vec<Value> = step.1.objects.values().cloned().collect();
        let oracle = Oracle::from_objects(&objects);
        let (asked, differences) = compare(scenario, step, "oracle", |expected, family| {
            match oracle.ask(&expected.row(Some(family)).probe()) {
                Answer::Accept => "Accept".into(),
                Answer::Deny => "Deny".into(),
                Answer::Error(reason) => reason,
            }
        });
        total.0 += asked;
        total.1.extend(differences);
    }
    total
}

/// What the engine says of every probe. Returns how many there are, and the answers that differ.
pub fn check_engine(scenario: &Scenario) -> (usize, Vec<Difference>) {
    let mut total = (0, Vec::new());
    for step in (1..).zip(&scenario.steps) {
        let mut engine = Engine::new(state(&step.1.objects));
        let (asked, differences) = compare(scenario, step, "engine", |expected, family| {
            match engine.verdict(&expected.row(Some(family)).question()) {
                Ok(Verdict::Accept) => "Accept".into(),
                Ok(Verdict::Deny) => "Deny".into(),
                Err(error) => error.to_string(),
            }
        });
        total.0 += asked;
        total.1.extend(differences);
    }
    total
}

/// What the plans of both nodes say together of every connection between two pods: the source's of its egress, the
/// destination's of its ingress. Where a probe goes to the Service in front of one pod, the pod itself is asked about.
/// Returns how many there are, and the answers that differ.
pub fn check_nodes(scenario: &Scenario) -> (usize, Vec<Difference>) {
    let mut total = (0, Vec::new());
    for step in (1..).zip(&scenario.steps) {
        let state = state(&step.1.objects);
        let plans: BTreeMap<_, Plan> = state
            .nodes()
            .map(|node| (node.name.to_string(), Compiler::new(Scope::Node(node.name.clone())).compile(&state).0))
            .collect();
        let own: BTreeSet<String> = step.1.objects.pods().into_iter().collect();
        let between_pods = |expected: &Expected| {
            let to = pod_behind(&expected.to).unwrap_or_else(|| expected.to.clone());
            let is_between = own.contains(&expected.from) && own.contains(&to) && expected.from != to;
            is_between.then(|| Expected { to, ..expected.clone() })
        };
        let between: Vec<Expected> = step.1.expected.iter().filter_map(between_pods).collect();
        let pods = Step { objects: step.1.objects.clone(), expected: between };
        let (asked, differences) = compare(scenario, (step.0, &pods), "nodes", |expected, family| {
            let accepts = |subject: &str, direction, other: &str| {
                let object = pods.objects.pod(subject).expect("a pod");
                let plan = &plans[object["spec"]["nodeName"].as_str().expect("a node")];
                let addresses = pod_addresses(pods.objects.pod(other).expect("a pod")).expect("addresses");
                let address = addresses.into_iter().find(|address| address.is_ipv4() == (family == Family::V4));
                let address = address.expect("an address of the family");
                let (namespace, name) = subject.split_once('/').expect("a key");
                let key = PodKey { namespace: namespace.into(), name: name.into() };
                let row = plan.subjects[&key].ruleset(direction).row(Peer::Class(plan.class_of(address)));
                let number = expected.port.number.unwrap_or_default();
                let (protocol, port) = match expected.port.protocol.as_str() {
                    "TCP" => Protocol::Tcp(number),
                    "UDP" => Protocol::Udp(number),
                    "SCTP" => Protocol::Sctp(number),
                    _ => Protocol::Icmp,
                }
                .flow();
                row.accepts(protocol, port)
            };
            let is_accepted = accepts(&expected.from, Direction::Egress, &expected.to)
                && accepts(&expected.to, Direction::Ingress, &expected.from);
            if is_accepted { "Accept".into() } else { "Deny".into() }
        });
        total.0 += asked;
        total.1.extend(differences);
    }
    total
}

/// The cluster of these objects. Most are in many steps, so each is read once.
fn state(objects: &Objects) -> ClusterState {
    static READ: Mutex<BTreeMap<String, Vec<Object>>> = Mutex::new(BTreeMap::new());
    let mut state = ClusterState::default();
    for object in objects.values() {
        let text = object.to_string();
        let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        let found = read
            .entry(text)
            .or_insert_with_key(|text| Manifests::from_text("scenario.yaml", text).objects().cloned().collect());
        for object in found.iter().cloned() {
            state.apply(Event::Upsert(object));
        }
    }
    state
}
