//! (endpoint, direction, peer class, packet) -> (verdict, reason).
//!
//! Three steps: [`read`] what is not plain, by the rules for frames; [`decide`] by flow table, class and ruleset;
//! [`remember`] a flow that was accepted.

use npolicy_common::{Class, ClassWord, Direction, FlowProtocol, Origin, Reason, RulesetId, endpoint_flags};

use crate::flow::{self, Address, FlowKey};
use crate::frames::{self, FrameRule};
use crate::hook::{Hook, Outcome, Question, Steps, same};
use crate::parse::{self, Careful, ETHERNET, Frame, Kind, Packet, ether_type};
use crate::tables::Line;

/// Reads a frame that is not a plain packet of the pod's (tags, ARP, ICMP, options, headers that are not linear, forged
/// sources, what is not IP), and decides what neither flow table nor policy has a say in.
#[inline(always)]
pub fn read<K: Steps>(kernel: K, question: &mut Question) -> Outcome {
    let Some(hook) = Hook::of(kernel, question) else { return Outcome::of(Reason::NoEndpoint) };
    let (ether_type, start) = match find_header(&hook) {
        Ok(found) => found,
        Err(tag) => {
            question.ether_type = tag;
            return Outcome::of(Reason::Tagged);
        }
    };
    question.ether_type = ether_type;
    let careful = &mut question.careful;
    let read = match ether_type {
        ether_type::IPV4 => parse::careful4(kernel, start, careful),
        ether_type::IPV6 => parse::careful6(kernel, start, careful),
        ether_type::ARP => {
            return match frames::arp(kernel, hook.line, hook.direction, start) {
                FrameRule::Deny(reason) => Outcome::of(reason),
                _ => Outcome::of(Reason::Link),
            };
        }
        _ => Err(Reason::NotIp),
    };
    if let Err(reason) = read {
        return unjudged(&hook, reason as u8);
    }
    let rule = match ether_type {
        ether_type::IPV4 if may_ask_for_address(&hook, &careful.packet) => FrameRule::Pass,
        ether_type::IPV4 => frames::ipv4(hook.line, hook.direction, careful),
        _ => frames::ipv6(kernel, hook.line, hook.direction, careful),
    };
    match rule {
        FrameRule::Pass => Outcome::of(Reason::Link),
        FrameRule::Deny(reason) => Outcome::of(reason),
        FrameRule::Policy if careful.fault != Careful::NO_FAULT => unjudged(&hook, careful.fault),
        FrameRule::Policy => Outcome::OPEN,
    }
}

/// What becomes of a frame that cannot be judged: dropped where its direction is governed.
#[inline(always)]
fn unjudged<K: Steps>(hook: &Hook<K>, number: u8) -> Outcome {
    if hook.is_governed(hook.direction) { Outcome::of_number(number) } else { Outcome::of(Reason::Link) }
}

/// Finds the EtherType behind the tags, and where its header starts.
///
/// # Errors
/// The tag's EtherType, where the interface does not allow tags, whether beside the data or in it, or where there are
/// more than two in it (IEEE 802.1ad).
#[inline(always)]
fn find_header<K: Steps>(hook: &Hook<K>) -> Result<(u16, u32), u16> {
    let kernel = hook.kernel;
    let tags_allowed = hook.line.flags() & endpoint_flags::TAGS_ALLOWED != 0;
    if kernel.has_outer_tag() && !tags_allowed {
        return Err(ether_type::TAG);
    }
    let mut at = ETHERNET;
    for _ in 0..3 {
        // A frame too short for an EtherType is none of IP's.
        let found = kernel.load::<1>(at - 4).map_or(0, |[word]| word as u16);
        if found != ether_type::TAG && found != ether_type::SERVICE_TAG {
            return Ok((found, at));
        }
        if !tags_allowed {
            return Err(found);
        }
        at += 4;
    }
    Err(ether_type::TAG)
}

/// Whether a packet asks for an IPv4 address or answers, on an interface that has none and is not identified yet.
#[inline(always)]
fn may_ask_for_address<K: Steps>(hook: &Hook<K>, packet: &Packet) -> bool {
    let is_dhcp = match hook.direction {
        Direction::Egress => packet.source[1] == 0 && frames::is_dhcp_request(packet),
        Direction::Ingress => frames::is_dhcp_reply(packet),
    };
    is_dhcp && u32::is_absent(hook.line) && hook.word.ruleset(hook.direction) == RulesetId::UNIDENTIFIED
}

