//! The hook, as a sentence: find the endpoint; a plain packet of an accepted flow passes; everything else is read
//! carefully, decided, remembered, reported and counted.
//!
//! ```text
//! frame -> endpoint -> passes_quickly ------------------------------------------------> count
//!                 \--> read -> decide -> remember (new flows) -> report (denials) ----> count
//! ```
//! The upper way is the one nearly every packet takes. It may only say what the lower would say, sooner.

use npolicy_common::{
    Class, CounterKey, Direction, EndpointWord, EventState, FlowProtocol, Origin, Reason, RulesetId, Verdict,
    config_flags, flow_time,
};

use crate::flow::{self, Address, FlowKey, Found};
use crate::parse::{self, Careful, Frame, Kind, Packet, ether_type};
use crate::tables::{Bucket, Line, Tables};

/// Judges a frame that leaves the pod: its egress, on TC *ingress* of the host-side veth.
#[inline(always)]
pub fn from_endpoint<K: Steps>(kernel: K) -> Verdict {
    judge(kernel, Direction::Egress)
}

/// Judges a frame that enters the pod: its ingress, on TC *egress* of the host-side veth.
#[inline(always)]
pub fn to_endpoint<K: Steps>(kernel: K) -> Verdict {
    judge(kernel, Direction::Ingress)
}

/// The steps behind which the verifier starts afresh.
///
/// It walks a program once for every combination of what it knows. Each of these is a function of its own to it (a
/// global one, 5.12), of whose question it knows no more than its size, and is walked once.
pub trait Steps: Tables + Frame {
    /// Calls [`crate::verdict::read`].
    fn read(self, question: &mut Question) -> Outcome;
    /// Calls [`crate::verdict::decide`] for the family of the packet.
    fn decide(self, question: &Question) -> Outcome;
    /// Calls [`crate::verdict::judge_error`] for the family of the packet.
    fn judge_error(self, question: &Question) -> Outcome;
    /// Calls [`crate::sockets::recover`] for the family of the packet.
    fn recover(self, question: &Question) -> Outcome;
    /// Calls [`crate::sockets::mark_opened`].
    fn mark_opened(self, question: &Question, outcome: Outcome) -> Outcome;
    /// Calls [`crate::sockets::mark_accepted`] for the family of the packet.
    fn mark_accepted(self, question: &Question, outcome: Outcome) -> Outcome;
    /// Calls [`crate::verdict::remember`] for the family of the packet.
    fn remember(self, question: &Question, outcome: Outcome) -> Outcome;
    /// Calls [`crate::events::report`].
    fn report(self, question: &Question, outcome: Outcome);
}

/// What the steps are asked about: one packet under one word.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Question {
    /// The packet, empty until it is read.
    pub careful: Careful,
    /// The endpoint's word, read once: a packet meets the old rulesets or the new ones.
    pub word: EndpointWord,
    /// The flow tables' time.
    pub now: u32,
    /// Host order; 0 until it is read.
    pub ether_type: u16,
    /// [`Direction`] as [`Direction::index`] gives it.
    pub direction: u16,
}

impl Question {
    /// Whether the packet is a SYN that the pod sends.
    #[inline(always)]
    fn opens_connection(&self) -> bool {
        self.careful.packet.kind == Kind::Syn && self.direction as u32 == EGRESS
    }
}

/// What becomes of a packet, and what its event says of it.
///
/// One word, for that is what a step can return: the number of the [`Reason`] in bits 0 to 7, the [`EventState`] in bits
/// 8 to 15, bit 16 where the ruleset of the other direction judged, bit 17 where an entry has to be made, bit 18 its
/// [`Direction`], bit 19 where its socket has to be marked, the [`Origin`] in bits 24 to 25, and the [`Class`] from bit 32.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome(pub u64);

impl Outcome {
    /// Not decided yet: the next step has to.
    pub const OPEN: Self = Self(0xff);
    /// Not decided yet: a TCP segment without an entry, of which the pod's socket may know.
    pub const LOST: Self = Self(0xfe);
    const OPPOSITE: u64 = 1 << 16;
    const ENTRY: u64 = 1 << 17;
    const DIRECTION_SHIFT: u32 = 18;
    const UNMARKED: u64 = 1 << 19;

