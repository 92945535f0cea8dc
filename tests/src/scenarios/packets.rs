//! Scenarios with real packets: namespaces for pods, an agent on each of two nodes, an outside.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Context as _;
use npolicy_agent::rig::{self, Layout, Outcome, Patience, Probe, Source, probe_each};
use npolicy_common::Family;
use serde::Deserialize;

use super::expect::{Expected, Port};
use super::lab::Lab;
use super::scenario::Scenario;

/// A kind of cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// Both families, routed.
    DualRouted,
    /// Both families, bridged.
    DualBridged,
    /// Both families; n1 is routed, n2 bridged.
    DualMixed,
    /// IPv4 only, bridged.
    V4Bridged,
    /// IPv6 only, routed.
    V6Routed,
    /// The cluster of the worked examples, whose pods have addresses of no node's range; routed.
    Worked,
}

impl Setting {
    pub(super) fn layouts(self) -> [Layout; 2] {
        match self {
            Self::DualRouted | Self::V6Routed | Self::Worked => [Layout::Routed; 2],
            Self::DualBridged | Self::V4Bridged => [Layout::Bridged; 2],
            Self::DualMixed => [Layout::Routed, Layout::Bridged],
        }
    }

    pub(super) fn families(self) -> &'static [Family] {
        match self {
            Self::DualRouted | Self::DualBridged | Self::DualMixed | Self::Worked => &[Family::V4, Family::V6],
            Self::V4Bridged => &[Family::V4],
            Self::V6Routed => &[Family::V6],
        }
    }
}

/// What came of running scenarios.
#[derive(Default, Debug)]
pub struct Ran {
    /// How many connections were tried.
    pub probes: usize,
    /// Those that differ from what was expected, for people to read.
    pub differences: Vec<String>,
    /// How long each scenario took.
    pub times: String,
}

/// Runs scenarios one after the other in one cluster.
///
/// # Errors
///
/// The cluster cannot be made, or an agent does not publish.
pub fn run_packets(setting: Setting, scenarios: &[&Scenario]) -> anyhow::Result<Ran> {
    let mut ran = Ran::default();
    let begin = Instant::now();
    let mut lab = Lab::new(setting)?;
    let _ = writeln!(ran.times, "{:>8.2?} {setting:?} is up", begin.elapsed());
    for scenario in scenarios {
        let begin = Instant::now();
        for (number, step) in (1..).zip(&scenario.steps) {
            let context = || format!("{}, step {number}, {setting:?}", scenario.name);
            lab.enter(scenario, step).with_context(context)?;
            let (probes, differences) = probe(&mut lab, setting, &step.expected).with_context(context)?;
            ran.probes += probes;
            let name = |difference| format!("{}: {difference}", context());
            ran.differences.extend(differences.into_iter().map(name));
        }
        let _ = writeln!(ran.times, "{:>8.2?} {}", begin.elapsed(), scenario.name);
    }
    Ok(ran)
}

/// Makes every connection of a step.
fn probe(lab: &mut Lab, setting: Setting, expected: &[Expected]) -> anyhow::Result<(usize, Vec<String>)> {
    let mut asked: Vec<(&Expected, Source, Probe)> = Vec::new();
    for expected in expected {
        for &family in setting.families() {
            if expected.family.is_some_and(|own| own != family) {
                continue;
            }
            let source = lab.source(&expected.from)?;
            let to = lab.address(&expected.to, family)?;
            asked.push((expected, source, probe_of(&expected.port, to)));
        }
    }
    let patience = |is_accepted| if is_accepted { Patience::THOROUGH } else { Patience::BRIEF };
    let probes: Vec<_> =
        asked.iter().map(|(expected, source, probe)| (source, *probe, patience(expected.is_accepted))).collect();
    let outcomes = probe_each(&probes, lab.sctp(), || {})?;
    let mut differences = Vec::new();
    for ((expected, _, probe), outcome) in asked.iter().zip(outcomes) {
        let wanted = if expected.is_accepted { Outcome::Accept } else { Outcome::Deny };
        if outcome != wanted {
            let Expected { from, to, port, .. } = expected;
            differences.push(format!("{from} to {to} {port} at {}: {outcome}, not {wanted}", probe.to));
        }
    }
    Ok((asked.len(), differences))
}

fn probe_of(port: &Port, to: std::net::IpAddr) -> Probe {
    Probe { to, protocol: protocol_of(&port.protocol), port: port.number.unwrap_or_default() }
}

/// A protocol by its name.
pub(super) fn protocol_of(name: &str) -> rig::Protocol {
    match name {
        "TCP" => rig::Protocol::Tcp,
        "UDP" => rig::Protocol::Udp,
        "SCTP" => rig::Protocol::Sctp,
        _ => rig::Protocol::Icmp,
    }
}
