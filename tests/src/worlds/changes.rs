//! Changes of a world whose effect on verdicts is known. Each returns whether there was anything to change.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use serde_json::{Map, Value, json};

use crate::oracle::Probe;

const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

fn of_kind<'a>(objects: &'a mut [Value], kind: &str) -> Vec<&'a mut Value> {
    objects.iter_mut().filter(|object| object["kind"] == kind).collect()
}

/// The lists of a NetworkPolicy's or ClusterNetworkPolicy's rules.
fn rules(policy: &mut Value) -> impl Iterator<Item = (&'static str, &mut Vec<Value>)> {
    let spec = policy["spec"].as_object_mut();
    spec.into_iter().flat_map(Map::iter_mut).filter_map(|(field, value)| {
        let (_, peers) = DIRECTIONS.into_iter().find(|(direction, _)| direction == field)?;
        Some((peers, value.as_array_mut()?))
    })
}

/// Doubles an item of a list at times, and shuffles it.
fn stir(list: &mut Vec<Value>, rng: &mut Rng) {
    if !list.is_empty() && rng.bool() {
        list.push(list[rng.usize(0..list.len())].clone());
    }
    rng.shuffle(list);
}

/// Puts everything that has no order in NetworkPolicies into another one, and some of it there twice.
pub fn stir_network_policies(objects: &mut Vec<Value>, rng: &mut Rng) -> bool {
    let mut copies = Vec::new();
    for policy in of_kind(objects, "NetworkPolicy") {
        for (peers, rules) in rules(policy) {
            for rule in rules.iter_mut() {
                for field in [peers, "ports"] {
                    if let Some(list) = rule[field].as_array_mut() {
                        stir(list, rng);
                    }
                }
            }
            stir(rules, rng);
        }
        if rng.bool() {
            let mut copy = policy.clone();
            copy["metadata"]["name"] = format!("{}-copy", copy["metadata"]["name"].as_str().unwrap_or_default()).into();
            copies.push(copy);
        }
    }
    let is_any = objects.iter().any(|object| object["kind"] == "NetworkPolicy");
    objects.extend(copies);
    rng.shuffle(objects);
    is_any
}

/// Adds a rule to a NetworkPolicy that names its types.
pub fn add_rule(objects: &mut [Value], rng: &mut Rng) -> bool {
    // Rules of another policy are as good as any.
    let mut pool: Vec<(&str, Value)> = Vec::new();
    let mut named = Vec::new();
    for (index, object) in objects.iter_mut().enumerate().filter(|(_, object)| object["kind"] == "NetworkPolicy") {
        for (peers, rules) in rules(object) {
            pool.extend(rules.iter().map(|rule| (peers, rule.clone())));
        }
        if object["spec"]["policyTypes"].as_array().is_some_and(|types| !types.is_empty()) {
            named.push(index);
        }
    }
    let (Some(&policy), Some((peers, rule))) =
        (named.get(rng.usize(0..named.len().max(1))), pool.get(rng.usize(0..pool.len().max(1))))
    else {
        return false;
    };
    let direction = if *peers == "from" { "ingress" } else { "egress" };
    let list = &mut objects[policy]["spec"][direction];
    match list {
        Value::Array(rules) => rules.insert(rng.usize(0..=rules.len()), rule.clone()),
        _ => *list = json!([rule]),
    }
    true
}

/// Adds a NetworkPolicy: one that is there, for other pods.
pub fn add_policy(objects: &mut Vec<Value>, rng: &mut Rng) -> bool {
    let policies: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "NetworkPolicy").collect();
    let Some(&policy) = policies.get(rng.usize(0..policies.len().max(1))) else { return false };
    let mut policy = policy.clone();
    policy["metadata"]["name"] = "added".into();
    policy["spec"]["podSelector"] = json!({});
    objects.push(policy);
    true
}

/// The types of a policy as the API server would write them. For policies whose types are known words.
fn effective_types(spec: &Value) -> Vec<&'static str> {
    let given = spec["policyTypes"].as_array().filter(|types| !types.is_empty());
    let has_egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
    match given {
        Some(types) => ["Ingress", "Egress"].into_iter().filter(|known| types.iter().any(|it| it == known)).collect(),
        None if has_egress => vec!["Ingress", "Egress"],
        None => vec!["Ingress"],
    }
}

