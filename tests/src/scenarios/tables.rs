//! Tables of scenarios that differ in little: the variations of one policy, and the tests of one skeleton of rules.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::expect::{self, Expected, Port};
use super::packets::Setting;
use super::scenario::{Scenario, Step, Written, WrittenStep};
use super::world::{World, service_of};

/// One policy, and cases that each change one aspect of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variations {
    world: String,
    base: Base,
    variations: Vec<Variation>,
    /// Every two of the variations of these ids, one behind the other, as more variations.
    pairs: Pairs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    namespace: String,
    subject: Value,
    /// Whom it selects.
    isolated: String,
    ingress: Rule,
    egress: Rule,
    /// Further egress rules, about ports that no pod serves.
    egress_too: Vec<Value>,
}

/// The rule that is varied, and what it comes to.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Rule {
    peers: Vec<Value>,
    ports: Vec<Value>,
    /// Who is let in, or may be reached.
    reach: String,
    /// On which ports.
    on: String,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Variation {
    id: String,
    /// For names, where an id has several.
    #[serde(default)]
    name: String,
    namespace: Option<String>,
    subject: Option<Value>,
    isolated: Option<String>,
    /// All rules of the direction.
    rules: Option<Vec<Value>>,
    peers: Option<Vec<Value>>,
    ports: Option<Vec<Value>>,
    /// As in the rule; empty for nobody.
    reach: Option<String>,
    on: Option<String>,
    /// Where the case of ingress runs with packets, and where the one of egress.
    #[serde(default)]
    packets: Vec<Setting>,
    /// Whether probes go to pods, and not to the Services in front of them.
    #[serde(default)]
    pod_addresses: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pairs {
    id: String,
    of: Vec<String>,
    /// Those that run with packets.
    packets: Vec<ChosenPair>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChosenPair {
    pair: String,
    packets: Vec<Setting>,
}

/// Tests that share the order of their rules.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skeletons {
    world: String,
    skeletons: Vec<Skeleton>,
}

/// X is accepted, denied and passed; S is denied and passed on its port; Y is accepted on its port, and denied.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skeleton {
    id: String,
    title: String,
    tier: String,
    priority: u16,
    subject: String,
    x: String,
    s: String,
    y: String,
    packets: Option<Setting>,
    egress: Option<Ports>,
    ingress: Option<Ports>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ports {
    s: Vec<Port>,
    y: Vec<Port>,
}

pub(super) fn read(path: &Path, name: &str) -> anyhow::Result<Vec<Scenario>> {
    let value: Value = super::read_yaml(path)?;
    if value.get("variations").is_some() {
        serde_json::from_value::<Variations>(value)?.scenarios(name)
    } else {
        serde_json::from_value::<Skeletons>(value)?.scenarios(name)
    }
}

const DIRECTIONS: [&str; 2] = ["ingress", "egress"];

impl Variations {
    fn scenarios(&self, file: &str) -> anyhow::Result<Vec<Scenario>> {
        let world = World::read(&self.world)?;
        let mut scenarios = Vec::new();
        for variation in self.variations.iter().cloned().chain(self.pairs()?) {
            // What does not vary a rule is one case, of both directions.
            let directions: &[_] = if variation.isolated.is_some() { &["ingress"] } else { &DIRECTIONS };
            for (place, direction) in directions.iter().enumerate() {
                let short = variation.id.rsplit('-').next().unwrap_or_default();
                let mut name = format!("{file}/{short}");
                for part in [variation.name.as_str(), if directions.len() == 2 { direction } else { "" }] {
                    if !part.is_empty() {
                        name = format!("{name}-{part}");
                    }
                }
                let scenario = self.scenario(&world, &variation, direction, name.clone()).with_context(|| name)?;
                let packets = variation.packets.get(place).copied();
                scenarios.push(Scenario { packets, ..scenario });
            }
        }
        Ok(scenarios)
    }

    fn pairs(&self) -> anyhow::Result<Vec<Variation>> {
        let Pairs { id, of, packets } = &self.pairs;
        let mut pairs = Vec::new();
        let find = |id: &String| {
            self.variations.iter().find(|variation| variation.id == *id).with_context(|| format!("no variation {id}"))
        };
        for (place, first) in of.iter().enumerate() {
            for second in &of[place + 1..] {
                let (a, b) = (find(first)?, find(second)?);
                let both = |of: &Variation| -> anyhow::Result<_> {
                    Ok((of.peers.clone().context("no peers")?, of.reach.clone().context("no reach")?))
                };
                let ((mut peers, reach_a), (more, reach_b)) = (both(a)?, both(b)?);
                peers.extend(more);
                let short = |id: &str| id.rsplit('-').next().unwrap_or_default().to_owned();
                let name = format!("{}-{}", short(first), short(second));
                let chosen = packets.iter().find(|chosen| chosen.pair == name);
                pairs.push(Variation {
                    id: id.clone(),
                    name,
                    peers: Some(peers),
                    reach: Some(format!("{reach_a} {reach_b}")),
                    packets: chosen.map(|chosen| chosen.packets.clone()).unwrap_or_default(),
                    ..a.clone()
                });
            }
        }
        for chosen in packets {
            ensure!(pairs.iter().any(|pair| pair.name == chosen.pair), "there is no pair {}", chosen.pair);
        }
        Ok(pairs)
    }

    fn scenario(&self, world: &World, vary: &Variation, direction: &str, name: String) -> anyhow::Result<Scenario> {
        let Base { namespace, subject, isolated, ingress, egress, egress_too } = &self.base;
        let (mut ingress, mut egress) = (ingress.clone(), egress.clone());
        let varied = if direction == "ingress" { &mut ingress } else { &mut egress };
        for (place, new) in [(&mut varied.peers, &vary.peers), (&mut varied.ports, &vary.ports)] {
            if let Some(new) = new {
                place.clone_from(new);
            }
        }
        for (place, new) in [(&mut varied.reach, &vary.reach), (&mut varied.on, &vary.on)] {
            if let Some(new) = new {
                place.clone_from(new);
            }
        }
        let rules = |direction_of_rules: &str, rule: &Rule| -> Vec<Value> {
            if let Some(rules) = vary.rules.as_ref().filter(|_| direction_of_rules == direction) {
                return rules.clone();
            }
            let peers = if direction_of_rules == "ingress" { "from" } else { "to" };
            let mut rules = vec![json!({peers: rule.peers, "ports": rule.ports})];
            if direction_of_rules == "egress" {
                rules.extend(egress_too.iter().cloned());
            }
            rules
        };
        let namespace = vary.namespace.as_ref().unwrap_or(namespace);
        let mut policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": "base"},
            "spec": {
                "podSelector": vary.subject.as_ref().unwrap_or(subject), "policyTypes": ["Ingress", "Egress"],
                "ingress": rules("ingress", &ingress), "egress": rules("egress", &egress),
            },
        });
        let start = world.objects()?;
        let mut objects = start.clone();
        objects.fill_in(&mut policy)?;
        objects.apply(policy)?;

        let pods = objects.pods();
        let reached = |text: &str| match text {
            "" => Ok(Vec::new()),
            text => expect::ends(text, &objects),
        };
        let isolated = reached(vary.isolated.as_ref().unwrap_or(isolated))?;
        let (from, to) = (reached(&ingress.reach)?, reached(&egress.reach)?);
        let (in_on, out_on) = (ports(&ingress.on, world)?, ports(&egress.on, world)?);
        let mut expected = Vec::new();
        for source in &pods {
            for destination in pods.iter().filter(|destination| *destination != source) {
                for port in world.ports.values() {
                    let may_leave = !isolated.contains(source) || (to.contains(destination) && out_on.contains(port));
                    let may_enter = !isolated.contains(destination) || (from.contains(source) && in_on.contains(port));
                    let (namespace, pod) = destination.split_once('/').expect("a key");
                    let to = if world.services && !vary.pod_addresses {
                        format!("svc:{namespace}/{}", service_of(pod))
                    } else {
                        destination.clone()
                    };
                    let is_accepted = may_leave && may_enter;
                    let (from, port) = (source.clone(), port.clone());
                    expected.push(Expected { from, to, port, family: None, is_accepted });
                }
            }
        }
        let ids = vec![vary.id.clone()];
        let ports = world.ports.values().cloned().collect();
        let steps = vec![Step { objects, expected }];
        Ok(Scenario { name, ids, packets: None, ports, node_ports: Vec::new(), start, steps })
    }
}

