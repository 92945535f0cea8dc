//! Connections that are kept busy, and what became of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use npolicy_agent::rig::{Namespace, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::probe::{echo_request, is_refusal};
use super::script::{Speaker, Traffic};
use super::server::{Arrivals, SPEAK, TICK};
use super::socket::{self, RUNTIME};

/// What a client says.
const BYTE: u8 = b'c';

/// A connection, or an exchange of datagrams, over one family.
#[derive(Debug)]
pub(super) struct Flow {
    /// The client's socket.
    pub(super) client: SocketAddr,
    /// The server's socket.
    pub(super) server: SocketAddr,
    /// TCP, UDP, or ICMP, whose answers no server notes.
    pub(super) protocol: Protocol,
    arrivals: Arrivals,
    heard: Arc<Mutex<Heard>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Heard {
    times: Vec<Instant>,
    /// Datagrams sent.
    sent: usize,
    ended: Option<String>,
}

impl Heard {
    fn note(this: &Mutex<Self>) {
        this.lock().unwrap_or_else(PoisonError::into_inner).times.push(Instant::now());
    }
}

/// A flow at one moment.
#[derive(Debug)]
pub(super) struct Seen {
    /// When something arrived at the listening end of the speaker's words, and came back if it is echoed; ascending.
    pub(super) answers: Vec<Instant>,
    /// Datagrams that the client sent.
    pub(super) sent: usize,
    /// The last moment at which anything arrived at either end.
    pub(super) last: Option<Instant>,
    /// How it ended, if the other side or a router ended it.
    pub(super) ended: Option<String>,
}

impl Flow {
    /// Starts to connect from a namespace and to keep busy what comes of it. `port` 0 is any.
    pub(super) fn start(
        namespace: &Namespace,
        client: SocketAddr,
        server: SocketAddr,
        traffic: Traffic,
        speaker: Speaker,
        arrivals: &Arrivals,
    ) -> io::Result<Self> {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let port = client.port();
        let (client, task) = match traffic.protocol {
            Protocol::Tcp => {
                let socket = socket::tcp_client(namespace, server.ip(), port)?;
                if port == 0 {
                    socket.bind(client)?;
                }
                let client = SocketAddr::new(client.ip(), socket.local_addr()?.port());
                let noted = heard.clone();
                let work = async move {
                    let Err(error) = keep_stream_busy(socket, server, speaker, &noted).await;
                    noted.lock().unwrap_or_else(PoisonError::into_inner).ended = Some(error.to_string());
                };
                (client, RUNTIME.spawn(work))
            }
            Protocol::Udp => {
                let socket = socket::udp(namespace, client)?;
                // What a router or the server's host says of it is heard only on a connected one.
                RUNTIME.block_on(socket.connect(server))?;
                let client = socket.local_addr()?;
                (client, RUNTIME.spawn(keep_datagrams_busy(socket, None, speaker, heard.clone())))
            }
            Protocol::Icmp => {
                let socket = socket::echo(namespace, server.ip())?;
                (
                    socket.local_addr()?,
                    RUNTIME.spawn(keep_datagrams_busy(socket, Some(server.ip()), speaker, heard.clone())),
                )
            }
            Protocol::Sctp => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "SCTP is not kept busy"));
            }
        };
        Ok(Self { client, server, protocol: traffic.protocol, arrivals: arrivals.clone(), heard, task })
    }

    /// What became of it so far.
    pub(super) fn look(&self) -> Seen {
        let arrived = self.arrivals.of(self.protocol, self.client);
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let last = arrived.last().copied().max(heard.times.last().copied());
        Seen { answers: heard.times.clone(), sent: heard.sent, last, ended: heard.ended.clone() }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_stream_busy(
    socket: tokio::net::TcpSocket,
    server: SocketAddr,
    speaker: Speaker,
    heard: &Mutex<Heard>,
) -> io::Result<std::convert::Infallible> {
    let mut stream = socket.connect(server).await?;
    let mut answer = [0; 1];
    if speaker == Speaker::Server {
        stream.write_all(&[SPEAK]).await?;
    }
    loop {
        if speaker == Speaker::Client {
            stream.write_all(&[BYTE]).await?;
        }
        stream.read_exact(&mut answer).await?;
        Heard::note(heard);
        if speaker == Speaker::Client {
            tokio::time::sleep(TICK).await;
        }
    }
}

/// Sends whether or not it is answered: a datagram that is lost is not sent again. Refusals are noted as the end, and it
/// goes on all the same.
async fn keep_datagrams_busy(socket: UdpSocket, pinged: Option<IpAddr>, speaker: Speaker, heard: Arc<Mutex<Heard>>) {
    let byte = [BYTE];
    let echo_request = pinged.map(echo_request);
    let said: &[u8] = echo_request.as_ref().map_or(&byte, |request| request);
    let listening = async {
        let mut buffer = [0; 64];
        loop {
            match socket.recv(&mut buffer).await {
                Ok(_) => Heard::note(&heard),
                Err(error) if is_refusal(&error) => {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).ended = Some(error.to_string());
                }
                Err(_) => tokio::time::sleep(TICK).await,
            }
        }
    };
    let speaking = async {
        // Nobody hears it if it cannot be sent; that is what is looked at.
        if speaker == Speaker::Server {
            let _ = socket.send(&[SPEAK]).await;
            std::future::pending::<()>().await;
        }
        loop {
            let _ = socket.send(said).await;
            heard.lock().unwrap_or_else(PoisonError::into_inner).sent += 1;
            tokio::time::sleep(TICK).await;
        }
    };
    tokio::join!(listening, speaking);
}

/// The longest time without an answer between two moments, and when it began.
pub(super) fn longest_pause(answers: &[Instant], from: Instant, to: Instant) -> (Duration, Instant) {
    let inner = answers.iter().copied().filter(|time| (from..=to).contains(time));
    let mut before = from;
    let mut longest = (Duration::ZERO, from);
    for time in inner.chain([to]) {
        if time - before > longest.0 {
            longest = (time - before, before);
        }
        before = time;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_longest_pause_at_either_end_and_within() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let answers = [at(100), at(200), at(900), at(1000)];
        assert_eq!(longest_pause(&answers, start, at(1100)), (Duration::from_millis(700), at(200)));
        assert_eq!(longest_pause(&answers, at(150), at(2500)), (Duration::from_millis(1500), at(1000)));
        assert_eq!(longest_pause(&[], start, at(300)), (Duration::from_millis(300), start));
    }
}
