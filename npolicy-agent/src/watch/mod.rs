//! Stage 1, facts in: manifest files and kernel links become typed events.
mod backends;
pub mod directory;
pub mod links;
pub mod manifests;
pub mod objects;
