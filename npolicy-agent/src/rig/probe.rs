//! Questions asked by packets: may this pod reach that address?

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::address::{family_of, unspecified};
use super::error::{Attempt, Result};
use super::namespace::Namespace;
use super::ping;
use super::pod::Pod;
use super::sctp::{self, SctpMeans};
use crate::model::PodKey;

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

/// Where probes start: a network namespace, and the addresses they leave by.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    namespace: Namespace,
    addresses: Vec<IpAddr>,
}

impl Source {
    /// A namespace by a name of its own. The kernel picks each probe's address.
    pub fn new(name: impl Into<String>, namespace: &Namespace) -> Self {
        Self { name: name.into(), namespace: namespace.clone(), addresses: Vec::new() }
    }

    /// Probes leave by these addresses, at most one a family.
    pub fn leaving_by(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address by which a probe leaves for `to`.
    fn address_towards(&self, to: IpAddr) -> IpAddr {
        let family = family_of(to);
        self.addresses.iter().copied().find(|&own| family_of(own) == family).unwrap_or(unspecified(family))
    }
}

impl From<&Pod> for Source {
    fn from(pod: &Pod) -> Self {
        Self::new(pod.key.to_string(), &pod.namespace)
    }
}

/// How long each attempt of a probe waits for an answer; silence after the last is [`Outcome::Deny`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience(pub &'static [Duration]);

impl Patience {
    /// Two attempts. The first is shorter than the kernel's first SYN timeout (1 s). The second is long enough that a busy
    /// machine is not taken for a denial, and for the kernel to send its SYN again twice.
    pub const THOROUGH: Self = Self(&[Duration::from_millis(600), Duration::from_millis(3500)]);
    /// One attempt, for probes of which nothing but silence is expected: an answer takes a few milliseconds.
    pub const BRIEF: Self = Self(&[Duration::from_millis(500)]);
}

/// Probes of one source under way at a time.
const PARALLEL: usize = 64;

/// Asks all questions, each source pod's in parallel; the outcomes come in the order of the questions. A silent probe is
/// made twice. `done` is called after each.
pub fn probe_all(probes: &[(&Pod, Probe)], sctp: SctpMeans, done: impl Fn() + Sync) -> Result<Vec<Outcome>> {
    let mut sources: BTreeMap<&PodKey, Source> = BTreeMap::new();
    for (pod, _) in probes {
        sources.entry(&pod.key).or_insert_with(|| Source::from(*pod));
    }
    let asked: Vec<_> = probes.iter().map(|(pod, probe)| (&sources[&pod.key], *probe, Patience::THOROUGH)).collect();
    probe_each(&asked, sctp, done)
}

/// Asks all questions, each source's in parallel; the outcomes come in the order of the questions. Sources of one name
/// are one. `done` is called after each.
pub fn probe_each(
    asked: &[(&Source, Probe, Patience)],
    sctp: SctpMeans,
    done: impl Fn() + Sync,
) -> Result<Vec<Outcome>> {
    let mut by_source: BTreeMap<_, (&Source, Vec<Numbered>)> = BTreeMap::new();
    for (place, &(source, probe, patience)) in asked.iter().enumerate() {
        by_source.entry(&source.name).or_insert((source, Vec::new())).1.push((place, probe, patience));
    }
    let mut outcomes = vec![Outcome::Deny; asked.len()];
    thread::scope(|scope| {
        let sources: Vec<_> = by_source
            .into_values()
            .map(|(source, probes)| scope.spawn(|| source.namespace.run(|| probe_from(source, probes, sctp, &done))))
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
        let from = unspecified(family_of(probe.to));
        let attempt = attempt(probe, from, patience, sctp);
        event_loop()?.block_on(attempt).attempt(|| format!("probe {} to {probe}", source.key))
    })?
}

/// A question with its place among all of them.
type Numbered = (usize, Probe, Patience);

fn probe_from(
    source: &Source,
    probes: Vec<Numbered>,
    sctp: SctpMeans,
    done: &(impl Fn() + Sync),
) -> Result<Vec<(usize, Outcome)>> {
    event_loop()?.block_on(async {
        let free = Arc::new(Semaphore::new(PARALLEL));
        let mut under_way = JoinSet::new();
        for (place, probe, Patience(attempts)) in probes {
            let free = free.clone();
            let from = source.address_towards(probe.to);
            under_way.spawn(async move {
                let _place = free.acquire_owned().await.expect("the semaphore must stay open");
                let mut outcome = Ok(Outcome::Deny);
                for &patience in attempts {
                    outcome = attempt(probe, from, patience, sctp).await;
                    if !matches!(outcome, Ok(Outcome::Deny)) {
                        break;
                    }
                }
                (place, probe, outcome)
            });
        }
        let mut outcomes = Vec::new();
        while let Some(joined) = under_way.join_next().await {
            let (place, probe, outcome) = joined.expect("a probe must not panic");
            outcomes.push((place, outcome.attempt(|| format!("probe {} to {probe}", source.name))?));
            done();
        }
        Ok(outcomes)
    })
}

fn event_loop() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().attempt(|| "start an event loop".into())
}

async fn attempt(probe: Probe, from: IpAddr, patience: Duration, sctp: SctpMeans) -> io::Result<Outcome> {
    match tokio::time::timeout(patience, exchange(probe, from, sctp)).await {
        Err(_silence) => Ok(Outcome::Deny),
        Ok(Ok(())) => Ok(Outcome::Accept),
        Ok(Err(error)) if is_refusal(&error) => Ok(Outcome::Refused),
        Ok(Err(error)) => Err(error),
    }
}

/// Whether an error came from the other side or from a router, and not from this machine's own limits.
pub fn is_refusal(error: &io::Error) -> bool {
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

/// One question and its answer. `from` is the own address to use; unspecified: the kernel's choice.
async fn exchange(probe: Probe, from: IpAddr, sctp: SctpMeans) -> io::Result<()> {
    let Probe { to, protocol, port } = probe;
    let (own, server) = (SocketAddr::new(from, 0), SocketAddr::new(to, port));
    match (protocol, sctp) {
        (Protocol::Tcp, _) => {
            let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if !from.is_unspecified() {
                socket.bind(own)?;
            }
            echo_over(socket.connect(server).await?).await
        }
        (Protocol::Sctp, SctpMeans::Kernel) => echo_over(sctp::connect(own, server).await?).await,
        (Protocol::Sctp, SctpMeans::Raw) => sctp::exchange(own, server).await,
        (Protocol::Udp, _) => {
            let socket = UdpSocket::bind(own).await?;
            socket.connect(server).await?;
            socket.send(LINE).await?;
            let mut echo = [0; LINE.len()];
            socket.recv(&mut echo).await?;
            Ok(())
        }
        (Protocol::Icmp, _) => ping::echo(own, to).await,
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
