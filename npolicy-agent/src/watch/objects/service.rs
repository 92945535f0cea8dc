//! Service (`v1`), as far as addresses go.
//!
//! A Service accepts what all of its backends accept. A backend or an address that cannot be read could thus turn a
//! denial into acceptance, so each that is left out is an error: the answers say that they are not certain. Where a part
//! can be read in two ways, it is read in the one that denies more.

use std::net::IpAddr;
use std::sync::Arc;

use super::cursor::{At, Harm, Report, nearest, unknown_field};
use super::metadata::{Scope, read_metadata};
use super::net::parse_ip;
use super::tree::Value;
use crate::model::{
    Condition, PortProtocol, Requirement, Selector, Service, ServiceKey, ServicePort, TrafficPolicy, Values,
};

const NOT_READ: Harm = Harm::part("it is not read");
const ADDRESS_LEFT_OUT: Harm = Harm::whole("without it the address counts as nobody's");
const PORT_LEFT_OUT: Harm = Harm::whole("the port is left out");
const NODE_PORT_LEFT_OUT: Harm = Harm::whole("the node port is left out");
pub(super) const SLICE_PORT_LEFT_OUT: Harm =
    Harm::whole("the port is left out, so what its endpoints deny is not seen");
const EVERY_BACKEND: Harm = Harm::part("it is read as Cluster, with the backends of every node");

const TOP: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];

/// Fields of `v1.ServiceSpec`.
const SPEC: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamily",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "ports",
    "publishNotReadyAddresses",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "topologyKeys",
    "trafficDistribution",
    "type",
];
/// Those that are read, but for the policies, whose default denies more.
const SPEC_READ: &[&str] = &["clusterIP", "clusterIPs", "externalIPs", "ports", "selector", "type"];

const PORT: &[&str] = &["name", "protocol", "port", "targetPort", "nodePort", "appProtocol"];
const INGRESS: &[&str] = &["ip", "hostname", "ipMode", "ports"];

/// What a Service says of the pods behind it: enough to tell its backends where no slice does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backing {
    /// `spec.selector`, never empty: a Service without one has slices that somebody else writes.
    pub selector: Selector,
    /// The ports that can be read, in written order.
    pub ports: Vec<BackingPort>,
}

/// A port of a Service and where it leads at a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackingPort {
    /// `name`; empty if it has none.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: PortProtocol,
    /// `targetPort`; `port` if absent.
    pub target: Target,
}

/// A port of a pod.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// By number.
    Number(u16),
    /// By the name of a container port.
    Name(Arc<str>),
}

/// Where `spec.type` has a Service listen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// Reads a Service, and what it says of its pods if it selects any. `None`: it has no name, and this was reported.
pub(super) fn read_service(object: &At<'_>, report: &mut Report<'_>) -> Option<(Service, Option<Backing>)> {
    let metadata = read_metadata(object, "Service", Scope::Namespaced, report)?;
    unknown_fields(object, TOP, &["spec", "status"], report);
    let mut service = Service {
        key: ServiceKey { namespace: metadata.namespace, name: metadata.name },
        cluster_addresses: Vec::new(),
        external_addresses: Vec::new(),
        ports: Vec::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
    };
    let Some(spec) = object.get("spec") else {
        report.broken(object, ADDRESS_LEFT_OUT, "`spec` is missing");
        return Some((service, None));
    };
    if !report.expect_map(&spec, ADDRESS_LEFT_OUT) {
        return Some((service, None));
    }
    unknown_fields(&spec, SPEC, SPEC_READ, report);
    let kind = read_type(&spec, report);
    if kind == ServiceType::ExternalName {
        // A name for another name, without addresses and ports.
        return Some((service, None));
    }
    service.internal_policy = read_traffic_policy(&spec, "internalTrafficPolicy", report);
    service.external_policy = read_traffic_policy(&spec, "externalTrafficPolicy", report);
    let mut targets = Vec::new();
    if let Some(ports) = spec.get("ports") {
        for item in report.expect_list(&ports, PORT_LEFT_OUT) {
            let Some(port) = read_port(&item, kind, report) else { continue };
            let target = read_target(&item, port.port, report);
            targets.extend(target.map(|target| BackingPort {
                name: port.name.clone(),
                protocol: port.protocol,
                target,
            }));
            service.ports.push(port);
        }
    }
    let is_headless = read_cluster_addresses(&spec, &mut service.cluster_addresses, report);
    if is_headless {
        // Names of pods, for whose addresses clients ask; kube-proxy passes it over.
        return Some((service, None));
    }
    if let Some(addresses) = spec.get("externalIPs") {
        for item in report.expect_list(&addresses, ADDRESS_LEFT_OUT) {
            add_address(&item, &mut service.external_addresses, report);
        }
    }
    if let Some(status) = object.get("status") {
        read_status(&status, &mut service.external_addresses, report);
    }
    let selector = spec.get("selector").and_then(|selector| read_selector(&selector, report));
    let backing = selector.map(|selector| Backing { selector, ports: targets });
    Some((service, backing))
}

