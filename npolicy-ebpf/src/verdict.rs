//! (endpoint, direction, packet) -> (verdict, reason).
//!
//! ```text
//! frame -> plain TCP, UDP, SCTP of a flow accepted under this generation ------------------> accept
//!      \-> anything else -> rules for frames -> flow table -> class -> ruleset -> count, event -> accept or deny
//! ```
//! The first line is the path nearly every packet takes: straight, inlined, without a helper call. It may only say what
//! the second would say, sooner.

use npolicy_common::{
    Class, ClassWord, CounterKey, Direction, EndpointWord, EventState, FlowProtocol, Origin, Reason, RulesetId,
    Verdict, config_flags, endpoint_flags, flow_time,
};

use crate::events::{self, Context};
use crate::flow::{self, Address, FlowKey, Found};
use crate::frames::{self, FrameRule};
use crate::parse::{self, Careful, ETHERNET, Frame, Kind, Packet, ether_type};
use crate::tables::{Bucket, Line, Tables};

/// Judges a frame that leaves the pod: its egress, on TC *ingress* of the host-side veth.
#[inline(always)]
pub fn from_endpoint<K: Tables + Frame>(kernel: K) -> Verdict {
    judge(kernel, Direction::Egress)
}

/// Judges a frame that enters the pod: its ingress, on TC *egress* of the host-side veth.
#[inline(always)]
pub fn to_endpoint<K: Tables + Frame>(kernel: K) -> Verdict {
    judge(kernel, Direction::Ingress)
}

/// What is known before the packet is read.
#[derive(Clone, Copy)]
struct Hook<K: Tables> {
    kernel: K,
    direction: Direction,
    line: K::Line,
    /// Read once: a packet meets the old rulesets or the new ones.
    word: EndpointWord,
    /// The flow tables' time.
    now: u32,
}

#[inline(always)]
fn judge<K: Tables + Frame>(kernel: K, direction: Direction) -> Verdict {
    let Some(line) = kernel.endpoint(kernel.ifindex()) else {
        kernel.count(CounterKey::new(0, direction), Reason::NoEndpoint as u32);
        return Verdict::Deny;
    };
    let now = flow_time(kernel.jiffies(), kernel.jiffies_shift());
    let hook = Hook { kernel, direction, line, word: line.word(), now };
    let mut careful = Careful::EMPTY;
    let mut plain = 0;
    if !kernel.has_outer_tag() {
        if let Some(packet) = parse::plain4(kernel) {
            if hook.may_come_from_pod::<u32>(&packet) {
                if hook.belongs_to_accepted_flow::<u32>(&packet) {
                    return hook.accept_flow();
                }
                careful.packet = packet.forget(kernel);
                plain = ether_type::IPV4;
            }
        } else if let Some(packet) = parse::plain6(kernel)
            && hook.may_come_from_pod::<[u64; 2]>(&packet)
        {
            if hook.belongs_to_accepted_flow::<[u64; 2]>(&packet) {
                return hook.accept_flow();
            }
            careful.packet = packet.forget(kernel);
            plain = ether_type::IPV6;
        }
    }
    hook.judge_slowly(&mut careful, plain)
}

impl<K: Tables + Frame> Hook<K> {
    /// Whether a packet need not be looked at for a forged source: it enters the pod, or carries the pod's address.
    #[inline(always)]
    fn may_come_from_pod<A: Address>(&self, packet: &Packet) -> bool {
        same(self.direction, Direction::Ingress) || A::from_words(packet.source).is_pods_own(self.line)
    }

    /// Whether a packet belongs to a flow that was accepted under this generation; extends the flow if so.
    #[inline(always)]
    fn belongs_to_accepted_flow<A: Address>(&self, packet: &Packet) -> bool {
        if packet.kind == Kind::Syn {
            return false;
        }
        let key = FlowKey::<A>::of(self.line.endpoint(), self.direction, packet);
        let Some(found) = flow::search(self.kernel, &key, self.now).and_then(|search| search.found()) else {
            return false;
        };
        if found.key.generation() != self.word.generation() || !self.speaks(&found) {
            return false;
        }
        self.keep(&found);
        true
    }

