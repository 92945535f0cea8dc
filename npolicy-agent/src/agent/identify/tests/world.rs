//! A node of plain values: what netlink and the API server would say, at moments that the test picks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;

use super::super::{Decision, Facts, Identified, Identifier};
use crate::model::{Age, ClusterState, Event, Labels, Node, Object, ObjectKey, Phase, Pod, PodKey, PodNetwork};
use crate::watch::links::{Bridge, Forwarding, HostLink, Links};

/// When the node started, in seconds.
const BOOT: i64 = 1000;
/// Number of the bridge.
pub(super) const BRIDGE: u32 = 2;

pub(super) struct World {
    pub(super) links: Links,
    pub(super) identifier: Identifier,
    pub(super) lines: BTreeMap<u32, Vec<IpAddr>>,
    pub(super) exclude: Vec<String>,
    pub(super) pod_cidrs: Vec<IpNet>,
    /// Whether all pods are known up to now.
    pub(super) is_live: bool,
    /// If not, up to when.
    pub(super) known_at: Option<Instant>,
    pub(super) is_first_pass: bool,
    state: ClusterState,
    now: Instant,
}

pub(super) fn addresses(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|address| address.parse().expect("an address")).collect()
}

pub(super) fn blocks(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|block| block.parse().expect("a block")).collect()
}

pub(super) fn key(name: &str) -> PodKey {
    PodKey { namespace: "shop".into(), name: name.into() }
}

/// A pod of this node that runs, with a sandbox of this boot.
pub(super) fn pod(name: &str, at: &str) -> Pod {
    Pod {
        key: key(name),
        labels: Labels::default(),
        node: Some("n1".into()),
        network: PodNetwork::Own,
        ports: Vec::new(),
        addresses: addresses(at),
        phase: Phase::Running,
        age: Age { uid: format!("uid of {name}").into(), ..Age::default() },
        sandbox: Some(Timestamp::constant(BOOT + 10, 0)),
    }
}

/// The same, with a sandbox of an earlier boot.
pub(super) fn stale(name: &str, at: &str) -> Pod {
    Pod { sandbox: Some(Timestamp::constant(BOOT - 10, 0)), ..pod(name, at) }
}

impl World {
    /// Node n1, whose watch is already past its first pass.
    pub(super) fn new() -> Self {
        let mut world = Self::starting();
        world.is_first_pass = true;
        world.pass();
        world.is_first_pass = false;
        world
    }

    /// Node n1, at the agent's start.
    pub(super) fn starting() -> Self {
        let mut state = ClusterState::default();
        state.apply(Event::Upsert(Object::Node(Node {
            name: "n1".into(),
            labels: Labels::default(),
            addresses: addresses("192.168.0.1 2001:db8::1"),
            pod_cidrs: blocks("10.1.0.0/24 fd00:1::/64"),
        })));
        Self {
            links: Links::default(),
            identifier: Identifier::new("n1"),
            lines: BTreeMap::new(),
            exclude: Vec::new(),
            pod_cidrs: Vec::new(),
            is_live: true,
            known_at: None,
            is_first_pass: true,
            state,
            now: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    pub(super) fn event(&mut self, event: Event) {
        self.wait(1);
        self.identifier.note(&event, self.now);
        self.state.apply(event);
    }

    pub(super) fn upsert(&mut self, pod: Pod) {
        self.event(Event::Upsert(Object::Pod(pod)));
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.event(Event::Delete(ObjectKey::Pod(key(name))));
    }

    /// A veth whose peer has these addresses, with a route to each.
    pub(super) fn veth(&mut self, ifindex: u32, at: &str) -> &mut HostLink {
        self.wait(1);
        let at = addresses(at);
        let link = HostLink {
            ifindex,
            name: format!("veth{ifindex}"),
            bridge: None,
            netns_id: ifindex.cast_signed(),
            peer_ifindex: 2,
            peer_mac: [2, 0, 0, 0, 1, ifindex as u8],
            addresses: at.clone(),
            is_up: true,
            first_seen: self.now,
            host_addresses: addresses("10.1.0.1"),
            routes: at.into_iter().map(IpNet::from).collect(),
            forwarding: Forwarding::Unknown,
            engines: Vec::new(),
        };
        self.links.host.entry(ifindex).insert_entry(link).into_mut()
    }

    /// A veth that is a port of the pods' bridge, which has seen its peer.
    pub(super) fn port(&mut self, ifindex: u32, at: &str) -> &mut HostLink {
        let routes = blocks("10.1.0.0/24 fd00:1::/64");
        let bridge = Bridge { name: "cni0".into(), addresses: addresses("10.1.0.1 fd00:1::1"), routes };
        self.links.bridges.insert(BRIDGE, bridge);
        let link = self.veth(ifindex, at);
        link.bridge = Some(BRIDGE);
        link.forwarding = Forwarding::Here;
        link.routes.clear();
        link.host_addresses.clear();
        link
    }

    pub(super) fn link(&mut self, ifindex: u32) -> &mut HostLink {
        self.links.host.get_mut(&ifindex).expect("the interface")
    }

    pub(super) fn pass(&mut self) -> Identified {
        let lines = &self.lines;
        self.identifier.identify(&Facts {
            links: &self.links,
            state: &self.state,
            line_addresses: &|ifindex| lines.get(&ifindex).cloned().unwrap_or_default(),
            exclude: &self.exclude,
            pod_cidrs: &self.pod_cidrs,
            now: self.now,
            boot: Timestamp::constant(BOOT, 0),
            pods_known_at: self.known_at.or(self.is_live.then_some(self.now)),
            is_first_pass: self.is_first_pass,
        })
    }

    /// Passes, and says what was decided, as `7 a, 8 ?, 9 a|b, 10 foreign`.
    pub(super) fn decide(&mut self) -> String {
        let identified = self.pass();
        let decisions = identified.decisions.iter().map(|(ifindex, decision)| match decision {
            Decision::Foreign(_) => format!("{ifindex} foreign"),
            Decision::Pod(pod) => format!("{ifindex} {}", pod.name),
            Decision::Candidates(pods) => {
                let names: Vec<&str> = pods.iter().map(|pod| &*pod.name).collect();
                format!("{ifindex} {}?", names.join("|"))
            }
            Decision::Unidentified => format!("{ifindex} ?"),
            Decision::Doubtful => format!("{ifindex} -"),
            Decision::Contradicted => format!("{ifindex} !"),
        });
        decisions.collect::<Vec<_>>().join(", ")
    }

    #[track_caller]
    pub(super) fn check(&mut self, expected: &str) {
        assert_eq!(self.decide(), expected, "{:?}", self.told());
    }

    /// What there is to tell.
    pub(super) fn told(&self) -> Vec<String> {
        self.identifier.findings().iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    pub(super) fn check_told(&mut self, expected: &[&str]) {
        let told = self.told();
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.contains(expected), "`{expected}` is not in `{told}`");
        }
    }
}
