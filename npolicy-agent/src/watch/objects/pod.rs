//! Pod (`v1`), as far as policy can tell pods apart.

use std::net::IpAddr;

use jiff::Timestamp;

use super::cursor::{At, Harm, Report};
use super::metadata::{Scope, read_metadata, read_time};
use super::net::parse_ip;
use super::service::unknown_fields;
use super::tree::Value;
use crate::model::{Age, NamedPort, Phase, Pod, PodKey, PodNetwork, PortProtocol, family};

const NOT_READ: Harm = Harm::part("it is not read");
/// Who the pod is, where it is and what a port name means there: without it, what is denied may be accepted.
const MISSED: Harm = Harm::whole("it is not read");

/// Fields of `v1.PodSpec`.
const SPEC: &[&str] = &[
    "containers",
    "initContainers",
    "ephemeralContainers",
    "nodeName",
    "hostNetwork",
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "hostAliases",
    "hostIPC",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "schedulingGroup",
    "securityContext",
    "serviceAccount",
    "serviceAccountName",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
    "workloadRef",
];

/// Fields of `v1.PodStatus`.
const STATUS: &[&str] = &[
    "phase",
    "podIP",
    "podIPs",
    "startTime",
    "allocatedResources",
    "conditions",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "extendedResourceClaimStatus",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "nominatedNodeName",
    "observedGeneration",
    "qosClass",
    "reason",
    "resize",
    "resourceClaimStatuses",
    "resources",
];

/// Fields of `v1.Container`.
const CONTAINER: &[&str] = &[
    "name",
    "ports",
    "restartPolicy",
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicyRules",
    "securityContext",
    "startupProbe",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];

/// Reads a pod. `None`: it has no name, and this was reported.
pub(super) fn read_pod(object: &At<'_>, report: &mut Report<'_>) -> Option<Pod> {
    let metadata = read_metadata(object, "Pod", Scope::Namespaced, report)?;
    unknown_fields(object, &["apiVersion", "kind", "metadata", "spec", "status"], &["spec", "status"], report);
    let mut pod = Pod {
        key: PodKey { namespace: metadata.namespace, name: metadata.name },
        labels: metadata.labels,
        node: None,
        network: PodNetwork::Own,
        ports: Vec::new(),
        addresses: Vec::new(),
        phase: Phase::Planned,
        age: Age { started: None, created: metadata.created, uid: metadata.uid },
        sandbox: None,
    };
    if let Some(spec) = object.get("spec").filter(|spec| report.expect_map(spec, NOT_READ)) {
        unknown_fields(&spec, SPEC, &["containers", "hostNetwork", "initContainers", "nodeName"], report);
        if let Some(node) = spec.get("nodeName") {
            pod.node = node.text().filter(|name| !name.is_empty()).map(Into::into);
            if node.text().is_none() {
                report.broken(&node, MISSED, format!("must be text, not {} (quote it)", node.value()));
            }
        }
        if let Some(host) = spec.get("hostNetwork") {
            match host.value() {
                Value::Bool(true) => pod.network = PodNetwork::Host,
                Value::Bool(false) => {}
                // YAML 1.1, which kubectl reads, knows more words for it.
                Value::Text(yes) if ["yes", "on", "y"].iter().any(|word| yes.eq_ignore_ascii_case(word)) => {
                    pod.network = PodNetwork::Host;
                }
                Value::Text(no) if ["no", "off", "n"].iter().any(|word| no.eq_ignore_ascii_case(word)) => {}
                other => {
                    report.broken(&host, MISSED, format!("must be true or false, not {other}"));
                }
            }
        }
        if let Some(containers) = spec.get("containers") {
            for container in report.expect_list(&containers, NOT_READ) {
                read_container(&container, &mut pod.ports, report);
            }
        }
        if let Some(containers) = spec.get("initContainers") {
            for container in report.expect_list(&containers, NOT_READ) {
                // A restartable init container runs beside the others; ordinary ones are gone when a peer connects.
                let mut ports_of_ordinary = Vec::new();
                let restarts = container.get("restartPolicy");
                if let Some(restarts) = restarts.as_ref().filter(|restarts| restarts.text().is_none()) {
                    report.broken(restarts, NOT_READ, format!("must be text, not {}", restarts.value()));
                }
                let is_restartable = restarts.is_some_and(|restarts| restarts.text() == Some("Always"));
                let ports = if is_restartable { &mut pod.ports } else { &mut ports_of_ordinary };
                read_container(&container, ports, report);
            }
        }
    }
    if let Some(status) = object.get("status").filter(|status| report.expect_map(status, NOT_READ))
        && status.entries().is_some_and(|fields| !fields.is_empty())
    {
        read_status(&status, &mut pod, report);
    }
    Some(pod)
}

