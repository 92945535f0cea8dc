//! Everything decided for one subject in one direction.

use std::net::IpAddr;
use std::sync::Arc;

use npolicy_common::{Direction, FlowProtocol};

use super::plan::{BackendFacts, ClassKey, Fact, PeerId, PortNameId, ServiceFacts};
use super::ports::{Bundle, PortSet};
use crate::model::Action;

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
    tiers: Option<Tiers>,
    /// Rulesets that must accept, too; empty but for a pod that is one of several.
    rest: Vec<Arc<Ruleset>>,
}

/// What governs a direction, in the order in which it is asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tiers {
    /// Rules of the Admin tier that can match something, in order.
    pub admin: Vec<Step>,
    /// NetworkPolicy: `None` if none isolates the subject, else the union of all rules, in canonical order.
    pub isolated: Option<Vec<Accepts>>,
    /// Rules of the Baseline tier that can match something, in order; asked where no NetworkPolicy isolates.
    pub baseline: Vec<Step>,
    /// What sets the subject apart from others with the same rules.
    pub own: Own,
}

/// What a subject is to its own ruleset, as far as that makes a difference.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Own {
    /// Egress: its addresses that are backends of Services, ascending. Through those it reaches itself.
    pub backends: Vec<IpAddr>,
    /// Ingress: what the tiers around NetworkPolicy do not let it send to itself through a Service.
    pub denied: Bundle,
}

/// One rule of a NetworkPolicy, resolved: these peers may reach these ports.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Accepts {
    /// Peers, OR-ed; `None` is any address whatsoever.
    pub peers: Option<Vec<PeerId>>,
    /// Ports, as far as they do not depend on the peer.
    pub bundle: Bundle,
    /// Port names to be looked up on the peer (egress), each with its protocol.
    pub names: Vec<(PortNameId, FlowProtocol)>,
}

impl Accepts {
    /// What the rule matches of an address with these facts.
    fn matched(&self, facts: &[Fact]) -> Option<Bundle> {
        let matches = match &self.peers {
            None => true,
            Some(peers) => peers.iter().any(|&peer| facts.binary_search(&Fact::Peer(peer)).is_ok()),
        };
        if !matches {
            return None;
        }
        let mut matched = self.bundle.clone();
        for fact in facts {
            let &Fact::Named(name, protocol, port) = fact else { continue };
            if self.names.contains(&(name, protocol)) {
                matched.ports[protocol as usize].add(&PortSet::range(port, port));
            }
        }
        Some(matched)
    }
}

/// One rule of a ClusterNetworkPolicy, resolved: what to do with what reaches these ports of these peers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// With what.
    pub what: Accepts,
}

/// What a tier of ordered rules makes of the traffic that it is asked about.
struct Sorted {
    accepted: Bundle,
    /// Passed on, or matched by no rule.
    left: Bundle,
}

/// Asks ordered rules about `asked`: the first that matches a port decides it.
fn sort(steps: &[Step], facts: &[Fact], asked: Bundle) -> Sorted {
    let mut sorted = Sorted { accepted: Bundle::nothing(), left: Bundle::nothing() };
    let mut undecided = asked;
    for step in steps {
        let Some(mut matched) = step.what.matched(facts) else { continue };
        matched.intersect(&undecided);
        undecided.subtract(&matched);
        match step.action {
            Action::Accept => sorted.accepted.add(&matched),
            Action::Pass => sorted.left.add(&matched),
            Action::Deny => {}
        }
    }
    sorted.left.add(&undecided);
    sorted
}

impl Tiers {
    /// What an address with these facts may reach, or be reached by. `is_self`: it is the subject itself, which
    /// NetworkPolicy never keeps from itself.
    ///
    /// Admin rules in order, then NetworkPolicy where it isolates, else Baseline rules in order and, for what they leave,
    /// the cluster's default: accept.
    fn row(&self, facts: &[Fact], is_self: bool) -> Bundle {
        let Sorted { accepted: mut row, mut left } = sort(&self.admin, facts, Bundle::everything());
        match &self.isolated {
            Some(_) if is_self => row.add(&left),
            Some(rules) => {
                let mut accepted = Bundle::nothing();
                for matched in rules.iter().filter_map(|rule| rule.matched(facts)) {
                    accepted.add(&matched);
                }
                left.intersect(&accepted);
                row.add(&left);
            }
            None => {
                let baseline = sort(&self.baseline, facts, left);
                row.add(&baseline.accepted);
                row.add(&baseline.left);
            }
        }
        row
    }
}

