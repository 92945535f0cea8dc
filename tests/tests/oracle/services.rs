//! Services: addresses that stand for their backends.

use npolicy_tests::oracle::Answer;

use super::{admin, ask, check, cluster_policy, from, policy, world};

/// A Service `web` with an address of every kind, the node port 30080, and the backends given: `[ADDRESS, NODE, PORT]`.
fn service(namespace: &str, spec: &str, backends: &[(&str, &str, u16)]) -> String {
    let mut text = format!(
        "kind: Service
metadata: {{name: web, namespace: {namespace}}}
spec:
  {{type: LoadBalancer, clusterIPs: [10.96.0.1], externalIPs: [198.51.100.1], ports: [{{name: http, port: 80, nodePort: 30080}}], {spec}}}
status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.2, ipMode: VIP}}, {{ip: 198.51.100.3, ipMode: Proxy}}, {{hostname: web.example.org}}]}}}}
"
    );
    for (number, (addresses, node, port)) in backends.iter().enumerate() {
        text += &format!(
            "---
kind: EndpointSlice
metadata: {{name: web-{number}, namespace: {namespace}, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: [{addresses}], nodeName: {node}, conditions: {{ready: false}}}}]
ports: [{{name: http, port: {port}}}, {{name: admin, port: 1}}]
"
        );
    }
    text + "---\n"
}

/// In front of `other/x` on n1 and `other/bare` on n2, each with its own number.
fn outer(spec: &str) -> String {
    service("other", spec, &[("10.0.1.1", "n1", 8080), ("10.0.1.2", "n2", 9090)])
}

/// In front of `app/a` on n1 and `app/b` on n2.
fn inner(spec: &str) -> String {
    service("app", spec, &[("10.0.0.1", "n1", 8080), ("10.0.0.2", "n2", 8080)])
}

/// What the pods of `app` may reach.
fn to(rules: &str) -> String {
    policy(&format!("policyTypes: [Egress], egress: [{rules}]"))
}

const EVERY_ADDRESS: [&str; 6] = [
    "app/a svc:other/web TCP/80",
    "app/a ip:10.96.0.1 TCP/80",
    "app/a ip:198.51.100.1 TCP/80",
    "app/a ip:198.51.100.2 TCP/80",
    "app/a node:n2 TCP/30080",
    "app/a ip:192.168.0.1 TCP/30080",
];

#[test]
fn every_backend_must_be_accepted_on_its_own_port() {
    let rules = |rules: &str| outer("") + &to(rules);
    check(&rules("{to: [{namespaceSelector: {matchLabels: {team: b}}}]}"), &EVERY_ADDRESS, &[]);
    check(&rules("{ports: [{port: 8080}, {port: 9090}]}"), &EVERY_ADDRESS, &[]);
    check(
        &rules("{to: [{ipBlock: {cidr: 10.0.1.1/32}}]}, {to: [{ipBlock: {cidr: 10.0.1.2/32}}]}"),
        &EVERY_ADDRESS,
        &[],
    );
    // One of two is not enough, and the Service's own number means nothing.
    for mixed in [
        "{to: [{ipBlock: {cidr: 10.0.1.1/32}}]}",
        "{ports: [{port: 8080}]}",
        "{ports: [{port: 80}, {port: 30080}]}",
        "{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: x}}}]}",
    ] {
        check(&rules(mixed), &[], &EVERY_ADDRESS);
    }
    // The addresses of the Service are compared with no block, nor is a node behind its port with `nodes`.
    check(
        &rules(
            "{to: [{ipBlock: {cidr: 10.96.0.0/12}}, {ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: 192.168.0.0/24}}]}",
        ),
        &[],
        &EVERY_ADDRESS,
    );
    check(
        &(outer("")
            + &admin("egress: [{action: Deny, to: [{nodes: {}}, {networks: [10.96.0.0/12, 198.51.100.0/24]}]}]")),
        &EVERY_ADDRESS,
        &["app/a node:n2 TCP/30081"],
    );
    // A backend that is a node, or outside.
    let nodes =
        |rules: &str| service("other", "", &[("192.168.0.2", "n2", 6443), ("203.0.113.1", "n1", 443)]) + &to(rules);
    check(&nodes("{to: [{ipBlock: {cidr: 192.168.0.2/32}}, {ipBlock: {cidr: 203.0.113.0/24}}]}"), &EVERY_ADDRESS, &[]);
    check(&nodes("{to: [{namespaceSelector: {}}]}"), &[], &EVERY_ADDRESS);
}

