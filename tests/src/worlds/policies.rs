//! NetworkPolicies: every field, absent, null and empty, and what no API server takes.

use serde_json::{Map, Value, json};

use super::alphabet::{Draw, NAMESPACE_KEYS, POD_KEYS, PORT_NAMES, PROTOCOLS};

/// Up to five policies.
pub(super) fn network_policies(draw: &mut Draw) -> Vec<Value> {
    let count = draw.weighted(&[3, 14, 26, 26, 19, 12]);
    (0..count).map(|number| network_policy(draw, number)).collect()
}

fn network_policy(draw: &mut Draw, number: usize) -> Value {
    let namespaces = draw.namespaces.clone();
    let namespace = draw.pick(&namespaces).clone();
    let mut spec = Map::new();
    match draw.weighted(&[8, 4, 20, 68]) {
        0 => {}
        1 => drop(spec.insert("podSelector".into(), Value::Null)),
        2 => drop(spec.insert("podSelector".into(), json!({}))),
        _ => drop(spec.insert("podSelector".into(), draw.selector(POD_KEYS))),
    }
    if let Some(types) = policy_types(draw) {
        spec.insert("policyTypes".into(), types);
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        match draw.weighted(&[22, 4, 12, 62]) {
            0 => {}
            1 => drop(spec.insert(direction.into(), Value::Null)),
            2 => drop(spec.insert(direction.into(), json!([]))),
            _ => {
                let rules: Vec<Value> = (0..draw.rng.u32(1..=3)).map(|_| rule(draw, peers)).collect();
                spec.insert(direction.into(), rules.into());
            }
        }
    }
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": format!("np{number}")},
    });
    if draw.chance(98) {
        policy["spec"] = spec.into();
    }
    policy
}

fn policy_types(draw: &mut Draw) -> Option<Value> {
    if draw.breaks(4) {
        let broken = [
            json!(["ingress"]),
            json!(["Both"]),
            json!(["Ingress", "Both"]),
            json!(["Egress", "Forward"]),
            json!(["Ingress", "Egress", "Ingress"]),
        ];
        return Some(draw.pick(&broken).clone());
    }
    match draw.weighted(&[22, 4, 4, 24, 20, 22, 4]) {
        0 => None,
        1 => Some(Value::Null),
        2 => Some(json!([])),
        3 => Some(json!(["Ingress"])),
        4 => Some(json!(["Egress"])),
        5 => Some(json!(["Ingress", "Egress"])),
        _ => Some(json!(["Ingress", "Ingress"])),
    }
}

fn rule(draw: &mut Draw, peers: &str) -> Value {
    let mut rule = Map::new();
    match draw.weighted(&[14, 3, 3, 80]) {
        0 => {}
        1 => drop(rule.insert(peers.into(), Value::Null)),
        2 => drop(rule.insert(peers.into(), json!([]))),
        _ => {
            let items: Vec<Value> = (0..draw.rng.u32(1..=3)).map(|_| peer(draw)).collect();
            rule.insert(peers.into(), items.into());
        }
    }
    match draw.weighted(&[22, 3, 3, 72]) {
        0 => {}
        1 => drop(rule.insert("ports".into(), Value::Null)),
        2 => drop(rule.insert("ports".into(), json!([]))),
        _ => {
            let entries: Vec<Value> = (0..draw.rng.u32(1..=3)).map(|_| port_entry(draw)).collect();
            rule.insert("ports".into(), entries.into());
        }
    }
    Value::Object(rule)
}

