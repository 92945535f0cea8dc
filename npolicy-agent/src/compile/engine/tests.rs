//! What questions about Services, tiers and ends without address come to.

use super::*;
use crate::compile::{Decision, explain_service};
use crate::model::PodKey;
use crate::watch::manifests::Manifests;

/// Two nodes; `app/a` on n1 and `app/b` on n2 behind `app/web`, which has an address of every kind; a client of each kind.
const CLUSTER: &str = "
{kind: Namespace, metadata: {name: app, labels: {team: a}}}
---
{kind: Namespace, metadata: {name: other, labels: {team: b}}}
---
{kind: Node, metadata: {name: n1}, status: {addresses: [{address: 192.168.0.1}, {address: 'fd01::1'}]}}
---
{kind: Node, metadata: {name: n2}, status: {addresses: [{address: 192.168.0.2}]}}
---
{kind: Pod, metadata: {name: a, namespace: app, labels: {app: a}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{kind: Pod, metadata: {name: b, namespace: app, labels: {app: b}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.0.0.2}]}}
---
{kind: Pod, metadata: {name: x, namespace: other, labels: {app: x}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.0.1.1}]}}
---
{kind: Pod, metadata: {name: host, namespace: other}, spec: {nodeName: n1, hostNetwork: true}, status: {podIPs: [{ip: 192.168.0.1}]}}
---
{kind: Pod, metadata: {name: planned, namespace: other, labels: {app: planned}}}
---
{kind: Service, metadata: {name: headless, namespace: app}, spec: {clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}}
---
{kind: EndpointSlice, metadata: {name: headless-1, namespace: app, labels: {kubernetes.io/service-name: headless}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}, {addresses: [203.0.113.9]}], ports: [{name: '', port: 80}]}
---
";

/// The Service `app/web`, with more of its specification and the ports of its backends: `[ADDRESS, NODE, PORT]`.
fn service(more: &str, backends: &[(&str, &str, u16)]) -> String {
    let mut text = format!(
        "kind: Service
metadata: {{name: web, namespace: app}}
spec: {{type: NodePort, clusterIPs: [10.96.0.1], externalIPs: [198.51.100.1], ports: [{{name: http, port: 80, nodePort: 30080}}, {{name: dns, port: 53, protocol: UDP}}, {{name: sctp, port: 7, protocol: SCTP}}], {more}}}
---
"
    );
    for (number, (address, node, port)) in backends.iter().enumerate() {
        text += &format!(
            "{{kind: EndpointSlice, metadata: {{name: web-{number}, namespace: app, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, endpoints: [{{addresses: [{address}], nodeName: {node}}}], ports: [{{name: http, port: {port}}}, {{name: dns, port: 5353, protocol: UDP}}, {{name: sctp, port: 7, protocol: SCTP}}]}}\n---\n"
        );
    }
    text
}

const BOTH: [(&str, &str, u16); 2] = [("10.0.0.1", "n1", 8080), ("10.0.0.2", "n2", 9090)];

/// A NetworkPolicy of a namespace.
fn policy(namespace: &str, spec: &str) -> String {
    format!("{{kind: NetworkPolicy, metadata: {{name: p, namespace: {namespace}}}, spec: {{{spec}}}}}\n---\n")
}

fn cluster_policy(tier: &str, rules: &str) -> String {
    format!(
        "{{kind: ClusterNetworkPolicy, metadata: {{name: c}}, spec: {{tier: {tier}, priority: 1, subject: {{namespaces: {{}}}}, {rules}}}}}\n---\n"
    )
}

fn engine(more: &str) -> Engine {
    let manifests = Manifests::from_text("t.yaml", &format!("{CLUSTER}{more}"));
    assert!(manifests.is_certain(), "{:?}", manifests.diagnostics());
    Engine::new(manifests.state())
}

fn end(text: &str) -> End {
    let keyed = |text: &str| text.split_once('/').map(|(namespace, name)| (namespace.into(), name.into())).unwrap();
    match text.split_once(':') {
        Some(("svc", key)) => {
            let (namespace, name) = keyed(key);
            End::Service(crate::model::ServiceKey { namespace, name })
        }
        Some(("node", name)) => End::Node(name.into()),
        Some(("ip", address)) => End::Address(address.parse().unwrap()),
        _ => {
            let (namespace, name) = keyed(text);
            End::Pod(PodKey { namespace, name })
        }
    }
}

