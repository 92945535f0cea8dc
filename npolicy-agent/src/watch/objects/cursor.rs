//! Walking a tree while knowing the way: every finding names line and field.

use std::fmt::{self, Write};
use std::path::Path;
use std::sync::Arc;

use super::Origin;
use super::tree::{Entry, Tree, Value};
use crate::model::{Diagnostic, Place, Severity};

/// A place in a tree and the way to it.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    tree: &'a Tree,
    line: u32,
    up: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    /// The top of an object.
    pub(super) fn root(tree: &'a Tree) -> Self {
        Self { tree, line: tree.line, up: None, step: Step::Root }
    }

    /// The same place as the top of an object of its own.
    pub(super) fn as_root(&self) -> At<'a> {
        At::root(self.tree)
    }

    /// The value here.
    pub(super) fn value(&self) -> &'a Value {
        &self.tree.value
    }

    /// The line to point at: a field's is that of its key.
    pub(super) fn line(&self) -> u32 {
        self.line
    }

    /// The fields here, if it is a map.
    pub(super) fn entries(&self) -> Option<&'a [Entry]> {
        match self.value() {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// A field that is there and not null: the API reads null as absent.
    pub(super) fn get<'b>(&'b self, key: &str) -> Option<At<'b>> {
        let entry = self.entries()?.iter().find(|entry| entry.key == key)?;
        if entry.value.value == Value::Null { None } else { Some(self.field(entry)) }
    }

    /// One of the fields here.
    pub(super) fn field<'b>(&'b self, entry: &'b Entry) -> At<'b> {
        At { tree: &entry.value, line: entry.line, up: Some(self), step: Step::Field(&entry.key) }
    }

    /// The items here, if it is a list.
    pub(super) fn items<'b>(&'b self) -> Option<impl ExactSizeIterator<Item = At<'b>> + 'b> {
        let Value::List(items) = self.value() else { return None };
        let at = move |(index, tree): (usize, &'b Tree)| At {
            tree,
            line: tree.line,
            up: Some(self),
            step: Step::Index(index),
        };
        Some(items.iter().enumerate().map(at))
    }

    /// The text here, if it is text.
    pub(super) fn text(&self) -> Option<&'a str> {
        match self.value() {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The way from the top: `spec.ingress[0].ports[1]`; nothing at the top itself.
impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(up) = self.up else { return Ok(()) };
        up.fmt(f)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Field(key) if up.up.is_none() => f.write_str(key),
            Step::Field(key) => write!(f, ".{key}"),
        }
    }
}

/// What follows from a broken part.
#[derive(Clone, Copy)]
pub(super) struct Harm {
    /// How much it means.
    pub(super) severity: Severity,
    /// In words, like `the peer matches nothing`.
    pub(super) consequence: &'static str,
}

impl Harm {
    /// A part that matches nothing, or is not read.
    pub(super) const fn part(consequence: &'static str) -> Self {
        Self { severity: Severity::Warning, consequence }
    }

    /// A whole object that is left out.
    pub(super) const fn whole(consequence: &'static str) -> Self {
        Self { severity: Severity::Error, consequence }
    }
}

/// Collects the findings of one object.
pub(super) struct Report<'r> {
    /// The file it came from, if it came from one.
    pub(super) file: Option<&'r Arc<Path>>,
    /// Who has checked it before.
    pub(super) origin: Origin,
    /// The object, like `NetworkPolicy shop/db`.
    pub(super) object: Option<Arc<str>>,
    /// What was found.
    pub(super) found: &'r mut Vec<Diagnostic>,
}

impl Report<'_> {
    /// Adds a finding.
    pub(super) fn say(&mut self, severity: Severity, at: &At<'_>, message: String) {
        let field = at.to_string();
        self.found.push(Diagnostic {
            place: self.file.map(|file| Place { file: file.clone(), line: at.line() }),
            severity,
            object: self.object.clone(),
            field: if field.is_empty() { None } else { Some(field.into()) },
            message,
        });
    }

    /// Adds a finding about a broken part and returns the problem alone, as the reason why the part matches nothing.
    pub(super) fn broken(&mut self, at: &At<'_>, harm: Harm, problem: impl Into<Arc<str>>) -> Arc<str> {
        let problem = problem.into();
        self.say(harm.severity, at, format!("{problem}; {}", harm.consequence));
        problem
    }

    /// Whether it is a map; adds a finding if not.
    pub(super) fn expect_map(&mut self, at: &At<'_>, harm: Harm) -> bool {
        let is_map = at.entries().is_some();
        if !is_map {
            self.broken(at, harm, format!("must be a map, not {}", at.value()));
        }
        is_map
    }

    /// The items of a list; none, and a finding, if it is not one.
    pub(super) fn expect_list<'b>(&mut self, at: &'b At<'_>, harm: Harm) -> Vec<At<'b>> {
        match at.items() {
            Some(items) => items.collect(),
            None => {
                self.broken(at, harm, format!("must be a list, not {}", at.value()));
                Vec::new()
            }
        }
    }

    /// Names each field that the API does not know; returns the first problem.
    pub(super) fn unknown_fields(&mut self, at: &At<'_>, known: &[&str], harm: Harm) -> Option<Arc<str>> {
        let mut first = None;
        for entry in at.entries().unwrap_or_default().iter().filter(|entry| !known.contains(&&*entry.key)) {
            let problem = unknown_field(&entry.key, known);
            first.get_or_insert(self.broken(&at.field(entry), harm, problem));
        }
        first
    }
}

/// Says that a field is unknown, and what was likely meant.
pub(super) fn unknown_field(key: &str, known: &[&str]) -> String {
    let mut problem = format!("unknown field `{key}`");
    match nearest(key, known) {
        Some(meant) => write!(problem, ", did you mean `{meant}`?").expect("writing to a string"),
        None if known.len() <= 8 => {
            let names: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
            write!(problem, ", expected {}", names.join(", ")).expect("writing to a string");
        }
        None => {}
    }
    problem
}

/// The known word that was likely meant: at most a third of its letters are wrong.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let wrong_at_most = |candidate: &str| (candidate.len() / 3).max(1);
    let word = word.to_lowercase();
    let length = word.chars().count();
    known
        .iter()
        // A word of another length is as far away as that, however long somebody made it.
        .filter(|candidate| length.abs_diff(candidate.len()) <= wrong_at_most(candidate))
        .map(|&candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|&(distance, candidate)| distance <= wrong_at_most(candidate))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour to turn one word into the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                (i, j) => {
                    let differs = usize::from(from[i - 1] != to[j - 1]);
                    let mut least = (rows[i - 1][j - 1] + differs).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                        least = least.min(rows[i - 2][j - 2] + 1);
                    }
                    least
                }
            };
        }
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_word_is_suggested_and_no_far_one() {
        let known = ["podSelector", "namespaceSelector", "ipBlock", "from", "to", "ports"];
        for (typed, meant) in [
            ("podSelectr", Some("podSelector")),
            ("PodSelector", Some("podSelector")),
            ("form", Some("from")),
            ("port", Some("ports")),
            ("ipblok", Some("ipBlock")),
            ("namespaces", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, &known), meant, "{typed}");
        }
    }
}
