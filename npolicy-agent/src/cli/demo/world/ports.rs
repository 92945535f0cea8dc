//! The ports that policies name, as far as they can be read: what is wrong with a policy is the agent's to say.

use serde_json::Value;

use crate::rig::{Protocol, Service};

/// The ports of a NetworkPolicy's rules, from its `spec`; the last port of a range, too.
pub(super) fn of_network_policy(spec: &Value) -> Vec<Service> {
    let mut named = Vec::new();
    for entry in entries(spec, "ports") {
        let protocol = protocol_of(entry["protocol"].as_str());
        named.extend(services(protocol, [&entry["port"], &entry["endPort"]]));
    }
    named
}

/// The ports of a ClusterNetworkPolicy's rules, from its `spec`; the last port of a range, too.
pub(super) fn of_cluster_policy(spec: &Value) -> Vec<Service> {
    let mut named = Vec::new();
    for entry in entries(spec, "protocols") {
        for (field, protocol) in [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)] {
            let port = &entry[field]["destinationPort"];
            let range = &port["range"];
            named.extend(services(Some(protocol), [&port["number"], &range["start"], &range["end"]]));
        }
    }
    named
}

/// A protocol by its name in the API; TCP where none is given.
pub(super) fn protocol_of(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// The items of a list in the rules of both directions.
fn entries<'a>(spec: &'a Value, list: &'a str) -> impl Iterator<Item = &'a Value> {
    let rules = ["ingress", "egress"].into_iter().filter_map(|direction| spec[direction].as_array()).flatten();
    rules.filter_map(move |rule| rule[list].as_array()).flatten()
}

fn services<const N: usize>(protocol: Option<Protocol>, numbers: [&Value; N]) -> impl Iterator<Item = Service> {
    let ports = numbers.map(|number| number.as_u64().and_then(|number| u16::try_from(number).ok()));
    ports.into_iter().flatten().filter_map(move |port| protocol.map(|protocol| Service { protocol, port }))
}
