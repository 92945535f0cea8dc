//! `metadata`: names, labels, times.

use std::sync::Arc;

use jiff::Timestamp;

use super::cursor::{At, Harm, Report, nearest, unknown_field};
use super::tree::Value;
use crate::model::{Labels, Severity};

/// Fields of `metav1.ObjectMeta`, those that older servers wrote among them.
const KNOWN: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "clusterName",
    "initializers",
];

/// What is read of `metadata`.
pub(super) struct Metadata {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) labels: Labels,
    pub(super) uid: Arc<str>,
    pub(super) created: Option<Timestamp>,
}

/// Whether a kind lives in namespaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Namespaced,
    Cluster,
}

const LEFT_OUT: Harm = Harm::whole("the object is left out");

/// Reads `metadata` and tells the report what the object is called. Without a namespace, a namespaced object is in
/// `default`. `None`: it has no name, and this was reported.
pub(super) fn read_metadata(object: &At<'_>, kind: &str, scope: Scope, report: &mut Report<'_>) -> Option<Metadata> {
    report.object = Some(kind.into());
    let Some(at) = object.get("metadata") else {
        report.broken(object, LEFT_OUT, "`metadata.name` is missing");
        return None;
    };
    let name = required_text(&at, "name", report)?;
    let namespace = match (scope, at.get("namespace")) {
        (Scope::Cluster, _) => "".into(),
        (Scope::Namespaced, None) => "default".into(),
        (Scope::Namespaced, Some(_)) => required_text(&at, "namespace", report)?,
    };
    report.object = Some(match scope {
        Scope::Namespaced => format!("{kind} {namespace}/{name}").into(),
        Scope::Cluster => format!("{kind} {name}").into(),
    });
    let is_default = scope == Scope::Namespaced && at.get("namespace").is_none();
    for entry in at.entries().unwrap_or_default().iter().filter(|entry| !KNOWN.contains(&&*entry.key)) {
        let problem = unknown_field(&entry.key, KNOWN);
        // What was meant as the namespace would have made it another object.
        if is_default && nearest(&entry.key, KNOWN).is_none_or(|meant| meant == "namespace") {
            let message = format!("{problem}; the object is taken as {namespace}/{name}");
            report.say(Severity::Error, &at.field(entry), message);
        } else {
            let is_labels = is_selected(kind) && nearest(&entry.key, KNOWN) == Some("labels");
            let harm = if is_labels { Harm::whole } else { Harm::part };
            report.broken(&at.field(entry), harm("it is not read"), problem);
        }
    }
    Some(Metadata {
        namespace,
        name,
        labels: at.get("labels").map(|labels| read_labels(&labels, kind, report)).unwrap_or_default(),
        uid: at.get("uid").and_then(|uid| read_uid(&uid, report)).unwrap_or_default(),
        created: at.get("creationTimestamp").and_then(|time| read_time(&time, report)),
    })
}

fn required_text(at: &At<'_>, key: &str, report: &mut Report<'_>) -> Option<Arc<str>> {
    match at.get(key) {
        None => {
            report.broken(at, LEFT_OUT, format!("`{key}` is missing"));
            None
        }
        Some(at) => match at.text() {
            // More than the API allows, but nothing that could forge a line of output or another object's name.
            Some(text) if text.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/') => {
                report.broken(&at, LEFT_OUT, format!("{} is no name: 1 to 253 of a-z 0-9 - .", at.value()));
                None
            }
            Some(text) if !text.is_empty() => Some(text.into()),
            _ => {
                report.broken(&at, LEFT_OUT, format!("must be text, not {} (quote it)", at.value()));
                None
            }
        },
    }
}

/// Reads labels; one whose value is not text is left out. The API reads a null value as empty text.
///
/// Where policies select by them, one that is missing may free a pod of what isolates it, so that is an error.
fn read_labels(at: &At<'_>, kind: &str, report: &mut Report<'_>) -> Labels {
    let harm = if is_selected(kind) { Harm::whole } else { Harm::part };
    let Some(entries) = at.entries() else {
        report.broken(at, harm("the object counts as having no labels"), format!("must be a map, not {}", at.value()));
        return Labels::default();
    };
    let mut labels = Vec::with_capacity(entries.len());
    for entry in entries {
        match &entry.value.value {
            Value::Text(value) => labels.push((&*entry.key, &**value)),
            Value::Null => labels.push((&*entry.key, "")),
            other => {
                let problem = format!("a label's value must be text, not {other} (quote it)");
                report.broken(&at.field(entry), harm("the label is left out"), problem);
            }
        }
    }
    labels.into_iter().collect()
}

/// Whether policies select objects of a kind by their labels.
fn is_selected(kind: &str) -> bool {
    matches!(kind, "Pod" | "Namespace" | "Node")
}

fn read_uid(at: &At<'_>, report: &mut Report<'_>) -> Option<Arc<str>> {
    if at.text().is_none() {
        report.broken(at, Harm::part("it is not read"), format!("must be text, not {} (quote it)", at.value()));
    }
    at.text().map(Arc::from)
}

/// Reads a time as the API writes it; what is not one counts as absent.
pub(super) fn read_time(at: &At<'_>, report: &mut Report<'_>) -> Option<Timestamp> {
    let time = at.text().and_then(|text| text.parse().ok());
    if time.is_none() {
        let problem = format!("{} is not a time like 2026-01-31T12:00:00Z", at.value());
        report.broken(at, Harm::part("it is not read"), problem);
    }
    time
}