#[test]
fn an_endpoint_counts_with_its_first_address() {
    let one = service("other", "", &[("10.0.1.1, 10.0.1.2", "n1", 8080)]);
    check(&(one.clone() + &to("{to: [{ipBlock: {cidr: 10.0.1.1/32}}]}")), &EVERY_ADDRESS, &[]);
    check(&(one + &to("{to: [{ipBlock: {cidr: 10.0.1.2/32}}]}")), &[], &EVERY_ADDRESS);
}

#[test]
fn without_endpoints_only_rules_without_peers_match() {
    let empty = |rules: &str| service("other", "", &[]) + &to(rules);
    check(&empty("{ports: [{port: 80}]}"), &EVERY_ADDRESS[..4], &EVERY_ADDRESS[4..]);
    check(&empty("{ports: [{port: 30080}]}"), &EVERY_ADDRESS[4..], &EVERY_ADDRESS[..4]);
    check(&empty("{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {namespaceSelector: {}}]}"), &[], &EVERY_ADDRESS);
    check(&empty(""), &["node:n1 svc:other/web TCP/80", "other/x svc:other/web TCP/80"], &EVERY_ADDRESS);
    // A cluster address stays one on ports that its Service does not have; others are then what they are otherwise.
    let rest = [
        "app/a ip:198.51.100.1 TCP/81",
        "app/a ip:198.51.100.2 UDP/80",
        "app/a ip:198.51.100.2 ICMP",
        "app/a ip:198.51.100.3 TCP/80",
        "app/a node:n2 TCP/80",
        "app/a node:n2 UDP/30080",
    ];
    let cluster = ["app/a svc:other/web TCP/81", "app/a ip:10.96.0.1 UDP/80", "app/a svc:other/web ICMP"];
    check(&(outer("") + &to("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}")), &rest, &cluster);
    check(&(outer("") + &to("{}")), &cluster, &[]);
    // A load balancer that proxies, a Service without a cluster address and one that is only a name: plain addresses.
    let plain = "
{kind: Service, metadata: {name: h, namespace: other}, spec: {clusterIP: None, externalIPs: [198.51.100.4], ports: [{port: 80}]}}
---
{kind: Service, metadata: {name: e, namespace: other}, spec: {type: ExternalName, clusterIP: 198.51.100.5, ports: [{port: 80}]}}
---
";
    let plain = plain.to_owned() + &outer("") + &to("{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}");
    check(
        &plain,
        &["app/a ip:198.51.100.3 TCP/80", "app/a ip:198.51.100.4 TCP/80", "app/a ip:198.51.100.5 TCP/80"],
        &["app/a ip:198.51.100.2 TCP/80"],
    );
}

#[test]
fn a_local_traffic_policy_leaves_the_backends_of_one_node() {
    let only_x = to("{to: [{ipBlock: {cidr: 10.0.1.1/32}}]}");
    // Cluster addresses: the client's node. External ones reach every node's from inside.
    let internal = outer("internalTrafficPolicy: Local") + &only_x;
    check(&internal, &["app/a svc:other/web TCP/80"], &["app/b svc:other/web TCP/80", "app/a ip:198.51.100.1 TCP/80"]);
    let external = outer("externalTrafficPolicy: Local") + &only_x;
    check(&external, &["app/a other/x TCP/8080"], &EVERY_ADDRESS);
    // No backend here is no backend at all.
    let elsewhere = service("other", "internalTrafficPolicy: Local", &[("10.0.1.2", "n2", 9090)]);
    check(
        &(elsewhere.clone() + &to("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}")),
        &["app/b svc:other/web TCP/80"],
        &["app/a svc:other/web TCP/80"],
    );
    check(
        &(elsewhere + &to("{ports: [{port: 80}]}")),
        &["app/a svc:other/web TCP/80"],
        &["app/b svc:other/web TCP/80"],
    );
    // A node is a client too: its own backends, here its own pods.
    let ingress = inner("internalTrafficPolicy: Local") + &policy("");
    check(&ingress, &["node:n1 svc:app/web TCP/80", "other/host svc:app/web TCP/80"], &["other/x svc:app/web TCP/80"]);
    check(&(inner("") + &policy("")), &[], &["node:n1 svc:app/web TCP/80"]);
    // From outside, a node port is that node's.
    let only_a = "podSelector: {matchLabels: {app: b}}";
    let local = inner("externalTrafficPolicy: Local") + &policy(only_a);
    check(
        &local,
        &["ip:203.0.113.1 ip:192.168.0.1 TCP/30080"],
        &["ip:203.0.113.1 ip:192.168.0.2 TCP/30080", "ip:203.0.113.1 ip:198.51.100.2 TCP/80"],
    );
    check(&(inner("") + &policy(only_a)), &[], &["ip:203.0.113.1 ip:192.168.0.1 TCP/30080"]);
}

