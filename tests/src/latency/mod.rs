//! How long after the API server's answer to a write the packets change, on a running cluster.
//!
//! ```text
//! writes -- API server --+-- plain watches, in this process -----------------+--> samples --> percentiles, text, JSON
//!                        +-- the agents --> sender pod ==UDP, TCP==> receiver +
//! ```
//!
//! A round denies by a write, waits for silence, allows by another write and waits for traffic. All times are on
//! CLOCK_MONOTONIC, which the containers of a machine share; where the pods' clocks are not this process's, nothing is
//! measured. What counts is when the sender sent the first datagram that shows the new verdict: the first that no longer
//! arrives, or the first that does. A receiver that reads late changes nothing.

mod clock;
mod figures;
mod labels;
mod report;
mod rounds;
mod settings;
mod stage;
mod traffic;
mod watch;
mod writes;

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use self::clock::Processors;
use self::labels::Changes;
use self::report::Report;
use self::rounds::{Load, Rounds, Write};
use self::stage::Stage;

pub use self::settings::Settings;

/// Measures, prints the table and writes it to the folder that `settings` names.
///
/// # Errors
///
/// The cluster cannot be reached or has no two nodes (one with `same_node`), its pods do not start or do not see one
/// another, their clocks cannot be compared with ours, a write is refused, or a signal came. What was made in the cluster
/// is removed in any case.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let stage = Stage::new(settings).await?;
        let outcome = tokio::select! {
            outcome = measure(settings, &stage) => outcome,
            _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminated.recv() => Err(anyhow::anyhow!("told to end")),
        };
        eprintln!("removing namespace {}", stage::NAMESPACE);
        let removed = stage.remove().await;
        let report = outcome?;
        removed?;
        report.write(&settings.out)?;
        println!("{report}");
        Ok(())
    })
}

async fn measure(settings: &Settings, stage: &Stage) -> anyhow::Result<Report> {
    let pods = stage.make().await?;
    let compared = clock::compare(&[&pods.sender, &pods.receiver]).await?;
    eprintln!("the pods' clocks are ours, within {compared:.1?}");
    let mut rounds = Rounds::new(stage, &pods).await?;
    let mut report = Report::new(settings, stage, compared);
    for load in [Load::Idle, Load::Changes] {
        let changes = match load {
            Load::Idle => None,
            Load::Changes => Some(Changes::start(stage)?),
        };
        let processors = Processors::now()?;
        for write in [Write::Policy, Write::Label] {
            rounds
                .run(write, load, settings.rounds.get(), &mut report)
                .await
                .with_context(|| format!("{write}, {load}"))?;
        }
        report.idle_percent.push((load, Processors::now()?.idle_percent_since(processors)));
        if let Some(changes) = changes {
            report.changes = Some(changes.stop());
        }
        // What the last load left queued is not the next one's.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(report)
}
