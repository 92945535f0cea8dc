//! The chosen scenarios with real packets, in one cluster of each kind.

use npolicy_tests::require_cluster;
use npolicy_tests::scenarios::{self, Setting, run_packets};

fn run(setting: Setting) {
    if !require_cluster() {
        return;
    }
    let only = std::env::var("NPOLICY_SCENARIO").unwrap_or_default();
    let all = scenarios::all().expect("scenarios");
    let chosen: Vec<_> =
        all.iter().filter(|scenario| scenario.packets == Some(setting) && scenario.name.contains(&only)).collect();
    let ran = run_packets(setting, &chosen).expect("a cluster");
    println!("{}", ran.times);
    let shown = ran.differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(ran.differences.is_empty(), "{} of {} differ:\n{shown}", ran.differences.len(), ran.probes);
    assert!(ran.probes > 0, "nothing was tried");
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
