//! The rules for frames: what always passes, what never does, whose address a source may be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use npolicy_common::{EndpointWord, Reason, RulesetId, endpoint_flags};
use npolicy_ebpf::host::{Builder, packet};

use crate::net::{Family, MAC, Net, VETH, both_families, line};

const SHUT: RulesetId = RulesetId::DENY_ALL;
const POD4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const OTHER4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const OTHER_MAC: [u8; 6] = [0x0a, 0x58, 0x0a, 0, 0, 9];

both_families! {
    fn a_forged_source_is_dropped_for_every_pod(mut net: Net) {
        for source in [net.peer, net.stranger, net.host] {
            let forged = packet().ip(source, net.peer);
            for frame in [forged.clone().udp(1, 2), forged.clone().tcp(1, 2).syn(), forged.clone().tcp(1, 2), forged.clone().echo_request(1), forged.clone().protocol(47, &[0; 4])] {
                assert_eq!(net.leaves(&frame), Reason::Spoof, "from {source}");
            }
        }
        assert_eq!(net.node.flows().len(), 0, "no table is touched");
    }

    fn a_forged_packet_that_cannot_be_judged_is_forged(mut net: Net) {
        let forged = packet().ip(net.stranger, net.peer).udp(1, 2);
        let frame = if net.family == Family::V4 { forged.fragment(0x2000) } else { forged.extension(44, &[0; 7]) };
        assert_eq!(net.leaves(&frame), Reason::Spoof);
    }

    fn a_forged_source_does_not_use_anothers_entry(mut net: Net) {
        net.leaves(&net.to(net.peer).udp(1, 2));
        assert_eq!(net.leaves(&packet().ip(net.stranger, net.peer).udp(1, 2)), Reason::Spoof);
    }

    fn extra_sources_pass_where_they_are_allowed(mut net: Net) {
        net.node.change_line(VETH, |line| line.flags |= endpoint_flags::SOURCES_ALLOWED);
        assert_eq!(net.leaves(&packet().ip(net.stranger, net.peer).udp(1, 2)), Reason::NewFlow);
    }

    fn a_line_without_an_address_is_not_checked(mut net: Net) {
        net.node.change_line(VETH, |line| (line.ipv4, line.ipv6) = ([0; 4], [0; 16]));
        assert_eq!(net.leaves(&packet().ip(net.stranger, net.peer).udp(1, 2)), Reason::NewFlow);
    }

    fn the_unspecified_address_is_nobodys(mut net: Net) {
        let unspecified = if net.family == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        assert_eq!(net.leaves(&packet().ip(unspecified, net.peer).udp(1, 2)), Reason::Spoof);
    }

    fn dhcp_answers_from_a_bridged_pod_are_dropped(mut net: Net) {
        for port in [67, 547] {
            let answer = net.to(net.peer).udp(port, 68);
            net.node.change_line(VETH, |line| line.flags = 0);
            assert_eq!(net.leaves(&answer), Reason::NewFlow, "routed");
            net.node.change_line(VETH, |line| line.flags = endpoint_flags::BRIDGED);
            assert_eq!(net.leaves(&answer), Reason::DhcpServer);
            net.node.change_line(VETH, |line| line.flags |= endpoint_flags::DHCP_SERVER_ALLOWED);
            assert_eq!(net.leaves(&answer), Reason::Flow);
        }
    }
}

fn arp(mac: [u8; 6], sender: Ipv4Addr) -> Builder {
    packet().from_mac(mac).arp(mac, sender, OTHER4)
}

#[test]
fn arp_from_a_pod_carries_its_own_address_or_none() {
    let mut net = Net::new(Family::V4);
    for _ in 0..2 {
        assert_eq!(net.leaves(&arp(MAC, POD4)), Reason::Link);
        assert_eq!(net.leaves(&arp(MAC, Ipv4Addr::UNSPECIFIED)), Reason::Link);
        assert_eq!(net.leaves(&arp(MAC, OTHER4)), Reason::ForgedNeighbour);
        assert_eq!(net.leaves(&arp(OTHER_MAC, POD4)), Reason::Link, "nobody else is on a routed link");
        assert_eq!(net.enters(&arp(OTHER_MAC, OTHER4)), Reason::Link, "to a pod everything passes");
        net.govern(SHUT, SHUT);
    }
    net.node.change_line(VETH, |line| line.flags = endpoint_flags::BRIDGED);
    assert_eq!(net.leaves(&arp(MAC, POD4)), Reason::Link);
    assert_eq!(net.leaves(&arp(OTHER_MAC, POD4)), Reason::ForgedNeighbour);
    assert_eq!(net.leaves(&arp(OTHER_MAC, Ipv4Addr::UNSPECIFIED)), Reason::ForgedNeighbour);
}

