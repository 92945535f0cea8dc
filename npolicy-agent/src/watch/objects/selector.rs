//! `metav1.LabelSelector`, with the checks that the API server makes (`ValidateLabelSelector`).

use std::sync::Arc;

use super::cursor::{At, Harm, Report, nearest};
use super::tree::Value;
use crate::model::{Condition, Requirement, Selector, Values};

const OPERATORS: &[&str] = &["In", "NotIn", "Exists", "DoesNotExist"];

/// What the API server makes of a null that stands for a label's value.
#[derive(Clone, Copy)]
enum NullValue {
    /// Empty text, in the kinds of Kubernetes itself.
    Empty,
    /// Nothing at all, in custom kinds: it would take the label out, or refuse the object. It is broken here, since
    /// without the label a selector matches more.
    Broken,
}

/// Reads a selector of a kind of Kubernetes itself.
///
/// # Errors
/// The first problem; each was reported.
pub(super) fn read_selector(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Result<Selector, Arc<str>> {
    read(at, NullValue::Empty, harm, report)
}

/// Reads a selector of a custom kind.
///
/// # Errors
/// The first problem; each was reported.
pub(super) fn read_custom_selector(at: &At<'_>, harm: Harm, report: &mut Report<'_>) -> Result<Selector, Arc<str>> {
    read(at, NullValue::Broken, harm, report)
}

fn read(at: &At<'_>, null: NullValue, harm: Harm, report: &mut Report<'_>) -> Result<Selector, Arc<str>> {
    if at.entries().is_none() {
        return Err(report.broken(at, harm, format!("must be a map, not {}", at.value())));
    }
    let mut requirements = Vec::new();
    let mut first = report.unknown_fields(at, &["matchLabels", "matchExpressions"], harm);
    if let Some(labels) = at.get("matchLabels") {
        let Some(entries) = labels.entries() else {
            return Err(report.broken(&labels, harm, format!("must be a map, not {}", labels.value())));
        };
        for entry in entries {
            let at = labels.field(entry);
            let value = check_key(&entry.key).and_then(|()| read_value(at.value(), null));
            match value {
                Ok(value) => requirements
                    .push(Requirement { key: (&*entry.key).into(), condition: Condition::In(Values::one(value)) }),
                Err(problem) => {
                    first.get_or_insert(report.broken(&at, harm, problem));
                }
            }
        }
    }
    if let Some(expressions) = at.get("matchExpressions") {
        let Some(items) = expressions.items() else {
            return Err(report.broken(&expressions, harm, format!("must be a list, not {}", expressions.value())));
        };
        for item in items {
            match read_expression(&item, null, harm, report) {
                Ok(requirement) => requirements.push(requirement),
                Err(problem) => {
                    first.get_or_insert(problem);
                }
            }
        }
    }
    first.map_or(Ok(Selector::all(requirements)), Err)
}

fn read_expression(at: &At<'_>, null: NullValue, harm: Harm, report: &mut Report<'_>) -> Result<Requirement, Arc<str>> {
    if at.entries().is_none() {
        return Err(report.broken(at, harm, format!("must be a map, not {}", at.value())));
    }
    if let Some(problem) = report.unknown_fields(at, &["key", "operator", "values"], harm) {
        return Err(problem);
    }
    let (Some(key), Some(operator)) = (at.get("key"), at.get("operator")) else {
        return Err(report.broken(at, harm, "`key` and `operator` are required"));
    };
    let Some(name) = key.text() else {
        return Err(report.broken(&key, harm, format!("must be text, not {}", key.value())));
    };
    if let Err(problem) = check_key(name) {
        return Err(report.broken(&key, harm, problem));
    }
    let mut values = Vec::new();
    if let Some(list) = at.get("values") {
        let Some(items) = list.items() else {
            return Err(report.broken(&list, harm, format!("must be a list, not {}", list.value())));
        };
        for item in items {
            values.push(read_value(item.value(), null).map_err(|problem| report.broken(&item, harm, problem))?);
        }
    }
    let has_values = !values.is_empty();
    let condition = match (operator.text(), Values::new(values)) {
        (Some("In"), Some(values)) => Condition::In(values),
        (Some("NotIn"), Some(values)) => Condition::NotIn(values),
        (Some("Exists"), None) => Condition::Exists,
        (Some("DoesNotExist"), None) => Condition::DoesNotExist,
        (Some(known), _) if OPERATORS.contains(&known) => {
            let problem = if has_values { "takes no `values`" } else { "needs at least one of `values`" };
            return Err(report.broken(at, harm, format!("operator {known} {problem}")));
        }
        (text, _) => {
            let hint = text.and_then(|text| nearest(text, OPERATORS));
            let hint = hint.map_or_else(|| OPERATORS.join(", "), str::to_owned);
            return Err(report.broken(
                &operator,
                harm,
                format!("unknown operator {}, expected {hint}", operator.value()),
            ));
        }
    };
    Ok(Requirement { key: name.into(), condition })
}

fn read_value(value: &Value, null: NullValue) -> Result<Arc<str>, String> {
    match (value, null) {
        (Value::Null, NullValue::Empty) => Ok("".into()),
        (Value::Text(text), _) if text.is_empty() || is_name(text) => Ok((&**text).into()),
        (Value::Text(text), _) => Err(format!(
            "{text:?} is not a label value: at most 63 of A-Z a-z 0-9 - _ . with a letter or digit at both ends"
        )),
        (other, _) => Err(format!("a label's value must be text, not {other} (quote it)")),
    }
}

/// A label key: a name, or a DNS subdomain, a slash and a name.
fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_label = |label: &str| {
        !label.starts_with('-')
            && !label.ends_with('-')
            && !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let prefix_is_valid = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_label));
    if prefix_is_valid && is_name(name) {
        Ok(())
    } else {
        Err(format!("{key:?} is not a label key like app or example.org/app"))
    }
}

fn is_name(name: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    name.len() <= 63
        && ends(name.bytes().next())
        && ends(name.bytes().next_back())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
