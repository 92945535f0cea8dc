//! ClusterNetworkPolicy: what is read, and what becomes of every form that the API server would not store.

use npolicy_common::Direction;

use super::*;
use crate::model::{
    Action, ClusterMatch, ClusterPeer, ClusterPolicy, ClusterRule, PodSet, PortEntry, PortProtocol, Ports, Selector,
    Tier,
};

const VERSION: &str = "policy.networking.k8s.io/v1beta1";

/// Reads a policy with this spec, in YAML's one-line form, from a file and as the API hands it over; also gives the
/// findings.
fn cluster_policy(spec: &str) -> (Option<ClusterPolicy>, Vec<String>) {
    let yaml = format!("apiVersion: {VERSION}\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n");
    let reading = read_both(&yaml);
    let policy = reading.objects.into_iter().map(|(object, _)| match object {
        Object::ClusterPolicy(policy) => policy,
        other => panic!("a ClusterNetworkPolicy, not {other:?}"),
    });
    let policy = policy.last();
    let unreadable: Vec<_> = reading.unreadable.iter().map(|(key, _)| key.to_string()).collect();
    let expected: &[_] = if policy.is_some() { &[] } else { &["ClusterNetworkPolicy p"] };
    assert_eq!(unreadable, expected, "a policy that is not applied is named: {spec}");
    (policy, reading.diagnostics.iter().map(ToString::to_string).collect())
}

/// Reads the only rule of a policy.
fn rule(direction: Direction, rule: &str) -> (ClusterRule, Vec<String>) {
    let field = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let (policy, findings) =
        cluster_policy(&format!("{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {field}: [{rule}]}}"));
    let policy = policy.unwrap_or_else(|| panic!("{rule}: {findings:?}"));
    assert_eq!(policy.rules(direction).len(), 1);
    (policy.rules(direction)[0].clone(), findings)
}

/// Reads the peers and ports of a valid egress rule.
fn valid_rule(content: &str) -> (Vec<ClusterPeer>, Ports) {
    let (read, findings) = rule(Direction::Egress, &format!("{{action: Accept, {content}}}"));
    assert!(findings.is_empty(), "{content}: {findings:?}");
    match read.matches {
        ClusterMatch::Of { peers, ports } => (peers, ports),
        ClusterMatch::Unreadable(problem) => panic!("{content}: {problem}"),
    }
}

