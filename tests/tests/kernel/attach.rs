//! Lines, links and pins.

use std::thread;
use std::time::{Duration, Instant};

use npolicy_agent::datapath::{Datapath, DatapathConfig, Problem, remove_all};
use npolicy_agent::rig::BpfFs;
use npolicy_tests::require_root;

use crate::world::{PODS, World, pod, port};

#[test]
fn a_new_agent_adopts_what_the_last_one_left() {
    if !require_root() {
        return;
    }
    let world = World::new();
    world.run(|| {
        let mut first = world.open();
        assert!(!first.is_adopted());
        let plan = world.plan(port(8080));
        let report = first.publish(&plan, &world.owners()).expect("published");
        assert_eq!(report.flipped.len(), PODS.len());
        first.settle().expect("settled");
        assert_eq!(first.verify().len(), 0);
        let words = PODS.map(|name| first.endpoint_of(world.ifindex(name)));
        assert!(words.iter().all(Option::is_some));

        let refused = Datapath::open(&world.config()).expect_err("one agent at a time").to_string();
        assert!(refused.contains("another agent holds it"), "{refused}");
        drop(first);

        let mut second = world.open();
        assert!(second.is_adopted());
        assert_eq!(PODS.map(|name| second.endpoint_of(world.ifindex(name))), words);
        assert_eq!(second.verify().len(), 0);
        let report = second.publish(&plan, &world.owners()).expect("published");
        assert_eq!((report.flipped.len(), report.addresses_written, report.rulesets_written), (0, 0, 0));
        drop(second);

        remove_all(&world.config().pin_dir).expect("removed");
        assert!(!world.config().pin_dir.exists());
        assert!(!world.open().is_adopted());
    });
}

#[test]
fn a_pin_that_someone_removed_is_made_again() {
    if !require_root() {
        return;
    }
    let world = World::new();
    world.run(|| {
        let mut datapath = world.open();
        let pin = world.config().pin_dir.join("v1/links").join(format!("{}-ingress", world.ifindex("server")));
        std::fs::remove_file(&pin).expect("the link is pinned");
        let faults = datapath.verify();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].problem, Problem::PinRemoved);
        assert!(faults[0].unhealed.is_none() && pin.exists());
        assert_eq!(datapath.verify().len(), 0);
    });
}

#[test]
fn a_program_that_comes_before_ours_is_put_behind_it_again() {
    if !require_root() {
        return;
    }
    let world = World::new();
    let elsewhere = BpfFs::new().expect("a BPF file system");
    world.run(|| {
        let mut ours = world.open();
        let config = DatapathConfig { pin_dir: elsewhere.pin_dir(), ..world.config() };
        let mut other = Datapath::open(&config).expect("another engine");
        let server = &world.links[&pod("server")];
        other.enroll(server).expect("it takes first place");
        for round in 0..3 {
            let faults = ours.verify();
            assert_eq!(faults.len(), 2, "round {round}: both hooks: {faults:?}");
            for fault in faults {
                assert!(matches!(&fault.problem, Problem::NotFirst(links) if links.len() == 1), "{fault}");
                assert!(fault.unhealed.is_none(), "{fault}");
            }
            assert_eq!(ours.verify().len(), 0, "first again");
            assert_eq!(other.verify().len(), 2, "and the other is no longer");
        }
        let faults = ours.verify();
        assert!(faults.iter().all(|fault| matches!(fault.problem, Problem::Contested(_))), "{faults:?}");
        assert_eq!(faults.len(), 2);
        drop(other);
        remove_all(&config.pin_dir).expect("the other engine is removed");
        // The kernel lets go of a link some time after its last pin.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !ours.verify().is_empty() {
            assert!(Instant::now() < deadline, "the other engine's links are still there");
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn an_interface_that_went_while_no_agent_ran_leaves_nothing() {
    if !require_root() {
        return;
    }
    let mut world = World::new();
    let gone = world.ifindex("stranger");
    world.run(|| {
        let mut datapath = world.open();
        datapath.publish(&world.plan(port(8080)), &world.owners()).expect("published");
    });
    world.node.remove_pod(&pod("stranger")).expect("removed");
    world.links.remove(&pod("stranger"));
    world.run(|| {
        let datapath = world.open();
        assert!(datapath.is_adopted());
        assert_eq!(datapath.endpoint_of(gone), None);
        assert!(!datapath.interfaces().contains(&gone));
        let pins = std::fs::read_dir(world.config().pin_dir.join("v1/links")).expect("the pins");
        assert_eq!(pins.count(), 2 * (PODS.len() - 1));
    });
}

#[test]
fn an_impostor_under_the_name_of_a_map_is_refused_and_left_alone() {
    if !require_root() {
        return;
    }
    let world = World::new();
    world.run(|| {
        drop(world.open());
        let layout = world.config().pin_dir.join("v1");
        std::fs::remove_file(layout.join("RULESETS")).expect("the map is pinned");
        std::fs::rename(layout.join("CONFIG"), layout.join("RULESETS")).expect("renamed");
        let error = Datapath::open(&world.config()).expect_err("an impostor").to_string();
        assert!(error.contains("RULESETS") && error.contains("expected 2048"), "{error}");
        assert!(layout.join("RULESETS").exists());
    });
}

#[test]
fn another_layout_is_refused_and_left_alone() {
    if !require_root() {
        return;
    }
    let world = World::new();
    world.run(|| {
        drop(world.open());
        let newer = world.config().pin_dir.join("v2");
        std::fs::create_dir(&newer).expect("a directory");
        let error = Datapath::open(&world.config()).expect_err("another layout").to_string();
        assert!(error.contains("holds v2"), "{error}");
        assert!(newer.exists());
    });
}

#[test]
fn an_interrupted_start_leaves_nothing_that_counts() {
    if !require_root() {
        return;
    }
    let world = World::new();
    world.run(|| {
        drop(world.open());
        let pin_dir = world.config().pin_dir;
        remove_all(&pin_dir).expect("removed");
        std::fs::create_dir_all(pin_dir.join("v1-new/links")).expect("an unfinished start");
        let datapath = world.open();
        assert!(!datapath.is_adopted());
        assert!(!pin_dir.join("v1-new").exists());
    });
}