/// A question as text: `FROM TO PORT/PROTOCOL`.
fn question(text: &str) -> Question {
    let [from, to, traffic] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text:?} is no question") };
    let protocol = match traffic.split_once('/').map(|(port, protocol)| (port.parse().unwrap(), protocol)) {
        Some((port, "TCP")) => Protocol::Tcp(port),
        Some((port, "UDP")) => Protocol::Udp(port),
        Some((port, "SCTP")) => Protocol::Sctp(port),
        _ => Protocol::Icmp,
    };
    Question { from: end(from), to: end(to), protocol, family: None }
}

/// `.` accepted, `X` denied, `M` denied with mixed backends; both ways of asking say the same.
#[track_caller]
fn check(more: &str, asked: &[(&str, char)]) {
    let mut engine = engine(more);
    for &(text, expected) in asked {
        let question = question(text);
        let answer = engine.ask(&question).unwrap_or_else(|error| panic!("{text}: {error}"));
        let is_mixed = answer.service.as_ref().is_some_and(ServiceAnswer::is_mixed);
        assert_eq!(engine.brief(&question), Ok(Brief { verdict: answer.verdict, is_mixed }), "{text}");
        let said = match (answer.verdict, is_mixed) {
            (Verdict::Accept, _) => '.',
            (Verdict::Deny, true) => 'M',
            (Verdict::Deny, false) => 'X',
        };
        assert_eq!(said, expected, "{text}: {answer:?}");
    }
}

#[test]
fn every_address_of_a_service_leads_to_its_backends() {
    let web = service("", &BOTH);
    for (rule, said) in [
        ("{to: [{namespaceSelector: {}}], ports: [{port: 8080}, {port: 9090}]}", '.'),
        ("{to: [{namespaceSelector: {}}], ports: [{port: 8080}]}", 'M'),
        ("{to: [{namespaceSelector: {}}], ports: [{port: 80}, {port: 30080}]}", 'X'),
        (
            "{to: [{ipBlock: {cidr: 10.96.0.0/12}}, {ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: 192.168.0.0/16}}]}",
            'X',
        ),
    ] {
        let egress = policy(
            "app",
            &format!("podSelector: {{matchLabels: {{app: b}}}}, policyTypes: [Egress], egress: [{rule}]"),
        );
        let asked = [
            "svc:app/web 80/TCP",
            "ip:10.96.0.1 80/TCP",
            "ip:198.51.100.1 80/TCP",
            "ip:192.168.0.2 30080/TCP",
            "node:n1 30080/TCP",
        ];
        let one = service("", &[BOTH[0], ("10.0.1.1", "n1", 9090)]);
        let asked: Vec<_> = asked.iter().map(|to| format!("app/b {to}")).collect();
        let asked: Vec<_> = asked.iter().map(|text| (text.as_str(), said)).collect();
        check(&(one + &egress), &asked);
    }
    // Ports of the protocol that was asked for, and on others what the address is otherwise.
    let egress = policy(
        "app",
        "policyTypes: [Egress], egress: [{ports: [{port: 5353, protocol: UDP}]}, {to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 7, protocol: SCTP}]}, {to: [{ipBlock: {cidr: 198.51.100.0/24}}]}]",
    );
    check(
        &(web + &egress),
        &[
            ("app/a svc:app/web 53/UDP", '.'),
            ("app/a svc:app/web 7/SCTP", '.'),
            ("app/a svc:app/web 53/TCP", 'X'),
            ("app/a svc:app/web ICMP", 'X'),
            ("app/a ip:10.96.0.1 ICMP", 'X'),
            ("app/a ip:198.51.100.1 ICMP", '.'),
            ("app/a ip:198.51.100.1 81/TCP", '.'),
            ("app/a ip:198.51.100.1 80/TCP", 'M'),
        ],
    );
}

