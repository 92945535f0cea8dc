//! Answers as people and scripts read them.

use std::net::SocketAddr;

use npolicy_common::{Direction, Family, Verdict};
use serde::Serialize;

use super::question::{protocol_parts, verdict_text};
use crate::compile::{
    Answer, BackendAnswer, Decision, Explanation, Judgement, Matched, Protocol, Question, Seen, ServiceAnswer, TierRule,
};
use crate::model::Tier;

/// Says in one line why the answer is what it is: what the end says that denies, else what each end says.
pub(super) fn reason(answer: &Answer) -> String {
    if answer.is_self {
        return "a pod always reaches itself".to_owned();
    }
    match &answer.service {
        Some(service) if service.backends.is_empty() => {
            let missing = missing_text(service, &answer.judgements);
            format!("service {} {missing}; {}", service.service, steps_text(&answer.judgements))
        }
        Some(service) => service_reason(service),
        None => steps_text(&answer.judgements),
    }
}

/// What a Service lacks that has no backend for a question.
pub(super) fn missing_text(service: &ServiceAnswer, judgements: &[Judgement]) -> String {
    let asked = service.asked;
    let lacks = match (service.has_port, asked) {
        (true, _) => format!("has no backend for {asked} that this client would be sent to, so nothing answers"),
        (false, Protocol::Icmp) => "is only reached on its ports".to_owned(),
        (false, _) => format!("has no port {asked}, so nothing answers"),
    };
    if judgements.is_empty() { lacks } else { format!("{lacks}; only rules without peers match it") }
}

/// Where a rule may have been written for the Service's port: that it is not what policies see. Begins with a semicolon.
pub(super) fn port_hint(service: &ServiceAnswer, backend: &BackendAnswer) -> String {
    let by_miss = |judgement: &Judgement| match &judgement.explanation.decision {
        Decision::Denied(miss) => miss.misses_ports,
        Decision::NotGoverned | Decision::NotDecided | Decision::OwnNode | Decision::Itself => false,
        Decision::Accepted(_) | Decision::TierAccepted(_) | Decision::TierDenied(_) => false,
    };
    match service.asked.port() {
        Some((protocol, port)) if port != backend.backend.port && backend.judgements.iter().any(by_miss) => {
            format!("; policies see the backend's port {}/{protocol}, not the Service's", backend.backend.port)
        }
        Some(_) | None => String::new(),
    }
}

/// How many backends of a Service accept, for people.
pub(super) fn backends_text(service: &ServiceAnswer) -> String {
    let (all, name) = (service.backends.len(), &service.service);
    match service.accepting() {
        0 => format!("none of the {all} backends of service {name} accepts"),
        accepting if accepting == all => format!("each of the {all} backends of service {name} accepts"),
        accepting => {
            format!("MixedBackends: {accepting} of the {all} backends of service {name} accept, and any may be chosen")
        }
    }
}

fn service_reason(service: &ServiceAnswer) -> String {
    let denying = service.backends.iter().find(|backend| backend.verdict == Verdict::Deny);
    match (denying, &*service.backends) {
        (_, [only]) => {
            let (backend, hint) = (backend_text(only), port_hint(service, only));
            format!("service {}, backend {backend}: {}{hint}", service.service, steps_text(&only.judgements))
        }
        (Some(denying), _) => {
            let (steps, hint) = (steps_text(&denying.judgements), port_hint(service, denying));
            format!("{}; {}: {steps}{hint}", backends_text(service), backend_text(denying))
        }
        (None, [first, ..]) => {
            format!("{}; {}: {}", backends_text(service), backend_text(first), steps_text(&first.judgements))
        }
        (None, []) => unreachable!("a Service without backends was told before"),
    }
}

/// `shop/db 10.0.0.1:5432`
pub(super) fn backend_text(backend: &BackendAnswer) -> String {
    let address = SocketAddr::new(backend.backend.address, backend.backend.port);
    match (&backend.pod, &backend.node) {
        (Some(pod), _) => format!("{pod} {address}"),
        (None, Some(node)) => format!("node {node} {address}"),
        (None, None) => address.to_string(),
    }
}

