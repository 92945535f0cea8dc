//! Sockets that the standard library does not open: SCTP, and ICMP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn sctp_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, Some(ipproto::SCTP))?)
}

/// Whether the kernel has SCTP sockets.
pub(super) fn has_sctp() -> bool {
    sctp_socket(AddressFamily::INET).is_ok()
}

/// Listens by the kernel's SCTP. A one-to-one socket behaves like a TCP one.
pub(super) fn listen_sctp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = sctp_socket(family(at.ip()))?;
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, 128)?;
    TcpListener::from_std(socket.into())
}

/// Connects by the kernel's SCTP.
pub(super) async fn connect_sctp(to: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(sctp_socket(family(to.ip()))?.into()).connect(to).await
}

/// Types of echo requests and replies (RFC 792, RFC 4443).
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// Tells the echo requests of this process apart: each has a number of its own.
static NEXT: AtomicU16 = AtomicU16::new(1);

/// Sends one echo request and waits for its reply. Takes CAP_NET_RAW; a socket without it takes a sysctl that pods on the
/// node's network must not set.
pub(super) async fn echo(to: IpAddr) -> io::Result<()> {
    let ((request, reply), protocol) = match to {
        IpAddr::V4(_) => (ECHO_V4, ipproto::ICMP),
        IpAddr::V6(_) => (ECHO_V6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = UdpSocket::from_std(socket_with(family(to), SocketType::RAW, flags, Some(protocol))?.into())?;
    socket.connect(SocketAddr::new(to, 0)).await?;
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut packet = [request, 0, 0, 0, high, low, 0, 1, b'n', b'p', b'o', b'l', b'i', b'c', b'y', 0];
    if to.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    // Of IPv6 the kernel fills in the checksum.
    socket.send(&packet).await?;
    let mut buffer = [0; 256];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let received = match to {
            // A raw IPv4 socket receives the IP header too.
            IpAddr::V4(_) => buffer[..length].get(usize::from(buffer[0] & 0xf) * 4..).unwrap_or_default(),
            IpAddr::V6(_) => &buffer[..length],
        };
        if let Some(&[kind, _, _, _, a, b]) = received.first_chunk()
            && kind == reply
            && [a, b] == [high, low]
        {
            return Ok(());
        }
    }
}

/// The checksum of RFC 1071 over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded")
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn a_message_with_its_checksum_sums_to_nothing() {
        let mut packet = [8, 0, 0, 0, 0xff, 0xfe, 0, 1, b'a', b'b'];
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }
}
