//! Writing: creating, replacing, patching and deleting, with what a real server fills in and refuses.

use std::sync::Arc;

use serde_json::{Value, json};

use super::failure::Failure;
use super::kind::Kind;
use super::patch::{parse, parse_yaml, patched};
use super::selector::Scope;
use super::store::{Key, Store, now};
use super::target::{Resource, Target};

/// What was made of an object, and whether it is new.
pub(super) struct Written {
    pub(super) object: Arc<Value>,
    pub(super) is_new: bool,
}

/// Creates an object.
pub(super) fn create(store: &mut Store, target: &Target, resource: &Resource, body: &[u8]) -> Result<Written, Failure> {
    let mut object = whole(target, body)?;
    let metadata = &mut object["metadata"];
    if metadata["name"].is_null()
        && let Some(prefix) = metadata["generateName"].as_str()
    {
        metadata["name"] = format!("{prefix}{:05}", store.revision() % 100_000).into();
    }
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    let key = (resource.kind, resource.namespace.clone().unwrap_or_default(), name);
    insert(store, target, key, object)
}

/// Replaces an object, or its status alone.
pub(super) fn update(store: &mut Store, target: &Target, resource: &Resource, body: &[u8]) -> Result<Written, Failure> {
    let key = resource.key();
    let live = store.get(&key).cloned().ok_or_else(|| Failure::not_found(key.0, &key.2))?;
    let object = whole(target, body)?;
    let object = replace(&key, &live, object, resource.subresource.as_deref())?;
    commit(store, target, key, object, false)
}

/// Changes an object, or its status alone.
pub(super) fn patch(store: &mut Store, target: &Target, resource: &Resource, body: &[u8]) -> Result<Written, Failure> {
    let key = resource.key();
    let live = store.get(&key).cloned();
    let object = patched(key.0, &key.2, live.as_deref(), body, target)?;
    match live {
        None => insert(store, target, key, object),
        Some(live) => {
            let object = replace(&key, &live, object, resource.subresource.as_deref())?;
            commit(store, target, key, object, false)
        }
    }
}

/// A whole object in a form that is taken: clients that would rather send protobuf are told so.
fn whole(target: &Target, body: &[u8]) -> Result<Value, Failure> {
    match target.content_type.as_str() {
        "" | "application/json" | "application/yaml" => parse_yaml(body),
        other => Err(Failure::unsupported(other)),
    }
}

/// Deletes an object. One with finalizers is only marked; so is a namespace, whose end is the test's to decide.
pub(super) fn delete(
    store: &mut Store,
    target: &Target,
    resource: &Resource,
    body: &[u8],
) -> Result<Arc<Value>, Failure> {
    let options = if body.is_empty() { Value::Null } else { parse(body)? };
    let key = resource.key();
    let live = store.get(&key).cloned().ok_or_else(|| Failure::not_found(key.0, &key.2))?;
    for field in ["uid", "resourceVersion"] {
        let wanted = &options["preconditions"][field];
        if !wanted.is_null() && *wanted != live["metadata"][field] {
            return Err(Failure::conflict(key.0, &key.2, &format!("precondition failed: {field} is another")));
        }
    }
    if target.value("dryRun") == "All" || options["dryRun"][0] == "All" {
        return Ok(live);
    }
    Ok(remove(store, &key).unwrap_or(live))
}

/// Deletes every object that is asked for.
pub(super) fn delete_all(store: &mut Store, target: &Target, resource: &Resource) -> Result<Vec<Arc<Value>>, Failure> {
    let scope = Scope::parse(resource.namespace.clone(), target.value("labelSelector"), target.value("fieldSelector"))?;
    let of_kind = store.objects().iter().filter(|(key, object)| key.0 == resource.kind && scope.holds(object));
    let keys: Vec<Key> = of_kind.map(|(key, _)| key.clone()).collect();
    Ok(keys.iter().filter_map(|key| remove(store, key)).collect())
}

/// Takes an object away, or marks it if somebody is to see to it first; hands over what it is or was then.
pub(super) fn remove(store: &mut Store, key: &Key) -> Option<Arc<Value>> {
    let live = store.get(key)?.clone();
    if !has_finalizers(&live) {
        return store.remove(key);
    }
    let mut object = (*live).clone();
    if object["metadata"]["deletionTimestamp"].is_null() {
        object["metadata"]["deletionTimestamp"] = now().into();
    }
    if key.0 == Kind::Namespace {
        object["status"]["phase"] = "Terminating".into();
    }
    Some(store.put(key.clone(), object))
}

fn has_finalizers(object: &Value) -> bool {
    [&object["metadata"]["finalizers"], &object["spec"]["finalizers"]]
        .into_iter()
        .any(|finalizers| finalizers.as_array().is_some_and(|finalizers| !finalizers.is_empty()))
}

