//! Services: addresses that stand for backends.

use std::net::IpAddr;

use serde_json::Value;

use super::values::{address, facts, field, labels, names, port_number, protocol, text};
use super::{Endpoint, Packet, World};

/// A Service.
#[derive(Debug)]
pub struct Service {
    namespace: String,
    name: String,
    /// The addresses it has inside the cluster, first one first; none if it is headless or only another name.
    pub cluster_addresses: Vec<IpAddr>,
    /// External and load-balancer addresses.
    external_addresses: Vec<IpAddr>,
    internal_policy: TrafficPolicy,
    external_policy: TrafficPolicy,
    ports: Vec<ServicePort>,
}

/// Which backends a node gives traffic to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TrafficPolicy {
    /// All of them.
    Cluster,
    /// Its own.
    Local,
}

#[derive(Debug)]
struct ServicePort {
    name: String,
    protocol: String,
    number: u16,
    node_port: Option<u16>,
}

/// One family's backends of one Service, or a part of them.
#[derive(Debug)]
pub struct Slice {
    namespace: String,
    service: String,
    ports: Vec<SlicePort>,
    /// Each with the node it is on.
    endpoints: Vec<(IpAddr, Option<String>)>,
}

#[derive(Debug)]
struct SlicePort {
    name: String,
    protocol: String,
    number: u16,
}

/// A port of a Service under one of its addresses.
#[derive(Debug)]
pub struct Use<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    address: IpAddr,
    kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    Cluster,
    External,
    /// The address of this node.
    NodePort(String),
}

/// An address and port that may be chosen, ready or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// The first address of the endpoint.
    pub address: IpAddr,
    /// Its number there.
    pub port: u16,
}

impl Service {
    /// Reads a Service.
    pub fn parse(object: &Value) -> Self {
        let (namespace, name) = names(object);
        let spec = &object["spec"];
        let addresses =
            |list: &[Value]| -> Vec<IpAddr> { list.iter().filter_map(|item| address(item.as_str()?)).collect() };
        let is_alias = spec["type"] == "ExternalName";
        let mut cluster_addresses = addresses(facts(spec, "clusterIPs"));
        if facts(spec, "clusterIPs").is_empty() {
            cluster_addresses.extend(text(spec, "clusterIP").and_then(|text| address(&text)));
        }
        if is_alias {
            cluster_addresses.clear();
        }
        // A load balancer that is no virtual address on the node, but a proxy of its own, sends from addresses of its own.
        let balancers = facts(&object["status"]["loadBalancer"], "ingress").iter();
        let balancers =
            balancers.filter(|item| item["ipMode"] != "Proxy").filter_map(|item| address(field(item, "ip")?.as_str()?));
        let mut external_addresses = addresses(facts(spec, "externalIPs"));
        external_addresses.extend(balancers);
        let policy = |name: &str| if spec[name] == "Local" { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let ports = facts(spec, "ports").iter().filter_map(|port| {
            Some(ServicePort {
                name: text(port, "name").unwrap_or_default(),
                protocol: protocol(port)?,
                number: port_number(&port["port"])?,
                node_port: port_number(&port["nodePort"]),
            })
        });
        let ports = ports.collect();
        let (internal_policy, external_policy) = (policy("internalTrafficPolicy"), policy("externalTrafficPolicy"));
        Self { namespace, name, cluster_addresses, external_addresses, internal_policy, external_policy, ports }
    }

    /// What a proxy on a node knows nothing of has no virtual address at all.
    fn is_virtual(&self) -> bool {
        !self.cluster_addresses.is_empty()
    }
}

impl Slice {
    /// Reads a slice, if it has addresses and belongs to a Service.
    pub fn parse(object: &Value) -> Option<Self> {
        let is_ipv4 = match text(object, "addressType")?.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            _ => return None,
        };
        let service = labels(object).remove("kubernetes.io/service-name")?;
        let ports = facts(object, "ports").iter().filter_map(|port| {
            let (protocol, number) = (protocol(port)?, port_number(&port["port"])?);
            Some(SlicePort { name: text(port, "name").unwrap_or_default(), protocol, number })
        });
        // All addresses of an endpoint are the same backend: the first stands for it.
        let endpoints = facts(object, "endpoints").iter().filter_map(|endpoint| {
            let first = address(facts(endpoint, "addresses").first()?.as_str()?)?;
            (first.is_ipv4() == is_ipv4).then(|| (first, text(endpoint, "nodeName")))
        });
        Some(Self { namespace: names(object).0, service, ports: ports.collect(), endpoints: endpoints.collect() })
    }
}