#[test]
fn arp_that_is_cut_or_of_another_kind_is_dropped() {
    let net = Net::new(Family::V4);
    let whole = arp(MAC, POD4).build();
    for (at, byte) in [(15, 6), (16, 9), (18, 8), (19, 16)] {
        let mut body = whole[14..].to_vec();
        body[at - 14] = byte;
        assert_eq!(net.leaves(&packet().ether_type(0x0806, &body)), Reason::ForgedNeighbour, "byte {at}");
    }
    assert_eq!(net.leaves(&packet().ether_type(0x0806, &whole[14..30])), Reason::ForgedNeighbour);
}

#[test]
fn before_an_address_is_shown_arp_passes_where_the_link_is_routed() {
    let net = Net::new(Family::V4);
    net.node.change_line(VETH, |line| (line.ipv4, line.ipv6) = ([0; 4], [0; 16]));
    assert_eq!(net.leaves(&arp(MAC, OTHER4)), Reason::Link);
    net.node.change_line(VETH, |line| line.flags = endpoint_flags::BRIDGED);
    assert_eq!(net.leaves(&arp(MAC, OTHER4)), Reason::ForgedNeighbour);
}

#[test]
fn an_interface_without_an_address_may_ask_for_one() {
    let net = Net::new(Family::V4);
    let word = EndpointWord::new(RulesetId::UNIDENTIFIED, RulesetId::UNIDENTIFIED, 9);
    net.node.put_line(npolicy_common::EndpointLine { ipv4: [0; 4], ipv6: [0; 16], word, ..line() });
    let none = Ipv4Addr::UNSPECIFIED;
    assert_eq!(net.leaves(&packet().ipv4(none, Ipv4Addr::BROADCAST).udp(68, 67)), Reason::Link);
    assert_eq!(net.enters(&packet().ipv4(OTHER4, Ipv4Addr::BROADCAST).udp(67, 68)), Reason::Link);
    assert_eq!(net.leaves(&packet().ipv4(OTHER4, Ipv4Addr::BROADCAST).udp(68, 67)), Reason::Unidentified);
    assert_eq!(net.leaves(&packet().ipv4(none, Ipv4Addr::BROADCAST).udp(69, 67)), Reason::Unidentified);
    net.node.put_line(npolicy_common::EndpointLine { word, ..line() });
    assert_eq!(net.enters(&packet().ipv4(OTHER4, POD4).udp(67, 68)), Reason::Unidentified, "it has one now");
    assert_eq!(net.leaves(&packet().ipv4(none, Ipv4Addr::BROADCAST).udp(68, 67)), Reason::Spoof);
}

#[test]
fn redirects_from_a_pod_never_pass() {
    let net = Net::new(Family::V4);
    assert_eq!(net.leaves(&net.to(net.peer).icmp(5, 1, &[0; 28])), Reason::RouterMessage);
    assert_eq!(net.enters(&net.from(net.peer).icmp(5, 1, &[0; 28])), Reason::Untracked);
    let net = Net::new(Family::V6);
    for icmp_type in [134, 137] {
        for hop_limit in [255, 64] {
            let message = net.to(net.peer).icmp(icmp_type, 0, &[0; 36]).hop_limit(hop_limit);
            assert_eq!(net.leaves(&message), Reason::RouterMessage);
            assert_eq!(net.leaves(&message.router_alert()), Reason::RouterMessage, "behind a router alert");
        }
        assert_eq!(net.enters(&net.from(net.peer).icmp(icmp_type, 0, &[0; 36]).hop_limit(255)), Reason::Link);
    }
}

/// A pod under deny-all, both ways.
fn shut() -> Net {
    let mut net = Net::new(Family::V6);
    net.govern(SHUT, SHUT);
    net
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

const POD6: &str = "fd00::5";
/// The link-local address of the pod's MAC.
const POD_LINK: &str = "fe80::858:aff:fe00:5";
const OTHER_LINK: &str = "fe80::858:aff:fe00:9";
const OTHER6: &str = "fd00::9";
/// The group that `OTHER6` listens to.
const OTHER_GROUP: &str = "ff02::1:ff00:9";

/// A neighbour message about `target` with `options` behind.
fn neighbour(icmp_type: u8, source: &str, destination: &str, target: &str, options: &[u8]) -> Builder {
    let mut body = vec![0; 4];
    body.extend(v6(target).octets());
    body.extend(options);
    packet().from_mac(MAC).ipv6(v6(source), v6(destination)).icmp(icmp_type, 0, &body).hop_limit(255)
}

fn link_option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];

