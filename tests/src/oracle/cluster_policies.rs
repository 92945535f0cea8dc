//! ClusterNetworkPolicies: ordered rules in two tiers.

use npolicy_common::Direction;
use serde_json::{Map, Value};

use super::objects::Pod;
use super::selectors::Selector;
use super::values::{Block, Malformed, field, items, names, port_number, text};
use super::{Endpoint, Packet, World};

/// When a policy is asked: before the NetworkPolicies or after them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// First.
    Admin,
    /// Last, and only where no NetworkPolicy isolates.
    Baseline,
}

/// What a rule says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Final.
    Accept,
    /// Final.
    Deny,
    /// The next tier decides.
    Pass,
}

/// A ClusterNetworkPolicy.
#[derive(Debug)]
pub struct ClusterPolicy {
    /// Its tier.
    pub tier: Tier,
    /// Smaller is asked earlier.
    pub priority: u64,
    /// Orders policies of one priority, byte by byte.
    pub name: String,
    subject: Pods,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

/// One rule, in the order written.
#[derive(Debug)]
pub struct Rule {
    /// What it says; a word that is not known may have meant a denial.
    pub action: Action,
    /// `None` where something in the rule is not known or not legal: nobody can say what it matches.
    content: Option<Content>,
}

#[derive(Debug)]
struct Content {
    peers: Vec<Peer>,
    /// `None` for all traffic.
    protocols: Option<Vec<Protocol>>,
}

#[derive(Debug)]
struct Pods {
    namespaces: Selector,
    pods: Selector,
}

#[derive(Debug)]
enum Peer {
    Pods(Pods),
    Networks(Vec<Block>),
    Nodes(Selector),
}

#[derive(Debug)]
enum Protocol {
    Numbers { protocol: String, first: u16, last: u16 },
    Named(String),
}

/// Whether a rule matches a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Its content is not representable.
    Unknown,
}

impl ClusterPolicy {
    /// Reads a policy. One that has no place in the order, or whose subject nobody can tell, does not apply.
    pub fn parse(object: &Value) -> Result<Self, Malformed> {
        let spec = &object["spec"];
        let tier = match text(spec, "tier").as_deref() {
            Some("Admin") => Tier::Admin,
            Some("Baseline") => Tier::Baseline,
            _ => return Err(Malformed),
        };
        let priority = spec["priority"].as_u64().filter(|priority| *priority <= 1000).ok_or(Malformed)?;
        let rules = |name, direction| -> Result<Vec<Rule>, Malformed> {
            Ok(items(spec, name)?.iter().map(|item| Rule::parse(item, direction)).collect())
        };
        Ok(Self {
            tier,
            priority,
            name: names(object).1,
            subject: subject(field(spec, "subject").ok_or(Malformed)?)?,
            ingress: rules("ingress", Direction::Ingress)?,
            egress: rules("egress", Direction::Egress)?,
        })
    }

    /// Whether the policy is about the pod.
    pub fn selects(&self, world: &World, pod: &Pod) -> bool {
        self.subject.contain(world, pod)
    }

    /// The rules of one direction, in order.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl Rule {
    fn parse(rule: &Value, direction: Direction) -> Self {
        let action = match text(rule, "action").as_deref() {
            Some("Accept") => Action::Accept,
            Some("Pass") => Action::Pass,
            _ => Action::Deny,
        };
        Self { action, content: Content::parse(rule, direction).ok() }
    }

    /// Whether the rule matches a packet from or to the peer. `target` is the pod that it goes to.
    pub fn matches(&self, world: &World, peer: &Endpoint<'_>, target: Option<&Pod>, packet: &Packet) -> Match {
        let Some(Content { peers, protocols }) = &self.content else { return Match::Unknown };
        let protocol_matches = match (protocols, packet.port) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(entries), Some(number)) => entries.iter().any(|entry| match entry {
                Protocol::Numbers { protocol, first, last } => {
                    *protocol == packet.protocol && (*first..=*last).contains(&number)
                }
                Protocol::Named(name) => target.is_some_and(|pod| pod.calls(name, &packet.protocol, number)),
            }),
        };
        if protocol_matches && peers.iter().any(|item| item.matches(world, peer)) { Match::Yes } else { Match::No }
    }
}

impl Content {
    fn parse(rule: &Value, direction: Direction) -> Result<Self, Malformed> {
        let name = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        only(rule, &["name", "action", name, "protocols"])?;
        let peers = all(items(rule, name)?, |item| peer(item, direction))?;
        let protocols = match field(rule, "protocols") {
            None => None,
            Some(_) => Some(all(items(rule, "protocols")?, protocol)?),
        };
        let names_a_port = protocols.iter().flatten().any(|entry| matches!(entry, Protocol::Named(_)));
        if names_a_port && peers.iter().any(|peer| !matches!(peer, Peer::Pods(_))) {
            return Err(Malformed);
        }
        Ok(Self { peers, protocols })
    }
}

