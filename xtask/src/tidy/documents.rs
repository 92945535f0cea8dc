//! Rules for what people read.

use super::{
    Finding,
    tree::{Text, Tree},
};

/// Folders of people's and machines' own, as first part of an absolute path.
const MACHINE_FOLDERS: &[&str] = &["root", "home", "Users", "work"];

/// `docs/decisions/NNNN-title.md`, from 0001 and without gaps.
pub(super) fn decisions_are_numbered(tree: &Tree) -> Vec<Finding> {
    let files = tree.files().iter().filter_map(|file| Some((&file.path, file.path.strip_prefix("docs/decisions/")?)));
    let mut findings = Vec::new();
    for (number, (path, name)) in (1..).zip(files.filter(|(_, name)| *name != "README.md")) {
        let expected = format!("{number:04}-");
        if !name.starts_with(&expected) || !name.ends_with(".md") {
            findings.push(Finding::new(
                path.as_str(),
                format!("its name should begin with `{expected}` and end with `.md`"),
            ));
        }
    }
    findings
}

/// Links between our own documents lead somewhere.
pub(super) fn links_resolve(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in tree.texts(".md") {
        for (number, link) in links(document.text) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            if !resolve(document.path, target).is_some_and(|path| tree.has(&path)) {
                findings.push(Finding::new(format!("{}:{number}", document.path), format!("`{link}` leads nowhere")));
            }
        }
    }
    findings
}

pub(super) fn changelog_has_a_section(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text("CHANGELOG.md") else {
        return vec![Finding::new("CHANGELOG.md", "is missing")];
    };
    let is_section = |line: &str| {
        line.strip_prefix("## ").is_some_and(|title| {
            let title = title.trim_start_matches('[');
            title.starts_with("Unreleased") || title.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    let has_section = text.lines().any(is_section);
    (!has_section)
        .then(|| Finding::new("CHANGELOG.md", "has no section `## Unreleased` or `## VERSION`"))
        .into_iter()
        .collect()
}

/// Nothing names a folder that only one machine has.
pub(super) fn no_path_of_a_machine(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Text { path, text } in tree.texts("") {
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(found) = machine_path(line) {
                findings.push(Finding::new(format!("{path}:{number}"), format!("`{found}` is a path of one machine")));
            }
        }
    }
    findings
}

fn machine_path(line: &str) -> Option<String> {
    let paths = MACHINE_FOLDERS.iter().map(|folder| format!("/{folder}/"));
    paths.into_iter().find(|path| {
        // Behind a name it is a folder of something else.
        let is_part = |c: char| c.is_alphanumeric() || "._-~/}>)".contains(c);
        line.match_indices(path.as_str()).any(|(at, _)| !line[..at].ends_with(is_part))
    })
}

/// The links of a document outside of code, with their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every second piece between backticks is code.
        for prose in line.split('`').step_by(2) {
            let targets = prose.split("](").skip(1).filter_map(|after| after.split([')', ' ']).next());
            links.extend(targets.map(|target| (number, target)));
        }
    }
    links
}

/// Where `target` leads from the document at `from`, as a path of the tree.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut folders: Vec<_> = from.split('/').collect();
    folders.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(folders.pop()?),
            part => folders.push(part),
        }
    }
    Some(folders.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: fn(&Tree) -> Vec<Finding>, files: &[(&str, &str)], expected: &[&str]) {
        let findings = rule(&Tree::of(files));
        assert_eq!(findings.iter().map(|finding| finding.place.as_str()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_missing_number_and_a_number_twice_are_found() {
        let files = |names: &[&'static str]| names.iter().map(|name| (*name, "")).collect::<Vec<_>>();
        let check = |names: &[&'static str], expected: &[&str]| check(decisions_are_numbered, &files(names), expected);
        check(&["docs/decisions/0001-a.md", "docs/decisions/0002-b.md"], &[]);
        check(&["docs/decisions/0001-a.md", "docs/decisions/0003-b.md"], &["docs/decisions/0003-b.md"]);
        check(&["docs/decisions/0001-a.md", "docs/decisions/0001-b.md"], &["docs/decisions/0001-b.md"]);
    }

    #[test]
    fn links_lead_from_the_folder_of_their_document() {
        let text =
            "[a](../README.md#part) [b](c.md)\n`[no](link)` [d](https://example.com/x) [e](#here)\n[up](../../x.md)";
        check(links_resolve, &[("README.md", "[docs](docs/)"), ("docs/a.md", text)], &["docs/a.md:1", "docs/a.md:3"]);
    }

    #[test]
    fn links_in_code_blocks_do_not_count() {
        check(links_resolve, &[("README.md", "```\n[a](b)\n```\n[c](d)")], &["README.md:4"]);
    }

    #[test]
    fn the_changelog_says_what_is_new() {
        check(changelog_has_a_section, &[("CHANGELOG.md", "# Changes\n\n## [Unreleased]\n")], &[]);
        check(changelog_has_a_section, &[("CHANGELOG.md", "# Changes\n\n## 0.1.0 (2026-12-01)\n")], &[]);
        check(changelog_has_a_section, &[("CHANGELOG.md", "# Changes\n")], &["CHANGELOG.md"]);
        check(changelog_has_a_section, &[], &["CHANGELOG.md"]);
    }

    #[test]
    fn a_path_of_a_machine_is_told_from_a_folder_of_that_name() {
        let folder = MACHINE_FOLDERS[0];
        let text = format!("see /{folder}/x\n~/{folder}/x\nsrc/{folder}/x\n\"/{folder}/y\"");
        check(no_path_of_a_machine, &[("a.toml", &text)], &["a.toml:1", "a.toml:4"]);
    }
}
