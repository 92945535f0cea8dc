//! A Rust compiler that can build for BPF.
//!
//! Either its sysroot has a ready-made `core` for BPF (Debian's `libstd-rust-web-dev-bpf`), or it has Rust's sources
//! (rustup's `rust-src`), from which cargo builds `core`. No nightly is needed for either.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::bail;

use crate::process;

/// The target of the BPF programs.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The variable that names the compiler to use.
const NAMED: &str = "NPOLICY_BPF_RUSTC";

/// A usable compiler.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// The program.
    pub(crate) rustc: PathBuf,
    /// What `rustc -V` prints.
    pub(crate) version: String,
    /// Where `core` for BPF comes from.
    pub(crate) core: CoreLibrary,
}

/// Where a compiler's `core` for BPF comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CoreLibrary {
    /// It lies in the sysroot.
    ReadyMade,
    /// Cargo builds it from the sysroot's sources.
    FromSource,
}

impl Compiler {
    /// Looks at one compiler; `None` if it is not there or cannot build for BPF.
    fn look(rustc: PathBuf) -> Option<Self> {
        let ask = |flags: &[&str]| process::answer(plain(&mut Command::new(&rustc)).args(flags));
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        let core = core_library(&sysroot)?;
        Some(Self { version: ask(&["-V"])?, rustc, core })
    }

    /// The value of `RUSTC_BOOTSTRAP` that opens what the build needs, and no more, where it needs any.
    pub(crate) fn bootstrap(&self) -> Option<&'static str> {
        match self.core {
            // One feature gate of one crate.
            CoreLibrary::ReadyMade => Some("aya_ebpf"),
            CoreLibrary::FromSource if self.version.contains("-nightly") => None,
            CoreLibrary::FromSource => Some("1"),
        }
    }

    /// Its `cargo-clippy`, which is of the same release and so can read the same `core`.
    pub(crate) fn clippy(&self) -> Option<PathBuf> {
        let sysroot = process::answer(plain(&mut Command::new(&self.rustc)).args(["--print", "sysroot"]))?;
        Some(Path::new(&sysroot).join("bin/cargo-clippy")).filter(|program| process::is_program(program))
    }

    /// Whether it is Debian's.
    pub(crate) fn is_debian(&self) -> bool {
        self.rustc.parent() == Some(Path::new("/usr/bin"))
    }

    /// Whether its code is the same as that of the compiler that calls itself `version`.
    pub(crate) fn is(&self, version: &str) -> bool {
        release(&self.version) == release(version)
    }
}

/// Finds a compiler: first one with a ready-made `core`, then one with Rust's sources, each in the order
/// `NPOLICY_BPF_RUSTC`, the `rustc` on PATH, /usr/bin/rustc, rustup's nightly. One that calls itself `wanted` goes before
/// all others.
///
/// # Errors
///
/// `NPOLICY_BPF_RUSTC` names a compiler that cannot build for BPF.
pub(crate) fn find(wanted: Option<&str>) -> anyhow::Result<Option<Compiler>> {
    if let Some(named) = env::var_os(NAMED) {
        let path = PathBuf::from(named);
        let Some(compiler) = Compiler::look(path.clone()) else {
            bail!(
                "{NAMED}={}: not a Rust compiler with a `core` for {TARGET} or with Rust's sources in its sysroot",
                path.display()
            );
        };
        return Ok(Some(compiler));
    }
    let nightly =
        process::answer(plain(&mut Command::new("rustup")).args(["which", "--toolchain", "nightly", "rustc"]));
    let candidates = [process::on_path("rustc"), Some(PathBuf::from("/usr/bin/rustc")), nightly.map(PathBuf::from)];
    Ok(choose(candidates.into_iter().flatten().filter_map(Compiler::look).collect(), wanted))
}

/// Whether the user has named the compiler, so that no other may be taken or installed.
pub(crate) fn is_named() -> bool {
    env::var_os(NAMED).is_some()
}

/// `usable` is in order of preference.
fn choose(mut usable: Vec<Compiler>, wanted: Option<&str>) -> Option<Compiler> {
    // The sort is stable.
    usable.sort_by_key(|compiler| (wanted.is_some_and(|version| !compiler.is(version)), compiler.core));
    usable.into_iter().next()
}

fn core_library(sysroot: &Path) -> Option<CoreLibrary> {
    let rustlib = sysroot.join("lib/rustlib");
    let libraries = fs::read_dir(rustlib.join(TARGET).join("lib")).into_iter().flatten().flatten();
    if libraries.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")) {
        return Some(CoreLibrary::ReadyMade);
    }
    rustlib.join("src/rust/library/core/Cargo.toml").exists().then_some(CoreLibrary::FromSource)
}

/// `rustc -V` without what distributions add to it.
fn release(version: &str) -> &str {
    version.split_inclusive(')').next().unwrap_or(version)
}

/// Takes out of the environment what cargo and rustup put there for the toolchain that runs us.
pub(crate) fn plain(command: &mut Command) -> &mut Command {
    for name in ["RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "RUSTC", "RUSTC_BOOTSTRAP"] {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(version: &str, core: CoreLibrary) -> Compiler {
        Compiler { rustc: PathBuf::from(version), version: version.to_owned(), core }
    }

    fn chosen(wanted: Option<&str>) -> String {
        let usable = vec![
            compiler("rustc 1.95.0 (5 2026-04-14)", CoreLibrary::FromSource),
            compiler("rustc 1.96.0 (6 2026-05-25) (built from a source tarball)", CoreLibrary::ReadyMade),
            compiler("rustc 1.99.0-nightly (9 2026-11-01)", CoreLibrary::FromSource),
        ];
        choose(usable, wanted).expect("some are usable").version
    }

    #[test]
    fn a_ready_made_core_goes_before_an_earlier_candidate_with_sources() {
        assert!(chosen(None).starts_with("rustc 1.96.0"));
    }

    #[test]
    fn the_wanted_version_goes_first_however_it_was_packaged() {
        assert!(chosen(Some("rustc 1.95.0 (5 2026-04-14)")).starts_with("rustc 1.95.0"));
        assert!(chosen(Some("rustc 1.96.0 (6 2026-05-25)")).starts_with("rustc 1.96.0"));
    }

    #[test]
    fn without_the_wanted_version_the_order_is_as_ever() {
        assert!(chosen(Some("rustc 1.90.0 (0 2026-01-01)")).starts_with("rustc 1.96.0"));
    }

    #[test]
    fn sources_open_everything_only_on_a_stable_compiler() {
        assert_eq!(compiler("rustc 1.95.0 (5 x)", CoreLibrary::FromSource).bootstrap(), Some("1"));
        assert_eq!(compiler("rustc 1.99.0-nightly (9 x)", CoreLibrary::FromSource).bootstrap(), None);
        assert_eq!(compiler("rustc 1.96.0 (6 x)", CoreLibrary::ReadyMade).bootstrap(), Some("aya_ebpf"));
    }
}
