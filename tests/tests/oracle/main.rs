//! Does the oracle say what the text says? Every case, and each rule by itself.

mod cluster_policies;
mod hooks;
mod network_policies;
mod services;

use npolicy_tests::cases;
use npolicy_tests::oracle::{Answer, Probe, World};
use serde_json::Value;

#[test]
fn answers_every_case_as_expected() {
    let (mut asked, mut differences) = (0, Vec::new());
    for case in cases::all().unwrap() {
        let world = World::from_objects(&case.objects().unwrap());
        for row in &case.rows {
            let (answer, detail) = match world.ask(&row.probe()) {
                Answer::Accept => ("Accept", String::new()),
                Answer::Deny => ("Deny", String::new()),
                Answer::Error(reason) => ("error", reason),
            };
            asked += 1;
            if answer != row.expect {
                let line = row.line();
                let why = &row.why;
                differences.push(format!("{}: {line}: {answer} {detail}, not {}: {why}", case.name, row.expect));
            }
        }
    }
    assert!(differences.is_empty(), "{} of {asked} answers differ:\n{}", differences.len(), differences.join("\n"));
    assert_eq!(asked, 786, "cases were added or lost: count them here");
}

/// Two nodes, two namespaces, four pods: `app/a` has both families and the ports http and side, `other/bare` no label.
const CLUSTER: &str = "
{kind: Namespace, metadata: {name: app, labels: {team: a}}}
---
{kind: Namespace, metadata: {name: other, labels: {team: b, empty: ''}}}
---
kind: Node
metadata: {name: n1, labels: {disk: ssd}}
status: {addresses: [{address: n1}, {address: 192.168.0.1}, {address: 'fd01::1'}]}
---
kind: Node
metadata: {name: n2}
status: {addresses: [{address: 192.168.0.2}]}
---
kind: Pod
metadata: {name: a, namespace: app, labels: {app: a}}
spec:
  nodeName: n1
  containers: [{ports: [{containerPort: 80, name: http}, {containerPort: 53, name: dns, protocol: UDP}, {containerPort: 80, name: '80'}]}]
  initContainers:
  - {ports: [{containerPort: 81, name: once}]}
  - {restartPolicy: Always, ports: [{containerPort: 82, name: side}, {containerPort: 83, name: http}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
kind: Pod
metadata: {name: b, namespace: app, labels: {app: b}}
spec: {nodeName: n2}
status: {phase: Running, podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
---
kind: Pod
metadata: {name: x, namespace: other, labels: {app: x}}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.0.1.1}
---
kind: Pod
metadata: {name: bare, namespace: other}
spec: {nodeName: n2}
status: {phase: Pending, podIPs: [{ip: 10.0.1.2}]}
---
kind: Pod
metadata: {name: host, namespace: other, labels: {app: x}}
spec: {nodeName: n1, hostNetwork: true}
status: {phase: Running, podIPs: [{ip: 192.168.0.1}]}
";

fn world(more: &str) -> World {
    let mut objects: Vec<Value> = cases::from_yaml(CLUSTER).unwrap();
    objects.extend(cases::from_yaml(more).unwrap_or_else(|error| panic!("{error:#}\n{more}")));
    World::from_objects(&objects)
}

/// One question as text: `FROM TO PROTOCOL[/PORT] [FAMILY]`.
fn ask(world: &World, question: &str) -> Answer {
    let words: Vec<&str> = question.split_whitespace().collect();
    let [from, to, traffic, ref family @ ..] = words[..] else { panic!("{question:?} is no question") };
    let (protocol, port) = traffic.split_once('/').map_or((traffic, None), |(protocol, port)| (protocol, Some(port)));
    let port = port.map(|port| port.parse().unwrap());
    let family = family.first().map(|&family| family.to_owned());
    world.ask(&Probe { from: from.to_owned(), to: to.to_owned(), protocol: protocol.to_owned(), port, family })
}

/// Everything in the first list is accepted, everything in the second denied.
#[track_caller]
fn check(more: &str, accepted: &[&str], denied: &[&str]) {
    let world = world(more);
    for question in accepted {
        assert_eq!(ask(&world, question), Answer::Accept, "{question}\n{more}");
    }
    for question in denied {
        assert_eq!(ask(&world, question), Answer::Deny, "{question}\n{more}");
    }
}

/// A NetworkPolicy in `app`.
fn policy(spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: app}}, spec: {{{spec}}}}}\n"
    )
}

/// A policy that lets `from` come to every pod of `app`.
fn from(peers: &str) -> String {
    policy(&format!("ingress: [{{from: [{peers}]}}]"))
}

/// A policy that opens ports of every pod of `app`.
fn ports(ports: &str) -> String {
    policy(&format!("ingress: [{{ports: [{ports}]}}]"))
}

/// A ClusterNetworkPolicy.
fn cluster_policy(name: &str, spec: &str) -> String {
    let version = "policy.networking.k8s.io/v1alpha2";
    format!(
        "{{apiVersion: {version}, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n---\n"
    )
}

/// An Admin policy about every pod of `app`.
fn admin(rules: &str) -> String {
    cluster_policy(
        "p",
        &format!("tier: Admin, priority: 5, subject: {{namespaces: {{matchLabels: {{team: a}}}}}}, {rules}"),
    )
}
