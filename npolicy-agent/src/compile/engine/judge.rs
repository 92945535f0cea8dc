//! Judging the steps of a question, each by the ruleset of its subject.

use std::net::IpAddr;
use std::sync::Arc;

use npolicy_common::{Direction, Family, FlowProtocol, Verdict};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::answer::Seen;
use super::ends::{Found, Target, at, choose_family, find};
use super::possible;
use super::question::{End, Question, Unanswerable};
use crate::compile::classes::{Bounds, ClassFinder, Unaddressed};
use crate::compile::compiler::{Compiler, Scope};
use crate::compile::explain::Remote;
use crate::compile::plan::{BackendFacts, ClassIndex, ClassKey, Fact, Plan, ServiceFacts};
use crate::compile::ports::Bundle;
use crate::compile::ruleset::{Peer, Ruleset};
use crate::model::{
    Backend, ClusterMatch, ClusterPeer, ClusterState, Frontend, FrontendKind, Node, Owner, Pod, PortProtocol, Service,
    Tier, TrafficPolicy, family, of_family,
};

/// A cluster, compiled for questions.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) state: ClusterState,
    plan: Plan,
    unaddressed: Unaddressed,
    finder: ClassFinder,
    /// Where some Service has a frontend: most addresses are none, and need no look at the Services.
    virtual_addresses: FxHashSet<IpAddr>,
}

/// One judged step: the egress of the source or the ingress of the destination.
pub(super) struct Step<'a> {
    pub(super) direction: Direction,
    pub(super) subject: &'a Arc<Pod>,
    pub(super) remote: Remote<'a>,
    /// The destination's port, 0 where there is none.
    pub(super) port: u16,
    pub(super) seen: Seen,
    pub(super) verdict: Verdict,
}

pub(super) type Steps<'a> = SmallVec<[Step<'a>; 2]>;

/// What came of a question.
pub(super) struct Outcome<'a> {
    pub(super) family: Family,
    pub(super) is_self: bool,
    pub(super) verdict: Verdict,
    pub(super) steps: Steps<'a>,
    pub(super) service: Option<Through<'a>>,
}

/// The Service that was asked.
pub(super) struct Through<'a> {
    pub(super) service: &'a Arc<Service>,
    pub(super) address: IpAddr,
    pub(super) has_port: bool,
    pub(super) backends: Vec<Behind<'a>>,
}

impl Through<'_> {
    /// Whether some backends accept and some do not.
    pub(super) fn is_mixed(&self) -> bool {
        let accepting = self.backends.iter().filter(|behind| behind.verdict == Verdict::Accept).count();
        (1..self.backends.len()).contains(&accepting)
    }
}

/// One backend, judged.
pub(super) struct Behind<'a> {
    pub(super) backend: Backend,
    pub(super) owner: Owner<'a>,
    pub(super) verdict: Verdict,
    pub(super) steps: Steps<'a>,
}

impl Compiled {
    pub(super) fn new(state: ClusterState) -> Self {
        let (plan, unaddressed) = Compiler::new(Scope::Everything).compile_unaddressed(&state);
        let finder = ClassFinder::new(&plan);
        let virtual_addresses = state.virtual_addresses().collect();
        Self { state, plan, unaddressed, finder, virtual_addresses }
    }

    /// Judges a question step by step; `rows` are remembered from one to the next.
    pub(super) fn judge<'a>(&'a self, rows: &mut Rows, question: &'a Question) -> Result<Outcome<'a>, Unanswerable> {
        let family = choose_family(&self.state, question)?;
        let (protocol, port) = question.protocol.flow();
        let from = find(&self.state, &question.from, family)?;
        let target = self.target(question, &from, family)?;
        let mut judge = Judge { compiled: self, rows, family, protocol, question, from };
        match target {
            Target::End(to) => judge.directly(to, port),
            Target::Service { service, address, frontend } => judge.through(service, address, frontend, port),
        }
    }