fn selector(yaml: &str) -> Selector {
    match &valid_rule(&format!("to: [{{namespaces: {yaml}}}]")).0[..] {
        [ClusterPeer::Pods(set)] => set.namespaces.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_is_read_whole_and_in_order() {
    let (policy, findings) = cluster_policy(
        "{tier: Baseline, priority: 1000, subject: {pods: {podSelector: {matchLabels: {app: web}}}}, \
         ingress: [{action: Pass, name: first, from: [{namespaces: {}}]}, {action: Deny, from: [{namespaces: {}}]}], \
         egress: [{action: Accept, to: [{networks: [10.0.0.0/8]}]}]}",
    );
    assert!(findings.is_empty(), "{findings:?}");
    let policy = policy.unwrap();
    assert_eq!((&*policy.name, policy.tier, policy.priority), ("p", Tier::Baseline, 1000));
    let pods = selector("{matchLabels: {app: web}}");
    assert_eq!(policy.subject, PodSet { namespaces: Selector::everything(), pods });
    let rules = policy.ingress.iter().map(|rule| (rule.action, rule.name.as_deref())).collect::<Vec<_>>();
    assert_eq!(rules, [(Action::Pass, Some("first")), (Action::Deny, None)]);
    assert_eq!(policy.egress[0].action, Action::Accept);
}

#[test]
fn a_policy_without_rules_has_none_and_isolates_nobody() {
    for rules in ["", ", ingress: null", ", ingress: [], egress: []", ", egress: null"] {
        let (policy, findings) =
            cluster_policy(&format!("{{tier: Admin, priority: 0, subject: {{namespaces: {{}}}}{rules}}}"));
        assert!(findings.is_empty(), "{rules}: {findings:?}");
        let policy = policy.unwrap();
        assert_eq!((policy.ingress, policy.egress, policy.priority), (vec![], vec![], 0), "{rules}");
    }
}

#[test]
fn subjects_and_pod_peers_are_namespaces_or_pods_of_any_namespace() {
    let [everything, a, b] = ["{}", "{matchLabels: {a: b}}", "{matchLabels: {b: c}}"].map(selector);
    let set = |namespaces: &Selector, pods: &Selector| PodSet { namespaces: namespaces.clone(), pods: pods.clone() };
    for (written, read) in [
        ("{namespaces: {}}", set(&everything, &everything)),
        ("{namespaces: {matchLabels: {a: b}}}", set(&a, &everything)),
        ("{namespaces: {matchLabels: {a: b}}, pods: null}", set(&a, &everything)),
        ("{pods: {podSelector: {}}}", set(&everything, &everything)),
        ("{pods: {podSelector: {matchLabels: {a: b}}}}", set(&everything, &a)),
        ("{pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}}", set(&everything, &a)),
        ("{pods: {namespaceSelector: {matchLabels: {b: c}}, podSelector: {matchLabels: {a: b}}}}", set(&b, &a)),
    ] {
        let (policy, findings) = cluster_policy(&format!("{{tier: Admin, priority: 1, subject: {written}}}"));
        assert!(findings.is_empty(), "{written}: {findings:?}");
        assert_eq!(policy.unwrap().subject, read, "{written}");
        assert_eq!(valid_rule(&format!("to: [{written}]")).0, [ClusterPeer::Pods(read)], "{written}");
    }
}

#[test]
fn a_policy_that_has_no_place_or_no_subject_is_not_applied_and_named_as_an_error() {
    let subject = "subject: {namespaces: {}}";
    for (spec, place, problem) in [
        (format!("{{priority: 1, {subject}}}"), "spec", "`tier` is missing"),
        (format!("{{tier: null, priority: 1, {subject}}}"), "spec", "`tier` is missing"),
        (format!("{{tier: admin, priority: 1, {subject}}}"), "spec.tier", "unknown tier \"admin\""),
        (format!("{{tier: 1, priority: 1, {subject}}}"), "spec.tier", "unknown tier 1"),
        (format!("{{tier: Admin, {subject}}}"), "spec", "`priority` is missing"),
        (format!("{{tier: Admin, priority: null, {subject}}}"), "spec", "`priority` is missing"),
        (format!("{{tier: Admin, priority: 1001, {subject}}}"), "spec.priority", "from 0 to 1000"),
        (format!("{{tier: Admin, priority: -1, {subject}}}"), "spec.priority", "from 0 to 1000"),
        (format!("{{tier: Admin, priority: 65536, {subject}}}"), "spec.priority", "from 0 to 1000"),
        (format!("{{tier: Admin, priority: 1.5, {subject}}}"), "spec.priority", "from 0 to 1000"),
        (format!("{{tier: Admin, priority: '1', {subject}}}"), "spec.priority", "from 0 to 1000"),
        (format!("{{tier: Admin, priority: 1, {subject}, egres: []}}"), "spec.egres", "did you mean `egress`?"),
        (format!("{{tier: Admin, priority: 1, {subject}, when: now}}"), "spec.when", "unknown field `when`"),
        (format!("{{tier: Admin, priority: 1, {subject}, ingress: {{}}}}"), "spec.ingress", "must be a list"),
        (format!("{{tier: Admin, priority: 1, {subject}, egress: deny}}"), "spec.egress", "must be a list"),
        ("[]".to_owned(), "spec", "must be a map"),
        ("web".to_owned(), "spec", "must be a map"),
    ] {
        not_applied(&spec, place, problem);
    }
    for (subject, field, problem) in [
        ("null", "", "`subject` is missing"),
        ("{}", ".subject", "an empty subject"),
        ("[]", ".subject", "must be a map"),
        ("{namespaces: null}", ".subject", "an empty subject"),
        ("{namespaces: {}, pods: {podSelector: {}}}", ".subject", "cannot stand beside"),
        ("{serviceAccounts: {}}", ".subject.serviceAccounts", "unknown field"),
        ("{namespaces: {}, serviceAccounts: {}}", ".subject.serviceAccounts", "unknown field"),
        ("{podSelector: {}}", ".subject.podSelector", "unknown field"),
        ("{namespaces: {matchLabels: {a: 1}}}", ".subject.namespaces.matchLabels.a", "quote it"),
        ("{namespaces: {matchLabels: {a: null}}}", ".subject.namespaces.matchLabels.a", "not null"),
        ("{namespaces: {app: web}}", ".subject.namespaces.app", "unknown field"),
        ("{pods: {}}", ".subject.pods", "`podSelector` is missing"),
        ("{pods: {podSelector: null}}", ".subject.pods", "`podSelector` is missing"),
        ("{pods: {namespaceSelector: {}}}", ".subject.pods", "`podSelector` is missing"),
        ("{pods: {podSelector: {}, ns: {}}}", ".subject.pods.ns", "unknown field"),
        (
            "{pods: {podSelector: {matchExpressions: [{key: a, operator: notIn, values: [b]}]}}}",
            ".subject.pods.podSelector.matchExpressions[0].operator",
            "unknown operator \"notIn\", expected NotIn",
        ),
        (
            "{pods: {podSelector: {matchExpressions: [{key: a, operator: In}]}}}",
            ".subject.pods.podSelector.matchExpressions[0]",
            "needs at least one",
        ),
    ] {
        not_applied(&format!("{{tier: Admin, priority: 1, subject: {subject}}}"), &format!("spec{field}"), problem);
    }
    let reading =
        read(&format!("apiVersion: {VERSION}\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspce: {{}}\n"));
    assert_eq!((reading.unreadable.len(), reading.diagnostics.len()), (1, 1));
    let reading = read(&format!("apiVersion: {VERSION}\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\n"));
    assert_eq!((reading.unreadable.len(), reading.diagnostics.len()), (1, 1));
}

#[track_caller]
fn not_applied(spec: &str, place: &str, problem: &str) {
    let (policy, findings) = cluster_policy(spec);
    assert_eq!(policy, None, "{spec}");
    // What lacks a field is named by the line of its own key or brace.
    let is_it = |found: &String| {
        found.starts_with("t.yaml:4: error: ")
            && found.contains(&format!(": ClusterNetworkPolicy p: {place}: "))
            && found.contains(problem)
            && found.ends_with("; the policy is not applied")
    };
    assert!(findings.iter().any(is_it), "{spec}: {findings:?}");
}

#[test]
fn every_rule_keeps_its_place_and_one_that_cannot_be_read_says_why() {
    let (policy, findings) = cluster_policy(
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{namespaces: {}}]}, \
         {action: Deny, to: [{}]}, null, {action: Pass, to: [{namespaces: {}}]}]}",
    );
    let read: Vec<_> = policy
        .unwrap()
        .egress
        .into_iter()
        .map(|rule| (rule.action, matches!(rule.matches, ClusterMatch::Unreadable(_))))
        .collect();
    let expected = [(Action::Accept, false), (Action::Deny, true), (Action::Deny, true), (Action::Pass, false)];
    assert_eq!(read, expected);
    assert_eq!(findings.len(), 2, "{findings:?}");
}

