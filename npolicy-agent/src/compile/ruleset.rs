//! Everything decided for one subject in one direction.

use npolicy_common::Direction;

use super::plan::{ClassKey, Fact, PeerId, PortNameId};
use super::ports::Bundle;

/// The other side of a packet, as far as a ruleset is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer<'a> {
    /// This node itself made the packet.
    NodeSelf,
    /// The pod reached itself through a Service.
    PodSelf,
    /// An address that does not fit the tables.
    Unknown,
    /// An address of this class.
    Class(&'a ClassKey),
}

/// Everything decided for one subject in one direction; immutable. Equal content means equal rows: pods with equal policy
/// share one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Ruleset {
    direction: Direction,
    rules: Option<Vec<Accepts>>,
}

/// One rule of a NetworkPolicy, resolved: these peers may reach these ports.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Accepts {
    /// Peers, OR-ed; `None` is any address whatsoever.
    pub peers: Option<Vec<PeerId>>,
    /// Ports, as far as they do not depend on the peer.
    pub bundle: Bundle,
    /// Port names to be looked up on the peer (egress), each with its protocol.
    pub names: Vec<(PortNameId, npolicy_common::FlowProtocol)>,
}

impl Ruleset {
    /// The ruleset of a direction that no policy governs.
    pub fn ungoverned(direction: Direction) -> Self {
        Self { direction, rules: None }
    }

    /// The ruleset of a direction isolated by policies with these rules, in canonical order.
    pub fn isolated(direction: Direction, mut rules: Vec<Accepts>) -> Self {
        rules.sort();
        rules.dedup();
        Self { direction, rules: Some(rules) }
    }

    /// Which direction it is for.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether some policy governs the direction; if none does, everything is accepted.
    pub fn is_governed(&self) -> bool {
        self.rules.is_some()
    }

    /// What a peer may reach.
    ///
    /// 1. Not governed: everything.
    /// 2. The node itself, on ingress: everything (NetworkPolicy's local-node exemption).
    /// 3. The pod itself: everything.
    /// 4. An address that does not fit the tables: nothing.
    /// 5. Else the union of the rules one of whose peers the class matches.
    pub fn row(&self, peer: Peer<'_>) -> Bundle {
        let Some(rules) = &self.rules else { return Bundle::everything() };
        let key = match peer {
            Peer::NodeSelf if self.direction == Direction::Ingress => return Bundle::everything(),
            Peer::NodeSelf | Peer::Unknown => return Bundle::nothing(),
            Peer::PodSelf => return Bundle::everything(),
            Peer::Class(key) => key,
        };
        let mut row = Bundle::nothing();
        for rule in rules {
            let matches = match &rule.peers {
                None => true,
                Some(peers) => peers.iter().any(|&peer| key.0.binary_search(&Fact::Peer(peer)).is_ok()),
            };
            if !matches {
                continue;
            }
            row.add(&rule.bundle);
            for fact in key.0.iter() {
                let &Fact::Named(name, protocol, port) = fact else { continue };
                if rule.names.contains(&(name, protocol)) {
                    row.ports[protocol as usize].add(&super::ports::PortSet::range(port, port));
                }
            }
        }
        row
    }
}