    #[inline(always)]
    fn accept_flow(&self) -> Verdict {
        self.count(Reason::Flow as u32);
        Verdict::Accept
    }

    /// Judges what is not a plain packet of an accepted flow: by the flow table and policy if it is plain, else tags,
    /// ARP, ICMP, options, what is not linear, forged sources and frames that are not IP first.
    #[inline(always)]
    fn judge_slowly(self, careful: &mut Careful, plain: u16) -> Verdict {
        let (ether_type, outcome) = match plain {
            ether_type::IPV4 | ether_type::IPV6 => (plain, None),
            _ => {
                let (ether_type, start) = match find_header(&self) {
                    Ok(found) => found,
                    Err(ether_type) => return self.finish_frame(Outcome::of(Reason::Tagged), ether_type),
                };
                let read = match ether_type {
                    ether_type::IPV4 => parse::careful4(self.kernel, start, careful),
                    ether_type::IPV6 => parse::careful6(self.kernel, start, careful),
                    ether_type::ARP => {
                        let outcome = match frames::arp(self.kernel, self.line, self.direction, start) {
                            FrameRule::Deny(reason) => Outcome::of(reason),
                            _ => Outcome::of(Reason::Link),
                        };
                        return self.finish_frame(outcome, ether_type);
                    }
                    _ => Err(Reason::NotIp),
                };
                if let Err(reason) = read {
                    return self.finish_frame(self.unjudged(reason as u8), ether_type);
                }
                let number = apply_frame_rules(&self, careful, ether_type);
                let ended = Outcome { number: number as u8, ..Outcome::of(Reason::Link) };
                (ether_type, (number != POLICY_DECIDES).then_some(ended))
            }
        };
        let packet = &careful.packet;
        let mut outcome = match (outcome, packet.kind, ether_type) {
            (Some(outcome), _, _) => outcome,
            (None, Kind::IcmpError, ether_type::IPV4) => judge_error::<u32, K>(&self, careful),
            (None, Kind::IcmpError, _) => judge_error::<[u64; 2], K>(&self, careful),
            (None, _, ether_type::IPV4) => decide::<u32, K>(&self, packet),
            (None, _, _) => decide::<[u64; 2], K>(&self, packet),
        };
        if outcome.number == NEW_FLOW {
            let has_room = match ether_type {
                ether_type::IPV4 => self.remember::<u32>(packet, outcome.origin),
                _ => self.remember::<[u64; 2]>(packet, outcome.origin),
            };
            outcome.number = if has_room { NEW_FLOW } else { NO_ROOM };
        }
        self.finish(packet, outcome, ether_type)
    }

    /// Puts the flow that a packet opens into the table; false if it finds no place.
    #[inline(always)]
    fn remember<A: Address>(&self, packet: &Packet, origin: Origin) -> bool {
        let key = FlowKey::<A>::of(self.line.endpoint(), self.direction, packet);
        let entry = flow::new_key(&key, self.direction, origin, self.now, self.word.generation());
        key.remote.insert(self.kernel, key.ports, entry)
    }

    /// Counts an IP packet, offers an event where one is due, and ends with the verdict that goes with the reason.
    #[inline(always)]
    fn finish(&self, packet: &Packet, outcome: Outcome, ether_type: u16) -> Verdict {
        if outcome.needs_event(self.kernel) {
            report(self, packet, outcome, ether_type);
        }
        self.end(outcome)
    }

    /// As [`Self::finish`], for a frame of which no more than its EtherType is known.
    #[inline(always)]
    fn finish_frame(&self, outcome: Outcome, ether_type: u16) -> Verdict {
        if outcome.needs_event(self.kernel) {
            report_frame(self, outcome, ether_type);
        }
        self.end(outcome)
    }

