//! New connections: may this one reach that one, now?

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use npolicy_agent::rig::{Namespace, Outcome, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use super::script::Traffic;
use super::socket::{self, RUNTIME};

/// How long an answer may take. Shorter than the kernel's first SYN timeout (1 s): one SYN, one verdict.
pub(super) const PATIENCE: Duration = Duration::from_millis(700);

/// One question, ready to be asked from outside the namespace.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Where the asking end lives.
    pub(super) from: Namespace,
    /// Whom it asks.
    pub(super) to: IpAddr,
    /// How.
    pub(super) traffic: Traffic,
}

impl Question {
    /// Asks once. An error is the machine's own.
    pub(super) async fn ask(&self, patience: Duration) -> io::Result<Outcome> {
        match tokio::time::timeout(patience, self.exchange()).await {
            Err(_silence) => Ok(Outcome::Deny),
            Ok(Ok(())) => Ok(Outcome::Accept),
            // The kernel gave up asking.
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Ok(Outcome::Deny),
            Ok(Err(error)) if is_refusal(&error) => Ok(Outcome::Refused),
            Ok(Err(error)) => Err(error),
        }
    }

    async fn exchange(&self) -> io::Result<()> {
        let server = SocketAddr::new(self.to, self.traffic.port);
        match self.traffic.protocol {
            Protocol::Tcp => {
                let mut stream = socket::tcp_client(&self.from, self.to, 0)?.connect(server).await?;
                stream.write_all(LINE).await?;
                stream.read_exact(&mut [0; LINE.len()]).await?;
                Ok(())
            }
            Protocol::Udp => {
                let socket = socket::udp(&self.from, socket::any(self.to, 0))?;
                socket.connect(server).await?;
                exchange_datagrams(&socket, LINE).await
            }
            Protocol::Icmp => exchange_datagrams(&socket::echo(&self.from, self.to)?, &echo_request(self.to)).await,
            Protocol::Sctp => Err(io::Error::new(io::ErrorKind::Unsupported, "SCTP is not asked by scripts")),
        }
    }
}

/// What a probe says.
const LINE: &[u8] = b"npolicy\n";
/// Types of an echo request (RFC 792, RFC 4443).
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// An echo request, for a socket on which the kernel fills in id and checksum.
pub(super) fn echo_request(to: IpAddr) -> [u8; 16] {
    let kind = if to.is_ipv4() { ECHO_REQUEST_V4 } else { ECHO_REQUEST_V6 };
    [kind, 0, 0, 0, 0, 0, 0, 1, b'n', b'p', b'o', b'l', b'i', b'c', b'y', 0]
}

async fn exchange_datagrams(socket: &UdpSocket, request: &[u8]) -> io::Result<()> {
    socket.send(request).await?;
    socket.recv(&mut [0; 64]).await?;
    Ok(())
}

/// Sends so many bytes over a new connection and waits until all of them came back.
pub(super) fn transfer(from: &Namespace, server: SocketAddr, bytes: usize, within: Duration) -> anyhow::Result<()> {
    let socket = socket::tcp_client(from, server.ip(), 0)?;
    RUNTIME.block_on(async {
        let both = async {
            let (mut reader, mut writer) = socket.connect(server).await?.into_split();
            let (sent, mut received) = (vec![b'b'; bytes], vec![0; bytes]);
            tokio::try_join!(writer.write_all(&sent), async { reader.read_exact(&mut received).await.map(|_| ()) })?;
            io::Result::Ok(sent == received)
        };
        let is_same = tokio::time::timeout(within, both).await.context("it takes too long")??;
        ensure!(is_same, "what came back is not what was sent");
        Ok(())
    })
}

/// Whether an error came from the other side or from a router, and not from this machine's own limits.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
        PermissionDenied, UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe
            | ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | HostUnreachable
            | NetworkUnreachable
            | PermissionDenied
            | UnexpectedEof
    )
}
