//! Services and EndpointSlices: what is read, and that whatever is left out makes the answers uncertain.

use super::*;
use crate::model::{EndpointSlice, Service, TrafficPolicy};

/// Reads a Service; also gives the findings and whether a part of it is missing.
fn service(rest: &str) -> (Service, Option<Backing>, Vec<String>) {
    let mut reading = read_both(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n}}\n{rest}"));
    let Some((Object::Service(service), _)) = reading.objects.pop() else { panic!("a Service: {rest}") };
    let is_uncertain = reading.diagnostics.iter().any(|found| found.severity == Severity::Error);
    assert_eq!(reading.partial, if is_uncertain { vec![Object::Service(service.clone()).key()] } else { vec![] });
    let (key, backing) = reading.backings.pop().expect("of every Service");
    assert_eq!((key, reading.backings.len()), (service.key.clone(), 0));
    (service, backing, reading.diagnostics.iter().map(ToString::to_string).collect())
}

fn valid_service(spec: &str) -> Service {
    let (service, _, findings) = service(&format!("spec: {spec}\n"));
    assert!(findings.is_empty(), "{spec}: {findings:?}");
    service
}

fn slice(rest: &str) -> (EndpointSlice, Vec<String>) {
    let mut reading = read_both(&format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e, namespace: n, labels: \
         {{kubernetes.io/service-name: s}}}}\n{rest}"
    ));
    let Some((Object::EndpointSlice(slice), _)) = reading.objects.pop() else { panic!("a slice: {rest}") };
    let is_uncertain = reading.diagnostics.iter().any(|found| found.severity == Severity::Error);
    assert_eq!(reading.partial, if is_uncertain { vec![Object::EndpointSlice(slice.clone()).key()] } else { vec![] });
    (slice, reading.diagnostics.iter().map(ToString::to_string).collect())
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn ports(service: &Service) -> Vec<String> {
    let node_port = |port: Option<u16>| port.map(|port| format!(" node {port}")).unwrap_or_default();
    let text = |port: &crate::model::ServicePort| {
        format!("{} {}/{}{}", port.name, port.port, port.protocol, node_port(port.node_port))
    };
    service.ports.iter().map(text).collect()
}

