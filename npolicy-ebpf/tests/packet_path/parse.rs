//! Reading frames: cut, lying, tagged, not linear.

use npolicy_common::{Direction, FlowProtocol, Reason, RulesetId};
use npolicy_ebpf::host::{Builder, HostFrame};

use crate::net::{Family, Net, PEER, UPLINK, VETH, both_families};

const SHUT: RulesetId = RulesetId::DENY_ALL;

/// One packet of each protocol that has a header of its own.
fn samples(net: &Net) -> Vec<Builder> {
    let from = net.from(net.peer);
    vec![
        from.clone().tcp(40_000, 80).syn(),
        from.clone().udp(5000, 53),
        from.clone().sctp(5000, 53),
        from.clone().echo_request(7),
    ]
}

fn enter(net: &Net, bytes: Vec<u8>) -> Reason {
    net.run(Direction::Ingress, &HostFrame::new(bytes, VETH, UPLINK))
}

both_families! {
    fn a_frame_cut_at_any_byte_is_dropped_where_governed(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        for sample in samples(&net) {
            let whole = sample.build();
            for length in 0..whole.len() {
                let reason = enter(&net, whole[..length].to_vec());
                let expected = if length < 14 { Reason::NotIp } else { Reason::Malformed };
                assert_eq!(reason, expected, "cut at {length} of {}", whole.len());
            }
            assert_eq!(enter(&net, whole), Reason::NewFlow);
        }
    }

    fn a_packet_whose_length_ends_within_its_header_is_dropped(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        for sample in samples(&net) {
            let upper = sample.build().len() as i32 - 14 - if net.family == Family::V4 { 20 } else { 40 };
            for missing in 1..=upper {
                assert_eq!(net.enters(&sample.clone().length_error(-missing)), Reason::Malformed, "{missing} short");
            }
            assert_eq!(net.enters(&sample.clone().length_error(1)), Reason::Malformed, "longer than the frame");
        }
    }

    fn padding_is_not_part_of_the_packet(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        for sample in samples(&net) {
            let mut bytes = sample.build();
            bytes.extend([0; 20]);
            assert_eq!(enter(&net, bytes), Reason::NewFlow);
        }
    }

    fn what_is_not_linear_is_judged_like_its_linear_twin(mut net: Net) {
        let ruleset = net.node.new_ruleset();
        net.node.accept_ports(ruleset, PEER, FlowProtocol::Tcp, &[80]);
        net.govern(ruleset, SHUT);
        for (port, expected) in [(80, Reason::NewFlow), (81, Reason::Policy)] {
            let bytes = net.from(net.peer).tcp(40_000, port).syn().build();
            for linear in 0..=bytes.len() {
                net.node.erase_flows();
                let frame = HostFrame::new(bytes.clone(), VETH, UPLINK).with_linear(linear);
                assert_eq!(net.run(Direction::Ingress, &frame), expected, "{linear} bytes linear, port {port}");
            }
        }
    }

    fn another_version_than_the_frames_is_dropped(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        for version in 0..16u8 {
            let mut bytes = net.from(net.peer).udp(5000, 53).build();
            let right = bytes[14] >> 4;
            bytes[14] = version << 4 | bytes[14] & 0xf;
            net.node.erase_flows();
            let expected = if version == right { Reason::NewFlow } else { Reason::Malformed };
            assert_eq!(enter(&net, bytes), expected, "version {version}");
        }
    }

    fn what_cannot_be_judged_passes_where_nothing_is_governed(mut net: Net) {
        for length in 0..54 {
            let bytes = net.from(net.peer).tcp(40_000, 80).syn().build();
            assert_eq!(enter(&net, bytes[..length].to_vec()), Reason::Link, "cut at {length}");
        }
    }

    fn tags_are_dropped_for_every_pod(mut net: Net) {
        for tag_type in [0x8100, 0x88a8] {
            for vlan in [0, 1, 4095] {
                let frame = net.from(net.peer).udp(5000, 53).tag(tag_type, vlan);
                assert_eq!(net.enters(&frame), Reason::Tagged);
                assert_eq!(net.enters(&frame.clone().tag(0x8100, 0)), Reason::Tagged, "nested");
                assert_eq!(net.leaves(&net.to(net.peer).udp(5000, 53).tag(tag_type, vlan)), Reason::Tagged);
            }
        }
        let frame = HostFrame::new(net.from(net.peer).udp(5000, 53).build(), VETH, UPLINK).with_outer_tag();
        assert_eq!(net.run(Direction::Ingress, &frame), Reason::Tagged, "beside the data");
    }

    fn allowed_tags_do_not_hide_what_is_behind_them(mut net: Net) {
        net.node.change_line(VETH, |line| line.flags |= npolicy_common::endpoint_flags::TAGS_ALLOWED);
        let ruleset = net.node.new_ruleset();
        net.node.accept_ports(ruleset, PEER, FlowProtocol::Udp, &[53]);
        net.govern(ruleset, SHUT);
        for (port, expected) in [(53, Reason::NewFlow), (54, Reason::Policy)] {
            let plain = net.from(net.peer).udp(5000, port);
            for frame in [plain.clone().tag(0x8100, 3), plain.clone().tag(0x88a8, 3).tag(0x8100, 4)] {
                net.node.erase_flows();
                assert_eq!(net.enters(&frame), expected);
            }
            net.node.erase_flows();
            let outer = HostFrame::new(plain.build(), VETH, UPLINK).with_outer_tag();
            assert_eq!(net.run(Direction::Ingress, &outer), expected);
        }
        let deep = net.from(net.peer).udp(5000, 53).tag(0x8100, 1).tag(0x8100, 2).tag(0x8100, 3);
        assert_eq!(net.enters(&deep), Reason::Tagged);
    }

    fn frames_that_are_not_ip_are_dropped_where_governed(mut net: Net) {
        let strange = [0x0000, 0x0042, 0x05dc, 0x0805, 0x0807, 0x8847, 0x8848, 0x8863, 0x8864, 0x88cc, 0x88e5, 0x9100, 0xffff];
        for ether_type in strange {
            let frame = net.to(net.peer).ether_type(ether_type, &[0; 46]);
            assert_eq!(net.leaves(&frame), Reason::Link, "{ether_type:#06x}");
        }
        net.govern(SHUT, SHUT);
        for ether_type in strange {
            let frame = net.to(net.peer).ether_type(ether_type, &[0; 46]);
            assert_eq!(net.leaves(&frame), Reason::NotIp, "{ether_type:#06x}");
        }
    }

    fn protocols_without_ports_pass_by_their_own_bit(mut net: Net) {
        let with_ports = net.node.new_ruleset();
        net.node.accept_ports(with_ports, PEER, FlowProtocol::Udp, &[53, 80]);
        for protocol in [4, 41, 47, 50, 136, 33, 200] {
            net.govern(with_ports, SHUT);
            net.node.erase_flows();
            let packet = net.from(net.peer).protocol(protocol, &[0, 53, 0, 53, 0, 8, 0, 0]);
            assert_eq!(net.enters(&packet), Reason::Policy, "protocol {protocol}");
            net.govern(net.peer_only(), SHUT);
            assert_eq!(net.enters(&packet), Reason::NewFlow, "protocol {protocol}");
        }
    }
}

