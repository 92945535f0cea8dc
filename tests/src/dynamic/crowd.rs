//! Many short pods, and the same objects in many namespaces.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use npolicy_agent::model::PodKey;
use npolicy_agent::rig::{Namespace, Outcome, Pod, Protocol};
use tokio::task::JoinSet;

use super::probe::Question;
use super::script::{AgentAction, Burst, Dialled, End, Jobs, Labels, Line, Name, Objects, Orders, PodSpec, Traffic};
use super::socket::{self, RUNTIME};
use super::world::World;

/// How long a burst waits for its pods' interfaces to be guarded, as a chained CNI step would.
const GUARD_PATIENCE: Duration = Duration::from_secs(30);
/// How often a burst tries a connection.
const CONNECT_EVERY: Duration = Duration::from_millis(20);

/// Runs jobs, some at a time: each dials over every family as its first act, with its object still to come.
pub(super) fn jobs(world: &mut World, jobs: &Jobs, longest: Duration) -> anyhow::Result<()> {
    let patience = match jobs.expect {
        Dialled::Connected => Duration::from_secs_f32(jobs.dial.timeout_s),
        Dialled::Timeout => Duration::from_secs_f32(jobs.dial.timeout_s).min(longest),
    };
    let to = End::Pod(jobs.dial.to.0.clone());
    let numbers: Vec<usize> = (0..jobs.count).collect();
    for batch in numbers.chunks(jobs.at_once) {
        let mut dials = JoinSet::new();
        let mut pods = Vec::new();
        for &number in batch {
            let spec = short_pod(&jobs.namespace, "job", number, &jobs.nodes, &jobs.labels);
            let pod = world.start_pod(&spec, Vec::new())?;
            for family in world.families() {
                let question = Question {
                    from: pod.namespace.clone(),
                    to: world.address(&to, family)?,
                    traffic: jobs.dial.traffic,
                };
                let name = format!("{} over {family:?}", pod.key);
                dials.spawn_on(
                    async move {
                        let started = Instant::now();
                        (name, question.ask(patience).await, started.elapsed())
                    },
                    RUNTIME.handle(),
                );
            }
            pods.push(pod.key);
        }
        if jobs.crash {
            world.signal_agents(AgentAction::Kill, None)?;
            world.signal_agents(AgentAction::Start, None)?;
        }
        let expected = match jobs.expect {
            Dialled::Connected => Outcome::Accept,
            Dialled::Timeout => Outcome::Deny,
        };
        let slowest = jobs.slowest_s.map_or(patience, Duration::from_secs_f32);
        let mut wrong = Vec::new();
        for (name, outcome, took) in RUNTIME.block_on(dials.join_all()) {
            let outcome = outcome.with_context(|| name.clone())?;
            if outcome != expected || (outcome == Outcome::Accept && took > slowest) {
                wrong.push(format!("{name}: {outcome} after {took:?}"));
            }
        }
        ensure!(wrong.is_empty(), "not {expected} within {slowest:?}: {}", wrong.join(", "));
        for pod in &pods {
            world.remove_pod(pod)?;
        }
    }
    world.settle()
}

/// Runs pods, some at a time, that send to every target from the moment their interface carries the programs.
pub(super) fn burst(world: &mut World, burst: &Burst, longest: Duration) -> anyhow::Result<()> {
    let duration = Duration::from_secs_f32(burst.for_s).min(longest);
    let every = Duration::from_millis(burst.every_ms);
    let start = Instant::now();
    let mut sources: Vec<IpAddr> = Vec::new();
    let mut sent = 0;
    let numbers: Vec<usize> = (0..burst.count).collect();
    for batch in numbers.chunks(burst.at_once) {
        let mut pods = Vec::new();
        let mut senders = JoinSet::new();
        for &number in batch {
            let spec = short_pod(&burst.namespace, "burst", number, &burst.nodes, &burst.labels);
            let pod = world.start_pod(&spec, Vec::new())?;
            sources.extend(pod.addresses());
            await_guard(world, &spec.node)?;
            for target in &burst.to {
                for family in world.families() {
                    let to =
                        SocketAddr::new(world.address(&End::Pod(target.pod.clone()), family)?, target.traffic.port);
                    senders.spawn_on(
                        send_again_and_again(pod.namespace.clone(), to, target.traffic, every, duration),
                        RUNTIME.handle(),
                    );
                }
            }
            pods.push(pod);
        }
        for count in RUNTIME.block_on(senders.join_all()) {
            sent += count?;
        }
        for Pod { key, .. } in pods {
            world.remove_pod(&key)?;
        }
        // Interfaces that are gone must not be counted as guarded.
        world.settle()?;
    }
    ensure!(sent > burst.count * burst.to.len() * 10, "the pods sent no more than {sent} times");
    let arrived: usize =
        [Protocol::Tcp, Protocol::Udp].map(|protocol| world.arrivals.since(protocol, &sources, start)).iter().sum();
    ensure!(arrived <= burst.arrived_at_server, "{arrived} of {sent} arrived at a server");
    Ok(())
}