fn insert(store: &mut Store, target: &Target, key: Key, mut object: Value) -> Result<Written, Failure> {
    let (kind, namespace, name) = &key;
    check(kind, namespace, name, &object)?;
    if store.get(&key).is_some() {
        return Err(Failure::exists(*kind, name));
    }
    if kind.is_namespaced() {
        let home = store.get(&(Kind::Namespace, String::new(), namespace.clone()));
        let home = home.ok_or_else(|| Failure::not_found(Kind::Namespace, namespace))?;
        if !home["metadata"]["deletionTimestamp"].is_null() {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            return Err(Failure::forbidden(*kind, name, &why));
        }
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "deletionTimestamp"] {
        object["metadata"].as_object_mut().expect("checked above").remove(field);
    }
    if kind.has_status() {
        object["status"] = json!({});
    }
    if *kind == Kind::Namespace {
        complete_namespace(name, &mut object);
    }
    if *kind == Kind::Pod {
        object["status"]["phase"] = "Pending".into();
    }
    commit(store, target, key, object, true)
}

/// Gives a namespace what every server gives one: the label of its name, the finalizer, the phase.
pub(super) fn complete_namespace(name: &str, namespace: &mut Value) {
    namespace["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
    namespace["spec"]["finalizers"] = json!(["kubernetes"]);
    namespace["status"]["phase"] = "Active".into();
}

/// What an object is after a write of `new` over `live`, by the part that is written.
fn replace(key: &Key, live: &Value, mut new: Value, subresource: Option<&str>) -> Result<Value, Failure> {
    let (kind, namespace, name) = key;
    check(kind, namespace, name, &new)?;
    let named = &new["metadata"]["resourceVersion"];
    if named.as_str().is_some_and(|named| !named.is_empty()) && *named != live["metadata"]["resourceVersion"] {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Failure::conflict(*kind, name, why));
    }
    match subresource {
        Some("status") if kind.has_status() => {
            let mut object = live.clone();
            object["status"] = new["status"].take();
            return Ok(object);
        }
        Some("finalize") if *kind == Kind::Namespace => {
            let mut object = live.clone();
            object["spec"] = new["spec"].take();
            return Ok(object);
        }
        Some(_) => return Err(Failure::not_found(*kind, name)),
        None => {}
    }
    if kind.has_status() {
        new["status"] = live["status"].clone();
    }
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "namespace"] {
        let metadata = new["metadata"].as_object_mut().expect("checked above");
        match &live["metadata"][field] {
            Value::Null => metadata.remove(field),
            kept => metadata.insert(field.into(), kept.clone()),
        };
    }
    Ok(new)
}

/// Stores an object, unless that was only to be tried; one that is being deleted goes with its last finalizer.
fn commit(store: &mut Store, target: &Target, key: Key, mut object: Value, is_new: bool) -> Result<Written, Failure> {
    fill_in(key.0, &mut object);
    if target.value("dryRun") == "All" {
        return Ok(Written { object: Arc::new(object), is_new });
    }
    let object = store.put(key.clone(), object);
    if !object["metadata"]["deletionTimestamp"].is_null() && !has_finalizers(&object) {
        store.remove(&key);
    }
    Ok(Written { object, is_new })
}

fn check(kind: &Kind, namespace: &str, name: &str, object: &Value) -> Result<(), Failure> {
    if Kind::of(object) != Some(*kind) {
        let (version, named) = (&object["apiVersion"], &object["kind"]);
        let what = format!("{named} of {version} does not belong to the path of {}", kind.qualified());
        return Err(Failure::bad_request(what));
    }
    let metadata = &object["metadata"];
    if !metadata.is_object() || metadata["name"] != name {
        let what = format!("the name of the object ({}) does not match the name on the URL ({name})", metadata["name"]);
        return Err(Failure::bad_request(what));
    }
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if name.is_empty() || name.len() > 253 || !name.chars().all(is_allowed) {
        let why = format!("metadata.name: Invalid value: {name:?}: a lowercase RFC 1123 subdomain must be given");
        return Err(Failure::invalid(*kind, name, &why));
    }
    let own = &metadata["namespace"];
    if kind.is_namespaced() && !own.is_null() && own != namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// The defaults that policy depends on.
fn fill_in(kind: Kind, object: &mut Value) {
    let spec = &mut object["spec"];
    match kind {
        Kind::NetworkPolicy => {
            if spec["policyTypes"].as_array().is_none_or(Vec::is_empty) {
                let has_egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
                spec["policyTypes"] = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            }
            for direction in ["ingress", "egress"] {
                for rule in spec[direction].as_array_mut().into_iter().flatten() {
                    rule["ports"].as_array_mut().into_iter().flatten().for_each(default_protocol);
                    // Reading a missing field by its index leaves a null behind.
                    remove_null(rule, "ports");
                }
                remove_null(spec, direction);
            }
        }
        Kind::Service => {
            if spec["type"].is_null() {
                spec["type"] = "ClusterIP".into();
            }
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                default_protocol(port);
                if port["targetPort"].is_null() {
                    port["targetPort"] = port["port"].clone();
                }
            }
            remove_null(spec, "ports");
        }
        _ => remove_null(object, "spec"),
    }
}

fn default_protocol(port: &mut Value) {
    if port["protocol"].is_null() {
        port["protocol"] = "TCP".into();
    }
}

fn remove_null(object: &mut Value, field: &str) {
    if object[field].is_null()
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove(field);
    }
}
