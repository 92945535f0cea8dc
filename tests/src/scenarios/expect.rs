//! Expectations: lines that say who must reach whom, and the probes that they come to.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use npolicy_common::Family;
use serde::Deserialize;

use super::objects::Objects;
use crate::cases::Row;

/// A port with its protocol, written `TCP/80`; `80` is TCP, and `ICMP` has no number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Debug)]
#[serde(try_from = "serde_json::Value")]
pub struct Port {
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: String,
    /// Its number; of ICMP none.
    pub number: Option<u16>,
}

impl FromStr for Port {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "ICMP" {
            return Ok(Self { protocol: text.into(), number: None });
        }
        let (protocol, number) = text.split_once('/').unwrap_or(("TCP", text));
        ensure!(["TCP", "UDP", "SCTP"].contains(&protocol), "{text:?} is no port: write TCP/80, or ICMP");
        let number = number.parse().with_context(|| format!("{text:?} is no port"))?;
        Ok(Self { protocol: protocol.into(), number: Some(number) })
    }
}

impl TryFrom<serde_json::Value> for Port {
    type Error = anyhow::Error;

    fn try_from(value: serde_json::Value) -> anyhow::Result<Self> {
        match value {
            serde_json::Value::String(text) => text.parse(),
            serde_json::Value::Number(number) => number.to_string().parse(),
            other => bail!("{other} is no port"),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "{}/{number}", self.protocol),
            None => f.write_str(&self.protocol),
        }
    }
}

/// One connection and what must come of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    /// Who connects: `NAMESPACE/POD`, `node:NAME` or `ip:ADDRESS`.
    pub from: String,
    /// To whom: the same, or `svc:NAMESPACE/NAME`.
    pub to: String,
    /// To which port.
    pub port: Port,
    /// Over which family; none: over each that both ends have.
    pub family: Option<Family>,
    /// Whether it must be accepted.
    pub is_accepted: bool,
}

impl Expected {
    /// The question for one family, in the words of the cases.
    pub(super) fn row(&self, family: Option<Family>) -> Row {
        let Self { from, to, port: Port { protocol, number }, family: own, is_accepted } = self;
        let family = own.or(family).map(|family| match family {
            Family::V4 => "IPv4".to_owned(),
            Family::V6 => "IPv6".to_owned(),
        });
        let expect = if *is_accepted { "Accept" } else { "Deny" }.to_owned();
        let (from, to, protocol) = (from.clone(), to.clone(), protocol.clone());
        Row { from, to, protocol, port: *number, family, expect, why: String::new() }
    }
}

/// Reads lines like `deny any -> x/a y on 80 UDP/81` in order, a later one overruling an earlier one; without `on` they
/// are about `ports`. Where `is_matrix`, every other pair of pods must be allowed on `ports`. A pod is never asked about
/// itself.
///
/// # Errors
///
/// A line that cannot be read, or names nobody.
pub(super) fn read(
    lines: &[String],
    objects: &Objects,
    ports: &[Port],
    is_matrix: bool,
) -> anyhow::Result<Vec<Expected>> {
    let mut expected: BTreeMap<(String, String, Port), bool> = BTreeMap::new();
    let mut say = |from: &[String], to: &[String], ports: &[Port], is_accepted| {
        for from in from {
            for to in to.iter().filter(|to| *to != from) {
                for port in ports {
                    expected.insert((from.clone(), to.clone(), port.clone()), is_accepted);
                }
            }
        }
    };
    if is_matrix {
        let pods = objects.pods();
        say(&pods, &pods, ports, true);
    }
    for line in lines {
        let read = || -> anyhow::Result<()> {
            let (verb, rest) = line.split_once(' ').context("it is no verb and ends")?;
            let is_accepted = match verb {
                "allow" => true,
                "deny" => false,
                _ => bail!("it begins with neither allow nor deny"),
            };
            let (from, rest) = rest.split_once(" -> ").context("it has no ->")?;
            let (to, on) = match rest.split_once(" on ") {
                Some((to, on)) => (to, on.split_whitespace().map(Port::from_str).collect::<anyhow::Result<Vec<_>>>()?),
                None => (rest, ports.to_vec()),
            };
            say(&ends(from, objects)?, &ends(to, objects)?, &on, is_accepted);
            Ok(())
        };
        let mut read = read;
        read().with_context(|| format!("expectation {line:?}"))?;
    }
    let expected = expected.into_iter();
    Ok(expected
        .map(|((from, to, port), is_accepted)| {
            // An address is of one family.
            let family = [&from, &to]
                .into_iter()
                .find_map(|end| end.strip_prefix("ip:"))
                .map(|address| if address.contains(':') { Family::V6 } else { Family::V4 });
            Expected { from, to, port, family, is_accepted }
        })
        .collect())
}

pub(super) fn ends(text: &str, objects: &Objects) -> anyhow::Result<Vec<String>> {
    let pods = objects.pods();
    let mut ends = Vec::new();
    for word in text.split_whitespace() {
        let found: Vec<_> = match word {
            "any" => pods.clone(),
            _ if word.contains(':') => vec![word.to_owned()],
            _ if word.contains('/') => objects.pod(word).map(|_| word.to_owned()).into_iter().collect(),
            namespace => {
                pods.iter().filter(|pod| pod.split_once('/').is_some_and(|(of, _)| of == namespace)).cloned().collect()
            }
        };
        ensure!(!found.is_empty(), "{word} is nobody");
        ends.extend(found);
    }
    Ok(ends)
}
