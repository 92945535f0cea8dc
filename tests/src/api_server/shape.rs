//! The forms in which objects are handed over: whole, their metadata alone, or as the rows of a table.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::kind::Kind;

/// What a client accepts first of what there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Whole,
    Metadata,
    Table,
}

impl Shape {
    /// What an `Accept` header asks for. Everything else gets whole objects as JSON.
    pub(super) fn parse(accept: &str) -> Self {
        let forms = accept.split(',').filter_map(|form| {
            let parameters: Vec<&str> = form.split(';').map(str::trim).collect();
            let is_json = parameters[0] == "application/json" && !parameters.contains(&"v=v1beta1");
            let named = parameters.iter().find_map(|parameter| parameter.strip_prefix("as="));
            match named {
                _ if !is_json => None,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Some(Self::Metadata),
                Some("Table") => Some(Self::Table),
                Some(_) => None,
                None => Some(Self::Whole),
            }
        });
        { forms }.next().unwrap_or(Self::Whole)
    }

    /// One object in this form.
    pub(super) fn one(self, kind: Kind, version: &str, object: &Value) -> Value {
        match self {
            Self::Whole => {
                let mut object = object.clone();
                object["apiVersion"] = kind.api_version(version).into();
                object["kind"] = kind.name().into();
                object
            }
            Self::Metadata => metadata_of(object),
            Self::Table => {
                let rows = vec![row(kind, object)];
                table(kind, rows, json!({"resourceVersion": object["metadata"]["resourceVersion"]}))
            }
        }
    }

    /// Objects in this form, with the list's own metadata.
    pub(super) fn list<'a>(
        self,
        kind: Kind,
        version: &str,
        objects: impl Iterator<Item = &'a Value>,
        metadata: Value,
    ) -> Value {
        match self {
            Self::Whole => {
                let items: Vec<Value> = objects
                    .map(|object| {
                        let mut object = self.one(kind, version, object);
                        if !kind.is_custom() {
                            let fields = object.as_object_mut().expect("an object must be one");
                            fields.remove("apiVersion");
                            fields.remove("kind");
                        }
                        object
                    })
                    .collect();
                json!({
                    "kind": format!("{}List", kind.name()), "apiVersion": kind.api_version(version),
                    "metadata": metadata, "items": items,
                })
            }
            Self::Metadata => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": objects.map(metadata_of).collect::<Vec<_>>(),
            }),
            Self::Table => table(kind, objects.map(|object| row(kind, object)).collect(), metadata),
        }
    }

    /// What a bookmark carries: a resourceVersion, and the mark of the end of a streaming list.
    pub(super) fn bookmark(self, kind: Kind, version: &str, revision: u64, ends_initial_events: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if ends_initial_events {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self {
            Self::Whole => json!({"kind": kind.name(), "apiVersion": kind.api_version(version), "metadata": metadata}),
            Self::Metadata => metadata_of(&json!({"metadata": metadata})),
            Self::Table => table(kind, Vec::new(), metadata),
        }
    }
}

fn metadata_of(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn table(kind: Kind, rows: Vec<Value>, metadata: Value) -> Value {
    let column = |name: &str| json!({"name": name, "type": "string", "format": "", "description": name, "priority": 0});
    let mut columns = vec![column("Name"), column("Age")];
    columns[0]["format"] = "name".into();
    if status_field(kind).is_some() {
        columns.insert(1, column("Status"));
    }
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows,
    })
}

fn row(kind: Kind, object: &Value) -> Value {
    let mut cells = vec![object["metadata"]["name"].clone(), age(&object["metadata"]["creationTimestamp"]).into()];
    if let Some(field) = status_field(kind) {
        cells.insert(1, object["status"][field].as_str().unwrap_or_default().into());
    }
    json!({"cells": cells, "object": metadata_of(object)})
}

fn status_field(kind: Kind) -> Option<&'static str> {
    matches!(kind, Kind::Namespace | Kind::Pod).then_some("phase")
}

fn age(created: &Value) -> String {
    let Some(created) = created.as_str().and_then(|time| time.parse::<Timestamp>().ok()) else {
        return "<unknown>".into();
    };
    match Timestamp::now().as_second() - created.as_second() {
        seconds @ ..120 => format!("{}s", seconds.max(0)),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}
