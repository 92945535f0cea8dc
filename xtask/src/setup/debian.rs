//! Debian's packages: which are missing, and installing them.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::Context as _;

use crate::process;

/// Whether this machine has Debian's package manager.
pub(crate) fn available() -> bool {
    process::on_path("apt-get").is_some() && process::on_path("dpkg-query").is_some()
}

/// Those of `packages` that are not installed.
pub(crate) fn missing(packages: &[&'static str]) -> Vec<&'static str> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"]).args(packages);
    // It ends with 1 when one of them is unknown, having printed the others.
    let printed = query.stderr(Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
    not_installed(packages, &String::from_utf8_lossy(&printed))
}

fn not_installed(packages: &[&'static str], printed: &str) -> Vec<&'static str> {
    let installed = |package: &str| printed.lines().any(|line| line.strip_prefix(package) == Some(" installed"));
    packages.iter().copied().filter(|package| !installed(package)).collect()
}

/// The command that installs `packages`, for a user who is not root.
pub(crate) fn install_command(packages: &[&str]) -> String {
    let update = if has_lists() { "" } else { "sudo apt-get update && " };
    format!("{update}sudo apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// Installs `packages`, after naming them. Needs root.
///
/// # Errors
///
/// apt-get does not end with 0, also not after its lists were renewed.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    eprintln!("installing Debian packages: {}", packages.join(" "));
    if !has_lists() {
        process::run(&mut apt_get(&["update"]))?;
    }
    let install = |command: &mut Command| process::run(command.args(packages));
    let flags = ["install", "-y", "--no-install-recommends"];
    if let Err(error) = install(&mut apt_get(&flags)) {
        eprintln!("{error:#}; the package lists may be old, trying once more with new ones");
        process::run(&mut apt_get(&["update"]))?;
        install(&mut apt_get(&flags)).with_context(|| format!("install {}", packages.join(" ")))?;
    }
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// Whether apt knows what there is to install.
fn has_lists() -> bool {
    let lists = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_with_files_left_and_a_longer_name_are_both_missing() {
        let printed = "g++ installed\nrustc-web config-files\nllvm-22-dev-more installed\n";
        assert_eq!(not_installed(&["g++", "rustc-web", "llvm-22-dev"], printed), ["rustc-web", "llvm-22-dev"]);
    }
}
