//! Is every row of the lists covered, and where it says?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use npolicy_tests::cases::from_yaml;
use npolicy_tests::scenarios;
use serde::Deserialize;

/// What covers a row.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Covered {
    /// Scenarios, by the beginning of their names.
    scenario: Option<String>,
    /// A script of connections over time.
    script: Option<String>,
    /// Where it runs.
    #[serde(default)]
    runs: BTreeSet<Where>,
    /// Why nothing here can cover it.
    not_here: Option<String>,
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "kebab-case")]
enum Where {
    Host,
    Packets,
}

/// The lists: how their ids are written, and how many rows each has.
fn every_id() -> BTreeSet<String> {
    let list = |count: u8, write: fn(u8) -> String| (1..=count).map(write);
    list(50, |number| format!("e2e-A{number:02}"))
        .chain(list(35, |number| format!("cyc-B{number:02}")))
        .chain(list(33, |number| format!("cnp-C{number:02}")))
        .chain(list(25, |number| format!("W{number}")))
        .chain(list(15, |number| format!("script-T{number:02}")))
        .chain(list(10, |number| format!("svc-S{number:02}")))
        .collect()
}

fn tests_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn coverage() -> BTreeMap<String, Covered> {
    let text = fs::read_to_string(tests_folder().join("coverage.yaml")).expect("a coverage list");
    let mut documents = from_yaml(&text).expect("YAML");
    assert_eq!(documents.len(), 1);
    serde_json::from_value(documents.remove(0)).expect("a coverage list")
}

#[test]
fn every_row_is_covered_and_nothing_else_is_listed() {
    let listed: BTreeSet<String> = coverage().into_keys().collect();
    assert_eq!(listed, every_id());
}

#[test]
fn what_covers_a_row_names_it_and_runs_where_it_says() {
    let scenarios = scenarios::all();
    let mut wrong = Vec::new();
    for (id, Covered { scenario, script, runs, not_here }) in coverage() {
        match (scenario, script, not_here) {
            (Some(name), None, None) => {
                let found: Vec<_> =
                    scenarios.iter().filter(|it| it.name.starts_with(&name) && it.ids.contains(&id)).collect();
                if found.is_empty() {
                    wrong.push(format!("{id}: no scenario {name} names it"));
                }
                let sends = found.iter().any(|scenario| scenario.packets.is_some());
                if sends != runs.contains(&Where::Packets) {
                    wrong.push(format!("{id}: {name} {} packets", if sends { "sends" } else { "sends no" }));
                }
                if !runs.contains(&Where::Host) {
                    wrong.push(format!("{id}: every scenario runs on the host"));
                }
            }
            (None, Some(name), None) => {
                if !tests_folder().join("cases/dynamic").join(format!("{name}.yaml")).is_file() {
                    wrong.push(format!("{id}: there is no script {name}"));
                }
                let number = id.trim_start_matches("script-T").trim_start_matches('0');
                if !name.starts_with(&format!("T{number}-")) || runs != [Where::Packets].into() {
                    wrong.push(format!("{id}: {name} is another script, or runs elsewhere"));
                }
            }
            (None, None, Some(reason)) => {
                if reason.is_empty() || !runs.is_empty() {
                    wrong.push(format!("{id}: it has no reason, or runs after all"));
                }
            }
            _ => wrong.push(format!("{id}: it needs a scenario, a script or a reason, and one only")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_scenario_is_listed_under_each_of_its_ids() {
    let coverage = coverage();
    for scenario in scenarios::all() {
        for id in &scenario.ids {
            let listed = coverage.get(id).and_then(|covered| covered.scenario.as_ref());
            assert!(listed.is_some_and(|name| scenario.name.starts_with(name)), "{} under {id}", scenario.name);
        }
    }
}

#[test]
fn scenarios_of_all_lists_but_the_longest_send_packets() {
    for scenario in scenarios::all() {
        let is_whole = ["e2e/", "cnp/", "services/", "worked/"].iter().any(|folder| scenario.name.starts_with(folder));
        assert!(!is_whole || scenario.packets.is_some(), "{} sends no packets", scenario.name);
    }
}

#[test]
fn the_lists_have_as_many_cases_as_their_sources() {
    let mut cases: BTreeMap<String, usize> = BTreeMap::new();
    for id in scenarios::all().iter().flat_map(|scenario| &scenario.ids) {
        *cases.entry(id.clone()).or_default() += 1;
    }
    for (id, count) in [
        ("cyc-B01", 3),
        ("cyc-B02", 3),
        ("cyc-B14", 2),
        ("cyc-B16", 90),
        ("cyc-B18", 24),
        ("cyc-B19", 12),
        ("cyc-B20", 12),
        ("cyc-B21", 6),
        ("cyc-B22", 14),
        ("cyc-B35", 13),
    ] {
        assert_eq!(cases.get(id), Some(&count), "{id}");
    }
}