/// Ports by words; `all` are those that pods serve.
fn ports(words: &str, world: &World) -> anyhow::Result<Vec<Port>> {
    if words == "all" {
        return Ok(world.ports.values().cloned().collect());
    }
    words.split_whitespace().map(str::parse).collect()
}

impl Skeletons {
    fn scenarios(&self, file: &str) -> anyhow::Result<Vec<Scenario>> {
        let mut scenarios = Vec::new();
        for skeleton in &self.skeletons {
            let name = format!("{file}/{}", skeleton.id.rsplit('-').next().unwrap_or_default());
            let written = skeleton.written(&self.world).with_context(|| name.clone())?;
            scenarios.push(Scenario::from_written(written, &name)?);
        }
        Ok(scenarios)
    }
}

impl Skeleton {
    fn written(&self, world: &str) -> anyhow::Result<Written> {
        let is_admin = match self.tier.as_str() {
            "Admin" => true,
            "Baseline" => false,
            other => bail!("{other:?} is no tier"),
        };
        let mut order: Vec<usize> = if is_admin { (0..7).collect() } else { vec![0, 1, 3, 5, 6] };
        let mut steps = Vec::new();
        for number in 1..=if is_admin { 6 } else { 4 } {
            match number {
                3 => order.swap(0, 1),
                5 => order.swap(0, 2),
                6 => order.swap(3, 4),
                _ => {}
            }
            steps.push(WrittenStep {
                apply: vec![self.policy(&order)],
                expect: self.lines(number),
                ..Default::default()
            });
        }
        Ok(Written {
            id: vec![self.id.clone()],
            _title: self.title.clone(),
            world: world.into(),
            packets: self.packets,
            ports: Vec::new(),
            matrix: false,
            pod_addresses: true,
            steps,
        })
    }

