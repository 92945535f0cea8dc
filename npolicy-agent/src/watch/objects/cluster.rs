//! Namespace and Node (`v1`).

use super::cursor::{At, Harm, Report};
use super::metadata::{Scope, read_metadata};
use super::net::{parse_cidr, parse_ip};
use super::service::unknown_fields;
use crate::model::{Namespace, Node};

const NOT_READ: Harm = Harm::part("it is not read");
const TOP: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];

/// Fields of `v1.NodeStatus`.
const NODE_STATUS: &[&str] = &[
    "addresses",
    "allocatable",
    "capacity",
    "conditions",
    "config",
    "daemonEndpoints",
    "declaredFeatures",
    "features",
    "images",
    "nodeInfo",
    "phase",
    "runtimeHandlers",
    "volumesAttached",
    "volumesInUse",
];

/// Reads a namespace. `None`: it has no name, and this was reported.
pub(super) fn read_namespace(object: &At<'_>, report: &mut Report<'_>) -> Option<Namespace> {
    let metadata = read_metadata(object, "Namespace", Scope::Cluster, report)?;
    report.unknown_fields(object, TOP, NOT_READ);
    Some(Namespace::new(metadata.name, &metadata.labels))
}

/// Reads a node: every address that is an IP address counts, whatever its type. `None`: it has no name, and this was
/// reported.
pub(super) fn read_node(object: &At<'_>, report: &mut Report<'_>) -> Option<Node> {
    let metadata = read_metadata(object, "Node", Scope::Cluster, report)?;
    unknown_fields(object, TOP, &["status"], report);
    let mut pod_cidrs = Vec::new();
    if let Some(spec) = object.get("spec").filter(|spec| report.expect_map(spec, NOT_READ))
        && let Some(items) = spec.get("podCIDRs")
    {
        for item in report.expect_list(&items, NOT_READ) {
            match item.text().map(parse_cidr) {
                Some(Ok(block)) => pod_cidrs.push(block),
                Some(Err(problem)) => drop(report.broken(&item, NOT_READ, problem)),
                None => drop(report.broken(&item, NOT_READ, format!("must be text, not {}", item.value()))),
            }
        }
    }
    let mut addresses = Vec::new();
    const MISSED: Harm = Harm::whole("its addresses count as nobody's");
    if let Some(status) = object.get("status").filter(|status| report.expect_map(status, MISSED)) {
        unknown_fields(&status, NODE_STATUS, &["addresses"], report);
        if let Some(items) = status.get("addresses") {
            for item in report.expect_list(&items, MISSED) {
                if !report.expect_map(&item, MISSED) {
                    continue;
                }
                unknown_fields(&item, &["type", "address"], &["address"], report);
                let Some(address) = item.get("address") else { continue };
                match address.text() {
                    // Host and DNS names stand in the same list.
                    Some(text) => addresses.extend(parse_ip(text)),
                    None => {
                        report.broken(&address, MISSED, format!("must be text, not {}", address.value()));
                    }
                }
            }
        }
    }
    Some(Node { name: metadata.name, labels: metadata.labels, addresses, pod_cidrs })
}
