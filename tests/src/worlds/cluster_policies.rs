//! ClusterNetworkPolicies: every field, both tiers, equal priorities, and rules that cannot be represented.

use serde_json::{Value, json};

use super::alphabet::{Draw, NAMESPACE_KEYS, NODE_KEYS, POD_KEYS, PORT_NAMES};

/// Up to four policies.
pub(super) fn cluster_policies(draw: &mut Draw) -> Vec<Value> {
    let count = draw.weighted(&[22, 28, 24, 16, 10]);
    // The order of names is another than the order of priorities.
    let mut names = ["k", "b", "q", "a"];
    draw.rng.shuffle(&mut names);
    names[..count].iter().map(|name| cluster_policy(draw, name)).collect()
}

fn cluster_policy(draw: &mut Draw, name: &str) -> Value {
    let tier = if draw.breaks(2) { "Middle" } else { *draw.pick(&["Admin", "Admin", "Baseline"]) };
    let version = *draw.pick(&["v1alpha2", "v1beta1"]);
    let mut spec = json!({
        "tier": tier,
        "priority": *draw.pick(&[0, 1, 10, 10, 999, 1000]),
        "subject": subject(draw),
    });
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        if draw.chance(70) {
            let rules: Vec<Value> = (0..draw.rng.u32(1..=3)).map(|_| rule(draw, peers)).collect();
            spec[direction] = rules.into();
        } else if draw.chance(20) {
            spec[direction] = json!([]);
        }
    }
    json!({
        "apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

fn subject(draw: &mut Draw) -> Value {
    if draw.breaks(2) {
        return json!({"machines": {}});
    }
    if draw.chance(55) { json!({"namespaces": draw.selector(NAMESPACE_KEYS)}) } else { json!({"pods": pods(draw)}) }
}

/// Both selectors, or that of pods alone.
fn pods(draw: &mut Draw) -> Value {
    let mut pods = json!({"podSelector": draw.selector(POD_KEYS)});
    if draw.chance(55) {
        pods["namespaceSelector"] = draw.selector(NAMESPACE_KEYS);
    }
    pods
}

fn rule(draw: &mut Draw, peers: &str) -> Value {
    let action = if draw.breaks(2) { "Log" } else { *draw.pick(&["Accept", "Deny", "Deny", "Pass"]) };
    let items: Vec<Value> = (0..draw.rng.u32(1..=2)).map(|_| peer(draw, peers == "to")).collect();
    let has_addresses = items.iter().any(|peer| ["networks", "nodes"].iter().any(|kind| peer.get(kind).is_some()));
    let mut rule = json!({"action": action, peers: items});
    if draw.chance(30) {
        rule["name"] = (*draw.pick(&["", "one", "two"])).into();
    }
    if draw.chance(60) {
        // Names stand beside addresses only where rules may be broken.
        let may_name = !has_addresses || draw.breaks(10);
        let entries: Vec<Value> = (0..draw.rng.u32(1..=3)).map(|_| protocol(draw, may_name)).collect();
        rule["protocols"] = entries.into();
    }
    if draw.breaks(3) {
        match draw.rng.u32(0..3) {
            0 => rule["schedule"] = json!("night"),
            1 => rule["protocols"] = json!([]),
            _ => rule[peers] = json!([]),
        }
    }
    rule
}

fn peer(draw: &mut Draw, is_egress: bool) -> Value {
    if draw.breaks(4) {
        let broken = [
            json!({}),
            json!({"spaceships": {}}),
            json!({"domainNames": ["example.org"]}),
            json!({"networks": ["10.0.0.0/33"]}),
            json!({"networks": ["somewhere"]}),
            json!({"networks": []}),
            json!({"namespaces": {}, "pods": {"podSelector": {}}}),
            json!({"namespaces": {}, "colour": "red"}),
            json!({"pods": {"podSelector": {}, "containerSelector": {}}}),
        ];
        return draw.pick(&broken).clone();
    }
    let addresses = is_egress || draw.breaks(3);
    let networks = if addresses && draw.settings.blocks { 28 } else { 0 };
    let nodes = if addresses { 14 } else { 0 };
    match draw.weighted(&[30, 28, networks, nodes]) {
        0 => json!({"namespaces": draw.selector(NAMESPACE_KEYS)}),
        1 => json!({"pods": pods(draw)}),
        2 => {
            let blocks: Vec<String> = (0..draw.rng.u32(1..=3)).map(|_| draw.block()).collect();
            json!({"networks": blocks})
        }
        _ => json!({"nodes": draw.selector(NODE_KEYS)}),
    }
}

fn protocol(draw: &mut Draw, may_name: bool) -> Value {
    let kind = *draw.pick(&["tcp", "udp", "sctp"]);
    if draw.breaks(3) {
        let (one, other) = (draw.port(), draw.port());
        let broken = [
            json!({}),
            json!({"icmp": {}}),
            json!({kind: {}}),
            json!({kind: {"destinationPort": {}}}),
            json!({kind: {"destinationPort": {"number": 0}}}),
            json!({kind: {"destinationPort": {"number": 65536}}}),
            json!({kind: {"destinationPort": {"range": {"start": one, "end": one}}}}),
            json!({kind: {"destinationPort": {"range": {"start": one.max(other), "end": one.min(other)}}}}),
            json!({kind: {"destinationPort": {"number": one, "range": {"start": 1, "end": 2}}}}),
            json!({kind: {"destinationPort": {"number": one}, "sourcePort": {"number": other}}}),
        ];
        return draw.pick(&broken).clone();
    }
    match draw.weighted(&[40, 35, if may_name { 25 } else { 0 }]) {
        0 => json!({kind: {"destinationPort": {"number": draw.port()}}}),
        1 => {
            let one = draw.port();
            let other = *draw.pick(super::alphabet::PORTS);
            let (start, end) = (one.min(other), one.max(other));
            let (start, end) = if start == end { (1, 65535) } else { (start, end) };
            json!({kind: {"destinationPort": {"range": {"start": start, "end": end}}}})
        }
        _ => json!({"destinationNamedPort": *draw.pick(PORT_NAMES)}),
    }
}