fn v4() -> Net {
    let mut net = Net::new(Family::V4);
    let ruleset = net.node.new_ruleset();
    net.node.accept_ports(ruleset, PEER, FlowProtocol::Tcp, &[80]);
    net.govern(ruleset, SHUT);
    net
}

#[test]
fn options_do_not_move_the_ports() {
    let net = v4();
    for words in 1..=10u8 {
        // A recorded route whose every pair of bytes spells the allowed port, as a parser of fixed offsets would read it.
        let mut options = [0, 80].repeat(words as usize * 2);
        options[..3].copy_from_slice(&[7, words * 4 - 1, 4]);
        *options.last_mut().unwrap() = 0;
        net.node.erase_flows();
        let denied = net.from(net.peer).tcp(80, 81).syn().options(&options);
        assert_eq!(net.enters(&denied), Reason::Policy, "{words} words");
    }
}

#[test]
fn a_walk_through_the_options_finds_the_source_route() {
    let net = v4();
    let with = |options: &[u8]| net.enters(&net.from(net.peer).tcp(9, 80).syn().options(options));
    assert_eq!(with(&[148, 4, 0, 0]), Reason::NewFlow, "router alert");
    assert_eq!(with(&[1, 1, 1, 0]), Reason::NewFlow, "padding");
    assert_eq!(with(&[7, 7, 4, 0, 0, 0, 0, 0]), Reason::NewFlow, "record route");
    assert_eq!(with(&[131, 7, 4, 10, 0, 0, 9, 0]), Reason::Unjudgeable, "loose source route");
    assert_eq!(with(&[1, 137, 7, 4, 10, 0, 0, 9]), Reason::Unjudgeable, "strict source route behind padding");
    assert_eq!(with(&[148, 4, 0, 0, 131, 3, 4, 0]), Reason::Unjudgeable, "behind another option");
    assert_eq!(with(&[7, 0, 0, 0]), Reason::Unjudgeable, "an option of no length");
    assert_eq!(with(&[7, 200, 0, 0]), Reason::Unjudgeable, "an option beyond the header");
    assert_eq!(with(&[1; 40]), Reason::Unjudgeable, "more than a walk looks at");
}