fn read_type(spec: &At<'_>, report: &mut Report<'_>) -> ServiceType {
    const ALL_OF_IT: Harm = Harm::whole("every address and port of it counts");
    let Some(at) = spec.get("type") else { return ServiceType::ClusterIp };
    match at.text() {
        Some("ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        _ => {
            let expected = "expected ClusterIP, NodePort, LoadBalancer or ExternalName";
            report.broken(&at, ALL_OF_IT, format!("unknown type {}, {expected}", at.value()));
            ServiceType::LoadBalancer
        }
    }
}

fn read_traffic_policy(spec: &At<'_>, key: &str, report: &mut Report<'_>) -> TrafficPolicy {
    let Some(at) = spec.get(key) else { return TrafficPolicy::Cluster };
    match at.text() {
        Some("Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        _ => {
            report.broken(&at, EVERY_BACKEND, format!("{} is neither Cluster nor Local", at.value()));
            TrafficPolicy::Cluster
        }
    }
}

fn read_port(at: &At<'_>, kind: ServiceType, report: &mut Report<'_>) -> Option<ServicePort> {
    if !report.expect_map(at, PORT_LEFT_OUT) {
        return None;
    }
    unknown_fields(at, PORT, PORT, report);
    let Some(number) = at.get("port") else {
        report.broken(at, PORT_LEFT_OUT, "`port` is missing");
        return None;
    };
    let port = read_number(&number, PORT_LEFT_OUT, report);
    let protocol = read_protocol(at, PORT_LEFT_OUT, report);
    let name = read_name(at, PORT_LEFT_OUT, report);
    let node_port = at.get("nodePort").filter(|port| *port.value() != Value::Integer(0));
    let node_port = match (node_port, kind) {
        (Some(port), ServiceType::NodePort | ServiceType::LoadBalancer) => {
            read_number(&port, NODE_PORT_LEFT_OUT, report)
        }
        (Some(port), ServiceType::ClusterIp | ServiceType::ExternalName) => {
            report.broken(&port, NOT_READ, "only the types NodePort and LoadBalancer have node ports");
            None
        }
        (None, _) => None,
    };
    Some(ServicePort { name: name?, protocol: protocol?, port: port?, node_port })
}

/// Where a port leads at a pod; an empty or absent `targetPort`, or 0, is the port itself.
fn read_target(at: &At<'_>, port: u16, report: &mut Report<'_>) -> Option<Target> {
    let Some(target) = at.get("targetPort") else { return Some(Target::Number(port)) };
    match target.value() {
        Value::Integer(0) => Some(Target::Number(port)),
        Value::Text(name) if name.is_empty() => Some(Target::Number(port)),
        Value::Text(name) => Some(Target::Name((&**name).into())),
        Value::Integer(_) => read_number(&target, SLICE_PORT_LEFT_OUT, report).map(Target::Number),
        other => {
            report.broken(&target, SLICE_PORT_LEFT_OUT, format!("must be a number or a port name, not {other}"));
            None
        }
    }
}

/// Reads `clusterIPs` and `clusterIP`, which is the first of them; returns whether the Service is headless.
fn read_cluster_addresses(spec: &At<'_>, addresses: &mut Vec<IpAddr>, report: &mut Report<'_>) -> bool {
    let mut says_none = None;
    if let Some(at) = spec.get("clusterIPs") {
        for item in report.expect_list(&at, ADDRESS_LEFT_OUT) {
            match item.text() {
                Some("None") => says_none = Some("clusterIPs"),
                _ => add_address(&item, addresses, report),
            }
        }
    }
    let has_list = says_none.is_some() || !addresses.is_empty();
    match spec.get("clusterIP") {
        Some(at) if at.text() == Some("None") => says_none = Some("clusterIP"),
        // No cluster has given it one yet.
        Some(at) if at.text() == Some("") => {}
        Some(at) => {
            let before = addresses.len();
            add_address(&at, addresses, report);
            if has_list && addresses.len() > before {
                report.broken(&at, Harm::part("both count"), "it is none of `clusterIPs`");
            }
        }
        None => {}
    }
    match says_none {
        Some(key) if !addresses.is_empty() => {
            let at = spec.get(key);
            report.broken(at.as_ref().unwrap_or(spec), Harm::part("the address counts"), "None beside an address");
            false
        }
        says_none => says_none.is_some(),
    }
}

