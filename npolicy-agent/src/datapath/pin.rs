//! The directory on a BPF file system that keeps maps and links while no agent runs.
//!
//! ```text
//! PIN_DIR/v1/NAME                 a map
//! PIN_DIR/v1/links/42-ingress     the link of `from_endpoint` on interface 42
//! PIN_DIR/v1/links/42-egress      the link of `to_endpoint`
//! PIN_DIR/v1-new                  maps being made; renamed when they are complete
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use npolicy_common::LAYOUT_VERSION;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, fstatfs, open};

use super::error::DatapathError;
use super::sys::Hook;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The pin directory, held by this agent alone.
#[derive(Debug)]
pub(super) struct PinDir {
    path: PathBuf,
    /// Open as long as the lock is held.
    _lock: OwnedFd,
}

impl PinDir {
    /// Opens the directory, making it if its parent is on a BPF file system, and locks it.
    ///
    /// # Errors
    ///
    /// [`DatapathError::PinDir`] if it is not on a BPF file system, if others could write to it, or if another agent holds
    /// it.
    pub(super) fn open(path: &Path) -> Result<Self, DatapathError> {
        let problem = |problem: String| DatapathError::PinDir { path: path.to_owned(), problem };
        let unusable = |error: io::Error| problem(format!("cannot be used: {error}"));
        if !path.exists() {
            let parent = path.parent().unwrap_or(Path::new("/"));
            let parent_fd = open_dir(parent, OFlags::empty())
                .map_err(|error| problem(format!("its parent {} cannot be opened: {error}", parent.display())))?;
            check_file_system(&parent_fd).map_err(problem)?;
            DirBuilder::new().mode(0o700).create(path).map_err(unusable)?;
        }
        let dir = open_dir(path, OFlags::NOFOLLOW).map_err(unusable)?;
        check_file_system(&dir).map_err(problem)?;
        let stat = fstat(&dir).map_err(|error| unusable(error.into()))?;
        if stat.st_uid != 0 {
            return Err(problem(format!("belongs to user {}, expected root: remove it", stat.st_uid)));
        }
        if stat.st_mode & 0o022 != 0 {
            let mode = stat.st_mode & 0o7777;
            return Err(problem(format!("has mode {mode:04o}, so others can write to it: chmod 0700 it")));
        }
        flock(&dir, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| problem("another agent holds it: stop that one first".to_owned()))?;
        let held = Self { path: path.to_owned(), _lock: dir };
        held.refuse_other_layouts()?;
        Ok(held)
    }

    /// State of another layout is left as it is: its programs may be enforcing.
    fn refuse_other_layouts(&self) -> Result<(), DatapathError> {
        let ours = [format!("v{LAYOUT_VERSION}"), format!("v{LAYOUT_VERSION}-new")];
        for entry in fs::read_dir(&self.path).map_err(DatapathError::kernel("read the pin directory"))? {
            let entry = entry.map_err(DatapathError::kernel("read the pin directory"))?;
            let name = entry.file_name();
            if !ours.iter().any(|ours| name == ours.as_str()) {
                return Err(DatapathError::PinDir {
                    path: self.path.clone(),
                    problem: format!(
                        "holds {}, which this agent (layout v{LAYOUT_VERSION}) did not make: \
                                      run the agent that did, or remove it",
                        name.display()
                    ),
                });
            }
        }
        Ok(())
    }

    /// Where the complete maps and links of this layout are.
    pub(super) fn layout(&self) -> PathBuf {
        self.path.join(format!("v{LAYOUT_VERSION}"))
    }

    /// Where maps are made.
    pub(super) fn unfinished(&self) -> PathBuf {
        self.path.join(format!("v{LAYOUT_VERSION}-new"))
    }

    /// Where links are kept.
    pub(super) fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    /// Removes what an agent left that stopped while it made maps.
    pub(super) fn remove_unfinished(&self) -> Result<(), DatapathError> {
        remove_tree(&self.unfinished()).map_err(DatapathError::kernel("remove maps of an interrupted start"))
    }

    /// Removes links, then maps, then the directory.
    pub(super) fn remove_all(self) -> Result<(), DatapathError> {
        let removing = || format!("remove {}", self.path.display());
        remove_tree(&self.links()).map_err(DatapathError::kernel(removing()))?;
        remove_tree(&self.path).map_err(DatapathError::kernel(removing()))
    }
}

/// Name of a link's pin.
pub(super) fn link_name(ifindex: u32, hook: Hook) -> String {
    match hook {
        Hook::Ingress => format!("{ifindex}-ingress"),
        Hook::Egress => format!("{ifindex}-egress"),
    }
}

/// What a link's pin is the link of.
pub(super) fn parse_link_name(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, hook) = name.split_once('-')?;
    let hook = match hook {
        "ingress" => Hook::Ingress,
        "egress" => Hook::Egress,
        _ => return None,
    };
    Some((ifindex.parse().ok()?, hook))
}

/// Removes a file or directory of a BPF file system; nothing if it is not there.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(kind) if kind.is_dir() => {
            for entry in fs::read_dir(path)? {
                remove_tree(&entry?.path())?;
            }
            fs::remove_dir(path)
        }
        Ok(_) => fs::remove_file(path),
    }
}

fn open_dir(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(open(path, flags | OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn check_file_system(dir: &OwnedFd) -> Result<(), String> {
    match fstatfs(dir) {
        Ok(info) if info.f_type as u64 == BPF_FS_MAGIC => Ok(()),
        Ok(_) => {
            Err("is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, then use a directory below it".into())
        }
        Err(error) => Err(format!("cannot be used: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_directory_that_is_not_on_a_bpf_file_system() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("new")] {
            let error = PinDir::open(&path).unwrap_err().to_string();
            assert!(error.contains("mount -t bpf"), "{error}");
        }
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn names_of_links_can_be_read_back() {
        for hook in [Hook::Ingress, Hook::Egress] {
            assert_eq!(parse_link_name(&link_name(42, hook)), Some((42, hook)));
        }
        assert_eq!(parse_link_name("42-ingress-new"), None);
    }
}