impl Pods {
    fn contain(&self, world: &World, pod: &Pod) -> bool {
        self.namespaces.matches(&world.namespace_labels(&pod.namespace)) && self.pods.matches(&pod.labels)
    }
}

impl Peer {
    fn matches(&self, world: &World, peer: &Endpoint<'_>) -> bool {
        match self {
            Self::Pods(pods) => matches!(peer, Endpoint::Pod { pod, .. } if pods.contain(world, pod)),
            Self::Networks(blocks) => {
                peer.comparable_address().is_some_and(|address| blocks.iter().any(|block| block.contains(address)))
            }
            Self::Nodes(selector) => peer.comparable_address().is_some_and(|address| {
                let mut owners = world.nodes.values().filter(|node| node.addresses.contains(&address));
                owners.any(|node| selector.matches(&node.labels))
            }),
        }
    }
}

/// The one field that an object has. Null is as good as absent.
fn one(object: &Value) -> Result<(&str, &Value), Malformed> {
    let fields: Vec<_> = object.as_object().ok_or(Malformed)?.iter().filter(|(_, value)| !value.is_null()).collect();
    match fields[..] {
        [(name, value)] => Ok((name, value)),
        _ => Err(Malformed),
    }
}

/// That an object has no fields but these. A newer API may have narrowed it by one we do not know.
fn only<'a>(object: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>, Malformed> {
    let fields = object.as_object().ok_or(Malformed)?;
    let mut given = fields.iter().filter(|(_, value)| !value.is_null());
    if given.all(|(name, _)| known.contains(&&**name)) { Ok(fields) } else { Err(Malformed) }
}

/// Every item read; there must be one.
fn all<T>(items: &[Value], read: impl Fn(&Value) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
    if items.is_empty() {
        return Err(Malformed);
    }
    items.iter().map(read).collect()
}

fn selector(value: &Value) -> Result<Selector, Malformed> {
    only(value, &["matchLabels", "matchExpressions"])?;
    for expression in items(value, "matchExpressions")? {
        only(expression, &["key", "operator", "values"])?;
    }
    Selector::parse(value)
}

/// `namespaces` or `pods`, which a subject and a peer share.
fn pods(kind: &str, value: &Value) -> Result<Pods, Malformed> {
    match kind {
        "namespaces" => Ok(Pods { namespaces: selector(value)?, pods: Selector::everything() }),
        "pods" => {
            only(value, &["namespaceSelector", "podSelector"])?;
            let namespaces = field(value, "namespaceSelector").map_or(Ok(Selector::everything()), selector)?;
            Ok(Pods { namespaces, pods: selector(field(value, "podSelector").ok_or(Malformed)?)? })
        }
        _ => Err(Malformed),
    }
}

fn subject(value: &Value) -> Result<Pods, Malformed> {
    let (kind, value) = one(value)?;
    pods(kind, value)
}

/// Nodes and blocks are peers on egress only; domain names are not supported.
fn peer(item: &Value, direction: Direction) -> Result<Peer, Malformed> {
    let (kind, value) = one(item)?;
    match (kind, direction) {
        ("networks", Direction::Egress) => {
            let blocks = value.as_array().ok_or(Malformed)?;
            let block = |item: &Value| item.as_str().and_then(Block::parse).ok_or(Malformed);
            Ok(Peer::Networks(all(blocks, block)?))
        }
        ("nodes", Direction::Egress) => Ok(Peer::Nodes(selector(value)?)),
        (kind, _) => Ok(Peer::Pods(pods(kind, value)?)),
    }
}

fn protocol(entry: &Value) -> Result<Protocol, Malformed> {
    let (kind, value) = one(entry)?;
    let protocol = match kind {
        "tcp" => "TCP",
        "udp" => "UDP",
        "sctp" => "SCTP",
        "destinationNamedPort" => {
            let name = value.as_str().filter(|name| !name.is_empty()).ok_or(Malformed)?;
            return Ok(Protocol::Named(name.to_owned()));
        }
        _ => return Err(Malformed),
    };
    let ("destinationPort", port) = one(value)? else { return Err(Malformed) };
    let (first, last) = match one(port)? {
        ("number", number) => {
            let number = port_number(number).ok_or(Malformed)?;
            (number, number)
        }
        ("range", range) => {
            only(range, &["start", "end"])?;
            let end = |name: &str| field(range, name).and_then(port_number).ok_or(Malformed);
            let (first, last) = (end("start")?, end("end")?);
            if first >= last {
                return Err(Malformed);
            }
            (first, last)
        }
        _ => return Err(Malformed),
    };
    Ok(Protocol::Numbers { protocol: protocol.to_owned(), first, last })
}
