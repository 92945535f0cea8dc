//! The cases under `cases/`: clusters as files, and questions with the right answers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use npolicy_agent::compile::{End, Protocol, Question};
use npolicy_agent::model::{PodKey, ServiceKey};
use npolicy_common::Family;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::oracle::Probe;

/// One cluster and what is asked of it.
#[derive(Debug)]
pub struct Case {
    /// Like `practice/R01-and-or-dash`.
    pub name: String,
    /// The manifests.
    pub files: Vec<PathBuf>,
    /// The questions, in order.
    pub rows: Vec<Row>,
}

impl Case {
    /// The objects of its manifests, in order, as raw as they are written.
    ///
    /// # Errors
    ///
    /// A file that is no YAML.
    pub fn objects(&self) -> anyhow::Result<Vec<Value>> {
        let mut objects = Vec::new();
        for file in &self.files {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            objects.extend(from_yaml(&text).with_context(|| file.display().to_string())?);
        }
        Ok(objects)
    }
}

/// The documents of a YAML stream as JSON; empty ones are left out.
///
/// # Errors
///
/// What is no YAML, or has no counterpart in JSON.
pub fn from_yaml(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// One question and its answer.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Who connects.
    pub from: String,
    /// To whom.
    pub to: String,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: String,
    /// Absent for ICMP.
    pub port: Option<u16>,
    /// `IPv4` or `IPv6`, if it matters.
    pub family: Option<String>,
    /// `Accept`, `Deny` or `error`.
    pub expect: String,
    /// For whoever reads a failure.
    #[serde(default)]
    pub why: String,
}

/// A question as `npolicy can --batch` reads it.
#[derive(Serialize)]
struct Line<'a> {
    from: &'a str,
    to: &'a str,
    protocol: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'a str>,
}

impl Row {
    /// The question as a line of JSON.
    pub fn line(&self) -> String {
        let Self { from, to, protocol, port, family, expect: _, why: _ } = self;
        let line = Line { from, to, protocol, port: *port, family: family.as_deref() };
        serde_json::to_string(&line).expect("a question is JSON")
    }

    /// The question as the oracle takes it.
    pub fn probe(&self) -> Probe {
        let Self { from, to, protocol, port, family, expect: _, why: _ } = self;
        Probe { from: from.clone(), to: to.clone(), protocol: protocol.clone(), port: *port, family: family.clone() }
    }

    /// The question as the engine takes it.
    ///
    /// # Panics
    ///
    /// On a question that is not one.
    pub fn question(&self) -> Question {
        let port = || self.port.expect("TCP, UDP and SCTP need a port");
        Question {
            from: end(&self.from),
            to: end(&self.to),
            protocol: match &*self.protocol {
                "TCP" => Protocol::Tcp(port()),
                "UDP" => Protocol::Udp(port()),
                "SCTP" => Protocol::Sctp(port()),
                "ICMP" => Protocol::Icmp,
                other => panic!("unknown protocol {other}"),
            },
            family: self.family.as_deref().map(|family| match family {
                "IPv4" => Family::V4,
                "IPv6" => Family::V6,
                other => panic!("unknown family {other}"),
            }),
        }
    }
}

fn end(text: &str) -> End {
    if let Some(name) = text.strip_prefix("node:") {
        return End::Node(name.into());
    }
    if let Some(address) = text.strip_prefix("ip:") {
        return End::Address(address.parse().expect("an IP address"));
    }
    let service = text.strip_prefix("svc:");
    let (namespace, name) = service.unwrap_or(text).split_once('/').unwrap_or_else(|| panic!("{text:?} is no end"));
    let (namespace, name) = (namespace.into(), name.into());
    if service.is_some() { End::Service(ServiceKey { namespace, name }) } else { End::Pod(PodKey { namespace, name }) }
}

/// Every case, ascending by name.
///
/// # Errors
///
/// A folder that does not hold a case.
pub fn all() -> anyhow::Result<Vec<Case>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut cases = Vec::new();
    for (group, cluster) in [("practice", None), ("worked", Some("cluster.yaml"))] {
        let group_folder = root.join(group);
        let mut folders = Vec::new();
        for entry in fs::read_dir(&group_folder).with_context(|| group_folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
        folders.sort();
        for folder in folders {
            let questions = folder.join("questions.jsonl");
            let text = fs::read_to_string(&questions).with_context(|| questions.display().to_string())?;
            let mut rows = Vec::new();
            for (line, row) in (1..).zip(text.lines()) {
                rows.push(serde_json::from_str(row).with_context(|| format!("{}:{line}", questions.display()))?);
            }
            ensure!(!rows.is_empty(), "{} is empty", questions.display());
            let own = if cluster.is_some() { "policy.yaml" } else { "world.yaml" };
            let files = cluster.map(|file| group_folder.join(file)).into_iter().chain([folder.join(own)]).collect();
            let name = folder.file_name().expect("a folder has a name").to_string_lossy();
            cases.push(Case { name: format!("{group}/{name}"), files, rows });
        }
    }
    Ok(cases)
}
