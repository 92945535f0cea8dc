//! A run: which parts, in which order, and what is left behind.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::api::Api;
use super::install::{self, Install};
use super::life::Machine;
use super::remove::remove_all;
use super::report::Report;
use super::{drops, life, scenarios, upstream};

/// A part of the tests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// Our scenarios, as pods and policies.
    Scenarios,
    /// Kubernetes' own suite.
    Upstream,
    /// Agents and nodes come and go.
    Life,
    /// The log of what was denied.
    Drops,
}

impl Part {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Drops, Self::Scenarios, Self::Life, Self::Upstream];
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "a" | "scenarios" => Ok(Self::Scenarios),
            "b" | "upstream" => Ok(Self::Upstream),
            "c" | "life" => Ok(Self::Life),
            "d" | "drops" => Ok(Self::Drops),
            _ => Err(format!("{text:?} is no part: there are a (scenarios), b (upstream), c (life) and d (drops)")),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scenarios => "scenarios",
            Self::Upstream => "upstream",
            Self::Life => "life",
            Self::Drops => "drops",
        })
    }
}

/// What a run does.
#[derive(Clone, Debug)]
pub struct Options {
    /// The parts.
    pub parts: Vec<Part>,
    /// Whether nothing is installed, to show which tests can fail.
    pub without: bool,
    /// Whether all tests of the parts run, not only a choice.
    pub all: bool,
    /// A part of the names of the tests of scenarios and upstream that run.
    pub focus: String,
    /// What is installed; none: what is there stays.
    pub install: Option<Install>,
    /// Name of the test pods' image.
    pub peer_image: String,
    /// Kubernetes' own test program, if there is one.
    pub upstream: Option<PathBuf>,
    /// What the nodes can be made to suffer, if they are of this machine.
    pub machine: Option<Machine>,
    /// How long verdicts may take until they hold.
    pub settle: Duration,
    /// Where reports go.
    pub folder: PathBuf,
}

/// Runs the parts, prints their table, and removes what they made; also where a signal ends it.
///
/// # Errors
///
/// Whatever keeps a part from running at all; a test that fails is in the report.
pub async fn run(api: &Api, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let came = tokio::select! {
        came = run_parts(api, options, report) => came,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
    };
    eprintln!("          removing what was made");
    let removed = remove_all(api).await.context("remove what was made");
    println!("\n{}", report.table());
    let path = options.folder.join("junit.xml");
    report.write_junit(&path)?;
    println!("results as JUnit XML: {}", path.display());
    came.and(removed)
}

async fn run_parts(api: &Api, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if options.without {
        let is_there = install::is_installed(api).await?;
        ensure!(
            !is_there,
            "npolicy is installed on this cluster; what it enforces stays in force also without its agents"
        );
    } else if let Some(what) = &options.install {
        let begin = Instant::now();
        let installed = install::install(api, what).await;
        let has_failed = installed.is_err();
        report.add_result("install", "npolicy install | kubectl apply -f -", begin, installed);
        ensure!(!has_failed, "npolicy cannot be installed");
    } else {
        ensure!(install::is_installed(api).await?, "npolicy is not installed on this cluster");
    }
    for part in &options.parts {
        let suffix = if options.without { " without npolicy" } else { "" };
        eprintln!("          {part}{suffix}");
        let begin = Instant::now();
        let came = match part {
            Part::Drops if options.without => continue,
            Part::Life if options.without => continue,
            Part::Drops => drops::run(api, &options.peer_image, report).await,
            Part::Life => life::run(api, &options.peer_image, options.machine.as_ref(), report).await,
            Part::Scenarios => {
                let choice = scenarios::Choice {
                    part: options.focus.clone(),
                    all: options.all,
                    settle: if options.without { Duration::from_secs(1) } else { options.settle },
                    image: options.peer_image.clone(),
                };
                scenarios::run(api, &choice, &format!("{part}{suffix}"), report).await
            }
            Part::Upstream => match &options.upstream {
                None => {
                    let reason = "there is no e2e.test; `cargo xtask cluster build` builds it, or --e2e-test names it";
                    report.leave_out("upstream", "Kubernetes' own suite", reason);
                    Ok(())
                }
                Some(program) => {
                    // Its pods share the nodes with nobody.
                    remove_all(api).await?;
                    let choice = upstream::Choice {
                        program: program.clone(),
                        part: options.focus.clone(),
                        all: options.all,
                        folder: options.folder.join("upstream"),
                    };
                    upstream::run(api, &choice, &format!("{part}{suffix}"), report).await
                }
            },
        };
        if came.is_err() {
            report.add_result(&part.to_string(), "the part as a whole", begin, came.map(|()| String::new()));
        }
    }
    Ok(())
}
