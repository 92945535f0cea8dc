//! The oracle: what NetworkPolicy and ClusterNetworkPolicy say of a packet, read aloud.
//!
//! Raw objects come in, as an API server hands them over or as somebody wrote them; verdicts go out. It is slow and
//! obvious: every question walks every policy again. It shares no code with what it is compared with, nor ideas.
//!
//! ```text
//! objects -> World -> ask:  a question of `npolicy can`, both ends together
//!                  -> step: what one hook of one pod says of a new packet
//! ```
//!
//! One direction of one pod goes through the tiers in order:
//!
//! 1. Admin: the first matching rule decides, by priority, then name, then place in the policy; `Pass` goes on.
//! 2. NetworkPolicies: final where one isolates the pod in this direction. The pod's own node may always come in, the pod
//!    itself too, by way of a Service; else some rule has to match.
//! 3. Baseline: like Admin.
//! 4. What nobody decided is accepted.

mod ask;
mod cluster_policies;
mod network_policies;
mod objects;
mod selectors;
mod services;
mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;

use npolicy_common::{Direction, Verdict};
use serde_json::{Value, json};

pub use ask::{Answer, Probe};

use cluster_policies::{Action, ClusterPolicy, Match, Tier};
use network_policies::NetworkPolicy;
use objects::{Node, Pod};
use services::{Service, Slice};
use values::{Labels, field, has_ports, labels, names, text};

/// Everything that decides: the cluster and its policies.
#[derive(Default, Debug)]
pub struct World {
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<(String, String), Pod>,
    nodes: BTreeMap<String, Node>,
    services: BTreeMap<(String, String), Service>,
    slices: Vec<Slice>,
    network_policies: Vec<NetworkPolicy>,
    /// In the order in which they are asked.
    cluster_policies: Vec<ClusterPolicy>,
}

/// How a packet came to be, as far as a hook can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// By its address alone; with a node's, it is traffic that the node forwards.
    ByAddress,
    /// The pod's own node made it. On egress nothing is the node's own making: as by address.
    NodeSelf,
    /// The pod itself, by way of a Service that picked it.
    PodSelf,
}

/// One end of a packet.
#[derive(Clone, Debug)]
enum Endpoint<'a> {
    /// A pod with a network namespace of its own.
    Pod { pod: &'a Pod, address: IpAddr },
    /// A node, which made the packet itself or only forwards it.
    Node { name: String, address: IpAddr, made_it: bool },
    /// Anything else.
    Other { address: IpAddr },
    /// The address of a Service, of which no pod, no node and nothing else is known.
    Virtual,
    /// Some node, under an address of this family that nobody knows.
    SomeNode { is_ipv4: bool },
}

/// What else of a packet counts.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Packet {
    protocol: String,
    /// Where it goes; none for protocols without ports.
    port: Option<u16>,
}

impl Endpoint<'_> {
    /// The address that blocks and nodes are compared with, if it is known. A Service's never is compared.
    fn comparable_address(&self) -> Option<IpAddr> {
        match self {
            Self::Pod { address, .. } | Self::Node { address, .. } | Self::Other { address } => Some(*address),
            Self::Virtual | Self::SomeNode { .. } => None,
        }
    }
}

impl Packet {
    fn new(protocol: &str, port: Option<u16>) -> Self {
        Self { protocol: protocol.to_owned(), port: port.filter(|_| has_ports(protocol)) }
    }
}

impl World {
    /// Reads a cluster and its policies. Lists are opened; objects of other kinds, and of other groups, are left out. Of
    /// two objects with one name the later counts, policies apart.
    pub fn from_objects(objects: &[Value]) -> Self {
        let mut world = Self::default();
        for object in objects {
            world.add(object);
        }
        world.cluster_policies.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
        world
    }

