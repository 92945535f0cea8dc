//! Choices, from an alphabet so small that what policies name is often there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::Settings;

/// Label keys of pods.
pub(super) const POD_KEYS: &[&str] = &["app", "tier"];
/// Label keys of namespaces.
pub(super) const NAMESPACE_KEYS: &[&str] = &["env", "kubernetes.io/metadata.name"];
/// Label keys of nodes.
pub(super) const NODE_KEYS: &[&str] = &["role"];
/// Values of labels; names of namespaces stand among them, for the automatic label.
const VALUES: &[&str] = &["a", "b", "", "c"];
/// Names of container ports.
pub(super) const PORT_NAMES: &[&str] = &["web", "dns", "x-1"];
/// Port numbers.
pub(super) const PORTS: &[u16] = &[1, 2, 53, 80, 81, 443, 8080, 8081, 9000, 65534, 65535];
/// Protocols with ports.
pub(super) const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];

/// A pod as other objects have to know it.
#[derive(Clone, Debug)]
pub(super) struct PodSketch {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
}

/// The source of every choice, and what has been chosen so far.
pub(super) struct Draw {
    pub(super) rng: Rng,
    pub(super) settings: Settings,
    /// Nodes by name, with their addresses.
    pub(super) nodes: Vec<(String, Vec<IpAddr>)>,
    pub(super) namespaces: Vec<String>,
    pub(super) pods: Vec<PodSketch>,
    /// Addresses worth a block.
    pub(super) addresses: Vec<IpAddr>,
    /// External and load-balancer addresses: each is one Service's.
    pub(super) outer: Vec<IpAddr>,
}

