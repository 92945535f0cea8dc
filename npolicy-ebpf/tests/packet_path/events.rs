//! Events are a sample, counts are exact.

use npolicy_common::{Direction, EventState, Reason, RulesetId, config_flags};

use crate::net::{ENDPOINT, Family, Net, PEER, VETH, both_families};

const SHUT: RulesetId = RulesetId::DENY_ALL;

both_families! {
    fn a_denial_tells_who_to_whom_and_by_what(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        assert_eq!(net.enters(&net.from(net.peer).tcp(40_000, 8080).syn()), Reason::Policy);
        let [event] = net.node.take_events()[..] else { panic!("one event") };
        let bytes = |address| match address {
            std::net::IpAddr::V4(address) => [&address.octets()[..], &[0; 12]].concat(),
            std::net::IpAddr::V6(address) => address.octets().to_vec(),
        };
        assert_eq!(event.remote[..], bytes(net.peer));
        assert_eq!(event.local[..], bytes(net.pod));
        assert_eq!((event.remote_port, event.local_port, event.protocol), (40_000, 8080, 6));
        assert_eq!((event.ruleset, event.class, event.generation), (SHUT.0, PEER.0, 2));
        assert_eq!((event.endpoint, event.ifindex), (ENDPOINT, VETH));
        assert_eq!(event.ether_type, if net.family == Family::V4 { 0x0800 } else { 0x86dd });
        assert_eq!((event.reason, event.direction), (Reason::Policy as u8, Direction::Ingress as u8));
        assert_eq!(event.state, EventState::NEW);
        assert_eq!(event.jiffies, net.node.jiffies.get());
    }

    // Such a drop line would blame the wrong side.
    fn a_refused_reply_never_reads_as_a_new_connection(mut net: Net) {
        let ruleset = net.peer_only();
        net.govern(ruleset, ruleset);
        net.enters(&net.from(net.peer).udp(5000, 53));
        net.govern(SHUT, ruleset);
        net.leaves(&net.to(net.peer).udp(53, 5000));
        net.enters(&net.from(net.peer).udp(5000, 53));
        let [reply, original] = net.node.take_events()[..] else { panic!("two events") };
        assert_eq!((reply.state, reply.direction, reply.ruleset), (EventState::REPLY, Direction::Egress as u8, SHUT.0));
        assert_eq!((original.state, original.direction, original.ruleset), (EventState::ORIGINAL, Direction::Ingress as u8, SHUT.0));
    }

    fn icmp_has_its_type_and_code_for_ports(mut net: Net) {
        net.govern(SHUT, SHUT);
        net.enters(&net.from(net.peer).echo_request(7));
        net.leaves(&net.to(net.peer).icmp(42, 3, &[0; 4]));
        let [request, other] = net.node.take_events()[..] else { panic!("two events") };
        assert_eq!((request.remote_port, request.local_port), (if net.family == Family::V4 { 8 } else { 128 }, 0));
        assert_eq!((other.remote_port, other.local_port), (42, 3));
    }

    fn accepted_flows_are_reported_when_asked(mut net: Net) {
        assert_eq!(net.leaves(&net.to(net.peer).udp(5000, 53)), Reason::NewFlow);
        assert_eq!(net.node.take_events().len(), 0);
        let mut config = net.node.config.get();
        config.flags |= config_flags::LOG_ACCEPTS;
        net.node.config.set(config);
        assert_eq!(net.leaves(&net.to(net.peer).udp(5001, 53)), Reason::NewFlow);
        assert_eq!(net.leaves(&net.to(net.peer).udp(5001, 53)), Reason::Flow);
        let [event] = net.node.take_events()[..] else { panic!("one event") };
        assert_eq!((event.reason, event.remote_port), (Reason::NewFlow as u8, 53));
    }

    fn a_flood_spends_its_tokens_and_every_loss_is_counted(mut net: Net) {
        let mut config = net.node.config.get();
        (config.event_burst, config.event_interval) = (10, 100);
        net.node.config.set(config);
        net.govern(SHUT, SHUT);
        let drop_many = |packets| {
            for _ in 0..packets {
                net.leaves(&net.to(net.peer).udp(5000, 53));
            }
            net.node.take_events().len()
        };
        assert_eq!(drop_many(100), 10, "one burst");
        net.node.jiffies.set(net.node.jiffies.get() + 250);
        assert_eq!(drop_many(100), 2, "what was earned since");
        net.node.jiffies.set(net.node.jiffies.get() + 50);
        assert_eq!(drop_many(100), 1, "the rest of an interval is kept");
        net.node.jiffies.set(net.node.jiffies.get() + 1_000_000);
        assert_eq!(drop_many(100), 10, "no more than a burst");
        assert_eq!(net.count(Direction::Egress, Reason::EventLost), 400 - 23);
        assert_eq!(net.count(Direction::Egress, Reason::Policy), 400);
    }

    fn a_full_ring_loses_events_and_counts_them(mut net: Net) {
        net.govern(SHUT, SHUT);
        net.node.ring_room.set(1);
        for _ in 0..3 {
            assert_eq!(net.leaves(&net.to(net.peer).udp(5000, 53)), Reason::Policy);
        }
        assert_eq!(net.node.take_events().len(), 1);
        assert_eq!(net.count(Direction::Egress, Reason::EventLost), 2);
    }

    fn a_frame_that_is_not_ip_tells_its_ether_type(mut net: Net) {
        net.govern(SHUT, SHUT);
        net.leaves(&net.to(net.peer).ether_type(0x8847, &[0; 46]));
        let [event] = net.node.take_events()[..] else { panic!("one event") };
        assert_eq!((event.ether_type, event.reason, event.protocol), (0x8847, Reason::NotIp as u8, 0));
        assert_eq!((event.remote, event.local), ([0; 16], [0; 16]));
    }
}

#[test]
fn what_has_no_line_is_counted_in_row_0() {
    let net = Net::new(Family::V4);
    let frame = npolicy_ebpf::host::HostFrame::new(net.to(net.peer).udp(1, 2).build(), 99, 99);
    let (verdict, reasons) = net.node.run(Direction::Egress, &frame);
    assert_eq!((verdict, reasons), (npolicy_common::Verdict::Deny, vec![Reason::NoEndpoint]));
    let row = net.node.counters(npolicy_common::CounterKey::new(0, Direction::Egress));
    assert_eq!(row[Reason::NoEndpoint as usize], 1);
}
