//! The suites on a real Kubernetes, as `cargo xtask test` runs them: two clusters, one after the other.

use std::fs;

use anyhow::Context as _;

use crate::{
    cluster::{self, Channel, Cni, Family, Options, Proxy},
    e2e, process,
    report::{Outcome, Report, Totals},
    workspace,
};

/// A cluster, and which parts of the end-to-end tests run on it.
struct Suite {
    name: &'static str,
    options: Options,
    /// Parts; none: all.
    parts: &'static [&'static str],
}

/// A routed cluster with IPv4 first has everything; a bridged one with IPv6 first what is another there.
const SUITES: &[Suite] = &[
    Suite {
        name: "real cluster: ptp, IPv4 first",
        options: Options { cni: Cni::Ptp, first: Family::V4, proxy: Proxy::Nftables },
        parts: &[],
    },
    Suite {
        name: "real cluster: bridge, IPv6 first",
        options: Options { cni: Cni::Bridge, first: Family::V6, proxy: Proxy::Iptables },
        parts: &["b", "d"],
    },
];

/// Runs them as part of `report`. Unless `is_required`, a machine on which Kubernetes was not built yet leaves them out.
pub(crate) fn steps(is_required: bool, report: &mut Report) {
    if let Some(reason) = reason_to_skip(is_required) {
        report.counted_step("real cluster", || {
            if is_required { Outcome::Failed(reason) } else { Outcome::Skipped(reason) }
        });
        return;
    }
    let mut is_built = false;
    report.step("build Kubernetes", || {
        let built = cluster::build();
        is_built = built.is_ok();
        built.into()
    });
    for suite in SUITES.iter().filter(|_| is_built) {
        let mut totals = Totals::default();
        report.step(suite.name, || {
            let result = run(suite, &mut totals);
            if result.is_err() {
                // What ended before any result counts, too.
                totals.failed = totals.failed.max(1);
            }
            result.into()
        });
        report.add(totals);
    }
}

/// Why they cannot run here.
fn reason_to_skip(is_required: bool) -> Option<String> {
    if !process::is_root() {
        return Some("a cluster of namespaces needs root: sudo -E cargo xtask test".into());
    }
    if cluster::State::running().is_some() {
        return Some("a cluster runs already: cargo xtask cluster down".into());
    }
    if !is_required && !cluster::is_built() {
        return Some("cargo xtask cluster build makes it, in 10 to 15 minutes the first time on two cores".into());
    }
    None
}

fn run(suite: &Suite, totals: &mut Totals) -> anyhow::Result<()> {
    let results = workspace::root().join("target/e2e/junit.xml");
    let _absent = fs::remove_file(&results);
    let outcome = cluster::up(&suite.options)
        .and_then(|()| cluster::add_cnp(Channel::Experimental))
        .and_then(|()| e2e::run(&e2e::Args::of_parts(suite.parts)));
    if let Ok(xml) = fs::read_to_string(&results) {
        *totals = totals_of(&xml);
    }
    let down = cluster::down().context("end the cluster");
    outcome.and(down)
}

/// Adds up what JUnit's XML says of each suite.
fn totals_of(xml: &str) -> Totals {
    let mut totals = Totals::default();
    for line in xml.lines().filter(|line| line.trim_start().starts_with("<testsuite ")) {
        let count = |what: &str| -> u64 {
            let value = line.split_once(&format!(" {what}=\"")).and_then(|(_, rest)| rest.split_once('"'));
            value.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
        };
        let (tests, failed, skipped) = (count("tests"), count("failures"), count("skipped"));
        totals.passed += tests.saturating_sub(failed + skipped);
        totals.failed += failed;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_what_no_cluster_can_show_is_no_skip() {
        let xml = "<testsuites>\n  <testsuite name=\"a\" tests=\"7\" failures=\"2\" skipped=\"1\" time=\"1\">\n  \
                   <testsuite name=\"b\" tests=\"3\" failures=\"0\" skipped=\"0\" time=\"1\">\n</testsuites>";
        assert_eq!(totals_of(xml), Totals { passed: 7, failed: 2, skipped: 0 });
    }
}
