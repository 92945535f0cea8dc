//! Writes images without a container engine, as docker-archives: a tar of the image's configuration, its one layer and a
//! manifest that names both. Docker, podman, containerd and kind load it.
//!
//! ```text
//! OUT.tar: <sha256 of the configuration>.json    architecture, entrypoint, digest of the layer
//!          <sha256 of the layer>/layer.tar       the files
//!          manifest.json                         the two above, and the image's names
//! ```
//!
//! The same files give the same bytes: every time is zero, every owner is root, and nothing of this machine is written.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// An image of one layer.
pub(crate) struct Image {
    /// Its names, as `localhost/npolicy:0.1.0`; at least one.
    pub(crate) names: Vec<String>,
    /// The program that a container of it runs, and its first arguments; empty if each container says.
    pub(crate) entrypoint: Vec<String>,
    /// What it holds, each path once. The directories on the way to a file need no entry: they are made with mode 0755.
    pub(crate) files: Vec<ImageFile>,
}

/// One file of an image.
pub(crate) struct ImageFile {
    /// Where it is in the image, from its root; `/npolicy` and `npolicy` are the same.
    pub(crate) path: String,
    /// What it is.
    pub(crate) content: Content,
}

/// What a file of an image is.
#[allow(dead_code, reason = "the agent's own image needs no more than a copy; images of test programs need the rest")]
pub(crate) enum Content {
    /// A copy of this file of ours, mode 0755.
    Host(PathBuf),
    /// This text, mode 0644.
    Text(String),
    /// A symbolic link to this path in the image.
    Link(String),
    /// A directory that everybody may write in, as `/tmp`: mode 1777.
    Directory,
}

impl Image {
    /// Writes the image to `archive`, whole or not at all, and makes the folder for it.
    ///
    /// # Errors
    ///
    /// The image is not one (no name, a path twice, a path that leaves it), a file of ours cannot be read, or `archive`
    /// cannot be written.
    pub(crate) fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let bytes = self.archive().with_context(|| format!("image {}", self.names.join(", ")))?;
        let what = || format!("write {}", archive.display());
        fs::create_dir_all(archive.parent().unwrap_or(Path::new("."))).with_context(what)?;
        let mut partial = archive.as_os_str().to_owned();
        partial.push(format!(".{}.new", process::id()));
        let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, archive));
        if written.is_err() {
            // The first error is the one to tell.
            drop(fs::remove_file(&partial));
        }
        written.with_context(what)
    }

    /// The bytes of the archive.
    fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let Self { names, entrypoint, files } = self;
        ensure!(
            !names.is_empty() && names.iter().all(|name| is_tagged(name)),
            "each image wants a name like `name:tag`"
        );
        let layer = layer(files)?;
        let layer_digest = hex(&layer);
        let config = serde_json::json!({
            "architecture": architecture(std::env::consts::ARCH)?,
            "os": "linux",
            "created": EPOCH,
            "config": {"Entrypoint": entrypoint, "Env": [PATH], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
            "history": [{"created": EPOCH, "created_by": "cargo xtask"}],
        })
        .to_string();
        let config_name = format!("{}.json", hex(config.as_bytes()));
        let layer_name = format!("{layer_digest}/layer.tar");
        let manifest =
            serde_json::json!([{"Config": config_name, "RepoTags": names, "Layers": [layer_name]}]).to_string();

        let mut tar = Tar::default();
        tar.file(&config_name, 0o644, config.as_bytes())?;
        tar.file(&layer_name, 0o644, &layer)?;
        tar.file("manifest.json", 0o644, manifest.as_bytes())?;
        Ok(tar.finish()?)
    }
}

/// The id of an image that [`Image::write`] wrote, as `docker images --no-trunc` and `crictl images --no-trunc` show it:
/// the digest of its configuration, `sha256:` and 64 digits.
///
/// # Errors
///
/// `archive` cannot be read, or is none of ours.
pub(super) fn id(archive: &Path) -> anyhow::Result<String> {
    let read = || -> io::Result<Option<String>> {
        let mut tar = tar::Archive::new(fs::File::open(archive)?);
        let Some(first) = tar.entries()?.next() else { return Ok(None) };
        let first = first?;
        let name = first.path()?;
        Ok(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned))
    };
    let digest = read().with_context(|| format!("read {}", archive.display()))?;
    let digest =
        digest.with_context(|| format!("{} does not begin with an image's configuration", archive.display()))?;
    Ok(format!("sha256:{digest}"))
}