    #[inline(always)]
    fn end(&self, outcome: Outcome) -> Verdict {
        self.count(self.kernel.forget(outcome.number as u32));
        outcome.verdict()
    }

    /// Counts the packet, which happens exactly once.
    #[inline(always)]
    fn count(&self, column: u32) {
        self.kernel.count(CounterKey::new(self.line.slot(), self.direction), column);
    }

    /// What becomes of a frame that cannot be judged: dropped where its direction is governed.
    #[inline(always)]
    fn unjudged(&self, number: u8) -> Outcome {
        if self.is_governed(self.direction) {
            Outcome { number, ..Outcome::of(Reason::Policy) }
        } else {
            Outcome::of(Reason::Link)
        }
    }

    /// Whether an entry speaks for this packet. Against its direction it does. In its own, what the node itself or the
    /// pod itself opened speaks only for packets that come from there: a probe's entry outlives the probe, and a
    /// masqueraded packet can carry the same address and port.
    #[inline(always)]
    fn speaks<B: Bucket>(&self, found: &Found<B>) -> bool {
        if !same(found.key.direction(), self.direction) {
            return true;
        }
        match found.key.origin() {
            Origin::CLASS => true,
            Origin::NODE_SELF => self.kernel.ingress_ifindex() == 0,
            _ => self.kernel.ingress_ifindex() == self.kernel.ifindex(),
        }
    }

    /// Extends an accepted entry, if this packet does: one store a second at most.
    #[inline(always)]
    fn keep<B: Bucket>(&self, found: &Found<B>) {
        if found.key.time() != self.now && flow::extends(found.key, self.direction) {
            found.set_key(found.key.with_time(self.now));
        }
    }

    /// Whether the ruleset of a direction governs it.
    #[inline(always)]
    fn is_governed(&self, direction: Direction) -> bool {
        match self.word.ruleset(direction) {
            RulesetId::ACCEPT_ALL => false,
            RulesetId::UNIDENTIFIED => self.denies_unidentified(),
            _ => true,
        }
    }

    #[inline(always)]
    fn denies_unidentified(&self) -> bool {
        self.kernel.config_flags() & config_flags::UNIDENTIFIED_ACCEPTS == 0
    }

    /// Judges the opening of a flow in one direction.
    ///
    /// # Errors
    /// The reason of a denial.
    #[inline(always)]
    fn evaluate(&self, direction: Direction, peer: ClassWord, protocol: FlowProtocol, port: u16) -> Result<(), Reason> {
        let ruleset = self.word.ruleset(direction);
        let class = peer.class();
        match ruleset {
            RulesetId::ACCEPT_ALL => Ok(()),
            RulesetId::UNIDENTIFIED => {
                let is_nodes = same(direction, Direction::Ingress) && class == Class::NODE_SELF;
                if is_nodes || !self.denies_unidentified() { Ok(()) } else { Err(Reason::Unidentified) }
            }
            _ if self.kernel.accepts(ruleset, class, protocol, port) => Ok(()),
            _ if peer.is_service() => Err(Reason::Service),
            _ => Err(Reason::Policy),
        }
    }

    /// Who a packet that may open a flow comes from or goes to.
    ///
    /// From the pod that is what the tables say of the destination. To the pod it is this node, where the packet entered
    /// by no interface *and* its source is this node's (netfilter's resets and transparent proxies on the node carry
    /// other addresses); the pod itself, where it entered by the pod's own; else what the tables say of the source.
    #[inline(always)]
    fn peer<A: Address>(&self, remote: A) -> Peer {
        if same(self.direction, Direction::Ingress) {
            let ingress = self.kernel.ingress_ifindex();
            if ingress == self.kernel.ifindex() {
                return Peer { origin: Origin::POD_SELF, word: ClassWord::class_entry(Class::POD_SELF, 0) };
            }
            let word = remote.class(self.kernel);
            if ingress == 0 && word.is_node() {
                return Peer { origin: Origin::NODE_SELF, word: ClassWord::class_entry(Class::NODE_SELF, 0) };
            }
            return Peer { origin: Origin::CLASS, word };
        }
        Peer { origin: Origin::CLASS, word: remote.class(self.kernel) }
    }