#[test]
fn a_service_as_a_cluster_has_it_is_read_without_findings() {
    let (service, backing, findings) = service(
        "\
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00::1']
  externalIPs: [203.0.113.1]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  sessionAffinity: None
  allocateLoadBalancerNodePorts: true
  healthCheckNodePort: 32000
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP}
status:
  loadBalancer:
    ingress:
    - {ip: 203.0.113.2}
    - {ip: 203.0.113.3, ipMode: VIP, ports: [{port: 80, protocol: TCP}]}
    - {ip: 203.0.113.4, ipMode: Proxy}
    - {hostname: lb.example.org}
    - {ip: ''}
",
    );
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(texts(&service.cluster_addresses), ["10.96.0.1", "fd00::1"]);
    assert_eq!(texts(&service.external_addresses), ["203.0.113.1", "203.0.113.2", "203.0.113.3"]);
    assert_eq!(ports(&service), ["http 80/TCP node 30080", "dns 53/UDP"]);
    assert_eq!((service.internal_policy, service.external_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
    let backing = backing.expect("it selects pods");
    let targets: Vec<_> = backing.ports.iter().map(|port| &port.target).collect();
    assert_eq!(targets, [&Target::Name("web".into()), &Target::Number(53)]);
    assert!(backing.selector.matches(&[("app", "web"), ("x", "y")].into_iter().collect()));
    assert!(!backing.selector.matches(&[("app", "db")].into_iter().collect()));
}

#[test]
fn addresses_are_those_of_the_list_or_the_single_field() {
    for (spec, addresses) in [
        ("{clusterIP: 10.0.0.1}", &["10.0.0.1"][..]),
        ("{clusterIPs: [10.0.0.1]}", &["10.0.0.1"]),
        ("{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1]}", &["10.0.0.1"]),
        ("{clusterIP: 10.0.0.1, clusterIPs: null}", &["10.0.0.1"]),
        ("{clusterIP: 10.0.0.1, clusterIPs: []}", &["10.0.0.1"]),
        ("{clusterIPs: ['::ffff:10.0.0.1']}", &["10.0.0.1"]),
        ("{clusterIP: ''}", &[]),
        ("{clusterIP: null}", &[]),
        ("{}", &[]),
        ("{clusterIP: None}", &[]),
        ("{clusterIPs: [None]}", &[]),
        ("{clusterIP: None, clusterIPs: [None]}", &[]),
    ] {
        assert_eq!(texts(&valid_service(spec).cluster_addresses), addresses, "{spec}");
    }
}

#[test]
fn a_headless_service_and_a_name_for_another_have_no_address_whatever_else_they_say() {
    for spec in [
        "{clusterIP: None, externalIPs: [203.0.113.1], selector: {a: b}, ports: [{port: 80}]}",
        "{clusterIPs: [None], externalIPs: [203.0.113.1], selector: {a: b}, ports: [{port: 80}]}",
        "{type: ExternalName, externalName: a.example.org, clusterIP: 10.0.0.1, externalIPs: [203.0.113.1]}",
    ] {
        let (service, backing, findings) =
            service(&format!("spec: {spec}\nstatus: {{loadBalancer: {{ingress: [{{ip: 203.0.113.9}}]}}}}\n"));
        assert!(findings.is_empty() && backing.is_none(), "{spec}: {findings:?}");
        assert!(service.cluster_addresses.is_empty() && service.external_addresses.is_empty(), "{spec}");
    }
    assert!(valid_service("{type: ExternalName, ports: [{port: 80}]}").ports.is_empty());
}

#[test]
fn node_ports_are_those_of_types_that_have_them() {
    for (spec, read) in [
        ("{type: NodePort, ports: [{port: 1, nodePort: 30000}]}", &[" 1/TCP node 30000"][..]),
        ("{type: LoadBalancer, ports: [{port: 1, nodePort: 30000}]}", &[" 1/TCP node 30000"]),
        ("{type: LoadBalancer, ports: [{port: 1, nodePort: 0}]}", &[" 1/TCP"]),
        ("{type: NodePort, ports: [{port: 1, nodePort: null}]}", &[" 1/TCP"]),
        ("{ports: [{port: 1, nodePort: 0}]}", &[" 1/TCP"]),
        ("{type: ClusterIP, ports: [{name: null, protocol: null, port: 1}]}", &[" 1/TCP"]),
        ("{ports: null}", &[]),
        ("{ports: []}", &[]),
    ] {
        assert_eq!(ports(&valid_service(spec)), read, "{spec}");
    }
    let (service, _, findings) = service("spec: {ports: [{port: 1, nodePort: 30000}]}\n");
    assert_eq!((ports(&service), findings.len()), (vec![" 1/TCP".to_owned()], 1));
    assert!(findings[0].contains("warning: ") && findings[0].contains("spec.ports[0].nodePort"), "{findings:?}");
}

#[test]
fn what_is_left_out_of_a_service_is_an_error_and_the_rest_is_read() {
    for (rest, field, problem) in [
        ("", "", "`spec` is missing"),
        ("spce: {}\n", ".spce", "did you mean `spec`?"),
        ("spec: []\n", ".spec", "must be a map"),
        ("spec: {clusterIP: 10.0.0}\n", ".spec.clusterIP", "\"10.0.0\" is not an IP address"),
        ("spec: {clusterIP: none}\n", ".spec.clusterIP", "\"none\" is not an IP address"),
        ("spec: {clusterIP: 10}\n", ".spec.clusterIP", "10 is not an IP address"),
        ("spec: {clusterIPs: [x]}\n", ".spec.clusterIPs[0]", "is not an IP address"),
        ("spec: {clusterIPs: ['']}\n", ".spec.clusterIPs[0]", "is not an IP address"),
        ("spec: {clusterIPs: [null]}\n", ".spec.clusterIPs[0]", "null is not an IP address"),
        ("spec: {clusterIPs: 10.0.0.1}\n", ".spec.clusterIPs", "must be a list"),
        ("spec: {clusterIp: 10.0.0.1}\n", ".spec.clusterIp", "did you mean `clusterIP`?"),
        ("spec: {externalIPs: [10.0.0.1/32]}\n", ".spec.externalIPs[0]", "is not an IP address"),
        ("spec: {externalIPs: {a: b}}\n", ".spec.externalIPs", "must be a list"),
        ("spec: {externalIP: [10.0.0.1]}\n", ".spec.externalIP", "did you mean `externalIPs`?"),
        ("spec: {type: Clusterip}\n", ".spec.type", "unknown type \"Clusterip\""),
        ("spec: {type: 1}\n", ".spec.type", "unknown type 1"),
        ("spec: {ports: {port: 80}}\n", ".spec.ports", "must be a list"),
        ("spec: {port: [{port: 80}]}\n", ".spec.port", "did you mean `ports`?"),
        ("spec: {ports: [null]}\n", ".spec.ports[0]", "must be a map"),
        ("spec: {ports: [80]}\n", ".spec.ports[0]", "must be a map"),
        ("spec: {ports: [{}]}\n", ".spec.ports[0]", "`port` is missing"),
        ("spec: {ports: [{port: 0}]}\n", ".spec.ports[0].port", "outside 1 to 65535"),
        ("spec: {ports: [{port: 65536}]}\n", ".spec.ports[0].port", "outside 1 to 65535"),
        ("spec: {ports: [{port: '80'}]}\n", ".spec.ports[0].port", "must be a number"),
        ("spec: {ports: [{port: 80, protocol: tcp}]}\n", ".spec.ports[0].protocol", "expected TCP, UDP or SCTP"),
        ("spec: {ports: [{port: 80, name: 1}]}\n", ".spec.ports[0].name", "must be text"),
        ("spec: {ports: [{port: 80, nam: a}]}\n", ".spec.ports[0].nam", "did you mean `name`?"),
        ("spec: {ports: [{port: 80, targetPort: 0.5}]}\n", ".spec.ports[0].targetPort", "a number or a port name"),
        ("spec: {ports: [{port: 80, targetPort: 65536}]}\n", ".spec.ports[0].targetPort", "outside 1 to 65535"),
        ("spec: {type: NodePort, ports: [{port: 80, nodePort: -1}]}\n", ".spec.ports[0].nodePort", "outside 1 to"),
        ("spec: {selector: web}\n", ".spec.selector", "must be a map"),
        ("spec: {selector: {a: 1}}\n", ".spec.selector.a", "quote it"),
        ("spec: {}\nstatus: {loadBalancer: {ingress: [{ip: x}]}}\n", ".status.loadBalancer.ingress[0].ip", "not an IP"),
        ("spec: {}\nstatus: {loadBalancer: {ingress: [x]}}\n", ".status.loadBalancer.ingress[0]", "must be a map"),
        ("spec: {}\nstatus: {loadBalancer: {ingress: x}}\n", ".status.loadBalancer.ingress", "must be a list"),
        (
            "spec: {}\nstatus: {loadBalancer: {ingress: [{ip: 10.0.0.1, ipMode: Vip}]}}\n",
            ".status.loadBalancer.ingress[0].ipMode",
            "neither VIP nor Proxy",
        ),
    ] {
        let (_, _, findings) = service(rest);
        let place = format!("error: Service n/s{}: ", field.replacen('.', ": ", 1));
        let is_it = |found: &String| found.contains(&place) && found.contains(problem);
        assert!(findings.iter().any(is_it), "{rest}: {findings:?}");
    }
    let (service, _, findings) = service(
        "spec: {clusterIPs: [10.0.0.1, x], externalIPs: [y, 203.0.113.1], ports: [{port: a}, {name: b, port: 2}]}\n\
         status: {loadBalancer: {ingress: [{ip: z}, {ip: 203.0.113.2}]}}\n",
    );
    assert_eq!(findings.len(), 4, "{findings:?}");
    assert_eq!(texts(&service.cluster_addresses), ["10.0.0.1"]);
    assert_eq!(texts(&service.external_addresses), ["203.0.113.1", "203.0.113.2"]);
    assert_eq!(ports(&service), ["b 2/TCP"]);
}

#[test]
fn what_can_be_read_in_two_ways_is_read_as_what_denies_more() {
    for (spec, finding) in [
        ("{internalTrafficPolicy: local}", "spec.internalTrafficPolicy: \"local\" is neither Cluster nor Local"),
        ("{externalTrafficPolicy: 1}", "spec.externalTrafficPolicy: 1 is neither Cluster nor Local"),
    ] {
        let (service, _, findings) = service(&format!("spec: {spec}\n"));
        assert_eq!(
            (service.internal_policy, service.external_policy),
            (TrafficPolicy::Cluster, TrafficPolicy::Cluster)
        );
        assert!(
            findings.len() == 1 && findings[0].contains(&format!("warning: Service n/s: {finding}")),
            "{findings:?}"
        );
    }
    for (spec, addresses) in [
        ("{clusterIP: 10.0.0.2, clusterIPs: [10.0.0.1]}", &["10.0.0.1", "10.0.0.2"][..]),
        ("{clusterIP: None, clusterIPs: [10.0.0.1]}", &["10.0.0.1"]),
        ("{clusterIP: 10.0.0.1, clusterIPs: [None]}", &["10.0.0.1"]),
    ] {
        let (service, _, findings) = service(&format!("spec: {spec}\n"));
        assert_eq!(texts(&service.cluster_addresses), addresses, "{spec}");
        assert!(!findings.is_empty() && findings.iter().all(|found| found.contains("warning: ")), "{findings:?}");
    }
    let (service, ..) = service("spec: {type: Unknown, ports: [{port: 1, nodePort: 30000}]}\n");
    assert_eq!(ports(&service), [" 1/TCP node 30000"]);
    assert!(matches!(valid_service("{internalTrafficPolicy: null}").internal_policy, TrafficPolicy::Cluster));
}

#[test]
fn only_a_service_that_selects_pods_says_where_its_backends_are() {
    for (spec, targets) in [
        ("{selector: {a: b}, ports: [{port: 80}]}", Some(vec![Target::Number(80)])),
        ("{selector: {a: b}, ports: [{port: 80, targetPort: null}]}", Some(vec![Target::Number(80)])),
        ("{selector: {a: b}, ports: [{port: 80, targetPort: 0}]}", Some(vec![Target::Number(80)])),
        ("{selector: {a: b}, ports: [{port: 80, targetPort: ''}]}", Some(vec![Target::Number(80)])),
        ("{selector: {a: b}, ports: [{port: 80, targetPort: 8080}]}", Some(vec![Target::Number(8080)])),
        ("{selector: {a: b}, ports: [{port: 80, targetPort: web}]}", Some(vec![Target::Name("web".into())])),
        ("{selector: {a: null}}", Some(vec![])),
        ("{selector: {}, ports: [{port: 80}]}", None),
        ("{selector: null, ports: [{port: 80}]}", None),
        ("{ports: [{port: 80}]}", None),
    ] {
        let (_, backing, findings) = service(&format!("spec: {spec}\n"));
        assert!(findings.is_empty(), "{spec}: {findings:?}");
        let found = backing.map(|backing| backing.ports.into_iter().map(|port| port.target).collect::<Vec<_>>());
        assert_eq!(found, targets, "{spec}");
    }
}

fn endpoints(slice: &EndpointSlice) -> Vec<String> {
    let at = |endpoint: &crate::model::Endpoint| match &endpoint.node {
        Some(node) => format!("{} on {node}", endpoint.address),
        None => endpoint.address.to_string(),
    };
    slice.endpoints.iter().map(at).collect()
}

fn slice_ports(slice: &EndpointSlice) -> Vec<String> {
    slice.ports.iter().map(|port| format!("{} {}/{}", port.name, port.number, port.protocol)).collect()
}

#[test]
fn a_slice_as_a_cluster_has_it_is_read_without_findings() {
    let (read, findings) = slice(
        "\
addressType: IPv4
ports:
- {name: http, port: 8080, protocol: TCP, appProtocol: http}
- {name: '', port: 53, protocol: UDP}
- {name: null, port: 1}
- {name: any, port: null, protocol: TCP}
endpoints:
- addresses: [10.0.0.2, 10.0.0.3]
  conditions: {ready: false, serving: false, terminating: true}
  nodeName: n1
  hostname: a
  zone: z
  hints: {forZones: [{name: z}]}
  targetRef: {kind: Pod, name: a, namespace: n}
- {addresses: [10.0.0.1], nodeName: null}
- {addresses: [10.0.0.4], nodeName: ''}
",
    );
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(read.service.as_deref(), Some("s"));
    assert_eq!(slice_ports(&read), ["http 8080/TCP", " 53/UDP", " 1/TCP"]);
    assert_eq!(endpoints(&read), ["10.0.0.2 on n1", "10.0.0.1", "10.0.0.4"]);
    for empty in ["endpoints: null\nports: null\n", "endpoints: []\nports: []\n", ""] {
        let (read, findings) = slice(&format!("addressType: IPv6\n{empty}"));
        assert!(findings.is_empty() && read.endpoints.is_empty() && read.ports.is_empty(), "{findings:?}");
    }
}

#[test]
fn a_slice_of_names_leads_nowhere_and_one_without_a_service_belongs_to_none() {
    let (read, findings) = slice("addressType: FQDN\nports: [{port: 1}]\nendpoints: [{addresses: [a.example.org]}]\n");
    assert!(findings.is_empty(), "{findings:?}");
    assert!(read.endpoints.is_empty());
    for labels in ["null", "{}", "{kubernetes.io/service-name: ''}", "{kubernetes.io/service-name: null}"] {
        let mut reading = read_both(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e, labels: {labels}}}\naddressType: IPv4\n"
        ));
        assert!(reading.diagnostics.is_empty(), "{labels}");
        let Some((Object::EndpointSlice(read), _)) = reading.objects.pop() else { panic!("{labels}") };
        assert_eq!(read.service, None, "{labels}");
    }
}

