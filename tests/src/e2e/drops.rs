//! Does the agents' log name the pods and policies of what was just denied?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::api::Api;
use super::install::{Agent, agents, log};
use super::live::{ANSWER, Live};
use super::message::{Answer, Ask, Outcome, Protocol, Target};
use super::report::Report;
use super::stage::Stage;
use super::translate::{PREFIX, namespace};

const SUITE: &str = "drops";
/// The port that is tried.
const PORT: u16 = 80;
/// How long a policy may take until it denies, and a denial until it is in the log.
const PATIENCE: Duration = Duration::from_secs(15);

/// One way to deny.
struct Case {
    name: &'static str,
    policy: &'static str,
    direction: &'static str,
    is_cluster: bool,
}

const CASES: [Case; 4] = [
    Case { name: "NetworkPolicy, ingress", policy: "nobody-in", direction: "INGRESS", is_cluster: false },
    Case { name: "NetworkPolicy, egress", policy: "nowhere-out", direction: "EGRESS", is_cluster: false },
    Case { name: "ClusterNetworkPolicy, ingress", policy: "none-in", direction: "INGRESS", is_cluster: true },
    Case { name: "ClusterNetworkPolicy, egress", policy: "none-out", direction: "EGRESS", is_cluster: true },
];

/// Denies in each way and looks for it in the log of the agent that denied, over each family.
///
/// # Errors
///
/// The cluster has no two nodes, or pods do not run.
pub async fn run(api: &Api, image: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut live = Live::start(api, image).await?;
    let has_cluster_policies = api.has_cluster_policies().await?;
    for case in &CASES {
        if case.is_cluster && !has_cluster_policies {
            report.leave_out(SUITE, case.name, "the cluster knows no ClusterNetworkPolicy (its CRD is not installed)");
            continue;
        }
        let mut stage = Stage::new("drops")?;
        let (client, server) = (stage.pod("client", "n1")?, stage.pod("server", "n2")?);
        let selects = |role: &str| json!({"matchLabels": {"role": role}});
        let subject = |role: &str| json!({"pods": {"namespaceSelector": {}, "podSelector": selects(role)}});
        let anybody = json!([{"namespaces": {}}]);
        match (case.is_cluster, case.direction) {
            (false, "INGRESS") => {
                stage.policy(case.policy, json!({"podSelector": selects("server"), "policyTypes": ["Ingress"]}))?;
            }
            (false, _) => {
                stage.policy(case.policy, json!({"podSelector": selects("client"), "policyTypes": ["Egress"]}))?;
            }
            (true, direction) => {
                let (role, rules, peers) = match direction {
                    "INGRESS" => ("server", "ingress", "from"),
                    _ => ("client", "egress", "to"),
                };
                let rule = json!([{"action": "Deny", peers: anybody}]);
                let spec = json!({"tier": "Admin", "priority": 7, "subject": subject(role), rules: rule});
                stage.cluster_policy(case.policy, spec)?;
            }
        }
        live.enter(&stage.objects, &BTreeSet::new()).await?;
        live.serve(&BTreeMap::from([(server.clone(), BTreeSet::from([(Protocol::Tcp, PORT)]))])).await?;
        for to in live.pod(&server)?.addresses.clone() {
            let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
            let begin = Instant::now();
            let found = deny_and_find(&live, case, &client, &server, to).await;
            report.add_result(SUITE, &format!("{}, {family}", case.name), begin, found);
        }
    }
    Ok(())
}

/// Tries until it is denied, and looks for the line. Returns it.
async fn deny_and_find(live: &Live, case: &Case, client: &str, server: &str, to: IpAddr) -> anyhow::Result<String> {
    let target = Target { to, protocol: Protocol::Tcp, port: PORT };
    let begin = Instant::now();
    loop {
        let ask = Ask::Probe { target, attempts_ms: vec![700] };
        match live.pod(client)?.channel.ask(ask, ANSWER).await? {
            Answer::Probed { outcome: Outcome::Deny, .. } => break,
            other => ensure!(begin.elapsed() < PATIENCE, "{target} from {client} is not denied: {other:?}"),
        }
    }
    // Who judges: the server's node what comes in, the client's what goes out.
    let place = if case.direction == "INGRESS" { 1 } else { 0 };
    let node = &live.nodes[place].name;
    let agents = agents(&live.api).await?;
    let agent = agents.iter().find(|agent| agent.node == *node).with_context(|| format!("no agent on {node}"))?;
    let begin = Instant::now();
    loop {
        if let Some(line) = find(&live.api, agent, case, client, server, to).await? {
            return Ok(line);
        }
        if begin.elapsed() > PATIENCE {
            let log = log(&live.api, agent, 40).await?;
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            bail!("no line of {} tells of it; the last are\n{}", agent.pod, last.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The line about a denial, if it is there and says everything.
async fn find(
    api: &Api,
    agent: &Agent,
    case: &Case,
    client: &str,
    server: &str,
    to: IpAddr,
) -> anyhow::Result<Option<String>> {
    let log = log(api, agent, 40).await?;
    let tells =
        |line: &&str| serde_json::from_str::<Value>(line).is_ok_and(|line| tells_of(&line, case, client, server, to));
    Ok(log.lines().find(tells).map(str::to_owned))
}

fn tells_of(line: &Value, case: &Case, client: &str, server: &str, to: IpAddr) -> bool {
    let flow = &line["flow"];
    let is_end = |end: &Value, key: &str| {
        let (of, name) = key.split_once('/').unwrap_or_default();
        end["namespace"] == namespace(of) && end["pod_name"] == name
    };
    let is_policy = |policy: &Value| {
        if case.is_cluster {
            policy["kind"] == "ClusterNetworkPolicy" && policy["name"] == format!("{PREFIX}{}", case.policy)
        } else {
            let of = client.split('/').next().unwrap_or_default();
            policy["kind"] == "NetworkPolicy" && policy["name"] == case.policy && policy["namespace"] == namespace(of)
        }
    };
    let policies = &flow[format!("{}_denied_by", case.direction.to_lowercase())];
    flow["verdict"] == "DROPPED"
        && flow["traffic_direction"] == case.direction
        && flow["IP"]["destination"] == to.to_string()
        && flow["l4"]["TCP"]["destination_port"] == PORT
        && is_end(&flow["source"], client)
        && is_end(&flow["destination"], server)
        && policies.as_array().into_iter().flatten().any(is_policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(policy: &str, pod: &str) -> Value {
        json!({"flow": {
            "verdict": "DROPPED", "traffic_direction": "INGRESS", "IP": {"destination": "10.0.0.2"},
            "l4": {"TCP": {"destination_port": 80}},
            "source": {"namespace": "npolicy-e2e-drops", "pod_name": "client-n1"},
            "destination": {"namespace": "npolicy-e2e-drops", "pod_name": pod},
            "ingress_denied_by": [{"kind": "NetworkPolicy", "namespace": "npolicy-e2e-drops", "name": policy}],
        }})
    }

    #[test]
    fn a_line_has_to_name_both_pods_and_the_policy() {
        let to = "10.0.0.2".parse().unwrap();
        let tells = |line: &Value| tells_of(line, &CASES[0], "drops/client-n1", "drops/server-n2", to);
        assert!(tells(&line("nobody-in", "server-n2")));
        assert!(!tells(&line("another", "server-n2")));
        assert!(!tells(&line("nobody-in", "another")));
        assert!(!tells_of(&line("nobody-in", "server-n2"), &CASES[1], "drops/client-n1", "drops/server-n2", to));
    }
}
