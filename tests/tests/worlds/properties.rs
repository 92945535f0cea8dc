//! What must hold of verdicts whatever the world is.

use fastrand::Rng;
use npolicy_tests::oracle::Probe;
use npolicy_tests::require_root;
use npolicy_tests::worlds::changes::{self, FamilySwap};
use npolicy_tests::worlds::{
    Change, Concerns, DetourJudge, EngineJudge, Interest, Judge, KernelJudge, OracleSteps, PlanJudge, Question, Said,
    Settings, Step, Tally, Worlds, agree, first_seed, generate, governed, keeps, times,
};
use serde_json::Value;

use crate::worlds;

/// Worlds and questions of a property.
const WORLDS: u64 = 1_000;
const QUESTIONS: usize = 60;

fn same(before: Said, after: Said) -> bool {
    before == after
}

fn never_denies_more(before: Said, after: Said) -> bool {
    (before, after) != (Said::Accept, Said::Deny)
}

fn every(_: &[Value], probes: Vec<Probe>) -> Vec<Probe> {
    probes
}

fn unbroken() -> Worlds {
    let mut worlds = worlds(WORLDS, QUESTIONS);
    worlds.settings.broken = false;
    worlds
}

/// Checks the engine, and that the change was tried on at least so many of a hundred worlds.
#[track_caller]
fn check(
    name: &str,
    worlds: &Worlds,
    change: &Change,
    concerns: &Concerns<Probe>,
    holds: &dyn Fn(Said, Said) -> bool,
    least: u64,
) {
    match keeps(worlds, &mut EngineJudge, change, concerns, holds) {
        Ok(tally) => {
            println!("{name}: {tally}");
            let count = worlds.seeds.end - worlds.seeds.start;
            assert!(tally.worlds * 100 >= count * least, "{name}: tried on {} of {count} worlds", tally.worlds);
        }
        Err(found) => found.fail(name),
    }
}

#[test]
fn order_and_repetition_in_network_policies_change_nothing() {
    check("order", &worlds(WORLDS, QUESTIONS), &changes::stir_network_policies, &every, &same, 80);
}

#[test]
fn another_rule_never_denies_more() {
    let add = |objects: &mut Vec<Value>, rng: &mut Rng| changes::add_rule(objects, rng);
    check("rule", &worlds(WORLDS, QUESTIONS), &add, &every, &never_denies_more, 80);
}

#[test]
fn another_network_policy_denies_more_only_where_none_isolated() {
    let mut worlds = worlds(WORLDS, QUESTIONS);
    // A direction that only a ClusterNetworkPolicy governs is isolated by none.
    worlds.settings.cluster_policies = false;
    match keeps::<Step>(&worlds, &mut PlanJudge, &changes::add_policy, &governed, &never_denies_more) {
        Ok(tally) => {
            println!("policy: {tally}");
            assert!(tally.answered() > WORLDS * QUESTIONS as u64 / 10, "{tally}");
        }
        Err(found) => found.fail("policy"),
    }
}

#[test]
fn one_network_policy_a_rule_and_one_rule_a_pair_are_the_same() {
    check("split", &unbroken(), &changes::split_network_policies, &every, &same, 80);
}

#[test]
fn priorities_count_by_their_order_alone() {
    let change = |objects: &mut Vec<Value>, rng: &mut Rng| changes::move_priorities(objects, rng);
    check("priorities", &worlds(2 * WORLDS, QUESTIONS), &change, &every, &same, 40);
}

#[test]
fn a_rule_behind_one_that_matches_all_it_matches_is_dead() {
    let change = |objects: &mut Vec<Value>, rng: &mut Rng| changes::add_dead_rules(objects, rng);
    check("dead", &unbroken(), &change, &every, &same, 50);
}

#[test]
fn a_rule_that_nobody_can_represent_never_accepts_more() {
    let change = |objects: &mut Vec<Value>, rng: &mut Rng| changes::garble_rule(objects, rng);
    let never_accepts_more = |before, after| (before, after) != (Said::Deny, Said::Accept);
    check("garbled", &worlds(WORLDS, QUESTIONS), &change, &every, &never_accepts_more, 50);
}

