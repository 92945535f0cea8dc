//! The nodes that take part.

use std::net::IpAddr;

use anyhow::{Context as _, ensure};

use super::api::Api;

/// A node that takes part.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// What scenarios call it.
    pub(super) written: String,
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    /// Of its pods.
    pub(super) ranges: Vec<ipnet::IpNet>,
}

/// The first two nodes that are ready, in the order of their names, control planes last.
pub(super) async fn find_nodes(api: &Api) -> anyhow::Result<Vec<Node>> {
    let mut found = Vec::new();
    for object in api.list("Node", "", "").await? {
        let status = &object["status"];
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let is_ready = conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let is_control = !object["metadata"]["labels"]["node-role.kubernetes.io/control-plane"].is_null();
        let listed = status["addresses"].as_array().into_iter().flatten();
        let addresses: Vec<IpAddr> = listed
            .filter(|address| address["type"] == "InternalIP")
            .filter_map(|address| address["address"].as_str()?.parse().ok())
            .collect();
        let listed = object["spec"]["podCIDRs"].as_array().into_iter().flatten();
        let ranges = listed.filter_map(|range| range.as_str()?.parse().ok()).collect();
        let name = object["metadata"]["name"].as_str().context("a node has no name")?.to_owned();
        if is_ready {
            found.push((is_control, name, addresses, ranges));
        }
    }
    found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    ensure!(found.len() >= 2, "{} nodes are ready; this takes two", found.len());
    let nodes = found.into_iter().take(2).zip(["n1", "n2"]);
    Ok(nodes
        .map(|((_, name, addresses, ranges), written)| Node { written: written.into(), name, addresses, ranges })
        .collect())
}
