//! Dumps of rtnetlink: what is asked, and what of the answers matters here.
//!
//! Messages are taken apart here, attribute by attribute: what is not asked for is never looked at, so an attribute that
//! a later kernel adds or a route of a rare kind cannot make a reading fail.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::message::{self, attributes, integer, number, text};

/// Readings that were interrupted by changes are begun again this often.
const ATTEMPTS: usize = 10;
/// And those of other namespaces this often. Whoever is there can go on changing them without end: then what was read last
/// counts, in which something of theirs may be missing or old, and nothing of anybody else's is held up.
const ATTEMPTS_ELSEWHERE: usize = 2;

/// Bytes of a datagram of answers: the kernel makes none of more than 32 KiB unless a single answer is longer.
const DATAGRAM: usize = 64 << 10;

/// A socket for requests.
pub(super) struct Dump {
    socket: Socket,
    sequence: u32,
    /// For one datagram of answers.
    answers: Vec<u8>,
}

/// An interface of some namespace, as far as it matters here.
#[derive(Default)]
pub(super) struct Link {
    pub(super) name: String,
    /// What it is, as the kernel calls it: `veth`, `bridge`; empty for a device that no software makes.
    pub(super) kind: String,
    pub(super) is_ethernet: bool,
    pub(super) is_up: bool,
    /// The interface it stands on, or whose other end it is.
    pub(super) lower: Option<u32>,
    /// Where that one is, if elsewhere.
    pub(super) lower_netns_id: Option<i32>,
    /// What it is a port of: a bridge, or something that routes.
    pub(super) master: Option<u32>,
    pub(super) mac: [u8; 6],
    /// Whether an XDP program is on it.
    pub(super) has_xdp: bool,
}

/// A way out of an interface.
pub(super) struct Route {
    pub(super) to: IpNet,
    pub(super) ifindex: u32,
}

/// An entry of a bridge's forwarding table that a frame left.
pub(super) struct Forwarded {
    pub(super) mac: [u8; 6],
    pub(super) bridge: u32,
    pub(super) port: u32,
}