#[test]
fn an_unknown_action_denies_what_the_rule_matches() {
    for (action, problem) in [
        ("action: Allow", "spec.egress[0].action: unknown action \"Allow\""),
        ("action: accept", "spec.egress[0].action: unknown action \"accept\""),
        ("action: true", "spec.egress[0].action: unknown action true"),
        ("action: null", "spec.egress[0]: `action` is missing"),
        ("name: a", "spec.egress[0]: `action` is missing"),
    ] {
        let (read, findings) = rule(Direction::Egress, &format!("{{{action}, to: [{{namespaces: {{}}}}]}}"));
        assert_eq!(read.action, Action::Deny, "{action}");
        assert!(matches!(read.matches, ClusterMatch::Of { .. }), "{action}: {read:?}");
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains(problem) && findings[0].contains("warning: "), "{findings:?}");
        assert!(findings[0].ends_with("; the rule denies what it matches"), "{findings:?}");
    }
}

#[test]
fn what_follows_from_a_rule_that_cannot_be_read_depends_on_its_action() {
    for (action, read_as, consequence) in [
        ("Accept", Action::Accept, "; the rule matches nothing"),
        ("Deny", Action::Deny, "; the rule denies everything of its direction"),
        ("Pass", Action::Pass, "; the rule denies everything of its direction"),
        ("Log", Action::Deny, "; the rule denies everything of its direction"),
    ] {
        for direction in [Direction::Ingress, Direction::Egress] {
            let (read, findings) = rule(direction, &format!("{{action: {action}, from: [], to: []}}"));
            assert_eq!(read.action, read_as, "{action}");
            let ClusterMatch::Unreadable(problem) = read.matches else { panic!("{action}") };
            assert!(problem.contains("unknown field"), "{problem}");
            assert!(findings.iter().all(|found| found.starts_with("t.yaml:4: warning: ")), "{findings:?}");
            assert!(findings.iter().any(|found| found.ends_with(consequence)), "{action}: {findings:?}");
        }
    }
}

