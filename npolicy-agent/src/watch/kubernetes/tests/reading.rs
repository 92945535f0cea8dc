//! From JSON to values: what is kept, and what a later version means.

use serde_json::{Value, json};

use super::super::Kind;
use super::super::update::Observed;
use super::super::wire::{Line, parse_line, parse_page};
use super::server::{cluster_policy, line, policy};
use crate::model::{Action, ClusterMatch, ClusterPolicy, NetworkPolicy, Object, Severity};
use crate::watch::objects::{Tree, read_document};

/// As the server sends it.
fn observe(kind: Kind, json: &Value) -> Observed {
    match parse_line(line("ADDED", json).as_bytes(), kind).unwrap() {
        Line::Object(tree) => Observed::read(&tree, kind).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "u1", "resourceVersion": "12", "generation": 4,
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web", "tier": ""},
            "annotations": {"a": "b"}, "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": {}}}],
        },
        "spec": {
            "nodeName": "n1", "hostNetwork": false, "volumes": [{"name": "v", "emptyDir": {}}], "fieldOfTheFuture": {"a": 1},
            "containers": [{
                "name": "web", "image": "web:1", "env": [{"name": "A", "value": "b"}],
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"containerPort": 1}],
            }],
            "initContainers": [
                {"name": "i", "ports": [{"name": "no", "containerPort": 1}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9, "protocol": "UDP"}]},
            ],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "startTime": "2026-01-01T00:00:05Z",
            "conditions": [
                {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": "2026-01-01T00:00:06Z"},
            ],
            "containerStatuses": [{"state": {"running": {"startedAt": "2026-01-01T00:00:09Z"}}}],
        },
    })
}

#[test]
fn a_pruned_object_is_read_as_the_whole_one() {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"env": "prod"}, "uid": "x"},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    });
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"zone": "a"}},
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"], "taints": []},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}],
            "images": [{"names": ["a"], "sizeBytes": 1}], "capacity": {"cpu": "2"},
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "externalIPs": ["192.0.2.9"],
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.77", "ipMode": "VIP"}, {"hostname": "x"}]}},
    });
    let headless = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]},
        "status": {"loadBalancer": {}},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "api-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "api"}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}],
        "endpoints": [{
            "addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "a", "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": "web-0"},
        }],
    });
    let mut whole_policy = policy("a", 1);
    whole_policy["apiVersion"] = json!("networking.k8s.io/v1");
    whole_policy["kind"] = json!("NetworkPolicy");
    whole_policy["spec"]["ingress"] =
        json!([{"from": [{"podSelector": {}}], "ports": [{"port": 80, "endPort": 90, "protocol": "TCP"}]}]);
    let mut whole_cluster_policy = cluster_policy("admin", 1);
    whole_cluster_policy["apiVersion"] = json!("policy.networking.k8s.io/v1beta1");
    whole_cluster_policy["kind"] = json!("ClusterNetworkPolicy");
    whole_cluster_policy["status"] = json!({"conditions": []});
    for (kind, json) in [
        (Kind::Pod, pod()),
        (Kind::Namespace, namespace),
        (Kind::Node, node),
        (Kind::Service, service),
        (Kind::Service, headless),
        (Kind::EndpointSlice, slice),
        (Kind::NetworkPolicy, whole_policy),
        (Kind::ClusterNetworkPolicy, whole_cluster_policy),
    ] {
        let observed = observe(kind, &json);
        assert!(observed.diagnostics.is_empty() && !observed.is_partial, "{kind}: {:?}", observed.diagnostics);
        assert_eq!(Kind::of(&observed.key), kind);
        let mut whole = read_document(&Tree::from(json), None);
        assert_eq!(observed.object, whole.objects.pop().map(|(object, _)| object), "{kind}");
    }
}

#[test]
fn fields_that_a_later_version_has_mean_nothing_but_in_policies() {
    let mut json = pod();
    json["spec"]["containers"][0]["portz"] = json!([]);
    json["status"]["podIPz"] = json!("x");
    json["metadata"]["labelz"] = json!({});
    json["status"]["podIPs"][0]["name"] = json!("eth0");
    assert_eq!(observe(Kind::Pod, &json).diagnostics, []);

    let mut json = policy("a", 1);
    json["metadata"]["fieldOfTheFuture"] = json!(1);
    json["spec"]["ingress"] = json!([
        {"from": [{"podSelector": {}, "scope": "x"}]},
        {"from": [{"podSelector": {}}], "when": "x"},
        {"from": [{"podSelector": {}}]},
    ]);
    let observed = observe(Kind::NetworkPolicy, &json);
    assert_eq!(observed.diagnostics.len(), 2, "{:?}", observed.diagnostics);
    let Some(Object::Policy(NetworkPolicy { ingress: Some(rules), .. })) = observed.object else {
        panic!("{observed:?}")
    };
    let printed: Vec<_> = rules.iter().map(|rule| format!("{rule:?}")).collect();
    assert!(printed[0].contains("Broken") && printed[1].contains("Broken") && !printed[2].contains("Broken"));
}