    fn target<'a>(
        &'a self,
        question: &'a Question,
        from: &Found<'a>,
        wanted: Family,
    ) -> Result<Target<'a>, Unanswerable> {
        let (found, address) = match &question.to {
            End::Service(key) => {
                let service = self.state.service(key).ok_or_else(|| Unanswerable::NoService(key.clone()))?;
                let address = of_family(&service.cluster_addresses, wanted)
                    .ok_or_else(|| Unanswerable::NoAddress { end: question.to.clone(), family: wanted })?;
                (None, address)
            }
            end @ (End::Pod(_) | End::Node(_) | End::Address(_)) => {
                let found = find(&self.state, end, wanted)?;
                let Some(address) = found.remote.address else { return Ok(Target::End(found)) };
                (Some(found), address)
            }
        };
        // A pod's packets to its own address never leave it.
        if let Some(found) = found.filter(|found| is_same_pod(from, found)) {
            return Ok(Target::End(found));
        }
        if self.virtual_addresses.contains(&address) {
            let at_port = question.protocol.port().and_then(|wanted| {
                self.state.frontends(address).into_iter().find(|at| (at.protocol, at.port) == wanted)
            });
            if let Some(frontend) = at_port {
                return Ok(Target::Service { service: frontend.service, address, frontend: Some(frontend) });
            }
        }
        match self.state.owner(address) {
            Owner::Service(service) => Ok(Target::Service { service, address, frontend: None }),
            Owner::Pod(_) | Owner::Node(_) | Owner::Outside => {
                Ok(Target::End(found.unwrap_or_else(|| at(&self.state, address))))
            }
        }
    }
}

/// One question being judged.
struct Judge<'a, 'r> {
    compiled: &'a Compiled,
    rows: &'r mut Rows,
    family: Family,
    protocol: FlowProtocol,
    question: &'a Question,
    from: Found<'a>,
}

