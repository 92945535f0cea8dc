//! What a manifest means, one row of the API's rules after another.

use std::path::Path;
use std::sync::Arc;

use npolicy_common::Direction;

use super::*;

mod cluster_policy;
mod mistakes;
mod service;

use crate::model::{
    Namespaces, NetworkPolicy, Peer, Peers, Phase, Pod, PodNetwork, PortEntry, PortProtocol, Ports, Rule,
};

fn read(yaml: &str) -> Reading {
    let tree = Tree::from_yaml(yaml);
    let file: Arc<Path> = Path::new("t.yaml").into();
    read_document(&tree, Some(&file))
}

/// The value as the API hands it over.
fn as_json(tree: &Tree) -> serde_json::Value {
    match &tree.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Integer(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(value) => value.as_str().into(),
        Value::List(items) => items.iter().map(as_json).collect(),
        Value::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), as_json(&entry.value))).collect(),
    }
}

/// Reads a document from a file and as the API hands it over: the objects and the fields that are blamed are the same.
#[track_caller]
fn read_both(yaml: &str) -> Reading {
    let reading = read(yaml);
    let from_api = read_document(&as_json(&Tree::from_yaml(yaml)).into(), None);
    let objects = |reading: &Reading| reading.objects.iter().map(|(object, _)| object.clone()).collect::<Vec<_>>();
    assert_eq!(objects(&reading), objects(&from_api), "{yaml}");
    assert_eq!((&reading.partial, &reading.backings), (&from_api.partial, &from_api.backings), "{yaml}");
    // The API's maps are in the order of their keys, and so are the findings.
    let blamed = |reading: &Reading| {
        let mut fields: Vec<_> =
            reading.diagnostics.iter().map(|found| (found.field.clone(), found.severity)).collect();
        fields.sort();
        fields
    };
    assert_eq!(blamed(&reading), blamed(&from_api), "{yaml}");
    reading
}

/// Reads the spec of a policy, in YAML's one-line form; also gives the findings.
fn policy(spec: &str) -> (Option<NetworkPolicy>, Vec<String>) {
    let Reading { objects, unreadable, diagnostics, .. } =
        read(&format!("kind: NetworkPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {spec}\n"));
    let policy = objects.into_iter().map(|(object, _)| match object {
        Object::Policy(policy) => policy,
        other => panic!("a NetworkPolicy, not {other:?}"),
    });
    let policy = policy.last();
    assert_eq!(policy.is_none(), unreadable.len() == 1, "a policy that is not enforced is named: {spec}");
    (policy, diagnostics.iter().map(ToString::to_string).collect())
}

fn valid_policy(spec: &str) -> NetworkPolicy {
    let (policy, findings) = policy(spec);
    assert!(findings.is_empty(), "{spec}: {findings:?}");
    policy.expect("a valid policy is enforced")
}

fn ingress_rule(rule: &str) -> (Rule, Vec<String>) {
    let (policy, findings) = policy(&format!("{{ingress: [{rule}]}}"));
    let mut rules = policy.unwrap().ingress.unwrap();
    assert_eq!(rules.len(), 1);
    (rules.remove(0), findings)
}

fn only_peer(peer: &str) -> (Peer, Vec<String>) {
    match ingress_rule(&format!("{{from: [{peer}]}}")) {
        (Rule::Accept { peers: Peers::Of(mut peers), ports: Ports::Any }, findings) if peers.len() == 1 => {
            (peers.remove(0), findings)
        }
        (other, _) => panic!("one peer, not {other:?}"),
    }
}

fn only_entry(entry: &str) -> (PortEntry, Vec<String>) {
    match ingress_rule(&format!("{{ports: [{entry}]}}")) {
        (Rule::Accept { peers: Peers::Any, ports: Ports::Of(mut entries) }, findings) if entries.len() == 1 => {
            (entries.remove(0), findings)
        }
        (other, _) => panic!("one port entry, not {other:?}"),
    }
}

