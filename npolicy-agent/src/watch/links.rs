//! The node's interfaces, by netlink alone.
//!
//! A pod's interface is a veth whose peer lives in another network namespace. The kernel names that namespace
//! (`IFLA_LINK_NETNSID`) and lists its addresses without anybody entering it (`IFA_TARGET_NETNSID`, 4.20; links with
//! `IFLA_TARGET_NETNSID`, 4.16). One socket hears of changes in every namespace that ours has a number for
//! (`NETLINK_LISTEN_ALL_NSID`, 4.2), so a new address inside a pod is an event here. Whatever the event, what is there is
//! read again as a whole: an event that is lost or late then changes nothing but the moment.

mod dump;
mod message;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
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
    /// The bridge it is a port of: any master but a VRF.
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
    /// When the watch first heard of it. It is not older than that by more than the watch takes to wake up, unless it was
    /// there before the watch.
    pub first_seen: Instant,
    /// Addresses on this end, link-local IPv6 ones left out, ascending.
    pub host_addresses: Vec<IpAddr>,
    /// Where routes of the main tables lead out of it, ascending, each once. Link-local and multicast ones are left out, and
    /// those that routers on the link advertise: a pod may call itself one.
    pub routes: Vec<IpNet>,
    /// What its bridge learned of the peer's link-layer address.
    pub forwarding: Forwarding,
    /// Who else has programs or filters on it, in words. Programs on TCX hooks are not among them.
    pub engines: Vec<String>,
}

/// At which port a bridge has seen frames from a link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forwarding {
    /// At none lately; or there is no bridge.
    Unknown,
    /// At the port in question.
    Here,
    /// At another port.
    Elsewhere(u32),
}

/// A bridge that has a [`HostLink`] among its ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its addresses, link-local IPv6 ones left out, ascending.
    pub addresses: Vec<IpAddr>,
    /// Where routes of the main tables lead out of it, as for [`HostLink::routes`].
    pub routes: Vec<IpNet>,
}

/// An interface in another namespace without an end here: nothing of this node's own sees its packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unenforceable {
    /// The namespace as ours numbers it.
    pub netns_id: i32,
    /// The interface's name there.
    pub name: String,
    /// `macvlan`, `macvtap`, `ipvlan`, `ipvtap`, or `device`: one of the machine's own (SR-IOV).
    pub kind: String,
    /// Its addresses, link-local IPv6 ones left out, ascending.
    pub addresses: Vec<IpAddr>,
}

/// What is on the node at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Links {
    /// Veths that lead to other namespaces, by number.
    pub host: BTreeMap<u32, HostLink>,
    /// The bridges of which they are ports, by number.
    pub bridges: BTreeMap<u32, Bridge>,
    /// What was found in namespaces that ours has a number for, and has no end here; ascending by namespace and name. A
    /// macvlan or ipvlan that was made in its namespace need not be among them.
    pub unenforceable: Vec<Unenforceable>,
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

/// Groups of rtnetlink that tell of changes: links, neighbours (bridges' forwarding entries), traffic control, IPv4
/// addresses and routes, IPv6 addresses and routes, namespace numbers.
const GROUPS: [u32; 8] = [1, 3, 4, 5, 7, 9, 11, 28];
/// Changes come in bursts: wait until it has been this quiet,
const QUIET: Duration = Duration::from_millis(2);
/// but never longer than this.
const PATIENCE: Duration = Duration::from_millis(20);
/// After a reading the next one waits this many times as long as that one took: readings never take more than a quarter of
/// one processor,
const REST: u32 = 3;
/// but are never further apart than this.
const REST_AT_MOST: Duration = Duration::from_millis(100);
/// Bytes of an event that are read; nearly all are far smaller.
const EVENT: usize = 8192;
/// Without any event everything is read again this often, and after a reading that did not work.
const AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// A watch on the node's interfaces: always holds what was there at the last reading. Its thread ends after the last
/// receiver is gone.
#[derive(Clone, Debug)]
pub struct LinkWatch {
    links: watch::Receiver<Arc<Links>>,
    trouble: Trouble,
}

