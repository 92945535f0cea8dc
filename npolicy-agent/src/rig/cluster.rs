//! Several nodes on one link, and the world outside.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use npolicy_common::Family;

use super::address::{family_of, host_length, host_of, unspecified};
use super::error::Result;
use super::link::{Hop, Netlink};
use super::namespace::Namespace;
use super::node::{Node, let_everybody_ping, prepare_links, refuse_at_once};
use super::pod::{Pod, PodSettings};
use super::translation::Translation;
use crate::model::PodKey;

/// Nodes joined by a link, with routes to each other's pods, and behind a router everything that is not the cluster's.
///
/// ```text
/// Node -- eth0 ===+
///                 |  lan0, a bridge with the router's address -- Outside (the same namespace): hosts on loopback
/// Node -- eth0 ===+
/// ```
///
/// Packets between pods, nodes and the outside keep their source; only what pods send to the outside leaves under their
/// node's address. The outside may open connections to pods, by their own addresses.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    outside: Namespace,
    /// The bridge that the nodes have a port of.
    lan: u32,
    /// Hosts of the outside so far.
    hosts: Vec<IpAddr>,
    /// Pods with an address outside their node's range: everybody else has a route of its own to it.
    strays: BTreeMap<PodKey, Vec<IpAddr>>,
}

/// Interface of a node to the others.
const UPLINK: &str = "eth0";
/// Name of the bridge between the nodes.
const LAN: &str = "lan0";
/// Host number of the router on the link.
const ROUTER_HOST: u32 = 254;

impl Cluster {
    /// Joins nodes. Their addresses of one family must share their /24 or /64, and not end with the router's number, 254.
    /// Takes the `nft` command.
    pub fn new(nodes: Vec<Node>) -> Result<Self> {
        let outside = Namespace::new()?;
        let families = nodes.first().map(|node| node.families().to_vec()).unwrap_or_default();
        outside.set("ipv4/ip_forward", "1")?;
        if families.contains(&Family::V6) {
            outside.set("ipv6/conf/all/forwarding", "1")?;
        }
        prepare_links(&outside, families.contains(&Family::V6))?;
        let_everybody_ping(&outside)?;
        refuse_at_once(&outside, families.contains(&Family::V6))?;
        let routers: Vec<IpNet> = nodes.first().into_iter().flat_map(Node::addresses).map(link_range).collect();
        let lan = Netlink::within(&outside, OUTSIDE, async |netlink| {
            netlink.set_up(netlink.link("lo").await?.index, None).await?;
            netlink.add_bridge(LAN).await?;
            let lan = netlink.link(LAN).await?;
            for &range in &routers {
                netlink.add_address(lan.index, host_of(range, ROUTER_HOST), range.prefix_len()).await?;
            }
            Ok(lan.index)
        })?;
        let mut cluster = Self { nodes, outside, lan, hosts: Vec::new(), strays: BTreeMap::new() };
        cluster.join()?;
        Ok(cluster)
    }

