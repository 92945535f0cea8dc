//! NetworkPolicies: whom they isolate and what they accept.

use npolicy_common::Direction;
use serde_json::Value;

use super::objects::Pod;
use super::selectors::Selector;
use super::values::{Block, Malformed, field, items, names, port_number, protocol};
use super::{Endpoint, Packet, World};

/// A NetworkPolicy.
#[derive(Debug)]
pub struct NetworkPolicy {
    /// Its subjects and the peers of a lone `podSelector` live here.
    pub namespace: String,
    subject: Selector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

/// One rule; `None` where it restricts nothing.
#[derive(Debug)]
struct Rule {
    peers: Option<Vec<Peer>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug)]
enum Peer {
    Pods {
        namespaces: Option<Selector>,
        pods: Option<Selector>,
    },
    Addresses {
        block: Block,
        except: Vec<Block>,
    },
    /// What no API server would store: matches nothing.
    Nothing,
}

#[derive(Debug)]
enum Port {
    All {
        protocol: String,
    },
    Numbers {
        protocol: String,
        first: u16,
        last: u16,
    },
    Named {
        protocol: String,
        name: String,
    },
    /// What no API server would store: matches nothing.
    Nothing,
}

impl NetworkPolicy {
    /// Reads a policy. One whose subject selector is broken isolates nobody: who was meant cannot be known.
    pub fn parse(object: &Value) -> Result<Self, Malformed> {
        let spec = &object["spec"];
        let subject = match field(spec, "podSelector") {
            Some(selector) => Selector::parse(selector)?,
            None => Selector::everything(),
        };
        let (isolates_ingress, isolates_egress) = types(spec);
        Ok(Self {
            namespace: names(object).0,
            subject,
            ingress: isolates_ingress.then(|| rules(spec, "ingress", "from")),
            egress: isolates_egress.then(|| rules(spec, "egress", "to")),
        })
    }

    /// Whether the policy isolates the pod in this direction.
    pub fn isolates(&self, pod: &Pod, direction: Direction) -> bool {
        self.rules(direction).is_some() && self.namespace == pod.namespace && self.subject.matches(&pod.labels)
    }

    /// Whether some rule of this direction accepts the packet from or to the peer. `target` is the pod it goes to.
    pub fn accepts(
        &self,
        world: &World,
        direction: Direction,
        peer: &Endpoint<'_>,
        target: Option<&Pod>,
        packet: &Packet,
    ) -> bool {
        let rules = self.rules(direction).into_iter().flatten();
        rules.into_iter().any(|rule| self.peers_match(world, rule, peer) && ports_match(rule, target, packet))
    }

    fn rules(&self, direction: Direction) -> Option<&Vec<Rule>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }

    fn peers_match(&self, world: &World, rule: &Rule, peer: &Endpoint<'_>) -> bool {
        let Some(peers) = &rule.peers else { return true };
        peers.iter().any(|item| match item {
            Peer::Pods { namespaces, pods } => {
                let Endpoint::Pod { pod, .. } = peer else { return false };
                let namespace_matches = match namespaces {
                    Some(selector) => selector.matches(&world.namespace_labels(&pod.namespace)),
                    None => pod.namespace == self.namespace,
                };
                namespace_matches && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
            }
            // An address that nobody knows is in a block for certain if every address is.
            Peer::Addresses { block, except } if let Endpoint::SomeNode { is_ipv4 } = peer => {
                block.is_everything(*is_ipv4) && except.is_empty()
            }
            Peer::Addresses { block, except } => peer.comparable_address().is_some_and(|address| {
                block.contains(address) && !except.iter().any(|excepted| excepted.contains(address))
            }),
            Peer::Nothing => false,
        })
    }
}

