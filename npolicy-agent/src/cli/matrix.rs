//! `npolicy matrix`: who may reach whom, as a table.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use npolicy_common::{Family, Verdict};

use super::can::{FamilyName, NOT_CERTAIN, Output, load, written};
use super::exit;
use super::question::{parse_end, parse_protocol, protocol_parts, verdict_text};
use crate::compile::{Brief, End, Engine, Protocol, Question, Unanswerable};
use crate::model::{ClusterState, PodKey, Service};

/// Flags of `npolicy matrix`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  Who reaches whom on port 8080?
    npolicy matrix -f manifests/ --port 8080/tcp

  Who can ping the pods of prod, one JSON object a pair?
    npolicy matrix -f manifests/ --port icmp -n prod -o json

  Who reaches the Services that have port 80? Who reaches this one, and the API server behind it?
    npolicy matrix -f manifests/ --port 80/tcp --services
    npolicy matrix -f manifests/ --port 443/tcp \\
      --to svc:default/kubernetes --to ip:192.0.2.1

Rows are destinations, columns are sources. A pod on its node's network stands for its node. A Service accepts if each of \
its backends does; M marks one of which only some do (MixedBackends). Cells are about policy alone: a Service without backends may be \
accepted, though nothing answers.

Exit code: 0, or 2 if the files cannot be used, or 3 if something in them could not be read, so the table is not certain, \
or if a pair has no answer (?): an end without an address of the family, a Service without a cluster address.")]
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

    /// Services as destinations, too: those with a cluster address and the port of --port
    #[arg(long)]
    services: bool,

    /// Only this destination: NAMESPACE/POD, node:NAME, ip:ADDRESS or svc:NAMESPACE/NAME; may be given several times
    #[arg(long, value_name = "END", conflicts_with_all = ["namespace", "services"])]
    to: Vec<String>,

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
    let destinations = if args.to.is_empty() {
        destinations(engine.state(), &args, &pods, protocol)?
    } else {
        args.to.iter().map(|to| existing_end(engine.state(), to).context("--to")).collect::<anyhow::Result<_>>()?
    };
    let outcome = match args.output {
        Output::Text => print_table(&mut engine, &pods, &destinations, protocol, family).and_then(|unknown| {
            if !is_certain {
                writeln!(anstream::stdout().lock(), "{NOT_CERTAIN}")?;
            }
            Ok(unknown)
        }),
        Output::Json => print_lines(&mut engine, &pods, &destinations, protocol, family),
    };
    let is_complete = outcome.as_ref().is_ok_and(|unknown| *unknown == 0);
    let code = if is_certain && is_complete { exit::OK } else { exit::UNKNOWN };
    written(outcome.map(drop), code)
}

/// Reads an end that the cluster has; an address is always one.
fn existing_end(state: &ClusterState, text: &str) -> anyhow::Result<End> {
    let end = parse_end(text)?;
    match &end {
        End::Pod(key) => anyhow::ensure!(state.pod(key).is_some(), Unanswerable::NoPod(key.clone())),
        End::Node(name) => anyhow::ensure!(state.node(name).is_some(), Unanswerable::NoNode(name.clone())),
        End::Service(key) => anyhow::ensure!(state.service(key).is_some(), Unanswerable::NoService(key.clone())),
        End::Address(_) => {}
    }
    Ok(end)
}

/// Pods, and Services where they are asked for, ascending by name.
fn destinations(state: &ClusterState, args: &Args, pods: &[PodKey], protocol: Protocol) -> anyhow::Result<Vec<End>> {
    let is_wanted = |namespace: &str| args.namespace.as_ref().is_none_or(|wanted| wanted == namespace);
    let pods = pods.iter().filter(|pod| is_wanted(&pod.namespace)).map(|pod| End::Pod(pod.clone()));
    let mut destinations: Vec<_> = pods.collect();
    if args.services {
        let has_port = |service: &Service| {
            let mut ports = service.ports.iter().map(|port| (port.protocol, port.port));
            !service.cluster_addresses.is_empty() && protocol.port().is_some_and(|port| ports.any(|own| own == port))
        };
        let before = destinations.len();
        let wanted = state.services().filter(|service| is_wanted(&service.key.namespace) && has_port(service));
        destinations.extend(wanted.map(|service| End::Service(service.key.clone())));
        if destinations.len() == before {
            anstream::eprintln!("note: no Service has {protocol}");
        }
    }
    match &args.namespace {
        Some(namespace) if destinations.is_empty() => anyhow::bail!("there is no pod in namespace {namespace}"),
        _ => Ok(destinations),
    }
}

/// One pair in JSON.
#[derive(Default, serde::Serialize)]
struct Line {
    from: String,
    to: String,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
    /// Only where it is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    mixed_backends: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn question(from: &PodKey, to: &End, protocol: Protocol, family: Option<Family>) -> Question {
    Question { from: End::Pod(from.clone()), to: to.clone(), protocol, family }
}

/// Prints the table; returns how many of its cells have no answer.
fn print_table(
    engine: &mut Engine,
    sources: &[PodKey],
    destinations: &[End],
    protocol: Protocol,
    family: Option<Family>,
) -> io::Result<u64> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).enforce_styling();
    table.set_header(["to \\ from".to_owned()].into_iter().chain(sources.iter().map(ToString::to_string)));
    let (mut accepted, mut denied, mut mixed, mut unknown) = (0u64, 0u64, 0u64, 0u64);
    for to in destinations {
        let mut row = vec![Cell::new(to)];
        row.extend(sources.iter().map(|from| match engine.brief(&question(from, to, protocol, family)) {
            Ok(Brief { is_mixed: true, .. }) => {
                mixed += 1;
                Cell::new("M").fg(Color::Red)
            }
            Ok(Brief { verdict: Verdict::Accept, .. }) => {
                accepted += 1;
                Cell::new(".").fg(Color::Green)
            }
            Ok(Brief { verdict: Verdict::Deny, .. }) => {
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
    if mixed > 0 {
        writeln!(out, "M {mixed} denied, though some backends accept (MixedBackends; npolicy can says which)")?;
    }
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
    destinations: &[End],
    protocol: Protocol,
    family: Option<Family>,
) -> io::Result<u64> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (name, port) = protocol_parts(protocol);
    let mut unknown = 0;
    for to in destinations {
        for from in sources {
            let (from_text, to_text) = (from.to_string(), to.to_string());
            let mut line = Line { from: from_text, to: to_text, protocol: name, port, ..Line::default() };
            match engine.brief(&question(from, to, protocol, family)) {
                Ok(Brief { verdict, is_mixed }) => {
                    line.verdict = Some(verdict_text(verdict));
                    line.mixed_backends = is_mixed.then_some(true);
                }
                Err(error) => {
                    unknown += 1;
                    line.error = Some(error.to_string());
                }
            }
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(unknown)
}