    /// The peer of an entry that is judged again: by its origin, for a reply cannot show it.
    #[inline(always)]
    fn peer_by_origin<A: Address>(&self, origin: Origin, remote: A) -> ClassWord {
        match origin {
            Origin::CLASS => remote.class(self.kernel),
            Origin::NODE_SELF => ClassWord::class_entry(Class::NODE_SELF, 0),
            _ => ClassWord::class_entry(Class::POD_SELF, 0),
        }
    }

    #[inline(always)]
    fn context(&self, outcome: Outcome, ether_type: u16) -> Context {
        Context {
            ether_type,
            ifindex: self.kernel.ifindex(),
            direction: self.direction,
            generation: self.word.generation(),
            ruleset: self.word.ruleset(if outcome.opposite { self.direction.opposite() } else { self.direction }).0,
            class: outcome.class.0,
            state: outcome.state,
        }
    }
}

/// The other side of a packet: who it is, and the class that goes with that.
#[derive(Clone, Copy)]
struct Peer {
    origin: Origin,
    word: ClassWord,
}

/// What becomes of a packet, and what its event says of it.
#[derive(Clone, Copy)]
struct Outcome {
    /// Number of the [`Reason`].
    number: u8,
    state: EventState,
    /// Whether the ruleset of the other direction judged: that of the flow's.
    opposite: bool,
    /// What a new flow is remembered as.
    origin: Origin,
    class: Class,
}

impl Outcome {
    /// An outcome that no table had a part in.
    #[inline(always)]
    fn of(reason: Reason) -> Self {
        let number = reason as u8;
        Self { number, state: EventState::NEW, opposite: false, origin: Origin::CLASS, class: Class::PLAIN }
    }

    #[inline(always)]
    fn verdict(self) -> Verdict {
        if self.number < FIRST_DENIAL { Verdict::Accept } else { Verdict::Deny }
    }

    #[inline(always)]
    fn needs_event<K: Tables>(self, kernel: K) -> bool {
        self.number >= FIRST_DENIAL
            || (matches!(self.number, NEW_FLOW | NO_ROOM) && kernel.config_flags() & config_flags::LOG_ACCEPTS != 0)
    }

    /// The same, without the verifier's knowledge of the reason: what follows is walked once, not once a reason.
    #[inline(always)]
    fn forget<F: Frame>(self, frame: F) -> Self {
        Self { number: frame.forget(self.number as u32) as u8, ..self }
    }
}

const NEW_FLOW: u8 = Reason::NewFlow as u8;
const NO_ROOM: u8 = Reason::NoRoom as u8;
/// Reasons below accept, the others deny.
const FIRST_DENIAL: u8 = Reason::Policy as u8;
const _: () = {
    let mut index = 0;
    while index < Reason::ALL.len() {
        let reason = Reason::ALL[index];
        assert!((reason as u8 >= FIRST_DENIAL) == matches!(reason.verdict(), Verdict::Deny));
        index += 1;
    }
};

#[inline(always)]
fn same(a: Direction, b: Direction) -> bool {
    a as u8 == b as u8
}

#[inline(never)]
fn report<K: Tables + Frame>(hook: &Hook<K>, packet: &Packet, outcome: Outcome, ether_type: u16) {
    let context = hook.context(outcome, ether_type);
    let mut event = events::describe(hook.line, &context, packet, outcome.number);
    hook.kernel.offer(hook.line.slot(), &mut event);
}

