//! What one change of the cluster makes to look at again, and what it has changed of a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::plan::{Plan, Subject};
use super::services::{Virtual, is_services};
use crate::model::{
    ClusterState, Event, Labels, NetworkPolicy, Node, Object, ObjectKey, Owner, Pod, PodKey, PodSet, Service,
    ServiceKey,
};

/// How a plan differs from what it was before.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Addresses that [`Plan::exact`] gives another class, lists now, or lists no more; ascending.
    pub addresses: Vec<IpAddr>,
    /// Whether [`Plan::prefixes`] differ.
    pub blocks: bool,
    /// Subjects that are new, gone, or have other addresses or rulesets; ascending.
    pub subjects: Vec<PodKey>,
    /// Whether [`Plan::node_addresses`] differ.
    pub node_addresses: bool,
    /// Addresses that events were about, which may have another owner now; ascending. Not a difference by itself.
    pub claimed: Vec<IpAddr>,
}

impl Changes {
    /// Whether the plan is what it was.
    pub fn is_empty(&self) -> bool {
        let Self { addresses, blocks, subjects, node_addresses, claimed: _ } = self;
        addresses.is_empty() && !blocks && subjects.is_empty() && !node_addresses
    }

    /// Whether every address has the class it had, and is a node's or not as it was.
    pub fn moves_nothing(&self) -> bool {
        self.addresses.is_empty() && !self.blocks && !self.node_addresses
    }

    /// Adds what came after these changes. What came and went again stays named.
    pub fn merge(&mut self, later: Self) {
        let Self { addresses, blocks, subjects, node_addresses, claimed } = later;
        join(&mut self.addresses, addresses);
        join(&mut self.subjects, subjects);
        join(&mut self.claimed, claimed);
        self.blocks |= blocks;
        self.node_addresses |= node_addresses;
    }
}

fn join<T: Ord>(all: &mut Vec<T>, more: Vec<T>) {
    all.extend(more);
    all.sort();
    all.dedup();
}

/// What is to be looked at again.
#[derive(Default)]
pub(super) struct Work {
    /// Pods that may be subjects, or whose policies may have changed.
    pub(super) subjects: BTreeSet<PodKey>,
    /// Subjects as they were, of those that were looked at.
    pub(super) looked_at: BTreeMap<PodKey, Option<Subject>>,
    /// Whether some ruleset has come into use or gone out of it.
    pub(super) are_rulesets_other: bool,
    /// Namespaces whose labels may have changed.
    pub(super) namespaces: BTreeSet<Arc<str>>,
    /// Addresses that may have another owner.
    pub(super) addresses: FxHashSet<IpAddr>,
    /// Addresses of which something else may be said.
    pub(super) facts: FxHashSet<IpAddr>,
    /// Where Services may have other ports or backends.
    pub(super) services: BTreeSet<Virtual>,
    /// Where something else may be said of backends.
    pub(super) virtuals: FxHashSet<Virtual>,
}

impl Work {
    /// Everything there is to look at. `is_in_scope`: whether a pod may be a subject.
    pub(super) fn everything(state: &ClusterState, is_in_scope: impl Fn(&Pod) -> bool) -> Self {
        let mut work = Self::default();
        for pod in state.pods() {
            work.addresses.extend(&pod.addresses);
            if is_in_scope(pod) {
                work.subjects.insert(pod.key.clone());
            }
        }
        work.addresses.extend(state.nodes().flat_map(|node| &node.addresses));
        for service in state.services() {
            let addresses = service.cluster_addresses.iter().chain(&service.external_addresses);
            addresses.for_each(|&address| work.service_address(address));
        }
        work.services.extend(Virtual::NODE_PORTS);
        work
    }

    fn service_address(&mut self, address: IpAddr) {
        self.addresses.insert(address);
        self.services.insert(Virtual::Address(address));
    }

    /// Takes note of one change: `undo` would take it back from the state as it is now.
    pub(super) fn note(&mut self, plan: &Plan, state: &ClusterState, undo: &Event) {
        let (key, before) = match undo {
            Event::Upsert(object) => (object.key(), Some(object)),
            Event::Delete(key) => (key.clone(), None),
        };
        match &key {
            ObjectKey::Pod(key) => {
                let before = before.and_then(|object| if let Object::Pod(pod) = object { Some(pod) } else { None });
                self.note_pod(key, before, state.pod(key));
            }
            ObjectKey::Namespace(name) => {
                self.namespaces.insert(name.clone());
                self.subjects.extend(subjects_in(plan, name).cloned());
            }
            ObjectKey::Node(name) => {
                let before = before.and_then(|object| if let Object::Node(node) = object { Some(node) } else { None });
                self.note_node(before, state.node(name).map(|node| &**node), state);
            }
            ObjectKey::Policy(key) => {
                let before =
                    before.and_then(|object| if let Object::Policy(policy) = object { Some(policy) } else { None });
                let policies: [Option<&NetworkPolicy>; 2] = [before, state.policy(key).map(|policy| &**policy)];
                let selects = |labels: &Labels| policies.iter().flatten().any(|policy| policy.subject.matches(labels));
                let selected = |key: &&PodKey| state.pod(key).is_none_or(|pod: &Arc<Pod>| selects(&pod.labels));
                self.subjects.extend(subjects_in(plan, &key.namespace).filter(selected).cloned());
            }
            ObjectKey::ClusterPolicy(name) => {
                let before = before.and_then(|object| match object {
                    Object::ClusterPolicy(policy) => Some(&policy.subject),
                    _ => None,
                });
                let sets: [Option<&PodSet>; 2] = [before, state.cluster_policy(name).map(|policy| &policy.subject)];
                for key in plan.subjects.keys() {
                    let namespace = state.namespace_labels(&key.namespace);
                    let selects =
                        |pod: &Arc<Pod>| sets.iter().flatten().any(|set| set.matches(&namespace, &pod.labels));
                    if state.pod(key).is_none_or(selects) {
                        self.subjects.insert(key.clone());
                    }
                }
            }
            ObjectKey::Service(key) => {
                if let Some(Object::Service(service)) = before {
                    self.note_service(service, state);
                }
                self.note_service_now(key, state);
            }
            ObjectKey::EndpointSlice(key) => {
                let before = match before {
                    Some(Object::EndpointSlice(slice)) => slice.service.as_ref(),
                    _ => None,
                };
                let now = state.slice(key).and_then(|slice| slice.service.as_ref());
                for name in before.into_iter().chain(now) {
                    let key = ServiceKey { namespace: key.namespace.clone(), name: name.clone() };
                    self.note_service_now(&key, state);
                }
            }
        }
    }

