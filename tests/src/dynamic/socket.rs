//! Sockets made inside a namespace and used from one event loop outside it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use npolicy_agent::rig::Namespace;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, sockopt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::runtime::Runtime;

/// Where every socket of every script is waited for: a socket stays in the namespace it was made in.
pub(super) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("an event loop")
});

/// Makes something in a namespace, as part of the event loop.
fn inside<T: Send>(namespace: &Namespace, make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    namespace
        .run(|| {
            let _entered = RUNTIME.enter();
            make()
        })
        .map_err(io::Error::other)?
}

fn socket(like: IpAddr, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let family = if like.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)?)
}

/// The address of a socket that takes any.
pub(super) fn any(like: IpAddr, port: u16) -> SocketAddr {
    let any = if like.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(any, port)
}

/// A TCP socket that is not connected, bound to `port` if it is not 0. Ports of earlier connections may be used again.
pub(super) fn tcp_client(namespace: &Namespace, like: IpAddr, port: u16) -> io::Result<TcpSocket> {
    inside(namespace, || {
        let socket = socket(like, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if port != 0 {
            rustix::net::bind(&socket, &any(like, port))?;
        }
        Ok(TcpSocket::from_std_stream(TcpStream::from(socket)))
    })
}

/// A TCP socket that listens.
pub(super) fn tcp_server(namespace: &Namespace, at: SocketAddr) -> io::Result<TcpListener> {
    inside(namespace, || {
        let listener = std::net::TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    })
}

/// A UDP socket.
pub(super) fn udp(namespace: &Namespace, at: SocketAddr) -> io::Result<UdpSocket> {
    inside(namespace, || {
        let socket = std::net::UdpSocket::bind(at)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    })
}

/// A socket for echo requests and their replies, without privileges, connected.
pub(super) fn echo(namespace: &Namespace, to: IpAddr) -> io::Result<UdpSocket> {
    let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    inside(namespace, || {
        let socket = socket(to, SocketType::DGRAM, Some(protocol))?;
        rustix::net::connect(&socket, &SocketAddr::new(to, 0))?;
        UdpSocket::from_std(socket.into())
    })
}

/// A socket that sends and receives ICMP messages of every type; the kernel makes the IP header.
pub(super) fn raw_icmp(namespace: &Namespace, like: IpAddr) -> io::Result<UdpSocket> {
    let protocol = if like.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    inside(namespace, || UdpSocket::from_std(socket(like, SocketType::RAW, Some(protocol))?.into()))
}