    fn add(&mut self, object: &Value) {
        let (Some(kind), version) = (text(object, "kind"), text(object, "apiVersion")) else { return };
        if let (Some(kind), Some(items)) = (kind.strip_suffix("List"), field(object, "items").and_then(Value::as_array))
        {
            for item in items {
                let mut item = item.clone();
                // The items of a list of one kind leave out what the list says for all of them.
                for (name, value) in [("kind", Some(kind.to_owned())), ("apiVersion", version.clone())] {
                    if field(&item, name).is_none() && item.is_object() {
                        item[name] = json!(value);
                    }
                }
                self.add(&item);
            }
            return;
        }
        let key = names(object);
        match (kind.as_str(), version.as_deref()) {
            ("Namespace", Some("v1") | None) => {
                self.namespaces.insert(key.1, labels(object));
            }
            ("Pod", Some("v1") | None) => {
                self.pods.insert(key, Pod::parse(object));
            }
            ("Node", Some("v1") | None) => {
                self.nodes.insert(key.1, Node::parse(object));
            }
            ("Service", Some("v1") | None) => {
                self.services.insert(key, Service::parse(object));
            }
            ("EndpointSlice", Some("discovery.k8s.io/v1") | None) => self.slices.extend(Slice::parse(object)),
            ("NetworkPolicy", Some("networking.k8s.io/v1") | None) => {
                self.network_policies.extend(NetworkPolicy::parse(object));
            }
            (
                "ClusterNetworkPolicy",
                Some("policy.networking.k8s.io/v1alpha2" | "policy.networking.k8s.io/v1beta1") | None,
            ) => self.cluster_policies.extend(ClusterPolicy::parse(object)),
            _ => {}
        }
    }

    /// What one hook of one pod says of a new packet. `remote` is the other end's address as the hook sees it; `port` is
    /// the destination's and means nothing for ICMP. On egress it may be a Service's address, which stands for its
    /// backends; on ingress it never does. A pod that is no subject, like one of the host network, accepts everything.
    ///
    /// # Panics
    ///
    /// Where there is no such pod.
    pub fn step(
        &self,
        pod: (&str, &str),
        direction: Direction,
        remote: IpAddr,
        origin: Origin,
        protocol: &str,
        port: u16,
    ) -> Verdict {
        let (namespace, name) = pod;
        let me = self.pods.get(&(namespace.to_owned(), name.to_owned()));
        let me = me.unwrap_or_else(|| panic!("there is no pod {namespace}/{name}"));
        let packet = Packet::new(protocol, Some(port));
        let remote = remote.to_canonical();
        if !me.is_enforceable() {
            return Verdict::Accept;
        }
        match (origin, direction) {
            (Origin::PodSelf, _) => {
                let own = me.addresses.iter().copied().find(|own| own.is_ipv4() == remote.is_ipv4());
                let peer = Endpoint::Pod { pod: me, address: own.unwrap_or(remote) };
                self.direction(direction, me, &peer, &packet, true)
            }
            (Origin::NodeSelf, Direction::Ingress) => {
                let name = me.node.clone().unwrap_or_default();
                let peer = Endpoint::Node { name, address: remote, made_it: true };
                self.direction(direction, me, &peer, &packet, false)
            }
            (Origin::ByAddress | Origin::NodeSelf, _) => {
                let peer = self.classify(remote);
                if matches!(&peer, Endpoint::Pod { pod, .. } if pod.is(me)) {
                    return Verdict::Accept;
                }
                match direction {
                    Direction::Ingress => self.direction(direction, me, &peer, &packet, false),
                    Direction::Egress => self.egress(me, remote, &packet),
                }
            }
        }
    }

    /// The egress step of a pod to an address, which may be a Service's.
    fn egress(&self, me: &Pod, to: IpAddr, packet: &Packet) -> Verdict {
        let Some(uses) = self.service_uses(to, packet) else {
            return self.direction(Direction::Egress, me, &self.classify(to), packet, false);
        };
        // The pod's own address plays no part: only who it is and where it runs.
        let client = Endpoint::Pod { pod: me, address: to };
        let backends: Vec<_> = uses.iter().flat_map(|used| self.backends(used, &client)).collect();
        if backends.is_empty() {
            return self.direction(Direction::Egress, me, &Endpoint::Virtual, packet, false);
        }
        every(backends.iter().map(|backend| {
            let peer = self.classify(backend.address);
            let itself = matches!(&peer, Endpoint::Pod { pod, .. } if pod.is(me));
            let packet = Packet::new(&packet.protocol, Some(backend.port));
            self.direction(Direction::Egress, me, &peer, &packet, itself)
        }))
    }

