//! From what the watches say to changes of the cluster's state. No I/O, no clock.
//!
//! A list replaces what was known of its kind, but only once it is whole: until then, what it holds is taken and nothing is
//! taken away. What makes a cluster looser is taken slowly: an empty list where there was something must come twice, and the
//! policies of a namespace that is being deleted stay until it is gone, since its policies are deleted before its pods.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::kind::Kind;
use super::update::{Observed, Update};
use crate::model::{ClusterState, Diagnostic, Event, Object, ObjectKey, PolicyKey, Severity};

/// What is new since the last time.
#[derive(Debug, Default)]
pub struct Batch {
    /// The changes, to be made to the state that they were asked for, all of them and before the next are asked for. At most
    /// one for an object; none that changes nothing.
    pub events: Vec<Event>,
    /// What was found in objects and not found in them before.
    pub diagnostics: Vec<Diagnostic>,
    /// Kinds that were listed whole, or found absent, for the first time.
    pub synced: Vec<Kind>,
}

/// What must be remembered between the state of the cluster and the next update.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    kinds: [Progress; Kind::ALL.len()],
    /// Objects whose version in force could be read in part alone.
    partial: HashSet<ObjectKey>,
    /// Digests of the findings in an object that were reported; only of objects that are there and have any.
    reported: HashMap<ObjectKey, Vec<u64>>,
    hasher: RandomState,
    /// Namespaces that are being deleted.
    terminating: HashMap<Arc<str>, Terminating>,
    /// Policies that are gone, while nobody can say whether their namespaces are being deleted.
    undecided: BTreeSet<PolicyKey>,
}

#[derive(Debug, Default)]
struct Progress {
    is_synced: bool,
    /// The objects that the list under way has held so far, those that cannot be read among them.
    seen: Option<HashSet<ObjectKey>>,
    /// Whether the last list was empty, or the kind absent, and there had been objects.
    is_doubted: bool,
    is_stale: bool,
}

#[derive(Debug)]
struct Terminating {
    uid: String,
    /// Policies that are deleted and stay in force.
    held: BTreeSet<PolicyKey>,
}

impl Assembler {
    /// Whether every kind was listed whole once, or is known to be absent.
    pub(super) fn is_synced(&self) -> bool {
        self.kinds.iter().all(|progress| progress.is_synced)
    }

    /// Whether a kind was listed whole once, or is known to be absent.
    pub(super) fn has_synced(&self, kind: Kind) -> bool {
        self.kinds[kind.index()].is_synced
    }

    /// Whether the last list of a kind has ended, and no watch has broken off since.
    pub(super) fn is_caught_up(&self, kind: Kind) -> bool {
        let Progress { is_synced, seen, is_stale, is_doubted: _ } = &self.kinds[kind.index()];
        *is_synced && seen.is_none() && !is_stale
    }

    /// How many findings there are in objects that are there.
    pub(super) fn findings(&self) -> usize {
        self.reported.values().map(Vec::len).sum()
    }

    /// Takes updates in the order in which each watch made them; says how the state differs then.
    pub(super) fn assemble(&mut self, state: &ClusterState, updates: impl IntoIterator<Item = Update>) -> Batch {
        let mut step = Step { assembler: self, ahead: Ahead::new(state), diagnostics: Vec::new(), synced: Vec::new() };
        for update in updates {
            step.take(update);
        }
        let Step { ahead, diagnostics, synced, .. } = step;
        Batch { events: ahead.into_events(), diagnostics, synced }
    }
}

/// The work on one batch.
struct Step<'a> {
    assembler: &'a mut Assembler,
    ahead: Ahead<'a>,
    diagnostics: Vec<Diagnostic>,
    synced: Vec<Kind>,
}