#[inline(never)]
fn report_frame<K: Tables + Frame>(hook: &Hook<K>, outcome: Outcome, ether_type: u16) {
    let mut event = events::describe_frame(hook.line, &hook.context(outcome, ether_type), outcome.number);
    hook.kernel.offer(hook.line.slot(), &mut event);
}

/// Decides about a packet that the flow table alone does not accept: new, of an older generation, a SYN, or no flow's.
#[inline(never)]
fn decide<A: Address, K: Tables + Frame>(hook: &Hook<K>, packet: &Packet) -> Outcome {
    decide_about::<A, K>(hook, packet).forget(hook.kernel)
}

#[inline(always)]
fn decide_about<A: Address, K: Tables + Frame>(hook: &Hook<K>, packet: &Packet) -> Outcome {
    let key = FlowKey::<A>::of(hook.line.endpoint(), hook.direction, packet);
    if packet.kind == Kind::Icmp {
        // It belongs to no flow and makes none.
        return open(hook, packet, &key, false);
    }
    let Some(search) = flow::search(hook.kernel, &key, hook.now) else {
        // An array has every bucket its mask leads to, so this is for the verifier; but it must not open anything.
        return Outcome::of(Reason::NoFlow);
    };
    let search = search.forget(hook.kernel);
    let mut is_against = false;
    if let Some(found) = search.found()
        && hook.speaks(&found)
    {
        is_against = !same(found.key.direction(), hook.direction);
        let belongs = packet.kind != Kind::Syn && (!is_against || flow::is_reply(packet.kind));
        if belongs {
            if found.key.generation() == hook.word.generation() {
                hook.keep(&found);
                return Outcome::of(Reason::Flow);
            }
            let direction = found.key.direction();
            let peer = hook.peer_by_origin(found.key.origin(), key.remote);
            match hook.evaluate(direction, peer, key.protocol, key.judged_port(direction)) {
                Ok(()) => {
                    let entry = found.key.with_generation(hook.word.generation());
                    let extends = flow::extends(entry, hook.direction);
                    let entry = if extends { entry.with_time(hook.now) } else { entry };
                    // The generation is part of the mask, so the whole entry is written again, where it stands.
                    found.write(&key, entry, &hook.kernel.secrets());
                    return Outcome::of(Reason::Rejudged);
                }
                // A refused flow stays refused and its entry stays: it remembers who opened it. Erased, the other side's
                // next packet would open the opposite flow. By class it does not refuse the node's or the pod's own
                // packets, though, which carry the same addresses.
                Err(reason) if is_against || hook.peer(key.remote).origin == Origin::CLASS => {
                    let state = if is_against { EventState::REPLY } else { EventState::ORIGINAL };
                    let class = peer.class();
                    return Outcome { number: reason as u8, state, opposite: is_against, class, origin: Origin::CLASS };
                }
                Err(_) => {}
            }
        }
    }
    if packet.kind == Kind::Segment {
        return recover(hook, &key);
    }
    open(hook, packet, &key, is_against)
}

/// Judges a packet that may open a flow.
#[inline(always)]
fn open<A: Address, K: Tables + Frame>(hook: &Hook<K>, packet: &Packet, key: &FlowKey<A>, is_against: bool) -> Outcome {
    let peer = hook.peer(key.remote);
    let outcome = |reason| Outcome { class: peer.word.class(), ..Outcome::of(reason) };
    if let Err(reason) = hook.evaluate(hook.direction, peer.word, key.protocol, key.judged_port(hook.direction)) {
        return outcome(reason);
    }
    let is_tracked = match packet.kind {
        Kind::Syn | Kind::Datagram => true,
        Kind::EchoRequest => !is_against,
        _ => false,
    };
    if !is_tracked {
        return outcome(Reason::Untracked);
    }
    Outcome { origin: peer.origin, ..outcome(Reason::NewFlow) }
}