#[test]
fn families_are_alike_where_no_block_is_named() {
    let mut worlds = worlds(WORLDS, QUESTIONS);
    worlds.settings = Settings { broken: false, blocks: false, ..worlds.settings };
    let mut tally = Tally::default();
    for seed in worlds.seeds.clone() {
        let objects = generate(seed, worlds.settings).objects;
        let probes = Interest::of(&objects).probes(&mut Rng::with_seed(seed), worlds.questions);
        let mut swap = FamilySwap::default();
        let mut swapped = objects.clone();
        swapped.iter_mut().for_each(|object| swap.swap(object));
        let swapped_probes: Vec<Probe> = probes.iter().map(|probe| swap.probe(probe)).collect();
        let (said, after) = (EngineJudge.judge(&objects, &probes), EngineJudge.judge(&swapped, &swapped_probes));
        for (probe, (said, after)) in probes.iter().zip(said.iter().zip(&after)) {
            assert_eq!(said, after, "seed {seed}: {probe:?}");
        }
        tally.count(&after);
    }
    tally.report("families");
}

#[test]
fn what_is_unrelated_changes_nothing() {
    check("unrelated", &worlds(WORLDS, QUESTIONS), &changes::add_unrelated, &every, &same, 80);
}

#[test]
fn where_no_policy_selects_an_end_everything_is_accepted() {
    let concerns = |objects: &[Value], mut probes: Vec<Probe>| {
        let Some(namespace) = changes::first_namespace(objects) else { return Vec::new() };
        let addresses = changes::addresses_of_pods(objects, &namespace);
        let is_elsewhere = |end: &String| match end.strip_prefix("ip:") {
            Some(address) => !addresses.contains(&address.to_owned()),
            None => !end.starts_with(&format!("{namespace}/")),
        };
        probes.retain(|probe| [&probe.from, &probe.to].into_iter().all(is_elsewhere));
        probes
    };
    let is_accepted = |_, after| after != Said::Deny;
    let mut worlds = worlds(2 * WORLDS, QUESTIONS);
    // A Service leads anywhere, to pods of that namespace too.
    worlds.settings.services = false;
    check("open", &worlds, &changes::keep_policies_of_first_namespace, &concerns, &is_accepted, 95);
}

#[test]
fn what_came_before_changes_nothing() {
    let worlds = worlds(WORLDS, QUESTIONS);
    match agree::<Step>(&worlds, &mut PlanJudge, &mut DetourJudge::new(first_seed())) {
        Ok(tally) => tally.report("detours"),
        Err(found) => found.fail("detour"),
    }
}

#[test]
fn a_reply_is_accepted_exactly_as_long_as_its_flow_is() {
    if !require_root() {
        return;
    }
    let worlds = worlds(250, 400);
    let tally = KernelJudge::run(first_seed(), 65_536, |kernel| {
        let mut tally = Tally::default();
        for seed in worlds.seeds.clone() {
            let objects = generate(seed, worlds.settings).objects;
            let mut rng = Rng::with_seed(seed);
            // The cluster stays, one policy after the other goes or takes in other pods.
            let mut fewer = objects.clone();
            changes::remove_policies(&mut fewer, &mut rng);
            let mut others = objects.clone();
            changes::add_policy(&mut others, &mut rng);
            let turns = [&objects[..], &others, &fewer, &objects];
            let steps = Step::ask(&Interest::of(&objects), &mut rng, worlds.questions);
            let said = kernel.follow(&turns, &steps);
            for (objects, said) in turns.iter().zip(said) {
                let right = OracleSteps.judge(objects, &steps);
                for ((step, right), said) in steps.iter().zip(right).zip(said) {
                    let Some(said) = said else { continue };
                    assert_eq!(said, [right; 2], "seed {seed}: segment and reply of {step:?}");
                    tally.count(&said);
                }
            }
            tally.worlds = seed - worlds.seeds.start + 1;
        }
        tally
    });
    let tally = tally.expect("a datapath");
    println!("replies: {tally}");
    assert!(tally.said[Said::Deny as usize] > 1_000 * times(), "{tally}");
}
