//! Label selectors.

use serde_json::Value;

use super::values::{Labels, Malformed, field, items, text};

/// A query over labels: every requirement holds. Without any, it matches everything.
#[derive(Clone, Default, Debug)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// The selector that matches everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Reads a selector. Operators, the number of their values and the syntax of labels must be right.
    pub fn parse(selector: &Value) -> Result<Self, Malformed> {
        if !selector.is_object() {
            return Err(Malformed);
        }
        let mut requirements = Vec::new();
        if let Some(labels) = field(selector, "matchLabels") {
            for (key, value) in labels.as_object().ok_or(Malformed)? {
                let value = value.as_str().ok_or(Malformed)?.to_owned();
                requirements.push(Requirement { key: key.clone(), operator: Operator::In, values: vec![value] });
            }
        }
        for expression in items(selector, "matchExpressions")? {
            let mut values = Vec::new();
            for value in items(expression, "values")? {
                values.push(value.as_str().ok_or(Malformed)?.to_owned());
            }
            let operator = match text(expression, "operator").as_deref() {
                Some("In") if !values.is_empty() => Operator::In,
                Some("NotIn") if !values.is_empty() => Operator::NotIn,
                Some("Exists") if values.is_empty() => Operator::Exists,
                Some("DoesNotExist") if values.is_empty() => Operator::DoesNotExist,
                _ => return Err(Malformed),
            };
            requirements.push(Requirement { key: text(expression, "key").ok_or(Malformed)?, operator, values });
        }
        let legal = requirements.iter().all(|requirement| {
            legal_key(&requirement.key) && requirement.values.iter().all(|value| legal_value(value))
        });
        if legal { Ok(Self { requirements }) } else { Err(Malformed) }
    }

    /// Whether every requirement holds for the labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|Requirement { key, operator, values }| {
            let label = labels.get(key);
            match operator {
                Operator::In => label.is_some_and(|value| values.contains(value)),
                Operator::NotIn => label.is_none_or(|value| !values.contains(value)),
                Operator::Exists => label.is_some(),
                Operator::DoesNotExist => label.is_none(),
            }
        })
    }
}

/// A name of up to 63 characters, behind a DNS name and a slash if need be.
fn legal_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => legal_prefix(prefix) && legal_name(name),
        None => legal_name(key),
    }
}

fn legal_prefix(prefix: &str) -> bool {
    let part = |part: &str| {
        let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let inside = part.bytes().all(|byte| lower(byte) || byte == b'-');
        inside && part.bytes().next().is_some_and(lower) && part.bytes().last().is_some_and(lower)
    };
    prefix.len() <= 253 && prefix.split('.').all(part)
}

fn legal_name(name: &str) -> bool {
    let ends = |byte: u8| byte.is_ascii_alphanumeric();
    let inside = name.bytes().all(|byte| ends(byte) || matches!(byte, b'-' | b'_' | b'.'));
    name.len() <= 63 && inside && name.bytes().next().is_some_and(ends) && name.bytes().last().is_some_and(ends)
}

fn legal_value(value: &str) -> bool {
    value.is_empty() || legal_name(value)
}
