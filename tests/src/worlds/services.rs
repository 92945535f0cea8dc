//! Services of every type, and their EndpointSlices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::alphabet::{Draw, PROTOCOLS};

/// Ports of Services: apart from most targets, so that one taken for the other shows.
const SERVICE_PORTS: &[u16] = &[80, 443, 8080];
const NODE_PORTS: &[u16] = &[30_080, 30_443, 32_767];

/// A port of a Service: its name, if it has one, and its protocol.
struct Port {
    name: Option<&'static str>,
    protocol: &'static str,
}

/// Up to three Services, each with its slices.
pub(super) fn services(draw: &mut Draw) -> Vec<Value> {
    let count = draw.weighted(&[25, 40, 25, 10]) as u8;
    let mut node_ports = NODE_PORTS.to_vec();
    let mut objects: Vec<Value> = (1..=count).flat_map(|number| service(draw, number, &mut node_ports)).collect();
    if draw.chance(5) {
        let namespaces = draw.namespaces.clone();
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": draw.pick(&namespaces), "name": "alias"},
            "spec": {"type": "ExternalName", "externalName": "db.example.org", "ports": [{"port": 80}]},
        }));
    }
    objects
}

fn service(draw: &mut Draw, number: u8, node_ports: &mut Vec<u16>) -> Vec<Value> {
    let namespaces = draw.namespaces.clone();
    let namespace = draw.pick(&namespaces).clone();
    let name = format!("s{number}");
    let kind = *draw.pick(&["ClusterIP", "ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]);
    let is_headless = kind == "ClusterIP" && draw.chance(15);
    let families: &[&str] = match draw.weighted(&[55, 10, 35]) {
        0 => &["IPv4"],
        1 => &["IPv6"],
        _ => &["IPv4", "IPv6"],
    };

    let mut ports = Vec::new();
    let mut listed = Vec::new();
    for name in if draw.chance(60) { vec![None] } else { vec![Some("one"), Some("two")] } {
        let protocol = *draw.pick(PROTOCOLS);
        let service_port = *draw.pick(SERVICE_PORTS);
        let is_taken = listed.iter().any(|other: &Value| {
            other["port"] == service_port && (other["protocol"].is_null() || other["protocol"] == protocol)
        });
        if is_taken {
            continue;
        }
        let mut port = json!({"port": service_port, "protocol": protocol, "targetPort": draw.port()});
        if protocol == "TCP" && draw.chance(30) {
            port["protocol"] = Value::Null;
        }
        if let Some(name) = name {
            port["name"] = name.into();
        }
        if kind != "ClusterIP"
            && let Some(node_port) = node_ports.pop()
        {
            port["nodePort"] = node_port.into();
        }
        listed.push(port);
        ports.push(Port { name, protocol });
    }

    let mut spec = json!({"type": kind, "ports": listed, "selector": {"app": "a"}, "ipFamilies": families});
    if is_headless {
        spec["clusterIP"] = "None".into();
        spec["clusterIPs"] = json!(["None"]);
    } else {
        let addresses: Vec<IpAddr> = families.iter().map(|family| cluster_ip(family, number)).collect();
        spec["clusterIP"] = addresses[0].to_string().into();
        if addresses.len() > 1 || draw.chance(85) {
            spec["clusterIPs"] = json!(addresses);
        }
        // Blocks over them must not match.
        draw.addresses.extend(addresses);
    }
    if draw.chance(20) {
        let address = outer_address(draw, number);
        spec["externalIPs"] = json!([address]);
    }
    if draw.chance(25) {
        spec["internalTrafficPolicy"] = (*draw.pick(&["Local", "Local", "Cluster"])).into();
    }
    if kind != "ClusterIP" && draw.chance(50) {
        spec["externalTrafficPolicy"] = (*draw.pick(&["Local", "Local", "Cluster"])).into();
    }
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    });
    if kind == "LoadBalancer" && draw.chance(80) {
        let mut ingress = json!({"ip": outer_address(draw, number + 100)});
        if draw.chance(60) {
            ingress["ipMode"] = (*draw.pick(&["VIP", "Proxy"])).into();
        }
        let mut all = vec![ingress];
        if draw.chance(15) {
            all.push(json!({"hostname": "balancer.example.org"}));
        }
        service["status"] = json!({"loadBalancer": {"ingress": all}});
    }

    let mut objects = vec![service];
    for family in families {
        let slices = draw.weighted(&[12, 60, 28]);
        for slice in 0..slices {
            objects.push(endpoint_slice(draw, (&namespace, &name), family, slice, &ports));
        }
    }
    objects
}

