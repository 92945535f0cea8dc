//! Packets through the programs in the kernel, one by one.

use std::net::IpAddr;
use std::sync::Arc;

use npolicy_agent::compile::{Accepts, Bundle, Plan, Ruleset};
use npolicy_agent::datapath::Datapath;
use npolicy_common::{Class, Direction, EventState, Protocol, Reason, Verdict};
use npolicy_tests::require_root;

use crate::packet::{ACK, Packet, SYN_ACK};
use crate::world::{World, pod, port};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Runs `test` in the node's namespace with a datapath that has published a plan.
fn with_plan(plan: impl FnOnce(&World) -> Plan + Send, test: impl FnOnce(&World, &mut Datapath) + Send) {
    if !require_root() {
        return;
    }
    let world = World::new();
    world.run(|| {
        let mut datapath = world.open();
        datapath.publish(&plan(&world), &world.owners()).expect("published");
        datapath.identify_from_now_on().expect("the time of the unidentified is over");
        datapath.settle().expect("settled");
        datapath.events();
        test(&world, &mut datapath);
    });
}

/// What the program at `owner`'s interface says about a packet that came into the node by interface `via`.
#[track_caller]
fn judge(world: &World, datapath: &Datapath, owner: &str, direction: Direction, packet: Packet, via: u32) -> Verdict {
    let ifindex = world.ifindex(owner);
    let run = datapath.test_run(direction, &packet.frame(), ifindex, via, 1).expect("a run");
    match run.answer.cast_signed() {
        // TC_ACT_UNSPEC: the next program decides.
        -1 => Verdict::Accept,
        // TC_ACT_SHOT.
        2 => Verdict::Deny,
        other => panic!("answer {other}"),
    }
}

#[track_caller]
fn arrive(world: &World, datapath: &Datapath, from: &str, packet: Packet) -> Verdict {
    judge(world, datapath, "server", Direction::Ingress, packet, world.ifindex(from))
}

#[track_caller]
fn leave(world: &World, datapath: &Datapath, packet: Packet) -> Verdict {
    let mac = world.links[&pod("server")].peer_mac;
    let ifindex = world.ifindex("server");
    judge(world, datapath, "server", Direction::Egress, Packet { mac, ..packet }, ifindex)
}

fn request(world: &World, from: &str, is_v4: bool, protocol: Protocol, ports: [u16; 2]) -> Packet {
    Packet::new(world.address(from, is_v4), world.address("server", is_v4), protocol, ports)
}

fn echo(world: &World, from: &str, is_v4: bool, id: u16) -> Packet {
    let (protocol, kind) = if is_v4 { (Protocol::ICMP, 8) } else { (Protocol::ICMPV6, 128) };
    request(world, from, is_v4, protocol, [kind, id])
}

/// [`World::plan`], with a server that may open nothing itself.
fn closed_plan(world: &World, from_friend: Bundle) -> Plan {
    let mut plan = world.plan(from_friend);
    plan.subjects.get_mut(&pod("server")).expect("the server").egress =
        Arc::new(Ruleset::isolated(Direction::Egress, Vec::<Accepts>::new()));
    plan
}

#[test]
fn accepts_what_the_plan_accepts_and_nothing_else() {
    with_plan(
        |world| world.plan(port(8080)),
        |world, datapath| {
            for is_v4 in [true, false] {
                for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                    for (from, to_port, expected) in [
                        ("friend", 8080, Verdict::Accept),
                        ("friend", 8081, Verdict::Deny),
                        ("friend", 8079, Verdict::Deny),
                        ("stranger", 8080, Verdict::Deny),
                        ("other", 8080, Verdict::Deny),
                    ] {
                        let packet = request(world, from, is_v4, protocol, [40_000, to_port]);
                        assert_eq!(arrive(world, datapath, from, packet), expected, "{packet:?}");
                    }
                }
                assert_eq!(arrive(world, datapath, "friend", echo(world, "friend", is_v4, 7)), Verdict::Deny);
            }
        },
    );
}

