//! Why a rig could not be made.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use npolicy_common::Family;

/// What the rig's calls return.
pub type Result<T> = std::result::Result<T, RigError>;

/// Why a rig could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// A system call on a namespace, a socket or a process was refused.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A netlink request was refused.
    #[error("{what}")]
    Netlink {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// A setting of a network namespace could not be written.
    #[error("write `{value}` to {}: the rig needs a /proc whose /proc/sys/net is writable", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// What should stand in it.
        value: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Two pods of a node want one address.
    #[error("pod {pod} asks for {address}, which {owner} has")]
    AddressTaken {
        /// The later pod.
        pod: String,
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// A pod wants an address that no other pod of a bridge would ask for on the link.
    #[error("pod {pod} asks for {address}, outside its bridged node's range {range}")]
    AddressOutside {
        /// The pod.
        pod: String,
        /// The address.
        address: IpAddr,
        /// The range the bridge leads to.
        range: String,
    },
    /// A pod wants two addresses of one family.
    #[error("pod {pod} asks for more than one {family:?} address")]
    TwoAddresses {
        /// The pod.
        pod: String,
        /// The family.
        family: Family,
    },
    /// A node's range has no address left.
    #[error("node {node} has no address left for pod {pod}: it has room for {capacity} pods")]
    RangeFull {
        /// The node.
        node: String,
        /// The pod that found none.
        pod: String,
        /// How many pods a node can hold.
        capacity: u32,
    },
    /// The command that translates addresses is missing.
    #[error("there is no `nft` command, which translates Service addresses: apt-get install nftables")]
    NoNft,
    /// The agent ended, or did not do in time what it was asked.
    #[error("the agent {what}; its last lines:\n{log}")]
    Agent {
        /// What it did or left undone.
        what: String,
        /// The end of what it wrote to stderr.
        log: String,
    },
}

/// Names what was attempted where the kernel's answer alone would not tell.
pub(super) trait Attempt<T> {
    /// Adds the attempt to an error.
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| RigError::System { what: what(), source })
    }
}

impl<T> Attempt<T> for std::result::Result<T, rustix::io::Errno> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| RigError::System { what: what(), source: errno.into() })
    }
}

impl<T> Attempt<T> for std::result::Result<T, rtnetlink::Error> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| RigError::Netlink { what: what(), source: Box::new(source) })
    }
}
