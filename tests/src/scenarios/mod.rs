//! Scenarios: a world, steps that change it, and what must be reached after each.
//!
//! ```text
//! scenarios/**.yaml --> Scenario --+--> Objects, step by step --> Expected probes --> oracle, engine, or real packets
//! cases/worked ----> Scenario -----+
//! ```
//!
//! The same data serves every backend. `scenarios/README.md` explains how they are written.

mod expect;
mod host;
mod lab;
mod objects;
mod packets;
mod scenario;
mod services;
mod tables;
mod worked;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use expect::{Expected, Port};
pub use host::{Difference, check_engine, check_nodes, check_oracle};
pub use objects::Objects;
pub use packets::{Ran, Setting, run_packets};
pub use scenario::{Scenario, Step};
pub use world::World;

/// Every scenario, ascending by name; read once.
///
/// # Panics
///
/// A file cannot be read, or two scenarios have one name.
pub fn all() -> &'static [Scenario] {
    static ALL: OnceLock<Vec<Scenario>> = OnceLock::new();
    ALL.get_or_init(|| read_all().unwrap_or_else(|error| panic!("{error:#}")))
}

fn read_all() -> anyhow::Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for folder in ["e2e", "cyclonus", "cnp", "services"] {
        for path in yaml_files(&root().join(folder))? {
            let stem = path.file_stem().expect("a file has a name").to_string_lossy();
            let name = format!("{folder}/{stem}");
            if stem.starts_with("table-") {
                scenarios.extend(tables::read(&path, &name).with_context(|| name.clone())?);
            } else {
                scenarios.push(Scenario::read(&path, &name).with_context(|| name.clone())?);
            }
        }
    }
    scenarios.extend(worked::all()?);
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    for pair in scenarios.windows(2) {
        ensure!(pair[0].name != pair[1].name, "two scenarios are called {}", pair[0].name);
    }
    Ok(scenarios)
}

/// Where the data is.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn yaml_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one YAML document.
fn read_yaml<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    // A namespace called y is no boolean, as the agent reads it too.
    let options = serde_saphyr::options! { strict_booleans: true };
    let value: Value =
        serde_saphyr::from_str_with_options(&text, options).with_context(|| path.display().to_string())?;
    serde_json::from_value(value).with_context(|| path.display().to_string())
}
