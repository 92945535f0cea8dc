//! The packets of a step.

use npolicy_common::Direction;
use npolicy_ebpf::host::packet;

use super::interest::Step;
use crate::oracle::Origin;

/// Source ports, none of which is a destination port of any step: no packet is taken for a reply.
pub(super) const SOURCE_PORTS: std::ops::Range<u16> = 40_000..64_000;

/// Which packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// The first.
    Opening,
    /// A later one of whoever opened it.
    Segment,
    /// One of the other side.
    Reply,
}

impl Part {
    /// Which way the packet goes, from the pod's point of view.
    pub(super) fn direction(self, step: &Step) -> Direction {
        match self {
            Self::Opening | Self::Segment => step.direction,
            Self::Reply => step.direction.opposite(),
        }
    }
}

/// A packet of a step's flow, as it comes by at the pod's interface.
pub(super) fn frame(step: &Step, part: Part, source_port: u16, mac: [u8; 6]) -> Vec<u8> {
    let (source, destination) = match part.direction(step) {
        Direction::Ingress => (step.remote, step.own),
        Direction::Egress => (step.own, step.remote),
    };
    let ports = if part == Part::Reply { (step.port, source_port) } else { (source_port, step.port) };
    let frame = packet().from_mac(mac).ip(source, destination);
    let frame = match (step.protocol, part) {
        ("TCP", Part::Opening) => frame.tcp(ports.0, ports.1).syn(),
        ("TCP", Part::Segment) => frame.tcp(ports.0, ports.1),
        ("TCP", Part::Reply) => frame.tcp(ports.0, ports.1).syn_ack(),
        ("UDP", _) => frame.udp(ports.0, ports.1),
        // With an INIT chunk.
        ("SCTP", _) => frame.sctp(ports.0, ports.1).payload(&[1, 0, 0, 20]).payload(&[0; 16]),
        (_, Part::Reply) => frame.echo_reply(source_port),
        (_, Part::Opening | Part::Segment) => frame.echo_request(source_port),
    };
    frame.build()
}

/// The interface by which a packet came into the node; 0: the node made it.
pub(super) fn came_by(direction: Direction, origin: Origin, own: u32, other: u32) -> u32 {
    match (direction, origin) {
        (Direction::Egress, _) | (Direction::Ingress, Origin::PodSelf) => own,
        (Direction::Ingress, Origin::NodeSelf) => 0,
        (Direction::Ingress, Origin::ByAddress) => other,
    }
}