fn read_container(at: &At<'_>, ports: &mut Vec<NamedPort>, report: &mut Report<'_>) {
    if !report.expect_map(at, NOT_READ) {
        return;
    }
    unknown_fields(at, CONTAINER, &["ports"], report);
    let Some(list_at) = at.get("ports") else { return };
    for port in report.expect_list(&list_at, NOT_READ) {
        let known = &["name", "containerPort", "protocol", "hostPort", "hostIP"];
        unknown_fields(&port, known, &["name", "containerPort", "protocol"], report);
        let number = port.get("containerPort");
        let number = match number.as_ref().map(At::value) {
            Some(&Value::Integer(number)) => u16::try_from(number).ok().filter(|&number| number > 0),
            _ => None,
        };
        let protocol = match port.get("protocol") {
            None => Some(PortProtocol::Tcp),
            Some(protocol) => protocol.text().and_then(PortProtocol::from_name),
        };
        let (Some(number), Some(protocol)) = (number, protocol) else {
            let problem = "expected `containerPort` from 1 to 65535 and `protocol` TCP, UDP or SCTP";
            report.broken(&port, Harm::whole("the port's name resolves to nothing"), problem);
            continue;
        };
        if let Some(name) = port.get("name") {
            match name.text() {
                Some(name) => ports.push(NamedPort { name: name.into(), protocol, number }),
                None => {
                    report.broken(&name, MISSED, format!("must be text, not {}", name.value()));
                }
            }
        }
    }
}

fn read_status(at: &At<'_>, pod: &mut Pod, report: &mut Report<'_>) {
    unknown_fields(at, STATUS, &["podIP", "podIPs"], report);
    pod.phase = match at.get("phase") {
        None => Phase::Pending,
        Some(phase) => match phase.text() {
            Some("Pending") => Phase::Pending,
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some("Unknown") => Phase::Unknown,
            _ => {
                let problem = format!("{} is not Pending, Running, Succeeded, Failed or Unknown", phase.value());
                report.broken(&phase, Harm::part("the pod counts as live"), problem);
                Phase::Unknown
            }
        },
    };
    pod.age.started = at.get("startTime").and_then(|time| read_time(&time, report));
    if let Some(addresses) = at.get("podIPs") {
        for item in report.expect_list(&addresses, MISSED) {
            if !report.expect_map(&item, MISSED) {
                continue;
            }
            unknown_fields(&item, &["ip"], &["ip"], report);
            if let Some(ip) = item.get("ip") {
                add_address(&ip, &mut pod.addresses, report);
            }
        }
    }
    pod.sandbox = read_sandbox(at, report);
    if pod.addresses.is_empty()
        && let Some(address) = at.get("podIP").filter(|address| address.text() != Some(""))
    {
        add_address(&address, &mut pod.addresses, report);
    }
}

/// When the sandbox came up: the kubelet's own word for it, else the newest start of a running container.
fn read_sandbox(at: &At<'_>, report: &mut Report<'_>) -> Option<Timestamp> {
    let conditions = at.get("conditions");
    for condition in conditions.as_ref().and_then(At::items).into_iter().flatten() {
        if condition.get("type").as_ref().and_then(At::text) != Some("PodReadyToStartContainers") {
            continue;
        }
        if condition.get("status").as_ref().and_then(At::text) != Some("True") {
            return None;
        }
        return condition.get("lastTransitionTime").and_then(|time| read_time(&time, report));
    }
    let mut started = None;
    let statuses = at.get("containerStatuses");
    for status in statuses.as_ref().and_then(At::items).into_iter().flatten() {
        let running = status.get("state").and_then(|state| {
            state.get("running").and_then(|running| running.get("startedAt").and_then(|time| read_time(&time, report)))
        });
        started = started.max(running);
    }
    started
}

fn add_address(at: &At<'_>, addresses: &mut Vec<IpAddr>, report: &mut Report<'_>) {
    const LEFT_OUT: Harm = Harm::part("the address is left out");
    match at.text().and_then(parse_ip) {
        None => {
            let harm = Harm::whole("the address is left out");
            report.broken(at, harm, format!("{} is not an IP address", at.value()));
        }
        Some(address) if addresses.iter().any(|&known| family(known) == family(address)) => {
            report.broken(at, LEFT_OUT, format!("{address} is the pod's second address of its family"));
        }
        Some(address) => addresses.push(address),
    }
}
