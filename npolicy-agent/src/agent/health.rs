//! What the probes are told.

use tracing::warn;

use super::{Agent, Feed};
use crate::datapath::{Fault, Problem, PublishReport};
use crate::model::Severity;
use crate::observe::Report;

/// What keeps verdicts from being those of the policies, as last seen.
#[derive(Debug, Default)]
pub(super) struct Faults {
    publish: Vec<String>,
    attachment: Vec<String>,
    has_published: bool,
    said: Vec<String>,
}

impl Faults {
    /// Whether anything was published by this agent.
    pub(super) fn has_published(&self) -> bool {
        self.has_published
    }

    pub(super) fn note_publish(&mut self, report: &PublishReport) {
        self.has_published = true;
        self.publish.clear();
        for degraded in &report.degraded {
            let (pod, direction) = (&degraded.pod, degraded.direction);
            let instead = degraded.instead;
            self.publish
                .push(format!("{pod}: its {direction:?} ruleset does not fit ({}): {instead:?}", degraded.full));
        }
        self.publish.extend(report.unfit.iter().map(|block| format!("addresses of {block} do not fit the tables")));
        if report.numbers_missing > 0 {
            self.publish.push(format!("class numbers ran out ({} missing)", report.numbers_missing));
        }
    }

    pub(super) fn note_verify(&mut self, faults: &[Fault]) {
        let is_unhealed = |fault: &&Fault| fault.unhealed.is_some() || matches!(fault.problem, Problem::Contested(_));
        let unhealed = faults.iter().filter(is_unhealed);
        self.attachment = unhealed.map(ToString::to_string).collect();
    }
}

impl Agent {
    /// Tells the probes whether the policies are in force: everything was read, published and attached, and nobody is silent.
    pub(super) fn report_health(&mut self) {
        let mut problems = Vec::new();
        // The watches tell of theirs when they begin; as lines here they differ each second by how long ago that was.
        let mut told = 0;
        if let Feed::Cluster(cluster) = &self.feed {
            problems.extend(cluster.problems());
            told = problems.len();
            if !self.is_waiting {
                let findings = cluster.identifier.findings().iter();
                problems
                    .extend(findings.filter(|finding| finding.severity() >= Severity::Error).map(ToString::to_string));
            }
        }
        if let Some(trouble) = self.links.trouble() {
            problems.push(format!("the node's interfaces cannot be read ({trouble}): new ones have no programs"));
        }
        let interfaces = self.datapath.interfaces().len();
        if self.is_waiting && self.datapath.accepts_unidentified() {
            problems.push(
                "nothing is enforced on this node yet: its pods are open until every kind of object was read once"
                    .to_owned(),
            );
        } else if self.is_waiting {
            problems.push(format!(
                "the objects were not read whole yet: verdicts of an earlier agent are in force on {interfaces} interfaces, and \
                 pods that came since are closed"
            ));
        } else if !self.faults.has_published {
            problems.push("nothing was published yet".to_owned());
        }
        problems.extend(self.faults.publish.iter().chain(&self.faults.attachment).cloned());
        for problem in problems.iter().skip(told).filter(|problem| !self.faults.said.contains(problem)) {
            warn!("not ready: {problem}");
        }
        let is_ready = problems.is_empty();
        self.faults.said.clone_from(&problems);
        if self.faults.has_published {
            problems.push(format!(
                "{} NetworkPolicies and {} ClusterNetworkPolicies in the cluster; {interfaces} interfaces guarded, the pods of {} \
                 known, {} under some policy",
                self.state.policies().count(),
                self.state.cluster_policies().count(),
                self.ready.identified,
                self.ready.governed
            ));
        }
        self.health.set(Report { is_ready, lines: problems });
    }
}