impl Dump {
    /// Opens a socket that checks requests strictly: a filter the kernel does not know is then an error, not ignored.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0, answers: Vec::with_capacity(DATAGRAM) })
    }

    /// Interfaces by number, ours or those of the namespace with this number.
    pub(super) fn links(&mut self, netns_id: Option<i32>) -> io::Result<Vec<(u32, Link)>> {
        let mut request = vec![0; message::LINK_HEADER];
        match netns_id {
            None => message::put(&mut request, message::IFLA_EXT_MASK, &message::RTEXT_FILTER_SKIP_STATS.to_ne_bytes()),
            // With a mask the kernel would first size up every interface here (`rtnl_calcit`), for each pod anew.
            Some(netns_id) => message::put(&mut request, message::IFLA_TARGET_NETNSID, &netns_id.to_ne_bytes()),
        }
        self.dump_of(netns_id, message::RTM_GETLINK, &request, |body| {
            let (header, rest) = body.split_at_checked(message::LINK_HEADER)?;
            let mut link = Link {
                is_ethernet: header[2..4] == message::ARPHRD_ETHER.to_ne_bytes(),
                is_up: number(&header[8..12])? & message::IFF_UP != 0,
                ..Link::default()
            };
            for (kind, value) in attributes(rest) {
                match kind {
                    message::IFLA_IFNAME => link.name = text(value),
                    message::IFLA_LINK => link.lower = number(value),
                    message::IFLA_LINK_NETNSID => link.lower_netns_id = integer(value),
                    message::IFLA_MASTER => link.master = number(value).filter(|&master| master != 0),
                    // An interface whose address is not an Ethernet one has none that matters.
                    message::IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
                    message::IFLA_LINKINFO => {
                        let kind = attributes(value).find(|(kind, _)| *kind == message::IFLA_INFO_KIND);
                        link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
                    }
                    message::IFLA_XDP => {
                        let mut modes = attributes(value).filter(|(kind, _)| *kind == message::IFLA_XDP_ATTACHED);
                        link.has_xdp = modes.any(|(_, mode)| mode != [0]);
                    }
                    _ => {}
                }
            }
            Some((number(&header[4..8])?, link))
        })
    }

    /// Addresses with the number of their interface; link-local IPv6 ones are every interface's and left out.
    pub(super) fn addresses(&mut self, netns_id: Option<i32>) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut request = vec![0; message::ADDRESS_HEADER];
        if let Some(netns_id) = netns_id {
            message::put(&mut request, message::IFA_TARGET_NETNSID, &netns_id.to_ne_bytes());
        }
        self.dump_of(netns_id, message::RTM_GETADDR, &request, |body| {
            let (header, rest) = body.split_at_checked(message::ADDRESS_HEADER)?;
            // The interface's own address is `IFA_LOCAL` where it is given (on a point-to-point link `IFA_ADDRESS` is the
            // peer's), else `IFA_ADDRESS`.
            let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted);
            let (_, value) = find(message::IFA_LOCAL).or_else(|| find(message::IFA_ADDRESS))?;
            let address = message::address(value)?;
            (!is_link_local_v6(address)).then_some((number(&header[4..8])?, address))
        })
    }

    /// Ways out of interfaces, of the main tables; to link-local and multicast addresses left out.
    pub(super) fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut request = vec![0; message::ROUTE_HEADER];
            request[0] = family as u8;
            request[4] = message::RT_TABLE_MAIN;
            let found = self.dump(message::RTM_GETROUTE, &request, message::route);
            match found {
                Ok(found) => routes.extend(found.into_iter().flatten()),
                // A kernel without this family.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// What one bridge learned from frames.
    pub(super) fn forwarding(&mut self, bridge: u32) -> io::Result<Vec<Forwarded>> {
        let mut request = vec![0; message::NEIGHBOUR_HEADER];
        request[0] = libc::AF_BRIDGE as u8;
        message::put(&mut request, message::NDA_MASTER, &bridge.to_ne_bytes());
        self.dump(message::RTM_GETNEIGH, &request, |body| {
            let (header, rest) = body.split_at_checked(message::NEIGHBOUR_HEADER)?;
            let state = u16::from_ne_bytes([header[8], header[9]]);
            // Permanent entries are the ports' own addresses.
            if state & message::NUD_PERMANENT != 0 {
                return None;
            }
            let (_, mac) = attributes(rest).find(|(kind, _)| *kind == message::NDA_LLADDR)?;
            Some(Forwarded { mac: mac.try_into().ok()?, bridge, port: number(&header[4..8])? })
        })
    }

    /// Numbers that this namespace has for others.
    pub(super) fn namespaces(&mut self) -> io::Result<Vec<i32>> {
        self.dump(message::RTM_GETNSID, &[0; message::NSID_HEADER], |body| {
            let (_, rest) = body.split_at_checked(message::NSID_HEADER)?;
            let (_, value) = attributes(rest).find(|(kind, _)| *kind == message::NETNSA_NSID)?;
            integer(value).filter(|&id| id >= 0)
        })
    }

    /// Interfaces that have an `ingress` or a `clsact` queueing discipline, with its name.
    pub(super) fn classifiers(&mut self) -> io::Result<Vec<(u32, String)>> {
        self.dump(message::RTM_GETQDISC, &[0; message::TC_HEADER], |body| {
            let (header, rest) = body.split_at_checked(message::TC_HEADER)?;
            let (_, kind) = attributes(rest).find(|(kind, _)| *kind == message::TCA_KIND)?;
            let kind = text(kind);
            matches!(&*kind, "ingress" | "clsact").then_some((number(&header[4..8])?, kind))
        })
    }

    /// What filters are on a side of such a discipline: their kinds, and the names of their programs. Each once, ascending.
    pub(super) fn filters(&mut self, ifindex: u32, parent: u32) -> io::Result<Vec<String>> {
        let mut request = vec![0; message::TC_HEADER];
        request[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        request[12..16].copy_from_slice(&parent.to_ne_bytes());
        let mut filters = self.dump(message::RTM_GETTFILTER, &request, |body| {
            let rest = body.get(message::TC_HEADER..)?;
            let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
            let kind = text(find(message::TCA_KIND)?);
            // The head of a chain comes without options.
            let options = find(message::TCA_OPTIONS)?;
            let name = attributes(options).find(|(option, _)| kind == "bpf" && *option == message::TCA_BPF_NAME);
            Some(name.map_or(kind.clone(), |(_, name)| format!("{kind} {}", text(name))))
        })?;
        filters.sort_unstable();
        filters.dedup();
        Ok(filters)
    }

    fn dump<T>(&mut self, kind: u16, request: &[u8], read: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        self.dump_of(None, kind, request, read)
    }

    fn dump_of<T>(
        &mut self,
        netns_id: Option<i32>,
        kind: u16,
        request: &[u8],
        mut read: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut attempts = if netns_id.is_some() { ATTEMPTS_ELSEWHERE } else { ATTEMPTS };
        loop {
            let (answers, is_whole) = self.dump_once(kind, request, &mut read)?;
            attempts -= 1;
            if is_whole || (attempts == 0 && netns_id.is_some()) {
                return Ok(answers);
            }
            if attempts == 0 {
                let message = "interfaces changed during each of ten readings";
                return Err(io::Error::new(io::ErrorKind::Interrupted, message));
            }
        }
    }

    /// One reading, and whether nothing changed meanwhile.
    fn dump_once<T>(
        &mut self,
        kind: u16,
        request: &[u8],
        read: &mut impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<(Vec<T>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&message::dump_request(kind, self.sequence, request), 0)?;
        let mut found = Vec::new();
        let mut is_whole = true;
        loop {
            self.answers.clear();
            if self.socket.recv(&mut self.answers, 0)? >= DATAGRAM {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of more than 64 KiB"));
            }
            for message in message::messages(&self.answers) {
                if message.sequence != self.sequence {
                    continue;
                }
                is_whole &= message.flags & message::NLM_F_DUMP_INTR == 0;
                match message.kind {
                    // Both begin with an error number, negated; none for a dump that went well.
                    message::NLMSG_DONE | message::NLMSG_ERROR => {
                        return match integer(message.body.get(..4).unwrap_or_default()) {
                            None | Some(0) => Ok((found, is_whole)),
                            Some(code) => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => found.extend(read(message.body)),
                }
            }
        }
    }
}

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