/// Waits until every pod's interface of a node is guarded.
fn await_guard(world: &World, node: &str) -> anyhow::Result<()> {
    let wanted = world.cluster.node(node).pods().count();
    let deadline = Instant::now() + GUARD_PATIENCE;
    while world.guarded(node)? < wanted {
        ensure!(Instant::now() < deadline, "{wanted} interfaces of {node} are not guarded");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

async fn send_again_and_again(
    from: Namespace,
    to: SocketAddr,
    traffic: Traffic,
    every: Duration,
    duration: Duration,
) -> anyhow::Result<usize> {
    let deadline = Instant::now() + duration;
    let mut sent = 0;
    // What the pod's own stack refuses is not sent; that enough is sent is looked at in the end.
    if traffic.protocol == Protocol::Udp {
        let socket = socket::udp(&from, socket::any(to.ip(), 0))?;
        while Instant::now() < deadline {
            sent += usize::from(socket.send_to(b"must not arrive", to).await.is_ok());
            tokio::time::sleep(every).await;
        }
    } else {
        while Instant::now() < deadline {
            let socket = socket::tcp_client(&from, to.ip(), 0)?;
            let _ = tokio::time::timeout(CONNECT_EVERY, socket.connect(to)).await;
            sent += 1;
        }
    }
    Ok(sent)
}

fn short_pod(namespace: &str, kind: &str, number: usize, nodes: &[String], labels: &Labels) -> PodSpec {
    PodSpec {
        pod: Name(PodKey { namespace: namespace.into(), name: format!("{kind}-{number}").into() }),
        node: nodes[number % nodes.len()].clone(),
        labels: labels.clone(),
        serves: Vec::new(),
        grace_s: None,
    }
}

/// Creates the objects in each of many namespaces, in every order in turn, and hands back what is right then.
pub(super) fn orders(world: &mut World, orders: &Orders) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for number in 0..orders.times {
        let name = format!("{}-{number}", orders.namespace);
        let Objects { namespaces, pods, policies, services } = renamed(&orders.objects, &orders.namespace, &name);
        world.create(&Objects { namespaces, ..Objects::default() })?;
        let mut parts = vec![
            Objects { pods, ..Objects::default() },
            Objects { policies, ..Objects::default() },
            Objects { services, ..Objects::default() },
        ];
        // The number's digits choose each time among the parts that are left.
        let (first, second) = (number % 3, number / 3 % 2);
        for place in [first, second, 0] {
            world.create(&parts.remove(place))?;
            std::thread::sleep(Duration::from_millis(30));
        }
        lines.extend(orders.then.iter().map(|line| Line {
            from: renamed_end(&line.from, &orders.namespace, &name),
            to: renamed_end(&line.to, &orders.namespace, &name),
            ..line.clone()
        }));
    }
    world.settle()?;
    Ok(lines)
}

/// The objects with another namespace in one's place.
fn renamed(objects: &Objects, old: &str, new: &str) -> Objects {
    let mut objects = objects.clone();
    if let Some(labels) = objects.namespaces.remove(old) {
        objects.namespaces.insert(new.into(), labels);
    }
    objects.pods.iter_mut().for_each(|pod| pod.pod.0 = renamed_key(&pod.pod.0, old, new));
    for policy in objects.policies.iter_mut().filter(|policy| policy["metadata"]["namespace"] == old) {
        policy["metadata"]["namespace"] = new.into();
    }
    objects.services.iter_mut().for_each(|service| service.service.0 = renamed_key(&service.service.0, old, new));
    objects
}

fn renamed_key(key: &PodKey, old: &str, new: &str) -> PodKey {
    if &*key.namespace == old { PodKey { namespace: new.into(), name: key.name.clone() } } else { key.clone() }
}

fn renamed_end(end: &End, old: &str, new: &str) -> End {
    match end {
        End::Pod(key) => End::Pod(renamed_key(key, old, new)),
        End::Service(key) => End::Service(renamed_key(key, old, new)),
        End::Node(_) | End::Outside => end.clone(),
    }
}
