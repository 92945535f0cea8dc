//! From the cluster's state to one node's plan.

use std::net::IpAddr;
use std::sync::Arc;

use super::classes::{Facts, Unaddressed};
use super::intern::Interner;
use super::plan::{Plan, Subject};
use super::resolve::Resolver;
use super::services::Virtuals;
use crate::model::{ClusterState, Diagnostic, Owner, Pod};

/// Which pods are subjects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Those of one node.
    Node(Arc<str>),
    /// Those of one node, and those written for no node: a machine fed from manifests runs them all.
    NodeAndUnassigned(Arc<str>),
    /// Every pod, to answer questions about all of them.
    Everything,
}

impl Scope {
    fn includes(&self, pod: &Pod) -> bool {
        match self {
            Self::Node(name) => pod.node.as_ref() == Some(name),
            Self::NodeAndUnassigned(name) => pod.node.as_ref().is_none_or(|node| node == name),
            Self::Everything => true,
        }
    }

    fn node(&self) -> Option<&Arc<str>> {
        match self {
            Self::Node(name) | Self::NodeAndUnassigned(name) => Some(name),
            Self::Everything => None,
        }
    }
}

/// Compiles the cluster for one scope. Numbers of peers and port names stay the same from one compilation to the next.
#[derive(Debug)]
pub struct Compiler {
    scope: Scope,
    interner: Interner,
}

impl Compiler {
    /// Starts without any numbers given.
    pub fn new(scope: Scope) -> Self {
        Self { scope, interner: Interner::default() }
    }

    /// Compiles the whole plan.
    ///
    /// Subjects are the pods in scope that policy can apply to and that have an address; also one that no cluster has run
    /// yet and that has none. Only peers and names in rulesets of subjects make classes. Cost: linear in pods; selectors
    /// are evaluated once for each namespace and distinct set of labels that they ask for.
    pub fn compile(&mut self, state: &ClusterState) -> (Plan, Vec<Diagnostic>) {
        (self.plan(state, None), state.diagnose_addresses())
    }

    /// Compiles the plan, and the classes of ends without address.
    pub(super) fn compile_unaddressed(&mut self, state: &ClusterState) -> (Plan, Unaddressed) {
        let mut unaddressed = Unaddressed::default();
        (self.plan(state, Some(&mut unaddressed)), unaddressed)
    }

    fn plan(&mut self, state: &ClusterState, unaddressed: Option<&mut Unaddressed>) -> Plan {
        let mut plan = Plan::default();
        if let Some(node) = self.scope.node().and_then(|name| state.node(name)) {
            let is_nodes = |address: &IpAddr| !matches!(state.owner(*address), Owner::Service(_));
            plan.node_addresses = node.addresses.iter().copied().filter(is_nodes).collect();
        }
        let mut resolver = Resolver::new(state, &mut self.interner);
        for pod in state.pods().filter(|pod| pod.is_enforceable() && self.scope.includes(pod)) {
            let addresses: Vec<_> = state.addresses_of(pod).collect();
            if addresses.is_empty() && !pod.is_planned() {
                continue;
            }
            let [ingress, egress] = resolver.rulesets(pod);
            plan.subjects.insert(pod.key.clone(), Subject { addresses, ingress, egress });
        }
        let (peers, names) = (resolver.peers, resolver.names);
        let mut facts = Facts::new(state, &self.interner, &peers, &names);
        let virtuals = Virtuals::new(state, self.scope.node().map(|name| &**name));
        let selves = virtuals.set_subjects_apart(state, &mut facts, &mut plan);
        let virtuals = virtuals.resolve(&mut facts, &selves);
        facts.classify(&mut plan, &virtuals, unaddressed);
        plan
    }
}
