//! What the API server sends: pages of a list, lines of a watch, errors.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::kind::{INITIAL_EVENTS_END, Kind};
use super::prune::Pruned;
use crate::watch::objects::{Tree, Value};

/// One line of a watch.
#[derive(Debug)]
pub(super) enum Line {
    /// An object is new, or is now like this (`ADDED`, `MODIFIED`).
    Object(Tree),
    /// An object is gone; this is how it was last (`DELETED`).
    Gone(Tree),
    /// Nothing more happened up to here (`BOOKMARK`).
    Bookmark(Tree),
    /// The watch cannot go on (`ERROR`).
    Error(Status),
}

/// `Status`: why something was refused.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Status {
    /// HTTP status code.
    pub(super) code: u16,
    /// Why, for programs.
    pub(super) reason: String,
    /// Why, for people.
    pub(super) message: String,
    /// When to ask again.
    pub(super) retry_after: Option<Duration>,
}

/// `metadata` of a list.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMetadata {
    /// Of the state that the list shows; empty if it is none.
    pub(super) resource_version: String,
    /// Asks for the next page; empty on the last.
    #[serde(rename = "continue")]
    pub(super) next: String,
}

/// Reads a line of a watch of objects of a kind.
///
/// # Errors
/// If it is not JSON, or not a line of a watch.
pub(super) fn parse_line(line: &[u8], kind: Kind) -> Result<Line, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let parsed = json.deserialize_map(LineVisitor(kind))?;
    json.end()?;
    Ok(parsed)
}

/// Reads a page of a list, and hands over each object as soon as it is read.
///
/// # Errors
/// If it is not JSON, or not a list: without `items` and `metadata.resourceVersion` nobody can say that there are none.
pub(super) fn parse_page(
    page: &[u8],
    kind: Kind,
    each: &mut dyn FnMut(Tree),
) -> Result<ListMetadata, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(page);
    let metadata = json.deserialize_map(PageVisitor { kind, each })?;
    json.end()?;
    Ok(metadata)
}

/// Reads the body of a response that says why something was refused; the code of the response counts.
pub(super) fn parse_status(body: &[u8], code: u16) -> Status {
    // Whatever is not a Status is not quoted: a proxy's page says nothing here.
    let tree = Pruned::new(Kind::Namespace.keep()).deserialize(&mut serde_json::Deserializer::from_slice(body));
    tree.map_or_else(
        |_not_a_status| Status { code, ..Status::default() },
        |tree| Status { code, ..Status::from(&tree) },
    )
}

impl From<&Tree> for Status {
    fn from(tree: &Tree) -> Self {
        let text = |key| field(tree, &[key]).and_then(as_text).unwrap_or_default().to_owned();
        let seconds = field(tree, &["details", "retryAfterSeconds"]).and_then(as_number);
        Self {
            code: field(tree, &["code"]).and_then(as_number).and_then(|code| u16::try_from(code).ok()).unwrap_or(0),
            reason: text("reason"),
            message: text("message"),
            retry_after: seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs),
        }
    }
}

/// A text of an object, by the way to it.
pub(super) fn text<'t>(tree: &'t Tree, way: &[&str]) -> Option<&'t str> {
    field(tree, way).and_then(as_text).filter(|text| !text.is_empty())
}

/// Whether a bookmark ends the list with which a watch began.
pub(super) fn ends_list(bookmark: &Tree) -> bool {
    text(bookmark, &["metadata", "annotations", INITIAL_EVENTS_END]) == Some("true")
}

fn field<'t>(tree: &'t Tree, way: &[&str]) -> Option<&'t Tree> {
    way.iter().try_fold(tree, |tree, key| match &tree.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.value),
        _ => None,
    })
}

fn as_text(tree: &Tree) -> Option<&str> {
    match &tree.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn as_number(tree: &Tree) -> Option<i64> {
    match tree.value {
        Value::Integer(number) => Some(number),
        _ => None,
    }
}

struct LineVisitor(Kind);

impl<'de> Visitor<'de> for LineVisitor {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Line, A::Error> {
        let (mut kind, mut object) = (None, None);
        while let Some(key) = entries.next_key::<String>()? {
            match &*key {
                "type" => kind = Some(entries.next_value::<String>()?),
                // The type need not come first, so what is kept does not depend on it.
                "object" => object = Some(entries.next_value_seed(Pruned::new(self.0.keep()))?),
                _ => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        let kind = kind.ok_or_else(|| A::Error::missing_field("type"))?;
        let object = object.ok_or_else(|| A::Error::missing_field("object"))?;
        match &*kind {
            "ADDED" | "MODIFIED" => Ok(Line::Object(object)),
            "DELETED" => Ok(Line::Gone(object)),
            "BOOKMARK" => Ok(Line::Bookmark(object)),
            "ERROR" => Ok(Line::Error(Status::from(&object))),
            _ => Err(A::Error::unknown_variant(&kind, &["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"])),
        }
    }
}

struct PageVisitor<'a> {
    kind: Kind,
    each: &'a mut dyn FnMut(Tree),
}

impl<'de> Visitor<'de> for PageVisitor<'_> {
    type Value = ListMetadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of objects of the kind {}", self.kind)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<ListMetadata, A::Error> {
        let Self { kind, each } = self;
        let (mut metadata, mut has_items) = (None, false);
        while let Some(key) = entries.next_key::<String>()? {
            match &*key {
                "metadata" => metadata = Some(entries.next_value::<ListMetadata>()?),
                "items" => {
                    entries.next_value_seed(Items { kind, each: &mut *each })?;
                    has_items = true;
                }
                _ => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        if !has_items {
            return Err(A::Error::missing_field("items"));
        }
        let metadata: ListMetadata = metadata.ok_or_else(|| A::Error::missing_field("metadata"))?;
        if metadata.resource_version.is_empty() && metadata.next.is_empty() {
            return Err(A::Error::missing_field("metadata.resourceVersion"));
        }
        Ok(metadata)
    }
}

/// `items`; a null one is empty, as Go writes it.
struct Items<'a> {
    kind: Kind,
    each: &'a mut dyn FnMut(Tree),
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element_seed(Pruned::new(self.kind.keep()))? {
            (self.each)(item);
        }
        Ok(())
    }
}
