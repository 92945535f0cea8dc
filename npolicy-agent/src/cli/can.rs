//! `npolicy can`: one question with its reasons, or many from stdin.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use anyhow::Context;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use npolicy_common::{Direction, Family, Verdict};

use super::answer::{
    AnswerLine, BatchLine, backend_text, backends_text, decision_text, direction_text, missing_text, port_hint, reason,
    seen_text,
};
use super::exit;
use super::question::{parse_end, parse_protocol, parse_question};
use crate::compile::{Answer, Decision, Engine, Judgement, Question, ServiceAnswer, Unanswerable};
use crate::watch::manifests::Manifests;

/// Flags of `npolicy can`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  Why can the frontend of dev not reach the database?
    npolicy can -f dir/ --from dev/frontend --to prod/database --port 8080/tcp

  May a host outside ping it? May its own node?
    npolicy can -f dir/ --from ip:203.0.113.7 --to prod/database --port icmp
    npolicy can -f dir/ --from node:n1 --to prod/database --port 8080/tcp

  May it call a Service? Each of its backends must accept; the port is the Service's.
    npolicy can -f dir/ --from dev/frontend --to svc:prod/api --port 80/tcp

  A running cluster, as it is now:
    mkdir cluster
    kubectl get pods,namespaces,nodes,services,endpointslices -A -o yaml \\
      > cluster/objects.yaml
    kubectl get networkpolicies,clusternetworkpolicies -A -o yaml \\
      > cluster/policies.yaml
    npolicy can -f cluster --from dev/web --to prod/database --port 8080/tcp

  Many questions, one JSON object a line, like
    {\"from\":\"prod/backend\",\"to\":\"prod/database\",\"protocol\":\"TCP\",\"port\":8080}
    npolicy can -f dir/ --batch < questions

A warning names something that is enforced as the warning says, and so is the answer. After an error something is left \
out, and any answer might be another: it is not certain.

Exit code: 0 accepted, 1 denied, 2 the question or the files cannot be used, 3 the answer is not certain, or depends on what \
the files do not say. With --batch: 0, also where a line has an `error`; 2 or 3 as above.")]
pub struct Args {
    /// Manifests: a file, or a directory of .yaml, .yml and .json files; may be given several times
    #[arg(short = 'f', long = "file", required = true, value_name = "PATH")]
    files: Vec<PathBuf>,

    /// Who connects: NAMESPACE/POD, node:NAME or ip:ADDRESS
    #[arg(long, value_name = "END", required_unless_present = "batch", conflicts_with = "batch")]
    from: Option<String>,

    /// To whom: NAMESPACE/POD, node:NAME, ip:ADDRESS or svc:NAMESPACE/NAME
    ///
    /// An address may be a Service's: a cluster address, or on the Service's ports an external, load-balancer or node
    /// address. --port is then the Service's port, on a node address its node port.
    #[arg(long, value_name = "END", required_unless_present = "batch", conflicts_with = "batch")]
    to: Option<String>,

    /// What is sent: 8080/tcp, 53/udp, 80/sctp or icmp
    #[arg(long, value_name = "PORT/PROTOCOL", required_unless_present = "batch", conflicts_with = "batch")]
    port: Option<String>,

    /// Address family; by default the first of --from that both ends have
    #[arg(long, value_enum, ignore_case = true, conflicts_with = "batch")]
    family: Option<FamilyName>,

    /// How to print the answer
    #[arg(short = 'o', long, value_enum, default_value = "text", conflicts_with = "batch")]
    output: Output,

    /// Read questions from stdin, one JSON object a line, and answer each with one; empty lines are passed over
    ///
    /// A question has `from`, `to`, `protocol` (TCP, UDP, SCTP or ICMP), `port` (not for ICMP) and, if it matters,
    /// `family` (IPv4 or IPv6). An answer has `verdict` (Accept or Deny) and `reason`, or `error`; where a Service is asked
    /// for also `service`, `mixed_backends` and `backends`, each with `verdict` and `reason`.
    #[arg(long)]
    batch: bool,
}

/// How answers are printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// An address family on the command line.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FamilyName {
    /// IPv4.
    #[value(name = "IPv4", alias = "4")]
    V4,
    /// IPv6.
    #[value(name = "IPv6", alias = "6")]
    V6,
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Self {
        match name {
            FamilyName::V4 => Self::V4,
            FamilyName::V6 => Self::V6,
        }
    }
}

/// Said beside answers that an object which could not be read might change.
pub(super) const NOT_CERTAIN: &str =
    "not certain: something in the manifests could not be read (see the errors on stderr)";

/// How many names a message has.
const MOST_NAMES: usize = 10;

