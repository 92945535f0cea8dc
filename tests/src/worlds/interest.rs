//! What is worth asking about a world: its ends, and every number and address that it mentions, with their neighbours.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use npolicy_common::Direction;
use serde_json::Value;

use super::alphabet::PROTOCOLS;
use crate::oracle::{Origin, Probe};

/// Fields that hold port numbers.
const PORT_FIELDS: &[&str] = &["port", "endPort", "containerPort", "number", "start", "end", "nodePort", "targetPort"];

/// One direction of one pod, asked about one packet that would open a flow.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// Namespace and name of the pod.
    pub pod: (String, String),
    /// The node it runs on.
    pub node: String,
    /// Which way the packet goes, from the pod's point of view.
    pub direction: Direction,
    /// The pod's own address of the family.
    pub own: IpAddr,
    /// The other end's address, as the packet carries it at the pod.
    pub remote: IpAddr,
    /// Where a packet that enters the pod came from.
    pub origin: Origin,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: &'static str,
    /// Destination port; 0 for ICMP.
    pub port: u16,
}

/// What a world mentions.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    /// Every pod, with the addresses that its object gives it.
    pods: Vec<(String, Vec<IpAddr>)>,
    /// Those that are likely to have an answer.
    askable: Vec<(String, Vec<IpAddr>)>,
    live: Vec<Live>,
    nodes: Vec<(String, Vec<IpAddr>)>,
    services: Vec<String>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

/// A pod that runs on a node and has addresses that no other pod claims.
#[derive(Clone, Debug)]
struct Live {
    key: (String, String),
    node: String,
    addresses: Vec<IpAddr>,
}

impl Interest {
    /// Looks through the objects.
    pub fn of(objects: &[Value]) -> Self {
        let mut found = Self::default();
        let mut addresses = BTreeSet::new();
        let mut ports = BTreeSet::from([0, 1, 65535]);
        let mut claims: Vec<IpAddr> = Vec::new();
        for object in objects {
            let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            let key = (name("namespace"), name("name"));
            match object["kind"].as_str() {
                Some("Pod") => {
                    let addresses = listed(&object["status"]["podIPs"], "ip");
                    let name = format!("{}/{}", key.0, key.1);
                    let phase = object["status"]["phase"].as_str().unwrap_or("Pending");
                    if ["Succeeded", "Failed"].contains(&phase) || object["spec"]["hostNetwork"] == true {
                        found.pods.push((name, addresses));
                    } else {
                        claims.extend(&addresses);
                        found.askable.push((name, addresses));
                        found.live.extend(live(object, key));
                    }
                }
                Some("Node") => found.nodes.push((key.1, listed(&object["status"]["addresses"], "address"))),
                Some("Service") => found.services.push(format!("svc:{}/{}", key.0, key.1)),
                _ => {}
            }
            look_through(object, &mut addresses, &mut ports);
        }
        // What two pods claim is asked about by address: the pod that has lost it has none.
        let is_its_own = |address: &IpAddr| claims.iter().filter(|other| *other == address).count() == 1;
        found.live.iter_mut().for_each(|pod| pod.addresses.retain(is_its_own));
        found.live.retain(|pod| !pod.addresses.is_empty());
        found.askable.retain(|(_, addresses)| addresses.iter().all(is_its_own));
        found.pods.extend(found.askable.clone());
        found.askable.retain(|(_, addresses)| !addresses.is_empty());
        addresses.insert(Ipv4Addr::new(198, 51, 100, 1).into());
        addresses.insert(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into());
        // An IPv4 address in IPv6's clothes is no packet's.
        addresses.retain(|address| address.to_canonical() == *address);
        found.addresses = addresses.into_iter().collect();
        found.ports = ports.into_iter().collect();
        found
    }

    /// Questions about connections, as `npolicy can --batch` reads them.
    pub fn probes(&self, rng: &mut Rng, count: usize) -> Vec<Probe> {
        (0..count).map(|_| self.probe(rng)).collect()
    }

