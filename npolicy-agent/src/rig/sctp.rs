//! SCTP: the kernel's own where it has it, else the opening exchange over raw sockets.
//!
//! Policy sees the ports of an SCTP packet and nothing of its state, so an INIT and its answer are as good a question as
//! a whole association.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};

use npolicy_common::Family;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::address::family_of;

/// How SCTP is spoken on this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SctpMeans {
    /// By sockets of the kernel's SCTP.
    Kernel,
    /// By raw sockets on both ends, since the kernel has no SCTP.
    Raw,
}

impl SctpMeans {
    /// Asks the kernel, which may load its module.
    pub fn find() -> Self {
        if kernel_socket(AddressFamily::INET).is_ok() { Self::Kernel } else { Self::Raw }
    }
}

/// Length of the common header, and where the first chunk's type stands (RFC 9260, section 3).
const COMMON_HEADER: usize = 12;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
/// Tag that both ends name. Connection tracking on the way drops answers without it.
const INITIATE_TAG: u32 = 1;

/// Next source port of a raw exchange: two at a time must not share one.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

fn kernel_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, Some(ipproto::SCTP))?)
}

fn family_number(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}

/// Listens by the kernel's SCTP. A one-to-one socket behaves like a TCP one.
pub(super) fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = kernel_socket(family_number(at.ip()))?;
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, 128)?;
    TcpListener::from_std(socket.into())
}

/// Connects by the kernel's SCTP.
pub(super) async fn connect(own: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = kernel_socket(family_number(to.ip()))?;
    if !own.ip().is_unspecified() {
        rustix::net::bind(&socket, &own)?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// A socket that sends and receives whole SCTP packets. Takes CAP_NET_RAW.
pub(super) fn raw_socket(family: Family) -> io::Result<UdpSocket> {
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::RAW, flags, Some(ipproto::SCTP))?;
    UdpSocket::from_std(socket.into())
}

/// Answers every INIT as a stack would: by INIT ACK where `ports` has its port, by ABORT elsewhere.
pub(super) async fn answer(socket: UdpSocket, ports: Vec<u16>) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(packet) = Packet::read(strip_ip_header(&buffer[..length], from.ip())) else { continue };
        if packet.chunk != INIT {
            continue;
        }
        let chunk = if ports.contains(&packet.to) { INIT_ACK } else { ABORT };
        let answer = Packet { from: packet.to, to: packet.from, chunk };
        // What cannot be sent is an answer the client misses, and says so.
        let _ = socket.send_to(&answer.bytes(), SocketAddr::new(from.ip(), 0)).await;
    }
}

/// Sends an INIT and waits for its answer.
///
/// # Errors
///
/// `ConnectionRefused` for an ABORT.
pub(super) async fn exchange(own: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let socket = raw_socket(family_of(to.ip()))?;
    rustix::net::bind(&socket, &own)?;
    socket.connect(SocketAddr::new(to.ip(), 0)).await?;
    let from = 49_152 + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % 16_384;
    socket.send(&Packet { from, to: to.port(), chunk: INIT }.bytes()).await?;
    let mut buffer = [0; 2048];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let packet = Packet::read(strip_ip_header(&buffer[..length], to.ip()));
        match packet.filter(|packet| packet.from == to.port() && packet.to == from) {
            Some(Packet { chunk: INIT_ACK, .. }) => return Ok(()),
            Some(Packet { chunk: ABORT, .. }) => return Err(io::ErrorKind::ConnectionRefused.into()),
            Some(_) | None => {}
        }
    }
}

/// A raw IPv4 socket receives the IP header too, a raw IPv6 socket does not.
fn strip_ip_header(bytes: &[u8], peer: IpAddr) -> &[u8] {
    match (peer, bytes.first()) {
        (IpAddr::V4(_), Some(first)) => bytes.get(usize::from(first & 0xf) * 4..).unwrap_or_default(),
        (IpAddr::V4(_), None) | (IpAddr::V6(_), _) => bytes,
    }
}

/// An SCTP packet with one chunk, as far as the exchange needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Packet {
    from: u16,
    to: u16,
    chunk: u8,
}

impl Packet {
    /// Reads ports and the first chunk's type.
    fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, d] = bytes.first_chunk()?;
        let &chunk = bytes.get(COMMON_HEADER)?;
        Some(Self { from: u16::from_be_bytes([a, b]), to: u16::from_be_bytes([c, d]), chunk })
    }

    /// The whole packet: common header with checksum, and a chunk that asks for one stream each way. An ABORT's chunk is
    /// its header alone.
    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        // An INIT goes under the verification tag 0, an answer under the tag that the INIT names.
        let verification_tag: u32 = if self.chunk == INIT { 0 } else { INITIATE_TAG };
        bytes.extend(verification_tag.to_be_bytes());
        bytes.extend([0; 4]);
        if self.chunk == ABORT {
            bytes.extend([ABORT, 0, 0, 4]);
        } else {
            bytes.extend([self.chunk, 0, 0, 20]);
            // Initiate tag, receiver window, streams out, streams in, first sequence number.
            bytes.extend(INITIATE_TAG.to_be_bytes());
            bytes.extend(65_535_u32.to_be_bytes());
            bytes.extend(1_u16.to_be_bytes());
            bytes.extend(1_u16.to_be_bytes());
            bytes.extend(1_u32.to_be_bytes());
        }
        let checksum = crc32c(&bytes);
        // The one little-endian field of the protocol (RFC 9260, appendix A).
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// The CRC-32C of RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { REVERSED_POLYNOMIAL } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_packet_reads_back_as_it_was_written() {
        for chunk in [INIT, INIT_ACK, ABORT] {
            let packet = Packet { from: 50_000, to: 8080, chunk };
            let bytes = packet.bytes();
            assert_eq!(Packet::read(&bytes), Some(packet));
            let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
            assert_eq!(bytes.len(), COMMON_HEADER + length);
        }
        assert_eq!(Packet::read(&[0; COMMON_HEADER]), None);
    }
}
