//! NetworkPolicy (`networking.k8s.io/v1`). A rule can only accept, so a part that cannot be read matches nothing, and the
//! isolation that the policy causes stays.

use std::sync::Arc;

use npolicy_common::Direction;

use super::cursor::{At, Harm, Report, nearest};
use super::metadata::{Scope, read_metadata};
use super::net::{note_host_bits, parse_cidr};
use super::selector::read_selector;
use super::tree::Value;
use crate::model::{
    IpBlock, Namespaces, NetworkPolicy, Peer, Peers, PodPeer, PolicyKey, PortEntry, PortProtocol, Ports, Rule,
    Selector, Severity,
};

const IGNORED: Harm = Harm::whole("nobody can say whom it selects, so the policy is ignored");
const BOTH_DIRECTIONS: Harm = Harm::part("without a readable `policyTypes` the policy isolates in both directions");
const DIRECTION: Harm = Harm::part("the policy isolates in this direction and accepts nothing");
const RULE: Harm = Harm::part("the rule matches nothing");
const PEER: Harm = Harm::part("the peer matches nothing");
const ENTRY: Harm = Harm::part("the entry matches nothing");

const SPEC: &[&str] = &["podSelector", "policyTypes", "ingress", "egress"];
const PEER_FIELDS: &[&str] = &["podSelector", "namespaceSelector", "ipBlock"];

/// What became of a policy.
pub(super) enum Reading {
    /// It can be enforced.
    Policy(NetworkPolicy),
    /// It is there, but nobody can say whom it selects.
    Unreadable(PolicyKey),
    /// It has no name.
    Nameless,
}

/// Reads a policy and reports every problem in it.
pub(super) fn read_policy(object: &At<'_>, report: &mut Report<'_>) -> Reading {
    let Some(metadata) = read_metadata(object, "NetworkPolicy", Scope::Namespaced, report) else {
        return Reading::Nameless;
    };
    let key = PolicyKey { namespace: metadata.namespace, name: metadata.name };
    let known = &["apiVersion", "kind", "metadata", "spec", "status"];
    let Some(spec) = object.get("spec") else {
        // A misspelt `spec` hides the subject; a policy without one has every default.
        if report.unknown_fields(object, known, IGNORED).is_some() {
            return Reading::Unreadable(key);
        }
        report.say(
            Severity::Warning,
            object,
            "no `spec`: it isolates every pod of its namespace on ingress".to_owned(),
        );
        let subject = Selector::everything();
        return Reading::Policy(NetworkPolicy { key, subject, ingress: Some(Vec::new()), egress: None });
    };
    report.unknown_fields(object, known, Harm::part("it is not read"));
    match read_spec(key.clone(), &spec, report) {
        Ok(policy) => Reading::Policy(policy),
        Err(_) => Reading::Unreadable(key),
    }
}

fn read_spec(key: PolicyKey, spec: &At<'_>, report: &mut Report<'_>) -> Result<NetworkPolicy, Arc<str>> {
    let Some(entries) = spec.entries() else {
        return Err(report.broken(spec, IGNORED, format!("must be a map, not {}", spec.value())));
    };
    let subject = match spec.get("podSelector") {
        Some(selector) => read_selector(&selector, IGNORED, report)?,
        None => {
            let misspelt = entries
                .iter()
                .find(|entry| !SPEC.contains(&&*entry.key) && nearest(&entry.key, SPEC) == Some("podSelector"));
            if misspelt.is_some() {
                return Err(report.unknown_fields(spec, SPEC, IGNORED).expect("one was just found"));
            }
            Selector::everything()
        }
    };
    let has_types = spec.get("policyTypes").is_some_and(|types| types.items().is_none_or(|items| items.len() > 0));
    let unknown =
        report.unknown_fields(spec, SPEC, if has_types { Harm::part("it is not read") } else { BOTH_DIRECTIONS });
    let [ingress, egress] = if has_types {
        read_types(&spec.get("policyTypes").expect("it was just found"), report)
    } else if unknown.is_some() {
        [true, true]
    } else {
        // Ingress always; Egress if there is a rule for it, even an empty one (API field `policyTypes`).
        [true, spec.get("egress").is_some_and(|rules| rules.items().is_none_or(|items| items.len() > 0))]
    };
    let mut rules = |isolates: bool, direction| isolates.then(|| read_rules(spec, direction, report));
    Ok(NetworkPolicy {
        key,
        subject,
        ingress: rules(ingress, Direction::Ingress),
        egress: rules(egress, Direction::Egress),
    })
}

