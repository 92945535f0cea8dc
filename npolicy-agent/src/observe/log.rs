//! The node's drop log: text for people, JSON lines for programs.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::drops::DropLine;

/// How a drop line is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// Text on a terminal, JSON elsewhere
    Auto,
    /// One line of words
    Text,
    /// One JSON object a line, in the shape of Hubble's flow export
    Json,
}

/// Why the drop log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system refused.
    #[error("drop log {path}")]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something stands there that is not a file of ours.
    #[error("drop log {path}: {what}; name another path or remove it")]
    NotOurs {
        /// Where it should be.
        path: PathBuf,
        /// What was found.
        what: &'static str,
    },
}

/// Where drop lines go. A write that fails is counted and the line is lost; the verdict it speaks of is not.
#[derive(Debug)]
pub struct DropLog {
    out: Out,
    json: bool,
    lost: u64,
}

#[derive(Debug)]
enum Out {
    Stdout,
    File(File),
}

impl DropLog {
    /// Opens the log at a path, `-` being standard output.
    ///
    /// # Errors
    /// `Open` if the system refuses; `NotOurs` if a link, a directory, a file with two names or another user's file is
    /// there: the log is written by root and must not be steered elsewhere.
    pub fn open(path: &Path, format: Format) -> Result<Self, LogError> {
        let out = if path == Path::new("-") { Out::Stdout } else { Out::File(open_file(path)?) };
        let json = match (format, &out) {
            (Format::Json, _) | (Format::Auto, Out::File(_)) => true,
            (Format::Text, _) => false,
            (Format::Auto, Out::Stdout) => !io::stdout().is_terminal(),
        };
        Ok(Self { out, json, lost: 0 })
    }

    /// Writes one line.
    pub fn write(&mut self, line: &DropLine) {
        let mut text = if self.json { line.to_json() } else { line.to_string() };
        text.push('\n');
        let written = match &mut self.out {
            Out::Stdout => io::stdout().lock().write_all(text.as_bytes()),
            Out::File(file) => file.write_all(text.as_bytes()),
        };
        if written.is_err() {
            self.lost += 1;
        }
    }

    /// Lines that could not be written so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

fn open_file(path: &Path) -> Result<File, LogError> {
    let failed = |source| LogError::Open { path: path.to_owned(), source };
    let refuse = |what| LogError::NotOurs { path: path.to_owned(), what };
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(|error| match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::LOOP) => refuse("is a symbolic link"),
            _ => failed(error),
        })?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(refuse("is not a regular file"));
    }
    if metadata.nlink() > 1 {
        return Err(refuse("has a second name"));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(refuse("belongs to another user"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_links_of_both_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::write(&real, "").unwrap();
        let soft = dir.path().join("soft");
        std::os::unix::fs::symlink(&real, &soft).unwrap();
        let hard = dir.path().join("hard");
        let message = |path: &Path| DropLog::open(path, Format::Json).unwrap_err().to_string();
        assert!(message(&soft).contains("is a symbolic link"), "{}", message(&soft));
        DropLog::open(&real, Format::Json).unwrap();
        std::fs::hard_link(&real, &hard).unwrap();
        assert!(message(&hard).contains("has a second name"), "{}", message(&hard));
    }
}