fn ports_match(rule: &Rule, target: Option<&Pod>, packet: &Packet) -> bool {
    let Some(ports) = &rule.ports else { return true };
    let Some(number) = packet.port else { return false };
    ports.iter().any(|entry| match entry {
        Port::All { protocol } => *protocol == packet.protocol,
        Port::Numbers { protocol, first, last } => *protocol == packet.protocol && (*first..=*last).contains(&number),
        Port::Named { protocol, name } => {
            *protocol == packet.protocol && target.is_some_and(|pod| pod.calls(name, protocol, number))
        }
        Port::Nothing => false,
    })
}

/// The directions in which a policy isolates. Where none is given, `Ingress`, and `Egress` if there is an egress rule.
/// Where none of those given is known, both.
fn types(spec: &Value) -> (bool, bool) {
    let given = match items(spec, "policyTypes") {
        Ok([]) => return (true, items(spec, "egress").is_ok_and(|rules| !rules.is_empty())),
        Ok(given) => given,
        Err(Malformed) => return (true, true),
    };
    let (ingress, egress) = (given.iter().any(|item| item == "Ingress"), given.iter().any(|item| item == "Egress"));
    if ingress || egress { (ingress, egress) } else { (true, true) }
}

fn rules(spec: &Value, direction: &str, peers: &str) -> Vec<Rule> {
    items(spec, direction).unwrap_or(&[]).iter().map(|item| rule(item, peers)).collect()
}

/// Null stands for an empty object, as an API server reads it; anything else that is no object matches nothing.
fn is_readable(value: &Value) -> bool {
    value.is_object() || value.is_null()
}

fn rule(rule: &Value, peers: &str) -> Rule {
    if !is_readable(rule) {
        return Rule { peers: Some(Vec::new()), ports: None };
    }
    let restriction = |name: &str| match items(rule, name) {
        Ok([]) => None,
        Ok(items) => Some(items.to_vec()),
        Err(Malformed) => Some(Vec::new()),
    };
    Rule {
        peers: restriction(peers).map(|items| items.iter().map(peer).collect()),
        ports: restriction("ports").map(|items| items.iter().map(port).collect()),
    }
}

fn peer(item: &Value) -> Peer {
    let (namespaces, pods) = (field(item, "namespaceSelector"), field(item, "podSelector"));
    let selector = |value: Option<&Value>| value.map(Selector::parse).transpose();
    match (field(item, "ipBlock"), namespaces.is_some() || pods.is_some()) {
        (Some(block), false) => addresses(block).unwrap_or(Peer::Nothing),
        (None, true) => match (selector(namespaces), selector(pods)) {
            (Ok(namespaces), Ok(pods)) => Peer::Pods { namespaces, pods },
            _ => Peer::Nothing,
        },
        (Some(_), true) | (None, false) => Peer::Nothing,
    }
}

/// An exception outside the block takes nothing away; one that cannot be read spoils the item.
fn addresses(value: &Value) -> Option<Peer> {
    let block = Block::parse(field(value, "cidr")?.as_str()?)?;
    let except: Option<Vec<Block>> =
        items(value, "except").ok()?.iter().map(|item| Block::parse(item.as_str()?)).collect();
    Some(Peer::Addresses { block, except: except? })
}

fn port(entry: &Value) -> Port {
    if !is_readable(entry) {
        return Port::Nothing;
    }
    let Some(protocol) = protocol(entry) else { return Port::Nothing };
    match (field(entry, "port"), field(entry, "endPort")) {
        (None, None) => Port::All { protocol },
        (Some(Value::String(name)), None) if legal_port_name(name) => Port::Named { protocol, name: name.clone() },
        (Some(first), None) => match port_number(first) {
            Some(number) => Port::Numbers { protocol, first: number, last: number },
            None => Port::Nothing,
        },
        (Some(first), Some(last)) => match (port_number(first), port_number(last)) {
            (Some(first), Some(last)) if first <= last => Port::Numbers { protocol, first, last },
            _ => Port::Nothing,
        },
        (None, Some(_)) => Port::Nothing,
    }
}

/// 1 to 15 lower-case letters, digits and hyphens: a letter among them, no hyphen at either end or beside another.
fn legal_port_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=15).contains(&name.len())
        && name.bytes().all(legal)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
