//! `cargo xtask image`: the image that the DaemonSet runs, from scratch, with one static binary in it.
//!
//! ```text
//! cargo build, static --> npolicy --> archive: one layer --> target/image/npolicy.tar
//! ```

mod archive;
mod build;

use std::path::PathBuf;

use anyhow::Context as _;

pub(crate) use archive::{Content, Image, ImageFile};

use crate::workspace;

/// Builds the image of the agent and says how to load it.
///
/// # Errors
///
/// As [`agent`].
pub(crate) fn run() -> anyhow::Result<()> {
    let archive = agent()?;
    let size = archive.metadata().with_context(|| format!("read {}", archive.display()))?.len();
    let shown = workspace::relative(&archive).display();
    println!(
        "\
{shown}
  name    {name}
  id      {id}
  size    {size} bytes
load it on every node with one of
  kind load image-archive {shown}
  ctr --namespace k8s.io images import {shown}
  docker load --input {shown}
and then
  npolicy install | kubectl apply -f -",
        name = name(),
        id = archive::id(&archive)?,
    );
    Ok(())
}

/// Builds the static binary and writes the image, where they are older than the sources, and returns the archive:
/// `target/image/npolicy.tar`.
///
/// # Errors
///
/// The binary does not build or is not static, or the archive cannot be written.
pub(crate) fn agent() -> anyhow::Result<PathBuf> {
    let archive = workspace::root().join("target/image/npolicy.tar");
    let binary = build::binary()?;
    let image = Image {
        names: vec![name()],
        entrypoint: vec!["/npolicy".to_owned()],
        files: vec![ImageFile { path: "/npolicy".to_owned(), content: Content::Host(binary.clone()) }],
    };
    // We are what writes it, so an archive older than us may be written otherwise now.
    let writer = std::env::current_exe().context("find out which program we are")?;
    if build::is_newer(&archive, &[&binary, &writer])? {
        eprintln!("{} is up to date", workspace::relative(&archive).display());
    } else {
        image.write(&archive)?;
    }
    Ok(archive)
}

/// What the image is called; `npolicy install` names the same by default.
fn name() -> String {
    format!("localhost/npolicy:{}", env!("CARGO_PKG_VERSION"))
}
