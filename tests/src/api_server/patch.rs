//! Changes of an object in the four forms that the API takes.

use serde_json::{Map, Value};

use super::apply::apply;
use super::failure::Failure;
use super::kind::Kind;
use super::target::Target;

/// What a patch makes of an object; `live` is what is there. Only an applied configuration may make a new one.
pub(super) fn patched(
    kind: Kind,
    name: &str,
    live: Option<&Value>,
    body: &[u8],
    target: &Target,
) -> Result<Value, Failure> {
    if target.content_type == "application/apply-patch+yaml" {
        let manager = target.value("fieldManager");
        if manager.is_empty() {
            return Err(Failure::bad_request("fieldManager is required for apply patch"));
        }
        return apply(kind, name, live, &parse_yaml(body)?, manager, target.is_set("force"));
    }
    let mut object = live.ok_or_else(|| Failure::not_found(kind, name))?.clone();
    match target.content_type.as_str() {
        "application/merge-patch+json" => json_patch::merge(&mut object, &parse(body)?),
        "application/strategic-merge-patch+json" if kind.is_custom() => {
            return Err(Failure::unsupported(&target.content_type));
        }
        "application/strategic-merge-patch+json" => merge(kind, "", &mut object, parse(body)?)?,
        "application/json-patch+json" => {
            let patch: json_patch::Patch =
                serde_json::from_slice(body).map_err(|error| Failure::bad_request(error.to_string()))?;
            json_patch::patch(&mut object, &patch).map_err(|error| Failure::invalid(kind, name, &error.to_string()))?;
        }
        other => return Err(Failure::unsupported(other)),
    }
    Ok(object)
}

/// A body that is JSON.
pub(super) fn parse(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::bad_request(format!("the body is not JSON: {error}")))
}

/// A body that is YAML, or JSON.
pub(super) fn parse_yaml(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).or_else(|_| {
        let text = std::str::from_utf8(body).map_err(|error| Failure::bad_request(error.to_string()))?;
        serde_saphyr::from_str(text).map_err(|error| Failure::bad_request(format!("the body is not YAML: {error}")))
    })
}

/// The lists whose elements a strategic merge tells apart by a field; every other list of objects is replaced whole.
/// (`patchMergeKey` of the API's types.)
fn merge_key(kind: Kind, path: &str) -> Option<&'static str> {
    match (kind, path) {
        (_, "metadata.ownerReferences") => Some("uid"),
        (_, "status.conditions") => Some("type"),
        (Kind::Pod, "spec.containers" | "spec.initContainers" | "spec.volumes" | "spec.containers.env") => Some("name"),
        (Kind::Pod, "spec.containers.ports") => Some("containerPort"),
        (Kind::Pod, "status.podIPs") => Some("ip"),
        (Kind::Service, "spec.ports") => Some("port"),
        (Kind::Node, "spec.taints") => Some("key"),
        (Kind::Node, "status.addresses") => Some("type"),
        _ => None,
    }
}

