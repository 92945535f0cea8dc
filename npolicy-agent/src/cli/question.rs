//! Questions and answers as people and scripts write them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use npolicy_common::{Direction, Family, Verdict};
use serde::{Deserialize, Serialize};

use crate::compile::{Answer, Decision, End, Explanation, Judgement, Protocol, Question};
use crate::model::PodKey;

/// A part of a question that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum QuestionError {
    #[error("Services are not read yet: {0:?} cannot be asked about")]
    Service(String),
    #[error("{0:?} is not an IP address")]
    Address(String),
    #[error("{0:?} is no end, expected NAMESPACE/POD, node:NAME or ip:ADDRESS")]
    End(String),
    #[error("{0:?} is no port, expected 8080/tcp, 53/udp, 80/sctp or icmp")]
    Port(String),
    #[error("port {0} is outside 1 to 65535")]
    PortRange(i128),
    #[error("`port` must be a number from 1 to 65535, not {0}")]
    PortType(serde_json::Value),
    #[error("unknown protocol {0:?}, expected TCP, UDP, SCTP or ICMP")]
    Protocol(String),
    #[error("{0} needs a `port` from 1 to 65535")]
    NoPort(String),
    #[error("ICMP has no ports, leave out `port`")]
    PortOfIcmp,
    #[error("unknown family {0:?}, expected IPv4 or IPv6")]
    Family(String),
}

/// Reads `NAMESPACE/POD`, `node:NAME` or `ip:ADDRESS`.
pub(super) fn parse_end(text: &str) -> Result<End, QuestionError> {
    if let Some(name) = text.strip_prefix("node:").filter(|name| !name.is_empty()) {
        return Ok(End::Node(name.into()));
    }
    if let Some(address) = text.strip_prefix("ip:") {
        let address = IpAddr::from_str(address).map_err(|_| QuestionError::Address(address.to_owned()))?;
        return Ok(End::Address(address.to_canonical()));
    }
    if text.starts_with("svc:") {
        return Err(QuestionError::Service(text.to_owned()));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(End::Pod(PodKey { namespace: namespace.into(), name: name.into() }))
        }
        _ => Err(QuestionError::End(text.to_owned())),
    }
}

/// Reads `8080/tcp`, `53/udp`, `80/sctp` or `icmp`, in either case.
pub(super) fn parse_protocol(text: &str) -> Result<Protocol, QuestionError> {
    if text.eq_ignore_ascii_case("icmp") {
        return Ok(Protocol::Icmp);
    }
    let malformed = || QuestionError::Port(text.to_owned());
    let (port, protocol) = text.split_once('/').ok_or_else(malformed)?;
    let port: i128 = port.parse().map_err(|_| malformed())?;
    if !["tcp", "udp", "sctp"].iter().any(|known| protocol.eq_ignore_ascii_case(known)) {
        return Err(malformed());
    }
    if !(1..=65535).contains(&port) {
        return Err(QuestionError::PortRange(port));
    }
    protocol_of(protocol, Some(port as i64))
}

fn protocol_of(name: &str, port: Option<i64>) -> Result<Protocol, QuestionError> {
    let port = || {
        let number = port.and_then(|port| u16::try_from(port).ok()).filter(|&port| port > 0);
        number.ok_or_else(|| QuestionError::NoPort(name.to_owned()))
    };
    match name {
        _ if name.eq_ignore_ascii_case("TCP") => Ok(Protocol::Tcp(port()?)),
        _ if name.eq_ignore_ascii_case("UDP") => Ok(Protocol::Udp(port()?)),
        _ if name.eq_ignore_ascii_case("SCTP") => Ok(Protocol::Sctp(port()?)),
        _ if name.eq_ignore_ascii_case("ICMP") => Ok(Protocol::Icmp),
        _ => Err(QuestionError::Protocol(name.to_owned())),
    }
}

/// Reads one line of a batch.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse_question(line: &[u8]) -> Result<Question, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line<'a> {
        #[serde(borrow)]
        from: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        to: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        protocol: std::borrow::Cow<'a, str>,
        port: Option<serde_json::Value>,
        #[serde(borrow)]
        family: Option<std::borrow::Cow<'a, str>>,
    }
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| format!("not a question: {error}"))?;
    let read = || -> Result<Question, QuestionError> {
        let port = match &line.port {
            None => None,
            Some(port) => Some(port.as_i64().ok_or_else(|| QuestionError::PortType(port.clone()))?),
        };
        let protocol = protocol_of(&line.protocol, port)?;
        if protocol == Protocol::Icmp && line.port.is_some() {
            return Err(QuestionError::PortOfIcmp);
        }
        let family = match line.family.as_deref() {
            None => None,
            Some("IPv4") => Some(Family::V4),
            Some("IPv6") => Some(Family::V6),
            Some(other) => return Err(QuestionError::Family(other.to_owned())),
        };
        Ok(Question { from: parse_end(&line.from)?, to: parse_end(&line.to)?, protocol, family })
    };
    read().map_err(|error| error.to_string())
}