    /// An outcome of which no more than the reason is known.
    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        Self::of_number(reason as u8)
    }

    /// As [`Self::of`], by the reason's number.
    #[inline(always)]
    pub const fn of_number(number: u8) -> Self {
        Self(number as u64)
    }

    /// The same, told by the class of the peer.
    #[inline(always)]
    pub const fn with_class(self, class: Class) -> Self {
        Self(self.0 | (class.0 as u64) << 32)
    }

    /// The same, and an entry has to be made of a flow that took this direction and has this origin.
    #[inline(always)]
    pub const fn with_entry(self, direction: Direction, origin: Origin) -> Self {
        Self(self.0 | Self::ENTRY | (direction.index() as u64) << Self::DIRECTION_SHIFT | (origin.0 as u64 & 3) << 24)
    }

    /// The same, and the socket of a flow that the pod accepted, with this origin, has to be marked.
    #[inline(always)]
    pub const fn with_unmarked(self, origin: Origin) -> Self {
        Self(self.0 | Self::UNMARKED | (origin.0 as u64 & 3) << 24)
    }

    /// The same for a packet of a flow: in its direction, or, where the other direction's ruleset judged, against it.
    #[inline(always)]
    pub const fn of_flow(self, is_against: bool) -> Self {
        let (state, opposite) =
            if is_against { (EventState::REPLY, Self::OPPOSITE) } else { (EventState::ORIGINAL, 0) };
        Self(self.0 | (state.0 as u64) << 8 | opposite)
    }

    /// The same for another reason.
    #[inline(always)]
    pub const fn because(self, reason: Reason) -> Self {
        Self(self.0 & !0xff | reason as u64)
    }

    /// Number of the reason.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self.0 as u8
    }

    /// Whether this is the reason.
    #[inline(always)]
    pub const fn is(self, reason: Reason) -> bool {
        self.number() == reason as u8
    }

    /// The verdict that goes with the reason.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        if self.number() < FIRST_DENIAL { Verdict::Accept } else { Verdict::Deny }
    }

    /// Whether the packet was new, of a flow, or its reply.
    #[inline(always)]
    pub const fn state(self) -> EventState {
        EventState((self.0 >> 8) as u8)
    }

    /// Whether the ruleset of the direction opposite to the packet's judged.
    #[inline(always)]
    pub const fn is_by_opposite(self) -> bool {
        self.0 & Self::OPPOSITE != 0
    }

    /// Whether an entry has to be made.
    #[inline(always)]
    pub const fn has_entry(self) -> bool {
        self.0 & Self::ENTRY != 0
    }

    /// The direction that the entry's flow took.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        Direction::from_index((self.0 >> Self::DIRECTION_SHIFT) as u32)
    }

    /// Whether the pod's socket has to be marked.
    #[inline(always)]
    pub const fn is_unmarked(self) -> bool {
        self.0 & Self::UNMARKED != 0
    }

    /// The flow's origin.
    #[inline(always)]
    pub const fn origin(self) -> Origin {
        Origin((self.0 >> 24) as u8 & 3)
    }

    /// The peer's class.
    #[inline(always)]
    pub const fn class(self) -> Class {
        Class((self.0 >> 32) as u32)
    }
}

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

/// What is known before the packet is read.
#[derive(Clone, Copy)]
pub(crate) struct Hook<K: Tables> {
    pub(crate) kernel: K,
    pub(crate) direction: Direction,
    pub(crate) line: K::Line,
    pub(crate) word: EndpointWord,
    pub(crate) now: u32,
}

#[inline(always)]
pub(crate) fn same(a: Direction, b: Direction) -> bool {
    a as u8 == b as u8
}

#[inline(always)]
fn judge<K: Steps>(kernel: K, direction: Direction) -> Verdict {
    let Some(line) = kernel.endpoint(kernel.ifindex()) else {
        kernel.count(CounterKey::new(0, direction), Reason::NoEndpoint as u32);
        return Verdict::Deny;
    };
    let now = flow_time(kernel.jiffies(), kernel.jiffies_shift());
    let hook = Hook { kernel, direction, line, word: line.word(), now };
    let key = CounterKey::new(line.slot(), direction);
    let mut question =
        Question { careful: Careful::EMPTY, word: hook.word, now, ether_type: 0, direction: direction.index() as u16 };
    if !kernel.has_outer_tag() {
        if let Some(packet) = parse::plain4(kernel) {
            match hook.look_up::<u32>(&packet) {
                Quick::Passes => {
                    kernel.count(key, Reason::Flow as u32);
                    return Verdict::Accept;
                }
                Quick::Undecided => {
                    question.careful.packet = packet;
                    question.ether_type = ether_type::IPV4;
                }
                Quick::Unread => {}
            }
        } else {
            let quick = match direction {
                Direction::Ingress => look_up6::<K, INGRESS>(kernel, line, &mut question),
                Direction::Egress => look_up6::<K, EGRESS>(kernel, line, &mut question),
            };
            if quick == Quick::Passes as u64 {
                kernel.count(key, Reason::Flow as u32);
                return Verdict::Accept;
            }
        }
    }
    let outcome = judge_slowly(kernel, &mut question);
    // The mask in `count` must outlive what the compiler knows of reasons: the verifier does not know it.
    kernel.count(key, kernel.forget(outcome.number() as u32));
    outcome.verdict()
}

/// What the quick way says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quick {
    /// Not a plain packet, or one that leaves the pod without the pod's address: it has to be read carefully.
    Unread,
    /// It belongs to a flow that was accepted under this generation.
    Passes,
    /// A plain packet that has to be decided about.
    Undecided,
}

const INGRESS: u32 = Direction::Ingress.index();
const EGRESS: u32 = Direction::Egress.index();