#[test]
fn directions_default_as_the_api_server_has_it() {
    for (spec, isolates) in [
        ("{}", [true, false]),
        ("{policyTypes: null}", [true, false]),
        ("{policyTypes: []}", [true, false]),
        ("{egress: null}", [true, false]),
        ("{egress: []}", [true, false]),
        ("{policyTypes: [], egress: []}", [true, false]),
        ("{egress: [{}]}", [true, true]),
        ("{policyTypes: [], egress: [{}]}", [true, true]),
        ("{ingress: [{}]}", [true, false]),
        ("{policyTypes: [Egress]}", [false, true]),
        ("{policyTypes: [Egress], ingress: [{}]}", [false, true]),
        ("{policyTypes: [Ingress], egress: [{}]}", [true, false]),
        ("{policyTypes: [Ingress, Ingress]}", [true, false]),
        ("{policyTypes: [Egress, Ingress]}", [true, true]),
    ] {
        let policy = valid_policy(spec);
        let directions = [Direction::Ingress, Direction::Egress];
        assert_eq!(directions.map(|direction| policy.rules(direction).is_some()), isolates, "{spec}");
    }
}

#[test]
fn unknown_policy_types_count_for_nothing() {
    for (types, isolates, findings) in [
        ("[Ingres]", [true, true], 2),
        ("[Ingress, Both, Egress, Ingress]", [true, true], 1),
        ("[ingress, Egress]", [false, true], 1),
        ("Ingress", [true, true], 1),
        ("[null]", [true, true], 2),
    ] {
        let (policy, found) = policy(&format!("{{policyTypes: {types}}}"));
        let policy = policy.unwrap();
        assert_eq!([policy.ingress.is_some(), policy.egress.is_some()], isolates, "{types}");
        assert_eq!(found.len(), findings, "{types}: {found:?}");
    }
}

#[test]
fn absent_null_and_empty_mean_what_the_api_says() {
    assert_eq!(valid_policy("{}").ingress, Some(vec![]));
    assert_eq!(valid_policy("{ingress: null}").ingress, Some(vec![]));
    assert_eq!(valid_policy("{ingress: []}").ingress, Some(vec![]));
    let anything = Rule::Accept { peers: Peers::Any, ports: Ports::Any };
    for rule in ["{}", "{from: null}", "{from: []}", "{ports: null}", "{from: [], ports: []}"] {
        assert_eq!(ingress_rule(rule), (anything.clone(), vec![]), "{rule}");
    }
    for subject in ["{}", "{podSelector: null}", "{podSelector: {}}", "{podSelector: {matchLabels: {}}}"] {
        assert_eq!(valid_policy(subject).subject, crate::model::Selector::everything(), "{subject}");
    }
    assert_eq!(only_entry("{}").0, PortEntry::All(PortProtocol::Tcp));
    assert_eq!(only_entry("{port: null, endPort: null, protocol: null}").0, PortEntry::All(PortProtocol::Tcp));
}

#[test]
fn a_peer_is_what_its_fields_say_together() {
    for (peer, own, selectors) in [
        ("{podSelector: {}}", true, [0, 0]),
        ("{podSelector: {matchLabels: {a: b}}}", true, [0, 1]),
        ("{namespaceSelector: {}}", false, [0, 0]),
        ("{namespaceSelector: {matchLabels: {a: b}}}", false, [1, 0]),
        ("{namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {a: b, c: d}}}", false, [1, 2]),
        ("{namespaceSelector: {}, podSelector: {}}", false, [0, 0]),
        ("{podSelector: {matchLabels: {a: b}}, namespaceSelector: null, ipBlock: null}", true, [0, 1]),
    ] {
        let (Peer::Pods(read), findings) = only_peer(peer) else { panic!("{peer} names pods") };
        assert!(findings.is_empty());
        let in_namespaces = match &read.namespaces {
            Namespaces::Own => 0,
            Namespaces::Matching(selector) => selector.requirements().len(),
        };
        assert_eq!(read.namespaces == Namespaces::Own, own, "{peer}");
        assert_eq!([in_namespaces, read.pods.requirements().len()], selectors, "{peer}");
    }
}