    /// Its nodes, in the order they were given.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One of its nodes.
    ///
    /// # Panics
    ///
    /// Without such a node.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name() == name).expect("the cluster must have the node")
    }

    /// The families of its nodes' addresses.
    pub fn families(&self) -> &[Family] {
        self.nodes.first().map(Node::families).unwrap_or_default()
    }

    /// Every pod, by node.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(Node::pods)
    }

    /// One of its pods, on whichever node.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.nodes.iter().find_map(|node| node.pod(namespace, name))
    }

    /// The namespace of the outside.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// Makes a pod on a node, reachable from everywhere.
    ///
    /// # Panics
    ///
    /// Without such a node.
    pub fn add_pod(&mut self, node: &str, settings: PodSettings) -> Result<&Pod> {
        let place = self.place(node);
        let pod = self.nodes[place].add_pod(settings)?.clone();
        let ranges: Vec<IpNet> = self.families().iter().map(|&family| self.nodes[place].range(family)).collect();
        let strays: Vec<IpAddr> =
            pod.addresses().filter(|address| !ranges.iter().any(|range| range.contains(address))).collect();
        if !strays.is_empty() {
            self.route_to(place, &strays)?;
            self.strays.insert(pod.key.clone(), strays);
            self.masquerade()?;
        }
        Ok(self.nodes[place].pod(&pod.key.namespace, &pod.key.name).expect("it was added"))
    }

    /// Takes a pod's interface away; its namespace ends with the last [`Pod`] and socket of it.
    pub fn remove_pod(&mut self, key: &PodKey) -> Result<()> {
        let strays = self.strays.remove(key).unwrap_or_default();
        for node in &mut self.nodes {
            let owns = node.pods().any(|pod| pod.key == *key);
            if owns {
                node.remove_pod(key)?;
            } else if !strays.is_empty() {
                remove_routes(node.namespace(), &node.owner(), &strays)?;
            }
        }
        if !strays.is_empty() {
            remove_routes(&self.outside, OUTSIDE, &strays)?;
            self.masquerade()?;
        }
        Ok(())
    }

    /// Makes something on a node that is like a pod but none: the node forwards its packets under its own address.
    ///
    /// # Panics
    ///
    /// Without such a node.
    pub fn add_guest(&mut self, node: &str) -> Result<Pod> {
        let place = self.place(node);
        self.nodes[place].add_guest()
    }

    /// Sets the largest packet, in bytes, that a node sends to the other nodes and the outside. Pods are not told: they
    /// send what their own interface takes, and hear of it by ICMP. What comes in may not be
    /// larger either: narrow all nodes alike.
    ///
    /// # Panics
    ///
    /// Without such a node.
    pub fn narrow(&self, node: &str, mtu: u32) -> Result<()> {
        let node = self.node(node);
        Netlink::within(node.namespace(), &node.owner(), async |netlink| {
            netlink.set_mtu(netlink.link(UPLINK).await?.index, mtu).await
        })
    }

    /// Gives the outside a host with this address, if it has none yet.
    pub fn add_outside_host(&mut self, address: IpAddr) -> Result<()> {
        if self.hosts.contains(&address) {
            return Ok(());
        }
        Netlink::within(&self.outside, OUTSIDE, async |netlink| {
            let loopback = netlink.link("lo").await?;
            netlink.add_address(loopback.index, address, host_length(address)).await
        })?;
        self.hosts.push(address);
        Ok(())
    }

    /// Translates these Service addresses, and no others, on every node.
    pub fn translate(&mut self, services: &[Translation]) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.translate(services.to_vec()))
    }

    /// Translates these Service addresses, and no others, on one node.
    ///
    /// # Panics
    ///
    /// Without such a node.
    pub fn translate_on(&mut self, node: &str, services: Vec<Translation>) -> Result<()> {
        let place = self.place(node);
        self.nodes[place].translate(services)
    }

    /// Joins the nodes to the link and to each other.
    fn join(&mut self) -> Result<()> {
        let peers: Vec<Peer> = self.nodes.iter().map(Peer::of).collect();
        for (number, node) in self.nodes.iter().enumerate() {
            let (owner, port) = (node.owner(), format!("port{number}"));
            Netlink::within(&self.outside, OUTSIDE, async |netlink| {
                netlink.add_veth(&port, UPLINK, node.namespace()).await?;
                netlink.set_up(netlink.link(&port).await?.index, Some(self.lan)).await
            })?;
            Netlink::within(node.namespace(), &owner, async |netlink| {
                let uplink = netlink.link(UPLINK).await?.index;
                netlink.set_up(uplink, None).await?;
                for address in node.addresses() {
                    let range = link_range(address);
                    netlink.add_address(uplink, address, range.prefix_len()).await?;
                    let router = Hop::Via(host_of(range, ROUTER_HOST));
                    netlink.add_route(unspecified(family_of(address)), 0, uplink, router).await?;
                }
                for peer in peers.iter().filter(|peer| peer.name != node.name()) {
                    for &(range, gateway) in &peer.ranges {
                        netlink.add_route(range.addr(), range.prefix_len(), uplink, Hop::Via(gateway)).await?;
                    }
                }
                Ok(())
            })?;
        }
        Netlink::within(&self.outside, OUTSIDE, async |netlink| {
            for &(range, gateway) in peers.iter().flat_map(|peer| &peer.ranges) {
                netlink.add_route(range.addr(), range.prefix_len(), self.lan, Hop::Via(gateway)).await?;
            }
            Ok(())
        })?;
        self.masquerade()
    }

    /// Lets everybody but a node know that these addresses are on it.
    fn route_to(&self, place: usize, addresses: &[IpAddr]) -> Result<()> {
        let owner = &self.nodes[place];
        let add = async |netlink: &Netlink, link: u32| {
            for &address in addresses {
                let gateway = owner.address(family_of(address)).expect("a node must have its pods' families");
                netlink.add_route(address, host_length(address), link, Hop::Via(gateway)).await?;
            }
            Ok(())
        };
        for node in self.nodes.iter().filter(|node| node.name() != owner.name()) {
            Netlink::within(node.namespace(), &node.owner(), async |netlink| {
                add(netlink, netlink.link(UPLINK).await?.index).await
            })?;
        }
        Netlink::within(&self.outside, OUTSIDE, async |netlink| add(netlink, self.lan).await)
    }

    /// What every node masquerades: anything that leaves the cluster.
    fn masquerade(&mut self) -> Result<()> {
        let mut inside: Vec<IpNet> = self.nodes.iter().flat_map(|node| Peer::of(node).ranges).map(|it| it.0).collect();
        inside.extend(self.nodes.iter().flat_map(Node::addresses).map(link_range));
        inside.extend(self.strays.values().flatten().map(|&address| IpNet::from(address)));
        inside.sort_unstable();
        inside.dedup();
        self.nodes.iter_mut().try_for_each(|node| node.masquerade(UPLINK, inside.clone()))
    }

    fn place(&self, node: &str) -> usize {
        self.nodes.iter().position(|other| other.name() == node).expect("the cluster must have the node")
    }
}

/// For messages: whose namespace.
const OUTSIDE: &str = "the outside";

/// A node as the others know it.
struct Peer {
    name: String,
    /// Its pods' ranges, and its own address to send them to.
    ranges: Vec<(IpNet, IpAddr)>,
}

impl Peer {
    fn of(node: &Node) -> Self {
        let ranges = node.addresses().map(|address| (node.range(family_of(address)), address)).collect();
        Self { name: node.name().into(), ranges }
    }
}

/// The range of the link that a node's address is on.
fn link_range(address: IpAddr) -> IpNet {
    let length = match family_of(address) {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    IpNet::new(address, length).expect("the length fits the family").trunc()
}

fn remove_routes(at: &Namespace, owner: &str, addresses: &[IpAddr]) -> Result<()> {
    Netlink::within(at, owner, async |netlink| {
        for &address in addresses {
            netlink.remove_route(address, host_length(address)).await?;
        }
        Ok(())
    })
}