/// What kept the last reading from being one.
type Trouble = Arc<Mutex<Option<String>>>;

impl LinkWatch {
    /// Subscribes to changes, then reads what is there.
    ///
    /// # Errors
    /// If netlink refuses the socket, the subscription or the first reading.
    pub fn start() -> Result<Self, LinkError> {
        let events = subscribe().map_err(|source| LinkError { what: "listen for changes of interfaces", source })?;
        let mut dump = Dump::open().map_err(|source| LinkError { what: "open a socket", source })?;
        let first = read::read(&mut dump, &Links::default(), Instant::now())
            .map_err(|source| LinkError { what: "read the interfaces", source })?;
        let (sender, links) = watch::channel(Arc::new(first));
        let trouble = Trouble::default();
        thread::Builder::new()
            .name("links".into())
            .spawn({
                let trouble = trouble.clone();
                move || follow(&events, &mut dump, &sender, &trouble)
            })
            .map_err(|source| LinkError { what: "start a thread to follow interfaces", source })?;
        Ok(Self { links, trouble })
    }

    /// What was there at the last reading.
    pub fn current(&self) -> Arc<Links> {
        self.links.borrow().clone()
    }

    /// Why the interfaces cannot be read at the moment, if they cannot: what has come since has no programs.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

fn follow(events: &Socket, dump: &mut Dump, links: &watch::Sender<Arc<Links>>, trouble: &Trouble) {
    // The first event that no reading has followed yet: what a reading finds that was not there before came then or later.
    let mut unread: Option<Instant> = None;
    while !links.is_closed() {
        let until = Instant::now() + AT_LEAST_EVERY;
        while unread.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = wait(events, left).then(Instant::now);
            unread = if drain(events) { woken } else { None };
        }
        let patience = Instant::now() + PATIENCE;
        loop {
            drain(events);
            let left = patience.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait(events, QUIET.min(left)) {
                break;
            }
        }
        let started = Instant::now();
        let known = links.borrow().clone();
        let reading = read::read(dump, &known, unread.unwrap_or(started));
        *trouble.lock().unwrap_or_else(PoisonError::into_inner) = reading.as_ref().err().map(ToString::to_string);
        match reading {
            Ok(now) => {
                unread = None;
                links.send_if_modified(|known| {
                    let is_new = **known != now;
                    if is_new {
                        *known = Arc::new(now);
                    }
                    is_new
                });
            }
            Err(error) => {
                warn!(%error, "cannot read the interfaces; the last reading stays");
                unread.get_or_insert(started);
            }
        }
        thread::sleep((started.elapsed() * REST).min(REST_AT_MOST));
    }
}

/// Waits for an event; returns whether one is there.
fn wait(events: &Socket, at_most: Duration) -> bool {
    let timeout = Timespec { tv_sec: at_most.as_secs().cast_signed(), tv_nsec: at_most.subsec_nanos().into() };
    let socket = events.as_fd();
    // An interruption counts as an event: reading once more does no harm.
    !matches!(poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)), Ok(0))
}

/// Takes every event off the socket; returns whether any may change a fact. What they say beyond that does not matter:
/// everything is read afterwards. After an overrun it may be anything.
fn drain(events: &Socket) -> bool {
    let mut buffer = Vec::with_capacity(EVENT);
    let mut is_relevant = false;
    loop {
        buffer.clear();
        match events.recv(&mut buffer, 0) {
            // One that was cut off may be about anything.
            Ok(length) if length >= EVENT => is_relevant = true,
            Ok(_) => is_relevant |= message::messages(&buffer).any(|message| message::is_relevant(&message)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => is_relevant = true,
            Err(_) => return is_relevant,
        }
    }
}
