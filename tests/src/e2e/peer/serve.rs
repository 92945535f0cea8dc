//! Servers: they send back every line, with their pod's name before it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::spawn_local;

use super::super::message::Protocol;
use super::raw;

/// The ports that are served, until the process ends.
#[derive(Default)]
pub(super) struct Served(BTreeSet<(Protocol, u16)>);

impl Served {
    /// Serves these ports on each address, those that are not served yet.
    pub(super) fn add(&mut self, name: &str, addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> anyhow::Result<()> {
        for &(protocol, port) in ports {
            if self.0.contains(&(protocol, port)) {
                continue;
            }
            for &address in addresses {
                let at = SocketAddr::new(address, port);
                start(name, protocol, at).with_context(|| format!("serve {at} {protocol}"))?;
            }
            self.0.insert((protocol, port));
        }
        Ok(())
    }
}

fn start(name: &str, protocol: Protocol, at: SocketAddr) -> anyhow::Result<()> {
    let name = name.to_owned();
    match protocol {
        Protocol::Tcp => {
            let listener = std::net::TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            spawn_local(accept(name, TcpListener::from_std(listener)?));
        }
        Protocol::Sctp => {
            spawn_local(accept(name, raw::listen_sctp(at)?));
        }
        Protocol::Udp => {
            let socket = std::net::UdpSocket::bind(at)?;
            socket.set_nonblocking(true)?;
            spawn_local(answer_datagrams(name, UdpSocket::from_std(socket)?));
        }
        // The kernel answers.
        Protocol::Icmp => {}
    }
    Ok(())
}

async fn accept(name: String, listener: TcpListener) {
    loop {
        // A connection that ended before it was accepted is the client's to report.
        if let Ok((stream, _)) = listener.accept().await {
            spawn_local(answer_lines(name.clone(), stream));
        }
    }
}

async fn answer_lines(name: String, stream: TcpStream) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if writer.write_all(format!("{name} {line}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn answer_datagrams(name: String, socket: UdpSocket) {
    let mut buffer = [0; 512];
    loop {
        // An error here is an ICMP message about an earlier answer.
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let mut answer = format!("{name} ").into_bytes();
            answer.extend(&buffer[..length]);
            let _ = socket.send_to(&answer, from).await;
        }
    }
}
