//! EndpointSlices of Services whose author gave none: a cluster would make them from the pods that the Service selects.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::objects::{Backing, Target};
use crate::model::{Endpoint, EndpointSlice, Pod, ServiceKey, SliceKey, SlicePort};

/// The backends that a Service selects.
pub(super) struct Derived {
    /// One slice for each set of ports, since pods may give different numbers to a name; in no order of names yet.
    pub(super) slices: Vec<EndpointSlice>,
    /// Pods that are backends.
    pub(super) pods: usize,
    /// Pods that would be, had they an address.
    pub(super) without_address: usize,
}

/// `no EndpointSlice of it is given: its backends are the 2 pods that it selects`
impl fmt::Display for Derived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = |count| if count == 1 { "pod" } else { "pods" };
        f.write_str("no EndpointSlice of it is given: ")?;
        match self.pods {
            0 => f.write_str("it selects no pod with an address and has no backends")?,
            1 => f.write_str("its backend is the one pod that it selects")?,
            count => write!(f, "its backends are the {count} pods that it selects")?,
        }
        match self.without_address {
            0 => Ok(()),
            count => write!(f, "; {count} {} without an address left out", pods(count)),
        }
    }
}

/// Makes the slices that the EndpointSlice controller would make: of the pods in the Service's namespace that its selector
/// matches and whose containers have not ended, ready or not, with every address. A port whose name a pod does not have
/// leads to nothing there. The slices are named after the Service; `is_taken` says which names others have.
pub(super) fn derive_slices<'a>(
    service: &ServiceKey,
    backing: &Backing,
    pods: impl Iterator<Item = &'a Pod>,
    is_taken: impl Fn(&SliceKey) -> bool,
) -> Derived {
    let selected = |pod: &&Pod| {
        pod.key.namespace == service.namespace && !pod.phase.is_finished() && backing.selector.matches(&pod.labels)
    };
    let mut by_ports: BTreeMap<Vec<SlicePort>, Vec<Endpoint>> = BTreeMap::new();
    let (mut backends, mut without_address) = (0, 0);
    for pod in pods.filter(selected) {
        if pod.addresses.is_empty() {
            without_address += 1;
            continue;
        }
        backends += 1;
        let endpoints = pod.addresses.iter().map(|&address| Endpoint { address, node: pod.node.clone() });
        by_ports.entry(ports_at(pod, backing)).or_default().extend(endpoints);
    }
    let mut names = (1..).map(|number| match number {
        1 => format!("{}-derived", service.name),
        _ => format!("{}-derived-{number}", service.name),
    });
    let mut free_name = || -> SliceKey {
        let keys = names.by_ref().map(|name| SliceKey { namespace: service.namespace.clone(), name: name.into() });
        keys.into_iter().find(|key| !is_taken(key)).expect("the names do not end")
    };
    let slices = by_ports.into_iter().map(|(ports, endpoints)| EndpointSlice {
        key: free_name(),
        service: Some(service.name.clone()),
        ports,
        endpoints,
    });
    Derived { slices: slices.collect(), pods: backends, without_address }
}

/// Where the ports of a Service lead at a pod: of several container ports with the name, to the first.
fn ports_at(pod: &Pod, backing: &Backing) -> Vec<SlicePort> {
    let at_pod = |target: &Target, protocol| match target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod.numbers_of(name, protocol).next(),
    };
    let ports = backing.ports.iter().filter_map(|port| {
        let number = at_pod(&port.target, port.protocol)?;
        Some(SlicePort { name: Arc::clone(&port.name), protocol: port.protocol, number })
    });
    ports.collect()
}
