//! What the pod's own TCP sockets say of a connection whose entry was lost.
//!
//! State is a cache: losing an entry must not break an allowed TCP flow, and an ACK scan must gain nothing. So the pod's
//! socket remembers what the entry said, as a mark. Only `from_endpoint` writes marks: on each SYN of the pod that policy
//! accepts, and once a connection that the pod accepted has a full socket. What leaves a pod proves nothing by itself:
//! behind a raw frame stands a packet or raw socket, and a SYN forged on the pod's own loopback makes its listener answer
//! any address.

use npolicy_common::{Direction, Origin, Reason, endpoint_flags, socket_mark};

use crate::flow::{self, Address, FlowKey};
use crate::hook::{Hook, Outcome, Question, Steps, same};
use crate::parse::ether_type;
use crate::tables::Line;

/// A TCP connection as the pod's stack knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// The pod's network namespace as the node's numbers it; -1: no look-up.
    pub netns_id: i32,
    /// Whether the addresses are IPv4's, in the form of a [`crate::Packet`].
    pub is_ipv4: bool,
    /// Whether the packet's sender can be the pod's socket: it leaves the pod. Towards a pod the sender is another's.
    pub may_be_sender: bool,
    /// The pod's address.
    pub local: [u64; 2],
    /// The other side's.
    pub remote: [u64; 2],
    /// Host order.
    pub local_port: u16,
    /// Host order.
    pub remote_port: u16,
}

/// The socket of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Socket {
    /// Nobody can be asked: the namespace is not known.
    Unasked,
    /// There is none. A closed one and one in TIME_WAIT count as none.
    Absent,
    /// A listener only, which has not made one yet.
    Listener,
    /// A request of a client that the pod has answered.
    HalfOpen,
    /// A full one, with its mark; 0 if it has none.
    Full(u32),
}

/// What became of a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marking {
    /// The socket carries it.
    Done,
    /// There is no socket that could carry it, or nobody can be asked.
    NoSocket,
    /// There will be one: a listener or a request.
    NotYet,
    /// The socket takes none: its memory for options is full.
    Refused,
}

impl Connection {
    #[inline(always)]
    fn of<K: Steps>(hook: &Hook<K>, question: &Question) -> Self {
        let packet = &question.careful.packet;
        let is_ipv4 = question.ether_type == ether_type::IPV4;
        let netns_id = hook.line.netns_id();
        match hook.direction {
            Direction::Egress => Self {
                netns_id,
                is_ipv4,
                may_be_sender: true,
                local: packet.source,
                remote: packet.destination,
                local_port: packet.source_port,
                remote_port: packet.destination_port,
            },
            Direction::Ingress => Self {
                netns_id,
                is_ipv4,
                may_be_sender: false,
                local: packet.destination,
                remote: packet.source,
                local_port: packet.destination_port,
                remote_port: packet.source_port,
            },
        }
    }

    /// The pod's own listener on the connection's port answers this one: a remote that nobody has.
    #[inline(always)]
    fn to_listener(self) -> Self {
        Self { may_be_sender: false, remote: [0; 2], remote_port: 0, ..self }
    }
}

/// Marks the socket of a SYN that the pod sends as opened by it. A socket that takes no mark opens nothing: its connection
/// could not be told from a forged one later.
#[inline(always)]
pub fn mark_opened<K: Steps>(kernel: K, question: &Question, outcome: Outcome) -> Outcome {
    let Some(hook) = Hook::of(kernel, question) else { return Outcome::of(Reason::NoEndpoint) };
    match kernel.mark_socket(&Connection::of(&hook, question), socket_mark::OPENED) {
        Marking::Refused => Outcome::of(Reason::NoSocketMark).with_class(outcome.class()),
        Marking::Done | Marking::NoSocket | Marking::NotYet => outcome,
    }
}

/// Marks the socket of an accepted ingress flow, with the flow's origin, and notes in the entry that it is done. A full
/// socket is marked once; where there will never be one, that is done too.
#[inline(always)]
pub fn mark_accepted<A: Address, K: Steps>(kernel: K, question: &Question, outcome: Outcome) -> Outcome {
    let Some(hook) = Hook::of(kernel, question) else { return outcome };
    let mark = accepted_mark(outcome.origin());
    match kernel.mark_socket(&Connection::of(&hook, question), mark) {
        Marking::NotYet | Marking::Refused => return outcome,
        Marking::Done | Marking::NoSocket => {}
    }
    let key = FlowKey::<A>::of(hook.line.endpoint(), hook.direction, &question.careful.packet);
    if let Some(found) = flow::search(kernel, &key, hook.now).and_then(|search| search.found()) {
        found.set_key(found.key.with_mark());
    }
    outcome
}