/// When everything was made.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// With the root as the last, so that `kubectl exec POD -- npolicy` finds it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/";

/// A machine's architecture as images call it: Go's word, not Rust's.
fn architecture(rust: &str) -> anyhow::Result<&'static str> {
    match rust {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image for the architecture {other}: there is one for x86_64 and aarch64"),
    }
}

/// Whether there is a tag behind the last slash; containerd takes no image without one.
fn is_tagged(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty())
}

/// The layer: the files in the order they are given, each behind the directories on its way.
fn layer(files: &[ImageFile]) -> anyhow::Result<Vec<u8>> {
    let mut tar = Tar::default();
    let mut made = BTreeSet::new();
    // What directories the files say themselves; the others are made as they are needed.
    let said: BTreeSet<_> = files
        .iter()
        .filter(|file| matches!(file.content, Content::Directory))
        .map(|file| file.path.trim_matches('/'))
        .collect();
    let mut on_the_way = BTreeSet::new();
    for ImageFile { path, content } in files {
        let name = path.trim_matches('/');
        let is_inside = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        ensure!(is_inside, "`{path}` is no path in an image: it wants names between slashes, none of them `.` or `..`");
        for (end, _) in name.match_indices('/') {
            let directory = &name[..end];
            let is_ours = on_the_way.contains(directory);
            ensure!(
                is_ours || !made.contains(directory) || said.contains(directory),
                "`{path}` lies in `/{directory}`, which is a file"
            );
            if !is_ours && !made.contains(directory) {
                ensure!(!said.contains(directory), "the directory `/{directory}` must come before `{path}`");
                tar.entry(directory, EntryType::Directory, 0o755)?;
                on_the_way.insert(directory);
            }
        }
        ensure!(!on_the_way.contains(name) && made.insert(name), "`/{name}` is there twice");
        match content {
            Content::Host(source) => {
                let bytes = fs::read(source).with_context(|| format!("read {} for `/{name}`", source.display()))?;
                tar.file(name, 0o755, &bytes)?;
            }
            Content::Text(text) => tar.file(name, 0o644, text.as_bytes())?,
            Content::Link(target) => tar.link(name, target)?,
            Content::Directory => tar.entry(name, EntryType::Directory, 0o1777)?,
        }
    }
    Ok(tar.finish()?)
}

