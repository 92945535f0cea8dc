//! One rule each.

use std::time::Duration;

use super::world::{World, addresses, blocks, key, pod, stale};
use crate::agent::identify::{Finding, Foreign};
use crate::model::{Event, Object, Phase, Pod, PodNetwork, Severity};
use crate::watch::links::{Bridge, Forwarding, Unenforceable};

#[test]
fn a_young_address_with_its_route_is_the_pods() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5 fd00:1::5");
    world.upsert(pod("a", "10.1.0.5 fd00:1::5"));
    world.check("7 a");
    world.check_told(&[]);
}

#[test]
fn a_young_address_with_its_forwarding_entry_is_the_pods() {
    let mut world = World::new();
    world.port(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
}

#[test]
fn one_fact_alone_makes_a_candidate() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5").routes.clear();
    world.port(8, "10.1.0.6").forwarding = Forwarding::Unknown;
    world.upsert(pod("a", "10.1.0.5"));
    world.upsert(pod("b", "10.1.0.6"));
    world.check("7 a?, 8 b?");
    world.link(7).routes = blocks("10.1.0.5/32");
    world.link(8).forwarding = Forwarding::Here;
    world.check("7 a, 8 b");
    // Entries age, and routes go before interfaces do.
    world.link(7).routes.clear();
    world.link(8).forwarding = Forwarding::Unknown;
    world.check("7 a, 8 b");
}

#[test]
fn a_route_to_a_whole_prefix_agrees_too() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5").routes = blocks("10.1.0.0/28");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
}

#[test]
fn swapped_routes_are_a_fault_and_no_guess() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5").routes = blocks("10.1.0.6/32");
    world.veth(8, "10.1.0.6").routes = blocks("10.1.0.5/32");
    world.upsert(pod("a", "10.1.0.5"));
    world.upsert(pod("b", "10.1.0.6"));
    world.check("7 !, 8 !");
    world.check_told(&["veth7: its peer has 10.1.0.5, but the node's route to it leads out of veth8", "veth8"]);
    world.link(7).routes = blocks("10.1.0.5/32");
    world.link(8).routes = blocks("10.1.0.6/32");
    world.check("7 a, 8 b");
    world.check_told(&[]);
    // Also after they were identified.
    world.link(7).routes = blocks("10.1.0.6/32");
    world.link(8).routes = blocks("10.1.0.5/32");
    world.check("7 !, 8 !");
}

#[test]
fn an_address_that_a_pod_adds_makes_nobody_doubt_whose_its_interface_is() {
    for is_restarted in [false, true] {
        let mut world = if is_restarted { World::starting() } else { World::new() };
        world.veth(7, "10.1.0.5");
        world.veth(8, "10.1.0.6");
        if is_restarted {
            world.lines.extend([(7, addresses("10.1.0.5")), (8, addresses("10.1.0.6"))]);
        }
        world.upsert(pod("a", "10.1.0.5"));
        world.upsert(pod("b", "10.1.0.6"));
        if !is_restarted {
            world.check("7 a, 8 b");
        }
        world.link(7).addresses = addresses("10.1.0.5 10.1.0.6");
        world.check("7 a, 8 b");
    }
}

#[test]
fn a_port_where_the_peer_was_not_seen_is_a_fault() {
    let mut world = World::new();
    world.port(7, "10.1.0.5").forwarding = Forwarding::Elsewhere(8);
    world.port(8, "");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 !, 8 ?");
    world.check_told(&["veth7: its bridge has seen its peer's link-layer address at port veth8"]);
}

