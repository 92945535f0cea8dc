//! Class, row, bundle, port bit.

use std::net::IpAddr;

use npolicy_common::{Class, ClassWord, FlowProtocol, Reason, RulesetId, Verdict};

use crate::net::{Net, PEER, both_families};

both_families! {
    fn a_port_is_accepted_bit_by_bit(mut net: Net) {
        let ruleset = net.node.new_ruleset();
        let ports = [1, 63, 64, 255, 256, 8080, 65_535];
        net.node.accept_ports(ruleset, PEER, FlowProtocol::Tcp, &ports);
        net.govern(ruleset, RulesetId::DENY_ALL);
        for port in (0..300).chain([8079, 8080, 8081, 65_534, 65_535]) {
            let reason = net.enters(&net.from(net.peer).tcp(40_000, port).syn());
            assert_eq!(reason == Reason::NewFlow, ports.contains(&port), "port {port}");
        }
    }

    fn a_protocol_is_not_another(mut net: Net) {
        let packets = [net.from(net.peer).tcp(9, 80).syn(), net.from(net.peer).udp(9, 80), net.from(net.peer).sctp(9, 80), net.from(net.peer).protocol(50, &[0; 8])];
        for protocol in [FlowProtocol::Tcp, FlowProtocol::Udp, FlowProtocol::Sctp, FlowProtocol::Other] {
            let ruleset = net.node.new_ruleset();
            net.node.accept_ports(ruleset, PEER, protocol, &[80]);
            net.govern(ruleset, RulesetId::DENY_ALL);
            net.node.erase_flows();
            for (index, packet) in packets.iter().enumerate() {
                let accepted = net.enters(packet) == Reason::NewFlow;
                assert_eq!(accepted, index == protocol as usize, "{protocol:?} against packet {index}");
            }
        }
    }

    fn a_class_of_the_upper_leaves_has_a_row_of_its_own(mut net: Net) {
        let ruleset = net.node.new_ruleset();
        for class in [511, 512, 1023, Class::LIMIT - 1].map(Class) {
            net.node.put_class(net.stranger, class, 0);
            net.node.erase_flows();
            net.govern(ruleset, RulesetId::DENY_ALL);
            assert_eq!(net.enters(&net.from(net.stranger).udp(9, 80)), Reason::Policy, "{class:?}");
            net.node.accept_all(ruleset, class);
            net.raise();
            assert_eq!(net.enters(&net.from(net.stranger).udp(9, 80)), Reason::NewFlow, "{class:?}");
            if net.family == crate::net::Family::V6 {
                break; // An exact IPv6 address is written once.
            }
        }
    }

    fn a_denied_service_says_so(mut net: Net) {
        net.node.put_class(net.stranger, PEER, ClassWord::SERVICE);
        net.govern(RulesetId::DENY_ALL, RulesetId::DENY_ALL);
        assert_eq!(net.leaves(&net.to(net.stranger).udp(9, 80)), Reason::Service);
        assert_eq!(net.leaves(&net.to(net.peer).udp(9, 80)), Reason::Policy);
    }

    fn an_unidentified_pod_is_open_until_its_time_is_over(mut net: Net) {
        let mut config = net.node.config.get();
        config.flags |= npolicy_common::config_flags::UNIDENTIFIED_ACCEPTS;
        net.node.config.set(config);
        net.govern(RulesetId::UNIDENTIFIED, RulesetId::UNIDENTIFIED);
        assert_eq!(net.leaves(&net.to(net.peer).udp(9, 80)), Reason::NewFlow);
        assert_eq!(net.leaves(&net.to(net.peer).tcp(9, 80)).verdict(), Verdict::Accept, "nor is what cannot open a flow");
        config.flags = 0;
        net.node.config.set(config);
        net.raise();
        assert_eq!(net.leaves(&net.to(net.peer).udp(9, 80)), Reason::Unidentified);
        assert_eq!(net.enters(&net.from(net.peer).udp(80, 9)), Reason::Unidentified);
        assert_eq!(net.leaves(&net.to(net.host).udp(9, 80)), Reason::Unidentified, "the pod opens nothing, to the node neither");
        assert_eq!(net.enters_by(0, &net.from(net.host).udp(9, 80)), Reason::NewFlow);
        assert_eq!(net.leaves(&net.to(net.host).udp(80, 9)), Reason::Flow);
        assert_eq!(net.leaves(&net.to(net.host).unreachable(&net.from(net.host).udp(9, 80), 64)), Reason::Related);
    }
}

