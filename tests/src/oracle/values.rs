//! Reading raw JSON: fields, lists, labels, addresses and blocks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

/// Something that no API server would have stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Labels of a pod, a namespace or a node.
pub type Labels = BTreeMap<String, String>;

/// The field of an object; null is as good as absent.
pub fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// The text of a field, if it has one.
pub fn text(object: &Value, name: &str) -> Option<String> {
    field(object, name).and_then(Value::as_str).map(str::to_owned)
}

/// The items of a list; absent, null and empty are the same.
pub fn items<'a>(object: &'a Value, name: &str) -> Result<&'a [Value], Malformed> {
    match field(object, name) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(Malformed),
    }
}

/// The items of a list of facts about the cluster, where anything else is no list.
pub fn facts<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    items(object, name).unwrap_or(&[])
}

/// What an object is called: its namespace, `default` where none is given, and its name.
pub fn names(object: &Value) -> (String, String) {
    let metadata = &object["metadata"];
    let namespace = text(metadata, "namespace").filter(|namespace| !namespace.is_empty());
    (namespace.unwrap_or_else(|| "default".to_owned()), text(metadata, "name").unwrap_or_default())
}

/// The labels in an object's metadata.
pub fn labels(object: &Value) -> Labels {
    let Some(labels) = object["metadata"]["labels"].as_object() else { return Labels::new() };
    labels.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// A port number that exists: 1 to 65535.
pub fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|&number| number != 0)
}

/// A protocol with ports; TCP where none is given.
pub fn protocol(object: &Value) -> Option<String> {
    match field(object, "protocol") {
        None => Some("TCP".to_owned()),
        Some(value) => value.as_str().filter(|name| has_ports(name)).map(str::to_owned),
    }
}

/// Whether policy knows ports for the protocol.
pub fn has_ports(protocol: &str) -> bool {
    matches!(protocol, "TCP" | "UDP" | "SCTP")
}

/// An address in any form that was ever stored. One of IPv4 in IPv6's clothes is IPv4.
pub fn address(text: &str) -> Option<IpAddr> {
    written_address(text).map(|address| address.to_canonical())
}

/// An address as it is written: octets may have leading zeros, which are decimal all the same.
fn written_address(text: &str) -> Option<IpAddr> {
    let Some((groups, tail)) = text.rsplit_once(':') else { return octets(text).map(IpAddr::V4) };
    if !tail.contains('.') {
        return text.parse().ok().map(IpAddr::V6);
    }
    let [a, b, c, d] = octets(tail)?.octets();
    format!("{groups}:{a:02x}{b:02x}:{c:02x}{d:02x}").parse().ok().map(IpAddr::V6)
}

fn octets(text: &str) -> Option<Ipv4Addr> {
    let octets: Option<Vec<u8>> = text.split('.').map(digits).collect();
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets?).ok()?))
}

/// A number of digits alone: no sign, no blank.
fn digits(text: &str) -> Option<u8> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A block of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Any address of the block.
    address: IpAddr,
    /// How many leading bits are the block's.
    prefix: u32,
}

impl Block {
    /// Reads `ADDRESS/BITS`. Bits behind the prefix may be set. IPv4 in IPv6's clothes needs a prefix that leaves the
    /// clothes alone, 96 or more.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix) = (written_address(address)?, u32::from(digits(prefix)?));
        match (address, address.to_canonical()) {
            (IpAddr::V4(_), _) => (prefix <= 32).then_some(Self { address, prefix }),
            (IpAddr::V6(_), IpAddr::V6(_)) => (prefix <= 128).then_some(Self { address, prefix }),
            (IpAddr::V6(_), address) => (96..=128).contains(&prefix).then(|| Self { address, prefix: prefix - 96 }),
        }
    }

    /// Whether every address of a family is in the block.
    pub fn is_everything(self, is_ipv4: bool) -> bool {
        self.prefix == 0 && self.address.is_ipv4() == is_ipv4
    }

    /// Whether the address is in the block. One of the other family never is.
    pub fn contains(self, other: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| self.prefix == 0 || (a ^ b) >> (width - self.prefix) == 0;
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }
}
