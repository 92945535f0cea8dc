//! Manifest files.