/// Judges a TCP segment that belongs to no entry and cannot open a flow: either side may have opened it, so both
/// directions must accept. It passes without an entry.
#[inline(always)]
fn recover<A: Address, K: Tables + Frame>(hook: &Hook<K>, key: &FlowKey<A>) -> Outcome {
    let peer = hook.peer(key.remote);
    let by_class = hook.peer_by_origin(Origin::CLASS, key.remote);
    let opposite = hook.direction.opposite();
    let verdict = hook
        .evaluate(hook.direction, peer.word, key.protocol, key.judged_port(hook.direction))
        .and_then(|()| hook.evaluate(opposite, by_class, key.protocol, key.judged_port(opposite)));
    let reason = match verdict {
        Ok(()) => Reason::Recovered,
        Err(Reason::Unidentified) => Reason::Unidentified,
        Err(_) => Reason::NoFlow,
    };
    Outcome { class: by_class.class(), ..Outcome::of(reason) }
}

/// Finds the EtherType behind the tags, and where its header starts.
///
/// # Errors
/// The tag's EtherType, where the interface does not allow tags, whether beside the data or in it, or where there are
/// more than two in it (IEEE 802.1ad).
#[inline(always)]
fn find_header<K: Tables + Frame>(hook: &Hook<K>) -> Result<(u16, u32), u16> {
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

/// Applies the rules for frames to a packet. Returns the number of the reason they end it with, or [`POLICY_DECIDES`].
#[inline(never)]
fn apply_frame_rules<K: Tables + Frame>(hook: &Hook<K>, careful: &Careful, ether_type: u16) -> u32 {
    let rule = match ether_type {
        ether_type::IPV4 if may_ask_for_address(hook, &careful.packet) => FrameRule::Pass,
        ether_type::IPV4 => frames::ipv4(hook.line, hook.direction, careful),
        _ => frames::ipv6(hook.kernel, hook.line, hook.direction, careful),
    };
    let number = match rule {
        FrameRule::Pass => Reason::Link as u32,
        FrameRule::Deny(reason) => reason as u32,
        FrameRule::Policy if careful.fault != Careful::NO_FAULT => hook.unjudged(careful.fault).number as u32,
        FrameRule::Policy => POLICY_DECIDES,
    };
    hook.kernel.forget(number)
}

/// No reason: the flow table and policy decide.
const POLICY_DECIDES: u32 = u8::MAX as u32;

/// Whether a packet asks for an IPv4 address or answers, on an interface that has none and is not identified yet.
#[inline(always)]
fn may_ask_for_address<K: Tables + Frame>(hook: &Hook<K>, packet: &Packet) -> bool {
    let is_dhcp = match hook.direction {
        Direction::Egress => packet.source[1] == 0 && frames::is_dhcp_request(packet),
        Direction::Ingress => frames::is_dhcp_reply(packet),
    };
    is_dhcp && u32::is_absent(hook.line) && hook.word.ruleset(hook.direction) == RulesetId::UNIDENTIFIED
}

/// Judges an ICMP error: it passes if it quotes a packet that its receiver sent, of a flow that is alive and accepted.
#[inline(never)]
fn judge_error<A: QuotedAddress, K: Tables + Frame>(hook: &Hook<K>, careful: &Careful) -> Outcome {
    if let Some(quote) = A::quote(hook.kernel, careful.upper + 8, careful.end)
        && is_about_accepted_flow::<A, K>(hook, &careful.packet, &quote)
    {
        return Outcome::of(Reason::Related);
    }
    Outcome::of(if hook.is_governed(hook.direction) { Reason::UnrelatedError } else { Reason::Untracked })
}

/// An address in a packet that an ICMP error quotes.
trait QuotedAddress: Address {
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
fn is_about_accepted_flow<A: Address, K: Tables + Frame>(hook: &Hook<K>, error: &Packet, quote: &Packet) -> bool {
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
        hook.evaluate(direction, peer, key.protocol, key.judged_port(direction)).is_ok()
    }
}
