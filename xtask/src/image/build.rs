//! Builds `npolicy` so that it runs where there is nothing else: no loader, no C library, no file.
//!
//! Rust's target `*-unknown-linux-gnu` links glibc statically on request, and every toolchain that builds the rest of
//! npolicy has it; one target everywhere also means one binary everywhere. glibc answers `getaddrinfo` from
//! `/etc/resolv.conf` and `/etc/hosts` by itself since 2.34, without the modules that static programs of old had to load.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, ensure};
use object::{
    Endianness, elf,
    read::elf::{FileHeader as _, ProgramHeader as _},
};

use crate::{process, workspace};

/// Builds the binary and returns where it is.
///
/// # Errors
///
/// It does not build, or wants a dynamic loader.
pub(super) fn binary() -> anyhow::Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let target = workspace::root().join("target/image/build");
    if !target.exists() {
        eprintln!("building a static release of npolicy; some minutes the first time, then seconds");
    }
    let mut cargo = workspace::cargo();
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags());
    // The symbols stay: they name the functions of a panic's backtrace. Lines of sources would be half of the image.
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "false").env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    cargo.args(["build", "--locked", "--release", "-p", "npolicy-agent", "--bin", "npolicy"]);
    // A target of its own name keeps the flags from build scripts and macros, which must link dynamically.
    cargo.args(["--target", &triple]).arg("--target-dir").arg(&target);
    process::run(&mut cargo)?;
    let binary = target.join(triple).join("release/npolicy");
    let data = fs::read(&binary).with_context(|| format!("read {}", binary.display()))?;
    let is_static = is_static(&data).with_context(|| format!("read {}", binary.display()))?;
    ensure!(is_static, "{} wants a dynamic loader, and the image has none", binary.display());
    Ok(binary)
}

/// Whether `file` is there and was written after each of `sources`.
///
/// # Errors
///
/// A source cannot be read.
pub(super) fn is_newer(file: &Path, sources: &[&Path]) -> anyhow::Result<bool> {
    let written = |path: &Path| -> io::Result<SystemTime> { path.metadata()?.modified() };
    // Whatever is wrong with it, writing it anew either mends or names it.
    let Ok(then) = written(file) else { return Ok(false) };
    for source in sources {
        if written(source).with_context(|| format!("read {}", source.display()))? >= then {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The compiler's flags, in cargo's encoding. They do not depend on the machine, but for what the remapping takes out.
fn flags() -> String {
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=npolicy", workspace::root().display()),
    ];
    flags.extend(workspace::cargo_home().map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    flags.join("\u{1f}")
}

/// Whether an executable names no interpreter.
fn is_static(data: &[u8]) -> anyhow::Result<bool> {
    let header = elf::FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    Ok(!header.program_headers(endian, data)?.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_a_loader() {
        let ourselves = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&ourselves).unwrap());
        assert!(is_static(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn an_archive_is_newer_than_its_sources_or_written_again() {
        let ourselves = std::env::current_exe().unwrap();
        let manifest = workspace::root().join("xtask/src/image/build.rs");
        let missing = workspace::root().join("target/no-such-file");
        assert!(is_newer(&ourselves, &[&manifest]).unwrap());
        assert!(!is_newer(&ourselves, &[&manifest, &ourselves]).unwrap());
        assert!(!is_newer(&missing, &[&manifest]).unwrap());
        assert!(is_newer(&ourselves, &[&missing]).is_err());
    }
}