    fn directions(&self) -> impl Iterator<Item = (&'static str, &Ports)> {
        [("egress", &self.egress), ("ingress", &self.ingress)]
            .into_iter()
            .filter_map(|(direction, ports)| Some((direction, ports.as_ref()?)))
    }

    fn policy(&self, order: &[usize]) -> Value {
        let mut spec = Map::new();
        spec.insert("tier".into(), json!(self.tier));
        spec.insert("priority".into(), json!(self.priority));
        spec.insert("subject".into(), json!({"namespaces": house(&self.subject)}));
        for (direction, ports) in self.directions() {
            let peers = if direction == "egress" { "to" } else { "from" };
            let rule = |action: &str, of: &str, ports: Option<&[Port]>| {
                let mut rule = json!({"action": action, peers: [{"namespaces": house(of)}]});
                if let Some(ports) = ports {
                    rule["protocols"] = ports.iter().map(protocol).collect();
                }
                rule
            };
            let all = [
                rule("Accept", &self.x, None),
                rule("Deny", &self.x, None),
                rule("Pass", &self.x, None),
                rule("Deny", &self.s, Some(&ports.s)),
                rule("Pass", &self.s, Some(&ports.s)),
                rule("Accept", &self.y, Some(&ports.y)),
                rule("Deny", &self.y, None),
            ];
            spec.insert(direction.into(), order.iter().map(|&place| all[place].clone()).collect());
        }
        json!({"ClusterNetworkPolicy": "house-rules", "spec": spec})
    }

    /// What a step expects, by its number.
    fn lines(&self, number: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for (direction, ports) in self.directions() {
            let mut line = |verb: &str, other: &str, ports: Vec<Port>| {
                let on = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                let ends = match direction {
                    "egress" => format!("{} -> {other}", self.subject),
                    _ => format!("{other} -> {}", self.subject),
                };
                lines.push(format!("{verb} {ends} on {on}"));
            };
            let both = |ports: &[Port]| ports.iter().cloned().chain(ports.iter().map(other)).collect::<Vec<_>>();
            let others = |ports: &[Port]| ports.iter().map(other).collect::<Vec<_>>();
            match number {
                1 | 5 => line("allow", &self.x, both(&ports.s)),
                2 => {
                    line("allow", &self.y, ports.y.clone());
                    line("deny", &self.y, others(&ports.y));
                }
                3 => line("deny", &self.x, both(&ports.s)),
                4 => {
                    line("allow", &self.s, others(&ports.s));
                    line("deny", &self.s, ports.s.clone());
                }
                _ => line("allow", &self.s, both(&ports.s)),
            }
        }
        lines
    }
}

/// The other port of a protocol that pods of the houses serve.
fn other(port: &Port) -> Port {
    let number = match port.number {
        Some(80) => 8080,
        Some(8080) => 80,
        Some(53) => 5353,
        Some(5353) => 53,
        Some(9003) => 9005,
        _ => 9003,
    };
    Port { protocol: port.protocol.clone(), number: Some(number) }
}

fn protocol(port: &Port) -> Value {
    json!({port.protocol.to_lowercase(): {"destinationPort": {"number": port.number}}})
}

fn house(name: &str) -> Value {
    json!({"matchLabels": {"conformance-house": name}})
}
