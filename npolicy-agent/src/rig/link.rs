//! Interfaces, addresses and routes by netlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use netlink_packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::error::{Attempt, Result};
use super::namespace::Namespace;

/// Link-layer address of every bridge: each is on a link of its own. Locally administered.
const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// An interface: its number and its link-layer address.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) mac: Vec<u8>,
}

/// Where a route leads.
pub(super) enum Hop {
    /// To the link itself.
    OnLink,
    /// To a router on the link.
    Via(IpAddr),
}

/// Netlink, spoken from inside one namespace.
pub(super) struct Netlink {
    handle: Handle,
    /// For messages: whose namespace.
    owner: String,
}

impl Netlink {
    /// Runs `work` inside `namespace`, with a connection made there.
    pub(super) fn within<T: Send>(
        namespace: &Namespace,
        owner: &str,
        work: impl AsyncFnOnce(&Self) -> Result<T> + Send,
    ) -> Result<T> {
        namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .attempt(|| "start an event loop".into())?;
            runtime.block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().attempt(|| format!("open a netlink socket in {owner}"))?;
                tokio::spawn(connection);
                work(&Self { handle, owner: owner.into() }).await
            })
        })?
    }

    /// Makes a veth: `name` here, `peer` in another namespace, both down.
    pub(super) async fn add_veth(&self, name: &str, peer: &str, peer_namespace: &Namespace) -> Result<()> {
        let peer_end =
            LinkMessageBuilder::<LinkUnspec>::new().name(peer).setns_by_fd(peer_namespace.as_fd().as_raw_fd()).build();
        let veth = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_end)))
            .build();
        let added = self.handle.link().add(veth).execute().await;
        added.attempt(|| format!("make veth {name} in {}", self.owner))
    }

    /// Makes a bridge, up. Its address is its own: left to the kernel it would be the lowest of the ports', and change
    /// under the neighbours' feet whenever a port comes or goes.
    pub(super) async fn add_bridge(&self, name: &str) -> Result<()> {
        let bridge = LinkBridge::new(name).address(BRIDGE_MAC.to_vec()).build();
        let added = self.handle.link().add(bridge).execute().await;
        added.attempt(|| format!("make bridge {name} in {}", self.owner))
    }

    /// Looks an interface up by name.
    pub(super) async fn link(&self, name: &str) -> Result<Link> {
        let what = || format!("look up {name} in {}", self.owner);
        let mut found = self.handle.link().get().match_name(name).execute();
        let message = found.try_next().await.attempt(what)?;
        let message = message.ok_or(std::io::Error::from(std::io::ErrorKind::NotFound)).attempt(what)?;
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(mac) => Some(mac.clone()),
            _ => None,
        });
        Ok(Link { index: message.header.index, mac: mac.unwrap_or_default() })
    }

    /// Sets an interface up, as a port of a bridge if one is given.
    pub(super) async fn set_up(&self, index: u32, bridge: Option<u32>) -> Result<()> {
        let mut change = LinkUnspec::new_with_index(index).up();
        if let Some(bridge) = bridge {
            change = change.controller(bridge);
        }
        let set = self.handle.link().set(change.build()).execute().await;
        set.attempt(|| format!("set interface {index} up in {}", self.owner))
    }

    /// Deletes an interface, and its peer with it.
    pub(super) async fn delete(&self, index: u32) -> Result<()> {
        let deleted = self.handle.link().del(index).execute().await;
        deleted.attempt(|| format!("delete interface {index} in {}", self.owner))
    }

    /// Gives an interface an address, usable at once: nobody else can be on these links, so IPv6 need not ask.
    pub(super) async fn add_address(&self, index: u32, address: IpAddr, prefix_length: u8) -> Result<()> {
        let mut request = self.handle.address().add(index, address, prefix_length);
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        let added = request.execute().await;
        added.attempt(|| format!("add address {address}/{prefix_length} in {}", self.owner))
    }

    /// Adds a permanent neighbour, so that nobody needs to ask for it.
    pub(super) async fn add_neighbour(&self, index: u32, address: IpAddr, mac: &[u8]) -> Result<()> {
        let added = self.handle.neighbours().add(index, address).link_layer_address(mac).execute().await;
        added.attempt(|| format!("add neighbour {address} in {}", self.owner))
    }

    /// Adds a route.
    pub(super) async fn add_route(&self, to: IpAddr, prefix_length: u8, index: u32, hop: Hop) -> Result<()> {
        let added = self.handle.route().add(route(to, prefix_length, Some((index, hop)))).execute().await;
        added.attempt(|| format!("add route {to}/{prefix_length} in {}", self.owner))
    }

    /// Takes the route to this destination away.
    pub(super) async fn remove_route(&self, to: IpAddr, prefix_length: u8) -> Result<()> {
        let removed = self.handle.route().del(route(to, prefix_length, None)).execute().await;
        removed.attempt(|| format!("remove route {to}/{prefix_length} in {}", self.owner))
    }
}

/// A route in full, or as far as the kernel needs it to find one.
fn route(to: IpAddr, prefix_length: u8, way: Option<(u32, Hop)>) -> RouteMessage {
    match to {
        IpAddr::V4(to) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, prefix_length);
            let Some((index, hop)) = way else { return route.scope(RouteScope::NoWhere).build() };
            let route = route.output_interface(index);
            match hop {
                Hop::Via(IpAddr::V4(gateway)) => route.gateway(gateway),
                Hop::Via(IpAddr::V6(gateway)) => route.via(gateway),
                Hop::OnLink => route.scope(RouteScope::Link),
            }
            .build()
        }
        IpAddr::V6(to) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, prefix_length);
            let Some((index, hop)) = way else { return route.build() };
            let route = route.output_interface(index);
            match hop {
                Hop::Via(IpAddr::V6(gateway)) => route.gateway(gateway),
                Hop::Via(IpAddr::V4(_)) | Hop::OnLink => route,
            }
            .build()
        }
    }
}