#[inline(always)]
const fn accepted_mark(origin: Origin) -> u32 {
    socket_mark::ACCEPTED | (origin.0 as u32) << socket_mark::ORIGIN_SHIFT
}

/// Judges a TCP segment that belongs to no entry and cannot open a flow, by what the pod's socket says.
///
/// 1. The pod opened the connection: its egress is judged, and the entry made again.
/// 2. The pod accepted it: its ingress is judged, and the entry made again. Towards the pod every socket that is not
///    marked as opened says so; from the pod only a mark does.
/// 3. A segment from the pod on a socket without a mark: either side may have opened it, so both directions must accept.
///    It passes without an entry.
/// 4. No socket: dropped where the hook's own direction is governed.
/// 5. Nobody can be asked: as 3.
#[inline(always)]
pub fn recover<A: Address, K: Steps>(kernel: K, question: &Question) -> Outcome {
    let Some(hook) = Hook::of(kernel, question) else { return Outcome::of(Reason::NoEndpoint) };
    let key = FlowKey::<A>::of(hook.line.endpoint(), hook.direction, &question.careful.packet);
    let connection = Connection::of(&hook, question);
    let is_egress = same(hook.direction, Direction::Egress);
    let by_class = hook.peer_by_origin(Origin::CLASS, key.remote);
    let mut mark = match kernel.socket(&connection) {
        Socket::Absent | Socket::Listener if hook.is_governed(hook.direction) => {
            return hook.no_flow().with_class(by_class.class());
        }
        Socket::Absent | Socket::Listener => return Outcome::of(Reason::Untracked),
        Socket::Unasked => return hook.judge_both_ways(&key),
        Socket::HalfOpen => 0,
        Socket::Full(0) if hook.line.flags() & endpoint_flags::SOCKETS_MAY_BE_OLDER != 0 => {
            if !matches!(kernel.socket(&connection.to_listener()), Socket::Listener) {
                mark_older(kernel, &connection, socket_mark::OPENED)
            } else if is_egress && by_class.is_node() {
                // The node may have opened it or somebody masqueraded; its next packet tells.
                return Outcome::of(Reason::Recovered);
            } else {
                mark_older(kernel, &connection, accepted_mark(hook.peer(key.remote).origin))
            }
        }
        Socket::Full(mark) => mark,
    };
    if !is_egress && mark & socket_mark::OPENED == 0 {
        mark = accepted_mark(hook.peer(key.remote).origin);
    }
    let origin = Origin((mark >> socket_mark::ORIGIN_SHIFT) as u8 & 3);
    let (direction, origin) = match mark & (socket_mark::OPENED | socket_mark::ACCEPTED) {
        0 => return hook.judge_both_ways(&key),
        socket_mark::ACCEPTED => (Direction::Ingress, origin),
        _ => (Direction::Egress, Origin::CLASS),
    };
    let peer = hook.peer_by_origin(origin, key.remote);
    match hook.evaluate(direction, peer, key.protocol, key.judged_port(direction)) {
        Outcome::OPEN => Outcome::of(Reason::Recovered).with_class(peer.class()).with_entry(direction, origin),
        denied => denied.with_class(peer.class()).of_flow(!same(direction, hook.direction)),
    }
}

/// Marks a full socket that may be older than the programs. Unmarked it stays what it was.
#[inline(always)]
fn mark_older<K: Steps>(kernel: K, connection: &Connection, mark: u32) -> u32 {
    if kernel.mark_socket(connection, mark) == Marking::Done { mark } else { 0 }
}

impl<K: Steps> Hook<K> {
    /// No connection: or, where that is what stands in its way, no pod.
    #[inline(always)]
    fn no_flow(&self) -> Outcome {
        let is_unidentified = self.word.ruleset(self.direction) == npolicy_common::RulesetId::UNIDENTIFIED;
        Outcome::of(if is_unidentified { Reason::Unidentified } else { Reason::NoFlow })
    }

    /// Accepts what both directions accept, by class in the pod's egress and as new in its ingress, without an entry.
    #[inline(always)]
    fn judge_both_ways<A: Address>(&self, key: &FlowKey<A>) -> Outcome {
        let own = self.peer(key.remote);
        let opposite = self.direction.opposite();
        let by_class = self.peer_by_origin(Origin::CLASS, key.remote);
        let mut outcome = self.evaluate(self.direction, own.word, key.protocol, key.judged_port(self.direction));
        if outcome == Outcome::OPEN {
            outcome = self.evaluate(opposite, by_class, key.protocol, key.judged_port(opposite));
        }
        let reason = match outcome {
            Outcome::OPEN => Reason::Recovered,
            _ if outcome.is(Reason::Unidentified) => Reason::Unidentified,
            _ => Reason::NoFlow,
        };
        Outcome::of(reason).with_class(by_class.class())
    }
}
