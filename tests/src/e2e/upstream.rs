//! Kubernetes' own suite, by its published test program: two processes side by side, each with half of the tests.
//!
//! The program would take `--ginkgo.parallel.process` only from ginkgo's command, which starts a server for its processes.
//! So each gets the names of its tests as a focus.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::api::Api;
use super::report::{Case, Outcome, Report};

/// What of it runs, and how.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The program, of `k8s.io/kubernetes/test/e2e`.
    pub program: PathBuf,
    /// A part of the names of those that run; all with `Netpol` where it is empty.
    pub part: String,
    /// Whether also those run that another one is much alike.
    pub all: bool,
    /// Where reports and what the program prints go.
    pub folder: PathBuf,
}

/// Tests that only wait for minutes where the kernel has no SCTP sockets.
const SCTP: &str = "SCTPConnectivity";
/// Tests that are left out unless all are wanted: the API server's own, and what another one shows as well.
const ALIKE: &[&str] = &[
    "Netpol API",
    "based on PodSelector with MatchExpressions",
    "based on NamespaceSelector with MatchExpressions [",
    "based on any PodSelectors",
    "based on Multiple PodSelectors and NamespaceSelectors",
    "deny ingress from pods on other namespaces",
    "allow ingress access from namespace on one named port",
    "deny egress from all pods in a namespace",
    "multiple egress policies with egress allow-all",
    "NamespaceSelector with MatchLabels using default ns label",
    "allow ingress access from updated pod",
    "to allow ingress traffic for a target",
];
/// At once.
const PROCESSES: usize = 2;
/// The longest run of one process.
const LONGEST: Duration = Duration::from_secs(3600);

/// A test as ginkgo's report has it.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// In nanoseconds.
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
struct SuiteReport {
    spec_reports: Vec<Spec>,
    special_suite_failure_reasons: Option<Vec<String>>,
}

impl Spec {
    /// The whole name, by which a focus finds it.
    fn name(&self) -> String {
        let containers = self.container_hierarchy_texts.iter().flatten().cloned();
        containers.chain([self.leaf_node_text.clone()]).collect::<Vec<_>>().join(" ")
    }

    fn is_test(&self) -> bool {
        self.leaf_node_type == "It"
    }
}

/// Runs the chosen tests and reports each under `suite`.
///
/// # Errors
///
/// The program cannot be run, or does not tell its tests.
pub async fn run(api: &Api, choice: &Choice, suite: &str, report: &mut Report) -> anyhow::Result<()> {
    tokio::fs::create_dir_all(&choice.folder).await?;
    let names = list(api, choice).await?;
    ensure!(!names.is_empty(), "{} has no test with Netpol in its name", choice.program.display());
    let has_sctp = Path::new("/proc/sys/net/sctp").is_dir();
    let mut chosen = Vec::new();
    for name in names {
        let is_alike = choice.part.is_empty() && !choice.all && ALIKE.iter().any(|part| name.contains(part));
        if !name.contains(&choice.part) {
            continue;
        }
        if name.contains(SCTP) && !has_sctp {
            report.leave_out(suite, short(&name), "the kernel has no SCTP sockets");
        } else if is_alike {
            report.leave_out(suite, short(&name), "much like another; --all runs it");
        } else {
            chosen.push(name);
        }
    }
    let mut halves = vec![Vec::new(); PROCESSES.min(chosen.len())];
    let count = halves.len();
    for (place, name) in chosen.into_iter().enumerate() {
        halves[place % count].push(name);
    }
    let runs = halves.iter().zip(1..).map(|(names, number)| run_half(api, choice, suite, names, number));
    for cases in try_join_all(runs).await? {
        for case in cases {
            report.add(case);
        }
    }
    Ok(())
}

/// Names of all tests about policies, ascending.
async fn list(api: &Api, choice: &Choice) -> anyhow::Result<Vec<String>> {
    let file = choice.folder.join("list.json");
    let mut program = program(api, choice, &file);
    program.args(["--ginkgo.focus=Netpol", "--ginkgo.dry-run"]).stdout(Stdio::null()).stderr(Stdio::null());
    let status = program.status().await.with_context(|| format!("start {}", choice.program.display()))?;
    ensure!(status.success(), "{} --ginkgo.dry-run ended with {status}", choice.program.display());
    let specs = read(&file)?.into_iter().flat_map(|suite| suite.spec_reports);
    let mut names: Vec<String> =
        specs.filter(|spec| spec.is_test() && spec.state == "passed").map(|spec| spec.name()).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn program(api: &Api, choice: &Choice, report: &Path) -> Command {
    let mut command = Command::new(&choice.program);
    command.args(["--provider=skeleton", "--dump-logs-on-failure=false", "--ginkgo.no-color", "--ginkgo.v"]);
    command.arg(format!("--kubeconfig={}", api.kubeconfig().display()));
    command.args(api.context().map(|context| format!("--context={context}")));
    command.arg(format!("--ginkgo.json-report={}", report.display()));
    command.arg(format!("--ginkgo.timeout={}s", LONGEST.as_secs()));
    command.env("KUBECONFIG", api.kubeconfig()).stdin(Stdio::null());
    command
}

/// Interrupts the program where nobody waits for it any more: then it removes its namespaces, and ends.
struct Interrupt(Option<Pid>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        if let Some(process) = self.0 {
            // It may have ended in this moment.
            let _ = kill_process(process, Signal::INT);
        }
    }
}

