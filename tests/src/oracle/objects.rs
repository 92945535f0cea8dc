//! Pods, namespaces and nodes as facts.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

use super::values::{Labels, address, facts, field, labels, names, port_number, protocol, text};

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// The node it runs on.
    pub node: Option<String>,
    /// At most one address a family.
    pub addresses: Vec<IpAddr>,
    /// Whether it lives in its node's network namespace.
    pub host_network: bool,
    /// Whether it has ended, well or not.
    pub finished: bool,
    /// The named ports of containers and of sidecars: initial containers that are restarted.
    pub named_ports: Vec<NamedPort>,
    /// The greater, the newer its sandbox: when it started, when it was created, its uid.
    pub age: (Option<Timestamp>, Option<Timestamp>, String),
}

/// A named port of a container.
#[derive(Debug)]
pub struct NamedPort {
    name: String,
    protocol: String,
    number: u16,
}

impl Pod {
    /// Reads a pod.
    pub fn parse(object: &Value) -> Self {
        let (namespace, name) = names(object);
        let (spec, status) = (&object["spec"], &object["status"]);
        let mut addresses: Vec<IpAddr> =
            facts(status, "podIPs").iter().filter_map(|item| address(item["ip"].as_str()?)).collect();
        if addresses.is_empty() {
            addresses.extend(text(status, "podIP").and_then(|text| address(&text)));
        }
        let restarted = facts(spec, "initContainers").iter().filter(|container| container["restartPolicy"] == "Always");
        let named_ports = facts(spec, "containers")
            .iter()
            .chain(restarted)
            .flat_map(|container| facts(container, "ports"))
            .filter_map(|port| {
                let (name, number) = (text(port, "name")?, port_number(&port["containerPort"])?);
                Some(NamedPort { name, protocol: protocol(port)?, number })
            })
            .collect();
        let time = |object: &Value, name: &str| text(object, name).and_then(|time| time.parse().ok());
        let metadata = &object["metadata"];
        let age =
            (time(status, "startTime"), time(metadata, "creationTimestamp"), text(metadata, "uid").unwrap_or_default());
        Self {
            namespace,
            name,
            labels: labels(object),
            node: text(spec, "nodeName").filter(|node| !node.is_empty()),
            addresses,
            host_network: spec["hostNetwork"] == true,
            finished: status["phase"] == "Succeeded" || status["phase"] == "Failed",
            named_ports,
            age,
        }
    }

    /// Whether the pod can be a subject and a peer: a network namespace of its own, not finished, and an address. A pod
    /// that is being deleted counts until it has finished.
    pub fn is_enforceable(&self) -> bool {
        !self.host_network && !self.finished && !self.addresses.is_empty()
    }

    /// Whether both are the same pod.
    pub fn is(&self, other: &Self) -> bool {
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
    }

    /// Whether some container calls this port of this protocol by this name. Every occurrence of a name counts.
    pub fn calls(&self, name: &str, protocol: &str, number: u16) -> bool {
        self.named_ports.iter().any(|port| port.name == name && port.protocol == protocol && port.number == number)
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Everything in its status that can be read as an address.
    pub addresses: Vec<IpAddr>,
}

impl Node {
    /// Reads a node.
    pub fn parse(object: &Value) -> Self {
        let addresses = facts(&object["status"], "addresses")
            .iter()
            .filter_map(|item| address(field(item, "address")?.as_str()?))
            .collect();
        Self { name: names(object).1, labels: labels(object), addresses }
    }
}
