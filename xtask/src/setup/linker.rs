//! bpf-linker: finding it, and building it where it is missing.

use std::{path::PathBuf, process::Command};

use crate::{process, workspace};

/// The release that is built when none is found.
const VERSION: &str = "0.13.0";
/// Debian's LLVM that it is built against; it must be the compiler's or newer.
pub(crate) const LLVM: &str = "/usr/lib/llvm-22";

/// The bpf-linker to use: on PATH, where cargo installs, or the one we built.
pub(crate) fn find() -> Option<PathBuf> {
    let installed = workspace::cargo_home().map(|home| home.join("bin/bpf-linker"));
    let built = workspace::tools().join("bin/bpf-linker");
    process::on_path("bpf-linker")
        .or_else(|| installed.into_iter().chain([built]).find(|path| process::is_program(path)))
}

/// Builds it into the target directory. Takes about a minute; needs Debian's LLVM and a C++ compiler.
///
/// # Errors
///
/// It does not build.
pub(crate) fn build() -> anyhow::Result<()> {
    eprintln!("building bpf-linker {VERSION} into target/tools (about a minute, once)");
    process::run(install(workspace::cargo().env("LLVM_PREFIX", LLVM)).arg("--root").arg(workspace::tools()))
}

/// The command for a person who has an LLVM of another place.
pub(crate) fn install_command() -> String {
    format!("LLVM_PREFIX={LLVM} {}", process::shown(install(&mut Command::new("cargo"))))
}

fn install(cargo: &mut Command) -> &mut Command {
    cargo.args(["install", "bpf-linker", "--version", VERSION, "--locked"]);
    cargo.args(["--no-default-features", "--features", "llvm-22"])
}