/// Everything that makes a rule unreadable, with the field to blame and the problem, for egress.
const UNREADABLE: &[(&str, &str, &str)] = &[
    ("", "", "`to` is missing"),
    ("to: null", "", "`to` is missing"),
    ("to: []", ".to", "an empty list, expected at least one peer"),
    ("to: {namespaces: {}}", ".to", "must be a list"),
    ("from: [{namespaces: {}}]", ".from", "unknown field `from`, did you mean `to`?"),
    ("to: [{namespaces: {}}], from: null", ".from", "unknown field `from`, did you mean `to`?"),
    ("to: [{namespaces: {}}], ports: []", ".ports", "unknown field `ports`"),
    ("to: [{namespaces: {}}], protocol: []", ".protocol", "did you mean `protocols`?"),
    ("to: [{namespaces: {}}], schedule: {}", ".schedule", "unknown field `schedule`"),
    // Peers.
    ("to: [null]", ".to[0]", "must be a map"),
    ("to: [web]", ".to[0]", "must be a map"),
    ("to: [{}]", ".to[0]", "an empty peer"),
    ("to: [{namespaces: null}]", ".to[0]", "an empty peer"),
    ("to: [{serviceAccounts: {}}]", ".to[0].serviceAccounts", "unknown field"),
    ("to: [{namespaces: {}}, {serviceAccounts: {}}]", ".to[1].serviceAccounts", "unknown field"),
    ("to: [{namespaces: {}, serviceAccounts: null}]", ".to[0].serviceAccounts", "unknown field"),
    ("to: [{namespaces: {}, pods: {podSelector: {}}}]", ".to[0]", "cannot stand beside"),
    ("to: [{namespaces: {}, networks: [10.0.0.0/8]}]", ".to[0]", "cannot stand beside"),
    ("to: [{podSelector: {}}]", ".to[0].podSelector", "unknown field"),
    ("to: [{ipBlock: {cidr: 10.0.0.0/8}}]", ".to[0].ipBlock", "unknown field"),
    ("to: [{pods: {}}]", ".to[0].pods", "`podSelector` is missing"),
    ("to: [{pods: {podSelector: null}}]", ".to[0].pods", "`podSelector` is missing"),
    ("to: [{pods: []}]", ".to[0].pods", "must be a map"),
    ("to: [{pods: {podSelector: {}, name: a}}]", ".to[0].pods.name", "unknown field"),
    ("to: [{domainNames: [example.org]}]", ".to[0].domainNames", "not supported"),
    ("to: [{domainNames: []}]", ".to[0].domainNames", "not supported"),
    // Selectors.
    ("to: [{namespaces: all}]", ".to[0].namespaces", "must be a map"),
    ("to: [{namespaces: {a: b}}]", ".to[0].namespaces.a", "unknown field"),
    ("to: [{namespaces: {matchLabels: [a]}}]", ".to[0].namespaces.matchLabels", "must be a map"),
    ("to: [{namespaces: {matchLabels: {a: 1}}}]", ".to[0].namespaces.matchLabels.a", "quote it"),
    ("to: [{namespaces: {matchLabels: {a: null}}}]", ".to[0].namespaces.matchLabels.a", "not null"),
    ("to: [{namespaces: {matchLabels: {a: b c}}}]", ".to[0].namespaces.matchLabels.a", "not a label value"),
    ("to: [{namespaces: {matchLabels: {a b: c}}}]", ".to[0].namespaces.matchLabels.a b", "not a label key"),
    ("to: [{nodes: {matchLabels: {-a: c}}}]", ".to[0].nodes.matchLabels.-a", "not a label key"),
    (
        "to: [{nodes: {matchExpressions: [{key: a, operator: exists}]}}]",
        ".to[0].nodes.matchExpressions[0].operator",
        "unknown operator \"exists\", expected Exists",
    ),
    (
        "to: [{pods: {podSelector: {matchExpressions: [{key: a, operator: In}]}}}]",
        ".to[0].pods.podSelector.matchExpressions[0]",
        "needs at least one",
    ),
    (
        "to: [{pods: {podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [null]}]}}}]",
        ".to[0].pods.podSelector.matchExpressions[0].values[0]",
        "not null",
    ),
    (
        "to: [{pods: {podSelector: {}, namespaceSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}}}]",
        ".to[0].pods.namespaceSelector.matchExpressions[0]",
        "takes no `values`",
    ),
    // Networks.
    ("to: [{networks: []}]", ".to[0].networks", "an empty list"),
    ("to: [{networks: 10.0.0.0/8}]", ".to[0].networks", "must be a list"),
    ("to: [{networks: [10.0.0.0/8, ten]}]", ".to[0].networks[1]", "is not a block"),
    ("to: [{networks: [10.0.0.0]}]", ".to[0].networks[0]", "no prefix length"),
    ("to: [{networks: [10.0.0.0/33]}]", ".to[0].networks[0]", "prefix length"),
    ("to: [{networks: ['::ffff:10.0.0.0/8']}]", ".to[0].networks[0]", "at least 96"),
    ("to: [{networks: [null]}]", ".to[0].networks[0]", "must be a block"),
    ("to: [{networks: [{cidr: 10.0.0.0/8}]}]", ".to[0].networks[0]", "must be a block"),
    // Protocols.
    ("to: [{namespaces: {}}], protocols: []", ".protocols", "an empty list, expected at least one protocol"),
    ("to: [{namespaces: {}}], protocols: {tcp: {}}", ".protocols", "must be a list"),
    ("to: [{namespaces: {}}], protocols: [null]", ".protocols[0]", "must be a map"),
    ("to: [{namespaces: {}}], protocols: [TCP]", ".protocols[0]", "must be a map"),
    ("to: [{namespaces: {}}], protocols: [{}]", ".protocols[0]", "an empty protocol entry"),
    ("to: [{namespaces: {}}], protocols: [{tcp: null}]", ".protocols[0]", "an empty protocol entry"),
    ("to: [{namespaces: {}}], protocols: [{icmp: {}}]", ".protocols[0].icmp", "unknown field"),
    ("to: [{namespaces: {}}], protocols: [{TCP: {destinationPort: {number: 1}}}]", ".protocols[0].TCP", "`tcp`"),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]",
        ".protocols[0]",
        "cannot stand beside",
    ),
    ("to: [{namespaces: {}}], protocols: [{tcp: {}}]", ".protocols[0].tcp", "`destinationPort` is missing"),
    ("to: [{namespaces: {}}], protocols: [{tcp: []}]", ".protocols[0].tcp", "must be a map"),
    ("to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: null}}]", ".protocols[0].tcp", "is missing"),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}, sourcePort: {number: 2}}}]",
        ".protocols[0].tcp.sourcePort",
        "unknown field",
    ),
    ("to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: 80}}]", ".protocols[0].tcp.destinationPort", "a map"),
    ("to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]", ".protocols[0].tcp.destinationPort", "empty"),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]",
        ".protocols[0].tcp.destinationPort",
        "cannot stand beside",
    ),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {name: http}}}]",
        ".protocols[0].tcp.destinationPort.name",
        "unknown field",
    ),
    (
        "to: [{namespaces: {}}], protocols: [{destinationNamedPort: ''}]",
        ".protocols[0].destinationNamedPort",
        "the name",
    ),
    (
        "to: [{namespaces: {}}], protocols: [{destinationNamedPort: 80}]",
        ".protocols[0].destinationNamedPort",
        "the name",
    ),
    (
        "to: [{namespaces: {}}, {networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]",
        ".protocols",
        "is for pods alone",
    ),
    ("to: [{nodes: {}}], protocols: [{destinationNamedPort: web}]", ".protocols", "is for pods alone"),
    (
        "to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {number: 1}}}, {destinationNamedPort: web}]",
        ".protocols",
        "is for pods alone",
    ),
];

