//! Questions in the words of `npolicy can --batch`: both ends of a connection together.

use std::net::IpAddr;

use npolicy_common::{Direction, Verdict};

use super::objects::Pod;
use super::values::{address, has_ports};
use super::{Endpoint, Packet, World, every};

/// One question in the words of `npolicy can --batch`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Who connects: `NS/POD`, `node:NAME` or `ip:ADDR`.
    pub from: String,
    /// To whom: the same, or `svc:NS/NAME`.
    pub to: String,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: String,
    /// The destination port, of a Service its own; none for ICMP.
    pub port: Option<u16>,
    /// `IPv4` or `IPv6`. Where none is given: IPv4 if both ends have it, else IPv6.
    pub family: Option<String>,
}

/// What the oracle says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The connection is accepted at both ends, by every backend that may be chosen.
    Accept,
    /// It is not.
    Deny,
    /// The question cannot be asked of this cluster; with the reason.
    Error(String),
}

/// One end of a question: its addresses, at most one a family, and the node that makes the packets if one does.
struct End {
    name: String,
    addresses: Vec<IpAddr>,
    made_by: Option<String>,
}

impl World {
    /// Answers a question. `NS/POD` is that pod's address, whoever owns it now. A hostNetwork pod and `node:NAME` are packets
    /// made by that node. `ip:ADDR` is an address on the wire: a pod's, a Service's if it goes there, traffic that a node
    /// forwards if the address is a node's. `svc:NS/NAME` is the first cluster address of the family.
    pub fn ask(&self, probe: &Probe) -> Answer {
        match self.verdict(probe) {
            Ok(Verdict::Accept) => Answer::Accept,
            Ok(Verdict::Deny) => Answer::Deny,
            Err(reason) => Answer::Error(reason),
        }
    }

    fn verdict(&self, probe: &Probe) -> Result<Verdict, String> {
        let Probe { from, to, protocol, port, family } = probe;
        let port = match protocol.as_str() {
            "ICMP" => None,
            name if has_ports(name) => Some(port.ok_or_else(|| format!("{name} needs a port"))?),
            name => return Err(format!("{name:?} is no protocol")),
        };
        let wanted = match family.as_deref() {
            None => [true, false].as_slice(),
            Some("IPv4") => &[true],
            Some("IPv6") => &[false],
            Some(other) => return Err(format!("{other:?} is no address family")),
        };
        if from.starts_with("svc:") {
            return Err(format!("{from} opens no connections"));
        }
        let (from, to) = (self.end(from)?, self.end(to)?);
        let addresses = wanted.iter().find_map(|&is_ipv4| {
            let of_family = |end: &End| end.addresses.iter().copied().find(|address| address.is_ipv4() == is_ipv4);
            Some((of_family(&from)?, of_family(&to)?))
        });
        let Some((source, destination)) = addresses else {
            return Err(format!("{} and {} have no such address family in common", from.name, to.name));
        };
        let client = match from.made_by {
            Some(name) => Endpoint::Node { name, address: source, made_it: true },
            None => self.classify(source),
        };
        Ok(self.connection(&client, destination, &Packet::new(protocol, port)))
    }

    /// Both steps of a new connection.
    fn connection(&self, client: &Endpoint<'_>, to: IpAddr, packet: &Packet) -> Verdict {
        let destination = self.classify(to);
        if let (Endpoint::Pod { pod: a, .. }, Endpoint::Pod { pod: b, .. }) = (client, &destination)
            && a.is(b)
        {
            return Verdict::Accept;
        }
        if let Endpoint::Pod { pod, .. } = client
            && self.egress(pod, to, packet) == Verdict::Deny
        {
            return Verdict::Deny;
        }
        let Some(uses) = self.service_uses(to, packet) else {
            return self.ingress(&destination, client, packet);
        };
        every(uses.iter().flat_map(|used| {
            let sources = self.sources(used, client);
            self.backends(used, client).into_iter().map(move |backend| {
                let destination = self.classify(backend.address);
                let packet = Packet::new(&packet.protocol, Some(backend.port));
                match (client, &destination) {
                    // A client that reaches itself: its ingress step knows it.
                    (Endpoint::Pod { pod: a, .. }, Endpoint::Pod { pod: b, .. }) if a.is(b) => {
                        self.direction(Direction::Ingress, a, &destination, &packet, true)
                    }
                    _ => every(sources.iter().map(|source| self.ingress(&destination, source, &packet))),
                }
            })
        }))
    }

    /// The ingress step, which only pods have.
    fn ingress(&self, destination: &Endpoint<'_>, source: &Endpoint<'_>, packet: &Packet) -> Verdict {
        match destination {
            Endpoint::Pod { pod, .. } => self.direction(Direction::Ingress, pod, source, packet, false),
            _ => Verdict::Accept,
        }
    }

    fn end(&self, text: &str) -> Result<End, String> {
        let name = text.to_owned();
        let (addresses, made_by) = if let Some(text) = text.strip_prefix("ip:") {
            (vec![address(text).ok_or_else(|| format!("{text:?} is no address"))?], None)
        } else if let Some(node) = text.strip_prefix("node:") {
            let node = self.nodes.get(node).ok_or_else(|| format!("there is no node {node}"))?;
            (node.addresses.clone(), Some(node.name.clone()))
        } else if let Some(service) = text.strip_prefix("svc:") {
            let service = self.services.get(&key(service)?).ok_or_else(|| format!("there is no Service {service}"))?;
            (service.cluster_addresses.clone(), None)
        } else {
            let pod = self.pods.get(&key(text)?).ok_or_else(|| format!("there is no pod {text}"))?;
            if pod.finished {
                return Err(format!("pod {text} has finished"));
            }
            if pod.host_network { self.on_host_network(pod)? } else { (pod.addresses.clone(), None) }
        };
        if addresses.is_empty() {
            return Err(format!("{text} has no address"));
        }
        Ok(End { name, addresses, made_by })
    }

    /// A pod of the host network is its node. Where the node is not in the world, the pod knows its addresses.
    fn on_host_network(&self, pod: &Pod) -> Result<(Vec<IpAddr>, Option<String>), String> {
        let node = pod.node.clone().ok_or_else(|| format!("pod {}/{} has no node yet", pod.namespace, pod.name))?;
        let addresses = self.nodes.get(&node).map_or(&pod.addresses, |node| &node.addresses);
        Ok((addresses.clone(), Some(node)))
    }
}

fn key(text: &str) -> Result<(String, String), String> {
    let (namespace, name) = text.split_once('/').ok_or_else(|| format!("{text:?} is no NAMESPACE/NAME"))?;
    Ok((namespace.to_owned(), name.to_owned()))
}