#[test]
fn without_a_backend_only_rules_without_peers_accept() {
    let none = service("", &[]);
    let anywhere =
        policy("app", "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {namespaceSelector: {}}]}]");
    check(&(none.clone() + &anywhere), &[("app/a svc:app/web 80/TCP", 'X'), ("app/a svc:app/web 81/TCP", 'X')]);
    let port = policy("app", "policyTypes: [Egress], egress: [{ports: [{port: 80}]}]");
    check(&(none.clone() + &port), &[("app/a svc:app/web 80/TCP", '.'), ("app/a svc:app/web 81/TCP", 'X')]);
    check(
        &(none.clone() + &anywhere),
        &[("node:n1 svc:app/web 80/TCP", '.'), ("ip:203.0.113.1 svc:app/web 80/TCP", '.')],
    );
    let mut engine = engine(&(none + &anywhere));
    let answer = engine.ask(&question("app/a ip:198.51.100.1 80/TCP")).unwrap();
    assert!(answer.service.is_some_and(|service| service.has_port && service.backends.is_empty()));
    assert_eq!(answer.judgements.len(), 1, "nobody receives");
}

#[test]
fn a_local_policy_leaves_the_backends_of_the_clients_node() {
    let only_a = policy("other", "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.1/32}}]}]");
    let local = service("internalTrafficPolicy: Local", &BOTH) + &only_a;
    check(
        &local,
        &[
            ("other/x svc:app/web 80/TCP", '.'),
            ("other/x ip:198.51.100.1 80/TCP", 'M'),
            ("other/x ip:192.168.0.1 30080/TCP", 'M'),
        ],
    );
    check(&(service("", &BOTH) + &only_a), &[("other/x svc:app/web 80/TCP", 'M')]);
    let closed = policy("app", "podSelector: {matchLabels: {app: b}}");
    let external = service("externalTrafficPolicy: Local", &BOTH) + &closed;
    check(
        &external,
        &[
            ("ip:203.0.113.1 ip:192.168.0.1 30080/TCP", '.'),
            ("ip:203.0.113.1 node:n2 30080/TCP", 'X'),
            ("ip:203.0.113.1 ip:198.51.100.1 80/TCP", 'M'),
        ],
    );
    let internal = service("internalTrafficPolicy: Local", &BOTH) + &closed;
    check(
        &internal,
        &[
            ("node:n1 svc:app/web 80/TCP", '.'),
            ("other/host svc:app/web 80/TCP", '.'),
            ("ip:203.0.113.1 svc:app/web 80/TCP", 'M'),
        ],
    );
}

#[test]
fn where_kube_proxy_may_hide_the_client_both_ways_count_and_are_told() {
    let client = "{ipBlock: {cidr: 203.0.113.0/24}}";
    let nodes = "{ipBlock: {cidr: 192.168.0.0/24}}";
    let to_a = |spec: &str, peers: &str| {
        service(spec, &BOTH[..1]) + &policy("app", &format!("ingress: [{{from: [{peers}]}}]"))
    };
    let outside = ["ip:203.0.113.1 ip:198.51.100.1 80/TCP", "ip:203.0.113.1 node:n2 30080/TCP"];
    for (spec, peers, said) in [
        ("", client, 'X'),
        ("", nodes, 'X'),
        ("", &*format!("{client}, {nodes}"), '.'),
        ("externalTrafficPolicy: Local", client, '.'),
        ("externalTrafficPolicy: Local", nodes, 'X'),
    ] {
        check(&to_a(spec, peers), &[(outside[0], said)]);
    }
    let mut engine = engine(&to_a("", client));
    let answer = engine.ask(&question(outside[1])).unwrap();
    let backend = &answer.service.unwrap().backends[0];
    let told: Vec<_> = backend.judgements.iter().map(|judgement| (&judgement.seen, judgement.verdict)).collect();
    let n2 = Seen::Hidden(Some(("n2".into(), "192.168.0.2".parse().unwrap())));
    assert_eq!(told, [(&Seen::Own, Verdict::Accept), (&n2, Verdict::Deny)]);

    // A pod keeps its address on the way to a cluster address alone.
    let x = to_a("", "{namespaceSelector: {matchLabels: {team: b}}}");
    check(
        &x,
        &[
            ("other/x svc:app/web 80/TCP", '.'),
            ("other/x ip:198.51.100.1 80/TCP", 'X'),
            ("other/x node:n2 30080/TCP", 'X'),
        ],
    );
    // What a node makes stays its own, unless another node sends it on; what it forwards never is.
    check(
        &(service("", &BOTH[..1]) + &policy("app", "")),
        &[
            ("node:n1 svc:app/web 80/TCP", '.'),
            ("node:n1 ip:198.51.100.1 80/TCP", '.'),
            ("node:n1 node:n1 30080/TCP", '.'),
            ("other/host node:n1 30080/TCP", '.'),
            ("node:n1 node:n2 30080/TCP", 'X'),
            ("node:n2 svc:app/web 80/TCP", 'X'),
            ("ip:192.168.0.1 svc:app/web 80/TCP", 'X'),
        ],
    );
}

