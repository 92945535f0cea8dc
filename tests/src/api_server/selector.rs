//! Which objects a request is about: label selectors and field selectors in a query.

use serde_json::Value;

use super::failure::Failure;

/// What a list or a watch asks for, beside the kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    /// None: every namespace.
    pub(super) namespace: Option<String>,
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug)]
enum LabelTerm {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

#[derive(Clone, Debug)]
struct FieldTerm {
    path: String,
    value: String,
    is_equal: bool,
}

impl Scope {
    /// What the texts of a query say; empty ones ask for everything.
    pub(super) fn parse(namespace: Option<String>, labels: &str, fields: &str) -> Result<Self, Failure> {
        let labels = split_terms(labels).into_iter().map(label_term).collect::<Result<_, _>>()?;
        let fields = fields.split(',').filter(|term| !term.is_empty()).map(field_term).collect::<Result<_, _>>()?;
        Ok(Self { namespace, labels, fields })
    }

    /// Whether an object is asked for.
    pub(super) fn holds(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let label = |key: &str| metadata["labels"][key].as_str();
        let is_here = self.namespace.as_deref().is_none_or(|own| metadata["namespace"] == own);
        is_here
            && self.labels.iter().all(|term| match term {
                LabelTerm::Exists(key) => label(key).is_some(),
                LabelTerm::Absent(key) => label(key).is_none(),
                LabelTerm::In(key, values) => label(key).is_some_and(|own| values.iter().any(|value| value == own)),
                LabelTerm::NotIn(key, values) => label(key).is_none_or(|own| values.iter().all(|value| value != own)),
            })
            && self.fields.iter().all(|FieldTerm { path, value, is_equal }| {
                let field = path.split('.').fold(object, |object, field| &object[field]);
                (field.as_str().unwrap_or_default() == value) == *is_equal
            })
    }
}

/// Parts the terms of a label selector: at the commas outside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let outside = |c: char| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    };
    text.split(outside).map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn label_term(term: &str) -> Result<LabelTerm, Failure> {
    let owned = |text: &str| text.trim().to_owned();
    if let Some((left, values)) = term.split_once('(') {
        let values = values.trim_end_matches(')').split(',').map(owned).collect();
        return match left.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => Ok(LabelTerm::In(key.into(), values)),
            [key, "notin"] => Ok(LabelTerm::NotIn(key.into(), values)),
            _ => Err(Failure::bad_request(format!("unable to parse requirement: {term:?}"))),
        };
    }
    Ok(if let Some((key, value)) = term.split_once("!=") {
        LabelTerm::NotIn(owned(key), vec![owned(value)])
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        LabelTerm::In(owned(key), vec![owned(value)])
    } else if let Some(key) = term.strip_prefix('!') {
        LabelTerm::Absent(owned(key))
    } else {
        LabelTerm::Exists(owned(term))
    })
}

fn field_term(term: &str) -> Result<FieldTerm, Failure> {
    let parted = term
        .split_once("!=")
        .map(|(path, value)| (path, value, false))
        .or_else(|| term.split_once("==").or_else(|| term.split_once('=')).map(|(path, value)| (path, value, true)));
    let Some((path, value, is_equal)) = parted else {
        return Err(Failure::bad_request(format!("invalid field selector: {term:?}")));
    };
    Ok(FieldTerm { path: path.into(), value: value.into(), is_equal })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(labels: &str, fields: &str, is_asked_for: bool) {
        let pod = json!({
            "metadata": {"namespace": "shop", "name": "db", "labels": {"app": "db", "tier": "back"}},
            "spec": {"nodeName": "n1"},
        });
        let scope = Scope::parse(Some("shop".into()), labels, fields).expect("a scope");
        assert_eq!(scope.holds(&pod), is_asked_for, "{labels} {fields}");
    }

    #[test]
    fn selects_by_labels_and_fields() {
        check("", "", true);
        check("app=db,tier in (front, back)", "spec.nodeName=n1", true);
        check("app==db,!gone,tier", "spec.nodeName!=n2", true);
        check("app!=db", "", false);
        check("tier notin (back,front)", "", false);
        check("gone", "", false);
        check("!app", "", false);
        check("", "metadata.name=web", false);
        check("", "status.phase!=", false);
    }

    #[test]
    fn refuses_what_is_no_selector() {
        assert!(Scope::parse(None, "app within (a)", "").is_err());
        assert!(Scope::parse(None, "", "spec.nodeName").is_err());
    }
}
