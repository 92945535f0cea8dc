//! Denials: read from the kernel, told from the cluster of their moment.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use npolicy_common::{Direction, EventState, FlowEvent, FlowProtocol, Reason};

use super::Agent;
use crate::compile::{BackendExplanation, Decision, Explanation, Remote, TierRule, explain, explain_service};
use crate::model::{ClusterState, Frontend, Owner, Pod};
use crate::observe::{DropLine, PolicyRef, RuleRef, ServiceRef};

impl Agent {
    /// Reads the denials that are there and writes a line for each that is not a repeat.
    pub(super) fn report_denials(&mut self) {
        let events = self.datapath.events();
        let (time, now) = (jiff::Timestamp::now(), Instant::now());
        for event in &events {
            let Some(repeats) = self.repeats.admit(event, now) else { continue };
            let mut line = DropLine::from_event(event, time, &self.node, repeats);
            self.name_ends(event, &mut line);
            self.drops.write(&line);
        }
    }

    /// Adds what the cluster of that moment says of a denial: names, policies, the nearest miss.
    fn name_ends(&mut self, event: &FlowEvent, line: &mut DropLine) {
        let Some((state, pod)) = self.history.at(&self.state, event.ifindex, event.generation) else { return };
        let Some(pod) = state.pod(&pod) else { return };
        let remote = line.remote_mut();
        let Some(address) = remote.address else { return };
        match state.owner(address) {
            Owner::Pod(owner) => {
                remote.pod = Some((owner.key.namespace.to_string(), owner.key.name.to_string()));
                remote.labels = owner.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            }
            Owner::Node(node) => remote.node = Some(node.name.to_string()),
            Owner::Outside if self.compiler.plan().node_addresses.contains(&address) => {
                remote.node = Some(self.node.clone())
            }
            Owner::Service(_) | Owner::Outside => {}
        }
        let local = line.local_mut();
        local.pod = Some((pod.key.namespace.to_string(), pod.key.name.to_string()));
        local.labels = pod.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let is_own = self.compiler.plan().node_addresses.contains(&address);
        explain_denial(state, pod, event, (address, is_own), line);
    }
}

/// Adds the tier, the policies and the rule that denied, and the Service where one was asked for. `pod` is the judged pod,
/// `address` the other end, with whether it is this node's own.
fn explain_denial(
    state: &ClusterState,
    pod: &Pod,
    event: &FlowEvent,
    (address, is_own): (IpAddr, bool),
    line: &mut DropLine,
) {
    if !matches!(line.reason, Reason::Policy | Reason::Service) {
        return;
    }
    // A refused answer is refused because its flow is, in the flow's own direction and with the flow's port.
    let (direction, port) = match (line.state, line.direction) {
        (EventState::REPLY, direction) => (direction.opposite(), reply_port(event, direction)),
        (_, Direction::Ingress) => (Direction::Ingress, event.local_port),
        (_, Direction::Egress) => (Direction::Egress, event.remote_port),
    };
    let protocol = line.protocol.map_or(FlowProtocol::Other, FlowProtocol::of);
    // Only what leaves a pod goes to a Service; at a backend it has arrived at an end.
    let service = match direction {
        Direction::Egress => frontend_at(state, (address, is_own), protocol, port),
        Direction::Ingress => None,
    };
    if let Some(frontend) = service {
        let told = explain_service(state, pod, address, &frontend);
        let denial = told.denial();
        line.service = Some(ServiceRef {
            namespace: told.service.namespace.to_string(),
            name: told.service.name.to_string(),
            backends: told.backends.len(),
            accepted: told.accepted(),
            denied: denial.and_then(|(backend, _)| backend).map(backend_text),
        });
        if let Some((_, explanation)) = denial {
            tell(line, explanation);
        }
        return;
    }
    // The kernel counts by address: the address is a Service's, this port of it is not.
    line.reason = Reason::Policy;
    let remote = Remote::at(state, address);
    // A pod meets its own address only at the end of a way through a Service.
    let is_self = matches!(remote.owner, Owner::Pod(owner) if owner.key == pod.key);
    tell(line, &explain(state, pod, direction, &Remote { is_self, ..remote }, protocol, port));
}

fn frontend_at(
    state: &ClusterState,
    (address, is_own): (IpAddr, bool),
    protocol: FlowProtocol,
    port: u16,
) -> Option<Frontend<'_>> {
    let is_asked = |at: &Frontend<'_>| (at.protocol.flow(), at.port) == (protocol, port);
    let is_nodes = is_own || !state.nodes_at(address).is_empty();
    state.frontends_at(address, is_nodes).into_iter().find(is_asked)
}

