//! The objects of a scenario, as they stand after each step.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use npolicy_common::Family;
use serde_json::{Map, Value, json};

use super::world::service_of;

/// Objects by kind, namespace and name; of those without a namespace it is empty.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Objects(BTreeMap<(String, String, String), Value>);

impl Objects {
    /// Adds an object, or replaces the one with its name.
    ///
    /// # Errors
    ///
    /// What has no kind or no name.
    pub fn apply(&mut self, object: Value) -> anyhow::Result<()> {
        let kind = object["kind"].as_str().context("an object has no kind")?;
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().with_context(|| format!("a {kind} has no name"))?;
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        self.0.insert((kind.into(), namespace.into(), name.into()), object);
        Ok(())
    }

    /// Takes an object away, written `KIND NAME` or `KIND NAMESPACE/NAME`; with a Namespace, what is in it, and with a Pod
    /// the Service in front of it.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn delete(&mut self, what: &str) -> anyhow::Result<()> {
        let key = key(what)?;
        ensure!(self.0.remove(&key).is_some(), "there is no {what} to delete");
        let (kind, namespace, name) = key;
        self.0.retain(|(other_kind, other_namespace, other_name), object| match kind.as_str() {
            "Namespace" => *other_namespace != name,
            "Pod" => {
                let service = service_of(&name);
                let is_of_pod = match other_kind.as_str() {
                    "Service" => *other_name == service,
                    "EndpointSlice" => object["metadata"]["labels"]["kubernetes.io/service-name"] == service,
                    _ => false,
                };
                !(is_of_pod && *other_namespace == namespace)
            }
            _ => true,
        });
        Ok(())
    }

    /// Sets labels of an object, written as for [`Objects::delete`]; a null takes the label away.
    ///
    /// # Errors
    ///
    /// There is no such object.
    pub fn label(&mut self, what: &str, labels: &Map<String, Value>) -> anyhow::Result<()> {
        let object = self.0.get_mut(&key(what)?).with_context(|| format!("there is no {what} to label"))?;
        let present = &mut object["metadata"]["labels"];
        if present.is_null() {
            *present = json!({});
        }
        let present = present.as_object_mut().context("labels are a map")?;
        for (name, value) in labels {
            if value.is_null() {
                present.remove(name);
            } else {
                present.insert(name.clone(), value.clone());
            }
        }
        Ok(())
    }

    /// Every object.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.0.values()
    }

    /// Every object of a kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |((other, _, _), _)| other == kind).map(|(_, object)| object)
    }

    /// The pods that have a network of their own, as `NAMESPACE/NAME`.
    pub fn pods(&self) -> Vec<String> {
        let own = self.of_kind("Pod").filter(|pod| pod["spec"]["hostNetwork"] != true);
        own.map(|pod| key_of(&pod["metadata"])).collect()
    }

    /// A pod.
    pub fn pod(&self, key: &str) -> Option<&Value> {
        let (namespace, name) = key.split_once('/')?;
        self.0.get(&("Pod".into(), namespace.into(), name.into()))
    }

    /// The same without addresses of other families.
    pub(super) fn for_families(&self, families: &[Family]) -> Self {
        let is_kept = |address: &Value| {
            let address = address.as_str().and_then(|address| address.parse::<IpAddr>().ok());
            address.is_none_or(|address| families.contains(if address.is_ipv4() { &Family::V4 } else { &Family::V6 }))
        };
        let mut kept = self.clone();
        kept.0.retain(|(kind, _, _), object| {
            let slice = (kind == "EndpointSlice").then(|| object["endpoints"][0]["addresses"][0].clone());
            slice.is_none_or(|address| is_kept(&address))
        });
        for ((kind, _, _), object) in &mut kept.0 {
            let (list, field) = match kind.as_str() {
                "Pod" => (object.pointer_mut("/status/podIPs"), "ip"),
                "Node" => (object.pointer_mut("/status/addresses"), "address"),
                "Service" => (object.pointer_mut("/spec/clusterIPs"), ""),
                _ => continue,
            };
            if let Some(list) = list.and_then(Value::as_array_mut) {
                list.retain(|entry| is_kept(if field.is_empty() { entry } else { &entry[field] }));
            }
            if kind == "Service" {
                object["spec"]["clusterIP"] = object["spec"]["clusterIPs"][0].clone();
                if families.len() == 1 {
                    let only = if families == [Family::V4] { "IPv4" } else { "IPv6" };
                    object["spec"]["ipFamilies"] = json!([only]);
                    object["spec"]["ipFamilyPolicy"] = "SingleStack".into();
                }
            }
        }
        kept
    }

    /// Everything as one YAML stream, of JSON documents.
    pub fn text(&self) -> String {
        self.values().map(|object| format!("---\n{object}\n")).collect()
    }

    /// Puts addresses in the place of `$4(NAMESPACE/POD)` and `$6(NAMESPACE/POD)`; a prefix length behind it makes a block.
    ///
    /// # Errors
    ///
    /// A pod that is not there.
    pub(super) fn fill_in(&self, value: &mut Value) -> anyhow::Result<()> {
        match value {
            Value::String(text) => {
                if let Some(filled) = self.filled(text)? {
                    *text = filled;
                }
            }
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.fill_in(item))?,
            Value::Object(fields) => fields.values_mut().try_for_each(|field| self.fill_in(field))?,
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        Ok(())
    }

    fn filled(&self, text: &str) -> anyhow::Result<Option<String>> {
        let Some((is_ipv4, rest)) =
            text.strip_prefix("$4(").map(|rest| (true, rest)).or(text.strip_prefix("$6(").map(|rest| (false, rest)))
        else {
            return Ok(None);
        };
        let (pod, length) = rest.split_once(')').with_context(|| format!("{text:?} does not end"))?;
        let object = self.pod(pod).with_context(|| format!("there is no pod {pod}"))?;
        let addresses = pod_addresses(object)?;
        let address = addresses.into_iter().find(|address| address.is_ipv4() == is_ipv4);
        let address = address.with_context(|| format!("{pod} has no such address"))?;
        Ok(Some(match length.strip_prefix('/') {
            Some(length) => IpNet::new(address, length.parse()?)?.trunc().to_string(),
            None => address.to_string(),
        }))
    }
}

/// `NAMESPACE/NAME`.
pub(super) fn key_of(metadata: &Value) -> String {
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

/// The addresses of a pod's status.
pub(super) fn pod_addresses(pod: &Value) -> anyhow::Result<Vec<IpAddr>> {
    let entries = pod["status"]["podIPs"].as_array().context("a pod has no addresses")?;
    entries.iter().map(|entry| Ok(entry["ip"].as_str().context("an address is no text")?.parse()?)).collect()
}

fn key(what: &str) -> anyhow::Result<(String, String, String)> {
    let Some((kind, name)) = what.split_once(' ') else { bail!("{what:?} is no KIND and NAME") };
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Ok((kind.into(), namespace.into(), name.into()))
}
