//! What the runner and the test pods say to each other: JSON, one object a line.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A question with a number that its answer carries.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Request {
    /// Chosen by whoever asks; answers come in any order.
    pub id: u64,
    /// The question.
    pub ask: Ask,
}

/// An answer with the number of its question.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Response {
    /// Number of the question.
    pub id: u64,
    /// The answer.
    pub answer: Answer,
}

/// What a probe or a server speaks.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// A connection, a line and its answer.
    Tcp,
    /// A datagram and its answer.
    Udp,
    /// A connection by the kernel's SCTP, a line and its answer.
    Sctp,
    /// An echo request and its reply, which the kernel gives.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        })
    }
}

/// Where a probe goes.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    /// The address on the first packet: a pod's, a node's or a Service's.
    pub to: IpAddr,
    /// By what.
    pub protocol: Protocol,
    /// The port; 0 for ICMP, which has none.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Icmp => write!(f, "{} ICMP", self.to),
            protocol => write!(f, "{} {protocol}", SocketAddr::new(self.to, self.port)),
        }
    }
}

/// What a test pod can be asked.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// What it can do; answered by [`Answer::Facts`].
    Facts,
    /// Serve these ports, beside those it serves already.
    Serve {
        /// Protocol and number.
        ports: Vec<(Protocol, u16)>,
    },
    /// Reach a target; answered by [`Answer::Probed`].
    Probe {
        /// Whom.
        target: Target,
        /// How long each attempt waits, in milliseconds; silence after the last is a denial.
        attempts_ms: Vec<u64>,
    },
    /// Open a TCP connection and send a number in it again and again, until [`Ask::Stop`]. Answered when it is open.
    Hold {
        /// Its name in reports.
        name: String,
        /// The server.
        to: SocketAddr,
        /// Between two numbers, in milliseconds.
        every_ms: u64,
    },
    /// Probe a target again and again, each time by a new socket, until [`Ask::Stop`].
    Watch {
        /// Its name in reports.
        name: String,
        /// Whom.
        target: Target,
        /// Between two probes, in milliseconds.
        every_ms: u64,
        /// How long each waits for an answer, in milliseconds.
        patience_ms: u64,
    },
    /// Send numbered datagrams until [`Ask::Stop`].
    Blast {
        /// Its name in reports.
        name: String,
        /// The sink.
        to: SocketAddr,
        /// Between two datagrams, in microseconds.
        every_us: u64,
        /// Whether each leaves by a new source port, and so is a flow of its own.
        fresh: bool,
    },
    /// Open a TCP connection to a sink and write numbered records until [`Ask::Stop`], which resets it. Answered when it is
    /// open.
    Pour {
        /// Its name in reports.
        name: String,
        /// The sink.
        to: SocketAddr,
        /// Between two records, in microseconds.
        every_us: u64,
    },
    /// When a datagram or record was sent; answered by [`Answer::SentAt`].
    SentAt {
        /// The stream.
        name: String,
        /// The number of the datagram or record.
        number: u64,
    },
    /// Count what [`Ask::Blast`] and [`Ask::Pour`] send to this UDP and TCP port from now on, and answer none.
    Sink {
        /// The port.
        port: u16,
    },
    /// What a sink counted since the last reset; answered by [`Answer::Sunk`].
    Sunk {
        /// The port.
        port: u16,
        /// Whether to count from nothing again.
        reset: bool,
    },
    /// How a connection, watch or stream of that name fares.
    Report {
        /// Which.
        name: String,
    },
    /// End it, and say how it fared.
    Stop {
        /// Which.
        name: String,
    },
}

/// What a test pod answers.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// It could not be done, and why.
    Failed(String),
    /// What the pod is and can.
    Facts {
        /// Its own addresses.
        addresses: Vec<IpAddr>,
        /// Whether the kernel has SCTP sockets.
        sctp: bool,
        /// CLOCK_MONOTONIC, in nanoseconds.
        now_ns: u64,
    },
    /// What came of a probe.
    Probed {
        /// What came back.
        outcome: Outcome,
        /// Who answered, by the name it was given; empty for ICMP, and without an answer.
        who: String,
    },
    /// How a connection fares.
    Held {
        /// Numbers sent.
        sent: u64,
        /// Numbers that came back.
        echoed: u64,
        /// The longest time without one, in milliseconds; the running one counts.
        longest_gap_ms: u64,
        /// Why it ended, if it did.
        ended: Option<String>,
    },
    /// How a watch fares.
    Watched(Watched),
    /// How many datagrams were sent.
    Blasted {
        /// How many; the last number is one less.
        sent: u64,
    },
    /// When a datagram or record was sent.
    SentAt {
        /// On CLOCK_MONOTONIC, in nanoseconds; none if it was not sent, or so long ago that it is forgotten.
        at_ns: Option<u64>,
    },
    /// What arrived at a sink.
    Sunk(Sunk),
}

/// Counts of probes that ended. The times are those of answers, and of the others when they began: a SYN that is sent again
/// may be answered long after the first.
#[derive(Serialize, Deserialize, Clone, Default, PartialEq, Eq, Debug)]
pub struct Watched {
    /// Answered.
    pub accepted: Counted,
    /// Met by silence.
    pub denied: Counted,
    /// Refused, or not sent for an error.
    pub refused: Counted,
}

/// How many, and when.
#[derive(Serialize, Deserialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// The first, on CLOCK_MONOTONIC in nanoseconds.
    pub first_ns: u64,
    /// The last.
    pub last_ns: u64,
}

impl Counted {
    /// Counts one more, at this time.
    pub fn add(&mut self, now_ns: u64) {
        if self.count == 0 {
            self.first_ns = now_ns;
        }
        self.count += 1;
        self.last_ns = now_ns;
    }
}

/// Datagrams, or records of a TCP connection, that arrived.
#[derive(Serialize, Deserialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sunk {
    /// How many, and when.
    pub arrived: Counted,
    /// Number of the first.
    pub first_number: u64,
    /// Number of the last.
    pub last_number: u64,
    /// When the first was sent, on CLOCK_MONOTONIC in nanoseconds, as it says itself.
    pub first_sent_ns: u64,
    /// When the last was sent.
    pub last_sent_ns: u64,
}

/// What came back of a probe.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// An answer.
    Accept,
    /// Silence, which is how policy denies.
    Deny,
    /// A reset or an ICMP error: somebody refused, but not policy.
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Accept => "accepted",
            Self::Deny => "silence",
            Self::Refused => "refused",
        })
    }
}