/// Says in one line why the answer is what it is: what the end says that denies, else what each end says.
pub(super) fn reason(answer: &Answer) -> String {
    if answer.is_self {
        return "a pod always reaches itself".to_owned();
    }
    let Some(last) = answer.judgements.last() else { return "policy applies to neither end".to_owned() };
    match answer.judgements.iter().find(|judgement| judgement.verdict == Verdict::Deny) {
        Some(denying) => step_text(denying),
        None if answer.judgements.len() == 1 => step_text(last),
        None => answer.judgements.iter().map(step_text).collect::<Vec<_>>().join("; "),
    }
}

fn step_text(judgement: &Judgement) -> String {
    let direction = direction_text(judgement.direction);
    format!("{direction} of {}: {}", judgement.subject, decision_text(&judgement.explanation))
}

const fn direction_text(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// Says why one end accepts or denies.
pub(super) fn decision_text(explanation: &Explanation) -> impl fmt::Display {
    match &explanation.decision {
        Decision::NotGoverned => "no policy isolates it".to_owned(),
        Decision::OwnNode => "its own node always may".to_owned(),
        Decision::Accepted(accepted) => format!("accepted by {accepted}"),
        Decision::Denied(miss) => format!("no rule accepts it; nearest is {miss}"),
    }
}

/// An answer in JSON, with everything that is known about it.
#[derive(Serialize)]
pub(super) struct AnswerLine {
    from: String,
    to: String,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    family: &'static str,
    verdict: &'static str,
    /// Whether every object could be read.
    certain: bool,
    reason: String,
    steps: Vec<StepLine>,
}

/// What one end says, in JSON.
#[derive(Serialize)]
struct StepLine {
    direction: &'static str,
    subject: String,
    verdict: &'static str,
    isolated_by: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_by: Option<AcceptedLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest_miss: Option<MissLine>,
}

/// The rule that accepts, in JSON.
#[derive(Serialize)]
struct AcceptedLine {
    policy: String,
    rule: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<usize>,
}

/// The rule that came nearest, in JSON.
#[derive(Serialize)]
struct MissLine {
    policy: String,
    text: String,
}

impl AnswerLine {
    pub(super) fn new(question: &Question, answer: &Answer, certain: bool) -> Self {
        let (protocol, port) = protocol_parts(question.protocol);
        Self {
            from: question.from.to_string(),
            to: question.to.to_string(),
            protocol,
            port,
            family: match answer.family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            },
            verdict: verdict_text(answer.verdict),
            certain,
            reason: reason(answer),
            steps: answer.judgements.iter().map(StepLine::new).collect(),
        }
    }
}

impl StepLine {
    fn new(judgement: &Judgement) -> Self {
        let Judgement { direction, subject, verdict, explanation } = judgement;
        let (accepted_by, nearest_miss) = match &explanation.decision {
            Decision::NotGoverned | Decision::OwnNode => (None, None),
            Decision::Accepted(accepted) => {
                let policy = accepted.policy.to_string();
                (Some(AcceptedLine { policy, rule: accepted.rule, peer: accepted.peer }), None)
            }
            Decision::Denied(miss) => {
                (None, Some(MissLine { policy: miss.policy.to_string(), text: miss.text.clone() }))
            }
        };
        Self {
            direction: direction_text(*direction),
            subject: subject.to_string(),
            verdict: verdict_text(*verdict),
            isolated_by: explanation.isolated_by.iter().map(ToString::to_string).collect(),
            accepted_by,
            nearest_miss,
        }
    }
}

/// The protocol's name in JSON, and its port if it has ports.
pub(super) const fn protocol_parts(protocol: Protocol) -> (&'static str, Option<u16>) {
    match protocol {
        Protocol::Tcp(port) => ("TCP", Some(port)),
        Protocol::Udp(port) => ("UDP", Some(port)),
        Protocol::Sctp(port) => ("SCTP", Some(port)),
        Protocol::Icmp => ("ICMP", None),
    }
}

/// The verdict's name in JSON.
pub(super) const fn verdict_text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Accept => "Accept",
        Verdict::Deny => "Deny",
    }
}
