//! One question asked by packets, and what came back.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use npolicy_agent::rig::is_refusal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::super::message::{Answer, Outcome, Protocol, Target};
use super::raw;

/// What a probe says.
const LINE: &[u8] = b"npolicy\n";
/// The longest answer.
const LONGEST: usize = 512;

/// Makes one attempt after the other until one is answered or refused.
pub(super) async fn probe(target: Target, attempts_ms: &[u64]) -> anyhow::Result<Answer> {
    for &patience in attempts_ms {
        let (outcome, who) = attempt(target, Duration::from_millis(patience)).await?;
        if outcome != Outcome::Deny {
            return Ok(Answer::Probed { outcome, who });
        }
    }
    Ok(Answer::Probed { outcome: Outcome::Deny, who: String::new() })
}

/// Makes one attempt. Returns who answered beside what came back.
pub(super) async fn attempt(target: Target, patience: Duration) -> anyhow::Result<(Outcome, String)> {
    match tokio::time::timeout(patience, exchange(target)).await {
        Err(_silence) => Ok((Outcome::Deny, String::new())),
        Ok(Ok(who)) => Ok((Outcome::Accept, who)),
        Ok(Err(error)) if is_refusal(&error) => Ok((Outcome::Refused, error.to_string())),
        Ok(Err(error)) => Err(error).with_context(|| format!("probe {target}")),
    }
}

/// One question and the name in its answer.
async fn exchange(target: Target) -> io::Result<String> {
    let to = SocketAddr::new(target.to, target.port);
    match target.protocol {
        Protocol::Tcp => over(TcpStream::connect(to).await?).await,
        Protocol::Sctp => over(raw::connect_sctp(to).await?).await,
        Protocol::Udp => {
            let socket = UdpSocket::bind(own(to)).await?;
            socket.connect(to).await?;
            socket.send(LINE).await?;
            let mut answer = [0; LONGEST];
            let length = socket.recv(&mut answer).await?;
            Ok(who(&answer[..length]))
        }
        Protocol::Icmp => raw::echo(target.to).await.map(|()| String::new()),
    }
}

/// The unspecified address of the same family, with any port.
pub(super) fn own(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

async fn over(mut stream: TcpStream) -> io::Result<String> {
    stream.write_all(LINE).await?;
    let mut answer = Vec::new();
    let mut buffer = [0; LONGEST];
    while !answer.ends_with(b"\n") {
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => answer.extend(&buffer[..length]),
        }
    }
    Ok(who(&answer))
}

/// The first word of an answer.
fn who(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).split_whitespace().next().unwrap_or_default().to_owned()
}