impl<'a> Judge<'a, '_> {
    /// The source's egress, then the destination's ingress.
    fn directly(&mut self, to: Found<'a>, port: u16) -> Result<Outcome<'a>, Unanswerable> {
        let is_self = is_same_pod(&self.from, &to);
        let mut steps = Steps::new();
        let mut unknown = None;
        let mut add = |step: Result<Step<'a>, Unanswerable>| match step {
            Ok(step) => steps.push(step),
            Err(error) => unknown = Some(error),
        };
        if !is_self {
            if let Some(source) = self.from.subject {
                add(self.step(Direction::Egress, source, to.remote, port, &self.question.to));
            }
            if let Some(destination) = to.subject {
                let remote = Remote { is_own_node: is_own_node(self.from.made_on, destination), ..self.from.remote };
                add(self.step(Direction::Ingress, destination, remote, port, &self.question.from));
            }
        }
        let verdict = strictest(&steps);
        // Where one end denies, what is not known of the other makes no difference.
        if let Some(unknown) = unknown.filter(|_| verdict == Verdict::Accept) {
            return Err(unknown);
        }
        Ok(Outcome { family: self.family, is_self, verdict, steps, service: None })
    }

    /// By way of a Service: the source's egress to every backend that it may be sent to, and each backend's ingress.
    ///
    /// Accepted if every backend is. Without any, rules without peers decide about the Service's own port, and nobody
    /// receives.
    fn through(
        &mut self,
        service: &'a Arc<Service>,
        address: IpAddr,
        frontend: Option<Frontend<'a>>,
        port: u16,
    ) -> Result<Outcome<'a>, Unanswerable> {
        let mut backends = Vec::new();
        let mut steps = Steps::new();
        let has_port = frontend.is_some();
        if let Some(frontend) = &frontend {
            let sources = self.sources(frontend, address);
            for backend in self.usable(frontend, address) {
                backends.push(self.backend(&sources, backend)?);
            }
        }
        if let (Some(source), true) = (self.from.subject, backends.is_empty()) {
            let remote = Remote { owner: Owner::Service(service), ..Remote::at(&self.compiled.state, address) };
            steps.push(self.step(Direction::Egress, source, remote, port, &self.question.to)?);
        }
        let behind = backends.iter().map(|behind| behind.verdict).max().unwrap_or(Verdict::Accept);
        let verdict = behind.max(strictest(&steps));
        let service = Some(Through { service, address, has_port, backends });
        Ok(Outcome { family: self.family, is_self: false, verdict, steps, service })
    }

    /// The backends that the client may be sent to.
    ///
    /// 1. From a pod or a node: those that its node uses, all where nobody knows which that is.
    /// 2. From outside, to a node port under a Local policy: those of the node that has the address.
    /// 3. Else all: any node may be the one that chooses.
    fn usable(&self, frontend: &Frontend<'a>, address: IpAddr) -> Vec<Backend> {
        let node = self.from.made_on.or_else(|| self.from.subject.and_then(|pod| pod.node.as_ref()));
        if let Some(node) = node {
            return frontend.usable(Some(node)).cloned().collect();
        }
        let is_local = frontend.service.external_policy == TrafficPolicy::Local;
        match (frontend.kind, self.from.remote.owner) {
            (FrontendKind::NodePort, Owner::Outside) if is_local => {
                let nodes = self.compiled.state.nodes_at(address);
                let is_there = |backend: &&Backend| nodes.iter().any(|node| Some(&node.name) == backend.node.as_ref());
                frontend.every_backend().filter(is_there).cloned().collect()
            }
            (_, Owner::Pod(_) | Owner::Service(_) | Owner::Node(_) | Owner::Outside) => {
                frontend.every_backend().cloned().collect()
            }
        }
    }

    /// How a backend may see the client.
    ///
    /// 1. At a cluster address: as itself.
    /// 2. A node's own packets that the node itself sends on to a backend stay its own.
    /// 3. What another node sends on is no longer of a node's own making. Under a Cluster policy that node may have put
    ///    one of its own addresses in place of the client's; not every kube-proxy does.
    fn sources(&self, frontend: &Frontend<'a>, address: IpAddr) -> Sources<'a> {
        let state = &self.compiled.state;
        let named = |name: Option<&Arc<str>>| name.and_then(|name| state.node(name)).into_iter().collect();
        let sent_on_by: Vec<&Arc<Node>> = match (frontend.kind, self.from.made_on, self.from.subject) {
            (FrontendKind::Cluster, _, _) => return Sources { stays_own: true, hidden: None },
            (FrontendKind::NodePort, _, _) => state.nodes_at(address).iter().collect(),
            (FrontendKind::External, Some(_), _) => return Sources { stays_own: true, hidden: None },
            (FrontendKind::External, None, Some(pod)) => named(pod.node.as_ref()),
            (FrontendKind::External, None, None) => state.nodes().collect(),
        };
        if let (Some(own), [only]) = (self.from.made_on, &*sent_on_by)
            && only.name == *own
        {
            return Sources { stays_own: true, hidden: None };
        }
        let hides = frontend.service.external_policy == TrafficPolicy::Cluster;
        let hidden = hides.then(|| {
            let addresses = sent_on_by.into_iter().flat_map(|node| node.addresses.iter().map(move |at| (node, *at)));
            addresses.filter(|(_, address)| family(*address) == self.family).collect()
        });
        Sources { stays_own: false, hidden }
    }

    fn backend(&mut self, sources: &Sources<'a>, backend: Backend) -> Result<Behind<'a>, Unanswerable> {
        let to = at(&self.compiled.state, backend.address);
        let is_self = is_same_pod(&self.from, &to);
        let mut steps = Steps::new();
        if let Some(source) = self.from.subject {
            let remote = Remote { is_self, ..to.remote };
            steps.push(self.step(Direction::Egress, source, remote, backend.port, &self.question.to)?);
        }
        if let Some(destination) = to.subject {
            let is_own_node = sources.stays_own && is_own_node(self.from.made_on, destination);
            let remote = Remote { is_own_node, is_self, ..self.from.remote };
            let own = self.step(Direction::Ingress, destination, remote, backend.port, &self.question.from)?;
            let hidden = sources.hidden.as_ref().filter(|_| !is_self);
            let hidden = hidden.map(|addresses| self.hidden(addresses, destination, backend.port));
            let other = hidden.filter(|hidden| hidden.verdict != own.verdict);
            steps.push(own);
            steps.extend(other);
        }
        let verdict = strictest(&steps);
        Ok(Behind { backend, owner: to.remote.owner, verdict, steps })
    }

    /// The ingress of a backend if the client is hidden behind one of these addresses, nobody knows which: the first
    /// denial, else the first acceptance.
    fn hidden(&mut self, addresses: &[(&'a Arc<Node>, IpAddr)], subject: &'a Arc<Pod>, port: u16) -> Step<'a> {
        let direction = Direction::Ingress;
        let mut first = None;
        for &(node, address) in addresses {
            let remote = Remote { owner: Owner::Node(node), ..Remote::at(&self.compiled.state, address) };
            let verdict = self.verdict(direction, subject, &remote, port).expect("a known address has a verdict");
            let seen = Seen::Hidden(Some((node.name.clone(), address)));
            let step = Step { direction, subject, remote, port, seen, verdict };
            if verdict == Verdict::Deny {
                return step;
            }
            first.get_or_insert(step);
        }
        first.unwrap_or_else(|| {
            // Nobody says what addresses nodes have: what is not certain is denied.
            let unknown = Remote {
                owner: Owner::Outside,
                address: None,
                family: self.family,
                is_own_node: false,
                is_self: false,
            };
            let verdict = self.verdict(direction, subject, &unknown, port).unwrap_or(Verdict::Deny);
            Step { direction, subject, remote: unknown, port, seen: Seen::Hidden(None), verdict }
        })
    }

    fn step(
        &mut self,
        direction: Direction,
        subject: &'a Arc<Pod>,
        remote: Remote<'a>,
        port: u16,
        end: &End,
    ) -> Result<Step<'a>, Unanswerable> {
        let verdict = self.verdict(direction, subject, &remote, port);
        let verdict = verdict.ok_or_else(|| Unanswerable::AddressDecides(end.clone()))?;
        Ok(Step { direction, subject, remote, port, seen: Seen::Own, verdict })
    }

    /// What the subject's ruleset says; `None`: it depends on an address that nobody knows.
    fn verdict(&mut self, direction: Direction, subject: &Pod, remote: &Remote<'_>, port: u16) -> Option<Verdict> {
        let Compiled { state, plan, unaddressed, finder, .. } = self.compiled;
        let pod = subject;
        let subject = plan.subjects.get(&pod.key).expect("every live pod with an address is a subject");
        let ruleset = subject.ruleset(direction);
        let protocol = self.protocol;
        let class = |address| match remote.owner {
            // Nothing tells cluster addresses apart.
            Owner::Service(_) => ClassIndex::default(),
            Owner::Pod(_) | Owner::Node(_) | Owner::Outside => finder.find(plan, address),
        };
        let accepted = match remote.address {
            // Only the node that the pod runs on is exempt, and only its own packets.
            _ if remote.is_own_node && direction == Direction::Ingress => {
                self.rows.row(plan, ruleset, Slot::NodeSelf).accepts(protocol, port)
            }
            Some(address) if remote.is_self => {
                let facts = &plan.classes[class(address).0 as usize].facts;
                accepts_itself(ruleset, address, facts, protocol, port)
            }
            Some(address) => self.rows.row(plan, ruleset, Slot::Class(class(address))).accepts(protocol, port),
            None => {
                // Rules that name the node by its labels match whatever address it will have.
                if matches!(remote.owner, Owner::Node(node) if is_named(state, pod, direction, node)) {
                    return None;
                }
                let bounds = match remote.owner {
                    Owner::Pod(pod) => unaddressed.pods.get(&pod.key).copied().expect("every planned pod has bounds"),
                    Owner::Service(_) | Owner::Node(_) | Owner::Outside => unaddressed.nobody,
                };
                let Bounds { least, most } = bounds;
                let least = least[usize::from(self.family == Family::V6)];
                let [certain, perhaps] = [least, most].map(|index| &*plan.classes[index.0 as usize].facts);
                possible::accepts(ruleset, certain, perhaps, protocol, port)?
            }
        };
        Some(if accepted { Verdict::Accept } else { Verdict::Deny })
    }
}

/// How a backend may see the client.
struct Sources<'a> {
    /// Whether packets that a node made itself are still that.
    stays_own: bool,
    /// Addresses of nodes behind which kube-proxy may hide the client, empty if nobody knows them; `None`: it does not.
    hidden: Option<Vec<(&'a Arc<Node>, IpAddr)>>,
}

fn is_same_pod(source: &Found<'_>, destination: &Found<'_>) -> bool {
    matches!((source.subject, destination.subject), (Some(source), Some(destination)) if source.key == destination.key)
}

/// Whether a destination's own node made the packet.
fn is_own_node(made_on: Option<&Arc<str>>, destination: &Pod) -> bool {
    made_on.is_some() && made_on == destination.node.as_ref()
}

/// Whether a rule for a pod names a node by labels that it has.
fn is_named(state: &ClusterState, pod: &Pod, direction: Direction, node: &Node) -> bool {
    let policies = [Tier::Admin, Tier::Baseline].into_iter().flat_map(|tier| state.cluster_policies_of(pod, tier));
    policies.flat_map(|policy| policy.rules(direction)).any(|rule| match &rule.matches {
        ClusterMatch::Of { peers, .. } => {
            peers.iter().any(|peer| matches!(peer, ClusterPeer::Nodes(labels) if labels.matches(&node.labels)))
        }
        ClusterMatch::Unreadable(_) => false,
    })
}

fn strictest(steps: &[Step<'_>]) -> Verdict {
    steps.iter().map(|step| step.verdict).max().unwrap_or(Verdict::Accept)
}

/// What a pod's ruleset says of the pod itself at the end of a way through a Service; `facts` are those of its address.
fn accepts_itself(ruleset: &Ruleset, address: IpAddr, facts: &Arc<[Fact]>, protocol: FlowProtocol, port: u16) -> bool {
    let own = ruleset.for_subject(facts, [(address, &**facts)]);
    let row = match ruleset.direction() {
        Direction::Ingress => own.row(Peer::PodSelf),
        Direction::Egress => {
            let named = PortProtocol::NAMES.into_iter().find(|(_, named)| named.flow() == protocol);
            let (_, named) = named.expect("a Service's protocol has ports");
            let backend = BackendFacts { facts: facts.clone(), port, local: Some(address) };
            let at = ServiceFacts { protocol: named, port, backends: vec![backend] };
            own.row(Peer::Class(&ClassKey { frontends: [at].into(), ..ClassKey::default() }))
        }
    };
    row.accepts(protocol, port)
}

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    NodeSelf,
    Class(ClassIndex),
}

/// Rows that were needed before; rulesets live as long as the plan, so their addresses tell them apart.
#[derive(Default, Debug)]
pub(super) struct Rows(FxHashMap<(usize, Slot), Bundle>);

impl Rows {
    /// The row of an address itself: what Services have there is judged at their backends.
    fn row(&mut self, plan: &Plan, ruleset: &Arc<Ruleset>, slot: Slot) -> &Bundle {
        self.0.entry((Arc::as_ptr(ruleset).addr(), slot)).or_insert_with(|| match slot {
            Slot::NodeSelf => ruleset.row(Peer::NodeSelf),
            Slot::Class(index) => {
                let facts = plan.classes[index.0 as usize].facts.clone();
                ruleset.row(Peer::Class(&ClassKey::of(facts)))
            }
        })
    }
}