impl World {
    /// What an address and a port mean as a destination: uses of Services, none of them for a port that the Service of a
    /// cluster address does not have, or `None` if it is no Service's address at all. An external or load-balancer address
    /// and a node's are so only on the Service's ports.
    pub(super) fn service_uses(&self, address: IpAddr, packet: &Packet) -> Option<Vec<Use<'_>>> {
        let mut uses = Vec::new();
        for service in self.services.values().filter(|service| service.is_virtual()) {
            for port in service.ports.iter().filter(|port| port.protocol == packet.protocol) {
                let at = |kind| Use { service, port, address, kind };
                if Some(port.number) == packet.port && service.cluster_addresses.contains(&address) {
                    uses.push(at(Kind::Cluster));
                }
                if Some(port.number) == packet.port && service.external_addresses.contains(&address) {
                    uses.push(at(Kind::External));
                }
                // Open in the families of the Service alone.
                let has_family = || service.cluster_addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
                if port.node_port.is_some() && port.node_port == packet.port && has_family() {
                    let owners = self.nodes.values().filter(|node| node.addresses.contains(&address));
                    uses.extend(owners.map(|node| at(Kind::NodePort(node.name.clone()))));
                }
            }
        }
        let is_cluster_address = self.services.values().any(|service| service.cluster_addresses.contains(&address));
        (is_cluster_address || !uses.is_empty()).then_some(uses)
    }

    /// What may be chosen for a client: every endpoint of the port, or one node's where the traffic policy is local.
    pub(super) fn backends(&self, used: &Use<'_>, client: &Endpoint<'_>) -> Vec<Backend> {
        let Use { service, port, address, kind } = used;
        let only_node = match (kind, client) {
            // Cluster addresses: the client's node. Where that cannot be known, any.
            (Kind::Cluster, _) if service.internal_policy == TrafficPolicy::Cluster => None,
            (Kind::Cluster, Endpoint::Pod { pod, .. }) => pod.node.clone(),
            (Kind::Cluster, Endpoint::Node { name, made_it: true, .. }) => Some(name.clone()),
            (Kind::Cluster, _) => None,
            // From outside, a node port is one node's. A load balancer picks the node, which is any that has some.
            (Kind::NodePort(node), Endpoint::Other { .. }) if service.external_policy == TrafficPolicy::Local => {
                Some(node.clone())
            }
            // Inside the cluster every node's are reached.
            (Kind::NodePort(_) | Kind::External, _) => None,
        };
        let mut backends = Vec::new();
        for slice in &self.slices {
            if (&slice.namespace, &slice.service) != (&service.namespace, &service.name) {
                continue;
            }
            for slice_port in &slice.ports {
                if (&slice_port.name, &slice_port.protocol) != (&port.name, &port.protocol) {
                    continue;
                }
                for (endpoint, node) in &slice.endpoints {
                    if endpoint.is_ipv4() == address.is_ipv4() && (only_node.is_none() || *node == only_node) {
                        backends.push(Backend { address: *endpoint, port: slice_port.number });
                    }
                }
            }
        }
        backends
    }

    /// Whom a backend may see as the client. Node ports, external and load-balancer addresses under the traffic policy
    /// `Cluster` usually show the node that chose the backend; since not every proxy does so, the client itself counts too.
    pub(super) fn sources<'a>(&'a self, used: &Use<'_>, client: &Endpoint<'a>) -> Vec<Endpoint<'a>> {
        let chosen_by: Vec<&str> = match (&used.kind, client) {
            (Kind::Cluster, _) => return vec![client.clone()],
            (Kind::NodePort(node), _) => vec![node],
            (Kind::External, Endpoint::Pod { pod, .. }) => pod.node.iter().map(String::as_str).collect(),
            (Kind::External, Endpoint::Node { name, made_it: true, .. }) => vec![name],
            (Kind::External, _) => self.nodes.keys().map(String::as_str).collect(),
        };
        let mut client = client.clone();
        if let Endpoint::Node { name, made_it: made_it @ true, .. } = &mut client {
            if chosen_by == [name.as_str()] {
                // Its own address or another of its own: the packet is still its own making.
                return vec![client];
            }
            // What another node has turned round comes back as any forwarded packet.
            *made_it = false;
        }
        let mut sources = vec![client];
        if used.service.external_policy == TrafficPolicy::Local {
            return sources;
        }
        let before = sources.len();
        for name in chosen_by {
            let addresses = self.nodes.get(name).into_iter().flat_map(|node| &node.addresses);
            sources.extend(
                addresses
                    .filter(|address| address.is_ipv4() == used.address.is_ipv4())
                    .map(|&address| Endpoint::Node { name: name.to_owned(), address, made_it: false }),
            );
        }
        if sources.len() == before {
            // It has an address, which nobody knows.
            sources.push(Endpoint::SomeNode { is_ipv4: used.address.is_ipv4() });
        }
        sources
    }
}
