//! ClusterNetworkPolicy (`policy.networking.k8s.io`). Its rules accept, deny and pass in an order, so a rule that cannot be
//! read keeps its place and fails closed; a policy of which nobody can say when or to whom it applies is not applied.
//!
//! The API server takes a null out of such an object, so here null is absent, in labels too. An empty list is not: it is
//! nothing that the API server stores.

use std::sync::Arc;

use ipnet::IpNet;
use npolicy_common::Direction;

use super::Origin;
use super::cursor::{At, Harm, Report, nearest};
use super::metadata::{Scope, read_metadata};
use super::net::{note_host_bits, parse_cidr};
use super::selector::read_custom_selector;
use super::tree::Value;
use crate::model::{
    Action, ClusterMatch, ClusterPeer, ClusterPolicy, ClusterRule, PodSet, PortEntry, PortProtocol, Ports, Selector,
    Severity, Tier,
};

/// The group of the kind.
pub(super) const GROUP: &str = "policy.networking.k8s.io";
/// Versions of the group in which the kind has this shape, the newest first.
pub const VERSIONS: [&str; 2] = ["policy.networking.k8s.io/v1beta1", "policy.networking.k8s.io/v1alpha2"];

const NOT_APPLIED: Harm = Harm::whole("the policy is not applied");
const NOT_READ: Harm = Harm::part("it is not read");
const ONLY_DENIES: Harm = Harm::part("its rules accept nothing, and those that deny or pass deny what they match");
const UNKNOWN_ACTION: Harm = Harm::part("the rule denies what it matches");

const SPEC: &[&str] = &["tier", "priority", "subject", "ingress", "egress"];
const PEER_FIELDS: &[&str] = &["namespaces", "pods", "networks", "nodes", "domainNames"];
const ENTRY_FIELDS: &[&str] = &["tcp", "udp", "sctp", "destinationNamedPort"];

/// The highest `priority`.
const LAST_PRIORITY: i64 = 1000;
/// Items that the API server takes in a list: rules of a direction, peers, protocols, networks.
const MOST_ITEMS: usize = 25;
/// Characters that the API server takes in the name of a rule.
const LONGEST_NAME: usize = 100;

/// What became of a policy.
pub(super) enum Reading {
    /// It can be enforced.
    Policy(ClusterPolicy),
    /// It is there, but nobody can say when or to whom it applies.
    Unreadable(Arc<str>),
    /// It has no name.
    Nameless,
}

/// Reads a policy and reports every problem in it.
pub(super) fn read_cluster_policy(object: &At<'_>, report: &mut Report<'_>) -> Reading {
    let Some(metadata) = read_metadata(object, "ClusterNetworkPolicy", Scope::Cluster, report) else {
        return Reading::Nameless;
    };
    let known = &["apiVersion", "kind", "metadata", "spec", "status"];
    let Some(spec) = object.get("spec") else {
        if report.unknown_fields(object, known, NOT_APPLIED).is_none() {
            report.broken(object, NOT_APPLIED, "`spec` is missing");
        }
        return Reading::Unreadable(metadata.name);
    };
    // What stands beside the spec and looks like a part of it is missing there: rules that deny, perhaps.
    let is_misplaced = |key: &str| !known.contains(&key) && nearest(key, SPEC).is_some();
    if object.entries().unwrap_or_default().iter().any(|entry| is_misplaced(&entry.key)) {
        report.unknown_fields(object, known, NOT_APPLIED);
        return Reading::Unreadable(metadata.name);
    }
    report.unknown_fields(object, known, NOT_READ);
    match read_spec(metadata.name.clone(), &spec, report) {
        Some(policy) => Reading::Policy(policy),
        None => Reading::Unreadable(metadata.name),
    }
}