#[test]
fn a_header_length_that_lies_is_dropped() {
    let net = v4();
    for words in 0..16u8 {
        let mut bytes = net.from(net.peer).tcp(9, 80).syn().build();
        bytes[14] = 0x40 | words;
        net.node.erase_flows();
        let reason = enter(&net, bytes);
        assert_eq!(reason == Reason::NewFlow, words == 5, "{words} words: {reason:?}");
        assert_eq!(net.node.flows().len(), (words == 5) as usize);
    }
}

#[test]
fn fragments_and_reserved_bits_are_not_plain() {
    let net = v4();
    let with = |bits| net.enters(&net.from(net.peer).tcp(9, 80).syn().fragment(bits));
    assert_eq!(with(0x4000), Reason::NewFlow, "don't fragment");
    for bits in [0x2000, 0x2001, 0x0001, 0x1fff, 0x4001, 0x6000] {
        assert_eq!(with(bits), Reason::Fragment, "{bits:#06x}");
    }
    for bits in [0x8000, 0xa000, 0xc000, 0x8001] {
        assert_eq!(with(bits), Reason::Malformed, "{bits:#06x}");
    }
}

#[test]
fn protocols_0_and_255_are_dropped() {
    let net = v4();
    for protocol in [0, 255] {
        assert_eq!(net.enters(&net.from(net.peer).protocol(protocol, &[0; 20])), Reason::Malformed);
    }
    assert_eq!(net.enters(&net.from(net.peer).tcp(9, 80).syn()), Reason::NewFlow);
}

#[test]
fn ipv6_extension_headers_are_dropped_where_governed() {
    let mut net = Net::new(Family::V6);
    let headers = [
        (0, Reason::Unjudgeable),
        (43, Reason::Unjudgeable),
        (44, Reason::Fragment),
        (51, Reason::Unjudgeable),
        (60, Reason::Unjudgeable),
        (135, Reason::Unjudgeable),
        (139, Reason::Unjudgeable),
        (140, Reason::Unjudgeable),
        (253, Reason::Unjudgeable),
    ];
    for (number, _) in headers {
        let frame = net.from(net.peer).udp(5000, 53).extension(number, &[0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(net.enters(&frame), Reason::Link, "header {number}, not governed");
    }
    net.govern(net.peer_only(), SHUT);
    for (number, reason) in headers {
        let frame = net.from(net.peer).udp(5000, 53).extension(number, &[0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(net.enters(&frame), reason, "header {number}");
    }
    let alert = net.from(net.peer).udp(5000, 53).router_alert();
    assert_eq!(net.enters(&alert), Reason::NewFlow, "a router alert hides nothing");
    assert_eq!(net.enters(&net.from(net.peer).udp(5001, 53).router_alert().router_alert()), Reason::Unjudgeable);
    assert_eq!(
        net.enters(&net.from(net.peer).udp(5000, 53).length_error(-8)),
        Reason::Malformed,
        "no payload, or a jumbo's"
    );
}