/// Ports in `destinationPort` that are none.
const UNREADABLE_PORTS: &[(&str, &str, &str)] = &[
    ("number: 0", ".number", "outside 1 to 65535"),
    ("number: -1", ".number", "outside 1 to 65535"),
    ("number: 65536", ".number", "outside 1 to 65535"),
    ("number: 4295032831", ".number", "outside 1 to 65535"),
    ("number: 80.5", ".number", "must be a number"),
    ("number: '80'", ".number", "must be a number"),
    ("number: true", ".number", "must be a number"),
    ("range: null", "", "an empty port"),
    ("range: []", ".range", "must be a map"),
    ("range: {}", ".range", "`start` and `end` are required"),
    ("range: {start: 1}", ".range", "`start` and `end` are required"),
    ("range: {start: 1, end: null}", ".range", "`start` and `end` are required"),
    ("range: {start: 2, end: 2}", ".range.end", "end 2 is not above start 2"),
    ("range: {start: 3, end: 2}", ".range.end", "end 2 is not above start 3"),
    ("range: {start: 0, end: 2}", ".range.start", "outside 1 to 65535"),
    ("range: {start: 1, end: 65536}", ".range.end", "outside 1 to 65535"),
    ("range: {start: a, end: 2}", ".range.start", "must be a number"),
    ("range: {start: 1, end: 2, step: 1}", ".range.step", "unknown field"),
];

