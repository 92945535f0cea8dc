//! Objects of scenarios as a real cluster takes them: other names, other nodes, other addresses.
//!
//! A scenario's objects carry addresses of its own. A block in a policy becomes one that holds the same pods and nodes by
//! the addresses that they really have: the block itself or nodes' ranges as far as they do, and each other address alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::api::OURS;

/// Before the names of all namespaces and cluster policies that are made here.
pub const PREFIX: &str = "npolicy-e2e-";
/// The label that the API server gives each namespace: its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Addresses of nobody (RFC 5737, RFC 3849).
const NOBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// The namespace that stands for one of a scenario.
pub fn namespace(written: &str) -> String {
    format!("{PREFIX}{written}")
}

/// One end's address as the scenario has it, and as the cluster has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// In the scenario.
    pub written: IpAddr,
    /// In the cluster.
    pub real: IpAddr,
}

/// Where the ends of a scenario really are.
#[derive(Clone, Default, Debug)]
pub struct Addresses {
    /// Of all pods and nodes.
    pub ends: Vec<Moved>,
    /// Pods' ranges of the nodes.
    pub ranges: Vec<IpNet>,
}

impl Addresses {
    /// The real address for one of the scenario.
    pub fn real(&self, written: IpAddr) -> Option<IpAddr> {
        self.ends.iter().find(|end| end.written == written).map(|end| end.real)
    }

    /// What holds the same ends as `block` without `except` does: blocks with their exceptions.
    pub fn blocks(&self, block: IpNet, except: &[IpNet]) -> Vec<(IpNet, Vec<IpNet>)> {
        let of_family = || self.ends.iter().filter(move |end| end.written.is_ipv4() == block.addr().is_ipv4());
        let holds = |block: &IpNet, except: &[IpNet], address: &IpAddr| {
            block.contains(address) && !except.iter().any(|except| except.contains(address))
        };
        let held: BTreeSet<IpAddr> =
            of_family().filter(|end| holds(&block, except, &end.written)).map(|end| end.real).collect();
        let really = |block: &IpNet, except: &[IpNet]| -> BTreeSet<IpAddr> {
            of_family().filter(|end| holds(block, except, &end.real)).map(|end| end.real).collect()
        };
        if really(&block, except) == held {
            return vec![(block, except.to_vec())];
        }
        if held.is_empty() {
            // Without any peer a rule would be about everybody; nobody lives in a block for documentation.
            let nobody = if block.addr().is_ipv4() { NOBODY_V4 } else { NOBODY_V6 };
            return vec![(nobody.into(), Vec::new())];
        }
        // An exception stays one: each end that it took out, alone.
        let excepted: Vec<IpNet> = of_family()
            .filter(|end| block.contains(&end.written) && !held.contains(&end.real))
            .map(|end| end.real.into())
            .collect();
        let (mut blocks, mut rest) = (Vec::new(), held.clone());
        for candidate in std::iter::once(&block).chain(&self.ranges) {
            let within: Vec<IpNet> = excepted.iter().copied().filter(|one| candidate.contains(one)).collect();
            let covered = really(candidate, &within);
            let is_as_before = block.prefix_len() < block.max_prefix_len() && (within.is_empty() || !except.is_empty());
            if is_as_before && !covered.is_empty() && covered.is_subset(&held) && !covered.is_disjoint(&rest) {
                rest.retain(|address| !covered.contains(address));
                blocks.push((*candidate, within));
            }
        }
        blocks.extend(rest.into_iter().map(|address| (address.into(), Vec::new())));
        blocks
    }