/// Runs the command; returns its exit code.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let (mut engine, is_certain) = load(&args.files)?;
    if args.batch {
        let answered =
            batch(&mut engine, io::stdin().lock(), io::BufWriter::with_capacity(1 << 16, io::stdout().lock()));
        return written(answered?, if is_certain { exit::OK } else { exit::UNKNOWN });
    }
    let question = Question {
        from: parse_end(args.from.as_deref().unwrap_or_default()).context("--from")?,
        to: parse_end(args.to.as_deref().unwrap_or_default()).context("--to")?,
        protocol: parse_protocol(args.port.as_deref().unwrap_or_default()).context("--port")?,
        family: args.family.map(Family::from),
    };
    let answer = match engine.ask(&question) {
        Ok(answer) => answer,
        // The files are fine, yet the answer depends on what they do not say.
        Err(error @ Unanswerable::AddressDecides(_)) => {
            anstream::eprintln!("npolicy: {error}");
            return Ok(exit::UNKNOWN);
        }
        Err(Unanswerable::NoPod(key)) => {
            let (state, namespace) = (engine.state(), &key.namespace);
            let pods = state.pods().filter(|pod| pod.key.namespace == *namespace).map(|pod| &*pod.key.name);
            let beside = beside(namespace, pods);
            if beside.is_empty() {
                let mut namespaces: Vec<_> = state.pods().map(|pod| &*pod.key.namespace).collect();
                namespaces.sort();
                namespaces.dedup();
                anyhow::bail!("there is no pod {key}; {}", held("pods are in", "no pod", namespaces.into_iter()))
            }
            anyhow::bail!("there is no pod {key}{beside}")
        }
        Err(Unanswerable::NoService(key)) => {
            let services = engine.state().services().filter(|service| service.key.namespace == key.namespace);
            let names = services.map(|service| &*service.key.name);
            anyhow::bail!("there is no Service {key}{}", beside(&key.namespace, names))
        }
        Err(Unanswerable::NoNode(name)) => {
            let nodes = engine.state().nodes().map(|node| &*node.name);
            anyhow::bail!("there is no node {name}; {}", held("there are", "no Node", nodes))
        }
        Err(error) => return Err(error.into()),
    };
    let mut out = anstream::stdout().lock();
    let outcome = match args.output {
        Output::Text => print_text(&mut out, &question, &answer, is_certain),
        Output::Json => {
            let line = serde_json::to_string(&AnswerLine::new(&question, &answer, is_certain))?;
            writeln!(out, "{line}")
        }
    };
    let code = match (is_certain, answer.verdict) {
        (false, _) => exit::UNKNOWN,
        (true, Verdict::Accept) => exit::OK,
        (true, Verdict::Deny) => exit::DENIED,
    };
    written(outcome.and_then(|()| out.flush()), code)
}

/// The exit code once the answer is written. A closed pipe is none of our business: whoever read has seen enough.
pub(super) fn written(outcome: io::Result<()>, code: u8) -> anyhow::Result<u8> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(exit::OK),
        outcome => outcome.context("write the answer").map(|()| code),
    }
}

/// Names what else is in a namespace, for whoever mistyped one: `; dev has backend, frontend`.
fn beside<'a>(namespace: &str, names: impl Iterator<Item = &'a str>) -> String {
    some_of(names).map_or_else(String::new, |names| format!("; {namespace} has {names}"))
}

/// Names what the manifests hold: `there are n1, n2`, or `the manifests hold no Node`.
fn held<'a>(there: &str, none: &str, names: impl Iterator<Item = &'a str>) -> String {
    some_of(names).map_or_else(|| format!("the manifests hold {none}"), |names| format!("{there} {names}"))
}

/// As many names as a message has; `None`: there is none.
fn some_of<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<_> = names.take(MOST_NAMES + 1).collect();
    match names.len() {
        0 => None,
        1..=MOST_NAMES => Some(names.join(", ")),
        _ => Some(format!("{}, ...", names[..MOST_NAMES].join(", "))),
    }
}

/// Reads manifests, says on stderr what is wrong with them, and compiles them. Also returns whether every object could be
/// read, so that answers are certain.
pub(super) fn load(files: &[PathBuf]) -> anyhow::Result<(Engine, bool)> {
    let manifests = Manifests::read(files)?;
    for path in files.iter().filter(|path| path.is_dir()) {
        anyhow::ensure!(
            manifests.has_file_in(path),
            "{} holds no .yaml, .yml or .json file (directories in it are not read)",
            path.display()
        );
    }
    let state = manifests.state();
    let of_the_whole = [manifests.diagnose_namespaces(), state.diagnose_addresses()].concat();
    for diagnostic in manifests.diagnostics().iter().chain(&of_the_whole) {
        anstream::eprintln!("{diagnostic}");
    }
    Ok((Engine::new(state), manifests.is_certain()))
}

