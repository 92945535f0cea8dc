//! A denial, told to people: when, who, whom, which policies, and the one change that would have allowed it.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use npolicy_common::{Direction, EventState, FlowEvent, Protocol, Reason};
use serde_json::{Map, Value, json};

/// One end of a denied packet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct End {
    /// Its address, unless the frame had none.
    pub address: Option<IpAddr>,
    /// Its port, for protocols that have ports.
    pub port: Option<u16>,
    /// The pod that owns the address: namespace and name.
    pub pod: Option<(String, String)>,
    /// The node that owns the address.
    pub node: Option<String>,
    /// The pod's labels, `key=value`.
    pub labels: Vec<String>,
}

/// A policy that had a part in a denial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyRef {
    /// `NetworkPolicy` or `ClusterNetworkPolicy`.
    pub kind: &'static str,
    /// Namespace, for a NetworkPolicy.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", Plain(&self.name)),
            None => write!(f, "{}", Plain(&self.name)),
        }
    }
}

/// The rule of a ClusterNetworkPolicy that denied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleRef {
    /// `Admin` or `Baseline`.
    pub tier: String,
    /// The policy's name.
    pub policy: String,
    /// The policy's place within its tier.
    pub priority: u16,
    /// Where in the policy, like `ingress[0]`.
    pub rule: String,
    /// The rule's own name.
    pub name: Option<String>,
    /// What could be done about it.
    pub advice: String,
}

/// `Admin policy tenants, priority 20, ingress[1] ("own tenant only"); no change in a NetworkPolicy can allow it`
impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tier, policy, priority, rule, name, advice } = self;
        write!(f, "{tier} policy {}, priority {priority}, {rule}", Plain(policy))?;
        if let Some(name) = name {
            write!(f, " (\"{}\")", Plain(name))?;
        }
        write!(f, "; {}", Plain(advice))
    }
}

/// The Service that a denied packet was for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// How many backends the pod may be sent to.
    pub backends: usize,
    /// How many of them policy accepts.
    pub accepted: usize,
    /// The first that it does not accept, for which the policies and the rule are told: name and address.
    pub denied: Option<String>,
}

impl ServiceRef {
    /// Whether some backends are accepted and some are not.
    pub fn is_mixed(&self) -> bool {
        (1..self.backends).contains(&self.accepted)
    }
}

/// `service prod/api: MixedBackends, 1 of 2 accepted, not prod/api2 10.0.1.22:9000`
impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name, backends, accepted, denied } = self;
        write!(f, "service {namespace}/{}", Plain(name))?;
        match (self.is_mixed(), backends) {
            (_, 0) => f.write_str(" leads nowhere from here")?,
            (true, _) => write!(f, ": MixedBackends, {accepted} of {backends} accepted")?,
            (false, _) => write!(f, ": {accepted} of {backends} backends accepted")?,
        }
        denied.as_ref().map_or(Ok(()), |denied| write!(f, ", not {}", Plain(denied)))
    }
}

/// One denial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DropLine {
    /// When it was read from the ring buffer, some milliseconds after the packet.
    pub time: jiff::Timestamp,
    /// This node.
    pub node: String,
    /// From the judged pod's side.
    pub direction: Direction,
    /// Whether the packet opened something, belonged to a flow or answered one.
    pub state: EventState,
    /// Why.
    pub reason: Reason,
    /// IP protocol; none for a frame that is not IP.
    pub protocol: Option<Protocol>,
    /// EtherType of the frame.
    pub ether_type: u16,
    /// ICMP type, where the protocol is ICMP.
    pub icmp_type: Option<u8>,
    /// Who sent it.
    pub source: End,
    /// Whom it was for.
    pub destination: End,
    /// The Service that it was for.
    pub service: Option<ServiceRef>,
    /// The rule of a ClusterNetworkPolicy that denied it.
    pub denied_by: Option<RuleRef>,
    /// Where NetworkPolicy denied it: the policies that isolate the judged pod in this direction; all of them.
    pub isolated_by: Vec<PolicyRef>,
    /// The one change of a NetworkPolicy that would have allowed it.
    pub nearest_miss: Option<String>,
    /// Generation of the judged pod's rulesets.
    pub generation: u32,
    /// Equal denials left out before this one.
    pub repeats: u64,
}

