//! Rules for Rust sources.

use super::{
    Finding, code,
    tree::{Text, Tree},
};

/// Macros that stand for work not done or left from debugging.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// Where `unsafe` may be, and why there.
const UNSAFE_PLACES: &[(&str, &str)] = &[
    ("npolicy-common/src/", "byte views of the values in maps, and aya's `Pod`"),
    ("npolicy-ebpf/src/maps.rs", "pointers that the kernel's helpers return"),
    ("npolicy-ebpf/src/main.rs", "entry points, section names and the panic handler"),
    ("npolicy-ebpf/src/bench.rs", "the same, for the programs that the benchmark compares with"),
    ("npolicy-agent/src/datapath/", "maps that are written through mmap, and system calls"),
];

/// Longest file without a reason.
const LINES: usize = 700;

/// Longer files, and why they are not two.
const LONG_FILES: &[(&str, &str)] =
    &[("npolicy-ebpf/src/maps.rs", "every pointer that the kernel hands out, in the one file that may use them")];

pub(super) fn no_unfinished_code(tree: &Tree) -> Vec<Finding> {
    words(tree, |line| UNFINISHED.iter().find(|word| has_word(line, word)).map(|word| format!("`{word}` is left here")))
}

pub(super) fn unsafe_code_has_its_places(tree: &Tree) -> Vec<Finding> {
    let mut findings = words(tree, |line| {
        has_word(line, "unsafe")
            .then(|| "`unsafe` is not for this file; xtask/src/tidy/rust.rs lists its places".to_owned())
    });
    findings.retain(|finding| !UNSAFE_PLACES.iter().any(|(place, _)| finding.place.starts_with(place)));
    findings
}

pub(super) fn files_are_short(tree: &Tree) -> Vec<Finding> {
    let is_long = |file: &Text<'_>| file.text.lines().count() > LINES;
    let mut findings: Vec<_> = tree
        .texts(".rs")
        .filter(|file| is_long(file) && LONG_FILES.iter().all(|(path, _)| *path != file.path))
        .map(|file| {
            let what = format!("{} lines, more than {LINES}: find its second noun", file.text.lines().count());
            Finding::new(file.path, what)
        })
        .collect();
    let listed =
        LONG_FILES.iter().filter(|(path, _)| !tree.texts(path).any(|file| file.path == *path && is_long(&file)));
    findings.extend(
        listed.map(|(path, _)| Finding::new(*path, format!("listed as longer than {LINES} lines, but is not"))),
    );
    findings
}

/// What `judge` says of each line of code, without comments and strings.
fn words(tree: &Tree, judge: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.texts(".rs") {
        for (number, line) in (1..).zip(code::only(file.text).lines()) {
            findings.extend(judge(line).map(|what| Finding::new(format!("{}:{number}", file.path), what)));
        }
    }
    findings
}

/// Whether `word` stands in `line` by itself.
fn has_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let after = &line[at + word.len()..];
        !line[..at].ends_with(is_name) && (word.ends_with('!') || !after.starts_with(is_name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|finding| finding.place.as_str()).collect()
    }

    #[test]
    fn unfinished_code_is_found_and_talk_of_it_is_not() {
        let source =
            "// todo!()\nfn a() { todo!() }\nfn b() { not_todo!() }\nconst C: &str = \"dbg!\";\nfn d() { dbg!(1); }";
        assert_eq!(places(&no_unfinished_code(&Tree::of(&[("a.rs", source)]))), ["a.rs:2", "a.rs:5"]);
    }

    #[test]
    fn unsafe_code_is_found_outside_its_places() {
        let source = "#![deny(unsafe_op_in_unsafe_fn)]\nunsafe fn f() {}";
        let tree = Tree::of(&[("npolicy-agent/src/datapath/mmap.rs", source), ("npolicy-agent/src/agent.rs", source)]);
        assert_eq!(places(&unsafe_code_has_its_places(&tree)), ["npolicy-agent/src/agent.rs:2"]);
    }

    #[test]
    fn the_last_line_that_a_file_may_have() {
        let at_limit = "//\n".repeat(LINES);
        let over = "//\n".repeat(LINES + 1);
        let findings = files_are_short(&Tree::of(&[("a.rs", &at_limit), ("b.rs", &over)]));
        let of_these = |place: &&str| matches!(*place, "a.rs" | "b.rs");
        assert_eq!(places(&findings).into_iter().filter(of_these).collect::<Vec<_>>(), ["b.rs"]);
    }
}
