//! Entries are lost; the pod's sockets remember.

use npolicy_common::{Class, Direction, EventState, Origin, Reason, RulesetId, endpoint_flags, socket_mark};
use npolicy_ebpf::host::PodSocket;

use crate::net::{NETNS, Net, UPLINK, VETH, both_families};

const OPEN: RulesetId = RulesetId::ACCEPT_ALL;
const SHUT: RulesetId = RulesetId::DENY_ALL;
const OPENED: u32 = socket_mark::OPENED;

fn accepted(origin: Origin) -> u32 {
    socket_mark::ACCEPTED | (origin.0 as u32) << socket_mark::ORIGIN_SHIFT
}

/// Gives the pod a socket of the connection between its port 40000 and the peer's 80.
fn give(net: &Net, socket: PodSocket) {
    net.node.put_socket(NETNS, (net.pod, 40_000), (net.peer, 80), Some(socket));
}

fn given(net: &Net) -> Option<PodSocket> {
    net.node.socket_of(NETNS, (net.pod, 40_000), (net.peer, 80))
}

/// A listener on the pod's port 40000.
fn listen(net: &Net) {
    let nobody = if net.family == crate::net::Family::V4 { [0; 4].into() } else { [0; 16].into() };
    net.node.put_socket(NETNS, (net.pod, 40_000), (nobody, 0), Some(PodSocket::Listener));
}

#[track_caller]
fn out(net: &Net) -> Reason {
    net.leaves(&net.to(net.peer).tcp(40_000, 80))
}

#[track_caller]
fn back(net: &Net) -> Reason {
    net.enters(&net.from(net.peer).tcp(80, 40_000))
}