impl DropLine {
    /// Reads what the kernel says; names and policies are added by whoever knows the cluster of that generation.
    pub fn from_event(event: &FlowEvent, time: jiff::Timestamp, node: &str, repeats: u64) -> Self {
        let direction = Direction::from_index(u32::from(event.direction));
        let is_ip = matches!(event.ether_type, 0x0800 | 0x86dd);
        let protocol = is_ip.then_some(Protocol(event.protocol));
        let has_ports = protocol.is_some_and(Protocol::has_ports);
        let address = |bytes: [u8; 16]| match event.ether_type {
            0x0800 => Some(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))),
            0x86dd => Some(IpAddr::V6(Ipv6Addr::from(bytes))),
            _ => None,
        };
        let end = |bytes, port| End { address: address(bytes), port: has_ports.then_some(port), ..End::default() };
        let local = end(event.local, event.local_port);
        let remote = end(event.remote, event.remote_port);
        let (source, destination) = match direction {
            Direction::Ingress => (remote, local),
            Direction::Egress => (local, remote),
        };
        Self {
            time,
            node: node.to_owned(),
            direction,
            state: event.state,
            // A number from the future names no reason of ours; the packet was dropped all the same.
            reason: Reason::try_from(event.reason).unwrap_or(Reason::Policy),
            protocol,
            ether_type: event.ether_type,
            icmp_type: matches!(protocol, Some(Protocol::ICMP | Protocol::ICMPV6)).then_some(event.remote_port as u8),
            source,
            destination,
            service: None,
            denied_by: None,
            isolated_by: Vec::new(),
            nearest_miss: None,
            generation: event.generation,
            repeats,
        }
    }

    /// The judged pod's end.
    pub fn local_mut(&mut self) -> &mut End {
        match self.direction {
            Direction::Ingress => &mut self.destination,
            Direction::Egress => &mut self.source,
        }
    }

    /// The other end.
    pub fn remote_mut(&mut self) -> &mut End {
        match self.direction {
            Direction::Ingress => &mut self.source,
            Direction::Egress => &mut self.destination,
        }
    }

    fn protocol_name(&self) -> String {
        match self.protocol {
            None => format!("EtherType 0x{:04x}", self.ether_type),
            Some(Protocol::TCP) => "TCP".into(),
            Some(Protocol::UDP) => "UDP".into(),
            Some(Protocol::SCTP) => "SCTP".into(),
            Some(Protocol::ICMP) => "ICMP".into(),
            Some(Protocol::ICMPV6) => "ICMPv6".into(),
            Some(Protocol(number)) => format!("protocol {number}"),
        }
    }

    /// The line as one JSON object in the shape of Hubble's flow export (`flow.*`, `node_name`, `time`), our own fields
    /// under `npolicy`.
    pub fn to_json(&self) -> String {
        let mut flow = Map::new();
        flow.insert("time".into(), json!(self.time.to_string()));
        flow.insert("verdict".into(), json!("DROPPED"));
        flow.insert("drop_reason_desc".into(), json!(hubble_reason(self.reason)));
        if let (Some(source), Some(destination)) = (self.source.address, self.destination.address) {
            let version = if source.is_ipv4() { "IPv4" } else { "IPv6" };
            flow.insert(
                "IP".into(),
                json!({"source": source.to_string(), "destination": destination.to_string(), "ipVersion": version}),
            );
        }
        if let Some(l4) = self.l4() {
            flow.insert("l4".into(), l4);
        }
        flow.insert("source".into(), end_json(&self.source));
        flow.insert("destination".into(), end_json(&self.destination));
        flow.insert("Type".into(), json!("L3_L4"));
        flow.insert("node_name".into(), json!(self.node));
        let reply = self.state == EventState::REPLY;
        flow.insert("is_reply".into(), json!(reply));
        let (direction, denied_by) = match self.direction {
            Direction::Ingress => ("INGRESS", "ingress_denied_by"),
            Direction::Egress => ("EGRESS", "egress_denied_by"),
        };
        flow.insert("traffic_direction".into(), json!(direction));
        let ruling = self.denied_by.as_ref().map(|rule| PolicyRef {
            kind: "ClusterNetworkPolicy",
            namespace: None,
            name: rule.policy.clone(),
        });
        let policies: Vec<Value> = ruling.iter().chain(&self.isolated_by).map(policy_json).collect();
        if !policies.is_empty() {
            flow.insert(denied_by.into(), json!(policies));
        }
        if let Some(ServiceRef { namespace, name, .. }) = &self.service {
            flow.insert("destination_service".into(), json!({"namespace": namespace, "name": name}));
        }
        flow.insert("Summary".into(), json!(self.protocol_name()));
        json!({
            "flow": flow,
            "node_name": self.node,
            "time": self.time.to_string(),
            "npolicy": {
                "reason": self.reason.name(),
                "state": state_name(self.state),
                "tier": self.tier(),
                "service": self.service.as_ref().map(service_json),
                "denied_by": self.denied_by.as_ref().map(rule_json),
                "isolated_by": self.isolated_by.iter().map(PolicyRef::to_string).collect::<Vec<_>>(),
                "nearest_miss": self.nearest_miss,
                "generation": self.generation,
                "repeats": self.repeats,
            },
        })
        .to_string()
    }

    /// The tier that decided, where one did.
    fn tier(&self) -> Option<&str> {
        let isolated = (!self.isolated_by.is_empty()).then_some("NetworkPolicy");
        self.denied_by.as_ref().map(|rule| rule.tier.as_str()).or(isolated)
    }

    fn l4(&self) -> Option<Value> {
        let ports = || json!({"source_port": self.source.port, "destination_port": self.destination.port});
        match self.protocol? {
            Protocol::TCP => Some(json!({"TCP": ports()})),
            Protocol::UDP => Some(json!({"UDP": ports()})),
            Protocol::SCTP => Some(json!({"SCTP": ports()})),
            Protocol::ICMP => Some(json!({"ICMPv4": {"type": self.icmp_type}})),
            Protocol::ICMPV6 => Some(json!({"ICMPv6": {"type": self.icmp_type}})),
            _ => None,
        }
    }
}