/// Decides about a packet that the quick way does not accept: new, of an older generation, a SYN, ICMP, or no flow's.
#[inline(always)]
pub fn decide<A: Address, K: Steps>(kernel: K, question: &Question) -> Outcome {
    let Some(hook) = Hook::of(kernel, question) else { return Outcome::of(Reason::NoEndpoint) };
    let hook = &hook;
    let packet = &question.careful.packet;
    let key = FlowKey::<A>::of(hook.line.endpoint(), hook.direction, packet);
    if packet.kind == Kind::Icmp {
        return judge_untracked(hook, &key);
    }
    let Some(search) = flow::search(kernel, &key, hook.now) else {
        // An array has every bucket its mask leads to, so this is for the verifier; but it must not open anything.
        return Outcome::of(Reason::NoFlow);
    };
    let mut is_against = false;
    if let Some(found) = search.found()
        && hook.speaks(&found)
    {
        is_against = !same(found.key.direction(), hook.direction);
        if packet.kind != Kind::Syn && (!is_against || flow::is_reply(packet.kind)) {
            if found.key.generation() == hook.word.generation() {
                hook.keep(&found);
                let outcome = Outcome::of(Reason::Flow);
                let must_mark = hook.must_mark(&found);
                return if must_mark { outcome.with_unmarked(found.key.origin()) } else { outcome };
            }
            let direction = found.key.direction();
            let peer = hook.peer_by_origin(found.key.origin(), key.remote);
            let outcome = hook.evaluate(direction, peer, key.protocol, key.judged_port(direction));
            if outcome == Outcome::OPEN {
                let entry = found.key.with_generation(hook.word.generation());
                let extends = flow::extends(entry, hook.direction);
                let entry = if extends { entry.with_time(hook.now) } else { entry };
                // The generation is part of the mask, so the whole entry is written again, where it stands.
                found.write(&key, entry, &kernel.secrets());
                return Outcome::of(Reason::Rejudged);
            }
            // A refused flow stays refused and its entry stays: it remembers who opened it. Erased, the other side's next
            // packet would open the opposite flow. By class it does not refuse the node's or the pod's own packets,
            // though, which carry the same addresses.
            if is_against || hook.peer(key.remote).origin == Origin::CLASS {
                return outcome.with_class(peer.class()).of_flow(is_against);
            }
        }
    }
    if packet.kind == Kind::Segment {
        return Outcome::LOST;
    }
    open(hook, packet.kind, &key, is_against)
}

/// Judges a packet that may open a flow.
#[inline(always)]
fn open<A: Address, K: Steps>(hook: &Hook<K>, kind: Kind, key: &FlowKey<A>, is_against: bool) -> Outcome {
    let peer = hook.peer(key.remote);
    let outcome = hook.evaluate(hook.direction, peer.word, key.protocol, key.judged_port(hook.direction));
    let new_flow = Outcome::of(Reason::NewFlow).with_entry(hook.direction, peer.origin);
    let outcome = match (outcome, kind) {
        (Outcome::OPEN, Kind::Syn | Kind::Datagram) => new_flow,
        (Outcome::OPEN, Kind::EchoRequest) if !is_against => new_flow,
        (Outcome::OPEN, _) => Outcome::of(Reason::Untracked),
        (denied, _) => denied,
    };
    outcome.with_class(peer.word.class())
}

/// Puts a flow that was accepted into the flow table; without room the packet passes all the same.
#[inline(always)]
pub fn remember<A: Address, K: Steps>(kernel: K, question: &Question, outcome: Outcome) -> Outcome {
    let Some(hook) = Hook::of(kernel, question) else { return Outcome::of(Reason::NoEndpoint) };
    let key = FlowKey::<A>::of(hook.line.endpoint(), hook.direction, &question.careful.packet);
    let entry = flow::new_key(&key, outcome.direction(), outcome.origin(), hook.now, hook.word.generation());
    let has_room = flow::insert(kernel, &key, entry);
    if !has_room && outcome.is(Reason::NewFlow) { outcome.because(Reason::NoRoom) } else { outcome }
}

/// Judges an ICMP message that belongs to no flow and makes none.
#[inline(always)]
fn judge_untracked<A: Address, K: Steps>(hook: &Hook<K>, key: &FlowKey<A>) -> Outcome {
    let peer = hook.peer(key.remote);
    let outcome = match hook.evaluate(hook.direction, peer.word, FlowProtocol::Other, 0) {
        Outcome::OPEN => Outcome::of(Reason::Untracked),
        denied => denied,
    };
    outcome.with_class(peer.word.class())
}

/// Judges an ICMP error: it passes if it quotes a packet that its receiver sent, of a flow that is alive and accepted.
#[inline(always)]
pub fn judge_error<A: QuotedAddress, K: Steps>(kernel: K, question: &Question) -> Outcome {
    let Some(hook) = Hook::of(kernel, question) else { return Outcome::of(Reason::NoEndpoint) };
    let (hook, careful) = (&hook, &question.careful);
    if let Some(quote) = A::quote(hook.kernel, careful.upper + 8, careful.end)
        && is_about_accepted_flow::<A, K>(hook, &careful.packet, &quote)
    {
        return Outcome::of(Reason::Related);
    }
    Outcome::of(if hook.is_governed(hook.direction) { Reason::UnrelatedError } else { Reason::Untracked })
}