#[test]
fn what_is_left_out_of_a_slice_is_an_error_and_the_rest_is_read() {
    for (rest, field, problem) in [
        ("endpoints: {addresses: [10.0.0.1]}", "endpoints", "must be a list"),
        ("endpoints: [null]", "endpoints[0]", "must be a map"),
        ("endpoints: [10.0.0.1]", "endpoints[0]", "must be a map"),
        ("endpoints: [{}]", "endpoints[0]", "`addresses` is missing"),
        ("endpoints: [{addresses: null}]", "endpoints[0]", "`addresses` is missing"),
        ("endpoints: [{addresses: []}]", "endpoints[0].addresses", "an empty list"),
        ("endpoints: [{addresses: 10.0.0.1}]", "endpoints[0].addresses", "must be a list"),
        ("endpoints: [{addresses: [x, 10.0.0.1]}]", "endpoints[0].addresses[0]", "\"x\" is not an IP address"),
        ("endpoints: [{addresses: [10.0.0.1/32]}]", "endpoints[0].addresses[0]", "is not an IP address"),
        ("endpoints: [{addresses: [null]}]", "endpoints[0].addresses[0]", "null is not an IP address"),
        ("endpoints: [{address: [10.0.0.1]}]", "endpoints[0].address", "did you mean `addresses`?"),
        ("endpoints: [{addresses: [10.0.0.1], nodeName: 1}]", "endpoints[0].nodeName", "must be text"),
        ("endpoints: [{addresses: [10.0.0.1], nodename: a}]", "endpoints[0].nodename", "did you mean `nodeName`?"),
        ("endpoint: [{addresses: [10.0.0.1]}]", "endpoint", "did you mean `endpoints`?"),
        ("ports: {port: 80}", "ports", "must be a list"),
        ("ports: [80]", "ports[0]", "must be a map"),
        ("ports: [null]", "ports[0]", "must be a map"),
        ("ports: [{port: 0}]", "ports[0].port", "outside 1 to 65535"),
        ("ports: [{port: '80'}]", "ports[0].port", "must be a number"),
        ("ports: [{port: 80, protocol: Tcp}]", "ports[0].protocol", "expected TCP, UDP or SCTP"),
        ("ports: [{port: 80, name: 5}]", "ports[0].name", "must be text"),
        ("port: [{port: 80}]", "port", "did you mean `ports`?"),
    ] {
        let (_, findings) = slice(&format!("addressType: IPv4\n{rest}\n"));
        let place = format!("error: EndpointSlice n/e: {field}: ");
        let is_it = |found: &String| found.contains(&place) && found.contains(problem);
        assert!(findings.iter().any(is_it), "{rest}: {findings:?}");
    }
    let (read, findings) = slice(
        "addressType: IPv4\nports: [{port: 1}, {port: x}]\nendpoints: [{addresses: [x]}, {addresses: [10.0.0.1]}]\n",
    );
    assert_eq!((endpoints(&read), slice_ports(&read)), (vec!["10.0.0.1".to_owned()], vec![" 1/TCP".to_owned()]));
    assert_eq!(findings.len(), 2, "{findings:?}");
}