#[test]
fn a_rule_that_holds_what_nobody_can_read_is_unreadable_and_says_why() {
    for (content, field, problem) in UNREADABLE {
        unreadable(Direction::Egress, content, field, problem);
    }
    for protocol in ["tcp", "udp", "sctp"] {
        for (port, field, problem) in UNREADABLE_PORTS {
            let content =
                format!("to: [{{namespaces: {{}}}}], protocols: [{{{protocol}: {{destinationPort: {{{port}}}}}}}]");
            let field = format!(".protocols[0].{protocol}.destinationPort{field}");
            unreadable(Direction::Egress, &content, &field, problem);
        }
    }
}

#[test]
fn a_peer_of_an_ingress_rule_names_pods() {
    for (content, field, problem) in [
        ("from: [{networks: [10.0.0.0/8]}]", ".from[0].networks", "is for egress alone"),
        ("from: [{networks: []}]", ".from[0].networks", "is for egress alone"),
        ("from: [{nodes: {}}]", ".from[0].nodes", "is for egress alone"),
        ("from: [{domainNames: [example.org]}]", ".from[0].domainNames", "is for egress alone"),
        ("to: [{namespaces: {}}]", ".to", "unknown field `to`, did you mean `from`?"),
        ("from: []", ".from", "an empty list"),
        ("", "", "`from` is missing"),
    ] {
        unreadable(Direction::Ingress, content, field, problem);
    }
    let (read, findings) =
        rule(Direction::Ingress, "{action: Deny, from: [{namespaces: {}}, {pods: {podSelector: {}}}]}");
    assert!(findings.is_empty(), "{findings:?}");
    let ClusterMatch::Of { peers, ports: Ports::Any } = read.matches else { panic!("{read:?}") };
    assert_eq!(peers.len(), 2);
}

/// Checks a rule with each action: it is unreadable, and this field is blamed for it.
#[track_caller]
fn unreadable(direction: Direction, content: &str, field: &str, problem: &str) {
    let list = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    for action in ["Accept", "Deny", "Pass"] {
        let (read, findings) = rule(direction, &format!("{{action: {action}, name: only, {content}}}"));
        assert_eq!((read.action.to_string(), read.name.as_deref()), (action.to_owned(), Some("only")), "{content}");
        let ClusterMatch::Unreadable(reason) = &read.matches else { panic!("{content}: {read:?}") };
        let place = format!("t.yaml:4: warning: ClusterNetworkPolicy p: spec.{list}[0]{field}: ");
        let is_it = |found: &String| found.starts_with(&place) && found.contains(problem);
        assert!(findings.iter().any(is_it), "{content}: {findings:?}");
        assert!(findings.iter().any(|found| found.contains(&**reason)), "{reason}: {findings:?}");
    }
}

#[test]
fn every_mistake_in_a_rule_is_named_once() {
    let (_, findings) = rule(
        Direction::Egress,
        "{action: Nay, when: now, to: [{}, {networks: [x, y]}], protocols: [{tcp: {}}, {sctp: {destinationPort: {number: 0}}}]}",
    );
    assert_eq!(findings.len(), 7, "{findings:#?}");
}

