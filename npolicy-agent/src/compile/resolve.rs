//! From the policies that select a pod to its two rulesets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use npolicy_common::{Direction, FlowProtocol};
use rustc_hash::FxHashMap;

use super::intern::{Interner, PeerContent};
use super::plan::{PeerId, PortNameId};
use super::ports::{Bundle, PortSet};
use super::ruleset::{Accepts, Own, Ruleset, Step, Tiers};
use crate::model::{
    Action, ClusterMatch, ClusterState, Labels, NamedPort, NetworkPolicy, Peers, Pod, PortEntry, PortProtocol, Ports,
    Rule, Tier,
};

/// All that a pod's rulesets depend on: its namespace, labels and named ports.
type Alike<'a> = (&'a str, &'a Labels, &'a [NamedPort]);

/// Port names to be looked up on the peer.
type Names = BTreeSet<(PortNameId, FlowProtocol)>;

/// Makes rulesets, equal ones once.
pub(super) struct Resolver<'a> {
    state: &'a ClusterState,
    interner: &'a mut Interner,
    /// Rulesets by what they depend on: pods with equal labels and ports in a namespace share them.
    known: FxHashMap<Alike<'a>, [Arc<Ruleset>; 2]>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(state: &'a ClusterState, interner: &'a mut Interner) -> Self {
        Self { state, interner, known: FxHashMap::default() }
    }

    /// A pod's rulesets: ingress, egress.
    pub(super) fn rulesets(&mut self, pod: &'a Pod) -> [Arc<Ruleset>; 2] {
        let key = (&*pod.key.namespace, &pod.labels, &*pod.ports);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let policies: Vec<_> = self.state.policies_of(pod).collect();
        let rulesets =
            [Direction::Ingress, Direction::Egress].map(|direction| Arc::new(self.ruleset(direction, pod, &policies)));
        self.known.insert(key, rulesets.clone());
        rulesets
    }

    /// One direction: the tiers that ask about it, each as far as it can match something.
    fn ruleset(&mut self, direction: Direction, pod: &Pod, policies: &[&Arc<NetworkPolicy>]) -> Ruleset {
        let isolated = self.isolated(direction, pod, policies);
        let (admin, governs) = self.steps(direction, pod, Tier::Admin);
        let (baseline, governs_too) = self.steps(direction, pod, Tier::Baseline);
        if isolated.is_some() || governs || governs_too {
            Ruleset::governed(direction, Tiers { admin, isolated, baseline, own: Own::default() })
        } else {
            Ruleset::ungoverned(direction)
        }
    }

    /// NetworkPolicy: isolated as soon as one policy has rules for the direction, be they none; accepted is the union of
    /// all rules.
    fn isolated(&mut self, direction: Direction, pod: &Pod, policies: &[&Arc<NetworkPolicy>]) -> Option<Vec<Accepts>> {
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
        let resolved =
            |(peers, (bundle, names)): (_, (_, Names))| Accepts { peers, bundle, names: names.into_iter().collect() };
        isolated.then(|| accepts.into_iter().map(resolved).collect())
    }

    /// A tier's rules for a pod, in the order in which they are asked, and whether there are any: also a rule that matches
    /// nothing governs.
    fn steps(&mut self, direction: Direction, pod: &Pod, tier: Tier) -> (Vec<Step>, bool) {
        let mut steps = Vec::new();
        let mut governs = false;
        for policy in self.state.cluster_policies_of(pod, tier) {
            for rule in policy.rules(direction) {
                governs = true;
                let what = match (&rule.matches, rule.action) {
                    (ClusterMatch::Unreadable(_), Action::Accept) => continue,
                    // It may have been meant for anything, so it denies everything; what comes behind it is dead.
                    (ClusterMatch::Unreadable(_), Action::Deny | Action::Pass) => {
                        let what = Accepts { peers: None, bundle: Bundle::everything(), names: Vec::new() };
                        steps.push(Step { action: Action::Deny, what });
                        return (steps, true);
                    }
                    (ClusterMatch::Of { peers, ports }, _) => {
                        let (bundle, names) = self.resolve_ports(ports, direction, pod);
                        let contents = peers.iter().flat_map(PeerContent::of_cluster_peer);
                        let mut peers: Vec<_> = contents.map(|content| self.interner.peer(content)).collect();
                        peers.sort_unstable();
                        peers.dedup();
                        Accepts { peers: Some(peers), bundle, names: names.into_iter().collect() }
                    }
                };
                if what.bundle != Bundle::nothing() || !what.names.is_empty() {
                    steps.push(Step { action: rule.action, what });
                }
            }
        }
        (steps, governs)
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
        let mut found = (Bundle::nothing(), BTreeSet::new());
        for entry in entries {
            let bundle = &mut found.0;
            match entry {
                PortEntry::Broken(_) => {}
                PortEntry::All(protocol) => bundle.ports[protocol.flow() as usize].add(&PortSet::everything()),
                &PortEntry::Range { protocol, first, last } => {
                    bundle.ports[protocol.flow() as usize].add(&PortSet::range(first, last));
                }
                PortEntry::Named { protocol, name } => self.resolve_name(name, *protocol, direction, pod, &mut found),
                PortEntry::NamedAny { name } => {
                    for (_, protocol) in PortProtocol::NAMES {
                        self.resolve_name(name, protocol, direction, pod, &mut found);
                    }
                }
            }
        }
        found
    }

    fn resolve_name(
        &mut self,
        name: &Arc<str>,
        protocol: PortProtocol,
        direction: Direction,
        pod: &Pod,
        (bundle, names): &mut (Bundle, Names),
    ) {
        match direction {
            Direction::Ingress => {
                for number in pod.numbers_of(name, protocol) {
                    bundle.ports[protocol.flow() as usize].add(&PortSet::range(number, number));
                }
            }
            Direction::Egress => {
                names.insert((self.interner.name(name), protocol.flow()));
            }
        }
    }
}
