//! The chosen scenarios with real packets, in one cluster of each kind.

use npolicy_tests::require_cluster;
use npolicy_tests::scenarios::{self, Scenario, Setting, run_packets};

fn run(setting: Setting) {
    if !require_cluster() {
        return;
    }
    // One scenario by a part of its name, for whoever looks for an error.
    let only = std::env::var("NPOLICY_SCENARIO").unwrap_or_default();
    // Or every scenario in every kind of cluster, which takes long.
    let every = std::env::var("NPOLICY_EVERY_SCENARIO").is_ok_and(|value| value == "1");
    let is_chosen = |scenario: &&Scenario| {
        let is_anywhere = every && (setting == Setting::Worked) == (scenario.packets == Some(Setting::Worked));
        (is_anywhere || scenario.packets == Some(setting)) && scenario.name.contains(&only)
    };
    let chosen: Vec<_> = scenarios::all().iter().filter(is_chosen).collect();
    let ran = run_packets(setting, &chosen).expect("a cluster");
    println!("{}", ran.times);
    let shown = ran.differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(ran.differences.is_empty(), "{} of {} differ:\n{shown}", ran.differences.len(), ran.probes);
    assert!(ran.probes > 0 || !only.is_empty(), "nothing was tried");
}

#[test]
fn a_wrong_expectation_is_found_by_packets() {
    if !require_cluster() {
        return;
    }
    let a28 = scenarios::all().iter().find(|scenario| scenario.name.starts_with("e2e/A28"));
    let mut scenario = a28.expect("the scenario").clone();
    let mut probes = 0;
    for step in &mut scenario.steps {
        // Both ends of the one connection that is allowed, and some that are not.
        step.expected.retain(|expected| expected.from == "x/a" || expected.to.starts_with("svc:y/"));
        for expected in &mut step.expected {
            expected.is_accepted = !expected.is_accepted;
            probes += 2;
        }
    }
    let ran = run_packets(Setting::DualMixed, &[&scenario]).expect("a cluster");
    assert_eq!((ran.probes, ran.differences.len()), (probes, probes));
}

#[test]
fn packets_dual_stack_routed() {
    run(Setting::DualRouted);
}

#[test]
fn packets_dual_stack_bridged() {
    run(Setting::DualBridged);
}

#[test]
fn packets_dual_stack_one_node_routed_one_bridged() {
    run(Setting::DualMixed);
}

#[test]
fn packets_ipv4_bridged() {
    run(Setting::V4Bridged);
}

#[test]
fn packets_ipv6_routed() {
    run(Setting::V6Routed);
}

#[test]
fn packets_of_the_worked_examples() {
    run(Setting::Worked);
}
