//! Servers inside a pod, or another namespace: they answer what reaches them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread::JoinHandle;

use npolicy_common::Family;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::error::{Attempt, Result};
use super::namespace::Namespace;
use super::pod::Pod;
use super::probe::Protocol;
use super::sctp::{self, SctpMeans};

/// A port that a pod serves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Service {
    /// TCP, UDP or SCTP. Echo requests are answered by the kernel, without a server.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// Running servers of one namespace: each sends back what it receives. They stop when this is dropped.
#[derive(Debug)]
pub struct Listeners {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Listeners {
    /// Serves every service on each of the pod's addresses. All of them listen when it returns.
    pub fn start(pod: &Pod, services: &[Service], sctp: SctpMeans) -> Result<Self> {
        Self::start_at(&pod.key.to_string(), &pod.namespace, pod.addresses().collect(), services, sctp)
    }

    /// Serves every service on each of these addresses of a namespace; `name` is for messages. All of them listen when it
    /// returns.
    pub fn start_at(
        name: &str,
        namespace: &Namespace,
        addresses: Vec<IpAddr>,
        services: &[Service],
        sctp: SctpMeans,
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let services = services.to_vec();
        let name = name.to_owned();
        let thread = namespace.spawn(&name.clone(), move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .attempt(|| "start an event loop".into())?;
            runtime.block_on(async {
                let mut servers = JoinSet::new();
                let started =
                    start_all(&mut servers, &addresses, &services, sctp).attempt(|| format!("serve in {name}"));
                let runs = started.is_ok();
                // Nobody waits any more only if the caller's thread is gone.
                let _ = ready.send(started);
                if runs {
                    // An error says that the handle was dropped, which means the same.
                    let _ = stopped.await;
                }
            });
            Ok(())
        })?;
        match is_ready.recv() {
            Ok(started) => {
                let listeners = Self { stop: Some(stop), thread: Some(thread) };
                started.map(|()| listeners)
            }
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) => unreachable!("a thread that enters the pod must say how it started"),
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the servers are gone either way.
            let _ = thread.join();
        }
    }
}

fn start_all(servers: &mut JoinSet<()>, addresses: &[IpAddr], services: &[Service], sctp: SctpMeans) -> io::Result<()> {
    for &address in addresses {
        for &Service { protocol, port } in services {
            let socket = SocketAddr::new(address, port);
            match protocol {
                Protocol::Tcp => {
                    let listener = std::net::TcpListener::bind(socket)?;
                    listener.set_nonblocking(true)?;
                    servers.spawn(accept_streams(TcpListener::from_std(listener)?));
                }
                Protocol::Udp => {
                    let listener = std::net::UdpSocket::bind(socket)?;
                    listener.set_nonblocking(true)?;
                    servers.spawn(echo_datagrams(UdpSocket::from_std(listener)?));
                }
                Protocol::Sctp if sctp == SctpMeans::Kernel => {
                    servers.spawn(accept_streams(sctp::listen(socket)?));
                }
                Protocol::Sctp | Protocol::Icmp => {}
            }
        }
        if sctp == SctpMeans::Raw {
            let ports: Vec<u16> =
                services.iter().filter(|it| it.protocol == Protocol::Sctp).map(|it| it.port).collect();
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            servers.spawn(sctp::answer(sctp::raw_socket(family)?, ports));
        }
    }
    Ok(())
}

async fn accept_streams(listener: TcpListener) {
    let mut streams = JoinSet::new();
    loop {
        // A connection that ended before it was accepted is the client's to report.
        if let Ok((stream, _)) = listener.accept().await {
            streams.spawn(echo_stream(stream));
        }
        while streams.try_join_next().is_some() {}
    }
}

async fn echo_stream(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut buffer = [0; 4096];
    loop {
        // An error here is an ICMP message about an earlier answer.
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    }
}