    fn note_pod(&mut self, key: &PodKey, before: Option<&Pod>, now: Option<&Arc<Pod>>) {
        for pod in before.into_iter().chain(now.map(|pod| &**pod)) {
            self.addresses.extend(&pod.addresses);
        }
        self.subjects.insert(key.clone());
    }

    fn note_node(&mut self, before: Option<&Node>, now: Option<&Node>, state: &ClusterState) {
        for &address in before.into_iter().chain(now).flat_map(|node| &node.addresses) {
            self.addresses.insert(address);
            if is_services(state, address) {
                self.services.insert(Virtual::Address(address));
            }
        }
        self.services.extend(Virtual::NODE_PORTS);
    }

    fn note_service_now(&mut self, key: &ServiceKey, state: &ClusterState) {
        if let Some(service) = state.service(key) {
            self.note_service(service, state);
        }
    }

    fn note_service(&mut self, service: &Service, state: &ClusterState) {
        let addresses = service.cluster_addresses.iter().chain(&service.external_addresses);
        addresses.for_each(|&address| self.service_address(address));
        if service.ports.iter().any(|port| port.node_port.is_some()) {
            self.services.extend(Virtual::NODE_PORTS);
            let nodes = state.nodes().flat_map(|node| &node.addresses).copied();
            self.services.extend(nodes.filter(|&at| is_services(state, at)).map(Virtual::Address));
        }
    }

    /// The subject may be another one after this: remembers it as it was.
    pub(super) fn remember(&mut self, plan: &Plan, key: &PodKey) {
        if !self.looked_at.contains_key(key) {
            self.looked_at.insert(key.clone(), plan.subjects.get(key).cloned());
        }
    }

    /// Adds the subjects that have an address now, or had it.
    pub(super) fn add_owners(
        &mut self,
        state: &ClusterState,
        had: impl Fn(IpAddr) -> Option<PodKey>,
        is_in_scope: impl Fn(&Pod) -> bool,
    ) {
        for &address in &self.addresses {
            self.subjects.extend(had(address));
            if let Owner::Pod(pod) = state.owner(address)
                && is_in_scope(pod)
            {
                self.subjects.insert(pod.key.clone());
            }
        }
    }
}

fn subjects_in<'a>(plan: &'a Plan, namespace: &'a Arc<str>) -> impl Iterator<Item = &'a PodKey> {
    let first = PodKey { namespace: namespace.clone(), name: "".into() };
    plan.subjects.range(first..).map(|(key, _)| key).take_while(move |key| key.namespace == *namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pod(name: &str) -> PodKey {
        PodKey { namespace: "n".into(), name: name.into() }
    }

    #[test]
    fn every_kind_of_difference_is_one_and_a_claim_is_none() {
        let nothing = Changes::default;
        let moved = Changes { addresses: vec![address("10.0.0.1")], ..nothing() };
        let blocks = Changes { blocks: true, ..nothing() };
        let subjects = Changes { subjects: vec![pod("a")], ..nothing() };
        let nodes = Changes { node_addresses: true, ..nothing() };
        let claimed = Changes { claimed: vec![address("10.0.0.1")], ..nothing() };
        for (changes, is_empty, moves_nothing) in [
            (nothing(), true, true),
            (moved, false, false),
            (blocks, false, false),
            (subjects, false, true),
            (nodes, false, false),
            (claimed, true, true),
        ] {
            assert_eq!((changes.is_empty(), changes.moves_nothing()), (is_empty, moves_nothing), "{changes:?}");
        }
    }

    #[test]
    fn changes_that_follow_each_other_are_all_named_once() {
        let [a, b, c] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(address);
        let first = Changes {
            addresses: vec![b, c],
            subjects: vec![pod("b")],
            claimed: vec![c],
            blocks: true,
            node_addresses: false,
        };
        let second = Changes {
            addresses: vec![a, b],
            subjects: vec![pod("a"), pod("b")],
            claimed: vec![a],
            blocks: false,
            node_addresses: true,
        };
        let mut both = first.clone();
        both.merge(second);
        let expected = Changes {
            addresses: vec![a, b, c],
            subjects: vec![pod("a"), pod("b")],
            claimed: vec![a, c],
            blocks: true,
            node_addresses: true,
        };
        assert_eq!(both, expected);
        both.merge(first);
        assert_eq!(both, expected);
    }
}
