//! What the server says about itself: its version, its groups and its kinds.
//!
//! Aggregated discovery is not served: clients that ask for it in `Accept` get the plain lists, as from servers before
//! 1.26, and use them.

use serde_json::{Value, json};

use super::kind::Kind;
use super::store::Store;

/// The release that the server says it is.
const RELEASE: &str = "v1.33.0";

/// Answers a path that is not about objects; nothing if there is no such path.
pub(super) fn discover(store: &Store, path: &[String]) -> Option<Value> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path[..] {
        ["version"] => Some(json!({
            "major": "1", "minor": "33", "gitVersion": RELEASE, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "go1.24", "compiler": "gc", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1"}],
        })),
        ["apis"] => {
            let groups: Vec<Value> =
                served(store).filter(|kind| !kind.group().is_empty()).map(|kind| group(store, kind)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let kind = served(store).find(|kind| kind.group() == name)?;
            let mut group = group(store, kind);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Some(group)
        }
        ["api", version] => resources(store, "", version),
        ["apis", group, version] => resources(store, group, version),
        _ => None,
    }
}

fn served(store: &Store) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|&kind| !store.versions(kind).is_empty())
}

fn group(store: &Store, kind: Kind) -> Value {
    let versions: Vec<Value> = store
        .versions(kind)
        .iter()
        .map(|version| json!({"groupVersion": kind.api_version(version), "version": version}))
        .collect();
    json!({"name": kind.group(), "preferredVersion": versions[0], "versions": versions})
}

fn resources(store: &Store, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    let kinds = served(store).filter(|&kind| kind.group() == group && store.versions(kind).contains(&version));
    for kind in kinds {
        let resource = |name: String, verbs: &[&str]| {
            json!({
                "name": name, "singularName": "", "namespaced": kind.is_namespaced(), "kind": kind.name(), "verbs": verbs,
            })
        };
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let mut whole = resource(kind.plural().into(), &verbs);
        whole["singularName"] = kind.name().to_lowercase().into();
        whole["shortNames"] = kind.short_names().into();
        resources.push(whole);
        if kind.has_status() {
            resources.push(resource(format!("{}/status", kind.plural()), &["get", "patch", "update"]));
        }
        if kind == Kind::Namespace {
            resources.push(resource("namespaces/finalize".into(), &["update"]));
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(|| {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
    })
}
