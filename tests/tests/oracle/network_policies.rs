//! NetworkPolicies: defaults, selectors, peers, ports, and what no API server would store.

use npolicy_tests::oracle::Answer;

use super::{ask, check, from, policy, ports, world};

#[test]
fn policy_types_are_those_given_or_follow_from_the_egress_rules() {
    const IN: &str = "other/x app/a TCP/80";
    const OUT: &str = "app/a ip:203.0.113.1 TCP/80";
    let rules = "egress: [{ports: [{port: 1}]}], ingress: [{ports: [{port: 1}]}]";
    for (spec, ingress, egress) in [
        ("", true, false),
        ("egress: null", true, false),
        ("policyTypes: [], egress: []", true, false),
        ("policyTypes: null, egress: [{ports: [{port: 1}]}]", true, true),
        ("ingress: [{}], egress: [{ports: [{port: 1}]}]", false, true),
        ("egress: [{}]", true, false),
        (&format!("policyTypes: [Egress], {rules}"), false, true),
        (&format!("policyTypes: [Ingress], {rules}"), true, false),
        (&format!("policyTypes: [Ingress, Ingress], {rules}"), true, false),
        (&format!("policyTypes: [Egress, Ingress], {rules}"), true, true),
        // What is not known is ignored; where nothing is known, both.
        (&format!("policyTypes: [Inwards, Egress, Outwards], {rules}"), false, true),
        (&format!("policyTypes: [Inwards], {rules}"), true, true),
    ] {
        let (accepted, denied): (Vec<_>, Vec<_>) =
            [(IN, ingress), (OUT, egress)].into_iter().partition(|(_, cut)| !cut);
        let questions =
            |list: Vec<(&'static str, bool)>| list.into_iter().map(|(question, _)| question).collect::<Vec<_>>();
        check(&policy(spec), &questions(accepted), &questions(denied));
    }
}

#[test]
fn kinds_of_other_groups_are_not_ours() {
    let closed = policy("podSelector: {}");
    check(&closed, &[], &["other/x app/a TCP/1"]);
    let foreign = closed.replace("networking.k8s.io/v1", "crd.projectcalico.org/v1");
    check(&foreign, &["other/x app/a TCP/1"], &[]);
    let list = "{kind: List, apiVersion: v1, items: [".to_owned() + &closed + "]}";
    check(&list, &[], &["other/x app/a TCP/1"]);
}

#[test]
fn absent_null_and_empty_lists_restrict_nothing() {
    for nothing in ["", "ingress: [], ", "ingress: null, "] {
        check(
            &policy(&format!("{nothing}policyTypes: [Ingress]")),
            &[],
            &["other/x app/a TCP/80", "ip:203.0.113.1 app/a ICMP"],
        );
    }
    for anybody in ["{}", "{from: []}", "{from: null, ports: []}", "{ports: null}"] {
        let all = ["other/x app/a TCP/80", "ip:203.0.113.1 app/a ICMP", "node:n2 app/a UDP/1", "app/b app/a SCTP/9"];
        check(&policy(&format!("ingress: [{anybody}]")), &all, &[]);
    }
    check(&from("{}"), &[], &["other/x app/a TCP/80", "app/b app/a TCP/80"]);
    check(&ports("{}"), &["other/x app/a TCP/7"], &["other/x app/a UDP/7", "other/x app/a ICMP"]);
    for subject in ["podSelector: {}", "podSelector: null", "podSelector: {matchLabels: {}, matchExpressions: []}"] {
        check(&policy(subject), &[], &["other/x app/a TCP/80", "other/x app/b TCP/80"]);
    }
}

#[test]
fn selectors_match_by_operator() {
    let peer = |key: &str, rest: &str| {
        from(&format!("{{namespaceSelector: {{}}, podSelector: {{matchExpressions: [{{key: {key}, {rest}}}]}}}}"))
    };
    const X: &str = "other/x app/a TCP/1";
    const BARE: &str = "other/bare app/a TCP/1";
    check(&peer("app", "operator: In, values: [z, x]"), &[X], &[BARE, "app/b app/a TCP/1"]);
    check(&peer("app", "operator: In, values: [X]"), &[], &[X, BARE]);
    check(&peer("app", "operator: NotIn, values: [x]"), &[BARE, "app/b app/a TCP/1"], &[X]);
    check(&peer("app", "operator: Exists"), &[X], &[BARE]);
    check(&peer("app", "operator: DoesNotExist, values: []"), &[BARE], &[X]);
    let namespaces = |selector: &str| from(&format!("{{namespaceSelector: {{{selector}}}}}"));
    check(&namespaces("matchExpressions: [{key: empty, operator: In, values: ['']}]"), &[X], &["app/b app/a TCP/1"]);
    check(&namespaces("matchLabels: {empty: ''}, matchExpressions: [{key: empty, operator: DoesNotExist}]"), &[], &[X]);
    check(&namespaces("matchLabels: {kubernetes.io/metadata.name: other}"), &[X, BARE], &["app/b app/a TCP/1"]);
}

#[test]
fn one_peer_is_all_its_parts_and_a_list_any_of_its_peers() {
    const B: &str = "app/b app/a TCP/1";
    const X: &str = "other/x app/a TCP/1";
    const BARE: &str = "other/bare app/a TCP/1";
    const REMOTE: &str = "node:n2 app/a TCP/1";
    check(&from("{podSelector: {}}"), &[B], &[X, BARE, REMOTE]);
    check(&from("{podSelector: {matchLabels: {app: x}}}"), &[], &[B, X]);
    check(&from("{namespaceSelector: {}}"), &[B, X, BARE], &[REMOTE, "ip:203.0.113.1 app/a TCP/1"]);
    check(&from("{namespaceSelector: {matchLabels: {team: b}}, podSelector: null}"), &[X, BARE], &[B]);
    check(
        &from("{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: x}}}"),
        &[X],
        &[B, BARE],
    );
    check(
        &from("{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: b}}}"),
        &[X, BARE, B],
        &[],
    );
    check(&from("{ipBlock: {cidr: 10.0.0.0/15, except: [10.0.1.2/32]}}"), &[B, X], &[BARE, REMOTE]);
    check(&from("{ipBlock: {cidr: 0.0.0.0/0}}"), &[B, REMOTE], &["app/b app/a TCP/1 IPv6"]);
    // A hostNetwork pod is its node: local here, remote there, and never matched by its labels.
    check(&from("{namespaceSelector: {}}"), &["other/host app/a TCP/1"], &["other/host app/b TCP/1"]);
    // An exception takes away from its own block only.
    let blocks = "{ipBlock: {cidr: 10.0.1.0/24, except: [10.0.1.0/30]}}, {ipBlock: {cidr: 10.0.1.0/31}}";
    check(&from(blocks), &[X], &[BARE]);
}

#[test]
fn blocks_are_read_in_every_form_that_was_ever_stored() {
    const X: &str = "other/x app/a TCP/1";
    const V6: &str = "app/b app/a TCP/1 IPv6";
    for block in
        ["10.0.1.9/24", "010.000.001.1/32", "'::ffff:10.0.1.0/120'", "'::ffff:010.0.1.1/128'", "'::ffff:a00:100/120'"]
    {
        check(&from(&format!("{{ipBlock: {{cidr: {block}}}}}")), &[X], &["ip:10.0.2.1 app/a TCP/1", V6]);
    }
    check(&from("{ipBlock: {cidr: 'fd00::99/64'}}"), &[V6], &[X]);
    for block in [
        "'::ffff:10.0.1.0/95'",
        "10.0.1.0/33",
        "10.0.1/24",
        "10.0.1.1",
        "'10.0.1.1/ 32'",
        "10.0.1.256/8",
        "+10.0.1.1/32",
        "10.0.1.1/+32",
        "'::/129'",
        "''",
        "null",
    ] {
        check(&from(&format!("{{ipBlock: {{cidr: {block}}}}}")), &[], &[X, V6]);
    }
}

#[test]
fn what_no_api_server_would_store_matches_nothing_and_still_isolates() {
    const X: &str = "other/x app/a TCP/80";
    const UDP: &str = "other/x app/a UDP/80";
    for entry in [
        "{protocol: ICMP}",
        "{protocol: tcp}",
        "{protocol: '', port: 80}",
        "{port: 0}",
        "{port: 65616}",
        "{port: -80}",
        "{port: 80.5}",
        "{port: '80'}",
        "{port: Http}",
        "{port: http, endPort: 90}",
        "{endPort: 90}",
        "anything",
        "{port: 80, endPort: 79}",
        "{port: 80, endPort: 0}",
        "{port: 80, endPort: 65536}",
    ] {
        check(&ports(entry), &[], &[X, UDP]);
        check(&ports(&format!("{entry}, {{port: 80}}")), &[X], &[UDP]);
    }
    check(&ports("{port: 80, endPort: 80}"), &[X], &["other/x app/a TCP/81"]);
    for peer in [
        "{}",
        "{ipBlock: {}}",
        "{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}",
        "{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}",
        "{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0]}}",
        "{namespaceSelector: {matchExpressions: [{key: a, operator: notIn, values: [b]}]}}",
        "{namespaceSelector: {matchExpressions: [{key: a, operator: NotIn}]}}",
        "{namespaceSelector: {matchExpressions: [{key: team, operator: Exists, values: [b]}]}}",
        "{namespaceSelector: {matchExpressions: [{key: '-', operator: DoesNotExist}]}}",
        "{namespaceSelector: {matchExpressions: [{key: x, operator: DoesNotExist, values: [b]}]}}",
        "{namespaceSelector: {matchExpressions: [{operator: DoesNotExist}]}}",
        "{namespaceSelector: [], podSelector: {}}",
        "everybody",
        "{namespaceSelector: {}, podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b c]}]}}",
    ] {
        check(&from(peer), &[], &[X, "app/b app/a TCP/80"]);
        check(&from(&format!("{peer}, {{podSelector: {{}}}}")), &["app/b app/a TCP/80"], &[X]);
    }
    for spec in ["ingress: [anything]", "ingress: {from: []}", "ingress: [{from: {}}]", "ingress: [{ports: {}}]"] {
        check(&policy(spec), &[], &[X]);
    }
    // Exceptions that are no strict part of their block still take away what they can.
    check(&from("{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/24]}}"), &[], &["app/b app/a TCP/80"]);
    check(&from("{ipBlock: {cidr: 10.0.0.0/24, except: [10.9.0.0/24, 'fd00::/8']}}"), &["app/b app/a TCP/80"], &[X]);
    // Nobody can say whom a broken subject selector isolates.
    check(&policy("podSelector: {matchExpressions: [{key: app, operator: Is}]}"), &[X], &[]);
    check(&policy("podSelector: {matchLabels: {app: 7}}"), &[X], &[]);
}

#[test]
fn names_of_ports_belong_to_the_pod_that_is_called() {
    let side = "other/x app/a TCP/82";
    check(&ports("{port: http}"), &["other/x app/a TCP/80", "other/x app/a TCP/83"], &["other/x app/b TCP/80", side]);
    check(&ports("{port: side}"), &[side], &["other/x app/a UDP/82"]);
    check(
        &ports("{port: once}, {port: dns}"),
        &[],
        &["other/x app/a TCP/81", "other/x app/a TCP/53", "other/x app/a UDP/53"],
    );
    let out = policy("policyTypes: [Egress], egress: [{ports: [{port: dns, protocol: UDP}]}]");
    check(
        &out,
        &["app/b app/a UDP/53"],
        &["app/b other/x UDP/53", "app/b node:n1 UDP/53", "app/b ip:203.0.113.1 UDP/53"],
    );
}

#[test]
fn a_pod_counts_from_its_address_to_its_end() {
    let pod =
        |name: &str, rest: &str| format!("{{kind: Pod, metadata: {{name: {name}, namespace: app}}, {rest}}}\n---\n");
    let more = [
        pod("done", "status: {phase: Failed, podIPs: [{ip: 10.0.1.1}]}"),
        pod("ended", "status: {phase: Succeeded, podIPs: [{ip: 10.0.1.1}]}"),
        pod("waits", "status: {phase: Pending}"),
        "{kind: Pod, metadata: {name: ending, namespace: app, deletionTimestamp: '2026-01-01T00:00:00Z'}, status: {phase: Running, podIPs: [{ip: 10.0.0.9}]}}\n---\n".to_owned(),
        policy("podSelector: {}"),
    ]
    .concat();
    check(&more, &["app/a other/x TCP/1"], &["other/x app/ending TCP/1", "other/x app/b TCP/1"]);
    let world = world(&more);
    for question in [
        "app/done app/a TCP/1",
        "app/a app/ended TCP/1",
        "app/waits app/a TCP/1",
        "app/a app/gone TCP/1",
        "app/a node:n3 TCP/1",
        "app/a svc:app/gone TCP/1",
        "svc:app/gone app/a TCP/1",
        "app/a app/b TCP",
        "app/a app/b GRE",
        "app/a other/x TCP/1 IPv6",
        "app/a app/b TCP/1 IPv5",
        "ip:10.0.0.1 ip:fd00::2 TCP/1",
        "ip:10.0.0 app/a TCP/1",
        "a app/a TCP/1",
    ] {
        assert!(matches!(ask(&world, question), Answer::Error(_)), "{question}");
    }
}

#[test]
fn the_newer_of_two_pods_has_the_address() {
    let claim = |name: &str, created: &str, uid: &str, started: &str| {
        format!(
            "{{kind: Pod, metadata: {{name: {name}, namespace: other, labels: {{claim: {name}}}, creationTimestamp: '{created}', uid: {uid}}}, status: {{phase: Running, podIPs: [{{ip: 10.0.9.9}}], startTime: '{started}'}}}}\n---\n"
        )
    };
    let only_new = from("{namespaceSelector: {}, podSelector: {matchLabels: {claim: new}}}");
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
    for (old, new) in [
        (claim("old", late, "z", early), claim("new", early, "a", late)),
        (claim("old", early, "z", early), claim("new", late, "a", early)),
        (claim("old", early, "a", early), claim("new", early, "z", early)),
        // The same instant, written in another zone, is no later.
        (claim("old", early, "a", "2026-01-01T09:00:00+09:00"), claim("new", early, "z", early)),
    ] {
        for objects in [format!("{old}{new}{only_new}"), format!("{new}{old}{only_new}")] {
            check(&objects, &["other/new app/a TCP/1", "other/old app/a TCP/1", "ip:10.0.9.9 app/a TCP/1"], &[]);
        }
    }
}
