//! Do the judges agree, and on those worlds on which they once did not?

use fastrand::Rng;
use npolicy_tests::oracle::Probe;
use npolicy_tests::require_root;
use npolicy_tests::worlds::{
    EngineJudge, HostJudge, Interest, Judge, Kept, KernelJudge, OracleAsks, OracleSteps, PlanJudge, Question, Said,
    Step, Tally, agree, compare, first_seed, kept, root, smallest, times, write,
};
use serde_json::Value;

use crate::worlds;

#[test]
fn the_engine_agrees_with_the_oracle() {
    match agree::<Probe>(&worlds(20_000, 100), &mut OracleAsks, &mut EngineJudge) {
        Ok(tally) => tally.report("oracle and engine"),
        Err(found) => found.fail("engine"),
    }
}

#[test]
fn the_plans_of_nodes_agree_with_the_oracle() {
    match agree::<Step>(&worlds(20_000, 100), &mut OracleSteps, &mut PlanJudge) {
        Ok(tally) => tally.report("oracle and plans"),
        Err(found) => found.fail("plan"),
    }
}

#[test]
fn the_packet_path_on_the_host_agrees_with_the_oracle() {
    match agree::<Step>(&worlds(2_000, 100), &mut OracleSteps, &mut HostJudge) {
        Ok(tally) => tally.report("oracle and host"),
        Err(found) => found.fail("host"),
    }
}

#[test]
fn the_programs_in_the_kernel_agree_with_the_oracle() {
    if !require_root() {
        return;
    }
    let worlds = worlds(20_000, 360);
    let (agreed, packets) = KernelJudge::run(first_seed(), 4096, |kernel| {
        (agree::<Step>(&worlds, &mut OracleSteps, kernel), kernel.packets)
    })
    .expect("a datapath");
    match agreed {
        Ok(tally) => tally.report("oracle and kernel"),
        Err(found) => found.fail("kernel"),
    }
    assert!(packets >= 5_000_000 * times(), "only {packets} packets");
}

/// Puts the world's own question and many more to both judges.
#[track_caller]
fn replay<Q: Question>(
    Kept { name, objects, rows: _ }: &Kept,
    expected: &mut dyn Judge<Q>,
    got: &mut dyn Judge<Q>,
    tally: &mut Tally,
) {
    let questions = Q::ask(&Interest::of(objects), &mut Rng::with_seed(1), 5_000);
    if let Some(difference) = compare(expected, got, objects, &questions, tally) {
        panic!("{name}: {}", smallest(0, objects.clone(), &difference, expected, got));
    }
}

#[test]
fn judges_agree_on_every_world_that_was_kept() {
    let mut tally = Tally::default();
    for world in kept(&root()).expect("worlds") {
        let probes: Vec<Probe> = world.rows.iter().map(|row| row.probe()).collect();
        let right: Vec<Said> = world.rows.iter().map(|row| Said::from_word(&row.expect)).collect();
        assert_eq!(OracleAsks.judge(&world.objects, &probes), right, "{}: the oracle", world.name);
        assert_eq!(EngineJudge.judge(&world.objects, &probes), right, "{}: the engine", world.name);
        replay::<Probe>(&world, &mut OracleAsks, &mut EngineJudge, &mut tally);
        replay::<Step>(&world, &mut OracleSteps, &mut PlanJudge, &mut tally);
        replay::<Step>(&world, &mut OracleSteps, &mut HostJudge, &mut tally);
    }
    // Each was compared three times.
    tally.worlds /= 3;
    println!("kept worlds: {tally}");
}

#[test]
fn the_kernel_agrees_on_every_world_that_was_kept() {
    if !require_root() {
        return;
    }
    let tally = KernelJudge::run(1, 4096, |kernel| {
        let mut tally = Tally::default();
        for world in kept(&root()).expect("worlds") {
            replay::<Step>(&world, &mut OracleSteps, kernel, &mut tally);
        }
        tally
    });
    println!("kept worlds in the kernel: {}", tally.expect("a datapath"));
}

/// Denies SCTP to port 8080 wherever there is a NetworkPolicy.
struct Wrong;

impl Judge<Probe> for Wrong {
    fn judge(&mut self, objects: &[Value], probes: &[Probe]) -> Vec<Said> {
        let is_wrong = objects.iter().any(|object| object["kind"] == "NetworkPolicy");
        let flip = |(probe, said): (&Probe, Said)| match (&*probe.protocol, probe.port, said) {
            ("SCTP", Some(8080), Said::Accept) if is_wrong => Said::Deny,
            _ => said,
        };
        probes.iter().zip(EngineJudge.judge(objects, probes)).map(flip).collect()
    }
}

#[test]
fn a_wrong_verdict_is_found_made_small_and_kept() {
    let found = agree::<Probe>(&worlds(1_000, 100), &mut OracleAsks, &mut Wrong).expect_err("a difference");
    let count = |kind: &str| found.objects.iter().filter(|object| object["kind"] == kind).count();
    assert!(count("Pod") <= 2 && count("Node") <= 1 && count("Namespace") == 0, "{found}");
    assert_eq!(count("NetworkPolicy"), 1, "{found}");
    let size: usize = found.objects.iter().map(|object| object.to_string().len()).sum();
    assert!(size < 800, "{size} bytes, where whole worlds have thousands: {found}");
    assert_eq!((&*found.probe.protocol, found.probe.port), ("SCTP", Some(8080)), "{found}");

    let folder = tempfile::tempdir().expect("a directory");
    write(folder.path(), "self", &found).expect("written");
    let [world] = &kept(folder.path()).expect("read")[..] else { panic!("one world was written") };
    assert_eq!(world.objects, found.objects);
    assert_eq!(world.name, format!("self-{}", found.seed));
    assert_eq!((world.rows.len(), &*world.rows[0].expect), (1, "Accept"));
    assert_eq!(world.rows[0].probe(), found.probe);
}