/// The quick way for IPv6, whose tuple fills the registers: in a frame of its own it leaves the stack to the steps.
/// Returns a [`Quick`] as a number, and the packet in the question where it has to be decided about.
#[inline(never)]
fn look_up6<K: Steps, const DIRECTION: u32>(kernel: K, line: K::Line, question: &mut Question) -> u64 {
    let Some(packet) = parse::plain6(kernel) else { return Quick::Unread as u64 };
    let direction = Direction::from_index(DIRECTION);
    let hook = Hook { kernel, direction, line, word: question.word, now: question.now };
    let quick = hook.look_up::<[u64; 2]>(&packet);
    if quick == Quick::Undecided {
        question.careful.packet = packet;
        question.ether_type = ether_type::IPV6;
    }
    quick as u64
}

/// Judges what the quick way leaves.
#[inline(always)]
fn judge_slowly<K: Steps>(kernel: K, question: &mut Question) -> Outcome {
    let mut outcome = Outcome::OPEN;
    if question.ether_type == 0 {
        outcome = kernel.read(question);
    }
    if outcome == Outcome::OPEN && question.careful.packet.kind == Kind::IcmpError {
        outcome = kernel.judge_error(question);
    } else if outcome == Outcome::OPEN {
        outcome = kernel.decide(question);
        if outcome == Outcome::LOST {
            outcome = kernel.recover(question);
        }
        if outcome.has_entry() && question.opens_connection() {
            outcome = kernel.mark_opened(question, outcome);
        }
        if outcome.has_entry() {
            outcome = kernel.remember(question, outcome);
        }
        if outcome.is_unmarked() {
            outcome = kernel.mark_accepted(question, outcome);
        }
    }
    let is_new = outcome.is(Reason::NewFlow) || outcome.is(Reason::NoRoom);
    if outcome.number() >= FIRST_DENIAL || (is_new && kernel.config_flags() & config_flags::LOG_ACCEPTS != 0) {
        kernel.report(question, outcome);
    }
    outcome
}

impl<K: Steps> Hook<K> {
    /// What a step knows: the question's packet at this program's interface. Nothing if the line is gone since.
    #[inline(always)]
    pub(crate) fn of(kernel: K, question: &Question) -> Option<Self> {
        let line = kernel.endpoint(kernel.ifindex())?;
        let direction = Direction::from_index(question.direction as u32);
        Some(Self { kernel, direction, line, word: question.word, now: question.now })
    }

    /// Looks for the flow of a plain packet, and extends it if it was accepted under this generation.
    #[inline(always)]
    fn look_up<A: Address>(&self, packet: &Packet) -> Quick {
        if same(self.direction, Direction::Egress) && !A::from_words(packet.source).is_pods_own(self.line) {
            return Quick::Unread;
        }
        let key = FlowKey::<A>::of(self.line.endpoint(), self.direction, packet);
        if packet.kind != Kind::Syn
            && let Some(search) = flow::search(self.kernel, &key, self.now)
            && let Some(found) = search.found()
            && found.key.generation() == self.word.generation()
            && self.speaks(&found)
            && !self.must_mark(&found)
        {
            self.keep(&found);
            return Quick::Passes;
        }
        Quick::Undecided
    }

    /// Whether an entry speaks for this packet. Against its direction it does. In its own, what the node itself or the
    /// pod itself opened speaks only for packets that come from there: a probe's entry outlives the probe, and a
    /// masqueraded packet can carry the same address and port.
    #[inline(always)]
    pub(crate) fn speaks<B: Bucket>(&self, found: &Found<B>) -> bool {
        if !same(found.key.direction(), self.direction) {
            return true;
        }
        match found.key.origin() {
            Origin::CLASS => true,
            Origin::NODE_SELF => self.kernel.ingress_ifindex() == 0,
            _ => self.kernel.ingress_ifindex() == self.kernel.ifindex(),
        }
    }

    /// Whether the pod answers on a connection that it accepted, and its socket does not say so yet.
    #[inline(always)]
    pub(crate) fn must_mark<B: Bucket>(&self, found: &Found<B>) -> bool {
        same(self.direction, Direction::Egress)
            && same(found.key.direction(), Direction::Ingress)
            && found.key.protocol() as u8 == FlowProtocol::Tcp as u8
            && !found.key.is_marked()
    }

    /// Extends an accepted entry, if this packet does: one store a second at most.
    #[inline(always)]
    pub(crate) fn keep<B: Bucket>(&self, found: &Found<B>) {
        if found.key.time() != self.now && flow::extends(found.key, self.direction) {
            found.set_key(found.key.with_time(self.now));
        }
    }

    /// Whether the ruleset of a direction governs it.
    #[inline(always)]
    pub(crate) fn is_governed(&self, direction: Direction) -> bool {
        match self.word.ruleset(direction) {
            RulesetId::ACCEPT_ALL => false,
            RulesetId::UNIDENTIFIED => self.denies_unidentified(),
            _ => true,
        }
    }

    /// Whether ruleset 2 denies.
    #[inline(always)]
    pub(crate) fn denies_unidentified(&self) -> bool {
        self.kernel.config_flags() & config_flags::UNIDENTIFIED_ACCEPTS == 0
    }
}
