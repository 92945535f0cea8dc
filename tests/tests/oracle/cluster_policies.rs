//! ClusterNetworkPolicies: tiers, order, peers, and rules that fail closed.

use super::{admin, check, cluster_policy, policy};

#[test]
fn tiers_go_from_admin_over_network_policies_to_baseline() {
    const X: &str = "other/x app/a TCP/80";
    let rule = |action: &str| format!("ingress: [{{action: {action}, from: [{{namespaces: {{}}}}]}}]");
    let (tier, subject) = (["tier: Admin", "tier: Baseline"], "subject: {namespaces: {}}");
    let at = |name: &str, tier: &str, priority: u16, action: &str| {
        cluster_policy(name, &format!("{tier}, priority: {priority}, {subject}, {}", rule(action)))
    };
    let (opens, closes) = (policy("ingress: [{}]"), policy(""));
    check(&(at("a", tier[0], 5, "Accept") + &closes), &[X], &[]);
    check(&(at("a", tier[0], 5, "Deny") + &opens), &[], &[X]);
    check(&(at("a", tier[0], 5, "Pass") + &at("b", tier[1], 5, "Accept") + &closes), &[], &[X]);
    check(&(at("a", tier[0], 5, "Pass") + &at("b", tier[1], 5, "Deny")), &[], &[X]);
    check(&(at("b", tier[1], 5, "Deny") + &opens), &[X], &[]);
    check(&(at("b", tier[1], 5, "Pass") + &at("c", tier[1], 6, "Deny")), &[X], &[]);
    // By priority as a number, then by name byte by byte.
    check(&(at("a", tier[0], 10, "Deny") + &at("b", tier[0], 9, "Accept")), &[X], &[]);
    check(&(at("a9", tier[0], 5, "Deny") + &at("a10", tier[0], 5, "Accept")), &[X], &[]);
    check(&(at("a", tier[0], 5, "Deny") + &at("B", tier[0], 5, "Accept")), &[X], &[]);
    // A policy without a place in the order, or about nobody, does not apply.
    for spec in [
        "tier: Core, priority: 5",
        "priority: 5",
        "tier: Admin",
        "tier: Admin, priority: 1001",
        "tier: Admin, priority: '5'",
    ] {
        check(&cluster_policy("a", &format!("{spec}, {subject}, {}", rule("Deny"))), &[X], &[]);
    }
    for subject in [
        "subject: {}",
        "subject: {namespaces: {}, pods: {podSelector: {}}}",
        "subject: {pods: {namespaceSelector: {}}}",
        "subject: {stars: {}}",
        "subject: {namespaces: {}, stars: {}}",
        "subject: {namespaces: {matchExpressions: [{key: team, operator: exists}]}}",
    ] {
        check(&cluster_policy("a", &format!("tier: Admin, priority: 5, {subject}, {}", rule("Deny"))), &[X], &[]);
    }
    // A missing namespace selector means every namespace.
    let pods = cluster_policy(
        "a",
        &format!("tier: Admin, priority: 5, subject: {{pods: {{podSelector: {{}}}}}}, {}", rule("Deny")),
    );
    check(&pods, &["other/x other/host TCP/1"], &[X, "app/a other/x TCP/1"]);
    // Another group's kind of the same name is not ours.
    let foreign =
        at("a", tier[0], 5, "Deny").replace("policy.networking.k8s.io/v1alpha2", "networking.k8s.aws/v1alpha1");
    check(&foreign, &[X], &[]);
    check(&at("a", tier[0], 5, "Deny").replace("v1alpha2", "v1beta1"), &[], &[X]);
}

#[test]
fn cluster_rules_match_peers_and_protocols() {
    let egress = |peers: &str, protocols: &str| admin(&format!("egress: [{{action: Deny, to: [{peers}]{protocols}}}]"));
    const N1: &str = "app/b node:n1 TCP/22";
    const N2: &str = "app/b node:n2 TCP/22";
    const OUT: &str = "app/b ip:203.0.113.1 TCP/22";
    check(
        &egress("{nodes: {}}", ""),
        &[OUT, "app/b other/x TCP/22"],
        &[N1, N2, "app/b other/host ICMP", "app/b ip:fd01::1 UDP/1"],
    );
    check(&egress("{nodes: {matchLabels: {disk: ssd}}}", ""), &[N2, OUT], &[N1]);
    check(
        &egress("{networks: [203.0.113.77/24, 10.0.1.1/32]}", ""),
        &[N1, "app/b other/bare TCP/1"],
        &[OUT, "app/b other/x ICMP"],
    );
    check(&egress("{namespaces: {}}", ""), &[N1, OUT], &["app/b app/a ICMP", "app/b other/x SCTP/1"]);
    let pods = "{pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: a}}}}";
    check(&egress(pods, ""), &["app/b other/x TCP/1", "app/b app/b TCP/1"], &["app/b app/a TCP/1"]);
    let to_pods = |protocols: &str| egress("{namespaces: {}}", &format!(", protocols: [{protocols}]"));
    let tcp = "{tcp: {destinationPort: {number: 80}}}";
    check(&to_pods(tcp), &["app/b app/a TCP/81", "app/b app/a UDP/80", "app/b app/a ICMP"], &["app/b app/a TCP/80"]);
    let range = "{sctp: {destinationPort: {range: {start: 80, end: 81}}}}, {udp: {destinationPort: {number: 9}}}";
    check(
        &to_pods(range),
        &["app/b app/a SCTP/82", "app/b app/a TCP/80"],
        &["app/b app/a SCTP/81", "app/b app/a UDP/9"],
    );
    let named = "{destinationNamedPort: http}, {destinationNamedPort: dns}";
    check(
        &to_pods(named),
        &["app/b app/a TCP/53", "app/b other/x TCP/80"],
        &["app/b app/a TCP/83", "app/b app/a UDP/53"],
    );
    // A name may be anything here, also what no API server takes from a NetworkPolicy.
    check(&to_pods("{destinationNamedPort: '80'}"), &["app/b app/a TCP/83"], &["app/b app/a TCP/80"]);
    // Ingress knows pods only; nothing outside them is ever matched.
    let ingress = admin("ingress: [{action: Deny, from: [{namespaces: {}}]}]");
    check(
        &ingress,
        &["node:n2 app/a TCP/1", "ip:192.168.0.1 app/a TCP/1", "ip:203.0.113.1 app/a ICMP"],
        &["other/x app/a ICMP"],
    );
    // Traffic that a rule of an unknown action matches is denied.
    check(
        &admin("ingress: [{action: Log, from: [{pods: {podSelector: {matchLabels: {app: x}}}}]}]"),
        &["app/b app/a TCP/1"],
        &["other/x app/a TCP/1"],
    );
}

