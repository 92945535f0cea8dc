//! EndpointSlice (`discovery.k8s.io/v1`): where a Service leads. What is left out of one is an error, as in a Service.

use std::sync::Arc;

use npolicy_common::Family;

use super::cursor::{At, Harm, Report};
use super::metadata::{Scope, read_metadata};
use super::net::parse_ip;
use super::service::{SLICE_PORT_LEFT_OUT, read_name, read_number, read_protocol, unknown_fields};
use crate::model::{Endpoint, EndpointSlice, SliceKey, SlicePort, family};

/// `apiVersion` of a slice.
pub(super) const VERSION: &str = "discovery.k8s.io/v1";
/// The label of a slice that names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

const ENDPOINT_LEFT_OUT: Harm = Harm::whole("the endpoint is left out, so what it denies is not seen");

/// Fields of `discovery.k8s.io/v1.EndpointSlice` and its items.
const SLICE: &[&str] = &["apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"];
const SLICE_PORT: &[&str] = &["name", "protocol", "port", "appProtocol"];
const ENDPOINT: &[&str] =
    &["addresses", "conditions", "deprecatedTopology", "hints", "hostname", "nodeName", "targetRef", "zone"];

/// Reads a slice. `None`: it has no name, and this was reported.
pub(super) fn read_slice(object: &At<'_>, report: &mut Report<'_>) -> Option<EndpointSlice> {
    let known_before = report.found.len();
    let metadata = read_metadata(object, "EndpointSlice", Scope::Namespaced, report)?;
    let service = metadata.labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty()).map(Arc::from);
    if service.is_none() && report.found.len() > known_before {
        const NOBODYS: Harm = Harm::whole("its endpoints are no Service's");
        let at = object.get("metadata");
        report.broken(
            at.as_ref().unwrap_or(object),
            NOBODYS,
            format!("no label `{SERVICE_NAME_LABEL}` that can be read"),
        );
    }
    unknown_fields(object, SLICE, SLICE, report);
    let mut slice = EndpointSlice {
        key: SliceKey { namespace: metadata.namespace, name: metadata.name },
        service,
        ports: Vec::new(),
        endpoints: Vec::new(),
    };
    let addresses = read_address_type(object, report);
    if addresses == AddressType::Names {
        // kube-proxy passes it over, whatever its endpoints are called.
        return Some(slice);
    }
    if let Some(ports) = object.get("ports") {
        for item in report.expect_list(&ports, SLICE_PORT_LEFT_OUT) {
            slice.ports.extend(read_slice_port(&item, report));
        }
    }
    if let Some(endpoints) = object.get("endpoints") {
        for item in report.expect_list(&endpoints, ENDPOINT_LEFT_OUT) {
            slice.endpoints.extend(read_endpoint(&item, addresses, report));
        }
    }
    Some(slice)
}

/// `addressType`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AddressType {
    /// IPv4 or IPv6.
    Of(Family),
    /// FQDN.
    Names,
    /// Neither: the addresses say it themselves.
    Unknown,
}

fn read_address_type(object: &At<'_>, report: &mut Report<'_>) -> AddressType {
    const BY_ADDRESS: Harm = Harm::part("every IP address in it counts");
    let Some(at) = object.get("addressType") else {
        report.broken(object, BY_ADDRESS, "`addressType` is missing, expected IPv4, IPv6 or FQDN");
        return AddressType::Unknown;
    };
    match at.text() {
        Some("IPv4") => AddressType::Of(Family::V4),
        Some("IPv6") => AddressType::Of(Family::V6),
        Some("FQDN") => AddressType::Names,
        _ => {
            let problem = format!("unknown address type {}, expected IPv4, IPv6 or FQDN", at.value());
            report.broken(&at, BY_ADDRESS, problem);
            AddressType::Unknown
        }
    }
}

/// Reads a port of a slice. One without a number is a port of no Service with addresses.
fn read_slice_port(at: &At<'_>, report: &mut Report<'_>) -> Option<SlicePort> {
    if !report.expect_map(at, SLICE_PORT_LEFT_OUT) {
        return None;
    }
    unknown_fields(at, SLICE_PORT, SLICE_PORT, report);
    let number = read_number(&at.get("port")?, SLICE_PORT_LEFT_OUT, report);
    let protocol = read_protocol(at, SLICE_PORT_LEFT_OUT, report);
    let name = read_name(at, SLICE_PORT_LEFT_OUT, report);
    Some(SlicePort { name: name?, protocol: protocol?, number: number? })
}

/// Reads an endpoint, ready or not. An address of another family than the slice's is one that no slice has; it counts,
/// since more backends deny more.
fn read_endpoint(at: &At<'_>, addresses: AddressType, report: &mut Report<'_>) -> Option<Endpoint> {
    if !report.expect_map(at, ENDPOINT_LEFT_OUT) {
        return None;
    }
    unknown_fields(at, ENDPOINT, &["addresses", "nodeName"], report);
    let Some(list_at) = at.get("addresses") else {
        report.broken(at, ENDPOINT_LEFT_OUT, "`addresses` is missing");
        return None;
    };
    let items = report.expect_list(&list_at, ENDPOINT_LEFT_OUT);
    let Some(first) = items.first() else {
        if list_at.items().is_some() {
            report.broken(&list_at, ENDPOINT_LEFT_OUT, "an empty list");
        }
        return None;
    };
    let Some(address) = first.text().and_then(parse_ip) else {
        report.broken(first, ENDPOINT_LEFT_OUT, format!("{} is not an IP address", first.value()));
        return None;
    };
    if let AddressType::Of(wanted) = addresses
        && family(address) != wanted
    {
        report.broken(first, Harm::part("it counts"), format!("{address} is not of the slice's `addressType`"));
    }
    let node = match at.get("nodeName") {
        None => None,
        Some(node) => match node.text() {
            Some(name) => Some(name).filter(|name| !name.is_empty()).map(Arc::from),
            None => {
                const NO_NODE: Harm = Harm::whole("the endpoint counts as being on no node");
                report.broken(&node, NO_NODE, format!("must be text, not {} (quote it)", node.value()));
                None
            }
        },
    };
    Some(Endpoint { address, node })
}
