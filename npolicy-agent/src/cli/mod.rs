//! The commands for people, one file each.