    /// Whose address it is. Of two pods that claim one, the newer has it.
    fn classify(&self, address: IpAddr) -> Endpoint<'_> {
        let claimants = self.pods.values().filter(|pod| pod.is_enforceable() && pod.addresses.contains(&address));
        if let Some(pod) = claimants.max_by_key(|pod| &pod.age) {
            return Endpoint::Pod { pod, address };
        }
        if self.services.values().any(|service| service.cluster_addresses.contains(&address)) {
            return Endpoint::Virtual;
        }
        if let Some(node) = self.nodes.values().find(|node| node.addresses.contains(&address)) {
            return Endpoint::Node { name: node.name.clone(), address, made_it: false };
        }
        Endpoint::Other { address }
    }

    /// One direction of one pod: the tiers in order. `itself` says that the pod reaches itself through a Service.
    fn direction(&self, direction: Direction, me: &Pod, peer: &Endpoint<'_>, packet: &Packet, itself: bool) -> Verdict {
        // Whose container ports a name refers to: the pod that the packet goes to.
        let target = match (direction, peer) {
            (Direction::Ingress, _) => Some(me),
            (Direction::Egress, Endpoint::Pod { pod, .. }) => Some(*pod),
            (Direction::Egress, _) => None,
        };

        match self.tier(Tier::Admin, direction, me, peer, target, packet) {
            Some(Action::Accept) => return Verdict::Accept,
            Some(Action::Deny) => return Verdict::Deny,
            Some(Action::Pass) | None => {}
        }

        let mut isolating = self.network_policies.iter().filter(|policy| policy.isolates(me, direction)).peekable();
        if isolating.peek().is_some() {
            let accepted = itself
                || (direction == Direction::Ingress && is_own_node(peer, me))
                || isolating.any(|policy| policy.accepts(self, direction, peer, target, packet));
            return if accepted { Verdict::Accept } else { Verdict::Deny };
        }

        match self.tier(Tier::Baseline, direction, me, peer, target, packet) {
            Some(Action::Deny) => Verdict::Deny,
            Some(Action::Accept | Action::Pass) | None => Verdict::Accept,
        }
    }

    fn tier(
        &self,
        tier: Tier,
        direction: Direction,
        me: &Pod,
        peer: &Endpoint<'_>,
        target: Option<&Pod>,
        packet: &Packet,
    ) -> Option<Action> {
        for policy in &self.cluster_policies {
            if policy.tier != tier || !policy.selects(self, me) {
                continue;
            }
            for rule in policy.rules(direction) {
                match (rule.matches(self, peer, target, packet), rule.action) {
                    (Match::Yes, action) => return Some(action),
                    (Match::No, _) | (Match::Unknown, Action::Accept) => {}
                    // No rule was ever meant to cut a node off from its own pods.
                    (Match::Unknown, _) if direction == Direction::Ingress && is_own_node(peer, me) => {}
                    (Match::Unknown, Action::Deny | Action::Pass) => return Some(Action::Deny),
                }
            }
        }
        None
    }

    /// A namespace's labels, among them its name, whether or not the object says so.
    fn namespace_labels(&self, namespace: &str) -> Labels {
        let mut labels = self.namespaces.get(namespace).cloned().unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        labels
    }
}

/// Whether the packet was made by the node that the pod runs on.
fn is_own_node(peer: &Endpoint<'_>, me: &Pod) -> bool {
    matches!(peer, Endpoint::Node { name, made_it: true, .. } if me.node.as_ref() == Some(name))
}

/// `Accept` if every one of them is.
fn every(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    if verdicts.into_iter().all(|verdict| verdict == Verdict::Accept) { Verdict::Accept } else { Verdict::Deny }
}
