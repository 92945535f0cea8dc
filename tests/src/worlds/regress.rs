//! Worlds on which judges have differed, as files: `regress/KIND-SEED/world.yaml` and `questions.jsonl`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::harness::Found;
use super::judges::row;
use crate::cases::{Row, from_yaml};
use crate::oracle::{Answer, World};

/// A world that was kept.
#[derive(Debug)]
pub struct Kept {
    /// Name of its folder.
    pub name: String,
    /// Its objects.
    pub objects: Vec<Value>,
    /// What was asked of it.
    pub rows: Vec<Row>,
}

/// Where they are kept.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regress")
}

/// Keeps what was found below `root`, with the oracle's answer to its question; returns the folder.
///
/// # Errors
///
/// The folder cannot be written.
pub fn write(root: &Path, kind: &str, found: &Found) -> Result<PathBuf> {
    let Found { seed, objects, probe, text: why } = found;
    let folder = root.join(format!("{kind}-{seed}"));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut world = String::new();
    for object in objects {
        let text = serde_saphyr::to_string(object).context("write an object as YAML")?;
        world += "---\n";
        world += &text;
        if !text.ends_with('\n') {
            world.push('\n');
        }
    }
    ensure!(from_yaml(&world)? == *objects, "what was written is not what is read:\n{world}");
    fs::write(folder.join("world.yaml"), world)?;
    let expect = match World::from_objects(objects).ask(probe) {
        Answer::Accept => "Accept",
        Answer::Deny => "Deny",
        Answer::Error(_) => "error",
    };
    let row = Row { expect: expect.to_owned(), why: why.clone(), ..row(probe) };
    let mut line: Value = serde_json::from_str(&row.line())?;
    line["expect"] = row.expect.into();
    line["why"] = row.why.into();
    fs::write(folder.join("questions.jsonl"), format!("{line}\n"))?;
    Ok(folder)
}

/// Every world that was kept below `root`, ascending by name.
///
/// # Errors
///
/// A folder that does not hold one.
pub fn kept(root: &Path) -> Result<Vec<Kept>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(root).with_context(|| root.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    folders.iter().map(|folder| read(folder).with_context(|| folder.display().to_string())).collect()
}

fn read(folder: &Path) -> Result<Kept> {
    let objects = from_yaml(&fs::read_to_string(folder.join("world.yaml"))?)?;
    let questions = fs::read_to_string(folder.join("questions.jsonl"))?;
    let rows = questions.lines().map(serde_json::from_str).collect::<Result<Vec<Row>, _>>()?;
    ensure!(!rows.is_empty(), "no questions");
    let name = folder.file_name().context("a folder has a name")?.to_string_lossy().into_owned();
    Ok(Kept { name, objects, rows })
}