fn peer(draw: &mut Draw) -> Value {
    if draw.breaks(3) {
        return match draw.rng.u32(0..3) {
            0 => json!({}),
            1 => json!({"podSelector": null, "namespaceSelector": null}),
            _ => json!({"ipBlock": ip_block(draw), "podSelector": draw.selector(POD_KEYS)}),
        };
    }
    let blocks = if draw.settings.blocks { 35 } else { 0 };
    match draw.weighted(&[24, 20, 21, blocks, 4]) {
        0 => json!({"podSelector": draw.selector(POD_KEYS)}),
        1 => json!({"namespaceSelector": draw.selector(NAMESPACE_KEYS)}),
        2 => json!({"podSelector": draw.selector(POD_KEYS), "namespaceSelector": draw.selector(NAMESPACE_KEYS)}),
        3 => json!({"ipBlock": ip_block(draw)}),
        // Null is absent: that is all pods of a namespace, not none.
        _ => json!({"podSelector": null, "namespaceSelector": draw.selector(NAMESPACE_KEYS), "ipBlock": null}),
    }
}

fn ip_block(draw: &mut Draw) -> Value {
    if draw.breaks(4) {
        let broken = [json!({}), json!({"except": ["10.0.0.0/24"]}), json!({"cidr": ""}), json!({"cidr": "10.0.0.0"})];
        let more = [
            json!({"cidr": "10.0.0.0/33"}),
            json!({"cidr": "fd00::/129"}),
            json!({"cidr": "10.0.0/8"}),
            json!({"cidr": "::ffff:10.0.0.0/95"}),
        ];
        return draw.pick(&[broken, more].concat()).clone();
    }
    let (address, length) = draw.block_parts();
    let mut block = json!({"cidr": draw.spell(address, length)});
    match draw.weighted(&[50, 3, 3, 44]) {
        0 => {}
        1 => block["except"] = Value::Null,
        2 => block["except"] = json!([]),
        _ => {
            let excepts: Vec<String> = (0..draw.rng.u32(1..=2)).map(|_| except(draw, address, length)).collect();
            block["except"] = excepts.into();
        }
    }
    block
}

fn except(draw: &mut Draw, address: std::net::IpAddr, length: u8) -> String {
    if draw.breaks(8) {
        return match draw.rng.u32(0..4) {
            0 => draw.spell(address, length),
            1 => draw.block(),
            2 => "10.0.0.0/x".to_owned(),
            _ => String::new(),
        };
    }
    // Around another address inside the block, if there is one: that is what a hole is made for.
    let block = ipnet::IpNet::new(address, length).expect("a length of the family").trunc();
    let inside: Vec<_> = draw.addresses.iter().copied().filter(|address| block.contains(address)).collect();
    let address = *draw.pick(&inside);
    draw.block_inside(address, length)
}

fn port_entry(draw: &mut Draw) -> Value {
    if draw.breaks(6) {
        let broken = [
            json!({"protocol": "ICMP"}),
            json!({"protocol": "tcp", "port": 80}),
            json!({"port": 0}),
            json!({"port": -1}),
            json!({"port": 65536}),
            json!({"port": "80"}),
            json!({"port": "Web"}),
            json!({"port": "a--b"}),
            json!({"endPort": 8080}),
            json!({"port": "web", "endPort": 8080}),
            json!({"port": 8080, "endPort": 80}),
            json!({"port": 80, "endPort": 0}),
            json!({"port": 80, "endPort": 65536}),
        ];
        return draw.pick(&broken).clone();
    }
    let mut entry = Map::new();
    match draw.weighted(&[35, 4, 61]) {
        0 => {}
        1 => drop(entry.insert("protocol".into(), Value::Null)),
        _ => drop(entry.insert("protocol".into(), (*draw.pick(PROTOCOLS)).into())),
    }
    match draw.weighted(&[14, 2, 34, 28, 22]) {
        0 => {}
        1 => drop(entry.insert("port".into(), Value::Null)),
        2 => drop(entry.insert("port".into(), draw.port().into())),
        3 => drop(entry.insert("port".into(), (*draw.pick(PORT_NAMES)).into())),
        _ => {
            let (one, other) = (draw.port(), draw.port());
            entry.insert("port".into(), one.min(other).into());
            entry.insert("endPort".into(), one.max(other).into());
        }
    }
    Value::Object(entry)
}
