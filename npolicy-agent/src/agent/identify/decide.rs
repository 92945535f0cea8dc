//! One pass over all interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::claims::{LocalPod, LocalPods};
use super::finding::{Finding, Mismatch};
use super::foreign::{Borders, Foreign};
use super::{Decision, Facts, Memory, PATIENCE};
use crate::model::PodKey;
use crate::watch::links::{Forwarding, HostLink, Links};

/// Out of which interfaces the node sends what is for an address.
pub(super) struct Routes {
    hosts: FxHashMap<IpAddr, Vec<u32>>,
    /// Longest first.
    prefixes: Vec<(IpNet, u32)>,
}

impl Routes {
    /// Of all veths and their bridges; default routes tell nothing.
    pub(super) fn new(links: &Links) -> Self {
        let mut routes = Self { hosts: FxHashMap::default(), prefixes: Vec::new() };
        let of_links = links.host.values().map(|link| (link.ifindex, &link.routes));
        let of_bridges = links.bridges.iter().map(|(&ifindex, bridge)| (ifindex, &bridge.routes));
        for (ifindex, of_one) in of_links.chain(of_bridges) {
            for &to in of_one {
                if to.prefix_len() == to.max_prefix_len() {
                    routes.hosts.entry(to.addr()).or_default().push(ifindex);
                } else if to.prefix_len() > 0 {
                    routes.prefixes.push((to, ifindex));
                }
            }
        }
        routes.prefixes.sort_by_key(|(to, _)| std::cmp::Reverse(to.prefix_len()));
        routes
    }

    /// Where host routes to an address lead.
    fn hosts(&self, address: IpAddr) -> &[u32] {
        self.hosts.get(&address).map_or(&[], |found| found)
    }

    /// Where the longest other route leads.
    fn prefix(&self, address: IpAddr) -> Option<u32> {
        self.prefixes.iter().find(|(to, _)| to.contains(&address)).map(|&(_, ifindex)| ifindex)
    }
}

/// What a second fact says of an interface that has an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Evidence {
    /// The address is there.
    Agrees,
    /// Nothing, yet.
    Missing,
    /// Host routes to the address lead out of these other interfaces.
    RoutedElsewhere(Vec<u32>),
    /// The peer's link-layer address was seen at this other port of the bridge.
    SeenElsewhere(u32),
}

/// What the second fact says: routes for an interface that is routed, the forwarding entry for a port of a bridge.
pub(super) fn evidence(link: &HostLink, address: IpAddr, routes: &Routes) -> Evidence {
    let hosts = routes.hosts(address);
    let way = link.bridge.unwrap_or(link.ifindex);
    let elsewhere: Vec<u32> = hosts.iter().copied().filter(|&ifindex| ifindex != way).collect();
    if !elsewhere.is_empty() {
        return Evidence::RoutedElsewhere(elsewhere);
    }
    if link.bridge.is_none() {
        let leads_here = !hosts.is_empty() || routes.prefix(address) == Some(link.ifindex);
        return if leads_here { Evidence::Agrees } else { Evidence::Missing };
    }
    match link.forwarding {
        Forwarding::Here => Evidence::Agrees,
        Forwarding::Unknown => Evidence::Missing,
        Forwarding::Elsewhere(port) => Evidence::SeenElsewhere(port),
    }
}

/// Every address that an interface has or had, ascending.
pub(super) fn addresses_of<'a>(link: &'a HostLink, memory: &'a Memory) -> impl Iterator<Item = IpAddr> + 'a {
    let remembered = memory.addresses.iter().copied();
    remembered.chain(link.addresses.iter().copied().filter(|address| !memory.addresses.contains(address)))
}

/// What the claims on an interface's addresses come to.
#[derive(Default)]
struct Claims {
    /// Young, and a second fact agrees.
    proven: Vec<(PodKey, IpAddr)>,
    /// Young, and a second fact is missing; or older.
    open: BTreeSet<PodKey>,
    /// What contradicts; whether it keeps the interface from being identified.
    mismatches: Vec<(Mismatch, bool)>,
}

/// Everything that one pass looks at.
pub(super) struct Pass<'a> {
    facts: &'a Facts<'a>,
    pods: &'a LocalPods,
    memories: &'a FxHashMap<u32, Memory>,
    borders: Borders<'a>,
    routes: Routes,
    findings: BTreeSet<Finding>,
    again_at: Option<Instant>,
}

type Outcome = (BTreeMap<u32, Decision>, BTreeSet<Finding>, Option<Instant>);

