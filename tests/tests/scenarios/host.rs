//! Every scenario on the host.

use npolicy_tests::scenarios::{self, Difference, Scenario, check_engine, check_nodes, check_oracle};

/// Runs every scenario; the number of probes says that none was lost.
#[track_caller]
fn check_all(check: impl Fn(&Scenario) -> (usize, Vec<Difference>), at_least: usize) {
    let (mut asked, mut differences) = (0, Vec::new());
    for scenario in scenarios::all() {
        let (more, differ) = check(scenario);
        asked += more;
        differences.extend(differ);
    }
    let shown = differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{} of {asked} answers differ:\n{shown}", differences.len());
    assert!(asked >= at_least, "{asked} probes only");
}

#[test]
fn the_oracle_says_what_is_expected() {
    check_all(check_oracle, 190_000);
}

#[test]
fn the_engine_says_what_is_expected() {
    check_all(check_engine, 190_000);
}

#[test]
fn the_plans_of_the_nodes_say_together_what_is_expected() {
    check_all(check_nodes, 190_000);
}

#[test]
fn a_wrong_expectation_is_found_by_each() {
    let a28 = scenarios::all().iter().find(|scenario| scenario.name.starts_with("e2e/A28"));
    let mut scenario = a28.expect("the scenario").clone();
    let mut probes = 0;
    for expected in scenario.steps.iter_mut().flat_map(|step| &mut step.expected) {
        expected.is_accepted = !expected.is_accepted;
        probes += 2;
    }
    for check in [check_oracle, check_engine, check_nodes] {
        let (asked, differences) = check(&scenario);
        assert_eq!((asked, differences.len()), (probes, probes));
    }
}
