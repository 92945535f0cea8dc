//! Reading Kubernetes objects by hand: from a [`Tree`] to values of the model.
//!
//! In: trees, from YAML or from the API. Out: objects that are legal by construction, and a diagnostic with line and field
//! for everything that is not as the API server would have it.

mod cluster;
mod cluster_policy;
mod cursor;
mod kinds;
mod metadata;
mod net;
mod pod;
mod policy;
mod selector;
mod service;
mod slice;
mod tree;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

pub use cluster_policy::VERSIONS as CLUSTER_POLICY_VERSIONS;
use cursor::{At, Harm, Report, nearest};
pub use kinds::NotEnforced;
pub use service::{Backing, BackingPort, Target};
pub use tree::{Entry, Tree, Value};

use crate::model::{Diagnostic, Object, ObjectKey, ServiceKey, Severity};

/// Who has checked an object before it is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Origin {
    /// Nobody: an unknown field is most likely a typing error.
    #[default]
    File,
    /// The API server: an unknown field is one of a later version.
    ApiServer,
}

/// What became of a document.
#[derive(Default)]
pub struct Reading {
    /// Who has checked it before.
    pub origin: Origin,
    /// Objects, each with its line.
    pub objects: Vec<(Object, u32)>,
    /// Policies that are there, but nobody can say to whom or when they apply; each with its line.
    pub unreadable: Vec<(ObjectKey, u32)>,
    /// Objects but policies of which a part that bears on verdicts could not be read.
    pub partial: Vec<ObjectKey>,
    /// What each Service among the objects says of the pods behind it; `None`: nothing.
    pub backings: Vec<(ServiceKey, Option<Backing>)>,
    /// Objects that bear on policy and are not read, each with its line.
    pub not_enforced: Vec<(&'static NotEnforced, u32)>,
    /// What was found on the way.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads a document: an object, or a list of objects as `kubectl get -o yaml` prints it. Kinds that have
/// nothing to do with policy are passed over; one that may be a misspelt kind of ours is an error.
pub fn read_document(tree: &Tree, file: Option<&Arc<Path>>) -> Reading {
    let mut reading = Reading::default();
    read_any(&At::root(tree), None, file, &mut reading);
    reading
}

/// Reads an object of a list or a watch of the API server, whose kind is known and need not stand in it.
///
/// Nobody has mistyped what comes from there: the API server knows every field that it keeps. An unknown field is one that a
/// later version has, and in a policy it narrows or adds something.
pub fn read_listed(tree: &Tree, kind: &str) -> Reading {
    let mut reading = Reading { origin: Origin::ApiServer, ..Reading::default() };
    read_any(&At::root(tree), Some(Listed { kind, version: None }), None, &mut reading);
    reading
}

/// What the items of a list are if they do not say it themselves.
#[derive(Clone, Copy)]
struct Listed<'a> {
    kind: &'a str,
    version: Option<&'a str>,
}

fn read_any(at: &At<'_>, listed: Option<Listed<'_>>, file: Option<&Arc<Path>>, reading: &mut Reading) {
    let mut report = Report { file, origin: reading.origin, object: None, found: &mut reading.diagnostics };
    const IGNORED: Harm = Harm::whole("the document is ignored");
    let Some(entries) = at.entries() else {
        report.broken(at, IGNORED, format!("expected an object with `kind` and `metadata`, not {}", at.value()));
        return;
    };
    let kind = at.get("kind");
    let Some(kind) = kind.as_ref().and_then(At::text).or(listed.map(|listed| listed.kind)) else {
        let typed = entries.iter().find(|entry| nearest(&entry.key, &["kind"]).is_some());
        match typed {
            Some(entry) if entry.key != "kind" => {
                report.broken(&at.field(entry), IGNORED, format!("unknown field `{}`, did you mean `kind`?", entry.key))
            }
            _ => report.broken(at, IGNORED, "`kind` is missing"),
        };
        return;
    };
    let version = at.get("apiVersion");
    let version = version.as_ref().and_then(At::text).or(listed.and_then(|listed| listed.version));
    if let (Some(item_kind), Some(items)) = (kind.strip_suffix("List"), at.get("items")) {
        let Some(items) = items.items() else {
            report.broken(&items, IGNORED, format!("must be a list, not {}", items.value()));
            return;
        };
        let listed = if item_kind.is_empty() { None } else { Some(Listed { kind: item_kind, version }) };
        for item in items {
            // Each item is an object of its own: its fields are named from its own top.
            read_any(&item.as_root(), listed, file, reading);
        }
        return;
    }
    if kinds::is_list_of_ours(kind) && !entries.iter().any(|entry| entry.key == "items") {
        report.broken(at, IGNORED, "`items` is missing");
        return;
    }
    let known_before = report.found.len();
    let group = version.map(|version| version.split_once('/').map_or("", |(group, _)| group));
    let is_core = group.is_none_or(str::is_empty);
    let object = match kind {
        "Pod" if is_core => pod::read_pod(at, &mut report).map(Object::Pod),
        "Namespace" if is_core => cluster::read_namespace(at, &mut report).map(Object::Namespace),
        "Node" if is_core => cluster::read_node(at, &mut report).map(Object::Node),
        "Service" if is_core => service::read_service(at, &mut report).map(|(service, backing)| {
            reading.backings.push((service.key.clone(), backing));
            Object::Service(service)
        }),
        "EndpointSlice" if matches!(group, None | Some("discovery.k8s.io")) => {
            let slice = slice::read_slice(at, &mut report);
            expect_version(at, "EndpointSlice", &[slice::VERSION], &mut report);
            slice.map(Object::EndpointSlice)
        }
        "ClusterNetworkPolicy" if matches!(group, None | Some(cluster_policy::GROUP | "")) => {
            let outcome = cluster_policy::read_cluster_policy(at, &mut report);
            expect_version(at, "ClusterNetworkPolicy", &cluster_policy::VERSIONS, &mut report);
            match outcome {
                cluster_policy::Reading::Policy(policy) => Some(Object::ClusterPolicy(policy)),
                cluster_policy::Reading::Unreadable(name) => {
                    reading.unreadable.push((ObjectKey::ClusterPolicy(name), at.line()));
                    None
                }
                cluster_policy::Reading::Nameless => None,
            }
        }
        "NetworkPolicy" if matches!(group, None | Some("networking.k8s.io" | "extensions" | "")) => {
            let outcome = policy::read_policy(at, &mut report);
            expect_version(at, "NetworkPolicy", &["networking.k8s.io/v1"], &mut report);
            match outcome {
                policy::Reading::Policy(policy) => Some(Object::Policy(policy)),
                policy::Reading::Unreadable(key) => {
                    reading.unreadable.push((ObjectKey::Policy(key), at.line()));
                    None
                }
                policy::Reading::Nameless => None,
            }
        }
        _ => {
            if let Some(known) = kinds::not_enforced(kind, group) {
                reading.not_enforced.push((known, at.line()));
            } else if let Some((field, problem)) = kinds::doubt(kind, group, at.get("items").is_some()) {
                report.broken(&at.get(field).unwrap_or(*at), IGNORED, problem);
            }
            None
        }
    };
    if is_core && matches!(kind, "Pod" | "Namespace" | "Node" | "Service") {
        expect_version(at, kind, &["v1"], &mut report);
    }
    if let Some(object) = &object
        && !matches!(object, Object::Policy(_) | Object::ClusterPolicy(_))
        && report.found[known_before..].iter().any(|found| found.severity >= Severity::Error)
    {
        reading.partial.push(object.key());
    }
    reading.objects.extend(object.map(|object| (object, at.line())));
}

/// Names another version than those that are read, the newest first. The object is read all the same: what differs in it
/// is an unknown field or value there.
fn expect_version(at: &At<'_>, kind: &str, known: &[&str], report: &mut Report<'_>) {
    let Some(found) = at.get("apiVersion").filter(|found| found.text().is_none_or(|found| !known.contains(&found)))
    else {
        return;
    };
    let expected: Vec<_> = known.iter().map(|version| format!("{version:?}")).collect();
    let message = format!(
        "expected {}, not {}; the object is read as {kind} of {}",
        expected.join(" or "),
        found.value(),
        known[0]
    );
    report.say(Severity::Warning, &found, message);
}