impl Step<'_> {
    fn take(&mut self, update: Update) {
        match update {
            Update::Listing(kind) => self.progress(kind).seen = Some(HashSet::new()),
            Update::Object(observed) => self.observe(*observed),
            Update::Gone(key) => {
                if let Some(seen) = &mut self.progress(Kind::of(&key)).seen {
                    seen.remove(&key);
                }
                self.lose(key);
            }
            Update::Listed(kind) => {
                // A list that began before we did is none.
                let Some(seen) = self.progress(kind).seen.take() else { return };
                let missing: Vec<_> = self.ahead.keys(kind).into_iter().filter(|key| !seen.contains(key)).collect();
                if !seen.is_empty() || self.is_believed(kind, &missing) {
                    missing.into_iter().for_each(|key| self.lose(key));
                    // What could never be read has no object in the state.
                    self.assembler.reported.retain(|key, _| Kind::of(key) != kind || seen.contains(key));
                }
                self.finish(kind);
            }
            Update::Absent(kind) => {
                self.progress(kind).seen = None;
                let missing = self.ahead.keys(kind);
                if self.is_believed(kind, &missing) {
                    missing.into_iter().for_each(|key| self.lose(key));
                    self.assembler.reported.retain(|key, _| Kind::of(key) != kind);
                }
                self.finish(kind);
            }
            // The other kinds are not to wait for what cannot come; what was read before a change of versions stays.
            Update::Unreadable(kind) => self.finish(kind),
            Update::Stale(kind) => self.progress(kind).is_stale = true,
            Update::Current(kind) => self.freshen(kind),
        }
    }

    fn progress(&mut self, kind: Kind) -> &mut Progress {
        &mut self.assembler.kinds[kind.index()]
    }

    /// Whether nothing left of a kind counts: nothing was there before, or it was said once already.
    fn is_believed(&mut self, kind: Kind, missing: &[ObjectKey]) -> bool {
        let progress = self.progress(kind);
        let is_believed = missing.is_empty() || progress.is_doubted;
        progress.is_doubted = !is_believed;
        is_believed
    }

    fn finish(&mut self, kind: Kind) {
        if !std::mem::replace(&mut self.progress(kind).is_synced, true) {
            self.synced.push(kind);
        }
        self.freshen(kind);
    }

    /// What is known of a kind is as new as anything; policies may have waited for that.
    fn freshen(&mut self, kind: Kind) {
        self.progress(kind).is_stale = false;
        if kind == Kind::Namespace {
            for key in std::mem::take(&mut self.assembler.undecided) {
                self.lose(ObjectKey::Policy(key));
            }
        }
    }

    fn observe(&mut self, observed: Observed) {
        let Observed { key, object, is_partial, uid, is_terminating, diagnostics } = observed;
        let progress = self.progress(Kind::of(&key));
        progress.is_doubted = false;
        if let Some(seen) = &mut progress.seen {
            seen.insert(key.clone());
        }
        match &key {
            ObjectKey::Namespace(name) => self.follow_namespace(name, uid, is_terminating),
            ObjectKey::Policy(policy) => {
                self.assembler.undecided.remove(policy);
                if let Some(terminating) = self.assembler.terminating.get_mut(&policy.namespace) {
                    terminating.held.remove(policy);
                }
            }
            _ => {}
        }
        let keeps_last = match &object {
            None => self.ahead.has(&key),
            Some(object) if is_partial => self.has_better(object),
            Some(_) => false,
        };
        self.report(&key, diagnostics, keeps_last);
        let Some(object) = object.filter(|_| !keeps_last) else { return };
        if is_partial {
            self.assembler.partial.insert(key);
        } else {
            self.assembler.partial.remove(&key);
        }
        self.ahead.set(object);
    }

    /// Whether the version in force was read whole, and is of the same object: another pod may have the name by now.
    fn has_better(&self, object: &Object) -> bool {
        let key = object.key();
        if self.assembler.partial.contains(&key) {
            return false;
        }
        match (self.ahead.get(&key), object) {
            (Some(Object::Pod(last)), Object::Pod(pod)) => last.age.uid == pod.age.uid,
            (last, _) => last.is_some(),
        }
    }

    /// Another namespace of the same name has nothing to do with the policies of the first.
    fn follow_namespace(&mut self, name: &Arc<str>, uid: String, is_terminating: bool) {
        let known = self.assembler.terminating.get(name);
        if known.is_some_and(|known| !is_terminating || known.uid != uid) {
            self.release(name);
        }
        if is_terminating {
            let fresh = || Terminating { uid, held: BTreeSet::new() };
            self.assembler.terminating.entry(name.clone()).or_insert_with(fresh);
        }
    }

    /// Lets go of the deleted policies of a namespace.
    fn release(&mut self, namespace: &Arc<str>) {
        let held = self.assembler.terminating.remove(namespace).map(|terminating| terminating.held);
        for policy in held.into_iter().flatten() {
            self.remove(ObjectKey::Policy(policy));
        }
    }

    fn lose(&mut self, key: ObjectKey) {
        match &key {
            ObjectKey::Policy(policy) if self.ahead.has(&key) => {
                if let Some(terminating) = self.assembler.terminating.get_mut(&policy.namespace) {
                    terminating.held.insert(policy.clone());
                    return;
                }
                // Its watch was late, or has not come back: the namespace may be on its way out.
                let namespaces = &self.assembler.kinds[Kind::Namespace.index()];
                if namespaces.is_stale || !namespaces.is_synced {
                    self.assembler.undecided.insert(policy.clone());
                    return;
                }
            }
            ObjectKey::Namespace(name) => self.release(name),
            _ => {}
        }
        self.remove(key);
    }

    fn remove(&mut self, key: ObjectKey) {
        self.assembler.partial.remove(&key);
        self.assembler.reported.remove(&key);
        self.ahead.remove(key);
    }

    /// Passes on what was not found in the object before.
    fn report(&mut self, key: &ObjectKey, found: Vec<Diagnostic>, keeps_last: bool) {
        if found.is_empty() {
            self.assembler.reported.remove(key);
            return;
        }
        let digests: Vec<u64> = found.iter().map(|finding| self.assembler.hasher.hash_one(finding)).collect();
        let before = self.assembler.reported.insert(key.clone(), digests.clone()).unwrap_or_default();
        let is_new = |(finding, digest)| (!before.contains(digest)).then_some(finding);
        let known = self.diagnostics.len();
        self.diagnostics.extend(found.into_iter().zip(&digests).filter_map(is_new));
        if keeps_last && self.diagnostics.len() > known {
            self.diagnostics.push(Diagnostic {
                place: None,
                severity: Severity::Warning,
                object: Some(key.to_string().into()),
                field: None,
                message: "its last good version stays in force".to_owned(),
            });
        }
    }
}