impl<'a> Pass<'a> {
    pub(super) fn new(
        facts: &'a Facts<'a>,
        node: &Arc<str>,
        pods: &'a LocalPods,
        memories: &'a FxHashMap<u32, Memory>,
    ) -> Self {
        let node = facts.state.node(node);
        let of_node = node.into_iter().flat_map(|node| &node.pod_cidrs);
        let borders = Borders {
            links: facts.links,
            node_addresses: node.map_or(&[], |node| &node.addresses),
            pod_ranges: of_node.chain(facts.pod_cidrs).copied().collect(),
            exclude: facts.exclude,
        };
        let routes = Routes::new(facts.links);
        Self { facts, pods, memories, borders, routes, findings: BTreeSet::new(), again_at: None }
    }

    /// Decides for every interface.
    ///
    /// 1. A foreign one is foreign.
    /// 2. One whose claims are proven for one pod is that pod's; it stays the pod's that it was found to be.
    /// 3. An address that several interfaces have is the one's that was found to be the pod's before.
    /// 4. Another interface in an identified pod's namespace is its second one.
    /// 5. Of what is left, one that was a pod's is nobody else's; the others may be their claimants', or any pod's that has
    ///    no interface yet.
    pub(super) fn decide(mut self) -> Outcome {
        let mut decisions = BTreeMap::new();
        let mut open = BTreeMap::new();
        let mut proofs: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for link in self.facts.links.host.values() {
            let memory = &self.memories[&link.ifindex];
            let claims = self.claims(link, memory);
            let is_listed = addresses_of(link, memory).any(|address| self.pods.at(address).next().is_some());
            let is_claimed = memory.owner.is_some() || is_listed;
            if let Some(reason) = self.borders.foreign(link, is_claimed, addresses_of(link, memory)) {
                self.tell_foreign(link, &reason);
                decisions.insert(link.ifindex, Decision::Foreign(reason));
                continue;
            }
            for engine in &link.engines {
                self.findings.insert(Finding::OtherEngine { interface: link.name.clone(), engine: engine.clone() });
            }
            // What a pod adds to its interface makes nobody doubt the address that it was found by.
            let line = (self.facts.line_addresses)(link.ifindex);
            let is_its_own = |(pod, address): &(PodKey, IpAddr)| {
                let was_its = memory.owner.as_ref().is_some_and(|owner| owner.0 == *pod && self.is_alive(owner));
                was_its || line.contains(address)
            };
            let mut is_contradicted =
                claims.mismatches.iter().any(|&(_, forbids)| forbids) && !claims.proven.iter().any(is_its_own);
            let mut owner = None;
            if !is_contradicted {
                match self.choose(memory, &claims, &line) {
                    Ok(chosen) => owner = chosen,
                    Err(several) => {
                        is_contradicted = true;
                        self.tell_mismatch(link, several, true);
                    }
                }
            }
            let kept = if is_contradicted { None } else { self.keeps(memory) };
            for (mismatch, _) in claims.mismatches {
                self.tell_mismatch(link, mismatch, is_contradicted);
            }
            owner = owner.or(kept);
            match owner {
                Some(pod) => {
                    let of_pod = claims.proven.into_iter().filter(|(claimant, _)| *claimant == pod);
                    proofs.insert(link.ifindex, of_pod.map(|(_, address)| address).collect());
                    decisions.insert(link.ifindex, Decision::Pod(pod));
                }
                None if is_contradicted => drop(decisions.insert(link.ifindex, Decision::Contradicted)),
                None => drop(open.insert(link.ifindex, claims.open)),
            }
        }
        self.settle_duplicates(&mut decisions, &proofs);
        let owners: FxHashMap<i32, PodKey> = (self.facts.links.host.values())
            .filter_map(|link| match decisions.get(&link.ifindex) {
                Some(Decision::Pod(pod)) => Some((link.netns_id, pod.clone())),
                _ => None,
            })
            .collect();
        let identified: FxHashSet<PodKey> = owners.values().cloned().collect();
        for (ifindex, claimants) in open {
            let link = &self.facts.links.host[&ifindex];
            let decision = match owners.get(&link.netns_id) {
                Some(pod) if !link.addresses.is_empty() && claimants.is_empty() => {
                    let reason = Foreign::SecondOf(pod.clone());
                    self.tell_foreign(link, &reason);
                    Decision::Foreign(reason)
                }
                _ => self.candidates(link, claimants, &identified),
            };
            decisions.insert(ifindex, decision);
        }
        self.tell_interfaces_without_pod(&decisions);
        self.tell_pods_without_interface(&identified);
        (decisions, self.findings, self.again_at)
    }

