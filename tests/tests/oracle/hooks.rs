//! What one hook of one pod says.

use npolicy_common::Direction::{self, Egress, Ingress};
use npolicy_common::Verdict::{self, Accept, Deny};
use npolicy_tests::oracle::Origin::{self, ByAddress, NodeSelf, PodSelf};
use npolicy_tests::oracle::World;

use super::{admin, from, policy, world};

#[track_caller]
fn check(
    world: &World,
    pod: &str,
    direction: Direction,
    remote: &str,
    origin: Origin,
    traffic: &str,
    expected: Verdict,
) {
    let (protocol, port) = traffic.split_once('/').unwrap_or((traffic, "0"));
    let (namespace, name) = pod.split_once('/').unwrap();
    let said =
        world.step((namespace, name), direction, remote.parse().unwrap(), origin, protocol, port.parse().unwrap());
    assert_eq!(said, expected, "{pod} {direction:?} {remote} {origin:?} {traffic}");
}

#[test]
fn only_what_the_own_node_made_is_the_own_nodes() {
    let closed = world(&policy(""));
    for (remote, origin, expected) in [
        ("192.168.0.1", NodeSelf, Accept),
        ("192.168.0.1", ByAddress, Deny),
        ("192.168.0.2", ByAddress, Deny),
        // Any address of the host, whether its node object knows it or not.
        ("10.0.0.254", NodeSelf, Accept),
        ("10.0.0.254", ByAddress, Deny),
        ("fd01::1", NodeSelf, Accept),
    ] {
        check(&closed, "app/a", Ingress, remote, origin, "TCP/80", expected);
        check(&closed, "app/a", Ingress, remote, origin, "ICMP", expected);
    }
    // Towards the own node nothing is spared.
    let quiet = world(&policy("policyTypes: [Egress]"));
    check(&quiet, "app/a", Egress, "192.168.0.1", NodeSelf, "TCP/80", Deny);
    check(&quiet, "app/a", Egress, "192.168.0.1", ByAddress, "TCP/80", Deny);
    // A rule that fails closed spares the own node, and nobody else's packets.
    let unknown = world(&admin("ingress: [{action: Deny, from: [{spaceships: {}}]}]"));
    check(&unknown, "app/a", Ingress, "192.168.0.1", NodeSelf, "ICMP", Accept);
    check(&unknown, "app/a", Ingress, "192.168.0.1", ByAddress, "ICMP", Deny);
}

#[test]
fn a_pod_that_reaches_itself_is_judged_by_cluster_policies_only() {
    let closed = policy("policyTypes: [Ingress, Egress]");
    for (more, expected) in [
        (String::new(), Accept),
        (
            admin(
                "ingress: [{action: Deny, from: [{namespaces: {}}]}], egress: [{action: Deny, to: [{networks: [10.0.0.1/32]}]}]",
            ),
            Deny,
        ),
        (admin("ingress: [{action: Deny, from: [{pods: {podSelector: {matchLabels: {app: b}}}}]}]"), Accept),
    ] {
        let world = world(&format!("{closed}---\n{more}"));
        for direction in [Ingress, Egress] {
            check(&world, "app/a", direction, "10.0.0.1", PodSelf, "TCP/80", expected);
            // Directly, no policy is about it.
            check(&world, "app/a", direction, "10.0.0.1", ByAddress, "TCP/80", Accept);
            check(&world, "app/a", direction, "10.0.0.2", ByAddress, "TCP/80", Deny);
        }
    }
}

#[test]
fn each_direction_is_judged_by_itself() {
    let world = world(
        &(from("{namespaceSelector: {matchLabels: {team: b}}}")
            + "---\n"
            + &policy("policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: 80}]}]")
                .replace("name: p", "name: q")),
    );
    check(&world, "app/a", Ingress, "10.0.1.1", ByAddress, "TCP/9", Accept);
    check(&world, "app/a", Ingress, "10.0.0.2", ByAddress, "TCP/9", Deny);
    check(&world, "app/a", Egress, "10.0.0.2", ByAddress, "TCP/80", Accept);
    check(&world, "app/a", Egress, "fd00::2", ByAddress, "TCP/80", Accept);
    check(&world, "app/a", Egress, "10.0.0.2", ByAddress, "ICMP", Deny);
    check(&world, "app/a", Egress, "10.0.1.1", ByAddress, "TCP/80", Deny);
    // Another namespace's pods are not its subjects.
    check(&world, "other/x", Egress, "10.0.0.1", ByAddress, "TCP/9", Accept);
}

#[test]
fn pods_without_an_own_network_namespace_are_no_subjects() {
    let world = world(&policy("policyTypes: [Ingress, Egress]").replace("namespace: app", "namespace: other"));
    for direction in [Ingress, Egress] {
        check(&world, "other/host", direction, "10.0.0.1", ByAddress, "TCP/9", Accept);
        check(&world, "other/x", direction, "10.0.0.1", ByAddress, "TCP/9", Deny);
    }
}

#[test]
fn a_service_address_stands_for_backends_on_egress_only() {
    let service = "
kind: Service
metadata: {name: web, namespace: other}
spec: {clusterIPs: [10.96.0.1], externalIPs: [198.51.100.1], internalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]}
---
kind: EndpointSlice
metadata: {name: web, namespace: other, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.1.1], nodeName: n1}, {addresses: [10.0.1.2], nodeName: n2}]
ports: [{port: 8080}]
---
";
    let only_x =
        policy("policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.1.1/32}}], ports: [{port: 8080}]}]");
    let outward = world(&format!("{service}{only_x}"));
    // The pod's own node decides what is local; from inside, an external address reaches every node's.
    check(&outward, "app/a", Egress, "10.96.0.1", ByAddress, "TCP/80", Accept);
    check(&outward, "app/b", Egress, "10.96.0.1", ByAddress, "TCP/80", Deny);
    check(&outward, "app/a", Egress, "10.96.0.1", NodeSelf, "TCP/80", Accept);
    check(&outward, "app/a", Egress, "198.51.100.1", ByAddress, "TCP/80", Deny);
    check(&outward, "app/a", Egress, "192.168.0.2", ByAddress, "TCP/30080", Deny);
    let blocks =
        "{ipBlock: {cidr: 10.96.0.0/12}}, {ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: 192.168.0.0/24}}";
    let inward = world(&format!("{service}{}", from(blocks)));
    check(&inward, "app/a", Ingress, "10.96.0.1", ByAddress, "TCP/80", Deny);
    check(&inward, "app/a", Ingress, "198.51.100.1", ByAddress, "TCP/80", Accept);
    check(&inward, "app/a", Ingress, "192.168.0.2", ByAddress, "TCP/30080", Accept);
}