/// `14:03:07.123 DENY ingress dev/frontend 10.0.0.4:51034 -> prod/database 10.0.0.2:8080 TCP: policy, isolated by
/// prod/database-allow-backends; nearest: ...`
impl fmt::Display for DropLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        write!(
            f,
            "{} {} DENY {direction} {} -> {} {}",
            self.time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
            Plain(&self.node),
            self.source,
            self.destination,
            self.protocol_name()
        )?;
        if let Some(icmp_type) = self.icmp_type {
            write!(f, " type {icmp_type}")?;
        }
        match self.state {
            EventState::ORIGINAL => f.write_str(" (of a running flow)")?,
            EventState::REPLY => f.write_str(" (answer of a running flow)")?,
            _ => {}
        }
        write!(f, ": {}", self.reason.text())?;
        if let Some(service) = &self.service {
            write!(f, "; {service}")?;
        }
        if let Some(rule) = &self.denied_by {
            write!(f, "; denied by {rule}")?;
        }
        for (index, policy) in self.isolated_by.iter().enumerate() {
            f.write_str(if index == 0 { "; isolated by " } else { ", " })?;
            write!(f, "{policy}")?;
        }
        if let Some(miss) = &self.nearest_miss {
            write!(f, "; nearest miss: {}", Plain(miss))?;
        }
        if self.repeats > 0 {
            write!(f, "; {} more like it before", self.repeats)?;
        }
        Ok(())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.pod, &self.node) {
            (Some((namespace, name)), _) => write!(f, "{}/{} ", Plain(namespace), Plain(name))?,
            (None, Some(node)) => write!(f, "node {} ", Plain(node))?,
            (None, None) => {}
        }
        match (self.address, self.port) {
            (Some(IpAddr::V4(address)), Some(port)) => write!(f, "{address}:{port}"),
            (Some(IpAddr::V6(address)), Some(port)) => write!(f, "[{address}]:{port}"),
            (Some(address), None) => write!(f, "{address}"),
            (None, _) => f.write_str("?"),
        }
    }
}