#[test]
fn a_neighbour_is_asked_for_in_the_pods_own_name() {
    let net = shut();
    let mac = link_option(1, MAC);
    let both = [&mac[..], &NONCE].concat();
    for frame in [
        neighbour(135, POD6, OTHER_GROUP, OTHER6, &mac),
        neighbour(135, POD_LINK, OTHER_GROUP, OTHER6, &mac),
        neighbour(135, POD6, OTHER6, OTHER6, &mac),
        neighbour(135, POD6, OTHER6, OTHER6, &[]),
        neighbour(135, "::", OTHER_GROUP, OTHER6, &NONCE),
        neighbour(135, POD6, OTHER_GROUP, OTHER6, &both),
    ] {
        assert_eq!(net.leaves(&frame), Reason::Link, "{frame:?}");
    }
    let twice = [&mac[..], &mac].concat();
    let long = [&both[..], &NONCE].concat();
    for (frame, reason) in [
        (neighbour(135, POD6, OTHER_GROUP, OTHER6, &mac).hop_limit(64), Reason::Policy),
        (neighbour(135, POD6, OTHER_GROUP, OTHER6, &mac).router_alert(), Reason::Policy),
        (neighbour(135, POD6, "fd00:1::7", OTHER6, &mac), Reason::Policy),
        (neighbour(135, POD6, "ff02::1:ff00:8", OTHER6, &mac), Reason::Policy),
        (neighbour(135, POD6, OTHER_GROUP, OTHER6, &twice), Reason::Policy),
        (neighbour(135, POD6, OTHER_GROUP, OTHER6, &long), Reason::Policy),
        (neighbour(135, POD6, OTHER6, OTHER6, &NONCE), Reason::Policy),
        (neighbour(135, POD6, OTHER_GROUP, OTHER6, &[1, 2, 0, 0, 0, 0, 0, 0]), Reason::Policy),
        (neighbour(135, POD6, OTHER_GROUP, OTHER6, &[1, 1, 0, 0]), Reason::Policy),
        (neighbour(135, OTHER6, OTHER_GROUP, OTHER6, &mac), Reason::Spoof),
        (neighbour(135, "::", OTHER_GROUP, OTHER6, &twice), Reason::Spoof),
    ] {
        assert_eq!(net.leaves(&frame), reason, "{frame:?}");
    }
}

#[test]
fn an_address_is_advertised_by_its_owner_only() {
    for net in [shut(), Net::new(Family::V6)] {
        for target in [POD6, POD_LINK] {
            let frame = neighbour(136, target, OTHER6, target, &link_option(2, MAC));
            assert_eq!(net.leaves(&frame), Reason::Link);
        }
        for source in [POD6, POD_LINK, OTHER6] {
            let frame = neighbour(136, source, OTHER6, OTHER6, &link_option(2, MAC));
            assert_eq!(net.leaves(&frame), Reason::ForgedNeighbour, "from {source}");
            assert_eq!(net.leaves(&frame.router_alert()), Reason::ForgedNeighbour, "from {source}");
        }
        assert_eq!(net.leaves(&neighbour(136, "::", OTHER6, POD6, &[])), Reason::Spoof);
    }
}

#[test]
fn on_a_bridge_the_mac_has_to_fit() {
    let net = shut();
    net.node.change_line(VETH, |line| line.flags = endpoint_flags::BRIDGED);
    assert_eq!(net.leaves(&neighbour(135, POD6, OTHER_GROUP, OTHER6, &link_option(1, MAC))), Reason::Link);
    assert_eq!(net.leaves(&neighbour(135, POD_LINK, OTHER_GROUP, OTHER6, &[])), Reason::Link);
    assert_eq!(net.leaves(&neighbour(135, POD6, OTHER_GROUP, OTHER6, &link_option(1, OTHER_MAC))), Reason::Policy);
    assert_eq!(net.leaves(&neighbour(135, OTHER_LINK, OTHER_GROUP, OTHER6, &[])), Reason::Spoof);
    assert_eq!(net.leaves(&neighbour(136, POD6, OTHER6, OTHER_LINK, &[])), Reason::ForgedNeighbour);
    assert_eq!(net.leaves(&neighbour(136, POD6, OTHER6, POD_LINK, &link_option(2, MAC))), Reason::Link);
    let net = shut();
    assert_eq!(
        net.leaves(&neighbour(135, OTHER_LINK, OTHER_GROUP, OTHER6, &[])),
        Reason::Link,
        "routed: any link-local"
    );
}

#[test]
fn before_an_address_is_shown_advertisements_pass_where_the_link_is_routed() {
    let net = shut();
    net.node.change_line(VETH, |line| (line.ipv4, line.ipv6) = ([0; 4], [0; 16]));
    let frame = neighbour(136, OTHER6, "ff02::1", OTHER6, &link_option(2, MAC));
    assert_eq!(net.leaves(&frame), Reason::Link);
    net.node.change_line(VETH, |line| line.flags = endpoint_flags::BRIDGED);
    assert_eq!(net.leaves(&frame), Reason::ForgedNeighbour);
}