impl Ruleset {
    /// The ruleset of a direction that no policy governs.
    pub fn ungoverned(direction: Direction) -> Self {
        Self { direction, tiers: None, rest: Vec::new() }
    }

    /// The ruleset of a direction isolated by NetworkPolicies with these rules, in any order.
    pub fn isolated(direction: Direction, rules: Vec<Accepts>) -> Self {
        Self::governed(direction, Tiers { isolated: Some(rules), ..Tiers::default() })
    }

    /// The ruleset of a direction that some policy governs. The rules of NetworkPolicies may be in any order.
    pub fn governed(direction: Direction, mut tiers: Tiers) -> Self {
        if let Some(rules) = &mut tiers.isolated {
            rules.sort();
            rules.dedup();
            // What NetworkPolicy decides never comes to Baseline.
            tiers.baseline.clear();
        }
        Self { direction, tiers: Some(tiers), rest: Vec::new() }
    }

    /// What each of some rulesets of one direction accepts: that of a pod of which is only known that it is one of several.
    ///
    /// # Panics
    /// If there is none of them.
    pub fn all_of<'a>(rulesets: impl IntoIterator<Item = &'a Arc<Self>>) -> Arc<Self> {
        let mut different: Vec<&Arc<Self>> = Vec::new();
        for ruleset in rulesets {
            if !different.contains(&ruleset) {
                different.push(ruleset);
            }
        }
        let (first, rest) = different.split_first().expect("a pod is one of some");
        if rest.is_empty() {
            return Arc::clone(first);
        }
        let mut all = Self::clone(first);
        all.rest.extend(rest.iter().map(|&ruleset| Arc::clone(ruleset)));
        Arc::new(all)
    }

    /// Which direction it is for.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether some policy governs the direction; if none does, everything is accepted.
    pub fn is_governed(&self) -> bool {
        self.tiers.is_some() || self.rest.iter().any(|ruleset| ruleset.is_governed())
    }

    /// What governs the direction, if anything does.
    pub fn tiers(&self) -> Option<&Tiers> {
        self.tiers.as_ref()
    }

    /// Every peer that a rule names, with repetitions.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.rules().flat_map(|rule| rule.peers.iter().flatten()).copied()
    }

    /// Every port name that a rule looks up, with a peer it looks it up on, and with repetitions; `None` is any address.
    pub fn lookups(&self) -> impl Iterator<Item = (PortNameId, Option<PeerId>)> {
        self.rules().filter(|rule| !rule.names.is_empty()).flat_map(|rule| {
            let named = rule.peers.iter().flatten().map(|&peer| Some(peer));
            let peers = named.chain(rule.peers.is_none().then_some(None));
            peers.flat_map(|peer| rule.names.iter().map(move |&(name, _)| (name, peer)))
        })
    }

    /// Every port name that a rule looks up on its peers, with repetitions.
    pub fn names(&self) -> impl Iterator<Item = PortNameId> {
        self.rules().flat_map(|rule| &rule.names).map(|&(name, _)| name)
    }

    fn rules(&self) -> impl Iterator<Item = &Accepts> {
        self.tiers.iter().flat_map(|tiers| {
            let steps = tiers.admin.iter().chain(&tiers.baseline).map(|step| &step.what);
            steps.chain(tiers.isolated.iter().flatten())
        })
    }

    /// The same rules for one subject. `facts` are those of the subject itself, at any of its addresses; `backends` are
    /// its addresses that are backends of Services, each with its facts. Only what makes a difference is kept, so that
    /// subjects share rulesets.
    ///
    /// NetworkPolicy never keeps a pod from itself; the tiers around it do, where the pod takes the way through a Service.
    pub fn for_subject<'a>(&self, facts: &[Fact], backends: impl IntoIterator<Item = (IpAddr, &'a [Fact])>) -> Self {
        let mut ruleset = self.clone();
        let Some(tiers) = &mut ruleset.tiers else { return ruleset };
        tiers.own = match self.direction {
            Direction::Ingress => {
                let mut denied = Bundle::everything();
                denied.subtract(&tiers.row(facts, true));
                Own { backends: Vec::new(), denied }
            }
            Direction::Egress => {
                let makes_a_difference = |&(_, facts): &(_, &[Fact])| tiers.row(facts, true) != tiers.row(facts, false);
                let backends = backends.into_iter().filter(makes_a_difference).map(|(address, _)| address);
                let mut backends: Vec<_> = backends.collect();
                backends.sort_unstable();
                backends.dedup();
                Own { backends, denied: Bundle::nothing() }
            }
        };
        ruleset
    }

    /// What a peer may reach.
    ///
    /// 1. Not governed: everything.
    /// 2. The node itself, on ingress: everything. NetworkPolicy exempts the local node, and no rule of a
    ///    ClusterNetworkPolicy matches a node on ingress.
    /// 3. The pod itself through a Service, on ingress: what the tiers around NetworkPolicy leave. On egress the hook
    ///    sees the Service's address, so nobody asks.
    /// 4. An address that does not fit the tables: nothing.
    /// 5. Else what the tiers say of the class; and on egress, for a port that is a Service's: accepted if every backend
    ///    is, on its own port; without backends, if rules without peers accept the Service's port.
    pub fn row(&self, peer: Peer<'_>) -> Bundle {
        let mut row = self.own_row(peer);
        for ruleset in &self.rest {
            row.intersect(&ruleset.row(peer));
        }
        row
    }

    fn own_row(&self, peer: Peer<'_>) -> Bundle {
        let Some(tiers) = &self.tiers else { return Bundle::everything() };
        match (peer, self.direction) {
            (Peer::NodeSelf, Direction::Ingress) => Bundle::everything(),
            (Peer::PodSelf, Direction::Ingress) => {
                let mut row = Bundle::everything();
                row.subtract(&tiers.own.denied);
                row
            }
            (Peer::NodeSelf | Peer::PodSelf, Direction::Egress) | (Peer::Unknown, _) => Bundle::nothing(),
            (Peer::Class(key), Direction::Ingress) => tiers.row(&key.facts, false),
            (Peer::Class(key), Direction::Egress) => {
                let mut row = tiers.row(&key.facts, false);
                let mut rows = BackendRows::new(tiers);
                for ServiceFacts { protocol, port, backends } in key.frontends.iter() {
                    let mut accepts = |to: &BackendFacts| rows.row(to).accepts(protocol.flow(), to.port);
                    let accepted = match &**backends {
                        [] => tiers.row(&[], false).accepts(protocol.flow(), *port),
                        backends => backends.iter().all(&mut accepts),
                    };
                    row.set(*protocol, *port, accepted);
                }
                row
            }
        }
    }
}

/// Facts of a backend, and whether it is the subject itself.
type BackendKind = (Arc<[Fact]>, bool);

/// Rows of backends, which frontends of one address have in common.
struct BackendRows<'a> {
    tiers: &'a Tiers,
    known: Vec<(BackendKind, Bundle)>,
}

impl<'a> BackendRows<'a> {
    fn new(tiers: &'a Tiers) -> Self {
        Self { tiers, known: Vec::new() }
    }

    fn row(&mut self, backend: &BackendFacts) -> &Bundle {
        let is_self = backend.local.is_some_and(|address| self.tiers.own.backends.contains(&address));
        let wanted = (backend.facts.clone(), is_self);
        let at = self.known.iter().position(|(known, _)| *known == wanted).unwrap_or_else(|| {
            let row = self.tiers.row(&backend.facts, is_self);
            self.known.push((wanted, row));
            self.known.len() - 1
        });
        &self.known[at].1
    }
}

#[cfg(test)]
mod tests;