/// The first step that denies; where that depends on what kube-proxy does, its other ways as well. Else every step.
fn steps_text(judgements: &[Judgement]) -> String {
    let denying = judgements.iter().find(|judgement| judgement.verdict == Verdict::Deny);
    let told = judgements.iter().filter(|judgement| denying.is_none_or(|it| it.direction == judgement.direction));
    let told: Vec<_> = told.map(step_text).collect();
    if told.is_empty() { "policy applies to neither end".to_owned() } else { told.join("; ") }
}

fn step_text(judgement: &Judgement) -> String {
    let direction = direction_text(judgement.direction);
    let seen = seen_text(&judgement.seen);
    format!("{direction} of {}{seen}: {}", judgement.subject, decision_text(judgement))
}

/// With which address the client is seen, where it is not its own: begins with a comma.
pub(super) fn seen_text(seen: &Seen) -> String {
    match seen {
        Seen::Own => String::new(),
        Seen::Hidden(Some((node, address))) => {
            format!(", if kube-proxy hides the client behind {address} of node {node}")
        }
        Seen::Hidden(None) => ", if kube-proxy hides the client behind a node's address".to_owned(),
    }
}

pub(super) const fn direction_text(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// Says why one end accepts or denies.
pub(super) fn decision_text(judgement: &Judgement) -> String {
    let Explanation { isolated_by: _, passed_by, decision } = &judgement.explanation;
    let passed: String = passed_by.iter().map(|rule| format!("passed on by {rule}; ")).collect();
    let decided = match decision {
        Decision::NotGoverned => "no policy isolates it".to_owned(),
        Decision::NotDecided if passed_by.is_empty() => "no rule of a ClusterNetworkPolicy matches, and no NetworkPolicy isolates it".to_owned(),
        Decision::NotDecided => "nothing after that denies it".to_owned(),
        Decision::OwnNode => "its own node always may".to_owned(),
        Decision::Itself if judgement.direction == Direction::Ingress => {
            "no NetworkPolicy keeps a pod from itself (kube-proxy sends it back with a node's address; where that cannot \
             be told from others' traffic, on a bridge without br_netfilter, it is denied)"
                .to_owned()
        }
        Decision::Itself => "no NetworkPolicy keeps a pod from itself".to_owned(),
        Decision::Accepted(accepted) => format!("accepted by {accepted}"),
        Decision::TierAccepted(rule) => match rule.tier {
            Tier::Admin => format!("accepted by {rule}; no NetworkPolicy can deny it"),
            Tier::Baseline => format!("accepted by {rule}; no NetworkPolicy isolates it"),
        },
        Decision::Denied(miss) => format!("no rule accepts it; nearest is {miss}"),
        Decision::TierDenied(rule) => format!("denied by {rule}; {}", rule.advice()),
    };
    passed + &decided
}

/// An answer of `--batch`.
#[derive(Serialize)]
pub(super) struct BatchLine {
    verdict: &'static str,
    reason: String,
    #[serde(flatten)]
    service: Option<ServiceLine>,
}

impl BatchLine {
    pub(super) fn new(answer: &Answer) -> Self {
        let backend = |backend: &BackendAnswer| BackendLine {
            reason: Some(steps_text(&backend.judgements)),
            ..BackendLine::new(backend)
        };
        Self {
            verdict: verdict_text(answer.verdict),
            reason: reason(answer),
            service: answer.service.as_ref().map(|service| ServiceLine::new(service, backend)),
        }
    }
}

/// An answer in JSON, with everything that is known about it.
#[derive(Serialize)]
pub(super) struct AnswerLine {
    from: String,
    to: String,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    family: &'static str,
    verdict: &'static str,
    /// Whether every object could be read.
    certain: bool,
    reason: String,
    steps: Vec<StepLine>,
    #[serde(flatten)]
    service: Option<ServiceLine>,
}

/// A Service in JSON.
#[derive(Serialize)]
struct ServiceLine {
    service: String,
    /// Whether some backends accept and some do not.
    mixed_backends: bool,
    backends: Vec<BackendLine>,
}

/// One backend in JSON.
#[derive(Serialize)]
struct BackendLine {
    address: String,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<StepLine>>,
}

/// What one end says, in JSON.
#[derive(Serialize)]
struct StepLine {
    direction: &'static str,
    subject: String,
    /// The address behind which kube-proxy may hide the client, if that is what was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_behind: Option<HiddenLine>,
    verdict: &'static str,
    isolated_by: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_by: Vec<RuleLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_by: Option<RuleLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    denied_by: Option<RuleLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest_miss: Option<MissLine>,
}

/// A node's address in JSON; empty where it is not known.
#[derive(Serialize)]
struct HiddenLine {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

/// A rule in JSON.
#[derive(Serialize)]
struct RuleLine {
    /// `Admin` or `Baseline`; absent for a NetworkPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<String>,
    policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    rule: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<usize>,
    /// Why the rule cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

/// The rule that came nearest, in JSON.
#[derive(Serialize)]
struct MissLine {
    policy: String,
    text: String,
}

impl AnswerLine {
    pub(super) fn new(question: &Question, answer: &Answer, certain: bool) -> Self {
        let (protocol, port) = protocol_parts(question.protocol);
        let backend = |backend: &BackendAnswer| {
            let steps = backend.judgements.iter().map(StepLine::new).collect();
            BackendLine { steps: Some(steps), ..BackendLine::new(backend) }
        };
        Self {
            from: question.from.to_string(),
            to: question.to.to_string(),
            protocol,
            port,
            family: match answer.family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            },
            verdict: verdict_text(answer.verdict),
            certain,
            reason: reason(answer),
            steps: answer.judgements.iter().map(StepLine::new).collect(),
            service: answer.service.as_ref().map(|service| ServiceLine::new(service, backend)),
        }
    }
}

impl ServiceLine {
    fn new(service: &ServiceAnswer, backend: impl Fn(&BackendAnswer) -> BackendLine) -> Self {
        Self {
            service: service.service.to_string(),
            mixed_backends: service.is_mixed(),
            backends: service.backends.iter().map(backend).collect(),
        }
    }
}

impl BackendLine {
    fn new(answer: &BackendAnswer) -> Self {
        let BackendAnswer { backend, pod, node, verdict, judgements: _ } = answer;
        Self {
            address: backend.address.to_string(),
            port: backend.port,
            pod: pod.as_ref().map(ToString::to_string),
            node: node.as_ref().map(ToString::to_string),
            verdict: verdict_text(*verdict),
            reason: None,
            steps: None,
        }
    }
}

impl StepLine {
    fn new(judgement: &Judgement) -> Self {
        let Judgement { direction, subject, seen, verdict, explanation } = judgement;
        let hidden_behind = match seen {
            Seen::Own => None,
            Seen::Hidden(None) => Some(HiddenLine { node: None, address: None }),
            Seen::Hidden(Some((node, address))) => {
                Some(HiddenLine { node: Some(node.to_string()), address: Some(address.to_string()) })
            }
        };
        let mut line = Self {
            direction: direction_text(*direction),
            subject: subject.to_string(),
            hidden_behind,
            verdict: verdict_text(*verdict),
            isolated_by: explanation.isolated_by.iter().map(ToString::to_string).collect(),
            passed_by: explanation.passed_by.iter().map(RuleLine::of_tier).collect(),
            accepted_by: None,
            denied_by: None,
            nearest_miss: None,
        };
        match &explanation.decision {
            Decision::NotGoverned | Decision::NotDecided | Decision::OwnNode | Decision::Itself => {}
            Decision::Accepted(accepted) => {
                line.accepted_by = Some(RuleLine {
                    tier: None,
                    policy: accepted.policy.to_string(),
                    priority: None,
                    rule: accepted.rule,
                    name: None,
                    peer: accepted.peer,
                    unreadable: None,
                });
            }
            Decision::TierAccepted(rule) => line.accepted_by = Some(RuleLine::of_tier(rule)),
            Decision::TierDenied(rule) => line.denied_by = Some(RuleLine::of_tier(rule)),
            Decision::Denied(miss) => {
                line.nearest_miss = Some(MissLine { policy: miss.policy.to_string(), text: miss.text.clone() });
            }
        }
        line
    }
}

impl RuleLine {
    fn of_tier(rule: &TierRule) -> Self {
        let TierRule { tier, policy, priority, direction: _, rule, name, matched } = rule;
        let (peer, unreadable) = match matched {
            Matched::Peer(peer) => (Some(*peer), None),
            Matched::Unreadable(reason) => (None, Some(reason.to_string())),
        };
        Self {
            tier: Some(tier.to_string()),
            policy: policy.to_string(),
            priority: Some(*priority),
            rule: *rule,
            name: name.as_ref().map(ToString::to_string),
            peer,
            unreadable,
        }
    }
}