#[test]
fn a_neighbour_that_sends_under_a_pods_link_layer_address_does_not_close_the_pod() {
    let mut world = World::new();
    world.port(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    world.link(7).forwarding = Forwarding::Elsewhere(8);
    world.check("7 a");
    world.check_told(&["at port interface 8"]);
}

#[test]
fn an_address_learned_before_the_interface_makes_a_candidate() {
    let mut world = World::new();
    world.upsert(pod("a", "10.1.0.5"));
    world.veth(7, "10.1.0.5");
    world.check("7 a?");
    // The kubelet tells of the pod's new sandbox, which got the same address.
    world.upsert(Pod { sandbox: Some(jiff::Timestamp::constant(5000, 0)), ..pod("a", "10.1.0.5") });
    world.check("7 a");
}

#[test]
fn an_update_without_news_of_the_sandbox_does_not_make_an_address_younger() {
    let mut world = World::new();
    world.upsert(pod("a", "10.1.0.5"));
    world.veth(7, "10.1.0.5");
    world.upsert(Pod { phase: Phase::Unknown, ..pod("a", "10.1.0.5") });
    world.check("7 a?");
}

#[test]
fn at_the_start_a_sandbox_of_this_boot_proves_an_address() {
    let mut world = World::starting();
    world.veth(7, "10.1.0.5");
    world.veth(8, "10.1.0.6");
    world.veth(9, "10.1.0.7");
    world.upsert(pod("a", "10.1.0.5"));
    world.upsert(stale("b", "10.1.0.6"));
    world.upsert(Pod { sandbox: None, ..pod("c", "10.1.0.7") });
    world.check("7 a, 8 b|c?, 9 b|c?");
}

#[test]
fn a_pinned_line_proves_an_address() {
    let mut world = World::starting();
    world.veth(7, "10.1.0.5").routes.clear();
    world.lines.insert(7, addresses("10.1.0.5"));
    world.upsert(stale("a", "10.1.0.5"));
    world.check("7 a");
}

#[test]
fn an_interface_that_came_after_the_first_listing_is_not_proven_by_it() {
    let mut world = World::starting();
    world.upsert(pod("a", "10.1.0.5"));
    world.veth(7, "10.1.0.5");
    world.check("7 a?");
}

#[test]
fn without_a_claim_every_pod_without_an_interface_is_a_candidate() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.upsert(pod("b", ""));
    world.upsert(pod("c", ""));
    world.upsert(Pod { network: PodNetwork::Host, ..pod("host", "") });
    world.upsert(Pod { phase: Phase::Succeeded, ..pod("done", "") });
    world.upsert(Pod { node: Some("n2".into()), ..pod("elsewhere", "") });
    world.veth(8, "10.1.0.6");
    world.veth(9, "");
    world.check("7 a, 8 b|c?, 9 ?");
    world.upsert(pod("b", "10.1.0.6"));
    world.check("7 a, 8 b, 9 ?");
    world.link(9).addresses = addresses("10.1.0.7");
    world.check("7 a, 8 b, 9 c?");
}

#[test]
fn an_interface_that_is_newer_than_the_last_word_of_pods_has_no_candidates() {
    let mut world = World::new();
    world.upsert(pod("a", ""));
    world.is_live = false;
    world.known_at = Some(world.now());
    // Whose it is was perhaps created after that word, and scheduled here.
    world.veth(7, "10.1.0.5");
    world.check("7 ?");
    world.known_at = Some(world.now());
    world.check("7 a?");
}

#[test]
fn a_silent_api_server_leaves_no_candidates() {
    let mut world = World::new();
    world.upsert(pod("a", ""));
    world.veth(7, "10.1.0.5");
    world.is_live = false;
    world.check("7 ?");
}

#[test]
fn candidates_are_in_doubt_as_soon_as_the_api_server_is_silent() {
    let mut world = World::new();
    world.upsert(pod("a", ""));
    world.veth(7, "10.1.0.5");
    world.check("7 a?");
    assert!(world.pass().again_at.is_some(), "nobody tells of silence");
    world.is_live = false;
    world.check("7 -");
    world.check("7 -");
    world.is_live = true;
    world.check("7 a?");
    world.upsert(pod("b", "10.1.0.5"));
    world.is_live = false;
    world.check("7 b");
}

#[test]
fn what_was_a_pods_before_the_agents_start_has_no_candidates() {
    let mut world = World::starting();
    world.lines.insert(7, addresses("10.1.0.5"));
    world.veth(7, "10.1.0.5");
    world.upsert(pod("pending", ""));
    world.check("7 ?");
    world.is_first_pass = false;
    world.check("7 ?");
}

#[test]
fn a_pod_in_the_nodes_namespace_owns_nothing() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.upsert(Pod { network: PodNetwork::Host, ..pod("host", "10.1.0.5") });
    world.check("7 ?");
}

#[test]
fn an_address_of_another_nodes_pod_names_nobody_here() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.upsert(Pod { node: Some("n2".into()), ..pod("elsewhere", "10.1.0.5") });
    world.check("7 ?");
}

