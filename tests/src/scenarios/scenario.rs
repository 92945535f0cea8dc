//! A scenario, and its steps.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::expect::{self, Expected, Port};
use super::objects::Objects;
use super::packets::Setting;
use super::world::{PodOf, World, service_of};

/// A world, steps that change it, and what must be reached after each.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Folder and file, like `e2e/A01-deny-all-ingress`, and a number where a file holds several.
    pub name: String,
    /// Ids of what it covers, like `e2e-A01`.
    pub ids: Vec<String>,
    /// Where it runs with real packets, if it does.
    pub packets: Option<Setting>,
    /// Ports that every pod serves.
    pub ports: Vec<Port>,
    /// What processes on the nodes serve.
    pub node_ports: Vec<Port>,
    /// The world, before the first step.
    pub start: Objects,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// What stands after a step, and what must come of connections then.
#[derive(Clone, Debug)]
pub struct Step {
    /// Every object.
    pub objects: Objects,
    /// Every probe with what must come of it.
    pub expected: Vec<Expected>,
}

/// A scenario as it is written.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub(super) id: Vec<String>,
    /// For readers.
    #[serde(rename = "title")]
    pub(super) _title: String,
    pub(super) world: String,
    #[serde(default)]
    pub(super) packets: Option<Setting>,
    /// What probes go to where no line says otherwise.
    #[serde(default)]
    pub(super) ports: Vec<Port>,
    /// Whether every pair of pods is probed, and not only those that lines name.
    #[serde(default)]
    pub(super) matrix: bool,
    /// Whether probes go to pods, where there are Services in front of them.
    #[serde(default)]
    pub(super) pod_addresses: bool,
    pub(super) steps: Vec<WrittenStep>,
}

/// A step as it is written.
#[derive(Deserialize, Clone, Default, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenStep {
    #[serde(default)]
    pub(super) delete: Vec<String>,
    #[serde(default)]
    pub(super) apply: Vec<Value>,
    #[serde(default)]
    pub(super) label: BTreeMap<String, Map<String, Value>>,
    #[serde(default)]
    pub(super) expect: Vec<String>,
    /// Ports of this step, where they are not the scenario's.
    #[serde(default)]
    pub(super) ports: Vec<Port>,
}

impl Scenario {
    pub(super) fn read(path: &Path, name: &str) -> anyhow::Result<Self> {
        Self::from_written(super::read_yaml(path)?, name)
    }

    pub(super) fn from_written(written: Written, name: &str) -> anyhow::Result<Self> {
        let Written { id, _title: _, world, packets, ports, matrix, pod_addresses, steps } = written;
        ensure!(!steps.is_empty() && !id.is_empty(), "a scenario needs an id and a step");
        let world = World::read(&world)?;
        let start = world.objects()?;
        let mut objects = start.clone();
        let mut done = Vec::new();
        for (number, step) in (1..).zip(steps) {
            let step = take(&world, step, &mut objects, &ports, matrix).with_context(|| format!("step {number}"))?;
            done.push(step);
        }
        if world.services && !pod_addresses {
            for expected in done.iter_mut().flat_map(|step| &mut step.expected) {
                // There is no Service in front of a node, and none answers echo requests.
                if let (Some((namespace, pod)), Some(_)) = (expected.to.split_once('/'), expected.port.number) {
                    expected.to = format!("svc:{namespace}/{}", service_of(pod));
                }
            }
        }
        let ports = world.ports.into_values().collect();
        Ok(Self { name: name.into(), ids: id, packets, ports, node_ports: world.node_ports, start, steps: done })
    }
}

/// Changes the objects as a step says, and reads what must be reached then.
fn take(
    world: &World,
    step: WrittenStep,
    objects: &mut Objects,
    ports: &[Port],
    is_matrix: bool,
) -> anyhow::Result<Step> {
    let WrittenStep { delete, apply, label, expect, ports: own_ports } = step;
    for what in &delete {
        objects.delete(what)?;
    }
    for written in apply {
        for mut object in expand(world, written)? {
            objects.fill_in(&mut object)?;
            objects.apply(object)?;
        }
    }
    for (what, labels) in &label {
        objects.label(what, labels)?;
    }
    let ports = if own_ports.is_empty() { ports } else { &own_ports };
    let expected = expect::read(&expect, objects, ports, is_matrix)?;
    ensure!(!expected.is_empty(), "nothing is expected");
    Ok(Step { objects: objects.clone(), expected })
}

/// An object as it is, if it has a `kind`; else in full from `KIND: NAME` or `KIND: NAMESPACE/NAME` and its other fields; a pod with its Service.
fn expand(world: &World, written: Value) -> anyhow::Result<Vec<Value>> {
    if written.get("kind").is_some() {
        return Ok(vec![written]);
    }
    let Value::Object(mut fields) = written else { anyhow::bail!("{written} is no object") };
    let kinds = ["NetworkPolicy", "ClusterNetworkPolicy", "Namespace", "Pod"];
    let kind = kinds.into_iter().find(|kind| fields.contains_key(*kind)).context("an object has no kind")?;
    let key = fields.remove(kind).expect("it was found");
    let key = key.as_str().with_context(|| format!("the name of a {kind} is no text"))?;
    if kind == "Pod" {
        let pod: PodOf = serde_json::from_value(fields.into())?;
        return world.pod_objects(key, &pod);
    }
    let (version, fields_known) = match kind {
        "NetworkPolicy" => ("networking.k8s.io/v1", "spec"),
        "ClusterNetworkPolicy" => ("policy.networking.k8s.io/v1beta1", "spec"),
        _ => ("v1", "labels"),
    };
    let content = fields.remove(fields_known);
    ensure!(fields.is_empty(), "{kind} {key} has fields that are not known: {fields:?}");
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    if let Some(content) = content {
        let place = if kind == "Namespace" { &mut object["metadata"]["labels"] } else { &mut object["spec"] };
        *place = content;
    }
    Ok(vec![object])
}
