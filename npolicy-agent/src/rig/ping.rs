//! Echo requests by unprivileged ICMP sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::UdpSocket;

/// Type of an echo request (RFC 792, RFC 4443). The kernel fills in id and checksum, and hands over replies of the id.
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// Sends one echo request and waits for its reply.
pub(super) async fn echo(own: SocketAddr, to: IpAddr) -> io::Result<()> {
    let (family, protocol, kind) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, ECHO_REQUEST_V4),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, ECHO_REQUEST_V6),
    };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(protocol))?;
    if !own.ip().is_unspecified() {
        rustix::net::bind(&socket, &own)?;
    }
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(SocketAddr::new(to, 0)).await?;
    let request = [kind, 0, 0, 0, 0, 0, 0, 1, b'n', b'p', b'o', b'l', b'i', b'c', b'y', 0];
    socket.send(&request).await?;
    let mut reply = [0; 64];
    socket.recv(&mut reply).await?;
    Ok(())
}
