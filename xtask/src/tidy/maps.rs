//! The table of maps in npolicy-common against the maps of the object.

use std::{collections::BTreeSet, fs};

use super::{Finding, tree::Tree};
use crate::{ebpf, object};

/// Where the table is.
const TABLE: &str = "npolicy-common/src/lib.rs";

pub(super) fn table_names_the_maps_of_the_object(tree: &Tree) -> Vec<Finding> {
    let path = ebpf::committed_path();
    let maps = fs::read(&path).map_err(anyhow::Error::from).and_then(|bytes| object::maps(&bytes));
    match maps {
        Ok(maps) => compare(&table(tree.text(TABLE).unwrap_or_default()), &maps),
        Err(error) => {
            vec![Finding::new("npolicy-agent/bpf/npolicy.o", format!("{error:#}; `cargo xtask ebpf` makes it"))]
        }
    }
}

fn compare(table: &BTreeSet<String>, object: &BTreeSet<String>) -> Vec<Finding> {
    let undocumented = object.difference(table).map(|map| format!("the object has a map {map} that the table lacks"));
    let unused = table.difference(object).map(|map| format!("the table has a map {map} that the object lacks"));
    undocumented.chain(unused).map(|what| Finding::new(TABLE, what)).collect()
}

/// The names in the first column: ``//! | [`maps::NAME`] | ...``.
fn table(text: &str) -> BTreeSet<String> {
    let name = |line: &str| Some(line.strip_prefix("//! | [`maps::")?.split_once("`]")?.0.to_owned());
    text.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_on_one_side_only_is_found() {
        let table = table(
            "//! | map | kind |\n//! |---|---|\n//! | [`maps::CONFIG`] | array |\n//! | [`maps::EVENTS`] | ring |\n",
        );
        let object = ["CONFIG", "SCRATCH"].map(str::to_owned).into();
        let findings = compare(&table, &object);
        assert_eq!(
            findings.iter().map(|finding| finding.what.as_str()).collect::<Vec<_>>(),
            ["the object has a map SCRATCH that the table lacks", "the table has a map EVENTS that the object lacks",]
        );
    }
}
