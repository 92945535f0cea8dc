//! On which peers port names are looked up: elsewhere a pod's numbers make no difference, and no class.

use std::collections::BTreeSet;

use smallvec::SmallVec;

use super::plan::{Fact, PeerId, PortNameId};
use super::ruleset::Ruleset;

/// Port names with the peers that some rule looks them up on; `None` is any address.
#[derive(Default, Debug)]
pub(super) struct NameScopes(BTreeSet<(PortNameId, Option<PeerId>)>);

impl NameScopes {
    /// What rulesets look up.
    pub(super) fn of<'a>(rulesets: impl Iterator<Item = &'a Ruleset>) -> Self {
        Self(rulesets.flat_map(Ruleset::lookups).collect())
    }

    /// What one looks up and the other does not.
    pub(super) fn differences(&self, other: &Self) -> Vec<(PortNameId, Option<PeerId>)> {
        self.0.symmetric_difference(&other.0).copied().collect()
    }

    /// Leaves out of the facts of an address, ascending, the numbers that no rule would ask for.
    pub(super) fn keep_asked(&self, facts: &mut Vec<Fact>) {
        let is_peer = |fact: &Fact| matches!(fact, Fact::Peer(_));
        if facts.last().is_none_or(is_peer) {
            return;
        }
        let peers: SmallVec<[PeerId; 8]> =
            facts.iter().filter_map(|fact| if let Fact::Peer(peer) = fact { Some(*peer) } else { None }).collect();
        let is_asked = |name: PortNameId| {
            let mut scopes = [None].into_iter().chain(peers.iter().copied().map(Some));
            scopes.any(|peer| self.0.contains(&(name, peer)))
        };
        facts.retain(|fact| match fact {
            Fact::Peer(_) => true,
            Fact::Named(name, ..) => is_asked(*name),
        });
    }
}
