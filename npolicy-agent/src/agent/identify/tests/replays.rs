//! What happens to nodes, in every order in which it may be heard of.

use super::world::{World, addresses, blocks, pod, stale};
use crate::agent::identify::Identifier;
use crate::model::Pod;

/// A step of a replay.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Pod a's object goes.
    Deleted,
    /// Pod a's interface goes.
    Gone,
    /// Pod b's interface comes, with the address that a had.
    Came,
    /// Pod b's object lists the address.
    Listed,
}

/// Every order of four steps.
fn orders() -> Vec<[Step; 4]> {
    let steps = [Step::Deleted, Step::Gone, Step::Came, Step::Listed];
    let mut orders = Vec::new();
    for a in 0..4 {
        for b in (0..4).filter(|&b| b != a) {
            for c in (0..4).filter(|&c| c != a && c != b) {
                orders.push([a, b, c, 6 - a - b - c].map(|at: usize| steps[at]));
            }
        }
    }
    orders
}

fn replay(order: [Step; 4], is_bridged: bool) {
    let mut world = World::new();
    let add = |world: &mut World, ifindex| {
        if is_bridged {
            world.port(ifindex, "10.1.0.5");
        } else {
            world.veth(ifindex, "10.1.0.5");
        }
    };
    add(&mut world, 7);
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    world.upsert(pod("b", ""));
    let position = |wanted: fn(&Step) -> bool| order.iter().position(wanted).expect("each step is taken");
    let is_heard_early = position(|step| matches!(step, Step::Listed)) < position(|step| matches!(step, Step::Came));
    for step in order {
        match step {
            Step::Deleted => world.delete("a"),
            Step::Gone => drop(world.links.host.remove(&7)),
            Step::Came => {
                add(&mut world, 8);
                if !is_bridged && let Some(old) = world.links.host.get_mut(&7) {
                    old.routes.clear();
                }
            }
            Step::Listed => world.upsert(pod("b", "10.1.0.5")),
        }
        let decided = world.decide();
        assert!(!decided.contains("8 a,") && !decided.ends_with("8 a"), "{order:?}: {decided}");
        assert!(!decided.contains("7 b"), "{order:?}: {decided}");
    }
    // Whoever listed the address before there was an interface with it has to say so again.
    if is_heard_early {
        world.check("8 b?");
        world.upsert(Pod { sandbox: Some(jiff::Timestamp::constant(5000, 0)), ..pod("b", "10.1.0.5") });
    }
    world.check("8 b");
}

#[test]
fn an_address_that_is_given_on_at_once_takes_no_pods_policy_along() {
    assert_eq!(orders().len(), 24);
    for order in orders() {
        replay(order, false);
        replay(order, true);
    }
}

#[test]
fn a_new_sandbox_of_the_same_pod_is_followed_to_its_new_interface() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.upsert(pod("other", ""));
    world.check("7 a");
    world.links.host.remove(&7);
    world.veth(8, "10.1.0.6");
    world.check("8 a|other?");
    world.upsert(pod("a", "10.1.0.6"));
    world.check("8 a");
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    // Deleted by force and made again: the first one's interface is still there.
    world.delete("a");
    let again = pod("a", "");
    let age = crate::model::Age { uid: "another".into(), ..again.age.clone() };
    let again = Pod { age, ..again };
    world.upsert(again.clone());
    world.check("7 ?");
    world.veth(8, "10.1.0.6");
    world.check("7 ?, 8 a?");
    world.upsert(Pod { addresses: addresses("10.1.0.6"), ..again });
    world.check("7 ?, 8 a");
}

#[test]
fn a_pod_that_has_finished_leaves_its_interface_to_nobody() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    world.upsert(Pod { phase: crate::model::Phase::Failed, ..pod("a", "10.1.0.5") });
    world.upsert(pod("b", ""));
    world.check("7 ?");
}

#[test]
fn a_status_without_addresses_takes_none_away() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    world.upsert(pod("a", ""));
    world.check("7 a");
    world.upsert(pod("a", "10.1.0.9"));
    world.check("7 ?");
}

/// After a reboot both objects list the other's new address; what the kubelet says then comes one pod at a time.
#[test]
fn two_pods_that_swap_addresses_over_a_reboot_are_told_apart() {
    for b_first in [false, true] {
        let mut world = World::starting();
        world.upsert(stale("a", "10.1.0.5"));
        world.upsert(stale("b", "10.1.0.6"));
        world.check("");
        world.is_first_pass = false;
        world.veth(7, "10.1.0.6"); // a's
        world.veth(8, "10.1.0.5"); // b's
        world.check("7 a|b?, 8 a|b?");
        let (one, other) = (pod("a", "10.1.0.6"), pod("b", "10.1.0.5"));
        if b_first {
            world.upsert(other);
            world.check("7 a?, 8 b");
            world.upsert(one);
        } else {
            world.upsert(one);
            world.check("7 a, 8 b?");
            world.upsert(other);
        }
        world.check("7 a, 8 b");
        world.check_told(&[]);
    }
}

/// The same for an agent that starts after the sandboxes did, while the objects still list the old addresses.
#[test]
fn stale_addresses_at_the_start_make_candidates_only() {
    let mut world = World::starting();
    world.veth(7, "10.1.0.6"); // a's
    world.veth(8, "10.1.0.5"); // b's
    world.upsert(stale("a", "10.1.0.5"));
    world.upsert(stale("b", "10.1.0.6"));
    world.check("7 a|b?, 8 a|b?");
    world.is_first_pass = false;
    world.upsert(pod("a", "10.1.0.6"));
    world.check("7 a, 8 b?");
    world.upsert(pod("b", "10.1.0.5"));
    world.check("7 a, 8 b");
}

#[test]
fn a_restarted_agent_decides_what_the_last_one_did() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5 fd00:1::5");
    world.port(8, "10.1.0.6");
    world.upsert(pod("a", "10.1.0.5 fd00:1::5"));
    world.upsert(pod("b", "10.1.0.6"));
    world.check("7 a, 8 b");
    world.identifier = Identifier::new("n1");
    world.is_first_pass = true;
    world.lines = [(7, addresses("10.1.0.5 fd00:1::5")), (8, addresses("10.1.0.6"))].into();
    // Nothing was sent for long.
    world.link(8).forwarding = crate::watch::links::Forwarding::Unknown;
    world.upsert(stale("b", "10.1.0.6"));
    world.upsert(stale("a", "10.1.0.5 fd00:1::5"));
    world.check("7 a, 8 b");
    world.link(7).routes = blocks("fd00:1::5/128");
    world.check("7 a, 8 b");
}