#[test]
fn a_broken_peer_matches_nothing_and_says_why() {
    for (peer, field, problem) in [
        ("{}", "", "an empty peer"),
        ("null", "", "must be a map"),
        ("{podSelector: null}", "", "an empty peer"),
        ("web", "", "must be a map"),
        ("{podSelectr: {}}", ".podSelectr", "did you mean `podSelector`?"),
        ("{podSelector: {}, namespaceselector: {}}", ".namespaceselector", "did you mean `namespaceSelector`?"),
        ("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}", "", "cannot stand beside a selector"),
        ("{ipBlock: {}}", ".ipBlock", "`cidr` is missing"),
        ("{ipBlock: {cidr: 10.0.0.0}}", ".ipBlock.cidr", "no prefix length"),
        ("{ipBlock: {cidr: 10.0.0.0/8, excpt: [10.1.0.0/16]}}", ".ipBlock.excpt", "did you mean `except`?"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, ten]}}", ".ipBlock.except[1]", "is not a block"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}", ".ipBlock.except", "must be a list"),
        ("{podSelector: {matchLabel: {a: b}}}", ".podSelector.matchLabel", "did you mean `matchLabels`?"),
        ("{podSelector: {matchLabels: {a: 1}}}", ".podSelector.matchLabels.a", "quote it"),
        ("{podSelector: {matchLabels: {a: true}}}", ".podSelector.matchLabels.a", "quote it"),
        ("{podSelector: {matchLabels: {a b: c}}}", ".podSelector.matchLabels.a b", "is not a label key"),
        ("{podSelector: {matchLabels: {a: b c}}}", ".podSelector.matchLabels.a", "is not a label value"),
        ("{podSelector: {matchLabels: [a]}}", ".podSelector.matchLabels", "must be a map"),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}",
            ".podSelector.matchExpressions[0].operator",
            "unknown operator \"in\", expected In",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
            ".podSelector.matchExpressions[0]",
            "needs at least one",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}",
            ".podSelector.matchExpressions[0]",
            "needs at least one",
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
            ".namespaceSelector.matchExpressions[0]",
            "takes no `values`",
        ),
        (
            "{podSelector: {matchExpressions: [{operator: Exists}]}}",
            ".podSelector.matchExpressions[0]",
            "`key` and `operator` are required",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Exists, value: b}]}}",
            ".podSelector.matchExpressions[0].value",
            "did you mean `values`?",
        ),
    ] {
        let (read, findings) = only_peer(peer);
        assert!(matches!(read, Peer::Broken(_)), "{peer}: {read:?}");
        let place = format!("t.yaml:3: warning: NetworkPolicy n/p: spec.ingress[0].from[0]{field}: ");
        assert!(
            findings.iter().any(|found| found.starts_with(&place) && found.contains(problem)),
            "{peer}: {findings:?}"
        );
    }
}

#[test]
fn port_entries_are_numbers_ranges_names_or_whole_protocols() {
    use PortProtocol::{Sctp, Tcp, Udp};
    for (entry, read) in [
        ("{protocol: UDP}", PortEntry::All(Udp)),
        ("{protocol: SCTP, port: 7}", PortEntry::Range { protocol: Sctp, first: 7, last: 7 }),
        ("{port: 1}", PortEntry::Range { protocol: Tcp, first: 1, last: 1 }),
        ("{port: 65535}", PortEntry::Range { protocol: Tcp, first: 65535, last: 65535 }),
        ("{port: 80, endPort: 80}", PortEntry::Range { protocol: Tcp, first: 80, last: 80 }),
        ("{port: 1, endPort: 65535, protocol: UDP}", PortEntry::Range { protocol: Udp, first: 1, last: 65535 }),
        ("{port: http}", PortEntry::Named { protocol: Tcp, name: "http".into() }),
        ("{port: a-1, protocol: UDP}", PortEntry::Named { protocol: Udp, name: "a-1".into() }),
    ] {
        assert_eq!(only_entry(entry), (read, vec![]), "{entry}");
    }
}