/// Whether `policyTypes` names ingress and egress. Unknown entries count for nothing; if no entry is known, both.
fn read_types(at: &At<'_>, report: &mut Report<'_>) -> [bool; 2] {
    const UNKNOWN: Harm = Harm::part("the entry is ignored");
    let Some(items) = at.items() else {
        report.broken(at, BOTH_DIRECTIONS, format!("must be a list, not {}", at.value()));
        return [true, true];
    };
    let mut types = [false, false];
    for item in items {
        match item.text() {
            Some("Ingress") => types[0] = true,
            Some("Egress") => types[1] = true,
            _ => {
                let problem = format!("unknown policy type {}, expected Ingress or Egress", item.value());
                report.broken(&item, UNKNOWN, problem);
            }
        }
    }
    if types == [false, false] {
        report.broken(at, BOTH_DIRECTIONS, "no known policy type");
        return [true, true];
    }
    types
}

fn read_rules(spec: &At<'_>, direction: Direction, report: &mut Report<'_>) -> Vec<Rule> {
    let (field, peers, other) = match direction {
        Direction::Ingress => ("ingress", "from", "to"),
        Direction::Egress => ("egress", "to", "from"),
    };
    let Some(at) = spec.get(field) else { return Vec::new() };
    let Some(items) = at.items() else {
        report.broken(&at, DIRECTION, format!("must be a list, not {}", at.value()));
        return Vec::new();
    };
    items.map(|rule| read_rule(&rule, [peers, other], report).unwrap_or_else(Rule::Broken)).collect()
}

fn read_rule(at: &At<'_>, [peers, other]: [&str; 2], report: &mut Report<'_>) -> Result<Rule, Arc<str>> {
    if at.entries().is_none() {
        let hint = if *at.value() == Value::Null { ", a rule that accepts everything is written {}" } else { "" };
        return Err(report.broken(at, RULE, format!("must be a map, not {}{hint}", at.value())));
    }
    // A broken rule is read to its end, so that every mistake in it is named.
    let mut problem = at
        .get(other)
        .map(|wrong| report.broken(&wrong, RULE, format!("unknown field `{other}`, did you mean `{peers}`?")));
    if problem.is_none() {
        problem = report.unknown_fields(at, &[peers, "ports"], RULE);
    }
    let peers = read_list(at, peers, report, read_peer, Peer::Broken);
    let ports = read_list(at, "ports", report, read_port, PortEntry::Broken);
    match (problem, peers, ports) {
        (Some(problem), _, _) | (None, Err(problem), _) | (None, _, Err(problem)) => Err(problem),
        (None, Ok(peers), Ok(ports)) => {
            Ok(Rule::Accept { peers: peers.map_or(Peers::Any, Peers::Of), ports: ports.map_or(Ports::Any, Ports::Of) })
        }
    }
}

/// Reads the items of a rule's list; `None`: it is absent or empty. An item that is broken keeps its place.
fn read_list<T>(
    rule: &At<'_>,
    key: &str,
    report: &mut Report<'_>,
    read: impl Fn(&At<'_>, &mut Report<'_>) -> Result<T, Arc<str>>,
    broken: impl Fn(Arc<str>) -> T,
) -> Result<Option<Vec<T>>, Arc<str>> {
    let Some(list) = rule.get(key) else { return Ok(None) };
    let Some(items) = list.items() else {
        return Err(report.broken(&list, RULE, format!("must be a list, not {}", list.value())));
    };
    let items: Vec<T> = items.map(|item| read(&item, report).unwrap_or_else(&broken)).collect();
    Ok(if items.is_empty() { None } else { Some(items) })
}

fn read_peer(at: &At<'_>, report: &mut Report<'_>) -> Result<Peer, Arc<str>> {
    if at.entries().is_none() {
        return Err(report.broken(at, PEER, format!("must be a map, not {}", at.value())));
    }
    if let Some(problem) = report.unknown_fields(at, PEER_FIELDS, PEER) {
        return Err(problem);
    }
    let pods = at.get("podSelector").map(|selector| read_selector(&selector, PEER, report)).transpose()?;
    let namespaces = at.get("namespaceSelector").map(|selector| read_selector(&selector, PEER, report)).transpose()?;
    match (at.get("ipBlock"), pods, namespaces) {
        (None, None, None) => {
            Err(report.broken(at, PEER, "an empty peer: expected `podSelector`, `namespaceSelector` or `ipBlock`"))
        }
        (Some(block), None, None) => read_block(&block, report).map(Peer::Block),
        (Some(_), _, _) => Err(report.broken(at, PEER, "`ipBlock` cannot stand beside a selector in one peer")),
        (None, pods, namespaces) => Ok(Peer::Pods(PodPeer {
            namespaces: namespaces.map_or(Namespaces::Own, Namespaces::Matching),
            pods: pods.unwrap_or_default(),
        })),
    }
}