#[test]
fn an_address_once_seen_stays_until_the_interface_goes() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.check("7 ?");
    // gVisor takes it away before the API tells of it.
    world.link(7).addresses.clear();
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    world.links.host.remove(&7);
    world.check("");
    world.veth(7, "").routes = blocks("10.1.0.5/32");
    world.check("7 ?");
}

#[test]
fn of_several_interfaces_the_one_with_the_listed_address_is_the_pods() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.veth(8, "172.30.0.5").netns_id = 7;
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a, 8 foreign");
    let second = Foreign::SecondOf(key("a"));
    let findings = world.identifier.findings();
    assert!(findings.contains(&Finding::Foreign { interface: "veth8".into(), reason: second }), "{findings:?}");
}

#[test]
fn a_second_interface_in_the_pod_ranges_is_foreign_only_beside_the_first() {
    let mut world = World::new();
    world.veth(8, "10.1.0.77").netns_id = 7;
    world.check("8 ?");
    world.veth(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a, 8 foreign");
}

#[test]
fn an_interface_stays_the_pods_whatever_else_is_on_it() {
    let mut world = World::new();
    world.port(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    world.port(8, "10.1.0.6");
    world.upsert(pod("b", "10.1.0.6"));
    // Pod a takes b's address, too.
    world.link(7).addresses = addresses("10.1.0.5 10.1.0.6");
    world.check("7 a, 8 b");
    // So it is for an agent that starts now and finds the lines of the last one.
    let mut restarted = World::starting();
    restarted.links = world.links.clone();
    restarted.lines = [(7, addresses("10.1.0.5")), (8, addresses("10.1.0.6"))].into();
    restarted.wait(100);
    restarted.upsert(pod("a", "10.1.0.5"));
    restarted.upsert(pod("b", "10.1.0.6"));
    restarted.check("7 a, 8 b");
    // Without them nobody knows, and what nobody knows is closed: else a pod could choose to be judged by nothing.
    restarted.identifier = crate::agent::identify::Identifier::new("n1");
    restarted.lines.clear();
    restarted.upsert(pod("a", "10.1.0.5"));
    restarted.upsert(pod("b", "10.1.0.6"));
    restarted.check("7 !, 8 b");
    restarted.check_told(&["veth7: its addresses belong to several pods: shop/a, shop/b"]);
}

#[test]
fn an_address_on_two_interfaces_is_nobodys() {
    let mut world = World::new();
    world.port(7, "10.1.0.5");
    world.port(8, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 !, 8 !");
    world.check_told(&["veth7: its peer has 10.1.0.5, and so has another", "veth8"]);
}

#[test]
fn of_two_young_claims_the_newer_sandbox_has_the_address() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    let started = |seconds, pod: Pod| {
        let age = crate::model::Age { started: Some(jiff::Timestamp::constant(seconds, 0)), ..pod.age.clone() };
        Pod { age, ..pod }
    };
    world.upsert(started(2001, pod("a", "10.1.0.5")));
    world.upsert(started(2000, pod("b", "10.1.0.5")));
    world.check("7 a");
}

#[test]
fn a_young_claim_goes_before_an_older_one_of_a_newer_sandbox() {
    let mut world = World::new();
    let newer = pod("a", "10.1.0.5");
    let age = crate::model::Age { started: Some(jiff::Timestamp::constant(9000, 0)), ..newer.age.clone() };
    world.upsert(Pod { age, ..newer });
    world.veth(7, "10.1.0.5");
    world.upsert(pod("b", "10.1.0.5"));
    world.check("7 b");
}

#[test]
fn the_second_family_may_come_late() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    world.link(7).addresses = addresses("10.1.0.5 fd00:1::5");
    world.check("7 a");
    world.upsert(pod("a", "10.1.0.5 fd00:1::5"));
    world.check("7 a");
    world.link(7).routes = blocks("10.1.0.5/32 fd00:1::5/128");
    world.check("7 a");
    world.check_told(&[]);
}

#[test]
fn an_interface_that_leads_nowhere_near_pods_is_foreign() {
    let mut world = World::new();
    // The uplink of a node that is itself a container; the gateway's address on a pod's interface is none of the node's.
    world.veth(3, "172.18.0.9").host_addresses = addresses("192.168.0.1");
    world.veth(4, "172.18.0.1").routes = blocks("0.0.0.0/0");
    world.veth(5, "172.17.0.2").routes.clear();
    world.link(5).bridge = Some(99);
    world.link(5).host_addresses.clear();
    let routes = blocks("172.17.0.0/16");
    world.links.bridges.insert(99, Bridge { name: "docker0".into(), addresses: addresses("172.17.0.1"), routes });
    world.veth(6, "10.1.0.4");
    world.exclude = vec!["veth6".into()];
    world.veth(7, "10.1.0.5");
    world.upsert(pod("a", "10.1.0.5"));
    world.upsert(pod("b", ""));
    world.check("3 foreign, 4 foreign, 5 foreign, 6 foreign, 7 a");
    world.check_told(&[
        "veth3 is left alone: it has the node's address 192.168.0.1",
        "veth4 is left alone: the node's default route",
        "veth5 is left alone: it leads only outside",
        "veth6 is left alone: --exclude-interfaces",
    ]);
    assert!(world.identifier.findings().iter().all(|finding| finding.severity() == Severity::Note));
}

#[test]
fn without_pod_ranges_no_bridge_is_foreign() {
    let mut world = World::new();
    let node = crate::model::Node {
        name: "n1".into(),
        labels: crate::model::Labels::default(),
        addresses: addresses("192.168.0.1"),
        pod_cidrs: Vec::new(),
    };
    world.event(Event::Upsert(Object::Node(node)));
    world.veth(5, "172.17.0.2").routes = blocks("172.17.0.2/32");
    world.check("5 ?");
    world.pod_cidrs = blocks("10.1.0.0/16");
    world.link(5).host_addresses.clear();
    world.check("5 foreign");
    // A pod's address outside the ranges makes it a pod's all the same.
    world.upsert(pod("a", "172.17.0.2"));
    world.check("5 a");
}

#[test]
fn what_is_a_pods_is_not_foreign_unless_it_is_excluded() {
    let mut world = World::new();
    // Some plugins put the node's address on every pod's interface.
    world.veth(7, "10.1.0.5").host_addresses = addresses("192.168.0.1");
    world.check("7 foreign");
    world.upsert(pod("a", "10.1.0.5"));
    world.check("7 a");
    // What a pod makes of its interface's other end does not free it, nor does its own end.
    world.link(7).routes = blocks("0.0.0.0/0 10.1.0.5/32");
    world.check("7 a");
    world.delete("a");
    world.check("7 ?");
    world.exclude = vec!["veth7".into()];
    world.check("7 foreign");
}

#[test]
fn a_pod_without_an_interface_is_told_of_after_a_while() {
    let mut world = World::new();
    world.upsert(pod("a", "10.1.0.5"));
    world.upsert(pod("b", "10.1.0.6"));
    world.upsert(pod("pending", ""));
    world.links.unenforceable.push(Unenforceable {
        netns_id: 5,
        name: "eth0".into(),
        kind: "macvlan".into(),
        addresses: addresses("10.1.0.6"),
    });
    let early = world.pass();
    world.check_told(&[]);
    assert!(early.again_at.is_some());
    world.wait(6);
    assert_eq!(world.pass().news.len(), 2);
    world.check_told(&["pod shop/a: 10.1.0.5 is on no veth", "pod shop/b: its interface eth0 is a macvlan"]);
    // Once is enough.
    assert_eq!(world.pass().news, []);
    world.delete("a");
    world.delete("b");
    world.pass();
    world.check_told(&[]);
}

#[test]
fn an_interface_without_a_pod_is_told_of_after_a_while() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5");
    let early = world.pass();
    assert_eq!(early.again_at, Some(world.link(7).first_seen + Duration::from_secs(5)));
    world.check_told(&[]);
    world.wait(6);
    let late = world.pass();
    assert_eq!((late.news.len(), late.again_at), (1, None));
    world.check_told(&["veth7: no pod of this node is known to have 10.1.0.5"]);
}

#[test]
fn another_engine_is_named() {
    let mut world = World::new();
    world.veth(7, "10.1.0.5").engines = vec!["a filter of `clsact` (bpf cil_from_container, in)".into()];
    world.pass();
    world.check_told(&["veth7: a filter of `clsact` (bpf cil_from_container, in) is on it"]);
}