#[test]
fn what_hangs_on_masquerading_is_judged_strictly() {
    let client = "{ipBlock: {cidr: 203.0.113.0/24}}";
    let nodes = "{ipBlock: {cidr: 192.168.0.0/24}}";
    let outside = [
        "ip:203.0.113.1 ip:198.51.100.1 TCP/80",
        "ip:203.0.113.1 ip:198.51.100.2 TCP/80",
        "ip:203.0.113.1 node:n1 TCP/30080",
    ];
    for one in [client, nodes] {
        check(&(inner("") + &from(one)), &[], &outside);
    }
    check(&(inner("") + &from(&format!("{client}, {nodes}"))), &outside, &[]);
    check(&(inner("externalTrafficPolicy: Local") + &from(client)), &outside, &[]);
    // From a pod to the cluster address nothing is masqueraded; to the others it is.
    let x = from("{namespaceSelector: {matchLabels: {team: b}}}");
    check(
        &(inner("") + &x),
        &["other/x svc:app/web TCP/80"],
        &["other/x ip:198.51.100.1 TCP/80", "other/x node:n2 TCP/30080"],
    );
    // A packet that the node makes itself is its own, unless another node turns it round.
    let one = service("app", "", &[("10.0.0.1", "n1", 8080)]) + &policy("");
    check(
        &one,
        &["node:n1 svc:app/web TCP/80", "node:n1 ip:198.51.100.1 TCP/80", "node:n1 node:n1 TCP/30080"],
        &["node:n1 node:n2 TCP/30080", "ip:192.168.0.1 svc:app/web TCP/80"],
    );
    let local = service("app", "externalTrafficPolicy: Local", &[("10.0.0.1", "n1", 8080)]) + &policy("");
    check(&local, &["node:n1 node:n1 TCP/30080"], &["node:n1 node:n2 TCP/30080"]);
    // Where no address of the node is known, a rule must be about every address.
    let six = "
{kind: Service, metadata: {name: s, namespace: app}, spec: {clusterIP: 'fd96::1', externalIPs: ['2001:db8::1'], ports: [{port: 80}]}}
---
kind: EndpointSlice
metadata: {name: s, namespace: app, labels: {kubernetes.io/service-name: s}}
addressType: IPv6
endpoints: [{addresses: ['fd00::1']}]
ports: [{port: 8080}]
---
";
    const OUTER: &str = "app/b ip:2001:db8::1 TCP/80";
    for more in [
        "{ipBlock: {cidr: 'fd01::/16'}}",
        "{ipBlock: {cidr: '::/0', except: ['fd99::/16']}}",
        "{ipBlock: {cidr: 0.0.0.0/0}}",
    ] {
        let peers = format!("{{podSelector: {{}}}}, {more}");
        check(&(six.to_owned() + &from(&peers)), &["app/b svc:app/s TCP/80"], &[OUTER]);
    }
    check(&(six.to_owned() + &from("{ipBlock: {cidr: '::/0'}}")), &[OUTER], &[]);
    check(&(six.to_owned() + &policy("ingress: [{}]")), &[OUTER], &[]);
}