fn read_block(at: &At<'_>, report: &mut Report<'_>) -> Result<IpBlock, Arc<str>> {
    if at.entries().is_none() {
        return Err(report.broken(at, PEER, format!("must be a map, not {}", at.value())));
    }
    if let Some(problem) = report.unknown_fields(at, &["cidr", "except"], PEER) {
        return Err(problem);
    }
    let Some(cidr) = at.get("cidr") else { return Err(report.broken(at, PEER, "`cidr` is missing")) };
    let block = read_cidr(&cidr, report)?;
    let mut excepts = Vec::new();
    if let Some(list) = at.get("except") {
        let Some(items) = list.items() else {
            return Err(report.broken(&list, PEER, format!("must be a list, not {}", list.value())));
        };
        for item in items {
            let except = read_cidr(&item, report)?;
            if except == block || !block.contains(&except) {
                let message = format!("{except} is not a smaller block inside {block}; it is subtracted all the same");
                report.say(Severity::Warning, &item, message);
            }
            excepts.push(except);
        }
    }
    Ok(IpBlock::new(block, excepts))
}

fn read_cidr(at: &At<'_>, report: &mut Report<'_>) -> Result<ipnet::IpNet, Arc<str>> {
    let parsed = match at.text() {
        Some(text) => parse_cidr(text),
        None => Err(format!("must be a block like \"10.0.0.0/8\", not {}", at.value())),
    };
    let block = parsed.map_err(|problem| report.broken(at, PEER, problem))?;
    note_host_bits(at, &block, report);
    Ok(block)
}

fn read_port(at: &At<'_>, report: &mut Report<'_>) -> Result<PortEntry, Arc<str>> {
    if at.entries().is_none() {
        return Err(report.broken(at, ENTRY, format!("must be a map, not {}", at.value())));
    }
    if let Some(problem) = report.unknown_fields(at, &["protocol", "port", "endPort"], ENTRY) {
        return Err(problem);
    }
    let protocol = match at.get("protocol") {
        None => PortProtocol::Tcp,
        Some(protocol) => match protocol.text().and_then(PortProtocol::from_name) {
            Some(known) => known,
            None => {
                let problem = format!("unknown protocol {}, expected TCP, UDP or SCTP", protocol.value());
                return Err(report.broken(&protocol, ENTRY, problem));
            }
        },
    };
    let end = at.get("endPort");
    let Some(port) = at.get("port") else {
        return match end {
            None => Ok(PortEntry::All(protocol)),
            Some(end) => Err(report.broken(&end, ENTRY, "`endPort` needs a numeric `port`")),
        };
    };
    match (port.value(), end) {
        (Value::Text(_), Some(end)) => Err(report.broken(&end, ENTRY, "`endPort` needs a numeric `port`")),
        (Value::Text(name), None) if is_port_name(name) => Ok(PortEntry::Named { protocol, name: (&**name).into() }),
        (Value::Text(name), None) => {
            let problem = if name.parse::<u16>().is_ok() {
                format!("{name:?} is text, a port number is written without quotes")
            } else {
                format!("{name:?} is no port name: 1 to 15 of a-z 0-9 -, a letter among them")
            };
            Err(report.broken(&port, ENTRY, problem))
        }
        (&Value::Integer(number), end) => {
            let Some(first) = u16::try_from(number).ok().filter(|&number| number > 0) else {
                return Err(report.broken(&port, ENTRY, format!("port {number} is outside 1 to 65535")));
            };
            let Some(end) = end else { return Ok(PortEntry::Range { protocol, first, last: first }) };
            let &Value::Integer(number) = end.value() else {
                return Err(report.broken(&end, ENTRY, format!("must be a number, not {}", end.value())));
            };
            match u16::try_from(number) {
                Ok(last) if last >= first => Ok(PortEntry::Range { protocol, first, last }),
                Err(_) if number > 0 => Err(report.broken(&end, ENTRY, format!("endPort {number} is above 65535"))),
                _ => Err(report.broken(&end, ENTRY, format!("endPort {number} is below port {first}"))),
            }
        }
        (other, _) => Err(report.broken(&port, ENTRY, format!("must be a number or a port name, not {other}"))),
    }
}

/// IANA service name (`ValidatePortName`): 1 to 15 of `[a-z0-9-]`, a letter among them, no hyphen at an end or beside
/// another.
pub(super) fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