/// Replaces every NetworkPolicy by one a rule, and every rule by one a pair of peer and port.
pub fn split_network_policies(objects: &mut Vec<Value>, rng: &mut Rng) -> bool {
    let mut split = Vec::new();
    let mut is_any = false;
    for object in std::mem::take(objects) {
        if object["kind"] != "NetworkPolicy" {
            split.push(object);
            continue;
        }
        let types = effective_types(&object["spec"]);
        let mut whole = object.clone();
        whole["spec"]["policyTypes"] = json!(types);
        let mut parts: Vec<Value> = Vec::new();
        for (direction, peers) in DIRECTIONS {
            for rule in object["spec"][direction].as_array().into_iter().flatten() {
                let rules = if rng.bool() { pairs(rule, peers) } else { vec![rule.clone()] };
                for rule in rules {
                    let mut part = whole.clone();
                    let spec = part["spec"].as_object_mut().expect("a spec is a map");
                    spec.retain(|field, _| DIRECTIONS.iter().all(|(direction, _)| field != direction));
                    spec.insert(direction.into(), json!([rule]));
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    part["metadata"]["name"] = format!("{name}-{}", parts.len()).into();
                    parts.push(part);
                }
            }
        }
        is_any |= parts.len() > 1;
        if parts.is_empty() {
            parts.push(whole);
        }
        split.extend(parts);
    }
    *objects = split;
    is_any
}

/// One rule for each pair of a peer and a port entry.
fn pairs(rule: &Value, peers: &str) -> Vec<Value> {
    let one_each = |field: &str| -> Vec<Option<Value>> {
        match rule[field].as_array() {
            Some(items) if !items.is_empty() => items.iter().cloned().map(Some).collect(),
            _ => vec![None],
        }
    };
    let mut rules = Vec::new();
    for peer in one_each(peers) {
        for port in one_each("ports") {
            let mut rule = Map::new();
            rule.extend(peer.clone().map(|peer| (peers.to_owned(), json!([peer]))));
            rule.extend(port.map(|port| ("ports".to_owned(), json!([port]))));
            rules.push(Value::Object(rule));
        }
    }
    rules
}

/// Moves the priorities of ClusterNetworkPolicies without changing their order, and puts the objects into another one.
pub fn move_priorities(objects: &mut [Value], rng: &mut Rng) -> bool {
    let mut policies = of_kind(objects, "ClusterNetworkPolicy");
    let mut known: Vec<u64> = policies.iter().filter_map(|policy| policy["spec"]["priority"].as_u64()).collect();
    known.sort_unstable();
    known.dedup();
    let mut moved: Vec<u64> = Vec::new();
    while moved.len() < known.len() {
        moved.push(rng.u64(0..=1000));
        moved.sort_unstable();
        moved.dedup();
    }
    for policy in &mut policies {
        let place = known.iter().position(|&priority| policy["spec"]["priority"] == priority);
        policy["spec"]["priority"] = place.map_or(0, |place| moved[place]).into();
    }
    let is_any = policies.len() > 1;
    rng.shuffle(objects);
    is_any
}

/// Adds rules to ClusterNetworkPolicies behind others that match all they match.
pub fn add_dead_rules(objects: &mut [Value], rng: &mut Rng) -> bool {
    let mut is_any = false;
    for policy in of_kind(objects, "ClusterNetworkPolicy") {
        for (peers, rules) in rules(policy) {
            if rules.is_empty() {
                continue;
            }
            let index = rng.usize(0..rules.len());
            let mut dead = rules[index].clone();
            dead["action"] = (["Accept", "Deny", "Pass"][rng.usize(0..3)]).into();
            for field in [peers, "protocols"] {
                if let Some(list) = dead[field].as_array_mut()
                    && list.len() > 1
                {
                    list.remove(rng.usize(0..list.len()));
                }
            }
            if dead.get("protocols").is_none() {
                let number = rng.u16(1..=65535);
                dead["protocols"] = json!([{"tcp": {"destinationPort": {"number": number}}}]);
            }
            rules.insert(rng.usize(index + 1..=rules.len()), dead);
            is_any = true;
        }
    }
    is_any
}

/// Makes one rule of a ClusterNetworkPolicy one that nobody can represent, with the same action.
pub fn garble_rule(objects: &mut [Value], rng: &mut Rng) -> bool {
    let mut policies = of_kind(objects, "ClusterNetworkPolicy");
    let mut all: Vec<(&str, &mut Value)> = Vec::new();
    for policy in &mut policies {
        all.extend(rules(policy).flat_map(|(peers, rules)| rules.iter_mut().map(move |rule| (peers, rule))));
    }
    let chosen = rng.usize(0..all.len().max(1));
    let Some((peers, rule)) = all.into_iter().nth(chosen) else { return false };
    let peer = match rng.u32(0..5) {
        0 => json!({"spaceships": {}}),
        1 => json!({"domainNames": ["example.org"]}),
        2 => json!({"namespaces": {"matchExpressions": [{"key": "env", "operator": "in", "values": ["a"]}]}}),
        3 => json!({"networks": ["10.0.0.0/33"]}),
        _ => json!({}),
    };
    match &mut rule[peers] {
        Value::Array(list) => list.push(peer),
        other => *other = json!([peer]),
    }
    true
}

