//! What is made of a scenario's pods and Services: objects that a real cluster takes.

use std::net::IpAddr;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::api::OURS;
use super::nodes::Node;
use super::translate::{Addresses, namespace};

/// What tells a pod of a scenario from another one of its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Written {
    pub(super) node: String,
    pub(super) addresses: Vec<IpAddr>,
    on_host: bool,
}

/// Reads it from a scenario's pod.
pub(super) fn written(object: &Value) -> anyhow::Result<Written> {
    let node = object["spec"]["nodeName"].as_str().context("a pod is on no node")?.to_owned();
    let listed = object["status"]["podIPs"].as_array().into_iter().flatten();
    let addresses = listed.filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect();
    Ok(Written { node, addresses, on_host: object["spec"]["hostNetwork"] == true })
}

/// A pod's labels, and ours.
pub(super) fn labels_of(object: &Value) -> Value {
    let mut labels = object["metadata"]["labels"].clone();
    if labels.is_null() {
        labels = json!({});
    }
    labels[OURS] = "true".into();
    labels
}

/// The pod of a scenario, as it is made.
pub(super) fn pod_object(object: &Value, nodes: &[Node], image: &str) -> anyhow::Result<Value> {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a pod has no name, namespace or node");
    let (of, name, on) = (text(&metadata["namespace"])?, text(&metadata["name"])?, text(&spec["nodeName"])?);
    let node = nodes.iter().find(|node| node.written == on).with_context(|| format!("{on} is no node"))?;
    let on_host = spec["hostNetwork"] == true;
    let containers = spec["containers"].as_array().into_iter().flatten();
    // A port of a pod on the host would be the scheduler's to give.
    let ports: Vec<&Value> = containers
        .filter(|_| !on_host)
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .collect();
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace(&of), "name": name, "labels": labels_of(object)},
        "spec": {
            "nodeName": node.name, "hostNetwork": on_host, "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false, "enableServiceLinks": false,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "peer", "image": image, "imagePullPolicy": "IfNotPresent",
                "args": ["serve", format!("{of}/{name}")], "ports": ports,
                "env": [{"name": "POD_IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}],
                "securityContext": {"capabilities": {"add": ["NET_RAW"]}},
                // Without a share of its own a pod starves beside whatever else the machine does.
                "resources": {"requests": {"cpu": "40m"}},
            }],
        },
    }))
}

/// A Service or a slice of it with real names and addresses. Backends are what the slices say; no controller adds more.
pub(super) fn service_object(object: &Value, addresses: &Addresses, nodes: &[Node]) -> anyhow::Result<Option<Value>> {
    let mut made = object.clone();
    let of = made["metadata"]["namespace"].as_str().context("a Service or slice has no namespace")?;
    made["metadata"]["namespace"] = namespace(of).into();
    made["metadata"]["labels"][OURS] = "true".into();
    if made["kind"] == "Service" {
        let spec = made["spec"].as_object_mut().context("a Service has no spec")?;
        for field in ["clusterIP", "clusterIPs", "selector"] {
            spec.remove(field);
        }
        // Kubernetes wants names where there are several, which the slices' ports bear too.
        spec.insert("ipFamilyPolicy".into(), "PreferDualStack".into());
        spec.remove("ipFamilies");
        if let Some(fields) = made.as_object_mut() {
            fields.remove("status");
        }
        return Ok(Some(made));
    }
    made["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = OURS.into();
    let endpoints = made["endpoints"].as_array_mut().context("a slice has no endpoints")?;
    for endpoint in endpoints {
        let listed = endpoint["addresses"].as_array_mut().context("an endpoint has no addresses")?;
        for address in listed {
            let written = address.as_str().and_then(|text| text.parse().ok()).context("an endpoint's address")?;
            // A cluster of one family has no such slice.
            let Some(real) = addresses.real(written) else { return Ok(None) };
            *address = real.to_string().into();
        }
        if let Some(node) = nodes.iter().find(|node| endpoint["nodeName"] == *node.written) {
            endpoint["nodeName"] = node.name.clone().into();
        }
    }
    Ok(Some(made))
}