#[test]
fn a_pod_reaches_itself_through_a_service_unless_a_tier_denies_it() {
    let closed = service("", &BOTH[..1]) + &policy("app", "policyTypes: [Ingress, Egress]");
    let through = "app/a svc:app/web 80/TCP";
    check(&closed, &[(through, '.'), ("app/a app/a 1/TCP", '.'), ("app/b svc:app/web 80/TCP", 'X')]);
    for rules in [
        "egress: [{action: Deny, to: [{networks: [10.0.0.1/32]}]}]",
        "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
    ] {
        check(&(closed.clone() + &cluster_policy("Admin", rules)), &[(through, 'X'), ("app/a app/a 1/TCP", '.')]);
        check(&(closed.clone() + &cluster_policy("Baseline", rules)), &[(through, '.')]);
        let open = service("", &BOTH[..1]);
        check(&(open.clone() + &cluster_policy("Baseline", rules)), &[(through, 'X'), ("app/a app/a 1/TCP", '.')]);
        check(&open, &[(through, '.')]);
    }
    let mut engine = engine(&closed);
    let answer = engine.ask(&question(through)).unwrap();
    let backend = &answer.service.unwrap().backends[0];
    assert!(backend.judgements.iter().all(|judgement| judgement.explanation.decision == Decision::Itself));
}

#[test]
fn what_cannot_be_asked_says_what_could() {
    let unscheduled = "{kind: Pod, metadata: {name: unscheduled, namespace: other}, spec: {hostNetwork: true}, \
                       status: {phase: Pending}}\n---\n";
    let mut engine = engine(&(unscheduled.to_owned() + &service("", &BOTH)));
    for (asked, said) in [
        (
            "app/a svc:app/headless 80/TCP",
            "Service app/headless has no cluster address (it is headless, an ExternalName, or was given none): ask about its pods (app/a, app/b)",
        ),
        ("app/a svc:app/none 80/TCP", "there is no Service app/none"),
        ("svc:app/web app/a 80/TCP", "svc:app/web can only be a destination: ask from its pods"),
        ("ip:fd00::9 svc:app/web 80/TCP", "ip:fd00::9 and svc:app/web have no address family in common"),
        ("other/unscheduled app/a 80/TCP", "pod other/unscheduled has no address yet"),
    ] {
        assert_eq!(engine.ask(&question(asked)).unwrap_err().to_string(), said);
    }
    let mut question = question("app/a svc:app/web 80/TCP");
    question.family = Some(npolicy_common::Family::V6);
    assert_eq!(engine.ask(&question).unwrap_err().to_string(), "svc:app/web has no IPv6 address");
}

