//! `cargo xtask ebpf`: builds the BPF object that the agent embeds, or checks the committed one.

use std::{env, ffi::OsString, fmt, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, bail};

use crate::{
    object, process,
    setup::{self, BpfTools, Compiler, CoreLibrary, TARGET},
    workspace,
};

/// Builds the object and writes it, and the compiler's version, where the agent's crate takes it from.
///
/// # Errors
///
/// A tool is missing, or the programs do not build.
pub(crate) fn write() -> anyhow::Result<()> {
    let tools = setup::bpf_tools(None)?;
    let object = build(&tools, "npolicy-ebpf")?;
    let path = committed_path();
    fs::create_dir_all(path.parent().expect("the object lies in a folder"))?;
    if fs::read(&path).is_ok_and(|old| old == object) {
        eprintln!("{} is up to date", workspace::relative(&path).display());
    } else {
        fs::write(&path, &object).with_context(|| format!("write {}", path.display()))?;
        eprintln!("{}: {} bytes, by {}", workspace::relative(&path).display(), object.len(), tools.compiler.version);
    }
    let version = format!("{}\n", tools.compiler.version);
    fs::write(compiler_path(), version).with_context(|| format!("write {}", compiler_path().display()))
}

/// Rebuilds the object and compares it with the committed one.
///
/// # Errors
///
/// A tool is missing, the only compiler here is not the recorded one, the programs do not build, or they differ.
pub(crate) fn check() -> anyhow::Result<()> {
    let path = committed_path();
    let committed = fs::read(&path).with_context(|| format!("read {}; `cargo xtask ebpf` makes it", path.display()))?;
    let recorded = recorded_compiler()?;
    let tools = setup::bpf_tools(Some(&recorded))?;
    if !tools.compiler.is(&recorded) {
        return Err(OtherCompiler { recorded, here: tools.compiler }.into());
    }
    let rebuilt = build(&tools, "npolicy-ebpf")?;
    if let Some(difference) = object::difference(&committed, &rebuilt)? {
        bail!("{}: {difference}; `cargo xtask ebpf` writes it anew", workspace::relative(&path).display());
    }
    eprintln!("{} is what the sources say", workspace::relative(&path).display());
    Ok(())
}

/// Builds the programs that the benchmark compares with, and returns where they are. They are not committed.
///
/// # Errors
///
/// A tool is missing, or the programs do not build.
pub(crate) fn write_bench() -> anyhow::Result<PathBuf> {
    let tools = setup::bpf_tools(None)?;
    let path = workspace::root().join("target/ebpf/npolicy-bench.o");
    fs::write(&path, build(&tools, "npolicy-bench")?).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Finds or installs what a check needs, so that a missing tool is named before anything takes long.
///
/// # Errors
///
/// As [`setup::bpf_tools`].
pub(crate) fn set_up() -> anyhow::Result<()> {
    setup::bpf_tools(Some(&recorded_compiler()?)).map(drop)
}

/// Another compiler gives other code, so nothing can be said of the committed object.
#[derive(Debug)]
pub(crate) struct OtherCompiler {
    recorded: String,
    here: Compiler,
}

impl std::error::Error for OtherCompiler {}

impl fmt::Display for OtherCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { recorded, here: Compiler { rustc, version, core: _ } } = self;
        write!(
            f,
            "cannot compare the BPF object: it was built by {recorded}, and the compiler here is {version} ({}); name the \
             other one with NPOLICY_BPF_RUSTC, or build and commit the object anew with `cargo xtask ebpf`",
            rustc.display()
        )
    }
}

/// The committed object.
pub(crate) fn committed_path() -> PathBuf {
    workspace::root().join("npolicy-agent/bpf/npolicy.o")
}

/// What the compiler that made it calls itself.
fn recorded_compiler() -> anyhow::Result<String> {
    let path = compiler_path();
    let version = fs::read_to_string(&path);
    let version = version.with_context(|| format!("read {}; `cargo xtask ebpf` makes it", path.display()))?;
    Ok(version.trim_end().to_owned())
}

fn compiler_path() -> PathBuf {
    workspace::root().join("npolicy-agent/bpf/COMPILER")
}

/// Runs clippy on the packet path as it is built for BPF; a warning is an error.
///
/// # Errors
///
/// There are warnings, or a tool is missing.
pub(crate) fn clippy() -> anyhow::Result<()> {
    let tools = setup::bpf_tools(Some(&recorded_compiler()?))?;
    let clippy = Command::new(setup::bpf_clippy(&tools.compiler)?);
    process::run(cargo(&tools, clippy, "clippy")?.args(["--bins", "--", "-D", "warnings"]))
}

/// Builds one binary of the packet path's crate for BPF; returns it without debug data.
fn build(tools: &BpfTools, binary: &str) -> anyhow::Result<Vec<u8>> {
    process::run(cargo(tools, workspace::cargo(), "build")?.args(["--bin", binary]))?;
    let linked = target().join(TARGET).join("release").join(binary);
    object::strip(&fs::read(&linked).with_context(|| format!("read {}", linked.display()))?)
}

/// Makes `cargo` work for BPF.
fn cargo(tools: &BpfTools, mut cargo: Command, subcommand: &str) -> anyhow::Result<Command> {
    setup::plain(&mut cargo);
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags());
    cargo.env("RUSTC", &tools.compiler.rustc).env("PATH", path_with(tools)?);
    if let Some(crates) = tools.compiler.bootstrap() {
        cargo.env("RUSTC_BOOTSTRAP", crates);
    }
    cargo.current_dir(workspace::root());
    cargo.args([subcommand, "--locked", "--release", "-p", "npolicy-ebpf", "--target", TARGET]);
    cargo.arg("--target-dir").arg(target());
    if tools.compiler.core == CoreLibrary::FromSource {
        cargo.args(["-Z", "build-std=core"]);
    }
    Ok(cargo)
}

/// Cargo's target directory for BPF.
fn target() -> PathBuf {
    workspace::root().join("target/ebpf")
}

/// The compiler's flags, in cargo's encoding. They do not depend on the machine, but for what the remapping takes out.
fn flags() -> String {
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=npolicy", workspace::root().display()),
    ];
    flags.extend(workspace::cargo_home().map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    flags.join("\u{1f}")
}

/// PATH with bpf-linker's folder first: rustc looks for it by name.
fn path_with(tools: &BpfTools) -> anyhow::Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let first = tools.linker.parent().map(PathBuf::from);
    Ok(env::join_paths(first.into_iter().chain(env::split_paths(&path)))?)
}