fn cluster_ip(family: &str, number: u8) -> IpAddr {
    match family {
        "IPv4" => Ipv4Addr::new(10, 96, 0, number).into(),
        _ => Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// An external or load-balancer address: outside the cluster, or a node's.
fn outer_address(draw: &mut Draw, number: u8) -> IpAddr {
    if draw.chance(30) {
        let nodes = draw.nodes.clone();
        let (_, addresses) = draw.pick(&nodes);
        let address = *draw.pick(addresses);
        if !draw.outer.contains(&address) {
            draw.outer.push(address);
            return address;
        }
    }
    let address = if draw.chance(75) {
        Ipv4Addr::new(203, 0, 113, number).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, number.into()).into()
    };
    draw.addresses.push(address);
    address
}

fn endpoint_slice(
    draw: &mut Draw,
    (namespace, service): (&str, &str),
    family: &str,
    number: usize,
    ports: &[Port],
) -> Value {
    let mut listed = Vec::new();
    for port in ports {
        // A slice may have a port less, where no backend has the name that is the target.
        if draw.chance(8) {
            continue;
        }
        if draw.chance(3) {
            listed.push(json!({"name": port.name.unwrap_or_default(), "protocol": port.protocol, "port": null}));
        }
        let mut entry = json!({"protocol": port.protocol, "port": draw.port()});
        entry["name"] = port.name.unwrap_or_default().into();
        listed.push(entry);
    }
    let count = draw.weighted(&[10, 45, 30, 15]);
    let endpoints: Vec<Value> = (0..count).filter_map(|_| endpoint(draw, family)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": format!("{service}-{}-{number}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family, "ports": listed, "endpoints": endpoints,
    })
}

fn endpoint(draw: &mut Draw, family: &str) -> Option<Value> {
    let is_of_family = |address: &&IpAddr| address.is_ipv4() == (family == "IPv4");
    let (address, node, pod) = match draw.weighted(&[72, 14, 14]) {
        0 => {
            let pods: Vec<_> = draw.pods.iter().filter(|pod| pod.addresses.iter().any(|a| is_of_family(&a))).collect();
            let pod = (*pods.get(draw.rng.usize(0..pods.len().max(1)))?).clone();
            (*pod.addresses.iter().find(is_of_family)?, pod.node.clone(), Some(pod))
        }
        1 => {
            let nodes = draw.nodes.clone();
            let (name, addresses) = draw.pick(&nodes);
            (*addresses.iter().find(is_of_family)?, Some(name.clone()), None)
        }
        _ => (*draw.addresses.iter().find(is_of_family)?, None, None),
    };
    let mut endpoint = json!({"addresses": [address]});
    if draw.settings.broken && draw.chance(4) {
        endpoint["addresses"] = json!([address, if family == "IPv4" { "203.0.113.9" } else { "2001:db8::9" }]);
    }
    match draw.weighted(&[60, 15, 10, 15]) {
        0 => endpoint["conditions"] = json!({"ready": true, "serving": true, "terminating": false}),
        1 => endpoint["conditions"] = json!({"ready": false, "serving": false, "terminating": false}),
        2 => endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true}),
        _ => endpoint["conditions"] = json!({}),
    }
    if let Some(node) = node {
        endpoint["nodeName"] = node.into();
    }
    if let Some(pod) = pod {
        endpoint["targetRef"] = json!({"kind": "Pod", "namespace": pod.namespace, "name": pod.name});
    }
    Some(endpoint)
}
