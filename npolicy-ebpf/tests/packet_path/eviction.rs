//! Full buckets: who has to go. One bucket of four entries, or two choices of the same.

use npolicy_common::{EndpointLine, EndpointWord, Reason, RulesetId, timeouts};
use npolicy_ebpf::host::HostFrame;

use crate::net::{ENDPOINT, Family, Net, both_families, line};

/// Sends a UDP or TCP packet of another pod of this node out; returns its reason.
fn other_leaves(net: &Net, pod: u16, port: u16, is_tcp: bool) -> Reason {
    let ifindex = 100 + pod as u32;
    let word = EndpointWord::new(RulesetId::ACCEPT_ALL, RulesetId::ACCEPT_ALL, 1);
    net.node.put_line(EndpointLine { ifindex, endpoint: 1 + pod, slot: 100 + pod, word, ..line() });
    let packet = net.to(net.peer);
    let packet = if is_tcp { packet.tcp(port, 80).syn() } else { packet.udp(port, 80) };
    let (_, reasons) =
        net.node.run(npolicy_common::Direction::Egress, &HostFrame::new(packet.build(), ifindex, ifindex));
    reasons[0]
}

/// Endpoint numbers of the entries in use, ascending.
fn owners(net: &Net) -> Vec<u16> {
    let mut owners: Vec<u16> = net.node.flows().iter().map(|key| key.endpoint()).collect();
    owners.sort_unstable();
    owners
}

/// A net whose table is a single bucket, so both choices are the same four entries.
fn one_bucket(net: &Net) -> Net {
    Net::with_buckets(net.family, 1)
}

both_families! {
    fn an_expired_entry_goes_first(mut net: Net) {
        let net = one_bucket(&net);
        other_leaves(&net, 0, 1, false);
        net.node.pass_time(timeouts::IDLE + 1);
        for pod in 1..4 {
            other_leaves(&net, pod, 1, false);
        }
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NewFlow);
        assert_eq!(owners(&net), [2, 3, 4, ENDPOINT]);
    }

    fn an_echo_expires_sooner_than_udp(mut net: Net) {
        let net = one_bucket(&net);
        net.leaves(&net.to(net.peer).echo_request(1));
        net.node.pass_time(timeouts::ECHO + 1);
        for pod in 0..3 {
            other_leaves(&net, pod, 1, false);
        }
        assert_eq!(other_leaves(&net, 3, 1, false), Reason::NewFlow);
        assert_eq!(owners(&net), [1, 2, 3, 4]);
    }

    fn a_pod_that_floods_evicts_itself(mut net: Net) {
        let net = one_bucket(&net);
        for pod in 0..3 {
            other_leaves(&net, pod, 1, true);
        }
        for port in 1..=10_000 {
            assert_eq!(net.leaves(&net.to(net.peer).udp(port, 80)), Reason::NewFlow);
        }
        assert_eq!(owners(&net), [1, 2, 3, ENDPOINT]);
        for pod in 0..3 {
            let segment = HostFrame::new(net.to(net.peer).tcp(1, 80).build(), 100 + pod, 100 + pod);
            assert_eq!(net.node.run(npolicy_common::Direction::Egress, &segment).1, [Reason::Flow]);
        }
    }

    fn of_its_own_the_oldest_goes(mut net: Net) {
        let net = one_bucket(&net);
        for port in 1..=4 {
            net.leaves(&net.to(net.peer).udp(port, 80));
            net.node.pass_time(1);
        }
        net.leaves(&net.to(net.peer).udp(1, 80));
        net.node.pass_time(1);
        net.leaves(&net.to(net.peer).udp(5, 80));
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::Flow, "extended since");
        assert_eq!(net.leaves(&net.to(net.peer).udp(2, 80)), Reason::NewFlow, "the oldest went");
    }

    fn else_the_endpoint_that_holds_most_loses_its_oldest(mut net: Net) {
        let net = one_bucket(&net);
        other_leaves(&net, 0, 1, true);
        net.node.pass_time(1);
        for port in [1, 2] {
            other_leaves(&net, 1, port, false);
            net.node.pass_time(1);
        }
        other_leaves(&net, 2, 1, true);
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NewFlow);
        assert_eq!(owners(&net), [1, 2, 3, ENDPOINT]);
        assert_eq!(other_leaves(&net, 1, 2, false), Reason::Flow, "its younger entry stays");
    }

    fn the_newcomer_lives_without_an_entry_where_each_holds_one_and_none_is_tcp(mut net: Net) {
        let mut net = crowd_of_eight(net.family, |_| false);
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NoRoom);
        assert_eq!(net.node.flows().len(), 8);
        net.govern(RulesetId::DENY_ALL, RulesetId::DENY_ALL);
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::Policy, "judged all the same");
    }

    fn a_tcp_entry_goes_where_each_holds_one(mut net: Net) {
        let net = crowd_of_eight(net.family, |pod| pod % 2 == 0);
        let oldest = net.node.flows().iter().filter(|key| key.protocol() == npolicy_common::FlowProtocol::Tcp).min_by_key(|key| key.time()).unwrap().endpoint();
        assert_eq!(net.leaves(&net.to(net.peer).udp(1, 80)), Reason::NewFlow);
        assert!(!owners(&net).contains(&oldest));
        assert_eq!(net.node.flows().len(), 8);
    }
}

/// Two buckets filled by eight pods with an entry each. A flow whose two choices are the same bucket can find it full
/// while the other has room; it is passed over.
fn crowd_of_eight(family: Family, is_tcp: impl Fn(u16) -> bool) -> Net {
    let net = Net::with_buckets(family, 2);
    for pod in 0..1000 {
        if net.node.flows().len() == 8 {
            break;
        }
        other_leaves(&net, pod, 1, is_tcp(pod));
        net.node.pass_time(1);
    }
    let owners = owners(&net);
    assert_eq!(owners.len(), 8);
    assert!(owners.windows(2).all(|pair| pair[0] != pair[1]), "an entry each");
    net
}
