//! From JSON to a [`Tree`] of the few fields that are read. The rest is passed over while parsing and never takes memory.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::watch::objects::{Entry, Tree, Value};

/// Nesting below which nothing is kept: more than any object of the API has, and less than the parser takes.
const DEEPEST: u8 = 64;

/// What is kept of a value.
#[derive(Debug)]
pub(super) enum Keep {
    /// All of it.
    All,
    /// Of a map these fields. What is no map is kept, since the reader of objects names it.
    Fields(&'static [(&'static str, Keep)]),
    /// Of each item of a list this.
    Each(&'static Keep),
}

impl Keep {
    /// What is kept of a field; `None`: nothing.
    fn field(&self, key: &str) -> Option<&'static Keep> {
        match self {
            Self::All | Self::Each(_) => Some(&Self::All),
            Self::Fields(fields) => fields.iter().find(|(known, _)| *known == key).map(|(_, keep)| keep),
        }
    }

    fn item(&self) -> &'static Keep {
        match self {
            Self::Each(keep) => keep,
            Self::All | Self::Fields(_) => &Self::All,
        }
    }
}

/// Reads a value and keeps what is asked for.
#[derive(Clone, Copy)]
pub(super) struct Pruned {
    keep: &'static Keep,
    depth: u8,
}

impl Pruned {
    /// For the top of an object.
    pub(super) fn new(keep: &'static Keep) -> Self {
        Self { keep, depth: 0 }
    }

    fn below(self, keep: &'static Keep) -> Self {
        Self { keep, depth: self.depth + 1 }
    }
}

impl<'de> DeserializeSeed<'de> for Pruned {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        if self.depth > DEEPEST {
            // Text where a list or a map belongs: the reader says so, and what it is part of counts as broken.
            deserializer.deserialize_ignored_any(IgnoredAny)?;
            return Ok(tree(Value::Text("(nested too deeply)".to_owned())));
        }
        deserializer.deserialize_any(self).map(tree)
    }
}

/// Objects of the API have no lines.
fn tree(value: Value) -> Tree {
    Tree { line: 0, value }
}

impl<'de> Visitor<'de> for Pruned {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.below(self.keep.item()))? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        // A key with an escape in it is a string of its own, so keys cannot be borrowed.
        while let Some(key) = entries.next_key::<String>()? {
            match self.keep.field(&key) {
                Some(keep) => {
                    let value = entries.next_value_seed(self.below(keep))?;
                    map.push(Entry { line: 0, key, value });
                }
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Map(map))
    }
}
