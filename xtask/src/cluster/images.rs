//! Images: those that every cluster gets, and importing any.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};

use anyhow::{Context as _, bail};

use super::{
    build, command, machine,
    machine::{Machine, Node},
    node,
};
use crate::image::{Content, Image, ImageFile};

/// Upstream's test programs in one, under the name that upstream's suite asks for.
const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// What holds a pod's namespaces, under the name that upstream's suite asks for.
pub(super) const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// How upstream's list of images calls them, with the tag that ours must have.
const UPSTREAM: &[(&str, &str)] = &[("Agnhost", AGNHOST), ("Pause", PAUSE)];

/// Writes the images that every cluster gets, unless they are of the programs that are built.
///
/// # Errors
///
/// Upstream's suite asks for other tags, or an archive cannot be written.
pub(super) fn write() -> anyhow::Result<()> {
    let stamp = format!("{} {AGNHOST} {PAUSE}", build::stamp_of("agnhost")?);
    let stamp_file = machine::root().join("stamps/images");
    let archives = [machine::images().join("agnhost.tar"), machine::images().join("pause.tar")];
    let is_written = archives.iter().all(|archive| archive.is_file());
    if is_written && fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    let list = build::kubernetes_sources()?.join("test/utils/image/manifest.go");
    let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    check_tags(&text)?;
    let [agnhost, pause] = &archives;
    image(AGNHOST, &["/agnhost"]).write(agnhost)?;
    image(PAUSE, &["/agnhost", "pause"]).write(pause)?;
    fs::write(&stamp_file, stamp).with_context(|| format!("write {}", stamp_file.display()))
}

/// agnhost under one of its names; one program serves for both.
fn image(name: &str, entrypoint: &[&str]) -> Image {
    let file = |path: &str, content| ImageFile { path: path.to_owned(), content };
    Image {
        names: vec![name.to_owned()],
        entrypoint: entrypoint.iter().map(|&word| word.to_owned()).collect(),
        files: vec![
            file("agnhost", Content::Host(machine::binary("agnhost"))),
            // Upstream's suite calls it by this name too.
            file("agnhost-2", Content::Link("agnhost".to_owned())),
            file("uploads", Content::Directory),
        ],
    }
}

/// Holds our tags against upstream's list, `configs[Pause] = Config{list.GcRegistry, "pause", "3.10.2"}`.
fn check_tags(list: &str) -> anyhow::Result<()> {
    for (key, ours) in UPSTREAM {
        let line = list.lines().find(|line| line.contains(&format!("configs[{key}]")));
        let tag = line.and_then(|line| line.rsplit('"').nth(1));
        let ours = ours.rsplit(':').next().unwrap_or_default();
        if tag != Some(ours) {
            bail!("upstream's suite asks for {key} {}, this cluster has {ours}", tag.unwrap_or("under another key"));
        }
    }
    Ok(())
}

/// Imports what every cluster gets.
///
/// # Errors
///
/// containerd refuses one.
pub(super) fn import_own() -> anyhow::Result<()> {
    import(&[machine::images().join("agnhost.tar"), machine::images().join("pause.tar")])
}

/// Imports docker-archives on both nodes at once, but those that a node has already.
///
/// # Errors
///
/// An archive cannot be read, or containerd refuses it.
pub(super) fn import(archives: &[PathBuf]) -> anyhow::Result<()> {
    let absolute = |archive: &PathBuf| {
        fs::canonicalize(archive).with_context(|| format!("find the archive {}", archive.display()))
    };
    let archives: Vec<_> = archives.iter().map(absolute).collect::<anyhow::Result<_>>()?;
    thread::scope(|scope| {
        let archives = &archives;
        let on = |node| scope.spawn(move || archives.iter().try_for_each(|archive| import_one(node, archive)));
        let threads = Node::ALL.map(on);
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("an import does not panic");
        threads.into_iter().try_for_each(join)
    })
}

fn import_one(node: Node, archive: &Path) -> anyhow::Result<()> {
    let record = record(node, archive)?;
    let version = version(archive)?;
    if fs::read_to_string(&record).is_ok_and(|found| found == version) {
        return Ok(());
    }
    let mut import = node::inside(node, "ctr")?;
    import.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
    command::quiet(&mut import).with_context(|| format!("import {} on {node}", archive.display()))?;
    fs::write(&record, version).with_context(|| format!("write {}", record.display()))
}

/// Where it is written what of `archive` the node has.
fn record(node: Node, archive: &Path) -> anyhow::Result<PathBuf> {
    let folder = Machine::Node(node).folder().join("imported");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder.join(archive.to_string_lossy().replace('/', "%")))
}

/// Tells an archive from those that were at its place before.
fn version(archive: &Path) -> anyhow::Result<String> {
    let metadata = archive.metadata().with_context(|| format!("read {}", archive.display()))?;
    let written = metadata.modified().context("ask when the archive was written")?;
    let since = written.duration_since(SystemTime::UNIX_EPOCH).context("an archive of before 1970")?;
    Ok(format!("{} bytes, {} ns", metadata.len(), since.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tag_upstream_is_an_error_that_names_both() {
        let list = "configs[Agnhost] = Config{list.PromoterE2eRegistry, \"agnhost\", \"2.63.0\"}\n\
                    configs[Pause] = Config{list.GcRegistry, \"pause\", \"3.10.2\"}\n";
        check_tags(list).expect("these are ours");
        let told = check_tags(&list.replace("3.10.2", "3.11")).expect_err("another tag").to_string();
        assert_eq!(told, "upstream's suite asks for Pause 3.11, this cluster has 3.10.2");
        assert!(check_tags("").is_err());
    }
}
