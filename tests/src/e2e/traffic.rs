//! Traffic without pause, while something happens: connections that must live, probes that must succeed, and probes that
//! must fail.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::{join_all, try_join_all};

use super::live::{ANSWER, Live};
use super::message::{Answer, Ask, Protocol, Target, Watched};

/// Between two numbers of a connection, and two probes of a watch, in milliseconds.
const EVERY_MS: u64 = 50;
/// How long a probe may wait, in milliseconds: what must succeed has the time of three SYNs that are sent again, what must
/// fail has long enough to be answered.
const PATIENCE_MS: (u64, u64) = (10_000, 1000);
/// A connection that rests for so much longer than one that no policy governs was disturbed: longer than the first
/// repetitions of a segment take.
const LONGEST_GAP_MS: u64 = 1500;

/// What a flow must do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Must {
    /// One connection that no policy governs: it shows how long the machine itself makes others rest.
    Control,
    /// One connection that lives on.
    Live,
    /// A new connection each time, and each is accepted.
    Reach,
    /// The same, and none is accepted.
    Fail,
}

/// One source, one destination.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) at: SocketAddr,
    pub(super) must: Must,
}

impl Flow {
    fn name(&self) -> String {
        format!("{:?} {}", self.must, self.at)
    }

    /// The flow for people.
    pub(super) fn shown(&self) -> String {
        let Self { from, to, at, must } = self;
        let must = match must {
            Must::Control => "a connection that no policy governs",
            Must::Live => "a connection that must live",
            Must::Reach => "connections that must be accepted",
            Must::Fail => "connections that must be denied",
        };
        format!("{from} -> {to} at {at}, {must}")
    }
}

/// Flows from some pods to some, to a port, over each family that both have.
pub(super) fn flows(live: &Live, from: &[String], to: &[String], port: u16, must: Must) -> anyhow::Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for from in from {
        for to in to.iter().filter(|to| *to != from) {
            for &address in &live.pod(to)?.addresses {
                let (from, to) = (from.clone(), to.clone());
                flows.push(Flow { from, to, at: SocketAddr::new(address, port), must });
            }
        }
    }
    Ok(flows)
}

/// Flows that run.
pub(super) struct Traffic {
    flows: Vec<Flow>,
}

impl Traffic {
    /// Starts them all; the connections are open when it returns.
    pub(super) async fn start(live: &Live, flows: Vec<Flow>) -> anyhow::Result<Self> {
        let started = flows.iter().map(|flow| async move {
            let (name, to) = (flow.name(), flow.at);
            let target = Target { to: to.ip(), protocol: Protocol::Tcp, port: to.port() };
            let ask = match flow.must {
                Must::Control | Must::Live => Ask::Hold { name, to, every_ms: EVERY_MS },
                Must::Reach => Ask::Watch { name, target, every_ms: EVERY_MS, patience_ms: PATIENCE_MS.0 },
                Must::Fail => Ask::Watch { name, target, every_ms: EVERY_MS, patience_ms: PATIENCE_MS.1 },
            };
            let asked = live.pod(&flow.from)?.channel.ask(ask, ANSWER).await;
            asked.map(|_| ()).with_context(|| format!("start {}", flow.shown()))
        });
        try_join_all(started).await?;
        Ok(Self { flows })
    }

    /// Ends them all. Returns how many connections and probes there were, or what is wrong with them.
    pub(super) async fn stop(self, live: &Live) -> anyhow::Result<String> {
        let stopped = self.flows.iter().map(|flow| async move {
            live.pod(&flow.from)?.channel.ask(Ask::Stop { name: flow.name() }, ANSWER).await
        });
        let answers: Vec<Result<Answer, anyhow::Error>> = join_all(stopped).await;
        let control = self.flows.iter().zip(&answers).filter_map(|(flow, answer)| match (flow.must, answer) {
            (Must::Control, Ok(Answer::Held { longest_gap_ms, .. })) => Some(*longest_gap_ms),
            _ => None,
        });
        let control = control.max().unwrap_or_default();
        let (mut wrong, mut counts) = (Vec::new(), [0_u64; 4]);
        for (flow, answer) in self.flows.iter().zip(answers) {
            let judged = answer.map_err(|error| format!("{error:#}"));
            match judged.and_then(|answer| judge(flow, &answer, control)) {
                Ok(count) => counts[flow.must as usize] += count,
                Err(reason) => wrong.push(format!("{}: {reason}", flow.shown())),
            }
        }
        if !wrong.is_empty() {
            let more = wrong.len().saturating_sub(8);
            wrong.truncate(8);
            bail!("{}{}", wrong.join("\n"), if more > 0 { format!("\nand {more} more") } else { String::new() });
        }
        let connections = self.flows.iter().filter(|flow| flow.must == Must::Live).count();
        let [_, numbers, accepted, denied] = counts;
        Ok(format!(
            "{connections} connections lived ({numbers} numbers; without policy the longest rest was {control} ms), \
             {accepted} new ones accepted, {denied} denied"
        ))
    }

