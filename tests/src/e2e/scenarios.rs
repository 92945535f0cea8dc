//! The scenarios of `tests/scenarios` and `tests/cases/worked`, as pods and policies of a real cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::join_all;
use npolicy_common::Family;

use super::api::Api;
use super::live::{ANSWER, Live, host_key};
use super::message::{Answer, Ask, Outcome as Came, Protocol, Target};
use super::report::{Case, Outcome, Report};
use super::translate::Addresses;
use crate::scenarios::{self, Expected, Port, Scenario, Setting, Step};

/// Which scenarios run, and how patiently.
#[derive(Clone, Debug)]
pub struct Choice {
    /// A part of the names of those that run; all where it is empty.
    pub part: String,
    /// Whether also those run that send no packets elsewhere: hundreds that differ little.
    pub all: bool,
    /// How long verdicts may take until they hold.
    pub settle: Duration,
    /// Name of the pods' image.
    pub image: String,
}

/// Waits for an answer while a step settles, and in the second reading: of what must be accepted, and of what must not.
const FIRST: (&[u64], &[u64]) = (&[900], &[400]);
const SECOND: (&[u64], &[u64]) = (&[900, 3500], &[500]);
/// Why a probe from or to an address is not made.
const OUTSIDE: &str = "nobody outside of the cluster takes part";
/// How many differences of a step are shown.
const SHOWN: usize = 12;

/// A probe as it is made.
struct Probe<'a> {
    expected: &'a Expected,
    /// Key of the pod that it starts from.
    source: String,
    target: Target,
    /// Who has to answer, where it can be one only.
    who: Option<String>,
}

/// Runs the chosen scenarios, each world's one after the other, and reports them under `suite`.
///
/// # Errors
///
/// The cluster has no two nodes, or pods do not run.
pub async fn run(api: &Api, choice: &Choice, suite: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut live = Live::start(api, &choice.image).await?;
    let has_cluster_policies = api.has_cluster_policies().await?;
    let mut chosen: Vec<&Scenario> = Vec::new();
    for scenario in scenarios::all().iter().filter(|scenario| scenario.name.contains(&choice.part)) {
        if choice.all || scenario.packets.is_some() {
            chosen.push(scenario);
        }
    }
    chosen.sort_by_key(|scenario| world_of(scenario));
    let homes: BTreeSet<String> = chosen.iter().flat_map(|scenario| world_of(scenario)).collect();
    let mut world = BTreeSet::new();
    for scenario in chosen {
        let needs = needs(scenario, has_cluster_policies);
        if let Some(reason) = needs {
            report.leave_out(suite, &scenario.name, &reason);
            continue;
        }
        let own = world_of(scenario);
        let elsewhere: BTreeSet<String> = homes.difference(&own).cloned().collect();
        if own != world {
            world = own;
            let begin = Instant::now();
            let named = format!("everybody is reached without policies in {}", named(&world));
            eprintln!("          making the pods of {}", self::named(&world));
            let result = baseline(&mut live, scenario, &elsewhere, choice).await;
            let has_failed = result.is_err();
            report.add_result(suite, &named, begin, result);
            if has_failed {
                // What is not reached without policies says nothing under them.
                world.clear();
                report.leave_out(suite, &scenario.name, "its world does not work");
                continue;
            }
        }
        let begin = Instant::now();
        let (outcome, notes) = run_scenario(&mut live, scenario, &elsewhere, choice).await;
        let (suite, name, time) = (suite.to_owned(), scenario.name.clone(), begin.elapsed());
        report.add(Case { suite, name, time, outcome, notes });
    }
    Ok(())
}