    /// Weighs what pods claim of an interface's addresses.
    fn claims(&self, link: &HostLink, memory: &Memory) -> Claims {
        let mut claims = Claims::default();
        let line = (self.facts.line_addresses)(link.ifindex);
        for address in addresses_of(link, memory) {
            let is_young = |local: &LocalPod| {
                let claim = local.claim(address).expect("the index knows who lists an address");
                line.contains(&address) || local.is_young(claim, link.first_seen, self.facts.boot)
            };
            let (young, older): (Vec<_>, Vec<_>) = self.pods.at(address).partition(|(_, local)| is_young(local));
            claims.open.extend(older.into_iter().map(|(pod, _)| pod.clone()));
            // Of several, the one whose the interface was; else the one with the newest sandbox has it, as everywhere.
            let was_its = |(pod, local): &(&PodKey, &LocalPod)| {
                memory.owner.as_ref().is_some_and(|(owner, uid)| owner == *pod && local.has_uid(uid))
            };
            let rank = |claim: &(&'a PodKey, &'a LocalPod)| (was_its(claim), &claim.1.pod().age, claim.0);
            let newest = young.into_iter().max_by(|a, b| rank(a).cmp(&rank(b)));
            let Some((pod, _)) = newest else { continue };
            let has_agreed = memory.agreed.contains(&address);
            match evidence(link, address, &self.routes) {
                Evidence::Agrees => claims.proven.push((pod.clone(), address)),
                Evidence::Missing if has_agreed => claims.proven.push((pod.clone(), address)),
                Evidence::Missing => drop(claims.open.insert(pod.clone())),
                Evidence::RoutedElsewhere(to) => {
                    let to = to.into_iter().map(|ifindex| self.name_of(ifindex)).collect();
                    claims.mismatches.push((Mismatch::RoutedElsewhere { address, to }, true));
                }
                Evidence::SeenElsewhere(port) => {
                    // Any port can send under any link-layer address: what was right does not become wrong by that.
                    claims.mismatches.push((Mismatch::SeenElsewhere { port: self.name_of(port) }, !has_agreed));
                    if has_agreed {
                        claims.proven.push((pod.clone(), address));
                    }
                }
            }
        }
        claims
    }

    /// The one pod for which claims are proven: whose the interface was, or whose address its line has, or the only one.
    /// After a pod is gone its interface is nobody's, whoever has the address now.
    /// An error if it may be one of several.
    fn choose(&self, memory: &Memory, claims: &Claims, line: &[IpAddr]) -> Result<Option<PodKey>, Mismatch> {
        if memory.owner.as_ref().is_some_and(|owner| !self.is_alive(owner)) {
            return Ok(None);
        }
        let pods: BTreeSet<&PodKey> = claims.proven.iter().map(|(pod, _)| pod).collect();
        if let Some((owner, _)) = memory.owner.as_ref().filter(|owner| pods.contains(&owner.0)) {
            return Ok(Some(owner.clone()));
        }
        if pods.len() < 2 {
            return Ok(pods.first().copied().cloned());
        }
        let of_line = claims.proven.iter().filter(|(_, address)| line.contains(address)).map(|(pod, _)| pod);
        let of_line: BTreeSet<&PodKey> = of_line.collect();
        if of_line.len() == 1 {
            return Ok(of_line.first().copied().cloned());
        }
        Err(Mismatch::SeveralPods(pods.into_iter().cloned().collect()))
    }

    /// Whose the interface was, as long as that pod lists no address at all: a status without addresses takes none away.
    fn keeps(&self, memory: &Memory) -> Option<PodKey> {
        let owner = memory.owner.as_ref().filter(|owner| self.is_alive(owner))?;
        self.pods.get(&owner.0)?.claims().is_empty().then(|| owner.0.clone())
    }

    fn is_alive(&self, (pod, uid): &(PodKey, Arc<str>)) -> bool {
        self.pods.get(pod).is_some_and(|local| local.has_uid(uid))
    }

    /// Where several interfaces have proof by one address, it is the one's that was found to be the pod's before; if none
    /// was, or several were not, nobody knows.
    fn settle_duplicates(&mut self, decisions: &mut BTreeMap<u32, Decision>, proofs: &BTreeMap<u32, Vec<IpAddr>>) {
        let mut by_address: BTreeMap<IpAddr, Vec<u32>> = BTreeMap::new();
        for (&ifindex, addresses) in proofs {
            for &address in addresses {
                by_address.entry(address).or_default().push(ifindex);
            }
        }
        for (address, ifindexes) in by_address.into_iter().filter(|(_, ifindexes)| ifindexes.len() > 1) {
            for ifindex in ifindexes {
                let memory = &self.memories[&ifindex];
                let is_lines = (self.facts.line_addresses)(ifindex).contains(&address);
                let was_pods = memory.owner.as_ref().is_some_and(|owner| self.is_alive(owner));
                if is_lines || was_pods {
                    continue;
                }
                decisions.insert(ifindex, Decision::Contradicted);
                self.tell_mismatch(&self.facts.links.host[&ifindex], Mismatch::AddressTwice(address), true);
            }
        }
    }

