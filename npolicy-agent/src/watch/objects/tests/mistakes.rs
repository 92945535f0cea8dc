//! Every mistake at every place: a value that is legal nowhere, a field that nobody knows, and what else a text may hold.
//! Nothing panics, everything is named, and no rule matches what it did not match before.

use super::*;
use crate::model::{Action, ClusterMatch, ClusterPolicy, ClusterRule};

const POLICY: &str = "\
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: p}
spec:
  tier: Admin
  priority: 5
  subject:
    pods:
      namespaceSelector: {matchLabels: {env: prod}}
      podSelector: {matchExpressions: [{key: app, operator: In, values: [web, api]}]}
  ingress:
  - name: first
    action: Accept
    from:
    - namespaces: {matchExpressions: [{key: env, operator: Exists}]}
    - pods: {podSelector: {}}
    protocols:
    - tcp: {destinationPort: {number: 80}}
    - udp: {destinationPort: {range: {start: 1, end: 9}}}
    - destinationNamedPort: web
  - action: Deny
    from: [{namespaces: {}}]
  egress:
  - action: Pass
    to: [{nodes: {matchLabels: {role: edge}}}]
  - action: Accept
    to: [{networks: [10.0.0.0/8, 'fd00::/8']}]
    protocols: [{sctp: {destinationPort: {number: 7}}}]
  - action: Deny
    to: [{networks: [0.0.0.0/0]}]
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: s, namespace: shop}
spec:
  type: NodePort
  clusterIPs: [10.96.0.1, 'fd00::1']
  externalIPs: [203.0.113.1]
  internalTrafficPolicy: Cluster
  selector: {app: web}
  ports:
  - {name: http, port: 80, protocol: TCP, targetPort: 8080, nodePort: 30080}
status:
  loadBalancer: {ingress: [{ip: 203.0.113.2, ipMode: VIP}]}
";

const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: e, namespace: shop, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports:
- {name: http, port: 8080, protocol: TCP}
endpoints:
- {addresses: [10.0.0.1], nodeName: n1}
- {addresses: [10.0.0.2], nodeName: n2}
";

const NETWORK_POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {namespaceSelector: {}}]
    ports: [{port: 1, endPort: 2}]
";

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: web}, uid: u, creationTimestamp: '2026-01-01T00:00:00Z'}
spec:
  nodeName: n1
  hostNetwork: false
  containers: [{ports: [{name: web, containerPort: 80, protocol: TCP}]}]
  initContainers: [{restartPolicy: Always, ports: [{name: side, containerPort: 81}]}]
status: {phase: Running, startTime: '2026-01-01T00:00:01Z', podIPs: [{ip: 10.0.0.1}]}
";

const NODE: &str = "\
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {role: edge}}
status: {addresses: [{address: 192.0.2.1}]}
";

/// Changes the tree at its `at`-th place, counted from the top in written order; `false`: there is none.
fn change(tree: &mut Tree, at: &mut usize, with: &dyn Fn(&mut Tree)) -> bool {
    if *at == 0 {
        with(tree);
        return true;
    }
    *at -= 1;
    match &mut tree.value {
        Value::List(items) => items.iter_mut().any(|item| change(item, at, with)),
        Value::Map(entries) => entries.iter_mut().any(|entry| change(&mut entry.value, at, with)),
        _ => false,
    }
}

/// Every tree that differs from this one at a single place.
fn changed(yaml: &str, with: &dyn Fn(&mut Tree)) -> Vec<Tree> {
    let original = Tree::from_yaml(yaml);
    let one = |at: usize| {
        let mut tree = original.clone();
        change(&mut tree, &mut { at }, with).then_some(tree)
    };
    (0..).map_while(one).collect()
}

/// Every tree in which one field is called otherwise. Labels are called as their authors like.
fn misspelt(yaml: &str) -> Vec<Tree> {
    let original = Tree::from_yaml(yaml);
    let mut found = Vec::new();
    for at in 0..changed(yaml, &|_| {}).len() {
        for field in 0..16 {
            let mut tree = original.clone();
            let renames = std::cell::Cell::new(false);
            change(&mut tree, &mut { at }, &|tree| {
                if let Value::Map(entries) = &mut tree.value
                    && let Some(entry) = entries.get_mut(field)
                    && !matches!(&*entry.key, "app" | "env" | "role" | "kubernetes.io/service-name")
                {
                    entry.key.push('x');
                    renames.set(true);
                }
            });
            if renames.get() {
                found.push(tree);
            }
        }
    }
    found
}

