//! One pod, its node and some others.

use std::net::IpAddr;

use npolicy_common::{Class, ClassWord, CounterKey, Direction, EndpointLine, EndpointWord, Reason, RulesetId};
use npolicy_ebpf::host::{Builder, HostFrame, Node, packet};

/// The pod's interface on the node.
pub const VETH: u32 = 7;
/// The interface that others come in by.
pub const UPLINK: u32 = 2;
/// The pod's namespace.
pub const NETNS: i32 = 4;
pub const ENDPOINT: u16 = 40_000;
pub const SLOT: u16 = 5;
pub const MAC: [u8; 6] = [0x0a, 0x58, 0x0a, 0, 0, 5];
/// The class of `peer`.
pub const PEER: Class = Class(4);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

/// A node with one pod behind [`VETH`], identified and not governed.
pub struct Net {
    pub node: Node,
    pub family: Family,
    /// The pod's address.
    pub pod: IpAddr,
    /// Of class [`PEER`].
    pub peer: IpAddr,
    /// Of class 0.
    pub stranger: IpAddr,
    /// The node's own.
    pub host: IpAddr,
    generation: u32,
}

impl Net {
    pub fn new(family: Family) -> Self {
        Self::with_buckets(family, 1024)
    }

    pub fn with_buckets(family: Family, buckets: u32) -> Self {
        let address = |text: [&str; 2]| text[family as usize].parse::<IpAddr>().unwrap();
        let net = Self {
            node: Node::new(buckets),
            family,
            pod: address(["10.0.0.5", "fd00::5"]),
            peer: address(["10.0.1.7", "fd00:1::7"]),
            stranger: address(["203.0.113.9", "2001:db8::9"]),
            host: address(["10.0.0.1", "fd00::1"]),
            generation: 1,
        };
        net.node.put_line(line());
        net.node.put_class(net.peer, PEER, 0);
        net.node.put_class(net.host, Class::PLAIN, ClassWord::NODE);
        net
    }

    /// Publishes both rulesets under the next generation.
    pub fn govern(&mut self, ingress: RulesetId, egress: RulesetId) {
        self.generation += 1;
        let word = EndpointWord::new(ingress, egress, self.generation);
        self.node.change_line(VETH, |line| line.word = word);
    }

    /// Raises the generation, nothing else.
    pub fn raise(&mut self) {
        self.generation += 1;
        let generation = self.generation;
        self.node.change_line(VETH, |line| {
            let [ingress, egress] =
                [Direction::Ingress, Direction::Egress].map(|direction| line.word.ruleset(direction));
            line.word = EndpointWord::new(ingress, egress, generation);
        });
    }

    /// A ruleset that accepts everything from or to the peer and nothing else.
    pub fn peer_only(&self) -> RulesetId {
        let ruleset = self.node.new_ruleset();
        self.node.accept_all(ruleset, PEER);
        ruleset
    }

    /// A packet from the pod.
    pub fn to(&self, destination: IpAddr) -> Builder {
        packet().from_mac(MAC).ip(self.pod, destination)
    }

    /// A packet to the pod.
    pub fn from(&self, source: IpAddr) -> Builder {
        packet().ip(source, self.pod)
    }

    /// Sends a frame out of the pod.
    #[track_caller]
    pub fn leaves(&self, frame: &Builder) -> Reason {
        self.run(Direction::Egress, &HostFrame::new(frame.build(), VETH, VETH))
    }

    /// Sends a frame from elsewhere into the pod.
    #[track_caller]
    pub fn enters(&self, frame: &Builder) -> Reason {
        self.enters_by(UPLINK, frame)
    }

    /// Sends a frame into the pod that entered the node by an interface; 0: the node made it.
    #[track_caller]
    pub fn enters_by(&self, ingress_ifindex: u32, frame: &Builder) -> Reason {
        self.run(Direction::Ingress, &HostFrame::new(frame.build(), VETH, ingress_ifindex))
    }

    /// Runs a frame: it is counted once, in its row, and the verdict goes with the reason.
    #[track_caller]
    pub fn run(&self, direction: Direction, frame: &HostFrame) -> Reason {
        let (verdict, reasons) = self.node.run(direction, frame);
        let [reason] = reasons[..] else { panic!("counted {reasons:?} for one packet") };
        assert_eq!(verdict, reason.verdict(), "{reason:?}");
        reason
    }

    /// Counted so far in the pod's row of a direction.
    pub fn count(&self, direction: Direction, reason: Reason) -> u64 {
        self.node.counters(CounterKey::new(SLOT, direction))[reason as usize]
    }
}

/// The pod's line.
pub fn line() -> EndpointLine {
    EndpointLine {
        word: EndpointWord::new(RulesetId::ACCEPT_ALL, RulesetId::ACCEPT_ALL, 1),
        ifindex: VETH,
        endpoint: ENDPOINT,
        slot: SLOT,
        netns_id: NETNS,
        ipv4: [10, 0, 0, 5],
        ipv6: "fd00::5".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        mac: MAC,
        ..EndpointLine::EMPTY
    }
}

/// Each test for either family.
macro_rules! both_families {
    ($($(#[$attribute:meta])* fn $name:ident(mut $net:ident: Net) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test needs all of them")]
            use super::*;

            fn check(family: $crate::net::Family) {
                #[allow(unused_mut, reason = "not every test changes policy")]
                let mut $net = Net::new(family);
                $body
            }

            $(#[$attribute])*
            #[test]
            fn ipv4() {
                check($crate::net::Family::V4);
            }

            $(#[$attribute])*
            #[test]
            fn ipv6() {
                check($crate::net::Family::V6);
            }
        }
    )*};
}
pub(crate) use both_families;
