//! Every connection of a small cluster: what policy says of it, and what came of it.

use anyhow::Context;
use npolicy_common::{Family, Verdict};
use rustc_hash::FxHashSet;
use serde::Serialize;

use super::expected::Expected;
use crate::model::PodKey;
use crate::rig::{Node, Outcome, Pod, Probe, Protocol, SctpMeans, Service, probe_all};

/// One connection that was tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tried {
    pub(super) from: PodKey,
    pub(super) to: PodKey,
    pub(super) service: Service,
    pub(super) family: Family,
    pub(super) expected: Verdict,
    pub(super) observed: Outcome,
}

impl Tried {
    /// Whether packets met the verdict that policy gives.
    pub(super) fn is_as_expected(&self) -> bool {
        match self.expected {
            Verdict::Accept => self.observed == Outcome::Accept,
            Verdict::Deny => self.observed == Outcome::Deny,
        }
    }

    /// What was tried, for people: `dev/frontend to prod/database TCP 8080 over IPv4`.
    pub(super) fn question(&self) -> String {
        let Self { from, to, service, family, .. } = self;
        let family = family_name(*family);
        match service.protocol {
            Protocol::Icmp => format!("{from} to {to} ICMP echo over {family}"),
            protocol @ (Protocol::Tcp | Protocol::Udp | Protocol::Sctp) => {
                format!("{from} to {to} {protocol} {} over {family}", service.port)
            }
        }
    }

    /// One object of `--json`.
    pub(super) fn to_json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Object {
            from: String,
            to: String,
            protocol: String,
            port: Option<u16>,
            family: &'static str,
            expected: String,
            observed: String,
        }
        let Self { from, to, service: Service { protocol, port }, family, expected, observed } = self;
        serde_json::to_string(&Object {
            from: from.to_string(),
            to: to.to_string(),
            protocol: protocol.to_string(),
            port: (*protocol != Protocol::Icmp).then_some(*port),
            family: family_name(*family),
            expected: format!("{expected:?}"),
            observed: observed.to_string(),
        })
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// A connection to try.
struct Question<'a> {
    from: &'a Pod,
    to: &'a Pod,
    service: Service,
    family: Family,
    probe: Probe,
}

/// Connections tried in one go; a bound on what `--file` may ask for.
const MAX_PROBES: usize = 50_000;

/// Connections between a node's pods, to be tried more than once.
pub(super) struct Questions<'a> {
    asked: Vec<Question<'a>>,
    /// Connections beyond the bound.
    pub(super) left_out: usize,
}

impl<'a> Questions<'a> {
    /// Every ordered pair of the node's pods, every service, every family that both have.
    pub(super) fn between_pods(node: &'a Node, services: &[Service]) -> Self {
        let mut asked = Vec::new();
        let mut left_out = 0;
        for to in node.pods() {
            for from in node.pods().filter(|from| from.key != to.key) {
                for &service in services {
                    for &family in node.families() {
                        let (Some(_), Some(address)) = (from.address(family), to.address(family)) else { continue };
                        if asked.len() == MAX_PROBES {
                            left_out += 1;
                            continue;
                        }
                        let Service { protocol, port } = service;
                        asked.push(Question {
                            from,
                            to,
                            service,
                            family,
                            probe: Probe { to: address, protocol, port },
                        });
                    }
                }
            }
        }
        Self { asked, left_out }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.asked.len()
    }

    /// What policy says of each.
    pub(super) fn verdicts(&self, mut expected: Expected) -> anyhow::Result<Vec<Verdict>> {
        let verdict = |question: &Question| {
            let &Question { from, to, service, family, probe: _ } = question;
            expected
                .verdict(&from.key, &to.key, service, family)
                .with_context(|| format!("what policy says of {} to {}", from.key, to.key))
        };
        self.asked.iter().map(verdict).collect()
    }

    /// A denial worth a look: of TCP where there is one, on a port that is open to somebody else if there is one.
    pub(super) fn instructive_denial(&self, verdicts: &[Verdict]) -> Option<(&'a Pod, &'a Pod, Probe)> {
        self.instructive(verdicts, Verdict::Deny)
    }

    /// A TCP connection that policy accepts, to a port that is closed to somebody else if there is one.
    pub(super) fn instructive_accept(&self, verdicts: &[Verdict]) -> Option<(&'a Pod, &'a Pod, Probe)> {
        self.instructive(verdicts, Verdict::Accept).filter(|(_, _, probe)| probe.protocol == Protocol::Tcp)
    }

    /// The first of the best with this verdict: TCP before others, then ports where somebody else meets the opposite.
    fn instructive(&self, verdicts: &[Verdict], wanted: Verdict) -> Option<(&'a Pod, &'a Pod, Probe)> {
        let judged = || self.asked.iter().zip(verdicts);
        let opposite: FxHashSet<_> = judged()
            .filter(|(_, verdict)| **verdict != wanted)
            .map(|(question, _)| (&question.to.key, question.service))
            .collect();
        judged()
            .filter(|(_, verdict)| **verdict == wanted)
            .map(|(question, _)| question)
            .min_by_key(|question| {
                let has_opposite = opposite.contains(&(&question.to.key, question.service));
                (question.service.protocol != Protocol::Tcp, !has_opposite)
            })
            .map(|question| (question.from, question.to, question.probe))
    }

    /// Tries them all, against these verdicts. `done` is called after each.
    pub(super) fn try_all(
        &self,
        verdicts: &[Verdict],
        sctp: SctpMeans,
        done: impl Fn() + Sync,
    ) -> crate::rig::Result<Vec<Tried>> {
        let probes: Vec<_> = self.asked.iter().map(|question| (question.from, question.probe)).collect();
        let outcomes = probe_all(&probes, sctp, done)?;
        let tried = self.asked.iter().zip(verdicts).zip(outcomes).map(|((question, &expected), observed)| {
            let &Question { from, to, service, family, probe: _ } = question;
            Tried { from: from.key.clone(), to: to.key.clone(), service, family, expected, observed }
        });
        Ok(tried.collect())
    }
}