    /// What the watches of a source counted so far, by its destination.
    pub(super) async fn watched(&self, live: &Live, from: &str) -> anyhow::Result<Vec<(String, Watched)>> {
        let mut all = Vec::new();
        for flow in self.flows.iter().filter(|flow| flow.from == from) {
            let answer = live.pod(from)?.channel.ask(Ask::Report { name: flow.name() }, ANSWER).await?;
            if let Answer::Watched(watched) = answer {
                all.push((flow.to.clone(), watched));
            }
        }
        Ok(all)
    }
}

/// How many of a flow there were, or what is wrong. `control_ms` is how long a connection without policy rested.
fn judge(flow: &Flow, answer: &Answer, control_ms: u64) -> Result<u64, String> {
    match (flow.must, answer) {
        (Must::Control | Must::Live, Answer::Held { ended: Some(why), echoed, .. }) => {
            Err(format!("ended after {echoed} numbers: {why}"))
        }
        (Must::Live, Answer::Held { longest_gap_ms, .. }) if *longest_gap_ms > control_ms + LONGEST_GAP_MS => {
            Err(format!("rested for {longest_gap_ms} ms, and one without policy for {control_ms} ms"))
        }
        (Must::Control | Must::Live, Answer::Held { echoed: echoed @ 1.., .. }) => Ok(*echoed),
        (Must::Control | Must::Live, Answer::Held { .. }) => Err("carried nothing".into()),
        (must, Answer::Watched(Watched { accepted, denied, refused })) => {
            let (good, bad) = if must == Must::Reach { (accepted, denied) } else { (denied, accepted) };
            match (good.count, bad.count, refused.count) {
                (0, _, _) => Err(format!("none of {} as it must be", bad.count + refused.count)),
                (count, 0, 0) => Ok(count),
                (count, wrong, 0) => Err(format!("{wrong} of {} were otherwise", count + wrong)),
                (_, _, refused) => Err(format!("{refused} were refused")),
            }
        }
        (_, other) => Err(format!("the pod answers {other:?}")),
    }
}

/// Lets things run on for a moment.
pub(super) async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[cfg(test)]
mod tests {
    use super::super::message::Counted;
    use super::*;

    fn flow(must: Must) -> Flow {
        Flow { from: "a/b".into(), to: "a/c".into(), at: "10.0.0.1:80".parse().unwrap(), must }
    }

    fn watched(accepted: u64, denied: u64, refused: u64) -> Answer {
        let counted = |count| Counted { count, ..Counted::default() };
        Answer::Watched(Watched { accepted: counted(accepted), denied: counted(denied), refused: counted(refused) })
    }

    #[test]
    fn one_wrong_probe_is_one_too_many_and_so_is_none_at_all() {
        let judged = |must, accepted, denied, refused| judge(&flow(must), &watched(accepted, denied, refused), 0);
        assert_eq!(judged(Must::Fail, 0, 9, 0), Ok(9));
        assert!(judged(Must::Fail, 1, 9, 0).is_err());
        assert!(judged(Must::Fail, 0, 9, 1).is_err());
        assert!(judged(Must::Fail, 0, 0, 0).is_err());
        assert_eq!(judged(Must::Reach, 9, 0, 0), Ok(9));
        assert!(judged(Must::Reach, 9, 1, 0).is_err());
    }

    #[test]
    fn a_connection_that_ended_or_rested_did_not_live() {
        let held = |echoed, longest_gap_ms, ended| Answer::Held { sent: 5, echoed, longest_gap_ms, ended };
        let judged = |must, held: &Answer, control_ms| judge(&flow(must), held, control_ms);
        assert_eq!(judged(Must::Live, &held(5, 60, None), 50), Ok(5));
        assert!(judged(Must::Live, &held(5, LONGEST_GAP_MS + 51, None), 50).is_err());
        assert_eq!(judged(Must::Control, &held(5, LONGEST_GAP_MS + 51, None), 0), Ok(5));
        assert!(judged(Must::Live, &held(5, 60, Some("reset".into())), 50).is_err());
        assert!(judged(Must::Live, &held(0, 60, None), 50).is_err());
    }
}