#[test]
fn networks_are_read_as_ever_and_in_order() {
    for (written, read) in [
        ("[10.0.0.0/8]", &["10.0.0.0/8"][..]),
        ("[10.0.0.0/8, 010.0.0.0/8, '::ffff:10.0.0.0/104']", &["10.0.0.0/8"]),
        ("['fd00::/8', 192.168.0.0/16, 10.0.0.0/8]", &["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"]),
        ("[0.0.0.0/0, '::/0', 10.0.0.1/32]", &["0.0.0.0/0", "10.0.0.1/32", "::/0"]),
    ] {
        let (peers, _) = valid_rule(&format!("to: [{{networks: {written}}}]"));
        let [ClusterPeer::Networks(networks)] = &peers[..] else { panic!("{peers:?}") };
        assert_eq!(networks.iter().map(ToString::to_string).collect::<Vec<_>>(), read, "{written}");
    }
}

#[test]
fn a_network_written_as_one_of_its_addresses_is_noted() {
    let (read, findings) = rule(Direction::Egress, "{action: Deny, to: [{networks: [10.1.2.3/8, 10.1.2.3/32]}]}");
    let ClusterMatch::Of { peers, .. } = read.matches else { panic!("it can be read") };
    assert_eq!(peers, [ClusterPeer::Networks(vec!["10.0.0.0/8".parse().unwrap(), "10.1.2.3/32".parse().unwrap()])]);
    let [note] = &findings[..] else { panic!("{findings:?}") };
    assert!(note.ends_with("10.1.2.3 is one address of the block 10.0.0.0/8, all of which is meant"), "{note}");
}

#[test]
fn protocols_are_ports_ranges_and_names() {
    use PortProtocol::{Sctp, Tcp, Udp};
    for (written, read) in [
        ("{tcp: {destinationPort: {number: 1}}}", PortEntry::Range { protocol: Tcp, first: 1, last: 1 }),
        ("{udp: {destinationPort: {number: 65535}}}", PortEntry::Range { protocol: Udp, first: 65535, last: 65535 }),
        (
            "{sctp: {destinationPort: {range: {start: 1, end: 65535}}}}",
            PortEntry::Range { protocol: Sctp, first: 1, last: 65535 },
        ),
        (
            "{tcp: {destinationPort: {number: null, range: {start: 80, end: 81}}}, udp: null}",
            PortEntry::Range { protocol: Tcp, first: 80, last: 81 },
        ),
        ("{destinationNamedPort: web}", PortEntry::NamedAny { name: "web".into() }),
        ("{destinationNamedPort: 'Any Text!'}", PortEntry::NamedAny { name: "Any Text!".into() }),
    ] {
        let (_, ports) = valid_rule(&format!("to: [{{namespaces: {{}}}}], protocols: [{written}]"));
        assert_eq!(ports, Ports::Of(vec![read]), "{written}");
    }
    assert_eq!(valid_rule("to: [{namespaces: {}}]").1, Ports::Any);
    let (_, ports) = valid_rule(
        "to: [{networks: [10.0.0.0/8]}, {nodes: {}}], protocols: [{udp: {destinationPort: {number: 2}}}, \
         {tcp: {destinationPort: {number: 1}}}]",
    );
    let Ports::Of(entries) = ports else { panic!() };
    assert_eq!(entries.iter().map(ToString::to_string).collect::<Vec<_>>(), ["2/UDP", "1/TCP"]);
}

