//! ClusterNetworkPolicy: what is read, and what becomes of every form that the API server would not store.

use npolicy_common::Direction;

use super::*;
use crate::model::{Action, ClusterMatch, ClusterPeer, ClusterPolicy, ClusterRule, PodSet, Ports, Selector, Tier};

const VERSION: &str = "policy.networking.k8s.io/v1beta1";

/// Reads a policy with this spec, in YAML's one-line form, from a file and as the API hands it over; also gives the
/// findings.
fn cluster_policy(spec: &str) -> (Option<ClusterPolicy>, Vec<String>) {
    let yaml = format!("apiVersion: {VERSION}\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n");
    let reading = read(&yaml);
    let json: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
    let from_api = read_document(&json.into(), None);
    let objects = |reading: &Reading| reading.objects.iter().map(|(object, _)| object.clone()).collect::<Vec<_>>();
    assert_eq!(objects(&reading), objects(&from_api), "{spec}");
    // JSON maps are sorted by key, so only the set of findings is the same.
    let messages = |reading: &Reading| {
        let all = reading.diagnostics.iter().map(|found| (found.field.clone(), found.severity));
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    };
    assert_eq!(messages(&reading), messages(&from_api), "{spec}");
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