/// Text that stays on its line: control characters are written as escapes.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

fn end_json(end: &End) -> Value {
    let mut value = Map::new();
    if let Some((namespace, name)) = &end.pod {
        value.insert("namespace".into(), json!(namespace));
        value.insert("pod_name".into(), json!(name));
    }
    if let Some(node) = &end.node {
        value.insert("node_name".into(), json!(node));
    }
    if !end.labels.is_empty() {
        value.insert("labels".into(), json!(end.labels));
    }
    Value::Object(value)
}

fn policy_json(policy: &PolicyRef) -> Value {
    json!({"kind": policy.kind, "namespace": policy.namespace, "name": policy.name})
}

fn rule_json(rule: &RuleRef) -> Value {
    let RuleRef { tier: _, policy, priority, rule, name, advice } = rule;
    json!({"policy": policy, "priority": priority, "rule": rule, "name": name, "advice": advice})
}

fn service_json(service: &ServiceRef) -> Value {
    let ServiceRef { namespace, name, backends, accepted, denied } = service;
    json!({
        "namespace": namespace,
        "name": name,
        "backends": backends,
        "accepted": accepted,
        "mixed_backends": service.is_mixed(),
        "denied": denied,
    })
}

const fn state_name(state: EventState) -> &'static str {
    match state {
        EventState::ORIGINAL => "running",
        EventState::REPLY => "reply",
        _ => "new",
    }
}

