//! The node's interfaces, by netlink alone.
//!
//! A pod's interface is a veth whose peer lives in another network namespace. The kernel names that namespace
//! (`IFLA_LINK_NETNSID`) and lists its addresses without anybody entering it (`IFA_TARGET_NETNSID`, 4.20; links with
//! `IFLA_TARGET_NETNSID`, 4.16). One socket hears of changes in every namespace that ours has a number for
//! (`NETLINK_LISTEN_ALL_NSID`, 4.2), so a new address inside a pod is an event here. Whatever the event, what is there is
//! read again as a whole: an event that is lost or late then changes nothing but the moment.

mod dump;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;
use tracing::warn;

use dump::Dump;

/// The host side of a veth whose peer lives in another namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostLink {
    /// Its number here.
    pub ifindex: u32,
    /// Its name here.
    pub name: String,
    /// The bridge it is a port of.
    pub bridge: Option<u32>,
    /// The peer's namespace as ours numbers it.
    pub netns_id: i32,
    /// The peer's number in its namespace.
    pub peer_ifindex: u32,
    /// The peer's link-layer address; zero if the kernel does not say.
    pub peer_mac: [u8; 6],
    /// The peer's addresses, link-local ones left out, ascending.
    pub addresses: Vec<IpAddr>,
    /// Whether it is up here.
    pub is_up: bool,
}

/// What is on the node at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Links {
    /// Veths that lead to other namespaces, by number.
    pub host: BTreeMap<u32, HostLink>,
    /// This namespace's own addresses, loopback ones and link-local ones left out.
    pub own_addresses: BTreeSet<IpAddr>,
}

/// Why the node's interfaces cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("{what} by netlink (CAP_NET_ADMIN and CAP_NET_BROADCAST are needed)")]
pub struct LinkError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// Groups of rtnetlink that tell of changes: links, IPv4 addresses, IPv6 addresses, namespace numbers.
const GROUPS: [u32; 4] = [1, 5, 9, 28];
/// Changes come in bursts: wait until it has been this quiet,
const QUIET: Duration = Duration::from_millis(2);
/// but never longer than this.
const PATIENCE: Duration = Duration::from_millis(20);
/// Without any event everything is read again this often, and after a reading that did not work.
const AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// A watch on the node's interfaces: always holds what was there at the last reading. Its thread ends after the last
/// receiver is gone.
#[derive(Clone, Debug)]
pub struct LinkWatch {
    links: watch::Receiver<Arc<Links>>,
}

impl LinkWatch {
    /// Subscribes to changes, then reads what is there.
    ///
    /// # Errors
    /// If netlink refuses the socket, the subscription or the first reading.
    pub fn start() -> Result<Self, LinkError> {
        let events = subscribe().map_err(|source| LinkError { what: "listen for changes of interfaces", source })?;
        let mut dump = Dump::open().map_err(|source| LinkError { what: "open a socket", source })?;
        let first = dump.links().map_err(|source| LinkError { what: "read the interfaces", source })?;
        let (sender, links) = watch::channel(Arc::new(first));
        thread::Builder::new()
            .name("links".into())
            .spawn(move || follow(&events, &mut dump, &sender))
            .map_err(|source| LinkError { what: "start a thread to follow interfaces", source })?;
        Ok(Self { links })
    }

    /// What was there at the last reading.
    pub fn current(&self) -> Arc<Links> {
        self.links.borrow().clone()
    }

    /// Waits until a reading differs from the last one seen through this watch, and returns it.
    pub async fn changed(&mut self) -> Arc<Links> {
        if self.links.changed().await.is_err() {
            // The thread only ends after us.
            return std::future::pending().await;
        }
        self.links.borrow_and_update().clone()
    }
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.set_listen_all_namespaces(true)?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn follow(events: &Socket, dump: &mut Dump, links: &watch::Sender<Arc<Links>>) {
    while !links.is_closed() {
        wait(events, AT_LEAST_EVERY);
        let patience = Instant::now() + PATIENCE;
        loop {
            drain(events);
            let left = patience.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait(events, QUIET.min(left)) {
                break;
            }
        }
        match dump.links() {
            Ok(now) => {
                links.send_if_modified(|known| {
                    let is_new = **known != now;
                    if is_new {
                        *known = Arc::new(now);
                    }
                    is_new
                });
            }
            Err(error) => warn!(%error, "cannot read the interfaces; the last reading stays"),
        }
    }
}

/// Waits for an event; returns whether one is there.
fn wait(events: &Socket, at_most: Duration) -> bool {
    let timeout = Timespec { tv_sec: at_most.as_secs().cast_signed(), tv_nsec: at_most.subsec_nanos().into() };
    let socket = events.as_fd();
    // An interruption counts as an event: reading once more does no harm.
    !matches!(poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)), Ok(0))
}

/// Takes every event off the socket. What they say does not matter, nor does an overrun: everything is read afterwards.
fn drain(events: &Socket) {
    let mut buffer = bytes_of_events();
    loop {
        buffer.clear();
        match events.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(_) => return,
        }
    }
}

/// One event is far smaller; the rest of a longer one is cut off, unread.
fn bytes_of_events() -> Vec<u8> {
    Vec::with_capacity(8192)
}