#[test]
fn accepts_echo_where_every_protocol_is_accepted() {
    with_plan(
        |world| closed_plan(world, Bundle::everything()),
        |world, datapath| {
            for is_v4 in [true, false] {
                let asked = echo(world, "friend", is_v4, 7);
                let answer = |id| {
                    let kind = if is_v4 { 0 } else { 129 };
                    Packet { from: asked.to, to: asked.from, numbers: [kind, id], ..asked }
                };
                assert_eq!(leave(world, datapath, answer(7)), Verdict::Deny, "nobody has asked yet");
                assert_eq!(arrive(world, datapath, "friend", asked), Verdict::Accept);
                assert_eq!(leave(world, datapath, answer(7)), Verdict::Accept);
                assert_eq!(leave(world, datapath, answer(8)), Verdict::Deny, "the answer to another question");
                assert_eq!(arrive(world, datapath, "stranger", echo(world, "stranger", is_v4, 7)), Verdict::Deny);
            }
        },
    );
}

#[test]
fn answers_pass_where_nothing_may_be_opened() {
    with_plan(
        |world| closed_plan(world, port(8080)),
        |world, datapath| {
            for is_v4 in [true, false] {
                for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                    let asked = request(world, "friend", is_v4, protocol, [40_001, 8080]);
                    assert_eq!(arrive(world, datapath, "friend", asked), Verdict::Accept);
                    assert_eq!(leave(world, datapath, asked.answer(SYN_ACK)), Verdict::Accept, "{asked:?}");
                    assert_eq!(arrive(world, datapath, "friend", asked.flags(ACK)), Verdict::Accept);
                    let other_port = Packet { numbers: [8080, 40_002], ..asked.answer(SYN_ACK) };
                    assert_eq!(leave(world, datapath, other_port), Verdict::Deny, "an answer that nobody waits for");
                    let own = Packet::new(asked.to, asked.from, protocol, [50_000, 8080]);
                    assert_eq!(leave(world, datapath, own), Verdict::Deny, "a connection of the server's own");
                }
            }
        },
    );
}

#[test]
fn a_policy_change_cuts_running_flows_and_spares_the_others() {
    with_plan(
        |world| closed_plan(world, port(8080)),
        |world, datapath| {
            let flows: Vec<Packet> = [true, false]
                .iter()
                .flat_map(|&v4| [Protocol::TCP, Protocol::UDP].map(|p| request(world, "friend", v4, p, [40_003, 8080])))
                .collect();
            for &flow in &flows {
                assert_eq!(arrive(world, datapath, "friend", flow), Verdict::Accept);
                assert_eq!(leave(world, datapath, flow.answer(SYN_ACK)), Verdict::Accept);
            }
            let owners = world.owners();
            let mut wider = port(8080);
            wider.add(&port(9090));
            assert_eq!(datapath.publish(&closed_plan(world, wider), &owners).expect("published").flipped.len(), 1);
            for &flow in &flows {
                assert_eq!(leave(world, datapath, flow.answer(ACK)), Verdict::Accept, "a reply judges its flow again");
                assert_eq!(arrive(world, datapath, "friend", flow.flags(ACK)), Verdict::Accept);
            }
            datapath.publish(&closed_plan(world, port(9090)), &owners).expect("published");
            for _ in 0..2 {
                for &flow in &flows {
                    assert_eq!(leave(world, datapath, flow.answer(ACK)), Verdict::Deny, "{flow:?}");
                    assert_eq!(arrive(world, datapath, "friend", flow.flags(ACK)), Verdict::Deny, "{flow:?}");
                }
                datapath.settle().expect("settled");
            }
        },
    );
}

