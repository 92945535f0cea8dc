//! Questions asked by packets: may this pod reach that address?

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::error::{Attempt, Result};
use super::ping;
use super::pod::Pod;
use super::sctp::{self, SctpMeans};

/// What a probe speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Protocol {
    /// A connection, a line and its echo.
    Tcp,
    /// A datagram and its echo.
    Udp,
    /// An association, or an INIT and its answer.
    Sctp,
    /// An echo request and its reply.
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

/// One question.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Probe {
    /// Whom to reach.
    pub to: IpAddr,
    /// By what.
    pub protocol: Protocol,
    /// On which port; ICMP has none, and 0 here.
    pub port: u16,
}

impl Probe {
    /// Whom it reaches, as an endpoint is written: with the port, if there is one.
    pub fn destination(&self) -> String {
        match self.protocol {
            Protocol::Icmp => self.to.to_string(),
            Protocol::Tcp | Protocol::Udp | Protocol::Sctp => SocketAddr::new(self.to, self.port).to_string(),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.destination(), self.protocol)
    }
}

/// What came back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// An answer from the server.
    Accept,
    /// Silence, which is how policy denies.
    Deny,
    /// A reset or an ICMP error: somebody refused, but not policy.
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Refused => "Refused",
        })
    }
}

/// How long the first attempt of a probe waits. Shorter than the kernel's first SYN timeout (1 s).
const FIRST_PATIENCE: Duration = Duration::from_millis(600);
/// How long the second attempt waits, after silence: long enough that a busy machine is not taken for a denial, and for
/// the kernel to send its SYN again twice.
const SECOND_PATIENCE: Duration = Duration::from_millis(3500);
/// Probes of one pod under way at a time.
const PARALLEL: usize = 64;

/// Asks all questions, each source pod's in parallel; the outcomes come in the order of the questions. A silent probe is
/// made twice. `done` is called after each.
pub fn probe_all(probes: &[(&Pod, Probe)], sctp: SctpMeans, done: impl Fn() + Sync) -> Result<Vec<Outcome>> {
    let mut by_source: BTreeMap<_, (&Pod, Vec<(usize, Probe)>)> = BTreeMap::new();
    for (place, &(source, probe)) in probes.iter().enumerate() {
        by_source.entry(&source.key).or_insert((source, Vec::new())).1.push((place, probe));
    }
    let mut outcomes = vec![Outcome::Deny; probes.len()];
    thread::scope(|scope| {
        let sources: Vec<_> = by_source
            .into_values()
            .map(|(source, probes)| scope.spawn(|| source.run(|| probe_from(source, probes, sctp, &done))))
            .collect();
        for source in sources {
            let answers = source.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
            for (place, outcome) in answers {
                outcomes[place] = outcome;
            }
        }
        Ok(())
    })?;
    Ok(outcomes)
}

/// Asks one question once.
pub fn probe_once(source: &Pod, probe: Probe, patience: Duration, sctp: SctpMeans) -> Result<Outcome> {
    source.run(|| {
        event_loop()?.block_on(attempt(probe, patience, sctp)).attempt(|| format!("probe {} to {probe}", source.key))
    })?
}

fn probe_from(
    source: &Pod,
    probes: Vec<(usize, Probe)>,
    sctp: SctpMeans,
    done: &(impl Fn() + Sync),
) -> Result<Vec<(usize, Outcome)>> {
    event_loop()?.block_on(async {
        let free = Arc::new(Semaphore::new(PARALLEL));
        let mut under_way = JoinSet::new();
        for (place, probe) in probes {
            let free = free.clone();
            under_way.spawn(async move {
                let _place = free.acquire_owned().await.expect("the semaphore must stay open");
                let outcome = match attempt(probe, FIRST_PATIENCE, sctp).await {
                    Ok(Outcome::Deny) => attempt(probe, SECOND_PATIENCE, sctp).await,
                    answered => answered,
                };
                (place, probe, outcome)
            });
        }
        let mut outcomes = Vec::new();
        while let Some(joined) = under_way.join_next().await {
            let (place, probe, outcome) = joined.expect("a probe must not panic");
            outcomes.push((place, outcome.attempt(|| format!("probe {} to {probe}", source.key))?));
            done();
        }
        Ok(outcomes)
    })
}

fn event_loop() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().attempt(|| "start an event loop".into())
}

async fn attempt(probe: Probe, patience: Duration, sctp: SctpMeans) -> io::Result<Outcome> {
    match tokio::time::timeout(patience, exchange(probe, sctp)).await {
        Err(_silence) => Ok(Outcome::Deny),
        Ok(Ok(())) => Ok(Outcome::Accept),
        Ok(Err(error)) if is_refusal(&error) => Ok(Outcome::Refused),
        Ok(Err(error)) => Err(error),
    }
}

/// Whether an error came from the other side or from a router, and not from this machine's own limits.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, PermissionDenied,
        UnexpectedEof,
    };
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | HostUnreachable
            | NetworkUnreachable
            | PermissionDenied
            | UnexpectedEof
    ) || error.raw_os_error() == Some(rustix::io::Errno::PROTO.raw_os_error())
        || error.raw_os_error() == Some(rustix::io::Errno::NOPROTOOPT.raw_os_error())
}

/// One question and its answer.
async fn exchange(probe: Probe, sctp: SctpMeans) -> io::Result<()> {
    let Probe { to, protocol, port } = probe;
    let server = SocketAddr::new(to, port);
    match (protocol, sctp) {
        (Protocol::Tcp, _) => echo_over(TcpStream::connect(server).await?).await,
        (Protocol::Sctp, SctpMeans::Kernel) => echo_over(sctp::connect(server).await?).await,
        (Protocol::Sctp, SctpMeans::Raw) => sctp::exchange(server).await,
        (Protocol::Udp, _) => {
            let any: IpAddr = match to {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(server).await?;
            socket.send(LINE).await?;
            let mut echo = [0; LINE.len()];
            socket.recv(&mut echo).await?;
            Ok(())
        }
        (Protocol::Icmp, _) => ping::echo(to).await,
    }
}

/// What a probe says.
const LINE: &[u8] = b"npolicy\n";

async fn echo_over(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(LINE).await?;
    let mut echo = [0; LINE.len()];
    stream.read_exact(&mut echo).await?;
    Ok(())
}
