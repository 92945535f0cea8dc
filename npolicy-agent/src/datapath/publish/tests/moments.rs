//! Waits beside the publisher, and pods that nobody can name yet.

use super::*;

#[test]
fn a_wait_during_which_something_is_published_frees_no_number_and_no_ruleset() {
    let mut dice = Dice(77);
    let memory = Memory::new();
    let walk = SharedWalk::new(memory.walk());
    let mut publisher = fresh(&memory, &Limits::default());
    let mut raised = 0;
    for _ in 0..60 {
        let first = publisher.publish(&random_plan(&mut dice), None, &owners()).unwrap().flipped;
        let early = publisher.begin_settling();
        early.wait().unwrap();
        let plan = random_plan(&mut dice);
        let second = publisher.publish(&plan, None, &owners()).unwrap().flipped;
        let numbers_and_rulesets = |publisher: &Publisher| {
            let mut usage = publisher.usage();
            usage.retain(|table| ![maps::CLASS4, maps::CLASS6, maps::PREFIX6].contains(&table.table));
            usage
        };
        let usage = numbers_and_rulesets(&publisher);
        let generations = |publisher: &Publisher| -> BTreeMap<u32, u32> {
            publisher.lines.iter().map(|line| (line.ifindex, line.word.generation())).collect()
        };
        let before = generations(&publisher);
        publisher.end_settling(early).unwrap();
        assert!(publisher.is_unsettled());
        assert_eq!(numbers_and_rulesets(&publisher), usage);
        for (ifindex, generation) in generations(&publisher) {
            let is_due = first.contains(&ifindex) && !second.contains(&ifindex);
            raised += u32::from(is_due);
            assert_eq!(generation, before[&ifindex] + u32::from(is_due), "{ifindex}");
        }
        assert_eq!(walked(&walk), verdicts(&plan));

        let in_time = publisher.begin_settling();
        in_time.wait().unwrap();
        publisher.end_settling(in_time).unwrap();
        assert_eq!(walked(&walk), verdicts(&plan));
        if dice.one_in(2) {
            publisher.settle().unwrap();
            assert!(!publisher.is_unsettled());
        }
    }
    assert!(raised > 0, "some endpoint was flipped by the first plan alone");
}

#[test]
fn one_of_several_pods_gets_what_all_of_them_may_do_and_no_address() {
    let memory = Memory::new();
    let walk = memory.walk();
    let mut publisher = fresh(&memory, &Limits::default());
    let mut dice = Dice(9);
    for _ in 0..20 {
        let plan = random_plan(&mut dice);
        publisher.set_candidates(BTreeMap::from([(INTERFACES[0], vec![pod(0), pod(1)])]));
        let others = &owners()[1..];
        publisher.publish(&plan, None, others).unwrap();
        for direction in DIRECTIONS {
            for address in addresses() {
                let found = walk.verdict(INTERFACES[0], direction, address);
                let both = [0, 1].map(|at| expected(&plan, at, direction, address));
                assert_eq!(found, both[0] & both[1], "{direction:?} {address}");
            }
        }
        let line = *publisher.lines.get(INTERFACES[0]).unwrap();
        assert_eq!((line.ipv4, line.ipv6), ([0; 4], [0; 16]));
        publisher.settle().unwrap();
    }
    let plan = random_plan(&mut dice);
    publisher.set_candidates(BTreeMap::from([(INTERFACES[0], Vec::new())]));
    publisher.publish(&plan, None, &owners()[1..]).unwrap();
    assert_eq!(DIRECTIONS.map(|d| walk.word(INTERFACES[0]).unwrap().ruleset(d)), [RulesetId::DENY_ALL; 2]);
    publisher.publish(&plan, None, &owners()).unwrap();
    let alone = walk.word(INTERFACES[0]).unwrap();
    publisher.set_candidates(BTreeMap::new());
    publisher.publish(&plan, None, &owners()).unwrap();
    assert_eq!(walk.word(INTERFACES[0]), Some(alone), "an owner goes before candidates");
}
