//! Worlds: the namespaces and pods that scenarios start from.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::expect::Port;
use super::objects::Objects;

/// What scenarios start from: two nodes, n1 and n2, and these pods on them.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// Labels of each namespace.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Pods by `NAMESPACE/NAME`.
    pub pods: BTreeMap<String, PodOf>,
    /// What every pod serves: names of container ports, and the ports.
    pub ports: BTreeMap<String, Port>,
    /// Whether there is a Service in front of each pod, with the pod's ports; probes then go to its addresses.
    #[serde(default)]
    pub services: bool,
    /// Ports that processes on the nodes serve.
    #[serde(default)]
    pub node_ports: Vec<Port>,
}

/// Where a pod is and how it is labelled.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct PodOf {
    /// Its node.
    pub on: String,
    /// Its number in the node's range; none for one in the node's network.
    pub host: Option<u8>,
    /// Whether it lives in its node's network.
    #[serde(default)]
    pub host_network: bool,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Number of a node, which its addresses and its pods' are made of.
pub(super) fn number_of(node: &str) -> anyhow::Result<u8> {
    match node {
        "n1" => Ok(1),
        "n2" => Ok(2),
        other => bail!("{other:?} is no node: there are n1 and n2"),
    }
}

/// Addresses of a node, as the rig gives them.
fn node_addresses(number: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(10, 243, 0, number).into(), Ipv6Addr::new(0xfd00, 0x10, 0x243, 0, 0, 0, 0, number.into()).into()]
}

/// Addresses of a pod, of its node's ranges.
fn pod_addresses(number: u8, host: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 244, number, host).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, host.into()).into(),
    ]
}

/// Addresses of the Service in front of a pod.
fn service_addresses(number: u8, host: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, number, host).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, number.into(), host.into()).into(),
    ]
}

impl World {
    /// Reads `scenarios/worlds/NAME.yaml`.
    ///
    /// # Errors
    ///
    /// No such file, or not a world.
    pub fn read(name: &str) -> anyhow::Result<Self> {
        super::read_yaml(&super::root().join("worlds").join(format!("{name}.yaml")))
    }

    /// Its objects, with addresses of both families.
    ///
    /// # Errors
    ///
    /// A pod on a node that is not there.
    pub fn objects(&self) -> anyhow::Result<Objects> {
        let mut objects = Objects::default();
        for (node, labels) in [("n1", json!({"role": "worker"})), ("n2", json!({"role": "control-plane"}))] {
            let addresses: Vec<_> = node_addresses(number_of(node)?)
                .iter()
                .map(|address| json!({"type": "InternalIP", "address": address}))
                .collect();
            objects.apply(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels},
                "status": {"addresses": addresses},
            }))?;
        }
        for (name, labels) in &self.namespaces {
            objects.apply(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
            )?;
        }
        for (key, pod) in &self.pods {
            for object in self.pod_objects(key, pod)? {
                objects.apply(object)?;
            }
        }
        Ok(objects)
    }

    /// A pod, and the Service in front of it.
    pub(super) fn pod_objects(&self, key: &str, pod: &PodOf) -> anyhow::Result<Vec<Value>> {
        let (namespace, name) = key.split_once('/').with_context(|| format!("{key:?} is no NAMESPACE/NAME"))?;
        let PodOf { on, host, host_network, labels } = pod;
        let number = number_of(on)?;
        let host = match (host, host_network) {
            (Some(host), false) => *host,
            (None, true) => {
                let addresses = node_addresses(number);
                return Ok(vec![json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"namespace": namespace, "name": name, "labels": labels},
                    "spec": {"nodeName": on, "hostNetwork": true, "containers": [{"name": "server"}]},
                    "status": {"phase": "Running", "podIPs": addresses.map(|address| json!({"ip": address}))},
                })]);
            }
            _ => bail!("pod {key} needs a host number or its node's network, and not both"),
        };
        let addresses = pod_addresses(number, host);
        let container_ports: Vec<_> = self
            .ports
            .iter()
            .map(|(name, port)| json!({"name": name, "containerPort": port.number, "protocol": port.protocol}))
            .collect();
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"nodeName": on, "containers": [{"name": "server", "ports": container_ports}]},
            "status": {"phase": "Running", "podIPs": addresses.map(|address| json!({"ip": address}))},
        })];
        if self.services {
            let ports: Vec<_> = self
                .ports
                .iter()
                .map(|(name, port)| json!({"name": name, "port": port.number, "protocol": port.protocol}))
                .collect();
            let virtual_addresses = service_addresses(number, host);
            let service = service_of(name);
            objects.push(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": service},
                "spec": {
                    "clusterIP": virtual_addresses[0], "clusterIPs": virtual_addresses,
                    "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "ports": ports,
                },
            }));
            for (family, address) in ["IPv4", "IPv6"].iter().zip(addresses) {
                objects.push(json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {
                        "namespace": namespace, "name": format!("{service}-{}", family.to_lowercase()),
                        "labels": {"kubernetes.io/service-name": service},
                    },
                    "addressType": family, "ports": ports,
                    "endpoints": [{"addresses": [address], "nodeName": on, "conditions": {"ready": true}}],
                }));
            }
        }
        Ok(objects)
    }
}

/// Name of the Service in front of a pod, in the same namespace.
pub(super) fn service_of(pod: &str) -> String {
    format!("s-{pod}")
}

/// The pod behind a Service of [`service_of`], as an end is written.
pub(super) fn pod_behind(end: &str) -> Option<String> {
    let (namespace, service) = end.strip_prefix("svc:")?.split_once('/')?;
    Some(format!("{namespace}/{}", service.strip_prefix("s-")?))
}
