//! Finding the ends of a question in the cluster.

use std::net::IpAddr;
use std::sync::Arc;

use npolicy_common::Family;

use super::question::{End, Question, Unanswerable};
use crate::compile::explain::Remote;
use crate::model::{ClusterState, Frontend, Owner, Pod, PodKey, PodNetwork, Service, ServiceKey, family, of_family};

/// An end that packets come from or go to, found in the cluster.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) remote: Remote<'a>,
    /// The pod, if policy can apply to it.
    pub(super) subject: Option<&'a Arc<Pod>>,
    /// The node that makes this end's packets itself.
    pub(super) made_on: Option<&'a Arc<str>>,
}

/// Where a connection leads.
pub(super) enum Target<'a> {
    /// To an end.
    End(Found<'a>),
    /// To an address that is a Service's: on every port, or on the one asked for.
    Service {
        service: &'a Arc<Service>,
        address: IpAddr,
        /// `None`: no Service has the port there.
        frontend: Option<Frontend<'a>>,
    },
}

/// The families of an end, its first choice first. One without any address could have either.
fn families(state: &ClusterState, end: &End) -> Result<Vec<Family>, Unanswerable> {
    const EITHER: [Family; 2] = [Family::V4, Family::V6];
    let of = |addresses: &[IpAddr]| -> Vec<Family> {
        if addresses.is_empty() { EITHER.into() } else { addresses.iter().map(|&address| family(address)).collect() }
    };
    match end {
        End::Address(address) => Ok(vec![family(*address)]),
        End::Node(name) => {
            let node = state.node(name).ok_or_else(|| Unanswerable::NoNode(name.clone()))?;
            Ok(of(&node.addresses))
        }
        End::Pod(key) => {
            let pod = state.pod(key).ok_or_else(|| Unanswerable::NoPod(key.clone()))?;
            match (pod.network, pod.node.as_ref().and_then(|name| state.node(name))) {
                (PodNetwork::Host, Some(node)) if !node.addresses.is_empty() => Ok(of(&node.addresses)),
                (PodNetwork::Own | PodNetwork::Host, _) => Ok(of(&pod.addresses)),
            }
        }
        End::Service(key) => {
            let service = state.service(key).ok_or_else(|| Unanswerable::NoService(key.clone()))?;
            if service.cluster_addresses.is_empty() {
                return Err(Unanswerable::NoClusterAddress { service: key.clone(), backends: pods_behind(state, key) });
            }
            Ok(of(&service.cluster_addresses))
        }
    }
}

/// The pods that a Service's slices lead to, ascending.
fn pods_behind(state: &ClusterState, service: &ServiceKey) -> Vec<PodKey> {
    let addresses = state.slices_of(service).flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address);
    let pods = addresses.filter_map(|address| match state.owner(address) {
        Owner::Pod(pod) => Some(pod.key.clone()),
        Owner::Service(_) | Owner::Node(_) | Owner::Outside => None,
    });
    let mut pods: Vec<_> = pods.collect();
    pods.sort();
    pods.dedup();
    pods
}

/// The family in which a question is judged.
pub(super) fn choose_family(state: &ClusterState, question: &Question) -> Result<Family, Unanswerable> {
    if let End::Service(key) = &question.from {
        return Err(Unanswerable::ServiceAsSource(key.clone()));
    }
    let (from, to) = (families(state, &question.from)?, families(state, &question.to)?);
    match question.family {
        Some(family) => {
            for (end, families) in [(&question.from, &from), (&question.to, &to)] {
                if !families.contains(&family) {
                    return Err(Unanswerable::NoAddress { end: end.clone(), family });
                }
            }
            Ok(family)
        }
        None => from
            .into_iter()
            .find(|family| to.contains(family))
            .ok_or_else(|| Unanswerable::NoCommonFamily(question.from.clone(), question.to.clone())),
    }
}

/// Finds an end that is no Service.
pub(super) fn find<'a>(state: &'a ClusterState, end: &'a End, wanted: Family) -> Result<Found<'a>, Unanswerable> {
    let remote = |owner, address| Remote { owner, address, family: wanted, is_own_node: false, is_self: false };
    match end {
        End::Service(key) => Err(Unanswerable::ServiceAsSource(key.clone())),
        End::Address(address) => Ok(at(state, *address)),
        End::Node(name) => {
            let node = state.node(name).ok_or_else(|| Unanswerable::NoNode(name.clone()))?;
            let address = of_family(&node.addresses, wanted);
            Ok(Found { remote: remote(Owner::Node(node), address), subject: None, made_on: Some(&node.name) })
        }
        End::Pod(key) => {
            let pod = state.pod(key).ok_or_else(|| Unanswerable::NoPod(key.clone()))?;
            if pod.phase.is_finished() {
                return Err(Unanswerable::Finished(key.clone()));
            }
            if pod.network == PodNetwork::Host {
                let node = pod.node.as_ref().and_then(|name| state.node(name));
                let owner = node.map_or(Owner::Outside, Owner::Node);
                let address = node.and_then(|node| of_family(&node.addresses, wanted));
                let address = address.or_else(|| of_family(&pod.addresses, wanted));
                // A node that nobody names yet can be any.
                if node.is_none() && address.is_none() && !pod.is_planned() {
                    return Err(Unanswerable::NotReady(key.clone()));
                }
                return Ok(Found { remote: remote(owner, address), subject: None, made_on: pod.node.as_ref() });
            }
            match of_family(&pod.addresses, wanted) {
                None if pod.is_planned() => {
                    Ok(Found { remote: remote(Owner::Pod(pod), None), subject: Some(pod), made_on: None })
                }
                None => Err(Unanswerable::NotReady(key.clone())),
                // A newer pod may have it.
                Some(address) => Ok(at(state, address)),
            }
        }
    }
}

/// Whoever has an address.
pub(super) fn at(state: &ClusterState, address: IpAddr) -> Found<'_> {
    let remote = Remote::at(state, address);
    let subject = if let Owner::Pod(pod) = remote.owner { Some(pod) } else { None };
    Found { remote, subject, made_on: None }
}
