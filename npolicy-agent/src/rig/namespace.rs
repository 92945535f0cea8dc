//! A network namespace, held by an open file descriptor and nothing else.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::error::{Attempt, Result, RigError};

/// A network namespace. It lives as long as a value, a thread or a socket in it does.
#[derive(Clone, Debug)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// Makes an empty namespace with its loopback interface down. Takes CAP_SYS_ADMIN.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare_network().attempt(|| "make a network namespace".into())?;
            let link = "/proc/thread-self/ns/net";
            File::open(link).attempt(|| format!("open {link}: the rig needs /proc"))
        });
        let file = made.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
        Ok(Self { file: Arc::new(file) })
    }

    /// Runs `work` on a thread of its own inside the namespace and hands back what it returns.
    ///
    /// # Panics
    ///
    /// Where `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Starts a thread that stays inside the namespace; `work` runs there.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let namespace = self.clone();
        thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                namespace.enter()?;
                work()
            })
            .attempt(|| format!("start thread {name}"))
    }

    /// A path by which this process's owner can name the namespace, as in `nsenter --net=PATH`.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Writes a setting; `name` is its path below /proc/sys/net.
    pub(super) fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(|| fs::write(&path, value))?.map_err(|source| RigError::Setting { path, value: value.into(), source })
    }

    fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .attempt(|| "enter a network namespace".into())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Gives the calling thread a network namespace of its own.
#[expect(deprecated, reason = "its replacement is unsafe for the sake of CLONE_FILES, which is not asked for here")]
fn unshare_network() -> rustix::io::Result<()> {
    rustix::thread::unshare(UnshareFlags::NEWNET)
}
