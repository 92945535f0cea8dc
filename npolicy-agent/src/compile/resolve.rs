//! From the policies that select a pod to its two rulesets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use npolicy_common::{Direction, FlowProtocol};
use rustc_hash::FxHashMap;

use super::intern::{Interner, PeerContent};
use super::plan::{PeerId, PortNameId};
use super::ports::{Bundle, PortSet};
use super::ruleset::{Accepts, Ruleset};
use crate::model::{ClusterState, Labels, NamedPort, NetworkPolicy, Peers, Pod, PortEntry, Ports, Rule};

/// All that a pod's rulesets depend on: its namespace, labels and named ports.
type Alike<'a> = (&'a str, &'a Labels, &'a [NamedPort]);

/// Port names to be looked up on the peer.
type Names = BTreeSet<(PortNameId, FlowProtocol)>;

/// Makes rulesets, and remembers what they mention.
pub(super) struct Resolver<'a> {
    state: &'a ClusterState,
    interner: &'a mut Interner,
    /// Rulesets by what they depend on: pods with equal labels and ports in a namespace share them.
    known: FxHashMap<Alike<'a>, [Arc<Ruleset>; 2]>,
    /// Rulesets by content.
    rulesets: FxHashMap<Arc<Ruleset>, ()>,
    /// Peers that occur in some ruleset.
    pub(super) peers: BTreeSet<PeerId>,
    /// Names that some egress ruleset looks up on its peers.
    pub(super) names: BTreeSet<PortNameId>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(state: &'a ClusterState, interner: &'a mut Interner) -> Self {
        Self {
            state,
            interner,
            known: FxHashMap::default(),
            rulesets: FxHashMap::default(),
            peers: BTreeSet::new(),
            names: BTreeSet::new(),
        }
    }

    /// A pod's rulesets: ingress, egress.
    pub(super) fn rulesets(&mut self, pod: &'a Pod) -> [Arc<Ruleset>; 2] {
        let key = (&*pod.key.namespace, &pod.labels, &*pod.ports);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let policies: Vec<_> = self.state.policies_of(pod).collect();
        let rulesets = [Direction::Ingress, Direction::Egress].map(|direction| {
            let ruleset = self.ruleset(direction, pod, &policies);
            let ruleset =
                self.rulesets.get_key_value(&ruleset).map_or_else(|| Arc::new(ruleset), |(known, ())| known.clone());
            self.rulesets.insert(ruleset.clone(), ());
            ruleset
        });
        self.known.insert(key, rulesets.clone());
        rulesets
    }

    /// One direction. Isolated as soon as one policy has rules for it, be they none; accepted is the union of all rules.
    fn ruleset(&mut self, direction: Direction, pod: &Pod, policies: &[&Arc<NetworkPolicy>]) -> Ruleset {
        let mut isolated = false;
        let mut accepts: BTreeMap<Option<Vec<PeerId>>, (Bundle, Names)> = BTreeMap::new();
        for policy in policies {
            let Some(rules) = policy.rules(direction) else { continue };
            isolated = true;
            for rule in rules {
                let Rule::Accept { peers, ports } = rule else { continue };
                let (bundle, names) = self.resolve_ports(ports, direction, pod);
                if bundle == Bundle::nothing() && names.is_empty() {
                    continue;
                }
                let peers = self.resolve_peers(peers, policy);
                if peers.as_ref().is_some_and(Vec::is_empty) {
                    continue;
                }
                let together = accepts.entry(peers).or_default();
                together.0.add(&bundle);
                together.1.extend(names);
            }
        }
        if !isolated {
            return Ruleset::ungoverned(direction);
        }
        let rules = accepts
            .into_iter()
            .map(|(peers, (bundle, names))| {
                self.peers.extend(peers.iter().flatten());
                self.names.extend(names.iter().map(|&(name, _)| name));
                Accepts { peers, bundle, names: names.into_iter().collect() }
            })
            .collect();
        Ruleset::isolated(direction, rules)
    }

    fn resolve_peers(&mut self, peers: &Peers, policy: &NetworkPolicy) -> Option<Vec<PeerId>> {
        let Peers::Of(peers) = peers else { return None };
        let contents = peers.iter().filter_map(|peer| PeerContent::of(peer, &policy.key.namespace));
        let mut ids: Vec<_> = contents.map(|content| self.interner.peer(content)).collect();
        ids.sort_unstable();
        ids.dedup();
        Some(ids)
    }

    /// A name means the destination pod's number: on ingress that is the subject, known here; on egress it is the peer.
    fn resolve_ports(&mut self, ports: &Ports, direction: Direction, pod: &Pod) -> (Bundle, Names) {
        let Ports::Of(entries) = ports else { return (Bundle::everything(), BTreeSet::new()) };
        let mut bundle = Bundle::nothing();
        let mut names = BTreeSet::new();
        for entry in entries {
            match entry {
                PortEntry::Broken(_) => {}
                PortEntry::All(protocol) => bundle.ports[protocol.flow() as usize].add(&PortSet::everything()),
                &PortEntry::Range { protocol, first, last } => {
                    bundle.ports[protocol.flow() as usize].add(&PortSet::range(first, last));
                }
                PortEntry::Named { protocol, name } => match direction {
                    Direction::Ingress => {
                        for number in pod.numbers_of(name, *protocol) {
                            bundle.ports[protocol.flow() as usize].add(&PortSet::range(number, number));
                        }
                    }
                    Direction::Egress => {
                        names.insert((self.interner.name(name), protocol.flow()));
                    }
                },
            }
        }
        (bundle, names)
    }
}
