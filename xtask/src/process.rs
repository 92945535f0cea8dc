//! Running other programs, and saying so.

use std::{
    env,
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::workspace;

/// Runs `command` in sight of the user, after naming it.
///
/// # Errors
///
/// The program cannot be started, or does not end with 0.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("start `{}`", program(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// What `command` prints, without the line's end. Its errors stay unseen: they are questions, not steps.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}

/// The first program of that name on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| is_program(path))
}

/// Whether `path` can be executed.
pub(crate) fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
}

/// Whether we are root: /proc/self belongs to the effective user.
pub(crate) fn is_root() -> bool {
    File::open("/proc/self").and_then(|dir| dir.metadata()).is_ok_and(|metadata| metadata.uid() == 0)
}

/// The command as one would type it in the workspace's folder.
pub(crate) fn shown(command: &Command) -> String {
    let arguments = command.get_args().map(|argument| quoted(&argument.to_string_lossy()));
    std::iter::once(program(command)).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn program(command: &Command) -> String {
    let path = Path::new(command.get_program());
    let cargo = env::var_os("CARGO").is_some_and(|cargo| cargo == path);
    if cargo { "cargo".to_owned() } else { quoted(&workspace::relative(path).to_string_lossy()) }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_a_command_that_can_be_pasted() {
        let mut command = Command::new("program");
        command.args(["--flag=1", "two words", "it's", ""]);
        assert_eq!(shown(&command), r"program --flag=1 'two words' 'it'\''s' ''");
    }
}
