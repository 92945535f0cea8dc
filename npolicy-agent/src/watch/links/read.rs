//! One reading of everything: the dumps, joined to facts by interface.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::dump::{Dump, Link};
use super::message;
use super::{Bridge, Forwarding, HostLink, Links, Unenforceable};

/// Reads what is there. An interface that `known` does not have was first seen at `moment`.
pub(super) fn read(dump: &mut Dump, known: &Links, moment: Instant) -> io::Result<Links> {
    let own: BTreeMap<u32, Link> = dump.links(None)?.into_iter().collect();
    let own_addresses = by_interface(dump.addresses(None)?);
    let mut routes: FxHashMap<u32, Vec<IpNet>> = FxHashMap::default();
    for route in dump.routes()? {
        routes.entry(route.ifindex).or_default().push(route.to);
    }
    let mut routes_of = |ifindex: u32| {
        let mut routes = routes.remove(&ifindex).unwrap_or_default();
        routes.sort_unstable();
        routes.dedup();
        routes
    };
    let addresses_of = |ifindex: u32| own_addresses.get(&ifindex).cloned().unwrap_or_default();

    let mut peers: FxHashMap<i32, Peers> = FxHashMap::default();
    for netns_id in dump.namespaces()? {
        peers.insert(netns_id, Peers::read(dump, netns_id)?);
    }
    let mut host = BTreeMap::new();
    let mut bridges = BTreeMap::new();
    for (&ifindex, link) in own.iter().filter(|(_, link)| link.kind == "veth") {
        let (Some(netns_id), Some(peer_ifindex)) = (link.lower_netns_id, link.lower) else { continue };
        let peers = match peers.entry(netns_id) {
            Entry::Occupied(known) => known.into_mut(),
            // It got its number after the numbers were read.
            Entry::Vacant(place) => place.insert(Peers::read(dump, netns_id)?),
        };
        let bridge = link.master.filter(|master| own.get(master).is_some_and(|master| master.kind != "vrf"));
        let is_same = |old: &&HostLink| (old.netns_id, old.peer_ifindex) == (netns_id, peer_ifindex);
        let first_seen = known.host.get(&ifindex).filter(is_same).map_or(moment, |old| old.first_seen);
        if let Some(bridge) = bridge {
            bridges.entry(bridge).or_insert_with(|| Bridge {
                name: own[&bridge].name.clone(),
                addresses: addresses_of(bridge),
                routes: routes_of(bridge),
            });
        }
        host.insert(
            ifindex,
            HostLink {
                ifindex,
                name: link.name.clone(),
                bridge,
                netns_id,
                peer_ifindex,
                peer_mac: peers.links.get(&peer_ifindex).map_or([0; 6], |peer| peer.mac),
                addresses: peers.addresses.get(&peer_ifindex).cloned().unwrap_or_default(),
                is_up: link.is_up,
                first_seen,
                host_addresses: addresses_of(ifindex),
                routes: routes_of(ifindex),
                forwarding: Forwarding::Unknown,
                engines: if link.has_xdp { vec!["an XDP program".into()] } else { Vec::new() },
            },
        );
    }
    learn_forwarding(dump, &mut host, bridges.keys())?;
    find_engines(dump, &mut host)?;
    let all = own_addresses.values().flatten().copied();
    Ok(Links {
        host,
        bridges,
        unenforceable: unenforceable(&peers),
        own_addresses: all.filter(|address| !address.is_loopback()).collect(),
    })
}

/// Addresses by interface, each list ascending.
fn by_interface(addresses: Vec<(u32, IpAddr)>) -> FxHashMap<u32, Vec<IpAddr>> {
    let mut found: FxHashMap<u32, Vec<IpAddr>> = FxHashMap::default();
    for (ifindex, address) in addresses {
        found.entry(ifindex).or_default().push(address);
    }
    for addresses in found.values_mut() {
        addresses.sort_unstable();
        addresses.dedup();
    }
    found
}

/// Tells at which port of its bridge each peer's link-layer address was seen.
fn learn_forwarding<'a>(
    dump: &mut Dump,
    host: &mut BTreeMap<u32, HostLink>,
    bridges: impl Iterator<Item = &'a u32>,
) -> io::Result<()> {
    let mut ports: FxHashMap<(u32, [u8; 6]), u32> = FxHashMap::default();
    for &bridge in bridges {
        let entries = match dump.forwarding(bridge) {
            // The bridge went meanwhile.
            Err(error) if is_gone(&error) => continue,
            entries => entries?,
        };
        ports.extend(entries.into_iter().map(|entry| ((entry.bridge, entry.mac), entry.port)));
    }
    for link in host.values_mut() {
        let Some(bridge) = link.bridge else { continue };
        link.forwarding = match ports.get(&(bridge, link.peer_mac)) {
            None => Forwarding::Unknown,
            Some(&port) if port == link.ifindex => Forwarding::Here,
            Some(&port) => Forwarding::Elsewhere(port),
        };
    }
    Ok(())
}

/// Names who else has filters on these interfaces.
fn find_engines(dump: &mut Dump, host: &mut BTreeMap<u32, HostLink>) -> io::Result<()> {
    for (ifindex, discipline) in dump.classifiers()? {
        let Some(link) = host.get_mut(&ifindex) else { continue };
        let sides: &[_] = match &*discipline {
            "clsact" => &[("in", message::INGRESS), ("out", message::EGRESS)],
            _ => &[("in", message::INGRESS)],
        };
        for &(side, parent) in sides {
            let filters = match dump.filters(ifindex, parent) {
                // The interface or its discipline went meanwhile.
                Err(error) if is_gone(&error) => continue,
                filters => filters?,
            };
            link.engines.extend(filters.iter().map(|filter| format!("a filter of `{discipline}` ({filter}, {side})")));
        }
    }
    Ok(())
}

/// Interfaces in other namespaces that have no end here: they stand on an interface of another namespace, or are devices of
/// the machine.
fn unenforceable(peers: &FxHashMap<i32, Peers>) -> Vec<Unenforceable> {
    let mut found = Vec::new();
    for (&netns_id, peers) in peers {
        for (ifindex, link) in &peers.links {
            let kind = match &*link.kind {
                kind @ ("macvlan" | "macvtap" | "ipvlan" | "ipvtap") if link.lower_netns_id.is_some() => kind,
                "" if link.is_ethernet => "device",
                _ => continue,
            };
            let addresses = peers.addresses.get(ifindex).cloned().unwrap_or_default();
            found.push(Unenforceable { netns_id, name: link.name.clone(), kind: kind.into(), addresses });
        }
    }
    found.sort_unstable_by(|a, b| (a.netns_id, &a.name).cmp(&(b.netns_id, &b.name)));
    found
}

/// What is in another namespace.
#[derive(Default)]
struct Peers {
    links: FxHashMap<u32, Link>,
    addresses: FxHashMap<u32, Vec<IpAddr>>,
}

impl Peers {
    /// Reads what is behind a namespace number. A namespace that is gone has nothing.
    fn read(dump: &mut Dump, netns_id: i32) -> io::Result<Self> {
        let mut read = || -> io::Result<Self> {
            let links = dump.links(Some(netns_id))?.into_iter().collect();
            Ok(Self { links, addresses: by_interface(dump.addresses(Some(netns_id))?) })
        };
        match read() {
            Err(error) if is_gone(&error) => Ok(Self::default()),
            read => read,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV))
}
