//! Stage 1, facts in: manifest files, objects of an API server and kernel links become typed events.
mod backends;
pub mod directory;
pub mod kubernetes;
pub mod links;
pub mod manifests;
pub mod objects;