/// `status.loadBalancer.ingress[].ip`, except where the balancer is a proxy: it makes connections of its own.
fn read_status(at: &At<'_>, addresses: &mut Vec<IpAddr>, report: &mut Report<'_>) {
    if !report.expect_map(at, ADDRESS_LEFT_OUT) {
        return;
    }
    unknown_fields(at, &["loadBalancer", "conditions"], &["loadBalancer"], report);
    let Some(balancer) = at.get("loadBalancer").filter(|balancer| report.expect_map(balancer, ADDRESS_LEFT_OUT)) else {
        return;
    };
    unknown_fields(&balancer, &["ingress"], &["ingress"], report);
    let Some(ingress) = balancer.get("ingress") else { return };
    for item in report.expect_list(&ingress, ADDRESS_LEFT_OUT) {
        if !report.expect_map(&item, ADDRESS_LEFT_OUT) {
            continue;
        }
        unknown_fields(&item, INGRESS, &["ip", "ipMode"], report);
        let Some(ip) = item.get("ip").filter(|ip| ip.text() != Some("")) else { continue };
        if let Some(mode) = item.get("ipMode") {
            match mode.text() {
                Some("Proxy") => continue,
                Some("VIP") => {}
                _ => {
                    let problem = format!("{} is neither VIP nor Proxy", mode.value());
                    report.broken(&mode, Harm::whole("it is read as VIP"), problem);
                }
            }
        }
        add_address(&ip, addresses, report);
    }
}

fn add_address(at: &At<'_>, addresses: &mut Vec<IpAddr>, report: &mut Report<'_>) {
    match at.text().and_then(parse_ip) {
        Some(address) if addresses.contains(&address) => {}
        Some(address) => addresses.push(address),
        None => {
            report.broken(at, ADDRESS_LEFT_OUT, format!("{} is not an IP address", at.value()));
        }
    }
}

/// `spec.selector`: labels that a pod must have. `None`: it selects nothing, or nobody can say what.
fn read_selector(at: &At<'_>, report: &mut Report<'_>) -> Option<Selector> {
    const UNKNOWN_PODS: Harm = Harm::whole("nobody can say which pods it selects");
    let Some(entries) = at.entries() else {
        report.broken(at, UNKNOWN_PODS, format!("must be a map, not {}", at.value()));
        return None;
    };
    let mut requirements = Vec::new();
    let mut is_broken = false;
    for entry in entries {
        let value = match &entry.value.value {
            Value::Text(value) => &**value,
            // As in every map of texts of the API.
            Value::Null => "",
            other => {
                let problem = format!("a label's value must be text, not {other} (quote it)");
                report.broken(&at.field(entry), UNKNOWN_PODS, problem);
                is_broken = true;
                continue;
            }
        };
        let condition = Condition::In(Values::one(value.into()));
        requirements.push(Requirement { key: (&*entry.key).into(), condition });
    }
    (!is_broken && !requirements.is_empty()).then(|| Selector::all(requirements))
}

pub(super) fn read_name(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Option<Arc<str>> {
    let Some(name) = at.get("name") else { return Some("".into()) };
    if name.text().is_none() {
        report.broken(&name, harm, format!("must be text, not {}", name.value()));
    }
    name.text().map(Arc::from)
}

pub(super) fn read_protocol(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Option<PortProtocol> {
    let Some(protocol) = at.get("protocol") else { return Some(PortProtocol::Tcp) };
    let known = protocol.text().and_then(PortProtocol::from_name);
    if known.is_none() {
        report.broken(&protocol, harm, format!("unknown protocol {}, expected TCP, UDP or SCTP", protocol.value()));
    }
    known
}

pub(super) fn read_number(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Option<u16> {
    let problem = match *at.value() {
        Value::Integer(number) => match u16::try_from(number) {
            Ok(port) if port > 0 => return Some(port),
            _ => format!("port {number} is outside 1 to 65535"),
        },
        ref other => format!("must be a number, not {other}"),
    };
    report.broken(at, harm, problem);
    None
}

/// Names each unknown field. One that was likely meant as one that is `read` is an error: what it says is missing.
pub(super) fn unknown_fields(at: &At<'_>, known: &[&str], read: &[&str], report: &mut Report<'_>) {
    for entry in at.entries().unwrap_or_default().iter().filter(|entry| !known.contains(&&*entry.key)) {
        let is_missed = nearest(&entry.key, known).is_some_and(|meant| read.contains(&meant));
        let harm = if is_missed { Harm::whole("it is not read") } else { NOT_READ };
        report.broken(&at.field(entry), harm, unknown_field(&entry.key, known));
    }
}