#[test]
fn the_node_itself_reaches_every_pod_but_nobody_else_in_its_name() {
    with_plan(
        |world| world.plan(Bundle::nothing()),
        |world, datapath| {
            for node in world.node.addresses() {
                let server = world.address("server", node.is_ipv4());
                let probe = Packet::new(node, server, Protocol::TCP, [40_004, 8080]);
                let elsewhere = Packet { numbers: [40_005, 8080], ..probe };
                let via = world.ifindex("stranger");
                let judged = |packet, via| judge(world, datapath, "server", Direction::Ingress, packet, via);
                assert_eq!(judged(elsewhere, via), Verdict::Deny, "the node's address, but not its packet");
                assert_eq!(judged(probe, 0), Verdict::Accept);
                assert_eq!(judged(probe, via), Verdict::Deny, "the tuple of a probe, but not its packet");
            }
            let stranger = request(world, "stranger", true, Protocol::TCP, [40_006, 8080]);
            assert_eq!(judge(world, datapath, "server", Direction::Ingress, stranger, 0), Verdict::Deny);
        },
    );
}

#[test]
fn every_verdict_is_counted_once_and_denials_are_reported() {
    with_plan(
        |world| world.plan(port(8080)),
        |world, datapath| {
            let before = datapath.counters().expect("counters");
            let denied = request(world, "stranger", true, Protocol::TCP, [40_007, 8080]);
            assert_eq!(arrive(world, datapath, "stranger", denied), Verdict::Deny);
            let accepted = request(world, "friend", false, Protocol::UDP, [40_008, 8080]);
            for _ in 0..3 {
                assert_eq!(arrive(world, datapath, "friend", accepted), Verdict::Accept);
            }
            let expected = [(Reason::Policy, 1), (Reason::NewFlow, 1), (Reason::Flow, 2)];
            let server = world.ifindex("server");
            for (before, after) in before.iter().zip(datapath.counters().expect("counters")) {
                assert_eq!((before.ifindex, before.direction), (after.ifindex, after.direction));
                let is_judged = (after.ifindex, after.direction) == (server, Direction::Ingress);
                for &reason in Reason::ALL {
                    let at = reason as usize;
                    let moved = expected.iter().find(|&&(expected, _)| is_judged && expected == reason);
                    let what = format!("{reason:?} of interface {}", after.ifindex);
                    assert_eq!(after.row[at] - before.row[at], moved.map_or(0, |&(_, by)| by), "{what}");
                }
            }
            let [event] = datapath.events()[..] else { panic!("one event") };
            let (endpoint, word) = datapath.endpoint_of(server).expect("a line");
            assert_eq!((event.ifindex, event.endpoint), (server, endpoint));
            assert_eq!((event.generation, event.ruleset), (word.generation(), word.ruleset(Direction::Ingress).0));
            assert_eq!((event.reason, event.direction, event.state), (Reason::Policy as u8, 0, EventState::NEW));
            assert_eq!((event.protocol, event.remote_port, event.local_port), (6, 40_007, 8080));
            assert_eq!(event.class, Class::PLAIN.0);
            let IpAddr::V4(stranger) = denied.from else { panic!("IPv4 was asked for") };
            assert_eq!(event.remote[..4], stranger.octets());
        },
    );
}

#[test]
fn a_pod_that_is_not_identified_is_open_until_its_time_is_over() {
    if !require_root() {
        return;
    }
    let world = World::new();
    world.run(|| {
        let mut datapath = world.open();
        let packet = request(&world, "friend", true, Protocol::TCP, [40_009, 8080]);
        assert_eq!(arrive(&world, &datapath, "friend", packet), Verdict::Accept);
        assert!(datapath.accepts_unidentified());
        datapath.identify_from_now_on().expect("the time is over");
        assert_eq!(arrive(&world, &datapath, "friend", packet.flags(ACK)), Verdict::Deny, "judged again");
        drop(datapath);
        let datapath = world.open();
        assert!(!datapath.accepts_unidentified(), "a restart does not open it again");
        assert_eq!(arrive(&world, &datapath, "friend", packet), Verdict::Deny);
    });
}

#[test]
fn an_interface_without_a_line_is_closed() {
    with_plan(
        |world| world.plan(Bundle::everything()),
        |world, datapath| {
            datapath.retire(world.ifindex("server")).expect("retired");
            for direction in DIRECTIONS {
                let packet = request(world, "friend", true, Protocol::TCP, [40_010, 8080]);
                let via = world.ifindex("friend");
                assert_eq!(judge(world, datapath, "server", direction, packet, via), Verdict::Deny);
            }
        },
    );
}
