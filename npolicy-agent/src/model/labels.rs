//! Labels, and queries over them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The label the API server keeps on every namespace, with the namespace's name as its value.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The labels of one object: ascending by key, each key once.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok().map(|index| &*self.0[index].1)
    }

    /// Keys and values, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The same labels, one of them set.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> Self {
        let changed = (Arc::from(key), Arc::from(value));
        self.0.iter().filter(|(known, _)| **known != *key).cloned().chain([changed]).collect()
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    /// Collects labels; of a key given twice, the last value counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let sorted: BTreeMap<Arc<str>, Arc<str>> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self(sorted.into_iter().collect())
    }
}

/// One condition on one key.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Condition {
    /// The key is present with one of these values; `matchLabels` is this with one value.
    In(Values),
    /// The key is absent, or present with a value that is none of these.
    NotIn(Values),
    /// The key is present, with any value.
    Exists,
    /// The key is absent.
    DoesNotExist,
}

/// The values of `In` and `NotIn`: ascending, each once, at least one.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Values(Arc<[Arc<str>]>);

impl Values {
    /// Sorts values; `None` if there are none.
    pub fn new(mut values: Vec<Arc<str>>) -> Option<Self> {
        values.sort();
        values.dedup();
        if values.is_empty() { None } else { Some(Self(values.into())) }
    }

    /// The single value `v`.
    pub fn one(value: Arc<str>) -> Self {
        Self([value].into())
    }

    fn contains(&self, value: &str) -> bool {
        self.0.binary_search_by(|known| (**known).cmp(value)).is_ok()
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.0.iter().enumerate() {
            write!(f, "{}{value}", if index == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

/// A condition and the key it is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// What must hold of it.
    pub condition: Condition,
}

impl Requirement {
    /// Whether labels meet it.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.condition {
            Condition::In(values) => value.is_some_and(|value| values.contains(value)),
            Condition::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Condition::Exists => value.is_some(),
            Condition::DoesNotExist => value.is_none(),
        }
    }
}

/// Says what is wanted: `app=backend`, `app other than web`, `any app`, `no app`.
impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, condition } = self;
        match condition {
            Condition::In(values) => write!(f, "{key}={values}"),
            Condition::NotIn(values) => write!(f, "{key} other than {values}"),
            Condition::Exists => write!(f, "any {key}"),
            Condition::DoesNotExist => write!(f, "no {key}"),
        }
    }
}

/// A label query: every requirement must hold. Requirements are ascending, each once; none: every object matches.
///
/// Only legal requirements can be written down, so nothing is checked again when matching. API field:
/// `metav1.LabelSelector`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct Selector(Arc<[Requirement]>);

impl Selector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches what meets all of these.
    pub fn all(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort();
        requirements.dedup();
        Self(requirements.into())
    }

    /// The requirements, ascending.
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// Whether labels meet every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().copied().collect()
    }

    fn requirement(key: &str, condition: Condition) -> Selector {
        Selector::all(vec![Requirement { key: key.into(), condition }])
    }

    fn values(values: &[&str]) -> Values {
        Values::new(values.iter().map(|&value| value.into()).collect()).unwrap()
    }

    #[test]
    fn operators_judge_present_absent_and_empty_values() {
        let (web, empty, none) = (labels(&[("app", "web")]), labels(&[("app", "")]), labels(&[("tier", "web")]));
        let rows: [(Condition, [bool; 3]); 7] = [
            (Condition::In(values(&["web", "api"])), [true, false, false]),
            (Condition::In(values(&["Web"])), [false, false, false]),
            (Condition::In(values(&[""])), [false, true, false]),
            (Condition::NotIn(values(&["web"])), [false, true, true]),
            (Condition::NotIn(values(&[""])), [true, false, true]),
            (Condition::Exists, [true, true, false]),
            (Condition::DoesNotExist, [false, false, true]),
        ];
        for (condition, expected) in rows {
            let selector = requirement("app", condition.clone());
            assert_eq!([&web, &empty, &none].map(|labels| selector.matches(labels)), expected, "{condition:?}");
        }
        assert!([&web, &empty, &none, &Labels::default()].iter().all(|labels| Selector::everything().matches(labels)));
    }

    #[test]
    fn requirements_on_one_key_all_apply() {
        let wants = |condition| Requirement { key: "app".into(), condition };
        let contradiction = Selector::all(vec![
            wants(Condition::Exists),
            wants(Condition::NotIn(values(&["web"]))),
            wants(Condition::In(values(&["web"]))),
        ]);
        assert!(!contradiction.matches(&labels(&[("app", "web")])));
        assert!(!contradiction.matches(&labels(&[("app", "api")])));
    }

    #[test]
    fn order_and_repetition_do_not_make_another_selector() {
        let a = Requirement { key: "a".into(), condition: Condition::In(values(&["2", "1", "2"])) };
        let b = Requirement { key: "b".into(), condition: Condition::Exists };
        let again = Requirement { key: "a".into(), condition: Condition::In(values(&["1", "2"])) };
        assert_eq!(Selector::all(vec![a.clone(), b.clone()]), Selector::all(vec![b, again, a]));
    }

    #[test]
    fn a_label_set_later_replaces_the_earlier_one() {
        let changed = labels(&[("a", "1"), ("c", "3")]).with("a", "2").with("b", "4");
        assert_eq!(changed.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "4"), ("c", "3")]);
    }
}