fn print_text(out: &mut impl Write, question: &Question, answer: &Answer, is_certain: bool) -> io::Result<()> {
    let verdict = match answer.verdict {
        Verdict::Accept => super::style::accepted("Accept"),
        Verdict::Deny => super::style::denied("Deny"),
    };
    let family = match answer.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    writeln!(out, "{verdict}  {} -> {}  {} over {family}", question.from, question.to, question.protocol)?;
    match &answer.service {
        Some(service) if service.backends.is_empty() => {
            let missing = missing_text(service, &answer.judgements);
            writeln!(out, "  service {} at {} {missing}", service.service, service.address)?;
            if answer.judgements.is_empty() {
                writeln!(out, "  policy applies to neither end")?;
            }
            print_steps(out, &answer.judgements, "  ")?;
        }
        Some(service) => print_backends(out, service)?,
        None if answer.judgements.is_empty() => writeln!(out, "  {}", reason(answer))?,
        None => print_steps(out, &answer.judgements, "  ")?,
    }
    if !is_certain {
        writeln!(out, "{NOT_CERTAIN}")?;
    }
    Ok(())
}

fn print_steps(out: &mut impl Write, judgements: &[Judgement], indent: &str) -> io::Result<()> {
    for judgement in judgements {
        let direction = direction_text(judgement.direction);
        let verdict = match judgement.verdict {
            Verdict::Accept => super::style::accepted("accepts"),
            Verdict::Deny => super::style::denied("denies"),
        };
        let (subject, seen) = (&judgement.subject, seen_text(&judgement.seen));
        let comma = if seen.is_empty() { "" } else { "," };
        writeln!(out, "{indent}{direction} of {subject}{seen}{comma} {verdict}: {}", decision_text(judgement))?;
        let isolates = match judgement.explanation.decision {
            Decision::TierAccepted(_) | Decision::TierDenied(_) => false,
            Decision::NotGoverned | Decision::NotDecided | Decision::OwnNode | Decision::Itself => true,
            Decision::Accepted(_) | Decision::Denied(_) => true,
        };
        let policies: Vec<_> = judgement.explanation.isolated_by.iter().map(ToString::to_string).collect();
        if isolates && !policies.is_empty() {
            writeln!(out, "{indent}  isolated by {}", policies.join(", "))?;
        }
    }
    Ok(())
}

/// Backends whose reasons are told; the table has them all.
const BACKENDS_EXPLAINED: usize = 3;

/// One backend: its steps. Several: a table of them, then the steps of the first that deny, or of the first if none does.
fn print_backends(out: &mut impl Write, service: &ServiceAnswer) -> io::Result<()> {
    if let [only] = &*service.backends {
        let (backend, hint) = (backend_text(only), port_hint(service, only));
        writeln!(out, "  service {} at {}, backend {backend}{hint}", service.service, service.address)?;
        return print_steps(out, &only.judgements, "  ");
    }
    writeln!(out, "  {}", backends_text(service))?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).enforce_styling();
    table.set_header(["backend", "egress to it", "its ingress"]);
    for backend in &service.backends {
        let cell = |direction| {
            let steps = backend.judgements.iter().filter(|judgement| judgement.direction == direction);
            match steps.map(|judgement| judgement.verdict).max() {
                Some(Verdict::Accept) => Cell::new("accepts").fg(Color::Green),
                Some(Verdict::Deny) => Cell::new("denies").fg(Color::Red),
                None => Cell::new("-"),
            }
        };
        table.add_row([Cell::new(backend_text(backend)), cell(Direction::Egress), cell(Direction::Ingress)]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.style_text_only();
    for line in table.lines() {
        writeln!(out, "    {}", line.trim_end())?;
    }
    let denying: Vec<_> = service.backends.iter().filter(|backend| backend.verdict == Verdict::Deny).collect();
    let told = if denying.is_empty() { &service.backends.iter().take(1).collect() } else { &denying };
    for backend in told.iter().take(BACKENDS_EXPLAINED) {
        writeln!(out, "  {}{}", backend_text(backend), port_hint(service, backend))?;
        print_steps(out, &backend.judgements, "    ")?;
    }
    if denying.len() > BACKENDS_EXPLAINED {
        writeln!(out, "  and {} more that deny (-o json tells them all)", denying.len() - BACKENDS_EXPLAINED)?;
    }
    Ok(())
}

/// Answers each line of `questions` with one line, in order. The outer result is about reading, the inner about writing.
fn batch(engine: &mut Engine, mut questions: impl BufRead, mut answers: impl Write) -> anyhow::Result<io::Result<()>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if questions.read_until(b'\n', &mut line).context("read questions from stdin")? == 0 {
            return Ok(answers.flush());
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Err(error) = answer_line(engine, &line, &mut answers) {
            return Ok(Err(error));
        }
    }
}

fn answer_line(engine: &mut Engine, line: &[u8], out: &mut impl Write) -> io::Result<()> {
    #[derive(serde::Serialize)]
    struct Refusal<'a> {
        error: &'a str,
    }
    let answered = parse_question(line).and_then(|question| engine.ask(&question).map_err(|error| error.to_string()));
    match answered {
        Ok(answer) => serde_json::to_writer(&mut *out, &BatchLine::new(&answer))?,
        Err(error) => serde_json::to_writer(&mut *out, &Refusal { error: &error })?,
    }
    out.write_all(b"\n")
}