#[test]
fn a_broken_port_entry_matches_nothing_and_says_why() {
    for (entry, field, problem) in [
        ("null", "", "must be a map"),
        ("80", "", "must be a map"),
        ("{protocol: tcp}", ".protocol", "expected TCP, UDP or SCTP"),
        ("{protocol: ICMP}", ".protocol", "expected TCP, UDP or SCTP"),
        ("{protocol: 6}", ".protocol", "expected TCP, UDP or SCTP"),
        ("{port: 0}", ".port", "outside 1 to 65535"),
        ("{port: -1}", ".port", "outside 1 to 65535"),
        ("{port: 65536}", ".port", "outside 1 to 65535"),
        ("{port: 80.5}", ".port", "a number or a port name"),
        ("{port: true}", ".port", "a number or a port name"),
        ("{port: '80'}", ".port", "without quotes"),
        ("{port: Http}", ".port", "no port name"),
        ("{port: -a}", ".port", "no port name"),
        ("{port: a--b}", ".port", "no port name"),
        ("{port: abcdefghijklmnop}", ".port", "no port name"),
        ("{endPort: 80}", ".endPort", "needs a numeric `port`"),
        ("{port: http, endPort: 80}", ".endPort", "needs a numeric `port`"),
        ("{port: 80, endPort: 79}", ".endPort", "endPort 79 is below port 80"),
        ("{port: 80, endPort: 0}", ".endPort", "endPort 0 is below port 80"),
        ("{port: 80, endPort: 65536}", ".endPort", "endPort 65536 is above 65535"),
        ("{port: 80, endPort: '90'}", ".endPort", "must be a number"),
        ("{port: 80, endport: 90}", ".endport", "did you mean `endPort`?"),
    ] {
        let (read, findings) = only_entry(entry);
        assert!(matches!(read, PortEntry::Broken(_)), "{entry}: {read:?}");
        let place = format!("t.yaml:3: warning: NetworkPolicy n/p: spec.ingress[0].ports[0]{field}: ");
        assert!(
            findings.iter().any(|found| found.starts_with(&place) && found.contains(problem)),
            "{entry}: {findings:?}"
        );
    }
}

#[test]
fn a_broken_rule_matches_nothing_and_opens_nothing() {
    for rule in [
        "null",
        "[]",
        "{form: [{podSelector: {}}]}",
        "{from: [{podSelector: {}}], port: [{port: 1}]}",
        "{to: []}",
        "{to: [{podSelector: {}}]}",
        "{from: {podSelector: {}}}",
        "{ports: {port: 1}}",
        "{ports: 80}",
    ] {
        let (read, findings) = ingress_rule(rule);
        assert!(matches!(read, Rule::Broken(_)), "{rule}: {read:?}");
        assert_eq!(findings.len(), 1, "{rule}: {findings:?}");
        assert!(findings[0].contains("the rule matches nothing"), "{findings:?}");
    }
    let (policy, findings) = policy("{ingress: {from: []}, egress: 1}");
    let policy = policy.unwrap();
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
    assert_eq!(findings.len(), 2, "{findings:?}");
}

#[test]
fn every_mistake_in_a_rule_is_named() {
    let (_, findings) = ingress_rule("{form: [], from: [{ipBlock: {cidr: x}}, {}], ports: [{port: 0}]}");
    assert_eq!(findings.len(), 4, "{findings:?}");
}

#[test]
fn excepts_are_subtracted_even_where_they_are_not_smaller() {
    for (except, excepted, findings) in [
        ("10.1.0.0/16", "10.1.0.0/16", 0),
        ("10.1.2.3/16", "10.1.0.0/16", 1),
        ("10.0.0.0/8", "10.0.0.0/8", 1),
        ("0.0.0.0/0", "0.0.0.0/0", 1),
        ("11.0.0.0/8", "11.0.0.0/8", 1),
    ] {
        let (read, found) = only_peer(&format!("{{ipBlock: {{cidr: 10.0.0.0/8, except: [{except}]}}}}"));
        let Peer::Block(block) = read else { panic!("{except}: {read:?}") };
        assert_eq!(block.excepts, [excepted.parse().unwrap()]);
        assert_eq!(found.len(), findings, "{found:?}");
    }
    let (Peer::Block(block), _) = only_peer("{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/8']}}") else { panic!() };
    assert!(block.excepts.is_empty(), "the other family takes nothing away");
}

