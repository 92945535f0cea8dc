//! Questions as people and scripts write them.

use std::net::IpAddr;
use std::str::FromStr;

use npolicy_common::{Family, Verdict};
use serde::Deserialize;

use crate::compile::{End, Protocol, Question};
use crate::model::{PodKey, ServiceKey};

/// A part of a question that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum QuestionError {
    #[error("{0:?} is no Service, expected svc:NAMESPACE/NAME")]
    Service(String),
    #[error("{0:?} is not an IP address")]
    Address(String),
    #[error("{0:?} is no end, expected NAMESPACE/POD, node:NAME, ip:ADDRESS or, as a destination, svc:NAMESPACE/NAME")]
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

/// Reads `NAMESPACE/POD`, `node:NAME`, `ip:ADDRESS` or `svc:NAMESPACE/NAME`.
pub(super) fn parse_end(text: &str) -> Result<End, QuestionError> {
    if let Some(name) = text.strip_prefix("node:").filter(|name| !name.is_empty()) {
        return Ok(End::Node(name.into()));
    }
    if let Some(address) = text.strip_prefix("ip:") {
        let address = IpAddr::from_str(address).map_err(|_| QuestionError::Address(address.to_owned()))?;
        return Ok(End::Address(address.to_canonical()));
    }
    if let Some(key) = text.strip_prefix("svc:") {
        let (namespace, name) = namespaced(key).ok_or_else(|| QuestionError::Service(text.to_owned()))?;
        return Ok(End::Service(ServiceKey { namespace: namespace.into(), name: name.into() }));
    }
    let (namespace, name) = namespaced(text).ok_or_else(|| QuestionError::End(text.to_owned()))?;
    Ok(End::Pod(PodKey { namespace: namespace.into(), name: name.into() }))
}

fn namespaced(text: &str) -> Option<(&str, &str)> {
    let (namespace, name) = text.split_once('/')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then_some((namespace, name))
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
    let refused = |error: serde_json::Error| {
        // Every question is a line of its own, so the parser's line is always the first.
        let problem = error.to_string().replace(" at line 1 column ", " at column ");
        format!("{}: {problem}", if error.is_data() { "not a question" } else { "not JSON" })
    };
    let line: Line<'_> = serde_json::from_slice(line).map_err(refused)?;
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
