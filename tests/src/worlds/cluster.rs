//! Nodes, namespaces and pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value, json};

use super::alphabet::{Draw, NAMESPACE_KEYS, NODE_KEYS, POD_KEYS, PORT_NAMES, PROTOCOLS, PodSketch};

/// One to three nodes, of one family or both, some with more than one address.
pub(super) fn nodes(draw: &mut Draw) -> Vec<Value> {
    let count = draw.rng.u16(1..=3);
    let mut nodes = Vec::new();
    for number in 1..=count {
        let name = format!("n{number}");
        let v4 = |net: u8| IpAddr::from(Ipv4Addr::new(192, 168, net, number as u8));
        let v6 = IpAddr::from(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, number));
        let mut addresses = match draw.weighted(&[55, 25, 15, 5]) {
            0 => vec![v4(0), v6],
            1 => vec![v4(0)],
            2 => vec![v6, v4(0)],
            _ => vec![v6],
        };
        if draw.chance(25) {
            addresses.push(v4(1));
        }
        let mut listed: Vec<Value> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        if let Some(last) = listed.last_mut().filter(|_| draw.chance(20)) {
            last["type"] = "ExternalIP".into();
        }
        listed.push(json!({"type": "Hostname", "address": name}));
        draw.addresses.extend(&addresses);
        draw.nodes.push((name.clone(), addresses));
        // Pods may be known before their node is.
        if number > 1 && draw.chance(6) {
            continue;
        }
        nodes.push(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": draw.labels(NODE_KEYS), "uid": format!("node-{number}")},
            "status": {"addresses": listed},
        }));
    }
    nodes
}

/// One to four namespaces; the automatic label is there as an API server keeps it, or left out as in files.
pub(super) fn namespaces(draw: &mut Draw) -> Vec<Value> {
    let count = draw.rng.usize(1..=4);
    draw.namespaces = ["a", "b", "c", "d"][..count].iter().map(|&name| name.to_owned()).collect();
    let mut objects = Vec::new();
    for name in draw.namespaces.clone() {
        // One that is known by what is in it alone has no labels but its name.
        if draw.chance(5) {
            continue;
        }
        let mut labels = draw.labels(NAMESPACE_KEYS);
        if draw.chance(80)
            && let Value::Object(labels) = &mut labels
        {
            labels.insert("kubernetes.io/metadata.name".into(), name.clone().into());
        }
        let mut metadata = json!({"name": name, "labels": labels, "uid": format!("namespace-{name}")});
        if draw.chance(8) {
            metadata["deletionTimestamp"] = "2026-03-02T10:00:00Z".into();
        }
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }
    objects
}

/// Two to ten pods.
pub(super) fn pods(draw: &mut Draw) -> Vec<Value> {
    let count = draw.rng.u16(2..=10);
    (1..=count).map(|number| pod(draw, number)).collect()
}

fn pod(draw: &mut Draw, number: u16) -> Value {
    let namespaces = draw.namespaces.clone();
    let namespace = draw.pick(&namespaces).clone();
    let name = format!("p{number}");
    let nodes = draw.nodes.clone();
    let (node, node_addresses) = draw.pick(&nodes).clone();
    let is_on_host = draw.chance(8);
    let phase = *draw.pick(&[
        "Running",
        "Running",
        "Running",
        "Running",
        "Running",
        "Running",
        "Running",
        "Pending",
        "Succeeded",
        "Failed",
        "Unknown",
    ]);
    let is_scheduled = phase != "Pending" || is_on_host || draw.chance(85);
    let addresses = if is_on_host {
        let first = |is_v4| node_addresses.iter().position(|address| address.is_ipv4() == is_v4);
        let mut places: Vec<usize> = [first(true), first(false)].into_iter().flatten().collect();
        places.sort_unstable();
        places.into_iter().map(|place| node_addresses[place]).collect()
    } else if is_scheduled {
        own_addresses(draw, number)
    } else {
        Vec::new()
    };

    let mut metadata = json!({
        "namespace": namespace, "name": name, "labels": draw.labels(POD_KEYS),
        "uid": format!("pod-{:02}", draw.rng.u32(0..100) * 100 + u32::from(number)),
        "creationTimestamp": draw.time(2),
    });
    if draw.chance(12) {
        metadata["deletionTimestamp"] = "2026-03-02T10:00:00Z".into();
        metadata["deletionGracePeriodSeconds"] = 30.into();
    }
    let mut spec = Map::new();
    if is_scheduled {
        spec.insert("nodeName".into(), node.clone().into());
    }
    if is_on_host {
        spec.insert("hostNetwork".into(), true.into());
    } else if draw.chance(10) {
        spec.insert("hostNetwork".into(), false.into());
    }
    spec.insert("containers".into(), (0..draw.rng.u32(1..=2)).map(|n| container(draw, n)).collect());
    if draw.chance(25) {
        let mut init = container(draw, 9);
        if draw.chance(60) {
            init["restartPolicy"] = "Always".into();
        }
        spec.insert("initContainers".into(), json!([init]));
    }
    let mut status = json!({"phase": phase});
    if is_scheduled {
        status["startTime"] = draw.time(3).into();
    }
    if let Some(first) = addresses.first() {
        if draw.chance(90) {
            status["podIP"] = first.to_string().into();
        }
        status["podIPs"] = addresses.iter().map(|address| json!({"ip": address})).collect();
    }
    draw.addresses.extend(&addresses);
    draw.pods.push(PodSketch { namespace: namespace.clone(), name, node: is_scheduled.then_some(node), addresses });
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
}

/// Addresses of a pod: mostly its own, at times those of a pod before it.
fn own_addresses(draw: &mut Draw, number: u16) -> Vec<IpAddr> {
    let net = draw.rng.u8(0..3);
    let host = *draw.pick(&[0, 1, 127, 128, 255]);
    // The number keeps addresses apart: a /24 or /64 for each pod and net, its edges among the hosts.
    let mut v4 = IpAddr::from(Ipv4Addr::new(10, net, number as u8, host));
    let mut v6 = IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, u16::from(net) << 8 | number, 0, 0, 0, u16::from(host)));
    if draw.chance(12) {
        let nodes: Vec<IpAddr> = draw.nodes.iter().flat_map(|(_, addresses)| addresses.clone()).collect();
        let taken = draw.pods.iter().flat_map(|pod| pod.addresses.clone());
        let taken: Vec<IpAddr> = taken.filter(|address| !nodes.contains(address)).collect();
        for address in taken {
            match address {
                IpAddr::V4(_) if draw.chance(50) => v4 = address,
                IpAddr::V6(_) if draw.chance(50) => v6 = address,
                _ => {}
            }
        }
    }
    match draw.weighted(&[45, 22, 12, 15, 6]) {
        0 => vec![v4, v6],
        1 => vec![v4],
        2 => vec![v6],
        3 => vec![v6, v4],
        _ => Vec::new(),
    }
}

fn container(draw: &mut Draw, number: u32) -> Value {
    let mut container = json!({"name": format!("c{number}"), "image": "image"});
    if draw.chance(75) {
        let ports: Vec<Value> = (0..draw.rng.u32(1..=3)).map(|_| container_port(draw)).collect();
        container["ports"] = ports.into();
    }
    container
}

fn container_port(draw: &mut Draw) -> Value {
    let mut port = json!({"containerPort": draw.port()});
    if draw.chance(85) {
        port["name"] = (*draw.pick(PORT_NAMES)).into();
    }
    if draw.chance(70) {
        port["protocol"] = (*draw.pick(PROTOCOLS)).into();
    }
    port
}
