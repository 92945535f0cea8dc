//! What can go wrong between the agent and the kernel.

use std::io;
use std::path::PathBuf;

/// A table of the kernel has no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("table {table} is full ({capacity} entries)")]
pub struct Full {
    /// The table's name.
    pub table: &'static str,
    /// How many entries it has.
    pub capacity: u32,
}

/// Why the datapath cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel refused something.
    #[error("{doing}")]
    Kernel {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel is too old.
    #[error("this kernel is {found}, npolicy needs {needed} or later{why}")]
    OldKernel {
        /// The kernel's release.
        found: String,
        /// The lowest that will do.
        needed: &'static str,
        /// What for.
        why: &'static str,
    },
    /// The pin directory cannot be trusted or used.
    #[error("pin directory {}: {problem}", path.display())]
    PinDir {
        /// Which directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A pinned map is not the one this agent would have made. It is left as it is.
    #[error("pinned map {}: {problem}; it is left untouched", path.display())]
    PinnedMap {
        /// Which pin.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// The eBPF object does not fit this agent.
    #[error("eBPF object: {problem}")]
    Object {
        /// What is wrong.
        problem: String,
    },
    /// The kernel's verifier refused a program.
    #[error(
        "load `{program}`: the kernel's verifier refused it ({errno}); {left_out} lines before these left out:\n{log}"
    )]
    Verifier {
        /// Which program.
        program: &'static str,
        /// The kernel's answer.
        errno: io::Error,
        /// Lines of the log that are not shown.
        left_out: usize,
        /// The last lines of the verifier's log.
        log: String,
    },
}

impl DatapathError {
    /// Makes the kernel's answer an error about what was being done.
    pub(super) fn kernel(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { doing: doing.into(), source }
    }
}