    fn probe(&self, rng: &mut Rng) -> Probe {
        // Policy has something to say only where an end is a pod.
        let pods = if rng.u32(0..8) == 0 { &self.pods } else { &self.askable };
        let pod = pods.get(rng.usize(0..pods.len().max(1)));
        let pod = pod.map_or_else(|| self.end(rng, None), |(name, addresses)| (name.clone(), addresses.clone()));
        let is_from = rng.bool();
        // Mostly of a family that both have: the others have one answer, none.
        let family = if rng.u32(0..20) == 0 { None } else { pod.1.get(rng.usize(0..pod.1.len().max(1))).copied() };
        let family = family.as_ref();
        let other = if is_from { self.destination(rng, family) } else { self.end(rng, family) };
        let (from, to) = if is_from { (pod, other) } else { (other, pod) };
        let protocol = self.protocol(rng);
        // Port 0 cannot be asked about.
        let port = (protocol != "ICMP").then(|| self.port(rng).max(1));
        // Which family is asked about where none is named depends on the order of addresses: that is the asker's affair,
        // unless there is but one order.
        let has_choice = from.1.len() > 1 && from.1[0].is_ipv6();
        let family = match rng.u32(0..5) {
            0 | 1 if family.is_some() => family,
            2 if rng.u32(0..10) == 0 => from.1.last(),
            _ if has_choice => family.or(from.1.first()),
            _ => None,
        };
        let family = family.map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned());
        Probe { from: from.0, to: to.0, protocol: protocol.to_owned(), port, family }
    }

    /// An end that has an address of the same family as this one.
    fn end(&self, rng: &mut Rng, like: Option<&IpAddr>) -> (String, Vec<IpAddr>) {
        let fits = |address: &IpAddr| like.is_none_or(|like| like.is_ipv4() == address.is_ipv4());
        match rng.u32(0..10) {
            0 => {
                let node = self.nodes.get(rng.usize(0..self.nodes.len().max(1)));
                node.filter(|(_, addresses)| addresses.iter().any(fits))
                    .map(|(name, addresses)| (format!("node:{name}"), addresses.clone()))
            }
            1..=5 => {
                let pods = if rng.u32(0..8) == 0 { &self.pods } else { &self.askable };
                let fitting: Vec<_> = pods.iter().filter(|(_, addresses)| addresses.iter().any(fits)).collect();
                fitting.get(rng.usize(0..fitting.len().max(1))).map(|&pod| pod.clone())
            }
            _ => None,
        }
        .unwrap_or_else(|| {
            let fitting: Vec<IpAddr> = self.addresses.iter().copied().filter(fits).collect();
            let address = fitting[rng.usize(0..fitting.len())];
            (format!("ip:{address}"), vec![address])
        })
    }

    fn destination(&self, rng: &mut Rng, like: Option<&IpAddr>) -> (String, Vec<IpAddr>) {
        if !self.services.is_empty() && rng.u32(0..4) == 0 {
            return (self.services[rng.usize(0..self.services.len())].clone(), Vec::new());
        }
        self.end(rng, like)
    }

    fn protocol(&self, rng: &mut Rng) -> &'static str {
        match rng.usize(0..8) {
            0 => "ICMP",
            1..=3 => "TCP",
            _ => PROTOCOLS[rng.usize(0..PROTOCOLS.len())],
        }
    }

    fn port(&self, rng: &mut Rng) -> u16 {
        self.ports[rng.usize(0..self.ports.len())]
    }

    /// Questions about one direction of one pod each; none if no pod can be asked about.
    pub fn steps(&self, rng: &mut Rng, count: usize) -> Vec<Step> {
        (0..count).filter_map(|_| self.step(rng)).collect()
    }

    fn step(&self, rng: &mut Rng) -> Option<Step> {
        let pod = self.live.get(rng.usize(0..self.live.len().max(1)))?;
        let own = pod.addresses[rng.usize(0..pod.addresses.len())];
        let direction = if rng.bool() { Direction::Ingress } else { Direction::Egress };
        let of_family = |addresses: &[IpAddr], rng: &mut Rng| {
            let fitting: Vec<IpAddr> =
                addresses.iter().copied().filter(|address| address.is_ipv4() == own.is_ipv4()).collect();
            fitting.get(rng.usize(0..fitting.len().max(1))).copied()
        };
        let own_node = self.nodes.iter().find(|(name, _)| *name == pod.node).map_or(&[][..], |(_, all)| all);
        let (origin, remote) = match (direction, rng.u32(0..16)) {
            (Direction::Ingress, 0 | 1) => (Origin::NodeSelf, of_family(own_node, rng)?),
            // Masqueraded, a packet to itself carries the node's address.
            (Direction::Ingress, 2) => (Origin::PodSelf, of_family(own_node, rng).unwrap_or(own)),
            (Direction::Ingress, 3) => (Origin::PodSelf, own),
            (_, 4..=9) => {
                let other = &self.live[rng.usize(0..self.live.len())].addresses;
                (Origin::ByAddress, of_family(other, rng)?)
            }
            _ => (Origin::ByAddress, of_family(&self.addresses, rng)?),
        };
        // A packet to itself never leaves the pod, and none with its address comes from elsewhere.
        if origin == Origin::ByAddress && remote == own {
            return None;
        }
        let protocol = self.protocol(rng);
        let port = if protocol == "ICMP" { 0 } else { self.port(rng) };
        Some(Step { pod: pod.key.clone(), node: pod.node.clone(), direction, own, remote, origin, protocol, port })
    }
}

