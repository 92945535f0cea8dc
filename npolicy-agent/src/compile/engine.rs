//! Questions about the whole cluster, answered by the rulesets that nodes enforce.
//!
//! In: [`ClusterState`] and a [`Question`]. Out: an [`Answer`] with what each end says and why. Services are judged as
//! their backends: the source's egress to each of them, then the ingress of each.

use npolicy_common::Verdict;

use self::judge::{Behind, Compiled, Outcome, Rows, Step, Through};
use super::explain::explain;
use crate::model::{ClusterState, Owner};

mod answer;
mod ends;
mod judge;
mod possible;
mod question;

pub use self::answer::{Answer, BackendAnswer, Brief, Judgement, Seen, ServiceAnswer};
pub use self::question::{End, Protocol, Question, Unanswerable};

/// Answers questions about any two ends of a cluster. Every pod is a subject, each on its own node.
#[derive(Debug)]
pub struct Engine {
    compiled: Compiled,
    rows: Rows,
}

impl Engine {
    /// Compiles the cluster for questions.
    pub fn new(state: ClusterState) -> Self {
        Self { compiled: Compiled::new(state), rows: Rows::default() }
    }

    /// The cluster that is asked about.
    pub fn state(&self) -> &ClusterState {
        &self.compiled.state
    }

    /// Answers a question with the reasons of each end.
    ///
    /// # Errors
    /// See [`Unanswerable`].
    pub fn ask(&mut self, question: &Question) -> Result<Answer, Unanswerable> {
        let Self { compiled, rows } = self;
        let Outcome { family, is_self, verdict, steps, service } = compiled.judge(rows, question)?;
        let because = |step: Step<'_>| because(&compiled.state, question, step);
        let judgements = steps.into_iter().map(because).collect();
        let service = service.map(|Through { service, address, has_port, backends }| {
            let backends = backends.into_iter().map(|Behind { backend, owner, verdict, steps }| BackendAnswer {
                backend,
                pod: if let Owner::Pod(pod) = owner { Some(pod.key.clone()) } else { None },
                node: if let Owner::Node(node) = owner { Some(node.name.clone()) } else { None },
                verdict,
                judgements: steps.into_iter().map(because).collect(),
            });
            ServiceAnswer {
                service: service.key.clone(),
                address,
                asked: question.protocol,
                has_port,
                backends: backends.collect(),
            }
        });
        Ok(Answer { verdict, family, is_self, judgements, service })
    }

    /// Answers a question without reasons.
    ///
    /// # Errors
    /// See [`Unanswerable`].
    pub fn verdict(&mut self, question: &Question) -> Result<Verdict, Unanswerable> {
        Ok(self.brief(question)?.verdict)
    }

    /// Answers a question without reasons, except for mixed backends.
    ///
    /// # Errors
    /// See [`Unanswerable`].
    pub fn brief(&mut self, question: &Question) -> Result<Brief, Unanswerable> {
        let outcome = self.compiled.judge(&mut self.rows, question)?;
        let is_mixed = outcome.service.is_some_and(|through| through.is_mixed());
        Ok(Brief { verdict: outcome.verdict, is_mixed })
    }
}

fn because(state: &ClusterState, question: &Question, step: Step<'_>) -> Judgement {
    let Step { direction, subject, remote, port, seen, verdict } = step;
    let (protocol, _) = question.protocol.flow();
    let explanation = explain(state, subject, direction, &remote, protocol, port);
    debug_assert_eq!(
        verdict,
        explanation.decision.verdict(),
        "ruleset and explanation disagree on {question:?}: {explanation:?}"
    );
    Judgement { direction, subject: subject.key.clone(), seen, verdict, explanation }
}

#[cfg(test)]
mod tests;