    /// A policy with real names and addresses.
    ///
    /// # Errors
    ///
    /// A block that cannot be read.
    pub fn policy(&self, object: &Value) -> anyhow::Result<Value> {
        let mut spec = object["spec"].clone();
        self.move_in(&mut spec)?;
        let mut made = json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "spec": spec});
        let name = object["metadata"]["name"].as_str().context("a policy has no name")?;
        made["metadata"] = match object["metadata"]["namespace"].as_str() {
            Some(written) => json!({"namespace": namespace(written), "name": name, "labels": {OURS: "true"}}),
            None => json!({"name": format!("{PREFIX}{name}"), "labels": {OURS: "true"}}),
        };
        Ok(made)
    }

    fn move_in(&self, value: &mut Value) -> anyhow::Result<()> {
        match value {
            Value::Array(items) => {
                let mut moved = Vec::new();
                for mut item in items.drain(..) {
                    if let Some(blocks) = self.peers(&item)? {
                        moved.extend(blocks);
                        continue;
                    }
                    self.move_in(&mut item)?;
                    moved.push(item);
                }
                *items = moved;
            }
            Value::Object(fields) => {
                rename(fields);
                for (name, field) in fields.iter_mut() {
                    if name == "nodes" {
                        label_ours(field);
                    }
                    self.move_in(field)?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        Ok(())
    }

    /// The peers that stand for one with a block; none if it has none.
    fn peers(&self, peer: &Value) -> anyhow::Result<Option<Vec<Value>>> {
        let read = |text: &Value| -> anyhow::Result<IpNet> {
            let text = text.as_str().context("a block is no text")?;
            text.parse().with_context(|| format!("{text} is no block"))
        };
        if let Some(block) = peer.get("ipBlock") {
            let except = block["except"].as_array().into_iter().flatten().map(read).collect::<Result<Vec<_>, _>>()?;
            let blocks = self.blocks(read(&block["cidr"])?, &except);
            let written = |(cidr, except): (IpNet, Vec<IpNet>)| match except.is_empty() {
                true => json!({"ipBlock": {"cidr": cidr.to_string()}}),
                false => json!({"ipBlock": {"cidr": cidr.to_string(), "except": texts(&except)}}),
            };
            return Ok(Some(blocks.into_iter().map(written).collect()));
        }
        if let Some(networks) = peer.get("networks") {
            let mut moved = Vec::new();
            for network in networks.as_array().context("networks are no list")? {
                moved.extend(self.blocks(read(network)?, &[]).into_iter().map(|(network, _)| network));
            }
            return Ok(Some(vec![json!({"networks": texts(&moved)})]));
        }
        Ok(None)
    }
}

fn texts(blocks: &[IpNet]) -> Vec<String> {
    blocks.iter().map(IpNet::to_string).collect()
}

/// Gives selectors of namespaces by name the real names.
fn rename(fields: &mut Map<String, Value>) {
    if let Some(Value::String(name)) = fields.get_mut("matchLabels").and_then(|labels| labels.get_mut(NAME_LABEL)) {
        *name = namespace(name);
    }
    if fields.get("key").is_some_and(|key| key == NAME_LABEL)
        && let Some(Value::Array(names)) = fields.get_mut("values")
    {
        for name in names {
            if let Value::String(name) = name {
                *name = namespace(name);
            }
        }
    }
}

/// A label of nodes; others than ours are not touched.
pub fn node_label(written: &str) -> String {
    format!("{OURS}/{written}")
}

/// Lets a selector of nodes ask for labels that are ours.
fn label_ours(selector: &mut Value) {
    if let Some(Value::Object(labels)) = selector.get_mut("matchLabels") {
        *labels = std::mem::take(labels).into_iter().map(|(key, value)| (node_label(&key), value)).collect();
    }
    for expression in selector.get_mut("matchExpressions").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(key) = expression["key"].as_str() {
            expression["key"] = node_label(key).into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        let pair = |written: &str, real: &str| Moved { written: written.parse().unwrap(), real: real.parse().unwrap() };
        Addresses {
            ends: vec![
                pair("10.244.1.10", "10.64.0.5"),
                pair("10.244.1.40", "10.64.0.6"),
                pair("10.244.1.44", "10.64.0.9"),
                pair("10.244.2.10", "10.64.1.3"),
                pair("10.243.0.1", "172.31.0.11"),
            ],
            ranges: vec!["10.64.0.0/24".parse().unwrap(), "10.64.1.0/24".parse().unwrap()],
        }
    }

    #[track_caller]
    fn check(block: &str, except: &[&str], expected: &str) {
        let except: Vec<IpNet> = except.iter().map(|except| except.parse().unwrap()).collect();
        let blocks = addresses().blocks(block.parse().unwrap(), &except);
        let shown: Vec<String> = blocks
            .iter()
            .map(|(block, except)| {
                except.iter().fold(block.to_string(), |shown, except| format!("{shown} but {except}"))
            })
            .collect();
        assert_eq!(shown.join(", "), expected);
    }

    #[test]
    fn a_block_becomes_one_that_holds_the_same_ends() {
        check("10.244.2.10/32", &[], "10.64.1.3/32");
        check("0.0.0.0/0", &[], "0.0.0.0/0");
        check("0.0.0.0/4", &[], "0.0.0.0/4, 172.31.0.11/32");
        check("0.0.0.0/4", &["10.244.2.10/32"], "0.0.0.0/4 but 10.64.1.3/32, 172.31.0.11/32");
        check("203.0.113.0/24", &[], "203.0.113.0/24");
        check("10.244.1.0/24", &[], "10.64.0.0/24");
        check("10.244.1.0/24", &["10.244.1.44/32"], "10.64.0.0/24 but 10.64.0.9/32");
        check("10.244.1.0/24", &["10.244.1.32/28"], "10.64.0.0/24 but 10.64.0.6/32 but 10.64.0.9/32");
        check("10.244.1.32/28", &[], "10.64.0.6/32, 10.64.0.9/32");
        check("172.31.0.0/16", &[], "192.0.2.1/32");
        check("10.244.0.0/16", &[], "10.64.0.0/24, 10.64.1.0/24");
    }

    #[test]
    fn a_policy_names_real_namespaces_nodes_and_blocks() {
        let policy = json!({
            "apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "p"},
            "spec": {
                "subject": {"namespaces": {"matchLabels": {NAME_LABEL: "x", "ns": "x"}}},
                "egress": [{"to": [
                    {"networks": ["10.244.1.32/28"]},
                    {"nodes": {"matchLabels": {"role": "worker"}}},
                    {"namespaces": {"matchExpressions": [{"key": NAME_LABEL, "operator": "In", "values": ["y"]}]}},
                ]}],
            },
        });
        let made = addresses().policy(&policy).unwrap();
        assert_eq!(made["metadata"]["name"], "npolicy-e2e-p");
        assert_eq!(
            made["spec"],
            json!({
                "subject": {"namespaces": {"matchLabels": {NAME_LABEL: "npolicy-e2e-x", "ns": "x"}}},
                "egress": [{"to": [
                    {"networks": ["10.64.0.6/32", "10.64.0.9/32"]},
                    {"nodes": {"matchLabels": {"npolicy-e2e/role": "worker"}}},
                    {"namespaces": {"matchExpressions": [
                        {"key": NAME_LABEL, "operator": "In", "values": ["npolicy-e2e-y"]},
                    ]}},
                ]}],
            })
        );
    }
}