#[test]
fn an_ipv4_chunk_holds_its_neighbours() {
    let mut net = Net::new(crate::net::Family::V4);
    let ruleset = net.peer_only();
    net.govern(ruleset, RulesetId::DENY_ALL);
    for last in 0..=255u8 {
        let source = IpAddr::from([10, 0, 1, last]);
        let accepted = net.enters(&net.from(source).udp(9, 80)) == Reason::NewFlow;
        assert_eq!(accepted, source == net.peer, "{source}");
    }
}

#[test]
fn an_ipv6_address_is_found_in_its_second_bucket() {
    let mut net = Net::new(crate::net::Family::V6);
    let address = "2001:db8::1234".parse().unwrap();
    net.node.crowd_class6(address);
    net.node.put_class(address.into(), PEER, 0);
    net.govern(net.peer_only(), RulesetId::DENY_ALL);
    assert_eq!(net.enters(&net.from(address.into()).udp(9, 80)), Reason::NewFlow);
}

#[test]
fn an_ipv6_address_has_the_class_of_its_longest_prefix_unless_it_is_listed() {
    let mut net = Net::new(crate::net::Family::V6);
    let outside = "2001:db9::1".parse::<IpAddr>().unwrap();
    net.node.put_prefix6("2001:db8::".parse().unwrap(), 32, Class(9));
    net.node.put_prefix6("2001:db8:1::".parse().unwrap(), 48, PEER);
    net.node.put_class("2001:db8:1::2".parse().unwrap(), Class::PLAIN, 0);
    net.govern(net.peer_only(), RulesetId::DENY_ALL);
    let accepts = |source: &str| net.enters(&net.from(source.parse().unwrap()).udp(9, 80)) == Reason::NewFlow;
    assert!(accepts("2001:db8:1::1"));
    assert!(!accepts("2001:db8:1::2"), "listed");
    assert!(!accepts("2001:db8:2::1"), "the shorter prefix");
    assert!(!accepts("2001:db9::1"), "no prefix");
    let mut config = net.node.config.get();
    config.default_class6 = PEER.0;
    net.node.config.set(config);
    assert_eq!(net.enters(&net.from(outside).udp(10, 80)), Reason::NewFlow, "the default");
}

#[test]
fn prefixes_are_not_asked_where_no_policy_names_one() {
    let mut net = Net::new(crate::net::Family::V6);
    net.node.put_prefix6("2001:db8::".parse().unwrap(), 32, PEER);
    let mut config = net.node.config.get();
    config.flags &= !npolicy_common::config_flags::PREFIX6_USED;
    net.node.config.set(config);
    net.govern(net.peer_only(), RulesetId::DENY_ALL);
    assert_eq!(net.enters(&net.from("2001:db8::1".parse().unwrap()).udp(9, 80)), Reason::Policy);
}

// The address is written first and taken away last: without the mark it is nobody's.
#[test]
fn an_ipv6_address_that_is_not_listed_has_no_class() {
    let mut net = Net::new(crate::net::Family::V6);
    let address = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap();
    net.node.put_unlisted6(address, PEER);
    net.govern(net.peer_only(), RulesetId::DENY_ALL);
    assert_eq!(net.enters(&net.from(address.into()).udp(9, 80)), Reason::Policy);
}
