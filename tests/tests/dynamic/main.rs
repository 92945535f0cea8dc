//! Scripts of clusters over time, on real packets: each on two routed nodes and on two bridged ones.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use expect_test::expect;
use npolicy_agent::rig::Layout;
use npolicy_tests::dynamic::{all, load, run};
use npolicy_tests::{npolicy_binary, require_cluster};

/// Another build of the agent, with the same layout of tables.
const OTHER_BINARY: &str = env!("CARGO_BIN_EXE_npolicy-under-test");

fn check(name: &str) {
    let script = load(name).expect("a script");
    if !require_cluster() {
        return;
    }
    let binaries = [npolicy_binary(), Path::new(OTHER_BINARY)];
    let wrong: Vec<_> = thread::scope(|scope| {
        let runs = [Layout::Routed, Layout::Bridged].map(|layout| {
            let script = &script;
            scope.spawn(move || run(script, layout, binaries))
        });
        runs.into_iter().filter_map(|run| run.join().expect("a run must not panic").err()).collect()
    });
    let wrong: Vec<_> = wrong.iter().map(|error| format!("{error:#}")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

macro_rules! scripts {
    ($($test:ident $file:literal,)*) => {
        $(#[test]
        fn $test() {
            check($file);
        })*

        const FILES: &[&str] = &[$($file),*];
    };
}

scripts! {
    c1 "C1-egress-closes-and-opens-on-the-clients-side",
    c2 "C2-labels-of-the-servers-side-change",
    c3 "C3-the-servers-address-changes-hands",
    c4 "C4-answers-pass-as-long-as-their-flow-may",
    c5 "C5-policies-flap-and-nobody-notices",
    c6 "C6-agents-crash-while-policies-change",
    c7 "C7-changes-while-no-agent-runs",
    c8 "C8-agents-come-to-a-busy-node",
    c9 "C9-more-connections-than-the-table-holds",
    c10 "C10-a-pod-returns-under-its-name",
    c11 "C11-two-living-pods-claim-an-address",
    c12 "C12-blocks-narrow-under-connections",
    c13 "C13-a-narrow-path-between-the-nodes",
    c14 "C14-an-address-changes-hands-while-no-agent-runs",
    c15 "C15-agents-crash-while-pods-come-and-go",
    c16 "C16-a-services-backends-change-under-connections",
    r77 "R77-allow-policy-deleted-under-a-connection",
    r78 "R78-allow-widened-then-narrowed",
    r79 "R79-all-policies-deleted",
    r81 "R81-cron-job-connects-at-once",
    r82 "R82-nothing-leaks-at-start",
    r85 "R85-shutdown-with-network",
    r86 "R86-finished-job-s-address-returns",
    r88 "R88-namespace-label-moves",
    r89 "R89-cnp-loses-its-subject",
    r90 "R90-label-on-a-running-pod",
    r91 "R91-last-allowed-peer-leaves",
    r101 "R101-everything-in-one-apply",
    t1 "T1-answers-of-an-isolated-server",
    t2 "T2-an-isolated-server-opens-nothing",
    t3 "T3-a-policy-arrives-under-connections",
    t4 "T4-a-stopped-connection-goes-on",
    t5 "T5-ingress-isolation-spares-a-clients-answers",
    t6 "T6-connections-outlive-agents",
    t7 "T7-an-answer-and-a-datagram-to-another-port",
    t8 "T8-a-datagram-the-other-way-is-a-reply",
    t9 "T9-errors-about-a-connection-arrive",
    t10 "T10-errors-about-nothing-are-dropped",
    t11 "T11-a-label-goes-under-connections",
    t12 "T12-an-address-changes-hands",
    t13 "T13-a-finished-jobs-address",
    t14 "T14-a-terminating-pod-finishes-its-work",
    t15 "T15-a-new-pod-is-judged-from-its-first-packet",
}

#[test]
fn every_script_is_run() {
    let files: BTreeSet<String> = all().expect("the scripts").into_iter().collect();
    assert_eq!(files, FILES.iter().map(ToString::to_string).collect());
}

#[test]
fn what_is_left_out_is_known() {
    let mut left_out = String::new();
    for name in all().expect("the scripts") {
        let script = load(&name).expect("a script");
        for (number, step) in (1..).zip(&script.steps) {
            for (what, takes) in &step.left_out {
                left_out += &format!("{} step {number}: {what}: {takes}\n", script.id);
            }
        }
    }
    expect![[r#"
        R101 step 1: a Deployment that makes the pod: an API server
        R81 step 1: Jobs that a controller makes: an API server
        R82 step 2: init containers before the main one: a kubelet
        R82 step 2: the time before the programs are there: a chained CNI step
        R82 step 4: init containers before the main one: a kubelet
        R82 step 4: the time before the programs are there: a chained CNI step
        R85 step 2: the signal and a preStop hook: a kubelet
        R86 step 2: saying so: a kubelet
        T15 step 1: init containers: a kubelet
    "#]]
    .assert_eq(&left_out);
}