/// Merges a strategic patch into what is there.
fn merge(kind: Kind, path: &str, live: &mut Value, patch: Value) -> Result<(), Failure> {
    let Value::Object(mut patch) = patch else {
        *live = patch;
        return Ok(());
    };
    if !live.is_object() {
        *live = Value::Object(Map::new());
    }
    match patch.remove("$patch").as_ref().and_then(Value::as_str) {
        None => {}
        Some("replace") => {
            *live = Value::Object(patch);
            return Ok(());
        }
        Some("delete") => {
            *live = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => return Err(Failure::bad_request(format!("unknown patch type: {other}"))),
    }
    let fields = live.as_object_mut().expect("made an object above");
    if let Some(retained) = patch.remove("$retainKeys") {
        fields.retain(|field, _| retained.as_array().is_some_and(|retained| retained.contains(&field.as_str().into())));
    }
    let (directives, plain): (Vec<_>, Vec<_>) = patch.into_iter().partition(|(field, _)| field.starts_with('$'));
    let below = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    for (field, value) in plain {
        let path = below(&field);
        match value {
            Value::Null => {
                fields.remove(&field);
            }
            Value::Array(elements) => {
                let live = fields.entry(field).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(kind, &path, live, elements)?;
            }
            value => merge(kind, &path, fields.entry(field).or_insert(Value::Null), value)?,
        }
    }
    for (directive, value) in directives {
        let Some((name, field)) = directive.split_once('/') else {
            return Err(Failure::bad_request(format!("unknown directive {directive}")));
        };
        let (Some(Value::Array(live)), Value::Array(listed)) = (fields.get_mut(field), value) else { continue };
        match name {
            "$deleteFromPrimitiveList" => live.retain(|element| !listed.contains(element)),
            "$setElementOrder" => order(live, &listed, merge_key(kind, &below(field))),
            _ => return Err(Failure::bad_request(format!("unknown directive {directive}"))),
        }
    }
    Ok(())
}

fn merge_list(kind: Kind, path: &str, live: &mut Value, elements: Vec<Value>) -> Result<(), Failure> {
    let Some(own) = live.as_array_mut() else {
        *live = Value::Array(elements);
        return Ok(());
    };
    let Some(key) = merge_key(kind, path) else {
        if path == "metadata.finalizers" {
            let missing = elements.into_iter().filter(|element| !own.contains(element)).collect::<Vec<_>>();
            own.extend(missing);
        } else {
            *own = elements;
        }
        return Ok(());
    };
    for mut element in elements {
        if element["$patch"] == "delete" {
            own.retain(|other| other[key] != element[key]);
            continue;
        }
        let place = own.iter().position(|other| other[key] == element[key]);
        match place {
            Some(place) => merge(kind, path, &mut own[place], element)?,
            None => {
                if let Some(fields) = element.as_object_mut() {
                    fields.remove("$patch");
                }
                own.push(element);
            }
        }
    }
    Ok(())
}

/// Puts elements in the order in which they are listed; those that are not listed come last.
fn order(live: &mut [Value], listed: &[Value], key: Option<&str>) {
    let id = |element: &Value| key.map_or_else(|| element.clone(), |key| element[key].clone());
    let listed: Vec<Value> = listed.iter().map(id).collect();
    live.sort_by_key(|element| listed.iter().position(|other| *other == id(element)).unwrap_or(usize::MAX));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(kind: Kind, mut live: Value, patch: Value, expected: Value) {
        merge(kind, "", &mut live, patch).expect("a patch");
        assert_eq!(live, expected);
    }

    #[test]
    fn merges_keyed_lists_and_replaces_others() {
        check(
            Kind::Pod,
            json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}], "tolerations": [{"key": "x"}]}}),
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
                "containers": [{"name": "a", "image": "2"}, {"name": "c"}, {"name": "b", "$patch": "delete"}],
                "tolerations": [{"key": "y"}],
            }}),
            json!({"spec": {"containers": [{"name": "c"}, {"name": "a", "image": "2"}], "tolerations": [{"key": "y"}]}}),
        );
        check(
            Kind::NetworkPolicy,
            json!({"spec": {"ingress": [{"ports": [{"port": 1}]}], "policyTypes": ["Ingress"]}}),
            json!({"spec": {"ingress": [{"ports": [{"port": 2}]}]}}),
            json!({"spec": {"ingress": [{"ports": [{"port": 2}]}], "policyTypes": ["Ingress"]}}),
        );
    }

    #[test]
    fn obeys_directives() {
        check(
            Kind::Pod,
            json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]}, "spec": {"old": 1}}),
            json!({
                "metadata": {"labels": {"a": null, "c": "3"}, "$deleteFromPrimitiveList/finalizers": ["x"]},
                "spec": {"$patch": "replace", "new": 1},
            }),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}, "finalizers": ["y"]}, "spec": {"new": 1}}),
        );
        check(Kind::Pod, json!({"a": 1, "b": 2}), json!({"$retainKeys": ["b", "c"], "c": 3}), json!({"b": 2, "c": 3}));
        let refused = merge(Kind::Pod, "", &mut json!({}), json!({"$patch": "invert"}));
        assert!(refused.is_err());
    }
}