#[test]
fn a_pod_reaches_itself_through_a_service_unless_a_cluster_policy_denies_it() {
    let own = service("app", "", &[("10.0.0.1", "n1", 8080)]);
    let closed = own.clone() + &policy("policyTypes: [Ingress, Egress]");
    const THROUGH: &str = "app/a svc:app/web TCP/80";
    check(&closed, &[THROUGH, "app/a app/a TCP/1"], &["app/b svc:app/web TCP/80", "app/a app/b TCP/1"]);
    check(&(inner("") + &policy("")), &[], &[THROUGH]);
    for rules in [
        "egress: [{action: Deny, to: [{networks: [10.0.0.1/32]}]}]",
        "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
    ] {
        check(&(closed.clone() + "---\n" + &admin(rules)), &["app/a app/a TCP/1"], &[THROUGH]);
        let baseline =
            cluster_policy("base", &format!("tier: Baseline, priority: 1, subject: {{namespaces: {{}}}}, {rules}"));
        check(&(own.clone() + &baseline), &["app/a app/a TCP/1"], &[THROUGH]);
        check(&(closed.clone() + "---\n" + &baseline), &[THROUGH], &[]);
    }
}

#[test]
fn addresses_and_backends_go_by_family_name_and_protocol() {
    let world = world(
        "
kind: Service
metadata: {name: dual, namespace: other}
spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2, 'fd96::2'], ports: [{name: a, port: 1}, {name: b, port: 1, protocol: UDP}]}
---
kind: Service
metadata: {name: single, namespace: other}
spec: {clusterIP: 10.96.0.3, ports: [{port: 1}]}
---
{kind: Service, metadata: {name: headless, namespace: other}, spec: {clusterIP: None, clusterIPs: [None]}}
---
{kind: Service, metadata: {name: alias, namespace: other}, spec: {type: ExternalName, externalName: example.org}}
---
kind: EndpointSliceList
apiVersion: discovery.k8s.io/v1
items:
- metadata: {name: four, namespace: other, labels: {kubernetes.io/service-name: dual}}
  addressType: IPv4
  endpoints: [{addresses: [10.0.1.1]}]
  ports: [{name: a, port: 2}, {name: b, port: 3, protocol: UDP}, {name: a, port: 4, protocol: UDP}]
- metadata: {name: foreign, namespace: app, labels: {kubernetes.io/service-name: dual}}
  addressType: IPv4
  endpoints: [{addresses: [10.0.1.1]}]
  ports: [{name: a, port: 9}]
- metadata: {name: odd, namespace: other, labels: {kubernetes.io/service-name: dual}}
  addressType: IPv6
  endpoints: [{addresses: [10.0.1.1]}]
  ports: [{name: a, port: 9}]
- metadata: {name: hosts, namespace: other, labels: {kubernetes.io/service-name: dual}}
  addressType: FQDN
  endpoints: [{addresses: [example.org]}]
  ports: [{name: a, port: 9}]
- metadata: {name: six, namespace: other, labels: {kubernetes.io/service-name: dual}}
  addressType: IPv6
  endpoints: [{addresses: ['2001:db8::1']}]
  ports: [{name: a, port: 5}]
---
{kind: NetworkPolicy, metadata: {name: p, namespace: app}, spec: {policyTypes: [Egress], egress: [{ports: [{port: 2}, {port: 3, protocol: UDP}, {port: 5}]}]}}
---
{kind: NetworkPolicy, metadata: {name: p, namespace: other}, spec: {ingress: [{ports: [{port: 2}, {port: 3, protocol: UDP}]}]}}
",
    );
    for question in ["svc:other/dual TCP/1", "svc:other/dual UDP/1", "svc:other/dual TCP/1 IPv6", "ip:fd96::2 TCP/1"] {
        assert_eq!(ask(&world, &format!("app/a {question}")), Answer::Accept, "{question}");
    }
    for question in ["svc:other/single TCP/1", "svc:other/dual UDP/1 IPv6", "svc:other/dual SCTP/1"] {
        assert_eq!(ask(&world, &format!("app/a {question}")), Answer::Deny, "{question}");
    }
    for question in
        ["svc:other/headless TCP/1", "svc:other/alias TCP/1", "svc:other/single TCP/1 IPv6", "svc:other TCP/1"]
    {
        assert!(matches!(ask(&world, &format!("app/a {question}")), Answer::Error(_)), "{question}");
    }
}