#[test]
fn a_policy_whose_subjects_nobody_can_say_is_ignored_loudly() {
    for spec in [
        "{podSelector: {matchLabels: {a: 1}}}",
        "{podSelector: {matchlabels: {a: b}}}",
        "{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}",
        "{podSelector: web}",
        "{podSelectr: {matchLabels: {a: b}}}",
        "[]",
    ] {
        let (policy, findings) = policy(spec);
        assert_eq!(policy, None, "{spec}");
        assert!(findings.iter().any(|found| found.contains("error: ") && found.contains("is ignored")), "{findings:?}");
    }
    let reading = read("kind: NetworkPolicy\nmetadata: {name: p}\nspce: {}\n");
    assert_eq!(reading.unreadable.len(), 1);
    assert_eq!(reading.unreadable[0].0.to_string(), "NetworkPolicy default/p");
}

#[test]
fn a_misspelt_field_of_the_spec_isolates_in_both_directions() {
    for (spec, isolates) in [
        ("{policyType: [Ingress]}", [true, true]),
        ("{egres: [{}]}", [true, true]),
        ("{policyTypes: [Ingress], egres: [{}]}", [true, false]),
        ("{policyTypes: [Egress], ingres: [{}]}", [false, true]),
    ] {
        let (policy, findings) = policy(spec);
        let policy = policy.unwrap();
        assert_eq!([policy.ingress.is_some(), policy.egress.is_some()], isolates, "{spec}");
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("did you mean"), "{findings:?}");
    }
}

fn pod(yaml: &str) -> (Pod, Vec<String>) {
    let mut reading = read(yaml);
    let Some((Object::Pod(pod), _)) = reading.objects.pop() else { panic!("a pod: {yaml}") };
    (pod, reading.diagnostics.iter().map(ToString::to_string).collect())
}

#[test]
fn a_pod_has_the_named_ports_of_containers_that_run_beside_its_peers() {
    let (pod, findings) = pod("\
kind: Pod
metadata: {name: a}
spec:
  containers:
  - {name: a, ports: [{name: http, containerPort: 80}, {containerPort: 81}, {name: dns, containerPort: 53, protocol: UDP}]}
  - {name: b, ports: [{name: http, containerPort: 8080}]}
  initContainers:
  - {name: c, ports: [{name: once, containerPort: 1}]}
  - {name: d, restartPolicy: Always, ports: [{name: side, containerPort: 2}]}
");
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(pod.numbers_of("http", PortProtocol::Tcp).collect::<Vec<_>>(), [80, 8080]);
    assert_eq!(pod.numbers_of("http", PortProtocol::Udp).count(), 0);
    assert_eq!(pod.numbers_of("dns", PortProtocol::Udp).collect::<Vec<_>>(), [53]);
    assert_eq!(pod.numbers_of("once", PortProtocol::Tcp).count(), 0);
    assert_eq!(pod.numbers_of("side", PortProtocol::Tcp).collect::<Vec<_>>(), [2]);
    assert_eq!((&*pod.key.namespace, pod.phase), ("default", Phase::Planned));
}

#[test]
fn a_pod_has_one_address_a_family() {
    let status = |fields: &str| pod(&format!("kind: Pod\nmetadata: {{name: a}}\nstatus: {{{fields}}}\n"));
    let addresses = |fields| status(fields).0.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(addresses("podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]"), ["10.0.0.1", "fd00::1"]);
    assert_eq!(addresses("podIP: 10.0.0.1"), ["10.0.0.1"]);
    assert_eq!(addresses("podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.1}]"), ["10.0.0.1"]);
    assert_eq!(addresses("podIP: ''"), [""; 0]);
    assert_eq!(addresses("podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]"), ["10.0.0.1"]);
    assert_eq!(status("podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}, {ip: x}]").1.len(), 2);
    assert_eq!(status("phase: Failed").0.phase, Phase::Failed);
    assert_eq!(status("phase: Faild").0.phase, Phase::Unknown);
    assert_eq!(status("podIP: 10.0.0.1").0.phase, Phase::Pending);
}

#[test]
fn misspelt_fields_of_pods_and_nodes_are_named() {
    for (yaml, field) in [
        (
            "kind: Pod\nmetadata: {name: a, lables: {a: b}}\n",
            "metadata.lables: unknown field `lables`, did you mean `labels`?",
        ),
        ("kind: Pod\nmetadata: {name: a}\nspec: {hostNetwrk: true}\n", "spec.hostNetwrk"),
        ("kind: Pod\nmetadata: {name: a}\nspec: {containers: [{port: []}]}\n", "spec.containers[0].port"),
        ("kind: Pod\nmetadata: {name: a}\nstatus: {podIps: []}\n", "status.podIps"),
        ("kind: Node\nmetadata: {name: a}\nstatus: {address: []}\n", "status.address"),
        ("kind: Namespace\nmetadata: {name: a, label: {}}\n", "metadata.label"),
    ] {
        let findings: Vec<_> = read(yaml).diagnostics.iter().map(ToString::to_string).collect();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains(field), "{findings:?}");
    }
    assert_eq!(pod("kind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: true}\n").0.network, PodNetwork::Host);
}

