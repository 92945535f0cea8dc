//! What a ruleset says of an address that nobody knows.

use npolicy_common::FlowProtocol;

use crate::compile::plan::Fact;
use crate::compile::ruleset::{Accepts, Ruleset, Step};
use crate::model::Action;

/// What may come out.
#[derive(Clone, Copy, Default)]
struct Outcomes {
    accepted: bool,
    denied: bool,
    /// Passed on, or matched by no rule.
    left: bool,
}

/// What is known of the address: the facts that hold and those that may, the former among them.
struct Knowledge<'a> {
    certain: &'a [Fact],
    perhaps: &'a [Fact],
    protocol: FlowProtocol,
    port: u16,
}

/// Whether a rule matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Matches {
    No,
    Perhaps,
    Certainly,
}

/// Whether a ruleset accepts; `None`: it depends on which of the facts hold that may. `perhaps` holds every fact of
/// `certain`.
pub(super) fn accepts(
    ruleset: &Ruleset,
    certain: &[Fact],
    perhaps: &[Fact],
    protocol: FlowProtocol,
    port: u16,
) -> Option<bool> {
    let Some(tiers) = ruleset.tiers() else { return Some(true) };
    let known = Knowledge { certain, perhaps, protocol, port };
    let mut outcomes = known.sort(&tiers.admin);
    if outcomes.left {
        let next = match &tiers.isolated {
            Some(rules) => {
                let most = rules.iter().map(|rule| known.matches(rule)).max().unwrap_or(Matches::No);
                Outcomes { accepted: most >= Matches::Perhaps, denied: most <= Matches::Perhaps, left: false }
            }
            None => known.sort(&tiers.baseline),
        };
        outcomes.accepted |= next.accepted || next.left;
        outcomes.denied |= next.denied;
    }
    (outcomes.accepted != outcomes.denied).then_some(outcomes.accepted)
}

impl Knowledge<'_> {
    /// Asks ordered rules: each that may match may decide, up to the first that certainly does.
    fn sort(&self, steps: &[Step]) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for step in steps {
            let matches = self.matches(&step.what);
            if matches == Matches::No {
                continue;
            }
            match step.action {
                Action::Accept => outcomes.accepted = true,
                Action::Deny => outcomes.denied = true,
                Action::Pass => outcomes.left = true,
            }
            if matches == Matches::Certainly {
                return outcomes;
            }
        }
        outcomes.left = true;
        outcomes
    }

    fn matches(&self, rule: &Accepts) -> Matches {
        if self.matches_with(rule, self.certain) {
            Matches::Certainly
        } else if self.matches_with(rule, self.perhaps) {
            Matches::Perhaps
        } else {
            Matches::No
        }
    }

    fn matches_with(&self, rule: &Accepts, facts: &[Fact]) -> bool {
        let is_peer = |peers: &Vec<_>| peers.iter().any(|&peer| facts.contains(&Fact::Peer(peer)));
        let is_named = |fact: &Fact| {
            matches!(*fact, Fact::Named(name, protocol, port)
                if (protocol, port) == (self.protocol, self.port) && rule.names.contains(&(name, protocol)))
        };
        rule.peers.as_ref().is_none_or(is_peer)
            && (rule.bundle.accepts(self.protocol, self.port) || facts.iter().any(is_named))
    }
}