/// Reads the spec. `None`: it does not say when the policy is asked, for which pods, or what all of its rules are.
///
/// An unknown field of the spec may hold rules that deny, or narrow all of them. In a file it is most likely a typing error
/// and takes the whole policy, whose last good version stays. One that the API server has kept is of a later version of the
/// API, and there may be no last version: the policy keeps its place, and each rule denies at most what it names
/// ([`narrow`]).
fn read_spec(name: Arc<str>, spec: &At<'_>, report: &mut Report<'_>) -> Option<ClusterPolicy> {
    if spec.entries().is_none() {
        report.broken(spec, NOT_APPLIED, format!("must be a map, not {}", spec.value()));
        return None;
    }
    let is_later_version = report.origin == Origin::ApiServer;
    let unknown = report.unknown_fields(spec, SPEC, if is_later_version { ONLY_DENIES } else { NOT_APPLIED });
    let tier = read_tier(spec, report);
    let priority = read_priority(spec, report);
    let subject = match spec.get("subject") {
        Some(subject) => read_subject(&subject, report),
        None => Err(report.broken(spec, NOT_APPLIED, "`subject` is missing")),
    };
    for field in ["ingress", "egress"] {
        if let Some(rules) = spec.get(field).filter(|rules| rules.items().is_none()) {
            report.broken(&rules, NOT_APPLIED, format!("must be a list, not {}", rules.value()));
            return None;
        }
    }
    let (Some(tier), Some(priority), Ok(subject)) = (tier, priority, subject) else { return None };
    if unknown.is_some() && !is_later_version {
        return None;
    }
    let mut rules = |direction| {
        let mut rules = read_rules(spec, direction, report);
        if let Some(problem) = &unknown {
            rules.iter_mut().for_each(|rule| narrow(rule, problem));
        }
        rules
    };
    Some(ClusterPolicy {
        name,
        tier,
        priority,
        subject,
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
    })
}

/// Makes of a rule what is certain to open nothing, whatever narrows its policy: one that accepts matches nothing; one that
/// denies or passes denies what it matches.
fn narrow(rule: &mut ClusterRule, problem: &Arc<str>) {
    match rule.action {
        Action::Accept => rule.matches = ClusterMatch::Unreadable(problem.clone()),
        Action::Deny => {}
        Action::Pass => rule.action = Action::Deny,
    }
}

fn read_tier(spec: &At<'_>, report: &mut Report<'_>) -> Option<Tier> {
    let Some(at) = spec.get("tier") else {
        report.broken(spec, NOT_APPLIED, "`tier` is missing, expected Admin or Baseline");
        return None;
    };
    match at.text() {
        Some("Admin") => Some(Tier::Admin),
        Some("Baseline") => Some(Tier::Baseline),
        _ => {
            report.broken(&at, NOT_APPLIED, format!("unknown tier {}, expected Admin or Baseline", at.value()));
            None
        }
    }
}

/// A policy without a priority, or with one out of bounds, has no place in the order.
fn read_priority(spec: &At<'_>, report: &mut Report<'_>) -> Option<u16> {
    let Some(at) = spec.get("priority") else {
        report.broken(spec, NOT_APPLIED, format!("`priority` is missing, expected 0 to {LAST_PRIORITY}"));
        return None;
    };
    match *at.value() {
        Value::Integer(priority) if (0..=LAST_PRIORITY).contains(&priority) => Some(priority as u16),
        _ => {
            let problem = format!("priority {} is not a number from 0 to {LAST_PRIORITY}", at.value());
            report.broken(&at, NOT_APPLIED, problem);
            None
        }
    }
}

fn read_subject(at: &At<'_>, report: &mut Report<'_>) -> Result<PodSet, Arc<str>> {
    const FIELDS: &[&str] = &["namespaces", "pods"];
    match only_field(at, FIELDS, "subject", NOT_APPLIED, report)? {
        ("namespaces", at) => read_namespaces(&at, NOT_APPLIED, report),
        (_, at) => read_pods(&at, NOT_APPLIED, report),
    }
}

