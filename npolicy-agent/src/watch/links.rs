//! The node's interfaces, by netlink.
