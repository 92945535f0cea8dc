//! A directory of the demo's own, and what an earlier demo left when it was killed.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

/// A directory that only this user can read, removed when dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

/// How the directories begin; the number of the process and one of its own follow.
const PREFIX: &str = "npolicy-demo-";

impl Scratch {
    /// Removes what dead demos left, and makes a new one.
    pub(super) fn new() -> anyhow::Result<Self> {
        let parent = std::env::temp_dir();
        remove_leftovers(&parent);
        let moment = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let path = parent.join(format!("{PREFIX}{}-{moment:x}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("make directory {} (TMPDIR names another place)", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next demo removes what stays.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the directories of demos whose process is gone, if they are this user's. Everything else of a demo ends with
/// its process.
fn remove_leftovers(parent: &Path) {
    let own = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        let is_gone = process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists());
        // Not following a link: another user could have left one here.
        let is_own = fs::symlink_metadata(entry.path()).is_ok_and(|meta| meta.is_dir() && meta.uid() == own);
        if is_gone && is_own {
            // What cannot be removed does not stop a new demo.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_only_directories_of_dead_demos() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: String| {
            let path = parent.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "").unwrap();
            path
        };
        // Above the kernel's highest process number, 2^22.
        let dead = make(format!("{PREFIX}4194305-1"));
        let alive = make(format!("{PREFIX}{}-1", std::process::id()));
        let other = make("something-else".into());
        remove_leftovers(parent.path());
        assert!(!dead.exists());
        assert!(alive.exists());
        assert!(other.exists());
    }
}
