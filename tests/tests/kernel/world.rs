//! A node with pods, a datapath in it, and plans to publish.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use npolicy_agent::compile::{Accepts, Bundle, ClassIndex, ClassKey, Fact, PeerId, Plan, PortSet, Ruleset, Subject};
use npolicy_agent::datapath::{Datapath, DatapathConfig};
use npolicy_agent::model::PodKey;
use npolicy_agent::rig::{BpfFs, Layout, Node, NodeSettings, PodSettings};
use npolicy_agent::watch::links::{HostLink, LinkWatch};
use npolicy_common::Direction;

/// Pods of every world: two servers and two clients.
pub(crate) const PODS: [&str; 4] = ["server", "other", "friend", "stranger"];

pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) bpffs: BpfFs,
    pub(crate) links: BTreeMap<PodKey, HostLink>,
}

pub(crate) fn pod(name: &str) -> PodKey {
    PodKey { namespace: "test".into(), name: name.into() }
}

impl World {
    pub(crate) fn new() -> Self {
        let settings = NodeSettings { name: "n1".into(), number: 1, layout: Layout::Routed };
        let mut node = Node::new(settings).expect("a node");
        for name in PODS {
            node.add_pod(PodSettings::new("test", name)).expect("a pod");
        }
        let watch = node.namespace().run(LinkWatch::start).expect("a thread").expect("a watch");
        let is_complete = |link: &&HostLink| !link.addresses.is_empty();
        let deadline = Instant::now() + Duration::from_secs(5);
        let links = loop {
            let links: BTreeMap<PodKey, HostLink> = (node.pods())
                .filter_map(|pod| {
                    let link = watch.current().host.get(&pod.host_ifindex).filter(is_complete).cloned()?;
                    Some((pod.key.clone(), link))
                })
                .collect();
            if links.len() == PODS.len() {
                break links;
            }
            assert!(Instant::now() < deadline, "the pods' interfaces did not show up");
            thread::sleep(Duration::from_millis(5));
        };
        Self { node, bpffs: BpfFs::new().expect("a BPF file system"), links }
    }

    pub(crate) fn config(&self) -> DatapathConfig {
        DatapathConfig { flow_buckets: 1024, ..DatapathConfig::new(self.bpffs.pin_dir()) }
    }

    /// Runs `work` in the node's namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.node.namespace().run(work).expect("a thread in the node's namespace")
    }

    /// Opens the datapath and enrolls every pod. To be called in the node's namespace.
    pub(crate) fn open(&self) -> Datapath {
        let mut datapath = Datapath::open(&self.config()).unwrap_or_else(|error| panic!("{error}: {error:?}"));
        for link in self.links.values() {
            datapath.enroll(link).expect("enrolled");
        }
        datapath
    }

    pub(crate) fn ifindex(&self, name: &str) -> u32 {
        self.links[&pod(name)].ifindex
    }

    pub(crate) fn address(&self, name: &str, is_v4: bool) -> IpAddr {
        let addresses = &self.links[&pod(name)].addresses;
        *addresses.iter().find(|address| address.is_ipv4() == is_v4).expect("an address of each family")
    }

    pub(crate) fn owners(&self) -> Vec<(u32, PodKey)> {
        self.links.iter().map(|(pod, link)| (link.ifindex, pod.clone())).collect()
    }

    /// `server` accepts this from `friend`, and nothing else; nobody else is governed.
    pub(crate) fn plan(&self, from_friend: Bundle) -> Plan {
        let friend = PeerId(0);
        let classes = vec![ClassKey::default(), ClassKey::of([Fact::Peer(friend)])];
        let exact = self.links[&pod("friend")].addresses.iter().map(|&address| (address, ClassIndex(1))).collect();
        let rule = Accepts { peers: Some(vec![friend]), bundle: from_friend, names: Vec::new() };
        let subjects = (self.links.iter())
            .map(|(pod, link)| {
                let ingress = match &*pod.name {
                    "server" => Ruleset::isolated(Direction::Ingress, vec![rule.clone()]),
                    _ => Ruleset::ungoverned(Direction::Ingress),
                };
                let egress = Arc::new(Ruleset::ungoverned(Direction::Egress));
                let subject = Subject { addresses: link.addresses.clone(), ingress: Arc::new(ingress), egress };
                (pod.clone(), subject)
            })
            .collect();
        let node_addresses = self.node.addresses().collect();
        Plan { classes, exact, prefixes: Vec::new(), node_addresses, subjects }
    }
}

/// TCP, UDP and SCTP to one port.
pub(crate) fn port(port: u16) -> Bundle {
    Bundle { ports: std::array::from_fn(|_| PortSet::range(port, port)), other: false }
}
