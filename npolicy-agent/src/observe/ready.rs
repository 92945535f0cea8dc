//! The ready file: what the agent enforces, for whoever waits for it.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What the agent enforces at the moment. Written whole after each publish, by rename, so that a reader never sees half.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Ready {
    /// Grows by one with each publish.
    pub revision: u64,
    /// Policies in force.
    pub policies: usize,
    /// Interfaces that carry the programs.
    pub endpoints: usize,
    /// Of these, the ones whose pod is known.
    pub identified: usize,
    /// Endpoints that some policy governs in at least one direction.
    pub governed: usize,
    /// Findings in the manifests.
    pub findings: usize,
    /// A digest of the manifests' bytes that this state was compiled from.
    pub manifests: u64,
}

/// Writes the ready file.
///
/// # Errors
/// What the file system says.
pub fn write_ready(path: &Path, ready: &Ready) -> io::Result<()> {
    let mut text = serde_json::to_string(ready)?;
    text.push('\n');
    let mut partial = path.as_os_str().to_owned();
    partial.push(".new");
    fs::write(&partial, text)?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_file_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        for revision in 1..=2 {
            let ready = Ready { revision, endpoints: 3, ..Ready::default() };
            write_ready(&path, &ready).unwrap();
            assert_eq!(serde_json::from_slice::<Ready>(&fs::read(&path).unwrap()).unwrap(), ready);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
