//! What is said about verdicts, and that rulesets and words never disagree.

use expect_test::{Expect, expect};
use npolicy_common::Direction::{self, Egress, Ingress};
use npolicy_common::FlowProtocol::{self, Other, Tcp, Udp};

use super::*;
use crate::compile::{Bundle, Compiler, Peer as RowPeer, Scope};
use crate::model::PodKey;
use crate::watch::manifests::Manifests;

const CLUSTER: &str = "
kind: Namespace
metadata: {name: dev, labels: {env: dev}}
---
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: main, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.2}]}
---
kind: Pod
metadata: {name: web, namespace: dev, labels: {app: web, tier: front}}
spec: {nodeName: n2, containers: [{name: main, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.0.1.1}]}
---
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
";

/// Explains the direction of a pod under a policy of its namespace, for several remote addresses and ports.
#[track_caller]
fn check(spec: &str, pod: &str, direction: Direction, asked: &[(&str, FlowProtocol, u16)], expected: Expect) {
    let (namespace, _) = pod.split_once('/').unwrap();
    let policy = format!("kind: NetworkPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n");
    check_policies(&policy, pod, direction, asked, expected);
}

/// The same under any policies.
#[track_caller]
fn check_policies(
    policies: &str,
    pod: &str,
    direction: Direction,
    asked: &[(&str, FlowProtocol, u16)],
    expected: Expect,
) {
    let (namespace, name) = pod.split_once('/').unwrap();
    let state = Manifests::from_text("t.yaml", &(CLUSTER.to_owned() + policies)).state();
    let key = PodKey { namespace: namespace.into(), name: name.into() };
    let pod = state.pod(&key).unwrap();
    let (plan, _) = Compiler::new(Scope::Everything).compile(&state);
    let mut said = String::new();
    for &(address, protocol, port) in asked {
        let address = address.parse().unwrap();
        let explanation = explain(&state, pod, direction, &Remote::at(&state, address), protocol, port);
        let row: Bundle = plan.subjects[&key].ruleset(direction).row(RowPeer::Class(plan.class_of(address)));
        let denies = explanation.decision.verdict() == Verdict::Deny;
        assert_eq!(row.accepts(protocol, port), !denies, "ruleset and words: {explanation:?}");
        for rule in &explanation.passed_by {
            said.push_str(&format!("passed by {rule}, "));
        }
        let line = match explanation.decision {
            Decision::NotGoverned => "not governed".to_owned(),
            Decision::NotDecided => "not decided".to_owned(),
            Decision::OwnNode => "own node".to_owned(),
            Decision::Itself => "itself".to_owned(),
            Decision::Accepted(accepted) => format!("accepted by {accepted}"),
            Decision::TierAccepted(rule) => format!("accepted by {rule}"),
            Decision::Denied(miss) => miss.to_string(),
            Decision::TierDenied(rule) => format!("denied by {rule}; {}", rule.advice()),
        };
        said.push_str(&line);
        said.push('\n');
    }
    expected.assert_eq(&said);
}

