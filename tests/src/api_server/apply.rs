//! Server-side apply, in a simple form: fields belong to those who applied them.
//!
//! As on a real server, a field that its applier leaves out goes if nobody else owns it, and a value that another applier
//! set differently is a conflict unless it is forced. Simpler than there: a list is one field, and what was written
//! otherwise than by applying belongs to nobody.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::kind::Kind;
use super::store::now;

/// The way to a field, from the object's root.
type Path = Vec<String>;

/// What an applied configuration makes of an object.
pub(super) fn apply(
    kind: Kind,
    name: &str,
    live: Option<&Value>,
    configuration: &Value,
    manager: &str,
    is_forced: bool,
) -> Result<Value, Failure> {
    if !configuration["metadata"]["managedFields"].is_null() {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    let mut object = live.cloned().unwrap_or_else(|| json!({"metadata": {}}));
    let mut entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let mut wanted = BTreeSet::new();
    collect_fields(configuration, &mut Path::new(), &mut wanted);
    wanted.retain(|path| is_owned(path));
    let mut conflicts = Vec::new();
    let mut owned_by_others = BTreeSet::new();
    for entry in entries.iter_mut().filter(|entry| entry["manager"] != manager) {
        let mut fields = owned_fields(entry);
        fields.retain(|path| {
            let differs = wanted.contains(path) && at(&object, path) != at(configuration, path);
            if differs && !is_forced {
                let other = entry["manager"].as_str().unwrap_or_default();
                conflicts.push((format!(".{}", path.join(".")), other.to_owned()));
            }
            !differs
        });
        entry["fieldsV1"] = tree(&fields);
        owned_by_others.extend(fields);
    }
    if !conflicts.is_empty() {
        return Err(Failure::owned(kind, name, &conflicts));
    }
    let had =
        entries.iter().filter(|entry| entry["manager"] == manager).flat_map(owned_fields).collect::<BTreeSet<_>>();
    for path in had.iter().filter(|path| !wanted.contains(*path) && !owned_by_others.contains(*path)) {
        remove(&mut object, path);
    }
    merge(&mut object, configuration);
    let mut entry = json!({
        "manager": manager, "operation": "Apply", "apiVersion": configuration["apiVersion"], "time": now(),
        "fieldsType": "FieldsV1", "fieldsV1": tree(&wanted),
    });
    if let Some(old) = entries.iter().find(|entry| entry["manager"] == manager && had == wanted) {
        // Nothing of it changed, so that an object applied again is the same object.
        entry["time"] = old["time"].clone();
    }
    entries.retain(|entry| entry["manager"] != manager && entry["fieldsV1"] != json!({}));
    entries.push(entry);
    object["metadata"]["managedFields"] = entries.into();
    Ok(object)
}

/// Whether a field can belong to anybody: what names the object cannot.
fn is_owned(path: &[String]) -> bool {
    match path {
        [field] => !["apiVersion", "kind"].contains(&field.as_str()),
        [parent, field] if parent == "metadata" => {
            !["name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation"]
                .contains(&field.as_str())
        }
        _ => true,
    }
}

/// The ways to every field that is no object, or an empty one.
fn collect_fields(value: &Value, path: &mut Path, fields: &mut BTreeSet<Path>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (field, value) in map {
                path.push(field.clone());
                collect_fields(value, path, fields);
                path.pop();
            }
        }
        _ => {
            fields.insert(path.clone());
        }
    }
}

/// The fields of a `managedFields` entry.
fn owned_fields(entry: &Value) -> BTreeSet<Path> {
    let mut fields = BTreeSet::new();
    collect_fields(&entry["fieldsV1"], &mut Path::new(), &mut fields);
    let plain = |path: Path| path.into_iter().map(|field| field.trim_start_matches("f:").to_owned()).collect::<Path>();
    fields.into_iter().map(plain).filter(|path| !path.is_empty()).collect()
}

/// Fields as `fieldsV1` says them.
fn tree(fields: &BTreeSet<Path>) -> Value {
    let mut root = Value::Object(Map::new());
    for path in fields {
        path.iter().fold(&mut root, |node, field| {
            let map = node.as_object_mut().expect("made of objects");
            map.entry(format!("f:{field}")).or_insert_with(|| Value::Object(Map::new()))
        });
    }
    root
}

fn at<'a>(object: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(object, |object, field| &object[field])
}

fn remove(object: &mut Value, path: &[String]) {
    let Some((last, parents)) = path.split_last() else { return };
    let parent = parents.iter().try_fold(object, |object, field| object.get_mut(field));
    if let Some(Value::Object(map)) = parent {
        map.remove(last);
    }
}

fn merge(object: &mut Value, configuration: &Value) {
    match (object, configuration) {
        (Value::Object(object), Value::Object(configuration)) => {
            for (field, value) in configuration {
                merge(object.entry(field.clone()).or_insert(Value::Null), value);
            }
        }
        (object, value) => *object = value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(labels: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db", "labels": labels}})
    }

    fn applied(live: Option<&Value>, labels: Value, manager: &str, is_forced: bool) -> Result<Value, Failure> {
        apply(Kind::Pod, "db", live, &configuration(labels), manager, is_forced)
    }

    #[test]
    fn a_field_left_out_goes_unless_another_owns_it() {
        let object = applied(None, json!({"a": "1", "b": "1", "c": "1"}), "one", false).expect("an object");
        let object = applied(Some(&object), json!({"b": "1"}), "two", false).expect("a shared field");
        let object = applied(Some(&object), json!({"a": "1"}), "one", false).expect("two fields less");
        assert_eq!(object["metadata"]["labels"], json!({"a": "1", "b": "1"}));
    }

    #[test]
    fn another_value_is_a_conflict_unless_forced() {
        let object = applied(None, json!({"a": "1"}), "one", false).expect("an object");
        let refused = applied(Some(&object), json!({"a": "2"}), "two", false).expect_err("a conflict");
        let text = refused.object()["message"].as_str().expect("a message").to_owned();
        assert_eq!(text, "Apply failed with 1 conflict: conflict with \"one\": .metadata.labels.a");
        let object = applied(Some(&object), json!({"a": "2"}), "two", true).expect("a forced value");
        assert_eq!(object["metadata"]["labels"]["a"], "2");
        let managers: Vec<&Value> = object["metadata"]["managedFields"]
            .as_array()
            .expect("managers")
            .iter()
            .map(|entry| &entry["manager"])
            .collect();
        assert_eq!(managers, ["two"]);
    }

    #[test]
    fn applying_again_changes_nothing() {
        let object = applied(None, json!({"a": "1"}), "one", false).expect("an object");
        assert_eq!(applied(Some(&object), json!({"a": "1"}), "one", false).expect("the same"), object);
    }
}