both_families! {
    fn a_connection_that_the_pod_opened_is_judged_as_its_egress(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        give(&net, PodSocket::Full(0));
        net.leaves(&net.to(net.peer).tcp(40_000, 80).syn());
        assert_eq!(given(&net), Some(PodSocket::Full(OPENED)));
        for side in [back, out] {
            net.node.erase_flows();
            assert_eq!(side(&net), Reason::Recovered);
            assert_eq!(side(&net), Reason::Flow, "the entry is back");
            let [key] = net.node.flows()[..] else { panic!("one entry") };
            assert_eq!((key.direction(), key.origin()), (Direction::Egress, Origin::CLASS));
        }
        net.govern(SHUT, SHUT);
        net.node.erase_flows();
        assert_eq!(back(&net), Reason::Policy);
        assert_eq!(out(&net), Reason::Policy);
    }

    fn a_connection_that_the_pod_accepted_is_judged_as_its_ingress(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        listen(&net);
        net.enters(&net.from(net.peer).tcp(80, 40_000).syn());
        give(&net, PodSocket::HalfOpen);
        assert_eq!(net.leaves(&net.to(net.peer).tcp(40_000, 80).syn_ack()), Reason::Flow);
        assert!(!net.node.flows()[0].is_marked(), "there is no full socket yet");
        give(&net, PodSocket::Full(0));
        assert_eq!(out(&net), Reason::Flow);
        assert_eq!(given(&net), Some(PodSocket::Full(accepted(Origin::CLASS))));
        assert!(net.node.flows()[0].is_marked());
        for side in [back, out] {
            net.node.erase_flows();
            assert_eq!(side(&net), Reason::Recovered);
            assert_eq!(net.node.flows()[0].direction(), Direction::Ingress);
        }
        net.govern(SHUT, OPEN);
        net.node.erase_flows();
        assert_eq!(out(&net), Reason::Policy, "an open egress does not let the revoked connection run the other way round");
        assert_eq!(back(&net), Reason::Policy);
    }

    fn the_mark_keeps_the_origin(mut net: Net) {
        net.govern(SHUT, SHUT);
        let far = (net.host, 80);
        net.node.put_socket(NETNS, (net.pod, 40_000), far, Some(PodSocket::Full(0)));
        net.enters_by(0, &net.from(net.host).tcp(80, 40_000).syn());
        net.leaves(&net.to(net.host).tcp(40_000, 80));
        assert_eq!(net.node.socket_of(NETNS, (net.pod, 40_000), far), Some(PodSocket::Full(accepted(Origin::NODE_SELF))));
        net.node.erase_flows();
        assert_eq!(net.leaves(&net.to(net.host).tcp(40_000, 80)), Reason::Recovered);
        assert_eq!(net.node.flows()[0].origin(), Origin::NODE_SELF);
        net.node.erase_flows();
        assert_eq!(net.enters_by(0, &net.from(net.host).tcp(80, 40_000)), Reason::Recovered);
        net.node.erase_flows();
        assert_eq!(net.enters_by(UPLINK, &net.from(net.host).tcp(80, 40_000)), Reason::Policy, "masqueraded");
    }

    fn towards_the_pod_a_socket_without_a_mark_was_accepted(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        for socket in [PodSocket::HalfOpen, PodSocket::Full(0)] {
            net.node.erase_flows();
            give(&net, socket);
            assert_eq!(back(&net), Reason::Recovered);
            let [key] = net.node.flows()[..] else { panic!("one entry") };
            assert_eq!((key.direction(), key.is_marked()), (Direction::Ingress, false));
        }
    }

    // A SYN forged on the pod's own loopback makes its listener answer any address.
    fn from_the_pod_an_unmarked_socket_proves_nothing(mut net: Net) {
        for socket in [PodSocket::HalfOpen, PodSocket::Full(0)] {
            give(&net, socket);
            for (ingress, egress) in [(OPEN, SHUT), (SHUT, OPEN), (SHUT, SHUT)] {
                net.govern(ingress, egress);
                assert_eq!(out(&net), Reason::NoFlow);
                assert_eq!(net.leaves(&net.to(net.peer).tcp(40_000, 80).syn_ack()), Reason::NoFlow);
            }
            net.govern(net.peer_only(), net.peer_only());
            assert_eq!(out(&net), Reason::Recovered);
            assert_eq!(net.node.flows().len(), 0, "it passes without an entry");
        }
    }

    fn without_a_socket_a_segment_is_nobodys(mut net: Net) {
        net.govern(OPEN, net.peer_only());
        assert_eq!(out(&net), Reason::NoFlow, "though policy accepts the peer");
        assert_eq!(back(&net), Reason::Untracked, "that direction is not governed");
        listen(&net);
        assert_eq!(out(&net), Reason::NoFlow, "a listener has no connection");
        assert_eq!(net.node.flows().len(), 0);
    }

    fn an_ack_scan_gains_nothing(mut net: Net) {
        net.govern(net.peer_only(), OPEN);
        listen(&net);
        for flags in [0x10, 0x11, 0x14, 0x18, 0x01, 0x00, 0x29, 0x04, 0x12] {
            assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000).flags(flags)), Reason::NoFlow);
        }
        assert_eq!(net.node.flows().len(), 0);
    }

    fn where_no_socket_can_be_asked_both_directions_must_accept(mut net: Net) {
        net.node.change_line(VETH, |line| line.netns_id = -1);
        let peer = net.peer_only();
        for (ingress, egress, expected) in [(OPEN, OPEN, Reason::Recovered), (peer, peer, Reason::Recovered), (SHUT, OPEN, Reason::NoFlow), (OPEN, SHUT, Reason::NoFlow)] {
            net.govern(ingress, egress);
            assert_eq!(out(&net), expected, "{ingress:?} {egress:?}");
            assert_eq!(back(&net), expected, "{ingress:?} {egress:?}");
        }
        assert_eq!(net.node.flows().len(), 0);
    }

    fn a_syn_whose_socket_takes_no_mark_is_dropped(mut net: Net) {
        give(&net, PodSocket::Full(0));
        net.node.sockets_take_marks.set(false);
        let syn = net.to(net.peer).tcp(40_000, 80).syn();
        assert_eq!(net.leaves(&syn), Reason::NoSocketMark);
        assert_eq!(net.node.flows().len(), 0);
        net.node.sockets_take_marks.set(true);
        assert_eq!(net.leaves(&syn), Reason::NewFlow);
    }

    fn a_raw_syn_opens_a_flow_without_a_mark(mut net: Net) {
        assert_eq!(net.leaves(&net.to(net.peer).tcp(40_000, 80).syn()), Reason::NewFlow);
        assert_eq!(given(&net), None);
    }

    fn a_syn_that_policy_denies_marks_nothing(mut net: Net) {
        net.govern(OPEN, SHUT);
        give(&net, PodSocket::Full(0));
        assert_eq!(net.leaves(&net.to(net.peer).tcp(40_000, 80).syn()), Reason::Policy);
        assert_eq!(given(&net), Some(PodSocket::Full(0)));
    }

    fn a_connection_without_a_socket_is_not_looked_up_for_ever(mut net: Net) {
        net.enters(&net.from(net.peer).tcp(80, 40_000).syn());
        assert_eq!(out(&net), Reason::Flow);
        assert!(net.node.flows()[0].is_marked(), "a stack of its own has no socket to mark");
    }

    fn an_older_socket_is_told_by_its_listener(mut net: Net) {
        net.node.change_line(VETH, |line| line.flags = endpoint_flags::SOCKETS_MAY_BE_OLDER);
        net.govern(SHUT, net.peer_only());
        for side in [out, back] {
            net.node.erase_flows();
            give(&net, PodSocket::Full(0));
            assert_eq!(side(&net), Reason::Recovered);
            assert_eq!(given(&net), Some(PodSocket::Full(OPENED)), "nobody listens: the pod opened it");
        }
        listen(&net);
        net.govern(net.peer_only(), SHUT);
        for side in [out, back] {
            net.node.erase_flows();
            give(&net, PodSocket::Full(0));
            assert_eq!(side(&net), Reason::Recovered);
            assert_eq!(given(&net), Some(PodSocket::Full(accepted(Origin::CLASS))));
        }
    }

    fn an_older_connection_of_the_node_waits_for_the_nodes_next_packet(mut net: Net) {
        net.node.change_line(VETH, |line| line.flags = endpoint_flags::SOCKETS_MAY_BE_OLDER);
        net.govern(SHUT, SHUT);
        listen(&net);
        let far = (net.host, 80);
        net.node.put_socket(NETNS, (net.pod, 40_000), far, Some(PodSocket::Full(0)));
        assert_eq!(net.leaves(&net.to(net.host).tcp(40_000, 80)), Reason::Recovered);
        assert_eq!(net.node.socket_of(NETNS, (net.pod, 40_000), far), Some(PodSocket::Full(0)));
        assert_eq!(net.node.flows().len(), 0);
        assert_eq!(net.enters_by(0, &net.from(net.host).tcp(80, 40_000)), Reason::Recovered);
        assert_eq!(net.node.flows()[0].origin(), Origin::NODE_SELF);
    }

    fn allowed_flows_survive_constant_eviction_and_revoked_ones_stay_cut(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        give(&net, PodSocket::Full(0));
        net.leaves(&net.to(net.peer).tcp(40_000, 80).syn());
        for round in 0..100 {
            net.node.erase_flows();
            if round == 50 {
                net.govern(OPEN, SHUT);
            }
            let expected = if round < 50 { Reason::Recovered } else { Reason::Policy };
            assert_eq!(if round % 2 == 0 { back(&net) } else { out(&net) }, expected, "round {round}");
        }
    }

    // A refused answer must never read as a connection that the pod opens.
    fn a_revoked_connection_without_entry_says_which_side_is_refused(mut net: Net) {
        net.govern(SHUT, SHUT);
        let said = |mark, side: fn(&Net) -> Reason| {
            give(&net, PodSocket::Full(mark));
            assert_eq!(side(&net), Reason::Policy);
            let [event] = net.node.take_events()[..] else { panic!("one event") };
            event.state
        };
        assert_eq!(said(OPENED, out), EventState::ORIGINAL);
        assert_eq!(said(OPENED, back), EventState::REPLY);
        assert_eq!(said(accepted(Origin::CLASS), back), EventState::ORIGINAL);
        assert_eq!(said(accepted(Origin::CLASS), out), EventState::REPLY);
    }

    fn an_unidentified_pod_says_so(mut net: Net) {
        net.govern(RulesetId::UNIDENTIFIED, RulesetId::UNIDENTIFIED);
        assert_eq!(out(&net), Reason::Unidentified);
        net.node.change_line(VETH, |line| line.netns_id = -1);
        assert_eq!(out(&net), Reason::Unidentified);
    }
}

#[test]
fn a_class_of_the_peer_is_in_the_event_of_a_lost_flow() {
    let mut net = Net::new(crate::net::Family::V4);
    net.govern(SHUT, SHUT);
    out(&net);
    let [event] = net.node.take_events()[..] else { panic!("one event") };
    assert_eq!(Class(event.class), crate::net::PEER);
}
