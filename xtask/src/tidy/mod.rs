//! `cargo xtask tidy`: rules of this repository that no compiler checks.

mod code;
mod dependencies;
mod documents;
mod maps;
mod rust;
mod tree;

use std::fmt;

use anyhow::bail;

use tree::Tree;

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// File, and line where there is one.
    place: String,
    /// What is wrong and what to do.
    what: String,
}

impl Finding {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// A rule; it sees the whole tree.
type Rule = fn(&Tree) -> Vec<Finding>;

const RULES: &[Rule] = &[
    rust::no_unfinished_code,
    rust::unsafe_code_has_its_places,
    rust::files_are_short,
    documents::decisions_are_numbered,
    documents::links_resolve,
    documents::changelog_has_a_section,
    documents::no_path_of_a_machine,
    dependencies::lock_has_no_forbidden_crate,
    dependencies::one_copy_of_a_crate,
    maps::table_names_the_maps_of_the_object,
];

/// Applies every rule and prints what breaks one.
///
/// # Errors
///
/// Something does, or the tree cannot be read.
pub(crate) fn run() -> anyhow::Result<()> {
    let tree = Tree::read()?;
    let findings: Vec<_> = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} rules are broken, see above", findings.len());
    }
    eprintln!("{} files keep {} rules", tree.files().len(), RULES.len());
    Ok(())
}