impl Draw {
    pub(super) fn new(seed: u64, settings: Settings) -> Self {
        let outside: [IpAddr; 4] = [
            Ipv4Addr::new(203, 0, 113, 7).into(),
            Ipv4Addr::new(203, 0, 113, 128).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80).into(),
        ];
        Self {
            rng: Rng::with_seed(seed),
            settings,
            nodes: Vec::new(),
            namespaces: Vec::new(),
            pods: Vec::new(),
            addresses: outside.into(),
            outer: Vec::new(),
        }
    }

    /// True in so many of a hundred cases.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    /// True in so many of a hundred cases, if worlds may hold what no API server takes.
    pub(super) fn breaks(&mut self, percent: u32) -> bool {
        self.settings.broken && self.chance(percent)
    }

    /// One of several.
    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.rng.usize(0..from.len())]
    }

    /// The number of one of several, by weight.
    pub(super) fn weighted(&mut self, weights: &[u32]) -> usize {
        let mut left = self.rng.u32(0..weights.iter().sum());
        weights
            .iter()
            .position(|&weight| {
                let is_it = left < weight;
                left = left.saturating_sub(weight);
                is_it
            })
            .expect("the number is below the sum of the weights")
    }

    /// A label's value that fits the key.
    pub(super) fn value(&mut self, key: &str) -> String {
        if key == "kubernetes.io/metadata.name" {
            return (*self.pick(&["a", "b", "c", "d"])).to_owned();
        }
        (*self.pick(VALUES)).to_owned()
    }

    /// Labels, or `null`.
    pub(super) fn labels(&mut self, keys: &[&str]) -> Value {
        if self.chance(8) {
            return Value::Null;
        }
        let mut labels = Map::new();
        for &key in keys.iter().filter(|key| !key.contains('/')) {
            if self.chance(75) {
                labels.insert(key.to_owned(), self.value(key).into());
            }
        }
        Value::Object(labels)
    }

    /// A label selector.
    pub(super) fn selector(&mut self, keys: &[&str]) -> Value {
        let mut selector = Map::new();
        match self.weighted(&[16, 40, 34, 10]) {
            0 => {}
            1 => drop(selector.insert("matchLabels".into(), self.match_labels(keys))),
            2 => drop(selector.insert("matchExpressions".into(), self.match_expressions(keys))),
            _ => {
                selector.insert("matchLabels".into(), self.match_labels(keys));
                selector.insert("matchExpressions".into(), self.match_expressions(keys));
            }
        }
        Value::Object(selector)
    }

    fn match_labels(&mut self, keys: &[&str]) -> Value {
        if self.chance(5) {
            return if self.chance(50) { Value::Null } else { json!({}) };
        }
        if self.breaks(2) {
            return if self.chance(50) { json!({"-app": "a"}) } else { json!({"app": "not a value"}) };
        }
        let mut labels = Map::new();
        for _ in 0..self.rng.u32(1..=2) {
            let key = *self.pick(keys);
            labels.insert(key.into(), self.value(key).into());
        }
        Value::Object(labels)
    }

    fn match_expressions(&mut self, keys: &[&str]) -> Value {
        if self.chance(5) {
            return if self.chance(50) { Value::Null } else { json!([]) };
        }
        (0..self.rng.u32(1..=2)).map(|_| self.expression(keys)).collect()
    }

    fn expression(&mut self, keys: &[&str]) -> Value {
        let key = *self.pick(keys);
        if self.breaks(3) {
            return self
                .pick(&[
                    json!({"key": key, "operator": "in", "values": ["a"]}),
                    json!({"key": key, "operator": "Equals", "values": ["a"]}),
                    json!({"key": key, "operator": "In"}),
                    json!({"key": key, "operator": "NotIn", "values": []}),
                    json!({"key": key, "operator": "Exists", "values": ["a"]}),
                    json!({"key": key, "operator": "DoesNotExist", "values": [""]}),
                    json!({"key": "a key", "operator": "Exists"}),
                    json!({"key": key, "operator": "In", "values": ["a", "b "]}),
                ])
                .clone();
        }
        match self.weighted(&[35, 30, 20, 15]) {
            operator @ (0 | 1) => {
                let values: Vec<_> = (0..self.rng.u32(1..=2)).map(|_| self.value(key)).collect();
                let operator = ["In", "NotIn"][operator];
                json!({"key": key, "operator": operator, "values": values})
            }
            operator => {
                let operator = ["Exists", "DoesNotExist"][operator - 2];
                match self.weighted(&[80, 10, 10]) {
                    0 => json!({"key": key, "operator": operator}),
                    1 => json!({"key": key, "operator": operator, "values": null}),
                    _ => json!({"key": key, "operator": operator, "values": []}),
                }
            }
        }
    }

    /// A block around an address that matters, in one of the spellings that API servers have stored.
    pub(super) fn block(&mut self) -> String {
        let (address, length) = self.block_parts();
        self.spell(address, length)
    }

    /// An address that matters and the length of a block around it.
    pub(super) fn block_parts(&mut self) -> (IpAddr, u8) {
        let addresses = std::mem::take(&mut self.addresses);
        let address = *self.pick(&addresses);
        self.addresses = addresses;
        let length = match address {
            IpAddr::V4(_) => *self.pick(&[0, 1, 8, 16, 22, 24, 25, 28, 30, 31, 32, 32]),
            IpAddr::V6(_) => *self.pick(&[0, 1, 8, 48, 64, 65, 112, 124, 126, 127, 128, 128]),
        };
        (address, length)
    }

    /// Writes a block.
    pub(super) fn spell(&mut self, address: IpAddr, length: u8) -> String {
        let network = ipnet::IpNet::new(address, length).expect("a length of the family").trunc().addr();
        match (self.weighted(&[75, 10, 8, 7]), network) {
            (1, _) => format!("{address}/{length}"),
            (2, IpAddr::V4(network)) if self.settings.broken => {
                let [a, b, c, d] = network.octets();
                format!("{a:03}.{b:02}.{c}.{d:03}/{length}")
            }
            (3, IpAddr::V4(network)) if self.settings.broken => format!("::ffff:{network}/{}", length + 96),
            _ => format!("{network}/{length}"),
        }
    }

    /// A block inside another.
    pub(super) fn block_inside(&mut self, address: IpAddr, length: u8) -> String {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let inner = self.rng.u8(length..=most).max(length.saturating_add(1).min(most));
        self.spell(address, inner)
    }

    /// A port number.
    pub(super) fn port(&mut self) -> u16 {
        *self.pick(PORTS)
    }

    /// The time so many minutes into a day, as the API writes it.
    pub(super) fn time(&mut self, minutes: u32) -> String {
        format!("2026-03-02T09:{:02}:00Z", self.rng.u32(0..minutes))
    }
}