fn named(world: &BTreeSet<String>) -> String {
    world.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// The namespaces that a scenario starts with.
fn world_of(scenario: &Scenario) -> BTreeSet<String> {
    let names = scenario.start.of_kind("Namespace").filter_map(|object| object["metadata"]["name"].as_str());
    names.map(str::to_owned).collect()
}

/// Why a scenario cannot run, if so.
fn needs(scenario: &Scenario, has_cluster_policies: bool) -> Option<String> {
    let mut objects = scenario.steps.iter().map(|step| &step.objects);
    if !has_cluster_policies && objects.any(|objects| objects.of_kind("ClusterNetworkPolicy").next().is_some()) {
        return Some("the cluster knows no ClusterNetworkPolicy (its CRD is not installed)".into());
    }
    if scenario.ids.iter().any(|id| id == "W22") {
        return Some("no API server keeps such an object: it refuses or prunes what nobody can read".into());
    }
    None
}

/// Reaches every pod from every pod, where no policy stands.
async fn baseline(
    live: &mut Live,
    scenario: &Scenario,
    elsewhere: &BTreeSet<String>,
    choice: &Choice,
) -> anyhow::Result<String> {
    let mut objects = scenario.start.clone();
    for kind in ["NetworkPolicy", "ClusterNetworkPolicy"] {
        for object in scenario.start.of_kind(kind) {
            let (_, namespace, name) = super::api::key(object)?;
            let what = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
            objects.delete(&format!("{kind} {what}"))?;
        }
    }
    let pods = objects.pods();
    // What scenarios of this world ask for is served, and so is one port of everybody.
    let ports: Vec<Port> = match scenario.packets {
        Some(Setting::Worked) => vec!["TCP/8080".parse()?, "UDP/8080".parse()?, "ICMP".parse()?],
        _ => scenario.ports.clone(),
    };
    let mut expected = Vec::new();
    for from in &pods {
        for to in pods.iter().filter(|to| *to != from) {
            let probe = |port: &Port| Expected {
                from: from.clone(),
                to: to.clone(),
                port: port.clone(),
                family: None,
                is_accepted: true,
            };
            expected.extend(ports.iter().map(probe));
        }
        // And the Services in front of them, which kube-proxy has to learn of.
        for object in objects.of_kind("Service").filter(|_| scenario.packets != Some(Setting::Worked)) {
            let (_, namespace, name) = super::api::key(object)?;
            let to = format!("svc:{namespace}/{name}");
            if name.strip_prefix("s-").is_some_and(|pod| *from != format!("{namespace}/{pod}")) {
                let from = from.clone();
                expected.extend(ports.iter().map(|port| Expected {
                    from: from.clone(),
                    to: to.clone(),
                    port: port.clone(),
                    family: None,
                    is_accepted: true,
                }));
            }
        }
    }
    let step = Step { objects, expected };
    live.enter(&step.objects, elsewhere).await?;
    // Nothing has to settle but the network of pods that have just come.
    let choice = Choice { settle: Duration::from_secs(20), ..choice.clone() };
    match check(live, scenario, &step, &choice).await? {
        (Some(differences), _) => anyhow::bail!("{differences}"),
        (None, notes) => Ok(notes),
    }
}

/// Runs the steps of a scenario, up to the first that does not hold.
async fn run_scenario(
    live: &mut Live,
    scenario: &Scenario,
    elsewhere: &BTreeSet<String>,
    choice: &Choice,
) -> (Outcome, String) {
    let mut all_notes = String::new();
    let mut probes = 0;
    for (number, step) in (1..).zip(&scenario.steps) {
        let checked = async {
            live.enter(&step.objects, elsewhere).await?;
            check(live, scenario, step, choice).await
        };
        match checked.await.with_context(|| format!("step {number}")) {
            Ok((None, notes)) => {
                probes += usize::from(!notes.starts_with("0 probes"));
                all_notes.push_str(&format!("step {number}: {notes}\n"));
            }
            Ok((Some(differences), notes)) => {
                return (Outcome::Failed(format!("step {number}: {notes}\n{differences}")), all_notes);
            }
            Err(error) => return (Outcome::Failed(format!("{error:#}")), all_notes),
        }
    }
    if probes == 0 {
        return (Outcome::LeftOut(all_notes.trim_end().to_owned()), String::new());
    }
    (Outcome::Passed, all_notes)
}

/// Makes every probe of a step until all are as expected, and then once more. Returns what differs, if anything does, and
/// what there is to say of the step.
async fn check(
    live: &mut Live,
    scenario: &Scenario,
    step: &Step,
    choice: &Choice,
) -> anyhow::Result<(Option<String>, String)> {
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    let mut probes = Vec::new();
    let addresses = live.addresses(&step.objects);
    for expected in &step.expected {
        for family in [Family::V4, Family::V6] {
            if expected.family.is_some_and(|own| own != family) {
                continue;
            }
            match probe(live, step, expected, family, &addresses) {
                Ok(probe) => probes.push(probe),
                Err(reason) => *left_out.entry(reason).or_default() += 1,
            }
        }
    }
    serve(live, scenario, step, &probes).await?;
    let begin = Instant::now();
    let mut waiting: Vec<&Probe> = probes.iter().collect();
    let mut readings = 0;
    let differences = loop {
        let came = read(live, &waiting, FIRST).await?;
        readings += 1;
        let differing = waiting.iter().zip(came).filter_map(|(probe, came)| Some((*probe, differs(probe, &came)?)));
        let differing: Vec<(&Probe, String)> = differing.collect();
        if differing.is_empty() || begin.elapsed() >= choice.settle {
            break differing;
        }
        waiting = differing.into_iter().map(|(probe, _)| probe).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let settled = begin.elapsed();
    let mut notes = format!("{} probes", probes.len());
    for (reason, count) in left_out {
        notes.push_str(&format!(", {count} left out: {reason}"));
    }
    if !differences.is_empty() {
        let shown: Vec<String> = differences.into_iter().map(|(_, difference)| difference).collect();
        notes.push_str(&format!("; not as expected {:.1} s after the change", settled.as_secs_f64()));
        return Ok((Some(shorten(&shown)), notes));
    }
    if readings > 1 {
        notes.push_str(&format!("; as expected after {:.1} s and {readings} readings", settled.as_secs_f64()));
    }
    let all: Vec<&Probe> = probes.iter().collect();
    let came = read(live, &all, SECOND).await?;
    let differing: Vec<String> = all.iter().zip(came).filter_map(|(probe, came)| differs(probe, &came)).collect();
    if differing.is_empty() {
        return Ok((None, notes));
    }
    notes.push_str("; as expected once, and then not");
    Ok((Some(shorten(&differing)), notes))
}

fn shorten(differences: &[String]) -> String {
    let mut shown: Vec<String> = differences.iter().take(SHOWN).cloned().collect();
    if let Some(more) = differences.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        shown.push(format!("and {more} more"));
    }
    shown.join("\n")
}

/// Makes probes all at once.
async fn read(
    live: &Live,
    probes: &[&Probe<'_>],
    (accepted, denied): (&[u64], &[u64]),
) -> anyhow::Result<Vec<(Came, String)>> {
    let asked = probes.iter().map(|probe| async move {
        let attempts_ms = if probe.expected.is_accepted { accepted } else { denied };
        let ask = Ask::Probe { target: probe.target, attempts_ms: attempts_ms.to_vec() };
        match live.pod(&probe.source)?.channel.ask(ask, ANSWER).await? {
            Answer::Probed { outcome, who } => Ok((outcome, who)),
            other => anyhow::bail!("{} answers a probe by {other:?}", probe.source),
        }
    });
    join_all(asked).await.into_iter().collect()
}

/// How an outcome differs from the expected one, if it does.
fn differs(probe: &Probe, (outcome, who): &(Came, String)) -> Option<String> {
    let Expected { from, to, port, is_accepted, family: _ } = probe.expected;
    let wanted = if *is_accepted { Came::Accept } else { Came::Deny };
    let address = probe.target.to;
    if *outcome != wanted {
        return Some(format!("{from} -> {to} {port} at {address}: {outcome}, not {wanted}"));
    }
    let expected = probe.who.as_ref().filter(|_| *is_accepted && probe.target.protocol != Protocol::Icmp)?;
    (who != expected).then(|| format!("{from} -> {to} {port} at {address}: answered by {who}"))
}

/// A probe of a family, or why it is not made.
fn probe<'a>(
    live: &Live,
    step: &Step,
    expected: &'a Expected,
    family: Family,
    addresses: &Addresses,
) -> Result<Probe<'a>, String> {
    let none = |what: &str| format!("{what} has no address of the family");
    let on_host = |end: &str| {
        let pod = step.objects.pod(end).filter(|pod| pod["spec"]["hostNetwork"] == true)?;
        pod["spec"]["nodeName"].as_str().map(str::to_owned)
    };
    let node_of = |end: &str| end.strip_prefix("node:").map(str::to_owned).or_else(|| on_host(end));
    if expected.from.starts_with("ip:") {
        return Err(OUTSIDE.into());
    }
    let source = node_of(&expected.from).map_or_else(|| expected.from.clone(), |node| host_key(&node));
    let protocol = match expected.port.protocol.as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Icmp,
    };
    let from = live.pod(&source).map_err(|error| error.to_string())?;
    if protocol == Protocol::Sctp && !from.sctp {
        return Err("the kernel has no SCTP sockets".into());
    }
    let of_family = |own: &[IpAddr]| own.iter().copied().find(|own| own.is_ipv4() == (family == Family::V4));
    let (to, who) = if let Some(service) = expected.to.strip_prefix("svc:") {
        let to = live.service(service, family).map_err(|_| none("a Service"))?;
        // The Service in front of one pod.
        let who = service.split_once('/').and_then(|(namespace, name)| Some((namespace, name.strip_prefix("s-")?)));
        (to, who.map(|(namespace, pod)| format!("{namespace}/{pod}")))
    } else if let Some(written) = expected.to.strip_prefix("ip:") {
        let written = written.parse().map_err(|_| format!("{written} is no address"))?;
        (addresses.real(written).ok_or(OUTSIDE)?, None)
    } else {
        let key = node_of(&expected.to).map_or_else(|| expected.to.clone(), |node| host_key(&node));
        let pod = live.pod(&key).map_err(|error| error.to_string())?;
        (of_family(&pod.addresses).ok_or_else(|| none("an end"))?, Some(key))
    };
    if of_family(&from.addresses).is_none() {
        return Err(none("an end"));
    }
    let target = Target { to, protocol, port: expected.port.number.unwrap_or_default() };
    Ok(Probe { expected, source, target, who })
}

