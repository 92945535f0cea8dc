//! `npolicy can`.

/// Flags of `npolicy can`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command; returns its exit code.
pub fn run(_args: Args) -> anyhow::Result<u8> {
    anyhow::bail!("under construction")
}