#[test]
fn names_the_rule_and_the_peer_that_accept() {
    check(
        "{ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}, {from: [{ipBlock: {cidr: 10.9.0.0/16}}, {namespaceSelector: {}}], ports: [{port: sql}]}, {ports: [{protocol: UDP}]}]}",
        "shop/db",
        Ingress,
        &[("10.0.0.2", Tcp, 5432), ("10.9.1.1", Tcp, 5432), ("203.0.113.7", Udp, 9)],
        expect![[r#"
            accepted by shop/p ingress[1].from[1]
            accepted by shop/p ingress[1].from[0]
            accepted by shop/p ingress[2]
        "#]],
    );
    check(
        "{policyTypes: [Egress]}",
        "shop/db",
        Ingress,
        &[("10.0.0.2", Tcp, 5432)],
        expect![[r#"
        not governed
    "#]],
    );
}

#[test]
fn names_the_one_change_that_would_be_needed() {
    check(
        "{ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}}, {podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}], ports: [{port: sql}, {port: 9000, endPort: 9009, protocol: UDP}]}]}",
        "shop/db",
        Ingress,
        &[
            ("10.0.0.2", Tcp, 80),
            ("10.0.0.2", Udp, 5432),
            ("10.0.0.2", Other, 0),
            ("10.0.1.1", Tcp, 5432),
            ("192.168.0.2", Tcp, 5432),
            ("203.0.113.7", Tcp, 5432),
            ("fd00::2", Tcp, 5432),
            ("203.0.113.7", Tcp, 80),
        ],
        expect![[r#"
            shop/p ingress[0].ports: the rule accepts sql/TCP (5432 on shop/db), 9000-9009/UDP
            shop/p ingress[0].ports: the rule accepts sql/TCP (5432 on shop/db), 9000-9009/UDP
            shop/p ingress[0].ports: a rule with ports accepts TCP, UDP and SCTP alone
            shop/p ingress[0].from[0]: namespace dev has env=dev, the rule wants env=prod
            shop/p ingress[0].from[2]: 192.168.0.2 is outside 10.0.0.0/8
            shop/p ingress[0].from[2]: 203.0.113.7 is outside 10.0.0.0/8
            shop/p ingress[0].from[2]: fd00::2 is not of the family of 10.0.0.0/8
            shop/p ingress[0].from[2]: 203.0.113.7 is outside 10.0.0.0/8, and ingress[0].ports: the rule accepts sql/TCP (5432 on shop/db), 9000-9009/UDP
        "#]],
    );
}

#[test]
fn names_every_label_that_differs() {
    check(
        "{ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web, api]}, {key: tier, operator: DoesNotExist}, {key: x, operator: Exists}]}}]}]}",
        "shop/db",
        Ingress,
        &[("10.0.1.1", Tcp, 1), ("203.0.113.7", Tcp, 1)],
        expect![[r#"
            shop/p ingress[0].from[0]: namespace dev has env=dev, the rule wants env=prod, and dev/web has app=web, the rule wants app other than api or web, and dev/web has tier=front, the rule wants no tier, and dev/web has no label x, the rule wants any x
            shop/p ingress[0].from[0]: 203.0.113.7 is no pod, selectors match pods alone
        "#]],
    );
}

#[test]
fn a_port_name_means_the_destination() {
    check(
        "{policyTypes: [Egress], egress: [{ports: [{port: http}, {port: sql, protocol: UDP}]}]}",
        "shop/db",
        Egress,
        &[("10.0.1.1", Tcp, 8080), ("10.0.1.1", Tcp, 80), ("10.0.0.2", Tcp, 8080), ("203.0.113.7", Tcp, 8080)],
        expect![[r#"
            accepted by shop/p egress[0]
            shop/p egress[0].ports: the rule accepts http/TCP (8080 on dev/web), sql/UDP (dev/web has no such port)
            shop/p egress[0].ports: the rule accepts http/TCP (shop/web has no such port), sql/UDP (shop/web has no such port)
            shop/p egress[0].ports: the rule accepts http/TCP (only pods have named ports), sql/UDP (only pods have named ports)
        "#]],
    );
}

#[test]
fn a_broken_part_is_given_as_the_reason() {
    check(
        "{ingress: [{from: [{podSelectr: {}}], ports: [{port: 1}]}]}",
        "shop/db",
        Ingress,
        &[("10.0.0.2", Tcp, 1)],
        expect![[r#"
            shop/p ingress[0].from[0]: the peer matches nothing: unknown field `podSelectr`, did you mean `podSelector`?
        "#]],
    );
    check(
        "{ingress: [{form: []}]}",
        "shop/db",
        Ingress,
        &[("10.0.0.2", Tcp, 1)],
        expect![[r#"
        shop/p ingress[0]: the rule matches nothing: unknown field `form`, did you mean `from`?
    "#]],
    );
    check(
        "{ingress: [{ports: [{port: 0}]}]}",
        "shop/db",
        Ingress,
        &[("10.0.0.2", Tcp, 1)],
        expect![[r#"
        shop/p ingress[0].ports: the rule accepts nothing (port 0 is outside 1 to 65535)
    "#]],
    );
    check(
        "{}",
        "shop/db",
        Ingress,
        &[("10.0.0.2", Tcp, 1)],
        expect![[r#"
        shop/p has no ingress rule
    "#]],
    );
}

#[test]
fn the_own_node_is_exempt_from_ingress_alone() {
    let policy = "kind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {policyTypes: [Ingress, Egress]}\n";
    let state = Manifests::from_text("t.yaml", &(CLUSTER.to_owned() + policy)).state();
    let pod = state.pod(&PodKey { namespace: "shop".into(), name: "db".into() }).unwrap();
    let address = "192.168.0.1".parse().unwrap();
    let remote = Remote { is_own_node: true, ..Remote::at(&state, address) };
    assert_eq!(explain(&state, pod, Ingress, &remote, Tcp, 1).decision, Decision::OwnNode);
    assert!(matches!(explain(&state, pod, Egress, &remote, Tcp, 1).decision, Decision::Denied(_)));
}

#[test]
fn the_first_rule_of_the_tiers_that_matches_is_named() {
    let policies = "
kind: ClusterNetworkPolicy
metadata: {name: late}
spec:
  tier: Admin
  priority: 20
  subject: {namespaces: {}}
  ingress:
  - {action: Accept, from: [{namespaces: {matchLabels: {env: dev}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}
  - {name: to NetworkPolicy, action: Pass, from: [{namespaces: {matchLabels: {env: none}}}, {pods: {podSelector: {matchLabels: {app: web}}}}], protocols: [{destinationNamedPort: sql}, {udp: {destinationPort: {range: {start: 50, end: 59}}}}]}
  - {action: Deny, from: [{namespaces: {}}]}
---
kind: ClusterNetworkPolicy
metadata: {name: early}
spec: {tier: Admin, priority: 10, subject: {pods: {podSelector: {matchLabels: {app: db}}}}, ingress: [{name: no udp 53, action: Deny, from: [{pods: {podSelector: {}}}], protocols: [{udp: {destinationPort: {number: 53}}}]}]}
---
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]}
";
    check_policies(
        policies,
        "shop/db",
        Ingress,
        &[
            ("10.0.1.1", Tcp, 80),
            ("10.0.1.1", Udp, 53),
            ("10.0.1.1", Udp, 54),
            ("10.0.0.2", Tcp, 5432),
            ("10.0.1.1", Tcp, 5432),
            ("10.0.1.1", Other, 0),
            ("203.0.113.7", Tcp, 80),
            ("192.168.0.2", Tcp, 5432),
        ],
        expect![[r#"
            accepted by Admin policy late, priority 20, ingress[0].from[0]
            denied by Admin policy early, priority 10, ingress[0].from[0] ("no udp 53"); no change in a NetworkPolicy can allow it
            passed by Admin policy late, priority 20, ingress[1].from[1] ("to NetworkPolicy"), shop/p ingress[0].from[0]: dev/web is in namespace dev, a podSelector alone means shop, and ingress[0].ports: the rule accepts 5432/TCP
            passed by Admin policy late, priority 20, ingress[1].from[1] ("to NetworkPolicy"), accepted by shop/p ingress[0].from[0]
            passed by Admin policy late, priority 20, ingress[1].from[1] ("to NetworkPolicy"), shop/p ingress[0].from[0]: dev/web is in namespace dev, a podSelector alone means shop
            denied by Admin policy late, priority 20, ingress[2].from[0]; no change in a NetworkPolicy can allow it
            shop/p ingress[0].from[0]: 203.0.113.7 is no pod, selectors match pods alone, and ingress[0].ports: the rule accepts 5432/TCP
            shop/p ingress[0].from[0]: node n2 is no pod, selectors match pods alone
        "#]],
    );
    check_policies(
        policies,
        "shop/web",
        Ingress,
        &[("10.0.1.1", Udp, 53), ("10.0.0.1", Tcp, 80), ("203.0.113.7", Tcp, 80)],
        expect![[r#"
            passed by Admin policy late, priority 20, ingress[1].from[1] ("to NetworkPolicy"), not decided
            denied by Admin policy late, priority 20, ingress[2].from[0]; no change in a NetworkPolicy can allow it
            not decided
        "#]],
    );
}

#[test]
fn baseline_speaks_where_no_network_policy_isolates() {
    let policies = "
kind: ClusterNetworkPolicy
metadata: {name: base}
spec:
  tier: Baseline
  priority: 0
  subject: {namespaces: {}}
  egress:
  - {action: Pass, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 10250}}}]}
  - {action: Accept, to: [{networks: [203.0.113.0/24, 'fd00::/8']}]}
  - {action: Deny, to: [{networks: [10.0.0.0/8]}, {networks: [0.0.0.0/0]}]}
---
kind: NetworkPolicy
metadata: {name: p, namespace: dev}
spec: {policyTypes: [Egress], egress: [{ports: [{port: 1}]}]}
";
    let asked = [
        ("192.168.0.2", Tcp, 10_250),
        ("192.168.0.2", Tcp, 1),
        ("203.0.113.7", Other, 0),
        ("10.0.0.2", Tcp, 1),
        ("fd00::2", Tcp, 1),
        ("2001:db8::1", Tcp, 1),
    ];
    check_policies(
        policies,
        "shop/db",
        Egress,
        &asked,
        expect![[r#"
        passed by Baseline policy base, priority 0, egress[0].to[0], not decided
        denied by Baseline policy base, priority 0, egress[2].to[1]; a NetworkPolicy for the pod's egress would decide instead
        accepted by Baseline policy base, priority 0, egress[1].to[0]
        denied by Baseline policy base, priority 0, egress[2].to[0]; a NetworkPolicy for the pod's egress would decide instead
        accepted by Baseline policy base, priority 0, egress[1].to[0]
        not decided
    "#]],
    );
    check_policies(
        policies,
        "dev/web",
        Egress,
        &asked[..2],
        expect![[r#"
        dev/p egress[0].ports: the rule accepts 1/TCP
        accepted by dev/p egress[0]
    "#]],
    );
    check_policies(
        policies,
        "shop/db",
        Ingress,
        &asked[..1],
        expect![[r#"
        not governed
    "#]],
    );
}

#[test]
fn a_rule_that_cannot_be_read_denies_and_says_why() {
    let rules = |tier: &str| {
        format!(
            "kind: ClusterNetworkPolicy
metadata: {{name: future}}
spec: {{tier: {tier}, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{{action: Accept, from: [{{ships: {{}}}}]}}, {{action: Accept, from: [{{namespaces: {{matchLabels: {{env: dev}}}}}}]}}, {{action: Pass, from: [{{ships: {{}}}}]}}]}}
"
        )
    };
    let asked = [("10.0.1.1", Tcp, 1), ("10.0.0.2", Tcp, 1), ("192.168.0.1", Udp, 1)];
    check_policies(
        &rules("Admin"),
        "shop/db",
        Ingress,
        &asked,
        expect![[r#"
        accepted by Admin policy future, priority 1, ingress[1].from[0]
        denied by Admin policy future, priority 1, ingress[2]; the rule cannot be read (unknown field `ships`, expected `namespaces`, `pods`, `networks`, `nodes`, `domainNames`), so it denies everything it might have been meant for; no change in a NetworkPolicy can allow it
        denied by Admin policy future, priority 1, ingress[2]; the rule cannot be read (unknown field `ships`, expected `namespaces`, `pods`, `networks`, `nodes`, `domainNames`), so it denies everything it might have been meant for; no change in a NetworkPolicy can allow it
    "#]],
    );
    check_policies(
        &rules("Baseline"),
        "shop/db",
        Ingress,
        &asked[1..2],
        expect![[r#"
        denied by Baseline policy future, priority 1, ingress[2]; the rule cannot be read (unknown field `ships`, expected `namespaces`, `pods`, `networks`, `nodes`, `domainNames`), so it denies everything it might have been meant for; a NetworkPolicy for the pod's ingress would decide instead
    "#]],
    );
    let state = Manifests::from_text("t.yaml", &(CLUSTER.to_owned() + &rules("Admin"))).state();
    let pod = state.pod(&PodKey { namespace: "shop".into(), name: "db".into() }).unwrap();
    let remote = Remote { is_own_node: true, ..Remote::at(&state, "192.168.0.1".parse().unwrap()) };
    assert_eq!(explain(&state, pod, Ingress, &remote, Tcp, 1).decision, Decision::OwnNode);
}