/// Lets everybody serve what is probed, and what Services lead to.
async fn serve(live: &mut Live, scenario: &Scenario, step: &Step, probes: &[Probe<'_>]) -> anyhow::Result<()> {
    let mut wanted: BTreeMap<String, BTreeSet<(Protocol, u16)>> = BTreeMap::new();
    let port_of = |port: &Port| {
        let protocol = match port.protocol.as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return None,
        };
        Some((protocol, port.number?))
    };
    for pod in step.objects.pods() {
        wanted.entry(pod).or_default().extend(scenario.ports.iter().filter_map(port_of));
    }
    for node in &live.nodes {
        wanted.entry(host_key(&node.written)).or_default().extend(scenario.node_ports.iter().filter_map(port_of));
    }
    for probe in probes.iter().filter(|probe| !probe.expected.to.starts_with("svc:")) {
        if let Some(who) = &probe.who {
            wanted.entry(who.clone()).or_default().insert((probe.target.protocol, probe.target.port));
        }
    }
    // Backends, by the scenario's addresses.
    for slice in step.objects.of_kind("EndpointSlice") {
        let ports: Vec<(Protocol, u16)> = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| {
                let (protocol, number) = (port["protocol"].as_str().unwrap_or("TCP"), port["port"].as_u64()?);
                port_of(&Port { protocol: protocol.into(), number: u16::try_from(number).ok() })
            })
            .collect();
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            for address in endpoint["addresses"].as_array().into_iter().flatten() {
                if let Some(pod) = pod_at(step, address.as_str().unwrap_or_default()) {
                    wanted.entry(pod).or_default().extend(ports.iter().copied());
                }
            }
        }
    }
    live.serve(&wanted).await
}

fn pod_at(step: &Step, address: &str) -> Option<String> {
    step.objects.pods().into_iter().find(|key| {
        let listed = step.objects.pod(key).and_then(|pod| pod["status"]["podIPs"].as_array());
        listed.into_iter().flatten().any(|entry| entry["ip"] == *address)
    })
}
