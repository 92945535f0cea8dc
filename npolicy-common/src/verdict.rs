//! What happened to a packet, and why.

/// What happened to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Verdict {
    /// It goes on to whatever program or stack comes next.
    Accept,
    /// It was dropped, silently.
    Deny,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal $verdict:ident $text:literal;)*) => {
        /// Why a packet met its verdict. The numbers are columns of COUNTERS: retired, never reused.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The verdict that goes with the reason.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)* }
            }

            /// A few words for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The name used in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }

        impl TryFrom<u8> for Reason {
            type Error = u8;
            fn try_from(number: u8) -> Result<Self, u8> {
                match number { $($number => Ok(Self::$name),)* other => Err(other) }
            }
        }
    };
}

reasons! {
    /// Opened a flow that policy accepts.
    NewFlow = 0 Accept "new flow";
    /// Belongs to an accepted flow.
    Flow = 1 Accept "accepted flow";
    /// Accepted by policy, without an entry in the flow table (ICMP other than echo, a request against its flow).
    Untracked = 2 Accept "accepted, not tracked";
    /// An ICMP error about an accepted flow.
    Related = 3 Accept "about an accepted flow";
    /// Address resolution and its like in a form that always passes, or a frame nobody governs.
    Link = 4 Accept "link traffic";
    /// Accepted by policy; the flow table had no room.
    NoRoom = 5 Accept "accepted, flow table full";
    /// A flow that was accepted before, judged again under a new generation.
    Rejudged = 6 Accept "accepted flow under a new policy";
    /// A segment of a connection whose entry was lost; its socket or both directions vouch for it.
    Recovered = 7 Accept "accepted flow, entry found again";

    /// No rule accepts it.
    Policy = 8 Deny "policy";
    /// Its destination is a Service whose backends are not all accepted.
    Service = 9 Deny "service backends";
    /// A segment that cannot open a connection and belongs to none.
    NoFlow = 10 Deny "no such connection";
    /// Its source is not an address of the pod.
    Spoof = 11 Deny "forged source";
    /// It is cut short, or its lengths or headers contradict each other.
    Malformed = 12 Deny "malformed packet";
    /// A fragment, which has no ports.
    Fragment = 13 Deny "fragment";
    /// It carries a VLAN tag.
    Tagged = 14 Deny "VLAN tag";
    /// It is neither IP nor address resolution.
    NotIp = 15 Deny "not IP";
    /// An ICMP error about no accepted flow.
    UnrelatedError = 16 Deny "ICMP error about no flow";
    /// The interface has no line.
    NoEndpoint = 17 Deny "unknown interface";
    /// The pod behind the interface is not identified.
    Unidentified = 18 Deny "unidentified pod";
    /// Address resolution in another's name.
    ForgedNeighbour = 19 Deny "address resolution in another's name";
    /// A router advertisement or redirect from a pod.
    RouterMessage = 20 Deny "router message from a pod";
    /// An extension header or option that could hide where it goes.
    Unjudgeable = 21 Deny "header that cannot be judged";
    /// A DHCP answer from a pod.
    DhcpServer = 22 Deny "DHCP answer from a pod";
    /// The pod's socket could not be marked.
    NoSocketMark = 23 Deny "socket cannot be marked";

    /// Not a verdict: an event that found no room or no token. Counted beside the packet's own reason.
    EventLost = 31 Deny "event lost";
}
