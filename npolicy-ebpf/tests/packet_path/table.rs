//! The flow table as a table: which flows share a bucket, and who is told apart from whom in it.

use std::collections::BTreeMap;

use npolicy_common::{Direction, EndpointLine, EndpointWord, Reason, RulesetId, timeouts};
use npolicy_ebpf::host::{Builder, HostFrame};

use crate::net::{ENDPOINT, Family, Net, both_families, line};

/// Sends a packet of another pod of this node out.
fn other_leaves(net: &Net, pod: u16, packet: &Builder) -> Reason {
    let ifindex = 100 + u32::from(pod);
    let word = EndpointWord::new(RulesetId::ACCEPT_ALL, RulesetId::ACCEPT_ALL, 1);
    net.node.put_line(EndpointLine { ifindex, endpoint: 1 + pod, slot: 100 + pod, word, ..line() });
    let (_, reasons) = net.node.run(Direction::Egress, &HostFrame::new(packet.build(), ifindex, ifindex));
    reasons[0]
}

/// How many entries each endpoint has.
fn holdings(net: &Net) -> BTreeMap<u16, usize> {
    let mut holdings = BTreeMap::new();
    for key in net.node.flows() {
        *holdings.entry(key.endpoint()).or_default() += 1;
    }
    holdings
}

both_families! {
    // Four places for each flow are plenty; where a field does not reach the hash, flows crowd into few.
    fn every_field_spreads_flows_over_the_table(mut net: Net) {
        const FLOWS: u16 = 128;
        type Way<'a> = (&'a str, &'a dyn Fn(&Net, u16) -> Builder);
        let host = |net: &Net, number: u16| match net.family {
            Family::V4 => format!("10.9.{}.{}", number >> 8, number & 0xff).parse().unwrap(),
            Family::V6 => format!("fd00:9::{number:x}").parse().unwrap(),
        };
        let subnet = |net: &Net, number: u16| match net.family {
            Family::V4 => format!("{}.9.1.1", number + 10).parse().unwrap(),
            Family::V6 => format!("fd00:9:0:{number:x}::1").parse().unwrap(),
        };
        let ways: [Way<'_>; 4] = [
            ("local port", &|net, number| net.to(net.peer).udp(number + 1, 80)),
            ("remote port", &|net, number| net.to(net.peer).udp(80, number + 1)),
            ("low half of the address", &|net, number| net.to(host(net, number)).udp(80, 80)),
            ("high half of the address", &|net, number| net.to(subnet(net, number)).udp(80, 80)),
        ];
        for (field, packet) in ways {
            let net = Net::with_buckets(net.family, 128);
            for number in 0..FLOWS {
                assert_eq!(net.leaves(&packet(&net, number)), Reason::NewFlow);
            }
            assert_eq!(net.node.flows().len(), usize::from(FLOWS), "{field}");
        }
    }

    fn flows_of_one_bucket_that_share_their_ports_are_not_each_other(mut net: Net) {
        let net = Net::with_buckets(net.family, 1);
        let others = match net.family {
            Family::V4 => ["10.0.1.8", "10.1.1.7"],
            Family::V6 => ["fd00:1::8", "fd00:2::7"],
        };
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NewFlow);
        for other in others {
            assert_eq!(net.leaves(&net.to(other.parse().unwrap()).udp(1, 80)), Reason::NewFlow, "{other}");
        }
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::Flow);
        assert_eq!(net.node.flows().len(), 3);
    }

    // Met twice, each of the four would seem to hold two entries.
    fn a_single_bucket_is_counted_once(mut net: Net) {
        for port in 1..=32 {
            let net = Net::with_buckets(net.family, 1);
            for pod in 0..4 {
                assert_eq!(other_leaves(&net, pod, &net.to(net.peer).udp(1, 80)), Reason::NewFlow);
            }
            assert_eq!(net.leaves(&net.to(net.peer).udp(port, 80)), Reason::NoRoom, "port {port}");
        }
    }

    fn of_two_buckets_the_one_who_holds_most_pays_in_whichever_it_is(mut net: Net) {
        let mut paid = 0;
        for port in 1..=64 {
            let net = Net::with_buckets(net.family, 2);
            // One pod with three entries among five with one; who finds no place is passed over.
            for pod in 1..1000 {
                let held = net.node.flows().len();
                if held == 8 {
                    break;
                }
                let pod = if held < 3 { 0 } else { pod };
                let own = if pod == 0 { held as u16 * 64 + port } else { port };
                other_leaves(&net, pod, &net.to(net.peer).udp(own, 80));
                net.node.pass_time(1);
            }
            let before = holdings(&net);
            if before.get(&1) != Some(&3) {
                continue; // It paid already, for one whose two choices were the same.
            }
            let reason = net.leaves(&net.to(net.peer).udp(port, 80));
            // Where both choices of the newcomer are one bucket, nobody in it may hold two.
            if reason == Reason::NewFlow {
                let mut expected = before;
                *expected.get_mut(&1).unwrap() -= 1;
                expected.insert(ENDPOINT, 1);
                assert_eq!(holdings(&net), expected, "port {port}");
                paid += 1;
            } else {
                assert_eq!(reason, Reason::NoRoom, "port {port}");
            }
        }
        assert!(paid >= 16, "{paid} of 64 newcomers had something to take");
    }

    fn an_entry_as_old_as_its_window_is_alive(mut net: Net) {
        let net = Net::with_buckets(net.family, 1);
        for pod in 0..4 {
            other_leaves(&net, pod, &net.to(net.peer).udp(1, 80));
        }
        net.node.pass_time(timeouts::IDLE);
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NoRoom);
        net.node.pass_time(1);
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NewFlow);
    }

    fn another_portless_protocol_lives_longer_than_an_echo(mut net: Net) {
        let net = Net::with_buckets(net.family, 1);
        for pod in 0..4 {
            other_leaves(&net, pod, &net.to(net.peer).protocol(50, &[0; 8]));
        }
        net.node.pass_time(timeouts::ECHO + 1);
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NoRoom);
    }

    fn an_idle_connection_has_not_expired(mut net: Net) {
        let net = Net::with_buckets(net.family, 1);
        other_leaves(&net, 0, &net.to(net.peer).tcp(1, 80).syn());
        other_leaves(&net, 1, &net.to(net.peer).tcp(1, 80).syn());
        net.node.pass_time(timeouts::IDLE + 1);
        for port in [1, 2] {
            other_leaves(&net, 2, &net.to(net.peer).udp(port, 80));
        }
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NewFlow);
        assert_eq!(holdings(&net), BTreeMap::from([(1, 1), (2, 1), (3, 1), (ENDPOINT, 1)]));
    }
}
