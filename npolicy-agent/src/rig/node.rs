//! A node: a namespace that routes or bridges between its pods.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use npolicy_common::Family;

use super::address::{family_of, host_length, host_of, unspecified};
use super::error::{Result, RigError};
use super::link::{Hop, Link, Netlink};
use super::namespace::Namespace;
use super::pod::{Pod, PodSettings};
use super::translation::{Translation, Translator};
use crate::model::PodKey;

/// How a node joins its pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// A host route to each pod; pods send everything to a link-local gateway, as with the ptp plugin or Calico.
    Routed,
    /// All host interfaces are ports of one bridge, which has the gateway's address.
    Bridged,
}

/// What a node is to be.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Its name.
    pub name: String,
    /// 1 to 254; picks the node's own addresses and its pod ranges.
    pub number: u8,
    /// How it joins its pods.
    pub layout: Layout,
}

/// A node. Dropping it ends the namespace as soon as no socket, thread or process is left in it.
#[derive(Debug)]
pub struct Node {
    settings: NodeSettings,
    addresses: Vec<IpAddr>,
    namespace: Namespace,
    families: Vec<Family>,
    bridge: Option<u32>,
    pods: BTreeMap<PodKey, Pod>,
    translator: Translator,
    /// Counts the pods ever made, for the names of their interfaces.
    made: u32,
}

/// Interface of a pod, inside it.
const POD_LINK: &str = "eth0";
/// Name of the bridge.
const BRIDGE: &str = "cni0";
/// The gateway of routed pods: a link-local address that the pod knows as a permanent neighbour.
const ROUTED_GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const ROUTED_GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// First host number given to pods; those below are the gateway's and spare.
const FIRST_HOST: u32 = 10;
/// Host numbers of an IPv4 /24 that pods may have; IPv6 keeps to the same.
const LAST_HOST: u32 = 254;

impl Node {
    /// Makes a node without pods, with one address of each family that the kernel has.
    pub fn new(settings: NodeSettings) -> Result<Self> {
        let addresses = families_of_kernel().into_iter().map(|family| own_address(settings.number, family)).collect();
        Self::with_addresses(settings, addresses)
    }

    /// Makes a node without pods that has these addresses, at most one a family. Its pods get addresses of the same
    /// families.
    pub fn with_addresses(settings: NodeSettings, addresses: Vec<IpAddr>) -> Result<Self> {
        let namespace = Namespace::new()?;
        let families: Vec<Family> = addresses.iter().map(|&address| family_of(address)).collect();
        let mut node = Self {
            settings,
            addresses,
            namespace,
            families,
            bridge: None,
            pods: BTreeMap::new(),
            translator: Translator::default(),
            made: 0,
        };
        node.namespace.set("ipv4/ip_forward", "1")?;
        if node.has(Family::V6) {
            node.namespace.set("ipv6/conf/all/forwarding", "1")?;
        }
        prepare_links(&node.namespace, node.has(Family::V6))?;
        let_everybody_ping(&node.namespace)?;
        refuse_at_once(&node.namespace, node.has(Family::V6))?;
        let owner = node.owner();
        let bridge = Netlink::within(&node.namespace, &owner, async |netlink| {
            let loopback = netlink.link("lo").await?;
            netlink.set_up(loopback.index, None).await?;
            for address in node.addresses() {
                netlink.add_address(loopback.index, address, host_length(address)).await?;
            }
            match node.settings.layout {
                Layout::Routed => Ok(None),
                Layout::Bridged => {
                    netlink.add_bridge(BRIDGE).await?;
                    let bridge = netlink.link(BRIDGE).await?;
                    for &family in &node.families {
                        let range = node.range(family);
                        netlink.add_address(bridge.index, host_of(range, 1), range.prefix_len()).await?;
                    }
                    Ok(Some(bridge.index))
                }
            }
        })?;
        node.bridge = bridge;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The families of its addresses: every one that the kernel has, if it was not given other addresses.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// The node's own addresses, one of each family.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    /// Its address of one family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses().find(|&address| family_of(address) == family)
    }