fn tell(line: &mut DropLine, explanation: &Explanation) {
    match &explanation.decision {
        Decision::Denied(miss) => {
            let policies = explanation.isolated_by.iter();
            line.isolated_by = policies
                .map(|key| PolicyRef {
                    kind: "NetworkPolicy",
                    namespace: Some(key.namespace.to_string()),
                    name: key.name.to_string(),
                })
                .collect();
            line.nearest_miss = Some(miss.to_string());
        }
        Decision::TierDenied(rule) => line.denied_by = Some(rule_ref(rule)),
        // The cluster has changed since; its history does not reach back that far.
        Decision::NotGoverned | Decision::NotDecided | Decision::OwnNode | Decision::Itself => {}
        Decision::Accepted(_) | Decision::TierAccepted(_) => {}
    }
}

fn rule_ref(rule: &TierRule) -> RuleRef {
    RuleRef {
        tier: rule.tier.to_string(),
        policy: rule.policy.to_string(),
        priority: rule.priority,
        rule: rule.place(),
        name: rule.name.as_ref().map(ToString::to_string),
        advice: rule.advice(),
    }
}

fn backend_text(backend: &BackendExplanation) -> String {
    let address = SocketAddr::new(backend.backend.address, backend.backend.port);
    backend.pod.as_ref().map_or_else(|| address.to_string(), |pod| format!("{pod} {address}"))
}

/// The flow's own destination port, seen from an answer that went in `direction`.
fn reply_port(event: &FlowEvent, direction: Direction) -> u16 {
    match direction {
        // The pod asked, the answer came in: the port asked for is the remote one.
        Direction::Ingress => event.remote_port,
        Direction::Egress => event.local_port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PodKey;
    use crate::watch::manifests::Manifests;

    const CLUSTER: &str = "
{kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.0.0.1}]}}
---
{kind: Pod, metadata: {name: db-0, namespace: shop, labels: {app: db}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.0.0.2}]}}
---
{kind: Pod, metadata: {name: db-1, namespace: shop}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.0.0.3}]}}
---
{kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}}
---
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.3]}]
ports: [{name: '', port: 5432}]
---
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}
---
kind: ClusterNetworkPolicy
metadata: {name: base}
spec: {tier: Baseline, priority: 7, subject: {namespaces: {}}, ingress: [{name: all, action: Deny, from: [{namespaces: {}}]}]}
";

    /// The line of a packet between 10.0.0.1 and a remote address, up to what the kernel says of it itself.
    fn line(direction: Direction, state: EventState, remote: [u8; 4], ports: [u16; 2], reason: Reason) -> String {
        let cluster = Manifests::from_text("t.yaml", CLUSTER).state();
        let pod = cluster.pod(&PodKey { namespace: "shop".into(), name: "web".into() }).unwrap();
        let address = |address: [u8; 4]| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address);
            bytes
        };
        let event = FlowEvent {
            jiffies: 0,
            remote: address(remote),
            local: address([10, 0, 0, 1]),
            generation: 1,
            ruleset: 3,
            class: 1,
            ifindex: 1,
            endpoint: 1,
            remote_port: ports[1],
            local_port: ports[0],
            ether_type: 0x0800,
            protocol: 6,
            reason: reason as u8,
            direction: direction as u8,
            state,
            reserved: 0,
        };
        let mut line = DropLine::from_event(&event, jiff::Timestamp::UNIX_EPOCH, "n1", 0);
        explain_denial(&cluster, pod, &event, (IpAddr::from(remote), false), &mut line);
        line.to_string().split_once(" TCP").unwrap().1.to_owned()
    }

    #[test]
    fn a_service_is_told_with_the_backend_that_is_denied() {
        let service = [10, 96, 0, 1];
        let said = line(Direction::Egress, EventState::NEW, service, [40_000, 80], Reason::Service);
        assert_eq!(
            said,
            ": service backends; service shop/db: MixedBackends, 1 of 2 accepted, not shop/db-1 10.0.0.3:5432; isolated \
             by shop/web; nearest miss: shop/web egress[0].to[0]: shop/db-1 has no label app, the rule wants app=db"
        );
        // The Service's answer comes in; its flow is what policy denies.
        let answer = line(Direction::Ingress, EventState::REPLY, service, [40_000, 80], Reason::Service);
        assert_eq!(answer, format!(" (answer of a running flow){said}"));
        let other = line(Direction::Egress, EventState::NEW, service, [40_000, 81], Reason::Service);
        assert!(other.starts_with(": policy; isolated by shop/web; nearest miss: "), "{other}");
    }

    #[test]
    fn a_rule_of_a_tier_is_told_in_place_of_what_isolates() {
        let denied = ": policy; denied by Baseline policy base, priority 7, ingress[0].from[0] (\"all\"); a NetworkPolicy \
                      for the pod's ingress would decide instead";
        for remote in [[10, 0, 0, 2], [10, 0, 0, 1]] {
            assert_eq!(line(Direction::Ingress, EventState::NEW, remote, [80, 40_000], Reason::Policy), denied);
        }
        let outside = line(Direction::Ingress, EventState::NEW, [203, 0, 113, 7], [80, 40_000], Reason::Spoof);
        assert!(!outside.contains("policy"), "{outside}");
    }
}