#[test]
fn a_later_field_of_a_cluster_policys_spec_leaves_nothing_but_denials() {
    let mut json = cluster_policy("admin", 1);
    let from = json!([{"namespaces": {"matchLabels": {"a": "b"}}}]);
    json["spec"]["ingress"] = json!([
        {"action": "Accept", "from": from}, {"action": "Deny", "from": from}, {"action": "Pass", "from": from},
    ]);
    let read = |json: &Value| match observe(Kind::ClusterNetworkPolicy, json) {
        Observed { object: Some(Object::ClusterPolicy(policy)), diagnostics, .. } => (policy, diagnostics),
        other => panic!("{other:?}"),
    };
    let (known, _) = read(&json);
    json["spec"]["onlyOn"] = json!("weekdays");
    let (narrowed, diagnostics) = read(&json);
    assert_eq!(diagnostics.len(), 1);
    assert_eq!((diagnostics[0].severity, diagnostics[0].field.as_deref()), (Severity::Warning, Some("spec.onlyOn")));
    let ClusterPolicy { tier, priority, ref subject, ref ingress, .. } = narrowed;
    assert_eq!((tier, priority, subject), (known.tier, known.priority, &known.subject));
    assert!(matches!((ingress[0].action, &ingress[0].matches), (Action::Accept, ClusterMatch::Unreadable(_))));
    for rule in &ingress[1..] {
        assert_eq!((rule.action, &rule.matches), (Action::Deny, &known.ingress[1].matches));
    }
    // In a file it is a typing error, and the policy is not read.
    json["kind"] = json!("ClusterNetworkPolicy");
    assert_eq!(read_document(&Tree::from(json), None).unreadable.len(), 1);
}

#[test]
fn the_type_of_a_line_may_come_last() {
    let text = r#"{"object": {"metadata": {"name": "a", "resourceVersion": "5"}}, "type": "DELETED"}"#;
    assert!(matches!(parse_line(text.as_bytes(), Kind::Node), Ok(Line::Gone(_))));
    for broken in [
        "",
        "{}",
        "[]",
        r#"{"type": "ADDED"}"#,
        r#"{"type": "NEW", "object": {}}"#,
        r#"{"type": "ADDED", "object": {}} {}"#,
    ] {
        assert!(parse_line(broken.as_bytes(), Kind::Node).is_err(), "{broken}");
    }
}

#[test]
fn what_is_no_list_is_not_an_empty_one() {
    let parse = |text: &str| {
        let mut count = 0;
        parse_page(text.as_bytes(), Kind::Pod, &mut |_| count += 1).map(|metadata| (metadata.resource_version, count))
    };
    for empty in [
        r#"{"metadata": {"resourceVersion": "5"}, "items": null}"#,
        r#"{"items": [], "metadata": {"resourceVersion": "5"}}"#,
    ] {
        assert_eq!(parse(empty).unwrap(), ("5".to_owned(), 0), "{empty}");
    }
    for broken in [
        "",
        "null",
        "{}",
        "[]",
        r#"{"items": []}"#,
        r#"{"metadata": {"resourceVersion": "5"}}"#,
        r#"{"metadata": {}, "items": []}"#,
        r#"{"metadata": {"resourceVersion": "5"}, "items": {}}"#,
        r#"{"metadata": {"resourceVersion": "5"}, "items": [{"metadata""#,
        r#"{"kind": "Status", "metadata": {}, "code": 200}"#,
    ] {
        assert!(parse(broken).is_err(), "{broken}");
    }
}

#[test]
fn huge_and_deep_objects_are_read_or_named() {
    let mut json = policy("a", 1);
    json["metadata"]["annotations"] = json!({"huge": "x".repeat(1 << 20)});
    json["spec"]["podSelector"] = json!({"matchLabels": {"huge": "x".repeat(1 << 20)}});
    let observed = observe(Kind::NetworkPolicy, &json);
    assert!(observed.object.is_none(), "the subject has a label value that no pod can have");
    assert!(!observed.diagnostics.is_empty());

    // More nesting than the parser would take by itself.
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    for (place, text) in [
        (
            "annotations",
            format!(
                r#"{{"type": "ADDED", "object": {{"metadata": {{"name": "a", "namespace": "n", "annotations": {deep}}}, "spec": {{"podSelector": {{}}}}}}}}"#
            ),
        ),
        (
            "ingress",
            format!(
                r#"{{"type": "ADDED", "object": {{"metadata": {{"name": "a", "namespace": "n"}}, "spec": {{"podSelector": {{}}, "ingress": [{deep}]}}}}}}"#
            ),
        ),
    ] {
        let Line::Object(tree) = parse_line(text.as_bytes(), Kind::NetworkPolicy).unwrap() else { panic!("{place}") };
        let observed = Observed::read(&tree, Kind::NetworkPolicy).unwrap();
        assert!(observed.object.is_some(), "{place}");
        assert_eq!(observed.diagnostics.len(), usize::from(place == "ingress"), "{place}: {:?}", observed.diagnostics);
    }
}