fn illegal(yaml: &str) -> Vec<Tree> {
    let illegal = changed(yaml, &|tree| tree.value = Value::Float(-1.5));
    illegal.into_iter().chain(misspelt(yaml)).collect()
}

fn cluster_policy(reading: &Reading) -> Option<&ClusterPolicy> {
    reading.objects.iter().find_map(|(object, _)| match object {
        Object::ClusterPolicy(policy) => Some(policy),
        _ => None,
    })
}

#[test]
fn a_mistake_in_a_cluster_policy_is_named_and_takes_no_rule_further_than_it_was() {
    let original = read(POLICY);
    assert!(original.diagnostics.is_empty(), "{:?}", original.diagnostics);
    let original = cluster_policy(&original).unwrap();
    let trees = illegal(POLICY);
    assert!(trees.len() > 120, "{}", trees.len());
    for tree in trees {
        let reading = read_document(&tree, None);
        assert!(!reading.diagnostics.is_empty(), "{tree:?}");
        let Some(policy) = cluster_policy(&reading) else {
            assert!(reading.diagnostics.iter().any(|found| found.severity == Severity::Error), "{tree:?}");
            continue;
        };
        assert_eq!(
            (policy.tier, policy.priority, &policy.subject),
            (original.tier, original.priority, &original.subject)
        );
        for (read, written) in [(&policy.ingress, &original.ingress), (&policy.egress, &original.egress)] {
            assert_eq!(read.len(), written.len(), "every rule keeps its place: {tree:?}");
            for (read, written) in read.iter().zip(written) {
                let ClusterRule { name: _, action, matches } = read;
                let is_unreadable = matches!(matches, ClusterMatch::Unreadable(_));
                assert!(is_unreadable || *matches == written.matches, "{tree:?}");
                assert!(*action == Action::Deny || *action == written.action, "{tree:?}");
            }
        }
    }
}

#[test]
fn a_mistake_in_a_service_or_slice_is_an_error_wherever_something_is_missing_for_it() {
    for yaml in [SERVICE, SLICE] {
        let original = read(yaml);
        assert!(original.diagnostics.is_empty(), "{:?}", original.diagnostics);
        let trees = illegal(yaml);
        assert!(trees.len() > 30, "{}", trees.len());
        for tree in trees {
            let reading = read_document(&tree, None);
            let found = &reading.diagnostics;
            assert!(!found.is_empty(), "{tree:?}");
            let is_whole =
                reading.objects.iter().map(|(object, _)| object).eq(original.objects.iter().map(|(object, _)| object));
            assert!(is_whole || found.iter().any(|found| found.severity == Severity::Error), "{found:?} {tree:?}");
        }
    }
}

#[test]
fn a_mistake_in_any_other_object_is_named() {
    for yaml in [NETWORK_POLICY, POD, NODE] {
        assert!(read(yaml).diagnostics.is_empty(), "{:?}", read(yaml).diagnostics);
        for tree in illegal(yaml) {
            assert!(!read_document(&tree, None).diagnostics.is_empty(), "{tree:?}");
        }
    }
}

#[test]
fn no_value_at_any_place_makes_it_panic() {
    let text = |text: &str| Value::Text(text.to_owned());
    let tree = |value| Tree { line: 1, value };
    let entry = |key: &str, value| Entry { line: 1, key: key.to_owned(), value: tree(value) };
    let values = [
        Value::Null,
        Value::Bool(true),
        Value::Integer(-1),
        Value::Integer(0),
        Value::Integer(i64::MAX),
        Value::Integer(i64::MIN),
        Value::Float(f64::NAN),
        Value::Float(f64::INFINITY),
        text(""),
        text("/"),
        text("::/"),
        text("None"),
        text("1.2.3.4/99999999999999999999"),
        text("::ffff:1.2.3.4/0"),
        text("\u{0}\u{7f}\u{2028}ß"),
        text(&"x".repeat(70_000)),
        Value::List(vec![]),
        Value::List(vec![tree(Value::Null)]),
        Value::List(vec![tree(Value::List(vec![tree(Value::Map(vec![]))]))]),
        Value::Map(vec![]),
        Value::Map(vec![entry("", Value::Null)]),
        Value::Map(vec![entry("a/b/c", Value::Null), entry("items", Value::List(vec![tree(Value::Null)]))]),
    ];
    let file: Arc<Path> = Path::new("t.yaml").into();
    for yaml in [POLICY, SERVICE, SLICE, NETWORK_POLICY] {
        for value in &values {
            for tree in changed(yaml, &|tree| tree.value = value.clone()) {
                for found in read_document(&tree, Some(&file)).diagnostics {
                    assert!(!found.to_string().is_empty());
                }
            }
        }
    }
}