/// Adds a pod, a namespace, labels and policies that have nothing to do with any end that was there.
pub fn add_unrelated(objects: &mut Vec<Value>, _: &mut Rng) -> bool {
    for object in objects.iter_mut() {
        let kind = object["kind"].as_str().unwrap_or_default();
        if ["Pod", "Namespace", "Node"].contains(&kind) {
            match &mut object["metadata"]["labels"] {
                Value::Object(labels) => drop(labels.insert("template-hash".into(), "7f9c".into())),
                labels => *labels = json!({"template-hash": "7f9c"}),
            }
        }
    }
    objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "z", "labels": {"env": "a"}}}));
    objects.push(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "z", "name": "unrelated", "labels": {"app": "a", "tier": "b"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.200.77.1"}, {"ip": "fd00:200::77"}]},
    }));
    objects.push(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "z", "name": "unrelated"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"ports": [{"port": 81}]}]},
    }));
    true
}

/// Leaves only policies that select pods of one namespace; which one, the first in the order of names.
pub fn keep_policies_of_first_namespace(objects: &mut Vec<Value>, _: &mut Rng) -> bool {
    let Some(namespace) = first_namespace(objects) else { return false };
    objects.retain(|object| object["kind"] != "NetworkPolicy" || object["metadata"]["namespace"] == *namespace);
    for policy in of_kind(objects, "ClusterNetworkPolicy") {
        policy["spec"]["subject"] = json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}});
    }
    true
}

/// The first namespace in the order of names.
pub fn first_namespace(objects: &[Value]) -> Option<String> {
    let namespaces = objects.iter().filter(|object| object["kind"] == "Namespace");
    namespaces.filter_map(|object| object["metadata"]["name"].as_str()).min().map(str::to_owned)
}

/// The addresses of a namespace's pods.
pub fn addresses_of_pods(objects: &[Value], namespace: &str) -> Vec<String> {
    let pods = objects.iter().filter(|object| object["kind"] == "Pod" && object["metadata"]["namespace"] == namespace);
    let addresses = pods.flat_map(|pod| pod["status"]["podIPs"].as_array().into_iter().flatten());
    addresses.filter_map(|address| Some(address["ip"].as_str()?.to_owned())).collect()
}

/// Takes out about half of the policies, of both kinds.
pub fn remove_policies(objects: &mut Vec<Value>, rng: &mut Rng) -> bool {
    let before = objects.len();
    let is_policy =
        |object: &Value| ["NetworkPolicy", "ClusterNetworkPolicy"].iter().any(|kind| object["kind"] == *kind);
    objects.retain(|object| !is_policy(object) || rng.bool());
    objects.len() < before
}

/// Gives every IPv4 address an IPv6 one in its place, and the other way round: no two the same.
#[derive(Default, Debug)]
pub struct FamilySwap {
    known: BTreeMap<Ipv6Addr, u32>,
}

impl FamilySwap {
    fn address(&mut self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => Ipv6Addr::from_bits(0xfd46 << 112 | u128::from(address.to_bits())).into(),
            IpAddr::V6(address) => {
                let next = self.known.len() as u32;
                let number = *self.known.entry(address).or_insert(next);
                Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + number).into()
            }
        }
    }

    fn word(&mut self, word: &str) -> String {
        match (word, word.parse::<IpAddr>()) {
            ("IPv4", _) => "IPv6".to_owned(),
            ("IPv6", _) => "IPv4".to_owned(),
            (_, Ok(address)) => self.address(address).to_string(),
            _ => word.to_owned(),
        }
    }

    /// Swaps addresses and names of families wherever they stand.
    pub fn swap(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.word(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.swap(item)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.swap(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// The same question about the swapped world.
    pub fn probe(&mut self, probe: &Probe) -> Probe {
        let mut end = |text: &str| match text.strip_prefix("ip:") {
            Some(address) => format!("ip:{}", self.word(address)),
            None => text.to_owned(),
        };
        let (from, to) = (end(&probe.from), end(&probe.to));
        let family = probe.family.as_deref().map(|family| self.word(family));
        Probe { from, to, family, ..probe.clone() }
    }
}
