//! ICMP errors, made by hand, that quote a packet.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use npolicy_agent::rig::{Namespace, Protocol};
use rustix::io::Errno;

use super::script::ErrorKind;
use super::socket::{self, RUNTIME};

/// Length of a quoted IPv4 and IPv6 header.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// The path's MTU that a "too big" tells.
const MTU: u32 = 1300;
/// How long a message may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// An ICMP error about a packet from `client` to `server`; `nonce` tells it from others.
pub(super) fn error_about(
    kind: ErrorKind,
    protocol: Protocol,
    client: SocketAddr,
    server: SocketAddr,
    nonce: u64,
) -> anyhow::Result<Vec<u8>> {
    // Type and code: RFC 792 with RFC 1191, RFC 4443.
    let (class, code) = match (kind, client.is_ipv4()) {
        (ErrorKind::TooBig, true) => (3, 4),
        (ErrorKind::TooBig, false) => (2, 0),
        (ErrorKind::TimeExceeded, true) => (11, 0),
        (ErrorKind::TimeExceeded, false) => (3, 0),
        (ErrorKind::PortUnreachable, true) => (3, 3),
        (ErrorKind::PortUnreachable, false) => (1, 4),
    };
    let rest = if kind == ErrorKind::TooBig { MTU } else { 0 };
    let number: u8 = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        other => bail!("no packet of {other} is quoted"),
    };
    // Ports, then for TCP the sequence number, for UDP length and no checksum; the rest of a header and data.
    let mut upper = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    upper.extend([0, 32, 0, 0]);
    upper.extend([0; 16]);
    upper.extend(nonce.to_be_bytes());
    let mut message = vec![class, code, 0, 0];
    message.extend(rest.to_be_bytes());
    let length = u16::try_from(upper.len()).expect("a quote is short");
    match (client.ip(), server.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend((IPV4_HEADER as u16 + length).to_be_bytes());
            // Not to be fragmented, 63 hops left.
            header.extend([0, 0, 0x40, 0, 63, number, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            debug_assert_eq!(header.len(), IPV4_HEADER);
            message.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([number, 63]);
            header.extend(from.octets());
            header.extend(to.octets());
            debug_assert_eq!(header.len(), IPV6_HEADER);
            message.extend(header);
        }
        _ => bail!("{client} and {server} are of two families"),
    }
    message.extend(upper);
    if client.is_ipv4() {
        // The kernel does it for ICMPv6 only.
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
    }
    Ok(message)
}

/// Sends an ICMP message and says whether it was received.
pub(super) fn is_received(from: &Namespace, to: &Namespace, address: IpAddr, message: &[u8]) -> anyhow::Result<bool> {
    let sender = socket::raw_icmp(from, address).context("a raw socket")?;
    let receiver = socket::raw_icmp(to, address).context("a raw socket")?;
    // The checksum is the kernel's over IPv6, and the IPv4 header comes along.
    let told = &message[4..];
    RUNTIME.block_on(async {
        match sender.send_to(message, SocketAddr::new(address, 0)).await {
            // A denial on the sender's own node is told to it like a full queue.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => return Ok(false),
            sent => sent.context("send an ICMP message")?,
        };
        let mut buffer = [0; 2048];
        let listening = async {
            loop {
                let (length, _) = receiver.recv_from(&mut buffer).await?;
                if buffer[..length].ends_with(told) {
                    return std::io::Result::Ok(());
                }
            }
        };
        match tokio::time::timeout(PATIENCE, listening).await {
            Ok(received) => received.map(|()| true).context("receive an ICMP message"),
            Err(_silence) => Ok(false),
        }
    })
}

/// The checksum of RFC 1071 over bytes whose checksum field is zero.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_as_the_rfc_does() {
        // The example of RFC 1071, section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), (!0xddf2_u16).to_be_bytes());
    }
}
