//! A BPF file system of the rig's own.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use super::error::{Attempt, Result};

/// A BPF file system that is mounted nowhere: an open file descriptor is its only handle, so the machine's mounts stay
/// as they are, pins outlive the agent that made them, and the kernel frees them with the last process that holds the
/// descriptor.
///
/// Children inherit the descriptor under the same number; that is how an agent reaches [`BpfFs::path`].
#[derive(Debug)]
pub struct BpfFs {
    root: OwnedFd,
}

impl BpfFs {
    /// Makes an empty one. Takes CAP_SYS_ADMIN, and `fsmount` (Linux 5.2).
    pub fn new() -> Result<Self> {
        let what = || "make a BPF file system".to_owned();
        let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC).attempt(what)?;
        fsconfig_set_string(&context, "mode", "0700").attempt(what)?;
        fsconfig_create(&context).attempt(what)?;
        let root = fsmount(&context, FsMountFlags::empty(), MountAttrFlags::MOUNT_ATTR_NOEXEC).attempt(what)?;
        Ok(Self { root })
    }

    /// The root, as this process and its children name it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.root.as_raw_fd()).into()
    }

    /// A directory for one agent's pins, as this process and its children name it. The agent makes it.
    pub fn pin_dir(&self) -> PathBuf {
        self.path().join("npolicy")
    }

    /// The directory of [`BpfFs::pin_dir`], as every other process of the machine names it.
    pub fn pin_dir_from_outside(&self) -> PathBuf {
        format!("/proc/{}/fd/{}/npolicy", std::process::id(), self.root.as_raw_fd()).into()
    }
}
