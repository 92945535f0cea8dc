//! Reads links and addresses, ours and those of our veths' peers.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustc_hash::FxHashMap;

use super::{HostLink, Links};

/// Readings that were interrupted by changes are begun again this often.
const ATTEMPTS: usize = 10;

/// A socket for requests.
pub(super) struct Dump {
    socket: Socket,
    sequence: u32,
}

/// An interface of some namespace, as far as it matters here.
#[derive(Default)]
struct Link {
    name: String,
    is_veth: bool,
    is_up: bool,
    peer_ifindex: Option<u32>,
    netns_id: Option<i32>,
    bridge: Option<u32>,
    mac: [u8; 6],
}

impl Dump {
    /// Opens a socket that checks requests strictly: a filter the kernel does not know is then an error, not ignored.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Reads everything.
    pub(super) fn links(&mut self) -> io::Result<Links> {
        let own = self.dump_links(None)?;
        let own_addresses = self
            .dump_addresses(None)?
            .into_iter()
            .map(|(_, address)| address)
            .filter(|address| !address.is_loopback())
            .collect();
        let mut peers: FxHashMap<i32, Peers> = FxHashMap::default();
        let mut host = std::collections::BTreeMap::new();
        for (ifindex, link) in own {
            let (true, Some(netns_id), Some(peer_ifindex)) = (link.is_veth, link.netns_id, link.peer_ifindex) else {
                continue;
            };
            let peers = match peers.entry(netns_id) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(place) => place.insert(self.peers(netns_id)?),
            };
            let mut addresses: Vec<_> = peers
                .addresses
                .iter()
                .filter(|(index, _)| *index == peer_ifindex)
                .map(|&(_, address)| address)
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            let peer_mac = peers.links.get(&peer_ifindex).map_or([0; 6], |peer| peer.mac);
            let Link { name, bridge, is_up, .. } = link;
            host.insert(
                ifindex,
                HostLink { ifindex, name, bridge, netns_id, peer_ifindex, peer_mac, addresses, is_up },
            );
        }
        Ok(Links { host, own_addresses })
    }

    /// What is behind a namespace number. A namespace that is gone has nothing.
    fn peers(&mut self, netns_id: i32) -> io::Result<Peers> {
        let read = |dump: &mut Self| -> io::Result<Peers> {
            let links = dump.dump_links(Some(netns_id))?.into_iter().collect();
            Ok(Peers { links, addresses: dump.dump_addresses(Some(netns_id))? })
        };
        match read(self) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => {
                Ok(Peers::default())
            }
            other => other,
        }
    }

    fn dump_links(&mut self, netns_id: Option<i32>) -> io::Result<Vec<(u32, Link)>> {
        let mut request = LinkMessage::default();
        request.attributes.extend(netns_id.map(LinkAttribute::IfNetnsId));
        self.dump(&RouteNetlinkMessage::GetLink(request), |answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some((message.header.index, Link::from(message))),
            _ => None,
        })
    }

    /// Addresses with the index of their interface; link-local IPv6 ones are every interface's and left out.
    fn dump_addresses(&mut self, netns_id: Option<i32>) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut request = AddressMessage::default();
        request.attributes.extend(netns_id.map(AddressAttribute::TargetNetNsId));
        self.dump(&RouteNetlinkMessage::GetAddress(request), |answer| {
            let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
            let index = message.header.index;
            Some((index, address_of(&message.attributes)?))
        })
    }

    fn dump<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            if let Some(answers) = self.dump_once(request, &mut read)? {
                return Ok(answers);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "interfaces changed during each of ten readings"))
    }

    /// One reading; none if the kernel says that something changed meanwhile.
    fn dump_once<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        read: &mut impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request.clone());
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        let mut is_whole = true;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                is_whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(is_whole.then_some(found)),
                    NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(-done.code)),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => found.extend(read(inner)),
                    _ => {}
                }
            }
        }
    }
}

#[derive(Default)]
struct Peers {
    links: FxHashMap<u32, Link>,
    addresses: Vec<(u32, IpAddr)>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self { is_up: message.header.flags.contains(LinkFlags::Up), ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Link(index) => link.peer_ifindex = Some(index),
                LinkAttribute::LinkNetNsId(id) => link.netns_id = Some(id),
                LinkAttribute::Controller(index) if index != 0 => link.bridge = Some(index),
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().unwrap_or([0; 6]),
                LinkAttribute::LinkInfo(infos) => link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
                _ => {}
            }
        }
        link
    }
}

/// The interface's own address: `IFA_LOCAL` where it is given (on a point-to-point link `IFA_ADDRESS` is the peer's), else
/// `IFA_ADDRESS`.
fn address_of(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    (!is_link_local).then_some(address)
}