    /// Where pods without an address of their own get one.
    pub fn range(&self, family: Family) -> IpNet {
        let number = self.settings.number;
        match family {
            Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24).into(),
            Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0), 64).into(),
        }
    }

    /// Its pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// One of its pods.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.get(&PodKey { namespace: namespace.into(), name: name.into() })
    }

    /// Makes a pod and joins it to the node. Where it comes back, every address answers at once.
    pub fn add_pod(&mut self, settings: PodSettings) -> Result<&Pod> {
        let (ipv4, ipv6) = self.allot(&settings)?;
        let pod = self.make_pod(settings.key, (ipv4, ipv6), self.settings.layout)?;
        Ok(self.pods.entry(pod.key.clone()).insert_entry(pod).into_mut())
    }

    /// Makes something that is like a pod but none, a container of the node's own say: the node forwards its packets
    /// under an address of its own. It is always routed, and not among [`Node::pods`].
    pub fn add_guest(&mut self) -> Result<Pod> {
        let key = PodKey { namespace: "guests".into(), name: self.settings.name.as_str().into() };
        let (mut ipv4, mut ipv6) = (None, None);
        for &family in &self.families {
            match host_of(guest_range(self.settings.number, family), 1) {
                IpAddr::V4(address) => ipv4 = Some(address),
                IpAddr::V6(address) => ipv6 = Some(address),
            }
        }
        let guest = self.make_pod(key, (ipv4, ipv6), Layout::Routed)?;
        let own: Vec<(IpNet, IpAddr)> =
            self.addresses().map(|address| (guest_range(self.settings.number, family_of(address)), address)).collect();
        self.translator.hide(&self.namespace, &self.owner(), own)?;
        Ok(guest)
    }

    /// Translates these Service addresses, and no others, for packets that the node forwards or makes itself. A bridged
    /// pod does not reach itself through them. Takes the `nft` command.
    pub fn translate(&mut self, services: Vec<Translation>) -> Result<()> {
        let owner = self.owner();
        self.translator.translate(&self.namespace, &owner, services)
    }

    /// Masquerades what leaves by an interface for anywhere but these ranges.
    pub(super) fn masquerade(&mut self, link: &str, inside: Vec<IpNet>) -> Result<()> {
        let owner = self.owner();
        self.translator.masquerade(&self.namespace, &owner, link, inside)
    }

    fn make_pod(
        &mut self,
        key: PodKey,
        (ipv4, ipv6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
        layout: Layout,
    ) -> Result<Pod> {
        let namespace = Namespace::new()?;
        prepare_links(&namespace, self.has(Family::V6))?;
        let_everybody_ping(&namespace)?;

        self.made += 1;
        let host_link = format!("veth{}", self.made);
        let bridge = self.bridge.filter(|_| layout == Layout::Bridged);
        let owner = self.owner();
        let host = Netlink::within(&self.namespace, &owner, async |netlink| {
            netlink.add_veth(&host_link, POD_LINK, &namespace).await?;
            let host = netlink.link(&host_link).await?;
            netlink.set_up(host.index, bridge).await?;
            if bridge.is_none() && ipv6.is_some() {
                // Also what the node asks for its pods' link-layer addresses from; the kernel's own takes a moment.
                netlink.add_address(host.index, ROUTED_GATEWAY_V6, 64).await?;
            }
            Ok(host)
        })?;
        let pod = Pod { key, ipv4, ipv6, namespace, host_link, host_ifindex: host.index };
        self.configure_pod(&pod, &host, layout)?;
        if bridge.is_none() {
            Netlink::within(&self.namespace, &owner, async |netlink| {
                for address in pod.addresses() {
                    netlink.add_route(address, host_length(address), host.index, Hop::OnLink).await?;
                }
                Ok(())
            })?;
        }
        Ok(pod)
    }

    /// Takes a pod's interface away; its namespace ends with the last [`Pod`] and socket of it.
    pub fn remove_pod(&mut self, key: &PodKey) -> Result<()> {
        let Some(pod) = self.pods.remove(key) else { return Ok(()) };
        Netlink::within(&self.namespace, &self.owner(), async |netlink| netlink.delete(pod.host_ifindex).await)
    }

    /// Inside the pod: loopback, addresses, and the way out.
    fn configure_pod(&self, pod: &Pod, host: &Link, layout: Layout) -> Result<()> {
        Netlink::within(&pod.namespace, &format!("pod {}", pod.key), async |netlink| {
            netlink.set_up(netlink.link("lo").await?.index, None).await?;
            let link = netlink.link(POD_LINK).await?;
            netlink.set_up(link.index, None).await?;
            for address in pod.addresses() {
                let family = family_of(address);
                let gateway = match layout {
                    Layout::Routed => {
                        netlink.add_address(link.index, address, host_length(address)).await?;
                        let gateway = match family {
                            Family::V4 => ROUTED_GATEWAY_V4,
                            Family::V6 => ROUTED_GATEWAY_V6,
                        };
                        netlink.add_neighbour(link.index, gateway, &host.mac).await?;
                        if family == Family::V4 {
                            netlink.add_route(gateway, 32, link.index, Hop::OnLink).await?;
                        }
                        gateway
                    }
                    Layout::Bridged => {
                        let range = self.range(family);
                        netlink.add_address(link.index, address, range.prefix_len()).await?;
                        host_of(range, 1)
                    }
                };
                netlink.add_route(unspecified(family), 0, link.index, Hop::Via(gateway)).await?;
            }
            Ok(())
        })
    }

    /// Picks a pod's addresses.
    fn allot(&self, settings: &PodSettings) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
        let (mut ipv4, mut ipv6) = (None, None);
        if settings.addresses.is_empty() {
            let host = (FIRST_HOST..=LAST_HOST)
                .find(|&host| {
                    self.families.iter().all(|&family| self.owner_of(host_of(self.range(family), host)).is_none())
                })
                .ok_or_else(|| RigError::RangeFull {
                    node: self.settings.name.clone(),
                    pod: settings.key.to_string(),
                    capacity: LAST_HOST - FIRST_HOST + 1,
                })?;
            for &family in &self.families {
                match host_of(self.range(family), host) {
                    IpAddr::V4(address) => ipv4 = Some(address),
                    IpAddr::V6(address) => ipv6 = Some(address),
                }
            }
        }
        for &address in &settings.addresses {
            let pod = || settings.key.to_string();
            if let Some(owner) = self.owner_of(address) {
                return Err(RigError::AddressTaken { pod: pod(), address, owner });
            }
            let family = family_of(address);
            let range = self.range(family);
            if self.settings.layout == Layout::Bridged && !range.contains(&address) {
                return Err(RigError::AddressOutside { pod: pod(), address, range: range.to_string() });
            }
            let earlier = match address {
                IpAddr::V4(address) => ipv4.replace(address).map(IpAddr::V4),
                IpAddr::V6(address) => ipv6.replace(address).map(IpAddr::V6),
            };
            if earlier.is_some() {
                return Err(RigError::TwoAddresses { pod: pod(), family });
            }
        }
        Ok((ipv4, ipv6))
    }

    /// Who has an address: a pod, or the node itself.
    fn owner_of(&self, address: IpAddr) -> Option<String> {
        let gateway = self.bridge.is_some() && host_of(self.range(family_of(address)), 1) == address;
        if gateway || self.addresses().any(|own| own == address) {
            return Some(self.owner());
        }
        self.pods().find(|pod| pod.addresses().any(|own| own == address)).map(|pod| pod.key.to_string())
    }

    fn has(&self, family: Family) -> bool {
        self.families.contains(&family)
    }

    pub(super) fn owner(&self) -> String {
        format!("node {}", self.settings.name)
    }
}