#[test]
fn an_unknown_address_decides_where_ordered_rules_go_either_way() {
    let ask = |more: &str, text: &str| engine(more).verdict(&question(text)).ok();
    let to_planned = |tier: &str, rules: &str| {
        ask(&cluster_policy(tier, &format!("egress: [{rules}]")), "other/x other/planned 80/TCP")
    };
    let (accepted, denied) = (Some(Verdict::Accept), Some(Verdict::Deny));
    let deny_some = "{action: Deny, to: [{networks: [10.0.0.0/8]}]}";
    let deny_all = "{action: Deny, to: [{networks: [0.0.0.0/0]}]}";
    let accept_some = "{action: Accept, to: [{networks: [10.0.0.0/8]}]}";
    let accept_all = "{action: Accept, to: [{networks: [0.0.0.0/0]}]}";
    let accept_pods = "{action: Accept, to: [{namespaces: {}}]}";
    let other_port =
        "{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {number: 81}}}]}";
    for tier in ["Admin", "Baseline"] {
        // A rule that only denies must not be read as one that might have accepted.
        assert_eq!(to_planned(tier, deny_some), None);
        assert_eq!(to_planned(tier, deny_all), denied);
        assert_eq!(to_planned(tier, &format!("{deny_some}, {deny_all}")), denied);
        assert_eq!(to_planned(tier, &format!("{accept_some}, {deny_all}")), None);
        assert_eq!(to_planned(tier, &format!("{accept_some}, {accept_all}")), accepted);
        assert_eq!(to_planned(tier, &format!("{accept_pods}, {deny_some}")), accepted);
        assert_eq!(to_planned(tier, &format!("{deny_some}, {accept_pods}")), None);
        assert_eq!(to_planned(tier, accept_some), accepted, "what it leaves is accepted too");
        assert_eq!(to_planned(tier, other_port), accepted);
    }
    // A node is named by its labels, which are known; its address is not.
    let node = "{kind: Node, metadata: {name: n3, labels: {disk: ssd}}}\n---\n";
    for (labels, verdict) in
        [("{}", None), ("{matchLabels: {disk: ssd}}", None), ("{matchLabels: {disk: no}}", accepted)]
    {
        let rule = cluster_policy("Admin", &format!("egress: [{{action: Deny, to: [{{nodes: {labels}}}]}}]"));
        assert_eq!(ask(&(rule + node), "other/x node:n3 80/TCP"), verdict, "{labels}");
    }
    // What is not known of one end makes no difference where the other denies.
    let some = policy("other", "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]");
    assert_eq!(ask(&some, "app/a other/planned 80/TCP"), accepted);
    assert_eq!(ask(&some, "other/planned other/x 80/TCP"), None);
    let closed = policy("other", "policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]");
    assert_eq!(ask(&closed, "other/planned other/x 80/TCP"), denied);
    // What Admin may pass goes on to NetworkPolicy, which decides for itself.
    let passed = cluster_policy(
        "Admin",
        "egress: [{action: Pass, to: [{networks: [10.0.0.0/8]}]}, {action: Accept, to: [{networks: [0.0.0.0/0]}]}]",
    );
    for (egress, verdict) in [
        ("", None),
        ("{}", accepted),
        ("{to: [{podSelector: {matchLabels: {app: planned}}}]}", accepted),
        ("{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}", None),
    ] {
        let isolated = policy("other", &format!("policyTypes: [Egress], egress: [{egress}]"));
        assert_eq!(ask(&(passed.clone() + &isolated), "other/x other/planned 80/TCP"), verdict, "{egress}");
    }
    let isolated = policy("other", "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]");
    assert_eq!(ask(&isolated, "other/x other/planned 80/TCP"), None);
    assert_eq!(ask(&isolated, "other/planned other/x 80/TCP"), accepted, "the other end is known");
}

#[test]
fn the_words_for_a_drop_line_agree_with_the_answer() {
    for rules in ["", "{ports: [{port: 9090}]}", "{ports: [{port: 8080}]}", "{}"] {
        for backends in [&BOTH[..], &BOTH[..1], &[]] {
            let isolated = policy("other", &format!("policyTypes: [Egress], egress: [{rules}]"));
            let mut engine = engine(&(service("", backends) + &isolated));
            for address in ["10.96.0.1", "198.51.100.1"] {
                let asked = question(&format!("other/x ip:{address} 80/TCP"));
                let verdict = engine.verdict(&asked).unwrap();
                let state = engine.state();
                let client = state.pod(&PodKey { namespace: "other".into(), name: "x".into() }).unwrap();
                let address = address.parse().unwrap();
                let frontend = state.frontends(address).into_iter().find(|at| at.port == 80).unwrap();
                let told = explain_service(state, client, address, &frontend);
                assert_eq!(told.denial().is_some(), verdict == Verdict::Deny, "{rules}: {told:?}");
                assert_eq!(told.is_mixed(), rules.contains("port:") && backends.len() == 2, "{rules}: {told:?}");
                assert_eq!(told.without_backends.is_some(), backends.is_empty());
            }
        }
    }
}