/// The state as it will be.
struct Ahead<'a> {
    state: &'a ClusterState,
    /// What is different from the state, or was: `None` is gone.
    changed: HashMap<ObjectKey, Option<Object>>,
    /// The keys of the former, in the order in which they were first changed.
    order: Vec<ObjectKey>,
}

impl<'a> Ahead<'a> {
    fn new(state: &'a ClusterState) -> Self {
        Self { state, changed: HashMap::new(), order: Vec::new() }
    }

    fn get(&self, key: &ObjectKey) -> Option<Object> {
        self.changed.get(key).cloned().unwrap_or_else(|| self.state.object(key))
    }

    fn has(&self, key: &ObjectKey) -> bool {
        self.changed.get(key).map_or_else(|| is_in(self.state, key), Option::is_some)
    }

    fn set(&mut self, object: Object) {
        let key = object.key();
        // Most updates are about what policy does not see: a heartbeat, a probe, a restart.
        if self.changed.contains_key(&key) || !is_same(self.state, &object) {
            self.put(key, Some(object));
        }
    }

    fn remove(&mut self, key: ObjectKey) {
        if self.has(&key) {
            self.put(key, None);
        }
    }

    fn put(&mut self, key: ObjectKey, object: Option<Object>) {
        if self.changed.insert(key.clone(), object).is_none() {
            self.order.push(key);
        }
    }

    /// The keys of every object of a kind.
    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let is_there = |key: &ObjectKey| !self.changed.contains_key(key);
        let mut keys: Vec<_> = keys(self.state, kind).into_iter().filter(is_there).collect();
        keys.extend(self.order.iter().filter(|key| Kind::of(key) == kind && self.changed[*key].is_some()).cloned());
        keys
    }

    fn into_events(mut self) -> Vec<Event> {
        let mut events = Vec::with_capacity(self.order.len());
        for key in self.order {
            match self.changed.remove(&key).expect("an ordered key is changed") {
                Some(object) if is_same(self.state, &object) => {}
                Some(object) => events.push(Event::Upsert(object)),
                None if is_in(self.state, &key) => events.push(Event::Delete(key)),
                None => {}
            }
        }
        events
    }
}

fn keys(state: &ClusterState, kind: Kind) -> Vec<ObjectKey> {
    match kind {
        Kind::Pod => state.pods().map(|pod| ObjectKey::Pod(pod.key.clone())).collect(),
        Kind::Namespace => state.namespaces().map(|namespace| ObjectKey::Namespace(namespace.name.clone())).collect(),
        Kind::Node => state.nodes().map(|node| ObjectKey::Node(node.name.clone())).collect(),
        Kind::Service => state.services().map(|service| ObjectKey::Service(service.key.clone())).collect(),
        Kind::EndpointSlice => state.slices().map(|slice| ObjectKey::EndpointSlice(slice.key.clone())).collect(),
        Kind::NetworkPolicy => state.policies().map(|policy| ObjectKey::Policy(policy.key.clone())).collect(),
        Kind::ClusterNetworkPolicy => {
            state.cluster_policies().map(|policy| ObjectKey::ClusterPolicy(policy.name.clone())).collect()
        }
    }
}

fn is_in(state: &ClusterState, key: &ObjectKey) -> bool {
    match key {
        ObjectKey::Pod(key) => state.pod(key).is_some(),
        ObjectKey::Namespace(name) => state.namespace(name).is_some(),
        ObjectKey::Node(name) => state.node(name).is_some(),
        ObjectKey::Service(key) => state.service(key).is_some(),
        ObjectKey::EndpointSlice(key) => state.slice(key).is_some(),
        ObjectKey::Policy(key) => state.policy(key).is_some(),
        ObjectKey::ClusterPolicy(name) => state.cluster_policy(name).is_some(),
    }
}

fn is_same(state: &ClusterState, object: &Object) -> bool {
    match object {
        Object::Pod(pod) => state.pod(&pod.key).is_some_and(|known| **known == *pod),
        Object::Namespace(namespace) => state.namespace(&namespace.name).is_some_and(|known| **known == *namespace),
        Object::Node(node) => state.node(&node.name).is_some_and(|known| **known == *node),
        Object::Service(service) => state.service(&service.key).is_some_and(|known| **known == *service),
        Object::EndpointSlice(slice) => state.slice(&slice.key).is_some_and(|known| **known == *slice),
        Object::Policy(policy) => state.policy(&policy.key).is_some_and(|known| **known == *policy),
        Object::ClusterPolicy(policy) => state.cluster_policy(&policy.name).is_some_and(|known| **known == *policy),
    }
}