#[test]
fn kinds_of_other_groups_are_passed_over() {
    for yaml in [
        "apiVersion: longhorn.io/v1beta2\nkind: Node\nmetadata: {name: a}\n",
        "kind: NetworkPolicyList\nitems: null\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n",
    ] {
        let reading = read(yaml);
        assert!(
            reading.objects.is_empty() && reading.diagnostics.is_empty() && reading.not_enforced.is_empty(),
            "{yaml}"
        );
    }
}

#[test]
fn lists_hold_objects_with_and_without_kinds() {
    let reading = read(
        "\
apiVersion: v1
kind: PodList
items:
- metadata: {name: a}
- metadata: {name: b, nam: c}
",
    );
    assert_eq!(reading.objects.iter().map(|(_, line)| *line).collect::<Vec<_>>(), [4, 5]);
    let finding = reading.diagnostics[0].to_string();
    assert!(finding.starts_with("t.yaml:5: warning: Pod default/b: metadata.nam: "), "{finding}");
}

#[test]
fn an_object_of_the_api_reads_like_one_from_a_file() {
    let yaml = "{kind: Pod, metadata: {name: a, labels: {x: '1'}}, status: {podIPs: [{ip: 10.0.0.1}], phase: Running}}";
    let from_file: Tree = serde_saphyr::from_str(yaml).unwrap();
    let json: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
    let (from_file, from_api) = (read_document(&from_file, None), read_document(&json.into(), None));
    assert_eq!(from_file.objects[0].0, from_api.objects[0].0);
    assert_eq!(from_api.objects[0].1, 0);
}