/// Hubble's `DropReason` nearest to ours; the exact one stands under `npolicy.reason`.
const fn hubble_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Policy | Reason::Service | Reason::Unidentified | Reason::NoEndpoint => "POLICY_DENIED",
        Reason::Spoof => "INVALID_SOURCE_IP",
        Reason::ForgedNeighbour => "INVALID_SOURCE_MAC",
        Reason::Malformed => "INVALID_PACKET_DROPPED",
        Reason::Fragment => "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND",
        Reason::Tagged => "VLAN_FILTERED",
        Reason::NotIp => "UNSUPPORTED_L2_PROTOCOL",
        Reason::Unjudgeable => "UNSUPPORTED_L3_PROTOCOL",
        Reason::NoFlow | Reason::UnrelatedError => "CT_NO_MAP_FOUND",
        _ => "DROP_REASON_UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> DropLine {
        let mut local = [0; 16];
        local[..4].copy_from_slice(&[10, 0, 0, 2]);
        let mut remote = [0; 16];
        remote[..4].copy_from_slice(&[10, 0, 0, 4]);
        let event = FlowEvent {
            jiffies: 0,
            remote,
            local,
            generation: 3,
            ruleset: 4,
            class: 5,
            ifindex: 3,
            endpoint: 1,
            remote_port: 51_034,
            local_port: 8080,
            ether_type: 0x0800,
            protocol: 6,
            reason: Reason::Policy as u8,
            direction: 0,
            state: EventState::NEW,
            reserved: 0,
        };
        let mut line = DropLine::from_event(&event, jiff::Timestamp::UNIX_EPOCH, "n1", 0);
        line.source.pod = Some(("dev".into(), "frontend".into()));
        line.destination.pod = Some(("prod".into(), "database".into()));
        line.isolated_by = vec![PolicyRef {
            kind: "NetworkPolicy",
            namespace: Some("prod".into()),
            name: "database-allow-backends".into(),
        }];
        line
    }

    #[test]
    fn says_who_whom_and_which_policy() {
        assert_eq!(
            line().to_string(),
            "1970-01-01T00:00:00.000Z n1 DENY ingress dev/frontend 10.0.0.4:51034 -> prod/database 10.0.0.2:8080 TCP: \
             policy; isolated by prod/database-allow-backends"
        );
    }

    #[test]
    fn json_has_hubbles_shape() {
        let value: Value = serde_json::from_str(&line().to_json()).unwrap();
        let flow = &value["flow"];
        assert_eq!(flow["verdict"], "DROPPED");
        assert_eq!(flow["drop_reason_desc"], "POLICY_DENIED");
        assert_eq!(flow["IP"]["source"], "10.0.0.4");
        assert_eq!(flow["l4"]["TCP"]["destination_port"], 8080);
        assert_eq!(flow["source"]["pod_name"], "frontend");
        assert_eq!(flow["traffic_direction"], "INGRESS");
        assert_eq!(flow["ingress_denied_by"][0]["name"], "database-allow-backends");
        assert_eq!(value["npolicy"]["reason"], "Policy");
    }

    #[test]
    fn names_the_rule_of_a_cluster_policy() {
        let mut line = line();
        line.isolated_by.clear();
        line.denied_by = Some(RuleRef {
            tier: "Admin".into(),
            policy: "tenants".into(),
            priority: 20,
            rule: "ingress[1]".into(),
            name: Some("own tenant\nonly".into()),
            advice: "no change in a NetworkPolicy can allow it".into(),
        });
        assert_eq!(
            line.to_string(),
            "1970-01-01T00:00:00.000Z n1 DENY ingress dev/frontend 10.0.0.4:51034 -> prod/database 10.0.0.2:8080 TCP: \
             policy; denied by Admin policy tenants, priority 20, ingress[1] (\"own tenant\\nonly\"); no change in a \
             NetworkPolicy can allow it"
        );
        let value: Value = serde_json::from_str(&line.to_json()).unwrap();
        let denied_by = json!([{"kind": "ClusterNetworkPolicy", "namespace": null, "name": "tenants"}]);
        assert_eq!(value["flow"]["ingress_denied_by"], denied_by);
        assert_eq!(value["npolicy"]["tier"], "Admin");
        assert_eq!(value["npolicy"]["denied_by"]["rule"], "ingress[1]");
        assert_eq!(value["npolicy"]["isolated_by"], json!([]));
    }

    #[test]
    fn names_the_service_and_the_backend_that_is_denied() {
        let mut line = line();
        line.reason = Reason::Service;
        line.service = Some(ServiceRef {
            namespace: "prod".into(),
            name: "api".into(),
            backends: 2,
            accepted: 1,
            denied: Some("prod/api2 10.0.0.9:9000".into()),
        });
        let said = line.to_string();
        assert!(
            said.ends_with(
                "TCP: service backends; service prod/api: MixedBackends, 1 of 2 accepted, not prod/api2 10.0.0.9:9000; \
                 isolated by prod/database-allow-backends"
            ),
            "{said}"
        );
        let value: Value = serde_json::from_str(&line.to_json()).unwrap();
        assert_eq!(value["flow"]["destination_service"], json!({"namespace": "prod", "name": "api"}));
        assert_eq!(value["npolicy"]["service"]["mixed_backends"], true);
        assert_eq!(value["npolicy"]["tier"], "NetworkPolicy");
        line.service.as_mut().unwrap().accepted = 0;
        assert!(!line.to_string().contains("MixedBackends"));
    }

    #[test]
    fn a_name_with_control_characters_cannot_break_the_line() {
        let mut line = line();
        line.source.pod = Some(("dev\n".into(), "x\u{1b}[31m".into()));
        assert!(!line.to_string().contains(['\n', '\u{1b}']), "{line}");
        assert_eq!(line.to_json().lines().count(), 1);
    }

    #[test]
    fn a_refused_answer_never_reads_as_a_new_connection() {
        let mut line = line();
        line.state = EventState::REPLY;
        assert!(line.to_string().contains("answer of a running flow"));
        assert!(line.to_json().contains("\"is_reply\":true"));
    }
}
