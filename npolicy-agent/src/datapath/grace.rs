//! Waiting until no program that runs now can still hold what it read.

use std::io;
use std::os::fd::OwnedFd;

use rustix::thread::{MembarrierCommand, membarrier};

use super::sys;

/// How a grace period is waited for.
#[derive(Debug)]
pub(super) enum Grace {
    /// `membarrier(2)` with MEMBARRIER_CMD_GLOBAL: one RCU grace period, some milliseconds.
    Membarrier,
    /// A throw-away map of maps whose update waits for the same. The kernel refuses the other under nohz_full.
    MapOfMaps {
        /// The map of one map.
        outer: OwnedFd,
        /// The map put into it, again and again.
        inner: OwnedFd,
    },
    /// Nothing but this process reads the tables.
    #[cfg(test)]
    Nothing,
}

impl Grace {
    /// Finds out how this kernel can be waited for, by doing it once.
    ///
    /// # Errors
    ///
    /// The kernel's, if neither way works.
    pub(super) fn new() -> io::Result<Self> {
        match membarrier(MembarrierCommand::Global) {
            Ok(()) => Ok(Self::Membarrier),
            Err(_) => {
                let inner = sys::create_array(1, None)?;
                let outer = sys::create_array(1, Some(&inner))?;
                let grace = Self::MapOfMaps { outer, inner };
                grace.wait()?;
                Ok(grace)
            }
        }
    }

    /// Returns when every program that ran at the call has ended.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn wait(&self) -> io::Result<()> {
        match self {
            Self::Membarrier => Ok(membarrier(MembarrierCommand::Global)?),
            Self::MapOfMaps { outer, inner } => sys::put_map(outer, 0, inner),
            #[cfg(test)]
            Self::Nothing => Ok(()),
        }
    }
}