/// The families that namespaces of this machine have.
fn families_of_kernel() -> Vec<Family> {
    let mut families = vec![Family::V4];
    // A kernel without IPv6 has no such directory.
    if Path::new("/proc/sys/net/ipv6").exists() {
        families.push(Family::V6);
    }
    families
}

/// The address of a node that was not given one.
pub(super) fn own_address(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 243, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x243, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Where a node's guest gets its addresses from: of the ranges for tests of network devices, which nobody else uses.
fn guest_range(number: u8, family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(198, 18, number, 0), 24).into(),
        Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, number.into(), 0, 0, 0, 0), 64).into(),
    }
}

/// Makes link-local addresses of later interfaces usable soon, and keeps routers out.
pub(super) fn prepare_links(namespace: &Namespace, ipv6: bool) -> Result<()> {
    if ipv6 {
        namespace.set("ipv6/conf/all/accept_dad", "0")?;
        namespace.set("ipv6/conf/default/accept_dad", "0")?;
        namespace.set("ipv6/conf/default/accept_ra", "0")?;
    }
    Ok(())
}

/// Takes the kernel's limit off ICMP errors: a refusal that is not sent would look like a denial.
pub(super) fn refuse_at_once(namespace: &Namespace, ipv6: bool) -> Result<()> {
    namespace.set("ipv4/icmp_ratemask", "0")?;
    if ipv6 {
        namespace.set("ipv6/icmp/ratelimit", "0")?;
    }
    Ok(())
}

/// Lets every group send echo requests by an ICMP socket.
pub(super) fn let_everybody_ping(namespace: &Namespace) -> Result<()> {
    namespace.set("ipv4/ping_group_range", "0 2147483647")
}