#[test]
fn a_router_is_asked_for_by_the_group_of_routers() {
    let net = shut();
    let solicitation = |source, destination: &str, options: &[u8]| {
        let body = [&[0; 4][..], options].concat();
        packet().ipv6(v6(source), v6(destination)).icmp(133, 0, &body).hop_limit(255)
    };
    assert_eq!(net.leaves(&solicitation("::", "ff02::2", &[])), Reason::Link);
    assert_eq!(net.leaves(&solicitation(POD_LINK, "ff02::2", &link_option(1, MAC))), Reason::Link);
    assert_eq!(net.leaves(&solicitation(POD_LINK, "ff02::1", &[])), Reason::Policy);
    assert_eq!(net.leaves(&solicitation("::", "ff02::1", &[])), Reason::Spoof);
}

#[test]
fn listener_reports_pass_behind_one_router_alert() {
    let net = shut();
    let report = |source, icmp_type| packet().ipv6(v6(source), v6("ff02::16")).icmp(icmp_type, 0, &[0; 4]).hop_limit(1);
    for icmp_type in [131, 132, 143] {
        assert_eq!(net.leaves(&report("::", icmp_type).router_alert()), Reason::Link);
        assert_eq!(net.leaves(&report(POD_LINK, icmp_type).router_alert()), Reason::Link);
        assert_eq!(net.leaves(&report(POD_LINK, icmp_type)), Reason::Policy, "no alert");
        assert_eq!(net.leaves(&report(POD_LINK, icmp_type).router_alert().hop_limit(2)), Reason::Policy);
        assert_eq!(net.leaves(&report(POD6, icmp_type).router_alert()), Reason::Policy);
        assert_eq!(net.leaves(&report("::", icmp_type)), Reason::Spoof);
    }
    assert_eq!(net.leaves(&report(POD_LINK, 130).router_alert()), Reason::Policy, "queries are a router's");
}

#[test]
fn what_only_the_link_can_have_sent_passes_to_a_pod() {
    let net = shut();
    for icmp_type in 133..=137 {
        let message = net.from(net.peer).icmp(icmp_type, 0, &[0; 20]);
        assert_eq!(net.enters(&message.clone().hop_limit(255)), Reason::Link, "type {icmp_type}");
        assert_eq!(net.enters(&message.hop_limit(254)), Reason::Policy, "type {icmp_type}");
    }
    for icmp_type in [130, 131, 132, 143] {
        let message = packet().ipv6(v6("fe80::1"), v6(POD6)).icmp(icmp_type, 0, &[0; 20]).router_alert();
        assert_eq!(net.enters(&message.clone().hop_limit(1)), Reason::Link, "type {icmp_type}");
        assert_eq!(net.enters(&message.hop_limit(2)), Reason::Policy, "type {icmp_type}");
        // A router may have used up the rest of the hop limit.
        let routed = net.from(net.peer).icmp(icmp_type, 0, &[0; 20]).router_alert().hop_limit(1);
        assert_eq!(net.enters(&routed), Reason::Policy, "type {icmp_type}");
    }
}

#[test]
fn an_ipv4_mapped_address_is_no_ipv4_address() {
    let net = shut();
    let mapped = v6("::ffff:10.0.0.5");
    assert_eq!(net.leaves(&packet().ipv6(mapped, v6("fd00:1::7")).udp(1, 2)), Reason::Spoof);
}

#[test]
fn a_pod_with_one_family_alone_is_checked_in_both() {
    for family in [Family::V4, Family::V6] {
        let net = Net::new(family);
        net.node.change_line(VETH, |line| match family {
            Family::V4 => line.ipv6 = [0; 16],
            Family::V6 => line.ipv4 = [0; 4],
        });
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NewFlow, "{family:?}");
        let forged = packet().from_mac(MAC).ip(net.stranger, net.peer).udp(1, 80);
        assert_eq!(net.leaves(&forged), Reason::Spoof, "{family:?}");
    }
}

#[test]
fn an_ipv6_address_whose_halves_are_equal_is_an_address() {
    let net = shut();
    let own = v6("fd00:0:0:5:fd00:0:0:5");
    net.node.change_line(VETH, |line| {
        line.ipv6 = own.octets();
        line.word = EndpointWord::new(RulesetId::ACCEPT_ALL, RulesetId::ACCEPT_ALL, 2);
    });
    let frame = packet().from_mac(MAC).ipv6(own, v6("fd00:1::7")).udp(1, 80);
    assert_eq!(net.leaves(&frame), Reason::NewFlow);
}
