//! The machines of the cluster, their addresses and the folders they live in.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use crate::workspace;

/// Pods' addresses; the controller manager gives each node a /24 and a /64 of them.
pub(super) const POD_CIDRS: [&str; 2] = ["10.64.0.0/16", "fd64::/56"];
/// Services' addresses.
pub(super) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];
/// The first address of each, where the API server is a Service.
pub(super) const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd96::1"];
/// The control plane on the wire between the machines.
pub(super) const CONTROL_PLANE: [&str; 2] = ["172.31.0.1", "fd31::1"];
/// Where the API server listens.
pub(super) const API_PORT: u16 = 6443;
/// The namespace with the bridge that connects the machines.
pub(super) const SWITCH: &str = "npolicy-sw";

/// The first family of pods, Services and nodes; both are always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// IPv4.
    #[value(name = "4")]
    V4,
    /// IPv6.
    #[value(name = "6")]
    V6,
}

impl Family {
    /// An IPv4 and an IPv6 text, the one of this family first, with a comma between.
    pub(crate) fn ordered(self, [v4, v6]: [&str; 2]) -> String {
        match self {
            Self::V4 => format!("{v4},{v6}"),
            Self::V6 => format!("{v6},{v4}"),
        }
    }

    /// The one of this family.
    pub(super) fn of(self, [v4, v6]: [&str; 2]) -> &str {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}

/// A node of the cluster: n1 or n2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Node {
    /// n1.
    #[value(name = "1", alias = "n1")]
    N1,
    /// n2.
    #[value(name = "2", alias = "n2")]
    N2,
}

impl Node {
    /// Both, in order.
    pub(crate) const ALL: [Self; 2] = [Self::N1, Self::N2];

    /// Its name in Kubernetes, and of its host.
    pub(crate) fn name(self) -> &'static str {
        Machine::Node(self).name()
    }

    /// Its addresses on the wire between the machines.
    pub(super) fn addresses(self) -> [&'static str; 2] {
        match self {
            Self::N1 => ["172.31.0.11", "fd31::11"],
            Self::N2 => ["172.31.0.12", "fd31::12"],
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The control plane or a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    ControlPlane,
    Node(Node),
}

impl Machine {
    /// All three, in the order in which they start.
    pub(super) const ALL: [Self; 3] = [Self::ControlPlane, Self::Node(Node::N1), Self::Node(Node::N2)];

    /// Its short name: of its folder, its cgroup and its port of the bridge.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ControlPlane => "cp",
            Self::Node(Node::N1) => "n1",
            Self::Node(Node::N2) => "n2",
        }
    }

    /// Its network namespace.
    pub(super) fn namespace(self) -> &'static str {
        match self {
            Self::ControlPlane => "npolicy-cp",
            Self::Node(Node::N1) => "npolicy-n1",
            Self::Node(Node::N2) => "npolicy-n2",
        }
    }

    /// Its network namespace as a file.
    pub(super) fn namespace_file(self) -> PathBuf {
        Path::new("/run/netns").join(self.namespace())
    }

    /// Its addresses on the wire between the machines.
    pub(super) fn addresses(self) -> [&'static str; 2] {
        match self {
            Self::ControlPlane => CONTROL_PLANE,
            Self::Node(node) => node.addresses(),
        }
    }

    /// Its link address on that wire, of those that anybody may give.
    pub(super) fn mac(self) -> &'static str {
        match self {
            Self::ControlPlane => "02:00:ac:1f:00:01",
            Self::Node(Node::N1) => "02:00:ac:1f:00:0b",
            Self::Node(Node::N2) => "02:00:ac:1f:00:0c",
        }
    }

    /// Its own folder.
    pub(super) fn folder(self) -> PathBuf {
        run().join(self.name())
    }
}

/// Everything of the cluster: what was built, and what runs.
pub(super) fn root() -> PathBuf {
    workspace::root().join("target/cluster")
}

/// One of the programs that were built.
pub(super) fn binary(name: &str) -> PathBuf {
    root().join("bin").join(name)
}

/// The images that every cluster gets, as docker-archives.
pub(super) fn images() -> PathBuf {
    root().join("images")
}

/// What a running cluster writes; `down` removes it.
pub(super) fn run() -> PathBuf {
    root().join("run")
}

/// The administrator's way in from this machine's own network namespace.
pub(super) fn kubeconfig() -> PathBuf {
    root().join("kubeconfig")
}

/// Keys and certificates.
pub(super) fn pki() -> PathBuf {
    run().join("pki")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_family_goes_first_and_both_are_there() {
        assert_eq!(Family::V4.ordered(POD_CIDRS), "10.64.0.0/16,fd64::/56");
        assert_eq!(Family::V6.ordered(POD_CIDRS), "fd64::/56,10.64.0.0/16");
        assert_eq!(Family::V6.of(CONTROL_PLANE), "fd31::1");
    }

    #[test]
    fn a_node_is_told_by_number_or_name() {
        assert_eq!(Node::from_str("2", false), Ok(Node::N2));
        assert_eq!(Node::from_str("n1", false), Ok(Node::N1));
        assert!(Node::from_str("3", false).is_err());
    }

    #[test]
    fn no_two_machines_share_an_address() {
        let mut all: Vec<_> = Machine::ALL.iter().flat_map(|machine| machine.addresses()).collect();
        all.extend(Machine::ALL.map(Machine::mac));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 9);
    }
}