/// Runs some tests in one process, one after the other.
async fn run_half(
    api: &Api,
    choice: &Choice,
    suite: &str,
    names: &[String],
    number: usize,
) -> anyhow::Result<Vec<Case>> {
    let named = suite.replace(' ', "-");
    let file = choice.folder.join(format!("{named}-{number}.json"));
    let log = choice.folder.join(format!("{named}-{number}.log"));
    // A report that an earlier run has left would be taken for this one's.
    let _ = std::fs::remove_file(&file);
    let focus: Vec<String> = names.iter().map(|name| regex_of(name)).collect();
    let begin = Instant::now();
    let mut program = program(api, choice, &file);
    program.arg(format!("--ginkgo.focus={}", focus.join("|"))).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = program.spawn().with_context(|| format!("start {}", choice.program.display()))?;
    let number_of = |id: u32| i32::try_from(id).ok().and_then(Pid::from_raw);
    let mut interrupt = Interrupt(child.id().and_then(number_of));
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut written = tokio::fs::File::create(&log).await.with_context(|| log.display().to_string())?;
    let mut done = 0;
    while let Some(line) = lines.next_line().await? {
        written.write_all(format!("{line}\n").as_bytes()).await?;
        // How ginkgo ends what it says of a test.
        if line.starts_with("• [") && !line.contains("SKIPPED") {
            done += 1;
            let seconds = begin.elapsed().as_secs();
            eprintln!("          {suite}, process {number}: {done} of {} after {seconds} s: {line}", names.len());
        }
    }
    let status = child.wait().await?;
    interrupt.0 = None;
    written.flush().await?;
    let reports = read(&file).with_context(|| format!("it ended with {status}; {} has what it said", log.display()))?;
    let mut cases = Vec::new();
    for spec in reports.iter().flat_map(|report| &report.spec_reports).filter(|spec| spec.is_test()) {
        let name = spec.name();
        if !names.contains(&name) {
            continue;
        }
        let outcome = match (spec.state.as_str(), &spec.failure) {
            ("passed", _) => Outcome::Passed,
            ("skipped" | "pending", failure) => {
                Outcome::LeftOut(failure.as_ref().map_or("the suite skips it".into(), |it| it.message.clone()))
            }
            (state, failure) => {
                let message = failure.as_ref().map(|failure| failure.message.as_str()).unwrap_or_default();
                let first: Vec<&str> = message.lines().take(6).collect();
                Outcome::Failed(format!("{state}: {}\nlook at {}", first.join("\n"), log.display()))
            }
        };
        let (suite, name, time) = (suite.to_owned(), short(&name).to_owned(), Duration::from_nanos(spec.run_time));
        cases.push(Case { suite, name, time, outcome, notes: String::new() });
    }
    let reasons = reports.iter().filter_map(|report| report.special_suite_failure_reasons.as_ref());
    let reasons: Vec<String> = reasons.flatten().cloned().collect();
    ensure!(
        cases.len() == names.len(),
        "{} of {} tests ran ({status}; {}); {} has what it said",
        cases.len(),
        names.len(),
        reasons.join(", "),
        log.display()
    );
    Ok(cases)
}

fn read(file: &Path) -> anyhow::Result<Vec<SuiteReport>> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no report of ginkgo's", file.display()))
}

/// What tells a test from others.
fn short(name: &str) -> &str {
    let name = name.strip_prefix("[sig-network] ").unwrap_or(name);
    name.strip_suffix(" [Feature:NetworkPolicy]").unwrap_or(name)
}

/// A regular expression for this text.
fn regex_of(text: &str) -> String {
    let mut regex = String::new();
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            regex.push('\\');
        }
        regex.push(character);
    }
    regex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_focus_of_its_own() {
        let name = "[sig-network] Netpol a (b) 'c' [Feature:NetworkPolicy]";
        assert_eq!(regex_of(name), r"\[sig-network\] Netpol a \(b\) 'c' \[Feature:NetworkPolicy\]");
        assert_eq!(short(name), "Netpol a (b) 'c'");
    }

    #[test]
    fn a_report_of_ginkgos_is_read() {
        let text = r#"[{"SpecialSuiteFailureReasons": null, "SpecReports": [{
            "ContainerHierarchyTexts": ["[sig-network] Netpol", "between"], "LeafNodeType": "It", "LeafNodeText": "works",
            "State": "failed", "RunTime": 9000000000, "Failure": {"Message": "reachability", "Location": {}}}]}]"#;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("report.json");
        std::fs::write(&file, text).unwrap();
        let reports = read(&file).unwrap();
        let spec = &reports[0].spec_reports[0];
        assert_eq!(spec.name(), "[sig-network] Netpol between works");
        assert!(spec.is_test());
        assert_eq!(spec.failure.as_ref().unwrap().message, "reachability");
    }
}