#[test]
fn an_address_counts_whatever_family_the_slice_says() {
    for (address_type, finding) in [
        ("addressType: IPv6\n", "endpoints[0].addresses[0]: 10.0.0.1 is not of the slice's `addressType`"),
        ("addressType: ipv4\n", "addressType: unknown address type \"ipv4\""),
        ("addressType: null\n", "`addressType` is missing"),
        ("", "`addressType` is missing"),
    ] {
        let (read, findings) = slice(&format!("{address_type}endpoints: [{{addresses: [10.0.0.1]}}]\n"));
        assert_eq!(endpoints(&read), ["10.0.0.1"], "{address_type}");
        assert!(findings.len() == 1 && findings[0].contains(finding), "{findings:?}");
        assert!(findings[0].contains("warning: "), "{findings:?}");
    }
}

#[test]
fn services_and_slices_of_other_groups_are_passed_over_and_of_other_versions_named() {
    let body = "kind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv4\n";
    assert_eq!(read(body).objects.len(), 1);
    let old = read(&format!("apiVersion: discovery.k8s.io/v1beta1\n{body}"));
    assert_eq!(old.objects.len(), 1);
    assert_eq!(
        old.diagnostics[0].to_string(),
        "t.yaml:1: warning: EndpointSlice default/e: apiVersion: expected \"discovery.k8s.io/v1\", not \
         \"discovery.k8s.io/v1beta1\"; the object is read as EndpointSlice of discovery.k8s.io/v1"
    );
    let other = read(&format!("apiVersion: example.org/v1\n{body}"));
    assert!(other.objects.is_empty() && other.diagnostics.is_empty());
    let list =
        read("apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  spec: {clusterIP: 10.0.0.1}\n- {}\n");
    assert_eq!((list.objects.len(), list.diagnostics.len()), (1, 1), "{:?}", list.diagnostics);
}
