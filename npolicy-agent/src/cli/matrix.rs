//! `npolicy matrix`: who may reach whom, as a table.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use npolicy_common::{Family, Verdict};

use super::can::{FamilyName, Output, load, written};
use super::exit;
use super::question::{parse_protocol, protocol_parts, verdict_text};
use crate::compile::{End, Engine, Protocol, Question};
use crate::model::PodKey;

/// Flags of `npolicy matrix`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  Who reaches whom on port 8080?
    npolicy matrix -f manifests/ --port 8080/tcp

  Who can ping the pods of prod, one JSON object a pair?
    npolicy matrix -f manifests/ --port icmp -n prod -o json

Rows are destinations, columns are sources. A pod on its node's network stands for its node.

Exit code: 0, or 2 if the files cannot be used, or 3 if something in them could not be read, so the table is not certain,
or if a pair has no answer.")]
pub struct Args {
    /// Manifests: a file, or a directory of .yaml, .yml and .json files; may be given several times
    #[arg(short = 'f', long = "file", required = true, value_name = "PATH")]
    files: Vec<PathBuf>,

    /// What is sent: 8080/tcp, 53/udp, 80/sctp or icmp
    #[arg(long, value_name = "PORT/PROTOCOL")]
    port: String,

    /// Only destinations in this namespace
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Address family; by default the first of each source that both ends have
    #[arg(long, value_enum, ignore_case = true)]
    family: Option<FamilyName>,

    /// How to print the answers
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: Output,
}

/// Runs the command; returns its exit code.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let protocol = parse_protocol(&args.port).context("--port")?;
    let (mut engine, is_certain) = load(&args.files)?;
    let family = args.family.map(Family::from);
    let pods: Vec<PodKey> =
        engine.state().pods().filter(|pod| !pod.phase.is_finished()).map(|pod| pod.key.clone()).collect();
    let destinations: Vec<PodKey> = pods
        .iter()
        .filter(|pod| args.namespace.as_ref().is_none_or(|namespace| **namespace == *pod.namespace))
        .cloned()
        .collect();
    if let Some(namespace) = args.namespace.filter(|_| destinations.is_empty()) {
        anyhow::bail!("there is no pod in namespace {namespace}");
    }
    let outcome = match args.output {
        Output::Text => print_table(&mut engine, &pods, &destinations, protocol, family),
        Output::Json => print_lines(&mut engine, &pods, &destinations, protocol, family),
    };
    let is_complete = outcome.as_ref().is_ok_and(|unknown| *unknown == 0);
    let code = if is_certain && is_complete { exit::OK } else { exit::UNKNOWN };
    written(outcome.map(drop), code)
}

/// One pair in JSON.
#[derive(serde::Serialize)]
struct Line {
    from: String,
    to: String,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn question(from: &PodKey, to: &PodKey, protocol: Protocol, family: Option<Family>) -> Question {
    Question { from: End::Pod(from.clone()), to: End::Pod(to.clone()), protocol, family }
}

/// Prints the table; returns how many of its cells have no answer.
fn print_table(
    engine: &mut Engine,
    sources: &[PodKey],
    destinations: &[PodKey],
    protocol: Protocol,
    family: Option<Family>,
) -> io::Result<u64> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).enforce_styling();
    table.set_header(["to \\ from".to_owned()].into_iter().chain(sources.iter().map(ToString::to_string)));
    let (mut accepted, mut denied, mut unknown) = (0u64, 0u64, 0u64);
    for to in destinations {
        let mut row = vec![Cell::new(to)];
        row.extend(sources.iter().map(|from| match engine.verdict(&question(from, to, protocol, family)) {
            Ok(Verdict::Accept) => {
                accepted += 1;
                Cell::new(".").fg(Color::Green)
            }
            Ok(Verdict::Deny) => {
                denied += 1;
                Cell::new("X").fg(Color::Red)
            }
            Err(_) => {
                unknown += 1;
                Cell::new("?").fg(Color::Yellow)
            }
        }));
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.style_text_only();
    let mut out = anstream::stdout().lock();
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out, "\n{protocol}: . accepted {accepted}, X denied {denied}")?;
    if unknown > 0 {
        writeln!(out, "? {unknown} without an answer (npolicy can says why)")?;
    }
    out.flush()?;
    Ok(unknown)
}

/// Prints a line for each pair; returns how many have no answer.
fn print_lines(
    engine: &mut Engine,
    sources: &[PodKey],
    destinations: &[PodKey],
    protocol: Protocol,
    family: Option<Family>,
) -> io::Result<u64> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (name, port) = protocol_parts(protocol);
    let mut unknown = 0;
    for to in destinations {
        for from in sources {
            let (verdict, error) = match engine.verdict(&question(from, to, protocol, family)) {
                Ok(verdict) => (Some(verdict_text(verdict)), None),
                Err(error) => {
                    unknown += 1;
                    (None, Some(error.to_string()))
                }
            };
            let line = Line { from: from.to_string(), to: to.to_string(), protocol: name, port, verdict, error };
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(unknown)
}
