//! ICMP errors pass with the flow they are about.

use npolicy_common::{Reason, RulesetId, timeouts};

use crate::net::{Net, both_families};

const OPEN: RulesetId = RulesetId::ACCEPT_ALL;
const SHUT: RulesetId = RulesetId::DENY_ALL;

both_families! {
    fn an_error_about_what_the_pod_sent_enters(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        for sent in [net.to(net.peer).tcp(40_000, 80).syn(), net.to(net.peer).udp(5000, 53), net.to(net.peer).sctp(5, 6), net.to(net.peer).echo_request(9), net.to(net.peer).protocol(47, &[0; 8])] {
            assert_eq!(net.enters(&net.from(net.stranger).unreachable(&sent, 64)), Reason::UnrelatedError, "not yet");
            net.leaves(&sent);
            assert_eq!(net.enters(&net.from(net.stranger).unreachable(&sent, 64)), Reason::Related, "by any router");
        }
        let reply = net.to(net.peer).tcp(80, 40_000);
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&reply, 64)), Reason::UnrelatedError, "no such flow");
    }

    fn an_error_about_what_the_pod_got_leaves(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        for got in [net.from(net.peer).udp(5000, 53), net.from(net.peer).tcp(40_000, 80).syn(), net.from(net.peer).echo_request(9)] {
            net.enters(&got);
            assert_eq!(net.leaves(&net.to(net.peer).unreachable(&got, 64)), Reason::Related);
            assert_eq!(net.leaves(&net.to(net.stranger).unreachable(&got, 64)), Reason::UnrelatedError, "to another than the sender");
        }
    }

    fn a_quote_turned_round_is_refused(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        net.leaves(&net.to(net.peer).udp(5000, 53));
        let turned = net.from(net.peer).udp(53, 5000);
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&turned, 64)), Reason::UnrelatedError);
        net.leaves(&net.to(net.peer).echo_request(9));
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&net.to(net.peer).echo_reply(9), 64)), Reason::UnrelatedError);
    }

    fn an_echo_that_the_pod_never_asked_for_is_not_quoted_as_its_request(mut net: Net) {
        net.govern(net.peer_only(), SHUT);
        assert_eq!(net.enters(&net.from(net.peer).echo_request(9)), Reason::NewFlow);
        let request = net.to(net.peer).echo_request(9);
        assert_eq!(net.enters(&net.from(net.stranger).unreachable(&request, 64)), Reason::UnrelatedError);
        let answer = net.to(net.peer).echo_reply(9);
        assert_eq!(net.enters(&net.from(net.stranger).unreachable(&answer, 64)), Reason::Related);
    }

    fn a_quote_in_anothers_name_is_refused(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        net.leaves(&net.to(net.peer).udp(5000, 53));
        let forged = net.to(net.peer).udp(5000, 53).ip(net.stranger, net.peer);
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&forged, 64)), Reason::UnrelatedError);
    }

    fn a_quote_cut_short_is_refused(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        let sent = net.to(net.peer).tcp(40_000, 80).syn();
        net.leaves(&sent);
        let header = if net.family == crate::net::Family::V4 { 20 } else { 40 };
        for bytes in 0..64 {
            let reason = net.enters(&net.from(net.peer).unreachable(&sent, bytes));
            let expected = if bytes < header + 8 { Reason::UnrelatedError } else { Reason::Related };
            assert_eq!(reason, expected, "{bytes} bytes quoted");
        }
    }

    fn an_error_about_a_refused_flow_is_refused(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        let sent = net.to(net.peer).udp(5000, 53);
        net.leaves(&sent);
        net.raise();
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&sent, 64)), Reason::Related, "judged again");
        net.govern(SHUT, SHUT);
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&sent, 64)), Reason::UnrelatedError);
    }

    fn an_error_extends_nothing(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        let sent = net.to(net.peer).udp(5000, 53);
        net.leaves(&sent);
        net.node.pass_time(timeouts::IDLE);
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&sent, 64)), Reason::Related);
        net.node.pass_time(1);
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&sent, 64)), Reason::UnrelatedError);
    }

    fn an_error_about_nothing_passes_where_nothing_is_governed(mut net: Net) {
        net.govern(OPEN, OPEN);
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&net.to(net.peer).udp(5, 6), 64)), Reason::Untracked);
    }

    fn an_error_that_quotes_an_error_is_refused(mut net: Net) {
        net.govern(SHUT, net.peer_only());
        let sent = net.to(net.peer).udp(5000, 53);
        net.leaves(&sent);
        let error = net.to(net.peer).unreachable(&net.from(net.peer).udp(53, 5000), 64);
        assert_eq!(net.enters(&net.from(net.peer).unreachable(&error, 128)), Reason::UnrelatedError);
    }
}