fn read_namespaces(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Result<PodSet, Arc<str>> {
    Ok(PodSet { namespaces: read_custom_selector(at, harm, report)?, pods: Selector::everything() })
}

/// Without a `namespaceSelector`, the pods of every namespace: the policy has none of its own.
fn read_pods(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Result<PodSet, Arc<str>> {
    if at.entries().is_none() {
        return Err(report.broken(at, harm, format!("must be a map, not {}", at.value())));
    }
    let unknown = report.unknown_fields(at, &["namespaceSelector", "podSelector"], harm);
    let namespaces = match at.get("namespaceSelector") {
        Some(selector) => read_custom_selector(&selector, harm, report),
        None => {
            warn_of_null(at, "namespaceSelector", "the pods of every namespace", report);
            Ok(Selector::everything())
        }
    };
    let pods = match at.get("podSelector") {
        Some(selector) => read_custom_selector(&selector, harm, report),
        None => Err(report.broken(at, harm, "`podSelector` is missing, every pod is written {}")),
    };
    match unknown {
        Some(problem) => Err(problem),
        None => Ok(PodSet { namespaces: namespaces?, pods: pods? }),
    }
}

fn read_rules(spec: &At<'_>, direction: Direction, report: &mut Report<'_>) -> Vec<ClusterRule> {
    let field = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let Some(at) = spec.get(field) else { return Vec::new() };
    note_length(&at, report);
    at.items().into_iter().flatten().map(|rule| read_rule(&rule, direction, report)).collect()
}

fn read_rule(at: &At<'_>, direction: Direction, report: &mut Report<'_>) -> ClusterRule {
    if at.entries().is_none() {
        let problem = report.broken(at, fails_closed(Action::Deny), format!("must be a map, not {}", at.value()));
        return ClusterRule { name: None, action: Action::Deny, matches: ClusterMatch::Unreadable(problem) };
    }
    let action = read_action(at, report);
    let matches = read_matches(at, direction, fails_closed(action), report);
    ClusterRule { name: read_name(at, report), action, matches: matches.unwrap_or_else(ClusterMatch::Unreadable) }
}

/// What follows where a rule cannot be read (`fail closed`, API documentation of the peers).
const fn fails_closed(action: Action) -> Harm {
    match action {
        Action::Accept => Harm::part("the rule matches nothing"),
        Action::Deny | Action::Pass => Harm::part("the rule denies everything of its direction"),
    }
}

/// An unknown action may be one that denies.
fn read_action(rule: &At<'_>, report: &mut Report<'_>) -> Action {
    let Some(at) = rule.get("action") else {
        report.broken(rule, UNKNOWN_ACTION, "`action` is missing, expected Accept, Deny or Pass");
        return Action::Deny;
    };
    match at.text() {
        Some("Accept") => Action::Accept,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        _ => {
            let problem = format!("unknown action {}, expected Accept, Deny or Pass", at.value());
            report.broken(&at, UNKNOWN_ACTION, problem);
            Action::Deny
        }
    }
}

/// A name is for people alone: what a terminal would take for a command is left out of it.
fn read_name(rule: &At<'_>, report: &mut Report<'_>) -> Option<Arc<str>> {
    let at = rule.get("name")?;
    let Some(name) = at.text() else {
        report.broken(&at, NOT_READ, format!("must be text, not {}", at.value()));
        return None;
    };
    if name.chars().count() > LONGEST_NAME {
        let message =
            format!("longer than the {LONGEST_NAME} characters that the API server takes; it is read all the same");
        report.say(Severity::Note, &at, message);
    }
    Some(name.replace(char::is_control, " ").into())
}

fn read_matches(
    at: &At<'_>,
    direction: Direction,
    harm: Harm,
    report: &mut Report<'_>,
) -> Result<ClusterMatch, Arc<str>> {
    let (field, other) = match direction {
        Direction::Ingress => ("from", "to"),
        Direction::Egress => ("to", "from"),
    };
    // A broken rule is read to its end, so that every mistake in it is named.
    let wrong_end = at.entries().unwrap_or_default().iter().find(|entry| entry.key == other);
    let problem = match wrong_end {
        Some(wrong) => {
            Some(report.broken(&at.field(wrong), harm, format!("unknown field `{other}`, did you mean `{field}`?")))
        }
        None => report.unknown_fields(at, &["name", "action", field, "protocols"], harm),
    };
    let peers = match at.get(field) {
        Some(list) => read_items(&list, "peer", harm, report, |item, report| read_peer(item, direction, harm, report)),
        None => Err(report.broken(at, harm, format!("`{field}` is missing"))),
    };
    let ports = match at.get("protocols") {
        Some(list) => read_items(&list, "protocol", harm, report, |item, report| read_entry(item, harm, report)),
        None => {
            warn_of_null(at, "protocols", "every protocol and port", report);
            Ok(Vec::new())
        }
    };
    if let Some(problem) = problem {
        return Err(problem);
    }
    let (peers, ports) = (peers?, ports?);
    let is_named = ports.iter().any(|entry| matches!(entry, PortEntry::NamedAny { .. }));
    if is_named && !peers.iter().all(|peer| matches!(peer, ClusterPeer::Pods(_))) {
        let problem = "`destinationNamedPort` is for pods alone, not beside `networks` or `nodes`";
        return Err(report.broken(&at.get("protocols").unwrap_or(*at), harm, problem));
    }
    // An empty list was refused above.
    Ok(ClusterMatch::Of { peers, ports: if ports.is_empty() { Ports::Any } else { Ports::Of(ports) } })
}

/// Reads each item of a list, which must have some.
fn read_items<T>(
    list: &At<'_>,
    what: &str,
    harm: Harm,
    report: &mut Report<'_>,
    mut read: impl FnMut(&At<'_>, &mut Report<'_>) -> Result<T, Arc<str>>,
) -> Result<Vec<T>, Arc<str>> {
    let Some(items) = list.items() else {
        return Err(report.broken(list, harm, format!("must be a list, not {}", list.value())));
    };
    if items.len() == 0 {
        return Err(report.broken(list, harm, format!("an empty list, expected at least one {what}")));
    }
    note_length(list, report);
    let mut read_items = Vec::new();
    let mut first = None;
    for item in items {
        match read(&item, report) {
            Ok(item) => read_items.push(item),
            Err(problem) => {
                first.get_or_insert(problem);
            }
        }
    }
    first.map_or(Ok(read_items), Err)
}

fn read_peer(at: &At<'_>, direction: Direction, harm: Harm, report: &mut Report<'_>) -> Result<ClusterPeer, Arc<str>> {
    let (kind, at) = only_field(at, PEER_FIELDS, "peer", harm, report)?;
    match (kind, direction) {
        ("namespaces", _) => read_namespaces(&at, harm, report).map(ClusterPeer::Pods),
        ("pods", _) => read_pods(&at, harm, report).map(ClusterPeer::Pods),
        ("domainNames", Direction::Egress) => Err(report.broken(&at, harm, "domain names are not supported")),
        (_, Direction::Ingress) => Err(report.broken(&at, harm, format!("`{kind}` is for egress alone"))),
        ("nodes", Direction::Egress) => read_custom_selector(&at, harm, report).map(ClusterPeer::Nodes),
        (_, Direction::Egress) => {
            let mut networks = read_items(&at, "block", harm, report, |item, report| read_network(item, harm, report))?;
            networks.sort();
            networks.dedup();
            Ok(ClusterPeer::Networks(networks))
        }
    }
}

fn read_network(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Result<IpNet, Arc<str>> {
    let parsed = match at.text() {
        Some(text) => parse_cidr(text),
        None => Err(format!("must be a block like \"10.0.0.0/8\", not {}", at.value())),
    };
    let block = parsed.map_err(|problem| report.broken(at, harm, problem))?;
    note_host_bits(at, &block, report);
    Ok(block)
}

fn read_entry(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Result<PortEntry, Arc<str>> {
    let (protocol, at) = match only_field(at, ENTRY_FIELDS, "protocol entry", harm, report)? {
        ("tcp", at) => (PortProtocol::Tcp, at),
        ("udp", at) => (PortProtocol::Udp, at),
        ("sctp", at) => (PortProtocol::Sctp, at),
        (_, at) => {
            return match at.text() {
                Some(name) if !name.is_empty() => Ok(PortEntry::NamedAny { name: name.into() }),
                _ => Err(report.broken(&at, harm, format!("must be the name of a port, not {}", at.value()))),
            };
        }
    };
    if at.entries().is_none() {
        return Err(report.broken(&at, harm, format!("must be a map, not {}", at.value())));
    }
    if let Some(problem) = report.unknown_fields(&at, &["destinationPort"], harm) {
        return Err(problem);
    }
    let Some(port) = at.get("destinationPort") else {
        let problem = "`destinationPort` is missing, every port is written `range: {start: 1, end: 65535}`";
        return Err(report.broken(&at, harm, problem));
    };
    match only_field(&port, &["number", "range"], "port", harm, report)? {
        ("number", at) => {
            let number = read_number(&at, harm, report)?;
            Ok(PortEntry::Range { protocol, first: number, last: number })
        }
        (_, at) => {
            if at.entries().is_none() {
                return Err(report.broken(&at, harm, format!("must be a map, not {}", at.value())));
            }
            if let Some(problem) = report.unknown_fields(&at, &["start", "end"], harm) {
                return Err(problem);
            }
            let (Some(start), Some(end)) = (at.get("start"), at.get("end")) else {
                return Err(report.broken(&at, harm, "`start` and `end` are required"));
            };
            let (first, last) = (read_number(&start, harm, report), read_number(&end, harm, report));
            let (first, last) = (first?, last?);
            if first >= last {
                return Err(report.broken(&end, harm, format!("end {last} is not above start {first}")));
            }
            Ok(PortEntry::Range { protocol, first, last })
        }
    }
}

fn read_number(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Result<u16, Arc<str>> {
    let &Value::Integer(number) = at.value() else {
        return Err(report.broken(at, harm, format!("must be a number, not {}", at.value())));
    };
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(report.broken(at, harm, format!("port {number} is outside 1 to 65535"))),
    }
}

/// The one field that a map of alternatives has.
fn only_field<'b>(
    at: &'b At<'_>,
    known: &[&'static str],
    what: &str,
    harm: Harm,
    report: &mut Report<'_>,
) -> Result<(&'static str, At<'b>), Arc<str>> {
    if at.entries().is_none() {
        return Err(report.broken(at, harm, format!("must be a map, not {}", at.value())));
    }
    if let Some(problem) = report.unknown_fields(at, known, harm) {
        return Err(problem);
    }
    let expected = || known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut given = known.iter().filter_map(|&name| Some((name, at.get(name)?)));
    match (given.next(), given.next()) {
        (Some(only), None) => Ok(only),
        (Some((first, _)), Some((second, _))) => {
            let problem = format!("`{first}` cannot stand beside `{second}` in one {what}");
            Err(report.broken(at, harm, problem))
        }
        (None, _) => Err(report.broken(at, harm, format!("an empty {what}, expected one of {}", expected()))),
    }
}

/// Says what a null stands for where leaving the field out widens what is matched: likely, something was to follow.
fn warn_of_null(at: &At<'_>, key: &str, meaning: &str, report: &mut Report<'_>) {
    if let Some(entry) = at.entries().unwrap_or_default().iter().find(|entry| entry.key == key) {
        report.say(Severity::Warning, &at.field(entry), format!("null is read as absent: {meaning}"));
    }
}

fn note_length(list: &At<'_>, report: &mut Report<'_>) {
    let length = list.items().map_or(0, |items| items.len());
    if length > MOST_ITEMS {
        let message = format!("{length} items are more than the {MOST_ITEMS} that the API server takes; all are read");
        report.say(Severity::Note, list, message);
    }
}