    /// Whose an interface may be: the claimants', or any pod's that has no interface and no younger address. While the API
    /// server is silent a pod may exist that is not known. What was a pod's, also before the agent's start, is no other's.
    fn candidates(&mut self, link: &HostLink, claimants: BTreeSet<PodKey>, identified: &FxHashSet<PodKey>) -> Decision {
        let memory = &self.memories[&link.ifindex];
        let mut may_be_pods = addresses_of(link, memory).any(|address| self.borders.is_inside(address));
        may_be_pods |= !claimants.is_empty();
        let was_pods = memory.owner.is_some() || !(self.facts.line_addresses)(link.ifindex).is_empty();
        if was_pods || !may_be_pods {
            return Decision::Unidentified;
        }
        // A pod may have come between the last word and its interface.
        if self.facts.pods_known_at.is_none_or(|known_at| known_at < link.first_seen) {
            return if memory.has_candidates { Decision::Doubtful } else { Decision::Unidentified };
        }
        let has_younger = |local: &LocalPod| {
            local.claims().iter().any(|&(_, claim)| local.is_young(claim, link.first_seen, self.facts.boot))
        };
        let free = self.pods.iter().filter(|(pod, local)| !identified.contains(*pod) && !has_younger(local));
        let mut candidates: BTreeSet<PodKey> = free.map(|(pod, _)| pod.clone()).collect();
        candidates.extend(claimants.into_iter().filter(|pod| !identified.contains(pod)));
        if candidates.is_empty() {
            return Decision::Unidentified;
        }
        // The server may fall silent without a word.
        let again_at = self.facts.now + PATIENCE;
        self.again_at = Some(self.again_at.map_or(again_at, |sooner| sooner.min(again_at)));
        Decision::Candidates(candidates.into_iter().collect())
    }

    fn tell_foreign(&mut self, link: &HostLink, reason: &Foreign) {
        self.findings.insert(Finding::Foreign { interface: link.name.clone(), reason: reason.clone() });
    }

    fn tell_mismatch(&mut self, link: &HostLink, mismatch: Mismatch, is_closed: bool) {
        self.findings.insert(Finding::Mismatch { interface: link.name.clone(), mismatch, is_closed });
    }

    /// Tells of interfaces that have been unidentified for a while. A contradiction says more.
    fn tell_interfaces_without_pod(&mut self, decisions: &BTreeMap<u32, Decision>) {
        for link in self.facts.links.host.values() {
            let is_told = self
                .findings
                .iter()
                .any(|finding| matches!(finding, Finding::Mismatch { interface, .. } if *interface == link.name));
            if decisions[&link.ifindex] != Decision::Unidentified || is_told || !self.is_due(link.first_seen) {
                continue;
            }
            let addresses = addresses_of(link, &self.memories[&link.ifindex]).collect();
            self.findings.insert(Finding::InterfaceWithoutPod { interface: link.name.clone(), addresses });
        }
    }

    /// Tells of pods whose address no interface has.
    fn tell_pods_without_interface(&mut self, identified: &FxHashSet<PodKey>) {
        let of_link = |link: &'a HostLink| addresses_of(link, &self.memories[&link.ifindex]);
        let seen: FxHashSet<IpAddr> = self.facts.links.host.values().flat_map(of_link).collect();
        let pods = self.pods;
        for (pod, local) in pods.iter().filter(|(pod, _)| !identified.contains(*pod)) {
            let addresses: Vec<IpAddr> = local.claims().iter().map(|&(address, _)| address).collect();
            // What was listed before this boot will be listed anew, and an interface that has the address tells of itself.
            let is_current = |&(_, claim): &_| local.is_of_this_boot(claim, self.facts.boot);
            let is_seen = addresses.iter().any(|address| seen.contains(address));
            let Some(learned) = local.claims().iter().filter(|at| is_current(at)).map(|(_, claim)| claim.learned).max()
            else {
                continue;
            };
            if is_seen || !self.is_due(learned) {
                continue;
            }
            let mut others = self.facts.links.unenforceable.iter();
            self.findings.insert(match others.find(|other| addresses.iter().any(|a| other.addresses.contains(a))) {
                Some(other) => Finding::NotEnforceable {
                    pod: pod.clone(),
                    interface: other.name.clone(),
                    kind: other.kind.clone(),
                },
                None => Finding::PodWithoutInterface { pod: pod.clone(), addresses },
            });
        }
    }

    /// Whether something has been so for a while; if not, there is to be another pass when it has.
    fn is_due(&mut self, since: Instant) -> bool {
        let due = since + PATIENCE;
        if due <= self.facts.now {
            return true;
        }
        self.again_at = Some(self.again_at.map_or(due, |sooner| sooner.min(due)));
        false
    }

    fn name_of(&self, ifindex: u32) -> String {
        let links = self.facts.links;
        let host = links.host.get(&ifindex).map(|link| &link.name);
        let name = host.or_else(|| links.bridges.get(&ifindex).map(|bridge| &bridge.name));
        name.cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }
}