fn live(object: &Value, key: (String, String)) -> Option<Live> {
    let phase = object["status"]["phase"].as_str().unwrap_or("Pending");
    let is_live = !["Succeeded", "Failed"].contains(&phase) && object["spec"]["hostNetwork"] != true;
    let node = object["spec"]["nodeName"].as_str().filter(|_| is_live)?;
    Some(Live { key, node: node.to_owned(), addresses: listed(&object["status"]["podIPs"], "ip") })
}

fn listed(list: &Value, field: &str) -> Vec<IpAddr> {
    let items = list.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(|item| item[field].as_str()?.parse().ok()).collect()
}

/// Collects ports with their neighbours, and addresses and both ends of blocks with theirs.
fn look_through(value: &Value, addresses: &mut BTreeSet<IpAddr>, ports: &mut BTreeSet<u16>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let number = value.as_u64().filter(|_| PORT_FIELDS.contains(&&**key));
                if let Some(number) = number.and_then(|number| u16::try_from(number).ok()) {
                    ports.extend([number.saturating_sub(1), number, number.saturating_add(1)]);
                }
                look_through(value, addresses, ports);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| look_through(item, addresses, ports)),
        Value::String(text) => {
            for address in edges(text).into_iter().flatten() {
                addresses.extend([before(address), Some(address), after(address)].into_iter().flatten());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The first and last address of what is written: an address or a block, in any spelling.
fn edges(text: &str) -> Option<[IpAddr; 2]> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let spelt: Vec<&str> = address.split('.').map(|part| part.trim_start_matches('0')).collect();
    let spelt: Vec<&str> = spelt.into_iter().map(|part| if part.is_empty() { "0" } else { part }).collect();
    let address: IpAddr = if address.contains(':') { address.parse().ok()? } else { spelt.join(".").parse().ok()? };
    let length = length.unwrap_or(if address.is_ipv4() { 32 } else { 128 });
    let (address, length) = match address.to_canonical() {
        canonical if canonical == address => (address, length),
        canonical => (canonical, length.checked_sub(96)?),
    };
    let block = ipnet::IpNet::new(address, length).ok()?;
    Some([block.network(), block.broadcast()])
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}