#[test]
fn a_kind_that_may_be_a_typing_error_is_one_and_others_are_passed_over() {
    for (version, kind, finding) in [
        ("networking.k8s.io/v1", "NetworkPolcy", "kind: unknown kind `NetworkPolcy`, did you mean `NetworkPolicy`?"),
        ("networking.k8s.io/v1", "Firewall", "kind: unknown kind `Firewall` of the group `networking.k8s.io`"),
        ("v1", "networkpolicy", "kind: unknown kind `networkpolicy`, did you mean `NetworkPolicy`?"),
        ("v1", "pod", "kind: unknown kind `pod`, did you mean `Pod`?"),
        ("core/v1", "Pod", "apiVersion: Pod of the group `core` is not read, expected v1"),
        (
            "networking.k8s.oi/v1",
            "NetworkPolicy",
            "apiVersion: NetworkPolicy of the group `networking.k8s.oi` is not read, expected networking.k8s.io/v1",
        ),
        (
            "policy.networking.k8s.io/v1alpha2",
            "ClusterNetworkPolcy",
            "kind: unknown kind `ClusterNetworkPolcy`, did you mean `ClusterNetworkPolicy`?",
        ),
        (
            "policy.networking.k8s.oi/v1beta1",
            "ClusterNetworkPolicy",
            "apiVersion: ClusterNetworkPolicy of the group `policy.networking.k8s.oi` is not read, expected \
             policy.networking.k8s.io/v1beta1",
        ),
        ("v1", "Servce", "kind: unknown kind `Servce`, did you mean `Service`?"),
        ("core/v1", "Service", "apiVersion: Service of the group `core` is not read, expected v1"),
        ("v1", "EndpointSlice", "apiVersion: EndpointSlice of the group `` is not read, expected discovery.k8s.io/v1"),
        ("v1", "PodList", "`items` is missing"),
    ] {
        let found = read(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n")).diagnostics;
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 1, "{kind}: {found:?}");
        assert!(found[0].contains("error: ") && found[0].contains(&format!("{finding}; the document")), "{found:?}");
    }
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("batch/v1", "Job"),
        ("networking.k8s.io/v1", "Ingress"),
        ("v1", "Endpoints"),
        ("v1", "EndpointsList"),
        ("v1", "ServiceAccount"),
        ("longhorn.io/v1beta2", "Node"),
        ("example.com/v1", "NetworkPool"),
    ] {
        let Reading { diagnostics, not_enforced, .. } = read(&format!("apiVersion: {version}\nkind: {kind}\n"));
        assert!(diagnostics.is_empty() && not_enforced.is_empty(), "{kind}: {diagnostics:?}");
    }
    let list = read("apiVersion: v1\nkind: list\nitems: [{kind: Pod, metadata: {name: a}}]\n").diagnostics;
    assert!(list[0].message.contains("did you mean `List`?"), "{list:?}");
}

#[test]
fn policies_of_other_kinds_are_named_as_not_enforced() {
    for (version, kind, name) in [
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", "AdminNetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", "BaselineAdminNetworkPolicy"),
        ("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy", "AWS ClusterNetworkPolicy"),
        ("cilium.io/v2", "CiliumNetworkPolicy", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", "CiliumClusterwideNetworkPolicy"),
        ("crd.projectcalico.org/v1", "NetworkPolicy", "Calico NetworkPolicy"),
        ("projectcalico.org/v3", "GlobalNetworkPolicy", "Calico GlobalNetworkPolicy"),
    ] {
        let Reading { objects, diagnostics, not_enforced, .. } =
            read(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"));
        assert!(objects.is_empty() && diagnostics.is_empty(), "{kind}: {diagnostics:?}");
        assert_eq!((not_enforced[0].0.name, not_enforced[0].0.severity), (name, Severity::Error));
    }
}

#[test]
fn a_misspelt_namespace_is_an_error_and_any_other_unknown_field_of_metadata_a_warning() {
    for (metadata, start) in [
        ("{name: p, namespce: n}", "t.yaml:2: error: NetworkPolicy default/p: metadata.namespce: "),
        ("{name: p, ns: n}", "t.yaml:2: error: NetworkPolicy default/p: metadata.ns: "),
        ("{name: p, namespace: n, ns: n}", "t.yaml:2: warning: NetworkPolicy n/p: metadata.ns: "),
        ("{name: p, lables: {a: b}}", "t.yaml:2: warning: NetworkPolicy default/p: metadata.lables: "),
    ] {
        let found =
            read(&format!("kind: NetworkPolicy\nmetadata: {metadata}\nspec: {{podSelector: {{}}}}\n")).diagnostics;
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 1, "{metadata}: {found:?}");
        assert!(found[0].starts_with(start), "{metadata}: {found:?}");
        let is_error = found[0].ends_with("; the object is taken as default/p");
        assert_eq!(is_error, start.contains("error"), "{found:?}");
    }
}

#[test]
fn another_version_of_a_policy_is_named_with_what_it_is_read_as() {
    let found = read("apiVersion: v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n").diagnostics;
    assert_eq!(
        found[0].to_string(),
        "t.yaml:1: warning: NetworkPolicy default/p: apiVersion: expected \"networking.k8s.io/v1\", not \"v1\"; the \
         object is read as NetworkPolicy of networking.k8s.io/v1"
    );
}
