//! The flow table: who may speak for whom, for how long, and what a change of policy does.

use npolicy_common::{Direction, EndpointLine, Reason, RulesetId, timeouts};
use npolicy_ebpf::host::{HostFrame, PodSocket};

use crate::net::{ENDPOINT, NETNS, Net, PEER, UPLINK, VETH, both_families, line};

const OPEN: RulesetId = RulesetId::ACCEPT_ALL;
const SHUT: RulesetId = RulesetId::DENY_ALL;

both_families! {
    fn a_reply_needs_no_policy_of_its_own(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        assert_eq!(net.leaves(&net.to(net.peer).tcp(40_000, 80).syn()), Reason::NewFlow);
        assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000).syn_ack()), Reason::Flow);
        assert_eq!(net.leaves(&net.to(net.peer).tcp(40_000, 80)), Reason::Flow);
        assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_001)), Reason::NoFlow);
    }

    fn a_pod_that_may_not_call_out_answers(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        for open in [net.from(net.peer).udp(5000, 53), net.from(net.peer).sctp(5000, 53), net.from(net.peer).protocol(50, &[0; 8])] {
            assert_eq!(net.enters(&open), Reason::NewFlow);
        }
        for reply in [net.to(net.peer).udp(53, 5000), net.to(net.peer).sctp(53, 5000), net.to(net.peer).protocol(50, &[0; 8])] {
            assert_eq!(net.leaves(&reply), Reason::Flow);
        }
        assert_eq!(net.leaves(&net.to(net.peer).udp(53, 5001)), Reason::Policy);
        assert_eq!(net.leaves(&net.to(net.stranger).udp(53, 5000)), Reason::Policy);
    }

    fn flows_are_tracked_before_anything_is_governed(mut net: Net) {
        assert_eq!(net.leaves(&net.to(net.peer).udp(5000, 53)), Reason::NewFlow);
        net.govern(SHUT, net.peer_only());
        assert_eq!(net.enters(&net.from(net.peer).udp(53, 5000)), Reason::Rejudged);
    }

    // Judged in the packet's own direction instead, one policy change would stall every reply for ever.
    fn an_old_entry_is_judged_in_the_direction_that_made_it(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        net.leaves(&net.to(net.peer).tcp(40_000, 80).syn());
        net.raise();
        assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000)), Reason::Rejudged);
        assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000)), Reason::Flow);
        assert_eq!(net.leaves(&net.to(net.peer).tcp(40_000, 80)), Reason::Flow);
    }

    // With the time in the mask, extending an entry would lose it.
    fn extending_an_entry_does_not_lose_it(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        net.leaves(&net.to(net.peer).udp(5000, 53));
        for _ in 0..10 {
            net.node.pass_time(timeouts::IDLE - 1);
            assert_eq!(net.leaves(&net.to(net.peer).udp(5000, 53)), Reason::Flow);
        }
        assert_eq!(net.node.flows().len(), 1);
    }

    // Erased, the other side's next segment would be a miss that the other direction's policy accepts.
    fn a_revoked_connection_stays_cut_from_both_sides(mut net: Net) {
        net.node.change_line(VETH, |line| line.netns_id = -1);
        net.govern(net.peer_only(), OPEN);
        net.enters(&net.from(net.peer).tcp(40_000, 80).syn());
        net.leaves(&net.to(net.peer).tcp(80, 40_000).syn_ack());
        net.govern(SHUT, OPEN);
        for _ in 0..3 {
            assert_eq!(net.leaves(&net.to(net.peer).tcp(80, 40_000)), Reason::Policy);
            assert_eq!(net.enters(&net.from(net.peer).tcp(40_000, 80)), Reason::Policy);
        }
        assert_eq!(net.node.flows().len(), 1, "the refused entry remembers who opened the flow");
        net.govern(net.peer_only(), OPEN);
        assert_eq!(net.leaves(&net.to(net.peer).tcp(80, 40_000)), Reason::Rejudged);
    }

    fn a_refused_packet_extends_nothing(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        net.enters(&net.from(net.peer).udp(5000, 53));
        let time = net.node.flows()[0].time();
        net.govern(SHUT, SHUT);
        net.node.pass_time(10);
        assert_eq!(net.enters(&net.from(net.peer).udp(5000, 53)), Reason::Policy);
        assert_eq!(net.node.flows()[0].time(), time);
    }

    // A reply cannot show that the node itself opened the connection.
    fn the_origin_is_kept_when_an_entry_is_judged_again(mut net: Net) {
        net.govern(SHUT, SHUT);
        assert_eq!(net.enters_by(0, &net.from(net.host).tcp(40_000, 80).syn()), Reason::NewFlow);
        for _ in 0..3 {
            net.raise();
            assert_eq!(net.leaves(&net.to(net.host).tcp(80, 40_000)), Reason::Rejudged);
            net.raise();
            assert_eq!(net.enters_by(0, &net.from(net.host).tcp(40_000, 80)), Reason::Rejudged);
        }
    }

    fn only_what_the_node_makes_is_the_nodes(mut net: Net) {
        net.govern(SHUT, SHUT);
        assert_eq!(net.enters(&net.from(net.host).tcp(40_000, 80).syn()), Reason::Policy, "it was forwarded");
        assert_eq!(net.enters_by(0, &net.from(net.peer).tcp(40_000, 80).syn()), Reason::Policy, "another's address");
        assert_eq!(net.leaves(&net.to(net.host).tcp(40_000, 80).syn()), Reason::Policy, "towards the node nothing is exempt");
    }

    fn a_probes_entry_does_not_speak_for_a_masqueraded_packet(mut net: Net) {
        net.govern(SHUT, SHUT);
        net.enters_by(0, &net.from(net.host).udp(40_000, 80));
        assert_eq!(net.enters(&net.from(net.host).udp(40_000, 80)), Reason::Policy);
        assert_eq!(net.enters_by(0, &net.from(net.host).udp(40_000, 80)), Reason::Flow, "and the entry is still the node's");
    }

    fn an_entry_refused_by_class_does_not_refuse_the_node(mut net: Net) {
        let everybody = net.node.new_ruleset();
        net.node.accept_all(everybody, npolicy_common::Class::PLAIN);
        net.govern(everybody, SHUT);
        assert_eq!(net.enters(&net.from(net.host).udp(40_000, 80)), Reason::NewFlow);
        net.govern(SHUT, SHUT);
        assert_eq!(net.enters(&net.from(net.host).udp(40_000, 80)), Reason::Policy);
        assert_eq!(net.enters_by(0, &net.from(net.host).udp(40_000, 80)), Reason::NewFlow);
        assert_eq!(net.node.flows().len(), 1, "it takes the entry's place");
        assert_eq!(net.leaves(&net.to(net.host).udp(80, 40_000)), Reason::Flow);
    }

    fn a_pod_reaches_itself_through_a_service_where_its_row_says_so(mut net: Net) {
        let ruleset = net.node.new_ruleset();
        net.node.accept_all(ruleset, npolicy_common::Class::POD_SELF);
        net.govern(ruleset, OPEN);
        assert_eq!(net.enters_by(VETH, &net.from(net.host).tcp(40_000, 80).syn()), Reason::NewFlow);
        assert_eq!(net.enters_by(UPLINK, &net.from(net.host).tcp(40_001, 80).syn()), Reason::Policy);
        assert_eq!(net.enters_by(UPLINK, &net.from(net.host).tcp(40_000, 80)), Reason::NoFlow, "the entry is the pod's own");
    }

    fn a_syn_against_an_entry_is_judged_as_new(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        net.leaves(&net.to(net.peer).tcp(40_000, 80).syn());
        assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000).syn()), Reason::Policy);
        assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000)), Reason::Flow, "the entry is left alone");
        net.govern(net.peer_only(), net.peer_only());
        assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000).syn()), Reason::NewFlow);
        let flows = net.node.flows();
        assert_eq!((flows.len(), flows[0].direction()), (1, Direction::Ingress), "it takes the entry's place");
    }

    fn a_source_port_is_used_again_at_once(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        for _ in 0..100 {
            assert_eq!(net.leaves(&net.to(net.peer).tcp(40_000, 80).syn()), Reason::NewFlow);
            assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000).syn_ack()), Reason::Flow);
        }
        assert_eq!(net.node.flows().len(), 1);
    }

    fn replies_do_not_extend_anything_but_tcp(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        for (open, reply) in [
            (net.to(net.peer).udp(5000, 53), net.from(net.peer).udp(53, 5000)),
            (net.to(net.peer).sctp(5000, 53), net.from(net.peer).sctp(53, 5000)),
            (net.to(net.peer).protocol(47, &[0; 8]), net.from(net.peer).protocol(47, &[0; 8])),
        ] {
            net.leaves(&open);
            net.node.pass_time(timeouts::IDLE);
            assert_eq!(net.enters(&reply), Reason::Flow, "within the window");
            net.node.pass_time(1);
            assert_eq!(net.enters(&reply), Reason::Policy, "behind it");
        }
        net.leaves(&net.to(net.peer).tcp(40_000, 80).syn());
        for _ in 0..10 {
            net.node.pass_time(timeouts::TCP - 1);
            assert_eq!(net.enters(&net.from(net.peer).tcp(80, 40_000)), Reason::Flow);
        }
    }

    // A second entry of the flow would hide behind the one that ran out.
    fn a_flow_that_ran_out_is_opened_in_its_own_place(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        for _ in 0..3 {
            assert_eq!(net.leaves(&net.to(net.peer).udp(5000, 53)), Reason::NewFlow);
            assert_eq!(net.enters(&net.from(net.peer).udp(53, 5000)), Reason::Flow);
            assert_eq!(net.node.flows().len(), 1);
            net.node.pass_time(timeouts::IDLE + 1);
        }
    }

    fn the_time_wraps_and_nothing_runs_out_early(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        net.node.jiffies.set(((npolicy_common::FlowData::TIME_LIMIT as u64) << 8) - (20 << 8));
        net.leaves(&net.to(net.peer).udp(5000, 53));
        for _ in 0..4 {
            net.node.pass_time(30);
            assert_eq!(net.leaves(&net.to(net.peer).udp(5000, 53)), Reason::Flow);
        }
    }

    fn only_an_echo_reply_of_the_same_id_is_a_reply(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        assert_eq!(net.leaves(&net.to(net.peer).echo_request(7)), Reason::NewFlow);
        assert_eq!(net.enters(&net.from(net.peer).echo_reply(7)), Reason::Flow);
        assert_eq!(net.enters(&net.from(net.peer).echo_reply(8)), Reason::Policy);
        assert_eq!(net.enters(&net.from(net.peer).echo_request(7)), Reason::Policy);
        assert_eq!(net.enters(&net.from(net.peer).icmp(40, 0, &[0, 7, 0, 1])), Reason::Policy, "another type");
        net.node.pass_time(timeouts::ECHO + 1);
        assert_eq!(net.enters(&net.from(net.peer).echo_reply(7)), Reason::Policy);
    }

    fn an_echo_request_against_an_entry_makes_none(mut net: Net) {
        net.govern(net.peer_only(), net.peer_only());
        net.leaves(&net.to(net.peer).echo_request(7));
        assert_eq!(net.enters(&net.from(net.peer).echo_request(7)), Reason::Untracked);
        let flows = net.node.flows();
        assert_eq!((flows.len(), flows[0].direction()), (1, Direction::Egress));
    }

    fn an_echo_reply_opens_nothing(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        assert_eq!(net.enters(&net.from(net.peer).echo_reply(7)), Reason::Untracked);
        assert_eq!(net.leaves(&net.to(net.peer).echo_request(7)), Reason::Policy);
        assert_eq!(net.node.flows().len(), 0);
    }

    fn other_icmp_is_judged_one_by_one(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        assert_eq!(net.enters(&net.from(net.peer).icmp(42, 0, &[0; 4])), Reason::Untracked);
        assert_eq!(net.leaves(&net.to(net.peer).icmp(43, 0, &[0; 4])), Reason::Policy);
        assert_eq!(net.node.flows().len(), 0);
    }

    fn an_entry_never_speaks_for_another_endpoint(mut net: Net) {
        let other = EndpointLine { ifindex: 8, endpoint: ENDPOINT + 1, word: npolicy_common::EndpointWord::new(SHUT, SHUT, 1), ..line() };
        net.node.put_line(other);
        net.leaves(&net.to(net.peer).udp(5000, 53));
        let reply = net.from(net.peer).udp(53, 5000).build();
        assert_eq!(net.run(Direction::Ingress, &HostFrame::new(reply.clone(), VETH, UPLINK)), Reason::Flow);
        let (_, reasons) = net.node.run(Direction::Ingress, &HostFrame::new(reply, 8, UPLINK));
        assert_eq!(reasons, [Reason::Policy]);
    }

    // Reading the flags of a segment: 64 combinations, without an entry, with one in its direction, against it.
    fn a_segment_is_judged_by_its_flags_and_its_entry(mut net: Net) {
        net.node.change_line(VETH, |line| line.netns_id = -1);
        net.govern(SHUT, net.peer_only());
        for flags in 0..64u8 {
            let is_syn = flags & 0x12 == 0x02;
            net.node.erase_flows();
            let out = net.to(net.peer).tcp(40_000, 80).flags(flags);
            let back = net.from(net.peer).tcp(80, 40_000).flags(flags);
            let missed = if is_syn { Reason::NewFlow } else { Reason::NoFlow };
            assert_eq!(net.leaves(&out), missed, "flags {flags:#x}, no entry");
            assert_eq!(net.node.flows().len(), is_syn as usize);
            net.leaves(&net.to(net.peer).tcp(40_000, 80).syn());
            let own = if is_syn { Reason::NewFlow } else { Reason::Flow };
            assert_eq!(net.leaves(&out), own, "flags {flags:#x}, own direction");
            let against = if is_syn { Reason::Policy } else { Reason::Flow };
            assert_eq!(net.enters(&back), against, "flags {flags:#x}, against the entry");
            assert_eq!(net.node.flows().len(), 1);
        }
    }

    fn a_slow_answer_to_the_node_survives_every_raise(mut net: Net) {
        net.govern(SHUT, SHUT);
        let far = (net.host, 40_000);
        net.node.put_socket(NETNS, (net.pod, 80), far, Some(PodSocket::Full(0)));
        net.enters_by(0, &net.from(net.host).tcp(40_000, 80).syn());
        for _ in 0..1000 {
            net.raise();
            assert_eq!(net.leaves(&net.to(net.host).tcp(80, 40_000)), Reason::Rejudged);
        }
    }

    fn every_packet_of_a_row_is_counted_in_it(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        for _ in 0..5 {
            net.leaves(&net.to(net.peer).udp(5000, 53));
            net.leaves(&net.to(net.stranger).udp(5000, 53));
        }
        assert_eq!(net.count(Direction::Egress, Reason::NewFlow), 1);
        assert_eq!(net.count(Direction::Egress, Reason::Flow), 4);
        assert_eq!(net.count(Direction::Egress, Reason::Policy), 5);
    }

    fn ports_of_zero_are_ports_like_any(mut net: Net) {
        let ruleset = net.node.new_ruleset();
        net.node.accept_ports(ruleset, PEER, npolicy_common::FlowProtocol::Udp, &[53]);
        net.govern(SHUT, ruleset);
        assert_eq!(net.leaves(&net.to(net.peer).udp(0, 0)), Reason::Policy);
        assert_eq!(net.leaves(&net.to(net.peer).udp(0, 53)), Reason::NewFlow);
        assert_eq!(net.enters(&net.from(net.peer).udp(53, 1)), Reason::Policy);
    }
}
