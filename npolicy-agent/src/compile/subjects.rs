//! The pods that are subjects, with the rulesets they share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::ruleset::Ruleset;
use crate::model::PodKey;

/// Rulesets in use: equal content, one copy.
#[derive(Default, Debug)]
pub(super) struct Shared(FxHashMap<Arc<Ruleset>, u32>);

impl Shared {
    /// Counts one more use; returns the copy that everybody has, and whether this use is the first.
    pub(super) fn hold(&mut self, ruleset: Arc<Ruleset>) -> (Arc<Ruleset>, bool) {
        let held = self.0.get_key_value(&ruleset).map_or(ruleset, |(known, _)| Arc::clone(known));
        let uses = self.0.entry(Arc::clone(&held)).or_default();
        *uses += 1;
        let is_first = *uses == 1;
        (held, is_first)
    }

    /// Every ruleset in use, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Ruleset> {
        self.0.keys().map(|ruleset| &**ruleset)
    }

    /// Counts one use less; returns whether that was the last.
    pub(super) fn release(&mut self, ruleset: &Arc<Ruleset>) -> bool {
        let uses = self.0.get_mut(ruleset).expect("a ruleset that is let go of was held");
        *uses -= 1;
        let is_last = *uses == 0;
        if is_last {
            self.0.remove(ruleset);
        }
        is_last
    }
}

/// Every subject's rulesets before it is set apart from others with the same policy, and who has which address.
#[derive(Default, Debug)]
pub(super) struct Subjects {
    /// Ingress, egress.
    pub(super) bases: BTreeMap<PodKey, [Arc<Ruleset>; 2]>,
    pub(super) by_address: FxHashMap<IpAddr, PodKey>,
    /// Rulesets before subjects are set apart.
    pub(super) before: Shared,
    /// Rulesets after that.
    pub(super) after: Shared,
}