#[test]
fn a_cluster_rule_that_cannot_be_represented_fails_closed() {
    let range = |first: i32, last: i32| {
        format!(
            "to: [{{namespaces: {{}}}}], protocols: [{{tcp: {{destinationPort: {{range: {{start: {first}, end: {last}}}}}}}}}]"
        )
    };
    let with = |protocols: &str| format!("to: [{{namespaces: {{}}}}], protocols: [{protocols}]");
    let mut rules: Vec<String> = [
        "to: []",
        "from: [{namespaces: {}}]",
        "to: [{namespaces: {}}], from: [{namespaces: {}}]",
        "to: [{}]",
        "to: [{spaceships: {}}]",
        "to: [{namespaces: {}}, {spaceships: {}}]",
        "to: [{namespaces: {}, spaceships: {}}]",
        "to: [{namespaces: {}, nodes: {}}]",
        "to: [{namespaces: {}}], schedule: nights",
        "to: [{namespaces: {matchLabels: {}, matchNames: [a]}}]",
        "to: [{namespaces: {matchExpressions: [{key: a, operator: Exists, not: true}]}}]",
        "to: [{namespaces: {matchExpressions: [{key: a, operator: notIn, values: [b]}]}}]",
        "to: [{namespaces: {matchExpressions: [{key: a, operator: In}]}}]",
        "to: [{namespaces: {matchLabels: {a: 'b c'}}}]",
        "to: [{namespaces: {matchLabels: {Example.org/a: b}}}]",
        "to: [{pods: {namespaceSelector: {}}}]",
        "to: [{pods: {podSelector: {}, serviceAccounts: [a]}}]",
        "to: [{networks: []}]",
        "to: [{networks: [10.0.0.0]}]",
        "to: [{networks: [10.0.0.0/8, anywhere]}]",
        "to: [{domainNames: [example.org]}]",
        "to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]",
        "to: [{namespaces: {}}, {nodes: {}}], protocols: [{destinationNamedPort: http}]",
    ]
    .map(str::to_owned)
    .into();
    for protocols in [
        "",
        "{}",
        "{tcp: {}}",
        "{tcp: {destinationPort: {}}}",
        "{tcp: {destinationPort: {number: 0}}}",
        "{tcp: {destinationPort: {number: 65536}}}",
        "{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}",
        "{tcp: {destinationPort: {number: 1}, sourcePort: {number: 1}}}",
        "{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}",
        "{icmp: {}}",
        "{destinationNamedPort: ''}",
        "{destinationNamedPort: 80}",
        "{tcp: {destinationPort: {range: {start: 1, end: 2, step: 1}}}}",
        "{tcp: {destinationPort: {number: 1}}}, {quic: {}}",
    ] {
        rules.push(with(protocols));
    }
    rules.extend([range(80, 80), range(81, 80), range(0, 80), range(80, 65536)]);
    let all = [
        "app/a other/x TCP/80",
        "app/a app/b ICMP",
        "app/a ip:203.0.113.1 UDP/1",
        "app/a node:n1 TCP/1",
        "app/a app/b TCP/1 IPv6",
    ];
    for rule in &rules {
        check(&admin(&format!("egress: [{{action: Accept, {rule}}}]")), &all, &[]);
        check(&(admin(&format!("egress: [{{action: Accept, {rule}}}]")) + &policy("policyTypes: [Egress]")), &[], &all);
        for action in ["Deny", "Pass", "Log"] {
            let rules = format!("egress: [{{action: {action}, {rule}}}]");
            check(&(admin(&rules) + &policy("ingress: [{}], egress: [{}]")), &["other/x app/a TCP/1"], &all);
        }
        // An earlier rule has decided before.
        check(
            &admin(&format!("egress: [{{action: Accept, to: [{{namespaces: {{}}}}]}}, {{action: Deny, {rule}}}]")),
            &all[..2],
            &all[2..4],
        );
    }
    // On ingress, nodes and blocks are no peers; the pod's own node is spared.
    for peer in ["{nodes: {}}", "{networks: [10.0.0.0/8]}", "{spaceships: {}}"] {
        let rules = format!("ingress: [{{action: Deny, from: [{peer}]}}]");
        let (own, others) = (
            ["node:n1 app/a TCP/1", "other/host app/a ICMP"],
            ["node:n2 app/a TCP/1", "ip:192.168.0.1 app/a TCP/1", "other/x app/a TCP/1", "ip:203.0.113.1 app/a TCP/1"],
        );
        check(&admin(&rules), &own, &others);
    }
}
