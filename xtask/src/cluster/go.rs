//! A Go that can build Kubernetes: the machine's own, or one that is fetched below `target/cluster`.
//!
//! Go's releases are modules, too: the module proxy has each as one zip archive, as `go` itself fetches newer releases.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use super::{
    build::{KUBERNETES, module},
    command, machine,
};
use crate::{process, setup};

/// The Go that the release of Kubernetes wants.
const GO_MINOR: u32 = 26;
/// The first Go that fetches a newer one by itself.
const GO_MINOR_THAT_FETCHES: u32 = 21;
/// The release that is fetched.
const GO: &str = "1.26.8";
/// SHA-256 of its archive, for the machines for which it was looked at.
const ARCHIVES: &[(&str, &str, &str)] =
    &[("x86_64", "linux-amd64", "30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7")];
/// Debian's packages that fetch and unpack it.
const PACKAGES: &[&str] = &["ca-certificates", "curl", "unzip"];

/// A Go that can build Kubernetes.
pub(super) struct Go {
    pub(super) path: PathBuf,
    /// Whether it has to fetch a newer one of itself.
    fetches: bool,
}

impl Go {
    /// Finds one; fetches one where there is none.
    ///
    /// # Errors
    ///
    /// There is none for this machine, or it cannot be fetched: the command to copy first.
    pub(super) fn find() -> anyhow::Result<Self> {
        let elsewhere =
            (GO_MINOR_THAT_FETCHES..=GO_MINOR + 4).rev().map(|minor| format!("/usr/lib/go-1.{minor}/bin/go"));
        let paths = command::find("go").into_iter().chain([PathBuf::from("/usr/local/go/bin/go")]);
        let paths: Vec<_> =
            paths.chain(elsewhere.map(PathBuf::from)).filter(|path| process::is_program(path)).collect();
        let mut found = Vec::new();
        for path in paths {
            let version = process::answer(Command::new(&path).arg("version").env("GOTOOLCHAIN", "local"));
            let Some(minor) = version.as_deref().and_then(minor) else { continue };
            if minor >= GO_MINOR {
                return Ok(Self { path, fetches: false });
            }
            found.push((minor, path));
        }
        match found.into_iter().max() {
            Some((minor, path)) if minor >= GO_MINOR_THAT_FETCHES => {
                eprintln!("{} is 1.{minor}: it fetches Go 1.{GO_MINOR} through the module proxy", path.display());
                Ok(Self { path, fetches: true })
            }
            old => {
                let path = fetch().with_context(|| advice(old.map(|(minor, _)| minor)))?;
                Ok(Self { path, fetches: false })
            }
        }
    }

    /// It, in the folder of our module.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(module()).env("CGO_ENABLED", "0").env("GOFLAGS", "").env("GOWORK", "off");
        command.env("GOTOOLCHAIN", if self.fetches { "auto" } else { "local" });
        command
    }
}

/// Fetches Go, unless that was done before; returns the program.
fn fetch() -> anyhow::Result<PathBuf> {
    let (_, machine_name, checksum) = *ARCHIVES
        .iter()
        .find(|(architecture, ..)| *architecture == std::env::consts::ARCH)
        .with_context(|| format!("no archive of Go {GO} is known for {}", std::env::consts::ARCH))?;
    let folder = machine::root().join(format!("go{GO}"));
    let program = folder.join("bin/go");
    if process::is_program(&program) {
        return Ok(program);
    }
    setup::install_missing("fetching Go", &missing())?;
    let proxies = std::env::var("GOPROXY").unwrap_or_default();
    let proxy = proxies.split([',', '|']).find(|proxy| proxy.starts_with("https://"));
    let proxy = proxy.unwrap_or("https://proxy.golang.org").trim_end_matches('/');
    let url = format!("{proxy}/golang.org/toolchain/@v/v0.0.1-go{GO}.{machine_name}.zip");
    let partial = machine::root().join(format!("go{GO}.partial"));
    let _absent = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
    let archive = partial.join("go.zip");
    eprintln!("fetching Go {GO}, 70 MB, from {proxy}");
    process::run(Command::new("curl").args(["-fsSL", "-o"]).arg(&archive).arg(&url))?;
    let bytes = fs::read(&archive).with_context(|| format!("read {}", archive.display()))?;
    let found = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    ensure!(found == checksum, "{url} has the SHA-256 {found}, expected {checksum}: it is not what was published");
    process::run(Command::new("unzip").arg("-q").arg(&archive).arg("-d").arg(&partial))?;
    let unpacked = partial.join(format!("golang.org/toolchain@v0.0.1-go{GO}.{machine_name}"));
    // A module's archive knows no modes.
    make_programs(&unpacked.join("bin"))?;
    make_programs(&unpacked.join("pkg/tool"))?;
    fs::rename(&unpacked, &folder).with_context(|| format!("move {} to {}", unpacked.display(), folder.display()))?;
    fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    Ok(program)
}

/// Those of [`PACKAGES`] that are not there.
fn missing() -> Vec<&'static str> {
    let is_missing = |package: &&str| match *package {
        "ca-certificates" => !Path::new("/etc/ssl/certs/ca-certificates.crt").exists(),
        program => process::on_path(program).is_none(),
    };
    PACKAGES.iter().copied().filter(is_missing).collect()
}

fn make_programs(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            make_programs(&path)?;
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("make {} a program", path.display()))?;
        }
    }
    Ok(())
}

/// The minor of what `go version` prints, `go version go1.26.8 linux/amd64`.
fn minor(version: &str) -> Option<u32> {
    let version = version.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The command to copy first, then why.
fn advice(old: Option<u32>) -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let found = old.map_or_else(|| "there is none here".to_owned(), |minor| format!("there is only 1.{minor} here"));
    format!(
        "curl -fsSL https://go.dev/dl/go{GO}.linux-{architecture}.tar.gz | sudo tar -C /usr/local -xz\n\
         run the line above: building Kubernetes {KUBERNETES} needs Go 1.{GO_MINOR}, or Go 1.{GO_MINOR_THAT_FETCHES} or \
         newer that may fetch it (Debian 12 has one in bookworm-backports); {found}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_go_is_told() {
        assert_eq!(minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(minor("go version go1.27rc1 linux/arm64"), Some(27));
        assert_eq!(minor("go version devel +a1b2c3 linux/amd64"), None);
    }

    #[test]
    fn without_go_the_first_line_is_the_command_to_copy() {
        let told = advice(Some(19));
        assert!(told.starts_with("curl -fsSL https://go.dev/dl/go1."), "{told}");
        assert!(told.ends_with("there is only 1.19 here"), "{told}");
    }
}