#[test]
fn a_null_that_widens_a_rule_is_read_as_absent_and_named() {
    for (content, field, meaning) in [
        ("to: [{namespaces: {}}], protocols: null", "protocols", "every protocol and port"),
        ("to: [{pods: {podSelector: {}, namespaceSelector: null}}]", "to[0].pods.namespaceSelector", "every namespace"),
    ] {
        let (read, findings) = rule(Direction::Egress, &format!("{{action: Accept, {content}}}"));
        let ClusterMatch::Of { peers, ports: Ports::Any } = read.matches else { panic!("{content}") };
        let everything = PodSet { namespaces: Selector::everything(), pods: Selector::everything() };
        assert_eq!(peers, [ClusterPeer::Pods(everything)]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        let start =
            format!("t.yaml:4: warning: ClusterNetworkPolicy p: spec.egress[0].{field}: null is read as absent");
        assert!(findings[0].starts_with(&start) && findings[0].contains(meaning), "{findings:?}");
    }
}

#[test]
fn names_and_lengths_are_never_in_the_way() {
    let name = "n".repeat(101);
    for (name, read, finding) in [
        ("web", Some("web"), None),
        ("null", None, None),
        ("''", Some(""), None),
        ("1", None, Some("warning: ClusterNetworkPolicy p: spec.egress[0].name: must be text, not 1")),
        ("\"a\\e[2Jb\"", Some("a [2Jb"), None),
        (&*name, Some(&*name), Some("note: ClusterNetworkPolicy p: spec.egress[0].name: longer than the 100")),
    ] {
        let (read_rule, findings) =
            rule(Direction::Egress, &format!("{{action: Deny, name: {name}, to: [{{namespaces: {{}}}}]}}"));
        assert!(matches!(read_rule.matches, ClusterMatch::Of { .. }), "{name}");
        assert_eq!(read_rule.name.as_deref(), read, "{name}");
        assert_eq!(findings.len(), usize::from(finding.is_some()), "{findings:?}");
        assert!(findings.iter().all(|found| found.contains(finding.unwrap())), "{findings:?}");
    }
    let rules = vec!["{action: Accept, to: [{namespaces: {}}]}"; 26].join(", ");
    let (policy, findings) =
        cluster_policy(&format!("{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, egress: [{rules}]}}"));
    assert_eq!(policy.unwrap().egress.len(), 26);
    assert_eq!(
        findings,
        [
            "t.yaml:4: note: ClusterNetworkPolicy p: spec.egress: 26 items are more than the 25 that the API server takes; \
          all are read"
        ]
    );
}

#[test]
fn versions_of_the_group_are_read_and_other_groups_are_not_ours() {
    let body = "kind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}}\n";
    for version in ["policy.networking.k8s.io/v1beta1", "policy.networking.k8s.io/v1alpha2"] {
        let reading = read(&format!("apiVersion: {version}\n{body}"));
        assert_eq!((reading.objects.len(), reading.diagnostics.len()), (1, 0), "{version}");
    }
    assert_eq!(
        (read(body).objects.len(), read(body).diagnostics.len()),
        (1, 0),
        "as with every kind, it may be left out"
    );
    for version in ["policy.networking.k8s.io/v1", "policy.networking.k8s.io/v1alpha1", "v1"] {
        let reading = read(&format!("apiVersion: {version}\n{body}"));
        assert_eq!(reading.objects.len(), 1, "{version}");
        assert_eq!(
            reading.diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [format!(
                "t.yaml:1: warning: ClusterNetworkPolicy p: apiVersion: expected \"policy.networking.k8s.io/v1beta1\" or \
                 \"policy.networking.k8s.io/v1alpha2\", not \"{version}\"; the object is read as ClusterNetworkPolicy of \
                 policy.networking.k8s.io/v1beta1"
            )]
        );
    }
    // The items of a list are of its group, where they do not say it themselves.
    for (group, objects, not_enforced) in
        [("policy.networking.k8s.io/v1beta1", 1, 0), ("networking.k8s.aws/v1alpha1", 0, 1)]
    {
        let item = body.replacen("kind: ClusterNetworkPolicy\n", "", 1).replace('\n', "\n  ");
        let reading = read(&format!("apiVersion: {group}\nkind: ClusterNetworkPolicyList\nitems:\n- {item}"));
        assert_eq!((reading.objects.len(), reading.not_enforced.len()), (objects, not_enforced), "{group}");
        assert!(reading.diagnostics.is_empty() && reading.unreadable.is_empty());
    }
}

#[test]
fn a_policy_without_a_name_is_left_out() {
    for metadata in ["{}", "{name: null}", "{name: ''}", "{name: 1}"] {
        let reading =
            read(&format!("apiVersion: {VERSION}\nkind: ClusterNetworkPolicy\nmetadata: {metadata}\nspec: {{}}\n"));
        assert!(reading.objects.is_empty() && reading.unreadable.is_empty());
        assert!(reading.diagnostics.iter().any(|found| found.severity == Severity::Error), "{metadata}");
    }
}
