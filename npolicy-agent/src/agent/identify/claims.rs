//! The pods of this node, and since when each address is theirs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use rustc_hash::FxHashMap;

use crate::model::{Event, Object, ObjectKey, Pod, PodKey};

/// The pods of this node that policy can apply to.
#[derive(Debug, Default)]
pub(super) struct LocalPods {
    pods: BTreeMap<PodKey, LocalPod>,
    /// Pods by the addresses that they list.
    by_address: FxHashMap<IpAddr, Vec<PodKey>>,
    /// Pods with claims of unsettled origin, perhaps some without.
    unsettled: Vec<PodKey>,
}

/// A pod of this node.
#[derive(Clone, Debug)]
pub(super) struct LocalPod {
    pod: Pod,
    claims: Vec<(IpAddr, Claim)>,
}

/// How an address became known as a pod's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    /// When, for the last time.
    pub(super) learned: Instant,
    /// By which way.
    pub(super) origin: Origin,
}

/// By which way an address became known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// Noted since the last pass, which one will tell.
    Unsettled,
    /// Listed at the agent's start: it may be of any age.
    Listed,
    /// By watch: it is as new as that.
    Watched,
}

impl LocalPod {
    pub(super) fn uid(&self) -> &Arc<str> {
        &self.pod.age.uid
    }

    pub(super) fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Whether this is the pod that was once called so.
    pub(super) fn has_uid(&self, uid: &str) -> bool {
        &*self.pod.age.uid == uid
    }

    /// Its addresses, in the API's order.
    pub(super) fn claims(&self) -> &[(IpAddr, Claim)] {
        &self.claims
    }

    pub(super) fn claim(&self, address: IpAddr) -> Option<Claim> {
        self.claims.iter().find(|(claimed, _)| *claimed == address).map(|&(_, claim)| claim)
    }

    /// Whether a claim is younger than an interface that was first seen at this moment.
    pub(super) fn is_young(&self, claim: Claim, first_seen: Instant, boot: Timestamp) -> bool {
        claim.learned >= first_seen && self.is_of_this_boot(claim, boot)
    }

    /// Whether the address was given since the node started.
    pub(super) fn is_of_this_boot(&self, claim: Claim, boot: Timestamp) -> bool {
        claim.origin == Origin::Watched || self.pod.sandbox.is_some_and(|sandbox| sandbox > boot)
    }
}

impl LocalPods {
    pub(super) fn get(&self, key: &PodKey) -> Option<&LocalPod> {
        self.pods.get(key)
    }

    /// All of them, ascending by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&PodKey, &LocalPod)> {
        self.pods.iter()
    }

    /// Those that list an address.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = (&PodKey, &LocalPod)> {
        let keys = self.by_address.get(&address).into_iter().flatten();
        keys.map(|key| (key, self.pods.get(key).expect("an indexed pod exists")))
    }

    /// Takes what an event says of a pod of this node.
    pub(super) fn note(&mut self, node: &str, event: &Event, now: Instant) {
        match event {
            Event::Upsert(Object::Pod(pod)) if pod.node.as_deref() == Some(node) && pod.is_enforceable() => {
                self.upsert(pod, now);
            }
            // Finished, in the node's own namespace, or elsewhere.
            Event::Upsert(Object::Pod(pod)) => drop(self.remove(&pod.key)),
            Event::Delete(ObjectKey::Pod(key)) => drop(self.remove(key)),
            _ => {}
        }
    }

    /// Tells of what was noted since the last pass whether it was listed or learned by watch.
    pub(super) fn settle(&mut self, origin: Origin) {
        for key in std::mem::take(&mut self.unsettled) {
            let claims = self.pods.get_mut(&key).into_iter().flat_map(|local| &mut local.claims);
            for (_, claim) in claims.filter(|(_, claim)| claim.origin == Origin::Unsettled) {
                claim.origin = origin;
            }
        }
    }

    fn upsert(&mut self, pod: &Pod, now: Instant) {
        let known = self.remove(&pod.key).filter(|known| known.has_uid(&pod.age.uid));
        // An object that tells of a newer sandbox tells that sandbox's addresses, be they those of the last one.
        let is_confirmed = known.as_ref().is_some_and(|known| pod.sandbox > known.pod.sandbox);
        let known = known.filter(|_| !is_confirmed);
        let claims = pod.addresses.iter().map(|&address| {
            let claim = known.as_ref().and_then(|known| known.claim(address));
            (address, claim.unwrap_or(Claim { learned: now, origin: Origin::Unsettled }))
        });
        let local = LocalPod { claims: claims.collect(), pod: pod.clone() };
        for &(address, _) in &local.claims {
            self.by_address.entry(address).or_default().push(pod.key.clone());
        }
        self.unsettled.push(pod.key.clone());
        self.pods.insert(pod.key.clone(), local);
    }

    fn remove(&mut self, key: &PodKey) -> Option<LocalPod> {
        let gone = self.pods.remove(key)?;
        for (address, _) in &gone.claims {
            if let Some(keys) = self.by_address.get_mut(address) {
                keys.retain(|known| known != key);
                if keys.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        Some(gone)
    }
}