/// An address in a packet that an ICMP error quotes.
pub trait QuotedAddress: Address {
    /// Reads the packet quoted at `start`.
    fn quote<F: Frame>(frame: F, start: u32, end: u32) -> Option<Packet>;
}

impl QuotedAddress for u32 {
    #[inline(always)]
    fn quote<F: Frame>(frame: F, start: u32, end: u32) -> Option<Packet> {
        parse::quote4(frame, start, end)
    }
}

impl QuotedAddress for [u64; 2] {
    #[inline(always)]
    fn quote<F: Frame>(frame: F, start: u32, end: u32) -> Option<Packet> {
        parse::quote6(frame, start, end)
    }
}

#[inline(always)]
fn is_about_accepted_flow<A: Address, K: Steps>(hook: &Hook<K>, error: &Packet, quote: &Packet) -> bool {
    // The quoted packet went the other way: out of the pod if the error enters it.
    let quoted = hook.direction.opposite();
    if quote.source != error.destination || (same(quoted, Direction::Ingress) && quote.destination != error.source) {
        return false;
    }
    let key = FlowKey::<A>::of(hook.line.endpoint(), quoted, quote);
    let Some(found) = flow::search(hook.kernel, &key, hook.now).and_then(|search| search.found()) else {
        return false;
    };
    let direction = found.key.direction();
    let is_oriented = match quote.kind {
        Kind::EchoRequest => same(direction, quoted),
        Kind::EchoReply => !same(direction, quoted),
        _ => true,
    };
    if !is_oriented {
        return false;
    }
    found.key.generation() == hook.word.generation() || {
        let peer = hook.peer_by_origin(found.key.origin(), key.remote);
        hook.evaluate(direction, peer, key.protocol, key.judged_port(direction)) == Outcome::OPEN
    }
}

/// The other side of a packet: who it is, and the class that goes with that.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) origin: Origin,
    pub(crate) word: ClassWord,
}

impl<K: Steps> Hook<K> {
    /// Judges the opening of a flow in one direction.
    ///
    /// Returns [`Outcome::OPEN`] where it is accepted, else why not.
    #[inline(always)]
    pub(crate) fn evaluate(&self, direction: Direction, peer: ClassWord, protocol: FlowProtocol, port: u16) -> Outcome {
        let ruleset = self.word.ruleset(direction);
        let class = peer.class();
        match ruleset {
            RulesetId::ACCEPT_ALL => Outcome::OPEN,
            RulesetId::UNIDENTIFIED => {
                let is_nodes = same(direction, Direction::Ingress) && class == Class::NODE_SELF;
                if is_nodes || !self.denies_unidentified() { Outcome::OPEN } else { Outcome::of(Reason::Unidentified) }
            }
            _ if self.kernel.accepts(ruleset, class, protocol, port) => Outcome::OPEN,
            _ if peer.is_service() => Outcome::of(Reason::Service),
            _ => Outcome::of(Reason::Policy),
        }
    }

    /// Who a packet that may open a flow comes from or goes to.
    ///
    /// From the pod that is what the tables say of the destination. To the pod it is this node, where the packet entered
    /// by no interface *and* its source is this node's (netfilter's resets and transparent proxies on the node carry
    /// other addresses); the pod itself, where it entered by the pod's own; else what the tables say of the source.
    #[inline(always)]
    pub(crate) fn peer<A: Address>(&self, remote: A) -> Peer {
        let kernel = self.kernel;
        let ingress = kernel.ingress_ifindex();
        let is_ingress = same(self.direction, Direction::Ingress);
        let origin = if is_ingress && ingress == kernel.ifindex() {
            Origin::POD_SELF
        } else if is_ingress && ingress == 0 && remote.class(kernel).is_node() {
            Origin::NODE_SELF
        } else {
            Origin::CLASS
        };
        Peer { origin, word: self.peer_by_origin(origin, remote) }
    }

    /// The peer of an entry that is judged again: by its origin, for a reply cannot show it.
    #[inline(always)]
    pub(crate) fn peer_by_origin<A: Address>(&self, origin: Origin, remote: A) -> ClassWord {
        match origin {
            Origin::CLASS => remote.class(self.kernel),
            Origin::NODE_SELF => ClassWord::class_entry(Class::NODE_SELF, 0),
            _ => ClassWord::class_entry(Class::POD_SELF, 0),
        }
    }
}
