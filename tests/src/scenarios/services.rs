//! What nodes translate for the Services of a scenario, as kube-proxy does it.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use npolicy_agent::rig::Translation;
use serde_json::Value;

use super::objects::Objects;
use super::packets::protocol_of;

/// `spec.clusterIPs`.
pub(super) fn cluster_addresses(service: &Value) -> anyhow::Result<Vec<IpAddr>> {
    addresses(&service["spec"]["clusterIPs"], "")
}

/// What one node translates: each port at each address of each Service, to the endpoints of its slices.
///
/// Cluster addresses keep the client's, and lead to the node's own endpoints under the internal policy `Local`. External
/// and load-balancer addresses and node ports show the node as the client, or lead to its own endpoints under the external
/// policy `Local`; kube-proxy's exception for pods that use the latter is left out.
pub(super) fn translations(objects: &Objects, node: &str) -> anyhow::Result<Vec<Translation>> {
    let mut translations = Vec::new();
    for service in objects.of_kind("Service") {
        let spec = &service["spec"];
        let mut external = addresses(&spec["externalIPs"], "")?;
        external.extend(addresses(&service["status"]["loadBalancer"]["ingress"], "ip")?);
        let mut of_node = Vec::new();
        for object in objects.of_kind("Node").filter(|object| object["metadata"]["name"] == node) {
            let mut listed = object["status"]["addresses"].clone();
            // Names are listed there too.
            listed.as_array_mut().into_iter().for_each(|listed| listed.retain(|one| one["type"] == "InternalIP"));
            of_node.extend(addresses(&listed, "address")?);
        }
        let is_local = |policy: &str| spec[policy] == "Local";
        for port in spec["ports"].as_array().into_iter().flatten() {
            let protocol = protocol_of(port["protocol"].as_str().unwrap_or("TCP"));
            let mut add = |addresses: &[IpAddr], number: u16, policy: &str, masquerade| -> anyhow::Result<()> {
                let only = is_local(policy).then_some(node);
                for &address in addresses {
                    translations.push(Translation {
                        protocol,
                        address: SocketAddr::new(address, number),
                        backends: backends(objects, service, port, address.is_ipv4(), only)?,
                        masquerade: masquerade && only.is_none(),
                    });
                }
                Ok(())
            };
            let number_at = |field: &str| port[field].as_u64().and_then(|number| u16::try_from(number).ok());
            let number = number_at("port").context("a port of a Service has no number")?;
            add(&cluster_addresses(service)?, number, "internalTrafficPolicy", false)?;
            add(&external, number, "externalTrafficPolicy", true)?;
            if let Some(number) = number_at("nodePort") {
                add(&of_node, number, "externalTrafficPolicy", true)?;
            }
        }
    }
    Ok(translations)
}

/// The endpoints of a Service's port, of one family; `only` those on a node.
fn backends(
    objects: &Objects,
    service: &Value,
    port: &Value,
    is_ipv4: bool,
    only: Option<&str>,
) -> anyhow::Result<Vec<SocketAddr>> {
    let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    let mut backends = Vec::new();
    for slice in objects.of_kind("EndpointSlice") {
        let metadata = &slice["metadata"];
        let is_of_service = metadata["namespace"] == service["metadata"]["namespace"]
            && metadata["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"];
        let same_port = |of: &&Value| is_of_service && name(of) == name(port);
        let found = slice["ports"].as_array().into_iter().flatten().find(same_port);
        let number = found.and_then(|port| port["port"].as_u64()).and_then(|number| u16::try_from(number).ok());
        let Some(number) = number else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if only.is_some_and(|node| endpoint["nodeName"] != node) {
                continue;
            }
            let of_family = addresses(&endpoint["addresses"], "")?.into_iter().filter(|it| it.is_ipv4() == is_ipv4);
            backends.extend(of_family.map(|address| SocketAddr::new(address, number)));
        }
    }
    Ok(backends)
}

/// Addresses of a list; of a field of its items, if one is named.
fn addresses(list: &Value, field: &str) -> anyhow::Result<Vec<IpAddr>> {
    let items = list.as_array().into_iter().flatten();
    items
        .map(|item| {
            let text = if field.is_empty() { item } else { &item[field] };
            Ok(text.as_str().context("an address is no text")?.parse()?)
        })
        .collect()
}
