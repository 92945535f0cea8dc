//! The files of the repository.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::workspace;

/// Every file that is not built, in order of their paths.
pub(super) struct Tree {
    files: Vec<File>,
}

/// One of them.
pub(super) struct File {
    /// From the workspace's folder, with `/`.
    pub(super) path: String,
    /// `None` if it is not text.
    pub(super) text: Option<String>,
}

/// A text with its path.
#[derive(Clone, Copy)]
pub(super) struct Text<'tree> {
    pub(super) path: &'tree str,
    pub(super) text: &'tree str,
}

impl Tree {
    /// Reads the workspace.
    pub(super) fn read() -> anyhow::Result<Self> {
        let mut files = Vec::new();
        read_into(&mut files, workspace::root())?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// All files.
    pub(super) fn files(&self) -> &[File] {
        &self.files
    }

    /// Those that are text and whose path ends so.
    pub(super) fn texts(&self, ending: &str) -> impl Iterator<Item = Text<'_>> {
        self.files
            .iter()
            .filter(move |file| file.path.ends_with(ending))
            .filter_map(|file| Some(Text { path: &file.path, text: file.text.as_deref()? }))
    }

    /// The text of one file.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.texts(path).find(|file| file.path == path).map(|file| file.text)
    }

    /// Whether there is such a file or folder.
    pub(super) fn has(&self, path: &str) -> bool {
        let within = |file: &str| file.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        path.is_empty() || self.files.iter().any(|file| within(&file.path))
    }

    /// A tree of texts, for tests of rules.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File { path: (*path).to_owned(), text: Some((*text).to_owned()) };
        Self { files: files.iter().map(file).collect() }
    }
}

fn read_into(files: &mut Vec<File>, folder: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let path: PathBuf = entry?.path();
        let relative = workspace::relative(&path).to_string_lossy().into_owned();
        if relative == "target" || relative == ".git" {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            read_into(files, &path)?;
        } else {
            let bytes = fs::read(&path).with_context(|| format!("read {relative}"))?;
            files.push(File { path: relative, text: String::from_utf8(bytes).ok() });
        }
    }
    Ok(())
}
