//! What building the BPF object needs, and getting it.
//!
//! The agent, the demo and most tests need none of this: the object is committed. As root on Debian the missing packages
//! are named and installed; anybody else is told the one command to copy. The same goes for what the tests use.

mod compiler;
mod debian;
mod linker;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

pub(crate) use compiler::{Compiler, CoreLibrary, TARGET, plain};

use crate::process;

/// Debian's packages with a compiler that has a `core` for BPF.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];
/// Debian's packages from which bpf-linker is built.
const LINKER_PACKAGES: &[&str] = &["llvm-22-dev", "g++", "zlib1g-dev", "libzstd-dev"];

/// What builds the BPF object.
#[derive(Debug)]
pub(crate) struct BpfTools {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
}

/// Finds the tools, and sets up what is missing as far as this user may. A compiler that calls itself `wanted` goes
/// before all others.
///
/// # Errors
///
/// [`Missing`], which begins with the command to copy; or a tool does not install.
pub(crate) fn bpf_tools(wanted: Option<&str>) -> anyhow::Result<BpfTools> {
    let mut compiler = compiler::find(wanted)?;
    let linker = linker::find();
    let fits = |compiler: &Compiler| wanted.is_none_or(|version| compiler.is(version));
    let no_compiler = !compiler.as_ref().is_some_and(fits) && !compiler::is_named();
    let mut packages = Vec::new();
    if debian::available() {
        if no_compiler {
            packages.extend(debian::missing(COMPILER_PACKAGES));
        }
        if linker.is_none() {
            packages.extend(debian::missing(LINKER_PACKAGES));
        }
        if !packages.is_empty() && process::is_root() {
            debian::install(&packages)?;
            packages.clear();
            compiler = compiler::find(wanted)?;
        }
    }
    let missing = Missing { compiler: compiler.is_none(), linker: linker.is_none(), packages };
    let Some(compiler) = compiler else { return Err(missing.into()) };
    let linker = match linker {
        Some(linker) => linker,
        None if debian::available() && missing.packages.is_empty() => {
            linker::build()?;
            linker::find().ok_or(missing)?
        }
        None => return Err(missing.into()),
    };
    Ok(BpfTools { compiler, linker })
}

/// Sets up what the tests use, as far as this user may. Returns what is missing and the command to copy, if anything is.
///
/// # Errors
///
/// A package does not install.
pub(crate) fn test_tools() -> anyhow::Result<Option<String>> {
    let has_plugins = ["/usr/lib/cni", "/opt/cni/bin"].iter().any(|dir| Path::new(dir).join("ptp").exists());
    let on_path = |tool| process::on_path(tool).is_some();
    // Each with the package of Debian's that has it.
    let tools = [
        // Translates Service addresses in clusters of network namespaces.
        ("the `nft` command", on_path("nft"), "nftables"),
        // Join pods as they do on real nodes.
        ("the reference CNI plugins", has_plugins, "containernetworking-plugins"),
        // Changes, with `bridge`, what those made.
        ("the `ip` command", on_path("ip"), "iproute2"),
        // Talks to the API server in the tests' process.
        ("the `kubectl` command", on_path("kubectl"), "kubernetes-client"),
    ];
    let missing: Vec<_> = tools.iter().filter(|(_, is_there, _)| !is_there).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let names: Vec<&str> = missing.iter().map(|(tool, ..)| *tool).collect();
    let names = names.join(" and ");
    let packages: Vec<&str> = missing.iter().map(|(.., package)| *package).collect();
    if !debian::available() {
        return Ok(Some(format!("this machine lacks {names}: install {}", packages.join(", "))));
    }
    let absent = debian::missing(&packages);
    if process::is_root() && !absent.is_empty() {
        debian::install(&absent)?;
        return Ok(None);
    }
    Ok(Some(format!("this machine lacks {names}: {}", debian::install_command(&packages))))
}

/// Installs `packages` for `what` as far as this user may; nothing if there are none.
///
/// # Errors
///
/// We may not, with the command to copy first; or a package does not install.
pub(crate) fn install_missing(what: &str, packages: &[&'static str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if debian::available() && process::is_root() {
        return debian::install(packages);
    }
    anyhow::bail!(
        "{}\nrun the line above, or install what your system calls these: {what} needs them",
        debian::install_command(packages)
    )
}

/// Finds the clippy of a BPF compiler; as root on Debian, installs it.
///
/// # Errors
///
/// It is missing, or does not install.
pub(crate) fn bpf_clippy(compiler: &Compiler) -> anyhow::Result<PathBuf> {
    let packages: &[&str] = if compiler.is_debian() && debian::available() { &["rust-web-clippy"] } else { &[] };
    if compiler.clippy().is_none() && !packages.is_empty() && process::is_root() {
        debian::install(packages)?;
    }
    compiler.clippy().with_context(|| {
        let install = match packages {
            [] => "rustup component add clippy".to_owned(),
            packages => debian::install_command(packages),
        };
        format!("{install}\nrun the line above: {} has no clippy", compiler.rustc.display())
    })
}

/// The tools that this machine lacks and this user may not install.
#[derive(Debug)]
pub(crate) struct Missing {
    compiler: bool,
    linker: bool,
    packages: Vec<&'static str>,
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compiler, linker, packages } = self;
        let compiler_elsewhere = "rustup component add rust-src";
        let linker_elsewhere = linker::install_command();
        let elsewhere = match (compiler, linker) {
            (true, true) => format!("{compiler_elsewhere} && {linker_elsewhere}"),
            (true, false) => compiler_elsewhere.to_owned(),
            (false, _) => linker_elsewhere,
        };
        if !packages.is_empty() {
            writeln!(f, "{}", debian::install_command(packages))?;
        }
        writeln!(f, "{elsewhere}")?;
        let what = match (compiler, linker) {
            (true, true) => "a Rust compiler with a `core` for BPF or with Rust's sources, and bpf-linker",
            (true, false) => "a Rust compiler with a `core` for BPF or with Rust's sources",
            (false, _) => "bpf-linker",
        };
        write!(f, "run one of the lines above: building the BPF object needs {what}, and this machine has none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(missing: &Missing) -> Vec<String> {
        missing.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_first_line_is_the_command_to_copy() {
        let lines = lines(&Missing { compiler: true, linker: false, packages: vec!["rustc-web"] });
        assert!(lines[0].ends_with("sudo apt-get install -y --no-install-recommends rustc-web"), "{}", lines[0]);
        assert_eq!(lines[1], "rustup component add rust-src");
        assert!(lines[2].starts_with("run one of the lines above"), "{}", lines[2]);
    }

    #[test]
    fn without_debian_the_command_gets_both_tools() {
        let lines = lines(&Missing { compiler: true, linker: true, packages: vec![] });
        assert!(lines[0].starts_with("rustup component add rust-src && "), "{}", lines[0]);
        assert!(lines[0].contains("cargo install bpf-linker --version 0.13.0"), "{}", lines[0]);
        assert_eq!(lines.len(), 2);
    }
}
