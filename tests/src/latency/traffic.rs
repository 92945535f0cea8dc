//! The flows between the two pods, and what the receiver saw of them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::bail;

use super::stage::Pods;
use crate::e2e::Api;
use crate::e2e::channel::Channel;
use crate::e2e::message::{Answer, Ask, Sunk};

/// Between two datagrams of a flow; the two flows together send 10,000 a second.
const EVERY_US: u64 = 200;
/// Between two records of the TCP flow: often enough to tell milliseconds apart, seldom enough that each has a segment.
const TCP_EVERY_US: u64 = 1000;
/// How long a question to a pod may take.
const ANSWERING: Duration = Duration::from_secs(10);

/// What packets are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    /// Datagrams of one UDP flow.
    Running,
    /// Datagrams, each by a new source port.
    Fresh,
    /// One TCP connection, opened before each denial.
    Tcp,
}

impl Flow {
    fn port(self) -> u16 {
        match self {
            Self::Running => 9001,
            Self::Fresh => 9002,
            Self::Tcp => 9003,
        }
    }

    fn every_us(self) -> u64 {
        match self {
            Self::Running | Self::Fresh => EVERY_US,
            Self::Tcp => TCP_EVERY_US,
        }
    }

    /// How many datagrams or records it should send within a time.
    pub(super) fn sent_within(self, time: Duration) -> u64 {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX) / self.every_us()
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Fresh => "fresh",
            Self::Tcp => "tcp",
        })
    }
}

/// One of the two pods.
pub(super) struct Pod {
    pub(super) name: &'static str,
    address: IpAddr,
    channel: Channel,
}

impl Pod {
    pub(super) fn new(api: &Api, name: &'static str, address: IpAddr) -> Self {
        Self { name, address, channel: Channel::new(api, super::stage::NAMESPACE, name) }
    }

    pub(super) async fn ask(&self, ask: Ask) -> anyhow::Result<Answer> {
        self.channel.ask(ask, ANSWERING).await
    }

    async fn tell(&self, ask: Ask) -> anyhow::Result<()> {
        match self.ask(ask).await? {
            Answer::Done | Answer::Blasted { .. } => Ok(()),
            other => bail!("pod {}: unexpected answer {other:?}", self.name),
        }
    }
}

impl Pods {
    /// Opens the receiver's ports.
    pub(super) async fn open_sinks(&self) -> anyhow::Result<()> {
        for flow in [Flow::Running, Flow::Fresh, Flow::Tcp] {
            self.receiver.tell(Ask::Sink { port: flow.port() }).await?;
        }
        Ok(())
    }

    /// Starts to send. Of TCP, returns when the connection is open.
    pub(super) async fn start(&self, flow: Flow) -> anyhow::Result<()> {
        let (name, every_us) = (flow.to_string(), flow.every_us());
        let to = SocketAddr::new(self.receiver.address, flow.port());
        let ask = match flow {
            Flow::Running => Ask::Blast { name, to, every_us, fresh: false },
            Flow::Fresh => Ask::Blast { name, to, every_us, fresh: true },
            Flow::Tcp => Ask::Pour { name, to, every_us },
        };
        self.sender.tell(ask).await
    }

    /// Stops sending; of TCP, by a reset.
    pub(super) async fn stop(&self, flow: Flow) -> anyhow::Result<()> {
        self.sender.tell(Ask::Stop { name: flow.to_string() }).await
    }

    /// What arrived since the last reset.
    pub(super) async fn arrived(&self, flow: Flow) -> anyhow::Result<Sunk> {
        self.read_sink(flow, false).await
    }

    /// What arrived since the last reset; counts from nothing from now on.
    pub(super) async fn reset(&self, flow: Flow) -> anyhow::Result<Sunk> {
        self.read_sink(flow, true).await
    }

    async fn read_sink(&self, flow: Flow, reset: bool) -> anyhow::Result<Sunk> {
        match self.receiver.ask(Ask::Sunk { port: flow.port(), reset }).await? {
            Answer::Sunk(sunk) => Ok(sunk),
            other => bail!("pod {}: unexpected answer {other:?}", self.receiver.name),
        }
    }

    /// When a datagram was sent; none if it was not, or so long ago that it is forgotten.
    pub(super) async fn sent_ns(&self, flow: Flow, number: u64) -> anyhow::Result<Option<u64>> {
        match self.sender.ask(Ask::SentAt { name: flow.to_string(), number }).await? {
            Answer::SentAt { at_ns } => Ok(at_ns),
            other => bail!("pod {}: unexpected answer {other:?}", self.sender.name),
        }
    }
}