/// A tar whose members say nothing of when, where and by whom they were made.
struct Tar(tar::Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Tar {
    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, name, content)
    }

    fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.0.append_link(&mut header(EntryType::Symlink, 0o777), name, target)
    }

    /// A member without content.
    fn entry(&mut self, name: &str, kind: EntryType, mode: u32) -> io::Result<()> {
        self.0.append_data(&mut header(kind, mode), name, io::empty())
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        let mut bytes = self.0.into_inner()?;
        bytes.flush()?;
        Ok(bytes)
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// SHA-256, in lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn file(path: &str, content: Content) -> ImageFile {
        ImageFile { path: path.to_owned(), content }
    }

    fn text(path: &str) -> ImageFile {
        file(path, Content::Text(format!("{path}\n")))
    }

    fn image(files: Vec<ImageFile>) -> Image {
        Image { names: vec!["localhost/test:1".to_owned()], entrypoint: vec!["/a/program".to_owned()], files }
    }

    fn members(tar: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let header = entry.header();
            let owner = (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap());
            assert_eq!(owner, (0, 0, 0));
            let mode = header.mode().unwrap();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), mode, link.map_or(content, String::into_bytes))
        });
        entries.collect()
    }

    #[test]
    fn archive_names_configuration_and_layer_by_their_digests() {
        let archive = image(vec![text("/etc/passwd")]).archive().unwrap();
        let members = members(&archive);
        let [(config_name, _, config), (layer_name, _, layer), (manifest_name, _, manifest)] = &members[..] else {
            panic!("{} members", members.len());
        };
        let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        let config: serde_json::Value = {
            assert_eq!(config_name, &format!("{}.json", hex(config)));
            serde_json::from_slice(config).unwrap()
        };
        assert_eq!(manifest_name, "manifest.json");
        assert_eq!(layer_name, &format!("{}/layer.tar", hex(layer)));
        let expected = serde_json::json!([
            {"Config": config_name, "RepoTags": ["localhost/test:1"], "Layers": [layer_name]}
        ]);
        assert_eq!(manifest, expected);
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([format!("sha256:{}", hex(layer))]));
        assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/a/program"]));
        assert_eq!(config["os"], "linux");
    }

    #[test]
    fn layer_makes_the_directories_on_the_way_once() {
        let this_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/image/archive.rs");
        let files = vec![
            file("/tmp", Content::Directory),
            text("/etc/passwd"),
            text("etc/group"),
            file("/usr/bin/program", Content::Host(this_file.clone())),
            file("/bin/sh", Content::Link("/usr/bin/program".to_owned())),
            text("/tmp/inside"),
        ];
        let bytes = |text: &str| text.as_bytes().to_vec();
        let expected = [
            ("tmp", 0o1777, bytes("")),
            ("etc", 0o755, bytes("")),
            ("etc/passwd", 0o644, bytes("/etc/passwd\n")),
            ("etc/group", 0o644, bytes("etc/group\n")),
            ("usr", 0o755, bytes("")),
            ("usr/bin", 0o755, bytes("")),
            ("usr/bin/program", 0o755, fs::read(this_file).unwrap()),
            ("bin", 0o755, bytes("")),
            ("bin/sh", 0o777, bytes("/usr/bin/program")),
            ("tmp/inside", 0o644, bytes("/tmp/inside\n")),
        ];
        let layer = members(&layer(&files).unwrap());
        assert_eq!(layer, expected.map(|(name, mode, content)| (name.to_owned(), mode, content)));
    }

    #[test]
    fn long_paths_keep_their_names() {
        let path = format!("{}/file", ["a-directory-with-a-long-name"; 12].join("/"));
        let layer = layer(&[text(&path)]).unwrap();
        assert_eq!(members(&layer).last().unwrap().0, path);
    }

    #[test]
    fn same_files_give_the_same_bytes() {
        let image = image(vec![file("/tmp", Content::Directory), text("/etc/passwd")]);
        let folder = std::env::temp_dir().join(format!("npolicy-image-{}", process::id()));
        let [first, second] = ["first.tar", "second.tar"].map(|name| folder.join(name));
        image.write(&first).unwrap();
        image.write(&second).unwrap();
        image.write(&second).unwrap();
        let (bytes, again) = (fs::read(&first).unwrap(), fs::read(&second).unwrap());
        let id = id(&first).unwrap();
        let left = fs::read_dir(&folder).unwrap().count();
        fs::remove_dir_all(&folder).unwrap();
        assert!(bytes == again, "{} bytes and {} bytes differ", bytes.len(), again.len());
        assert_eq!(id, format!("sha256:{}", members(&bytes)[0].0.strip_suffix(".json").unwrap()));
        assert_eq!(left, 2, "a partial file stays behind");
    }

    #[test]
    fn what_is_no_image_is_named() {
        #[track_caller]
        fn check(image: &Image, expected: &str) {
            assert_eq!(format!("{:#}", image.archive().unwrap_err()), expected);
        }
        let twice = "`/etc/passwd` is there twice";
        check(&image(vec![text("/etc/passwd"), text("etc/passwd")]), twice);
        check(&image(vec![text("/etc/passwd"), text("/etc")]), "`/etc` is there twice");
        check(&image(vec![text("/etc"), text("/etc/passwd")]), "`/etc/passwd` lies in `/etc`, which is a file");
        let late = vec![text("/tmp/file"), file("/tmp", Content::Directory)];
        check(&image(late), "the directory `/tmp` must come before `/tmp/file`");
        for path in ["../etc/passwd", "/", "", "a//b", "a/./b"] {
            let expected =
                format!("`{path}` is no path in an image: it wants names between slashes, none of them `.` or `..`");
            check(&image(vec![text(path)]), &expected);
        }
        for names in [vec![], vec!["localhost:5000/untagged".to_owned()]] {
            check(&Image { names, ..image(vec![]) }, "each image wants a name like `name:tag`");
        }
    }
}
