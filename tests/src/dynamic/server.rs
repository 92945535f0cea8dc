//! Servers inside a pod that note what arrives, and echo it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use npolicy_agent::rig::{Namespace, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::script::Traffic;
use super::socket::{self, RUNTIME};

/// How often a busy flow's speaker says something.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// What a client says to have the server speak from then on.
pub(super) const SPEAK: u8 = b'S';

/// What arrived at the servers, by the client's protocol and address: when.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals(Arc<Mutex<ByClient>>);

type ByClient = HashMap<(Protocol, SocketAddr), Vec<Instant>>;

impl Arrivals {
    fn note(&self, protocol: Protocol, client: SocketAddr) {
        let mut arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.entry((protocol, client)).or_default().push(Instant::now());
    }

    /// When something arrived from a client's socket, ascending.
    pub(super) fn of(&self, protocol: Protocol, client: SocketAddr) -> Vec<Instant> {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.get(&(protocol, client)).cloned().unwrap_or_default()
    }

    /// How often something arrived from these addresses since a moment; connections count when they are accepted.
    pub(super) fn since(&self, protocol: Protocol, clients: &[IpAddr], start: Instant) -> usize {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_clients = arrivals.iter().filter(|((p, client), _)| *p == protocol && clients.contains(&client.ip()));
        of_clients.map(|(_, times)| times.iter().filter(|&&time| time >= start).count()).sum()
    }
}

/// Running servers of one pod. They stop when this is dropped, and their connections end.
#[derive(Debug)]
pub(super) struct Servers {
    _tasks: JoinSet<()>,
    /// The servers' sockets, by address.
    datagrams: HashMap<SocketAddr, Arc<UdpSocket>>,
}

impl Servers {
    /// Serves everything on each address.
    pub(super) fn start(
        namespace: &Namespace,
        addresses: &[IpAddr],
        serves: &[Traffic],
        arrivals: &Arrivals,
    ) -> io::Result<Self> {
        let (mut tasks, mut datagrams) = (JoinSet::new(), HashMap::new());
        for &address in addresses {
            for &Traffic { protocol, port } in serves {
                let at = SocketAddr::new(address, port);
                let arrivals = arrivals.clone();
                match protocol {
                    Protocol::Tcp => {
                        let listener = socket::tcp_server(namespace, at)?;
                        tasks.spawn_on(accept(listener, arrivals), RUNTIME.handle());
                    }
                    Protocol::Udp => {
                        let socket = Arc::new(socket::udp(namespace, at)?);
                        datagrams.insert(at, socket.clone());
                        tasks.spawn_on(echo_datagrams(socket, arrivals), RUNTIME.handle());
                    }
                    Protocol::Sctp | Protocol::Icmp => {
                        return Err(io::Error::new(io::ErrorKind::Unsupported, "only TCP and UDP are served"));
                    }
                }
            }
        }
        Ok(Self { _tasks: tasks, datagrams })
    }

    /// The socket that serves UDP at an address.
    pub(super) fn datagram_socket(&self, at: SocketAddr) -> Option<Arc<UdpSocket>> {
        self.datagrams.get(&at).cloned()
    }
}

async fn accept(listener: TcpListener, arrivals: Arrivals) {
    let mut streams = JoinSet::new();
    loop {
        // A connection that ended before it was accepted is the client's to report.
        if let Ok((stream, client)) = listener.accept().await {
            arrivals.note(Protocol::Tcp, client);
            streams.spawn(serve_stream(stream, client, arrivals.clone()));
        }
        while streams.try_join_next().is_some() {}
    }
}

async fn serve_stream(mut stream: TcpStream, client: SocketAddr, arrivals: Arrivals) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        arrivals.note(Protocol::Tcp, client);
        if buffer[0] == SPEAK {
            while stream.write_all(&[SPEAK]).await.is_ok() {
                tokio::time::sleep(TICK).await;
            }
            return;
        }
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn echo_datagrams(socket: Arc<UdpSocket>, arrivals: Arrivals) {
    let mut buffer = [0; 4096];
    let mut speakers = JoinSet::new();
    loop {
        // An error here is an ICMP message about an earlier answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        arrivals.note(Protocol::Udp, client);
        if buffer[..length].first() == Some(&SPEAK) {
            let socket = socket.clone();
            speakers.spawn(async move {
                loop {
                    // What cannot be sent now is like what is lost on the way.
                    let _ = socket.send_to(&[SPEAK], client).await;
                    tokio::time::sleep(TICK).await;
                }
            });
        } else {
            let _ = socket.send_to(&buffer[..length], client).await;
        }
    }
}
