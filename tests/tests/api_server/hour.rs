//! An hour of faults in a minute and a half, and random faults with random changes, under probes that never pause.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use npolicy_agent::rig::Outcome;
use npolicy_tests::api_server::{Fault, Kind, Schedule, Scope, Verb};
use serde_json::{Value, json};

use crate::traffic::Traffic;
use crate::world::{Expected, PATIENCE, PODS, World, allow, deny_all};

const ACCEPT: Outcome = Outcome::Accept;
const DENY: Outcome = Outcome::Deny;

/// The probes of every moment: they hold whatever is changed below.
const ALWAYS: [Expected; 4] = [
    ("shop/web", "shop/db", ACCEPT),
    ("shop/guest", "shop/db", DENY),
    ("other/client", "shop/db", DENY),
    ("shop/db", "shop/guest", ACCEPT),
];

/// How long each fault of the hour is in force.
const FAULT_LASTS: Duration = Duration::from_millis(2200);

/// Every fault, one after another.
fn faults_of_the_hour() -> Vec<(Scope, Fault)> {
    let status = |code, retry_after_s| Fault::Status { code, retry_after_s };
    let all = || Scope::all().verbs(&[Verb::List, Verb::Watch, Verb::Discover]);
    let of = |kinds: &[Kind]| Scope::all().kinds(kinds).verbs(&[Verb::List, Verb::Watch]);
    vec![
        (all(), status(500, None)),
        (all(), status(401, None)),
        (of(&[Kind::NetworkPolicy]), status(403, None)),
        (of(&[Kind::Namespace, Kind::Pod]), status(403, None)),
        (of(&[Kind::NetworkPolicy, Kind::ClusterNetworkPolicy]), status(404, None)),
        (all(), status(410, None)),
        (all(), status(429, Some(1))),
        (all(), status(503, Some(1))),
        (all(), status(504, None)),
        (all(), Fault::Drop),
        (all(), Fault::Stall),
        (all(), Fault::StallWithin { bytes: 60 }),
        (all(), Fault::DropWithin { bytes: 60 }),
        (all(), Fault::Truncate { bytes: 60 }),
        (all(), Fault::Slow { bytes: 16, every: Duration::from_millis(5) }),
        (all(), Fault::Duplicate),
        (of(&[Kind::Namespace]), Fault::Hold { by: Duration::from_millis(700) }),
        (of(&[Kind::Pod]), Fault::Hold { by: Duration::from_millis(700) }),
        (all(), Fault::BookmarksOnly),
        (all(), Fault::StaleList { changes: 15 }),
        (all(), Fault::PartialPage { items: 1 }),
        (all(), Fault::RefuseStreaming),
    ]
}

/// Things that happen in a cluster all the time and change no verdict of [`ALWAYS`].
fn go_on(world: &World, number: u64) {
    let server = &world.server;
    server.edit(Kind::Pod, "shop", "web", |pod| pod["metadata"]["labels"]["round"] = number.to_string().into());
    server.edit(Kind::Namespace, "", "other", |it| it["metadata"]["labels"]["round"] = number.to_string().into());
    server.apply(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "other", "name": format!("far-{}", number % 7), "labels": {"app": "web"}},
        "spec": {"nodeName": "n2", "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.99.0.{}", 1 + number % 250)}]},
    }));
    let mut policy = allow("db", &["web"]);
    policy["spec"]["ingress"][0]["ports"] = match number % 3 {
        0 => {
            json!([{"protocol": "UDP", "port": 1, "endPort": 65535}, {"protocol": "TCP", "port": 1, "endPort": 65535}])
        }
        1 => json!([{"protocol": "TCP"}, {"protocol": "UDP"}]),
        _ => Value::Null,
    };
    if number % 3 == 2 {
        policy["spec"]["ingress"][0].as_object_mut().expect("a rule").remove("ports");
    }
    server.apply(policy);
    server.apply(allow("nobody", if number.is_multiple_of(2) { &["web"] } else { &["guest"] }));
}

// A judge that cannot say no is none.
#[test]
fn probes_notice_an_opening_and_a_loss() {
    let Some(world) = World::start() else { return };
    let traffic = Traffic::start(&world, &ALWAYS);
    world.server.apply(allow("db", &["guest"]));
    world.eventually(PATIENCE, &[("shop/web", "shop/db", DENY), ("shop/guest", "shop/db", ACCEPT)]);
    world.server.apply(allow("db", &["web"]));
    world.eventually(PATIENCE, &ALWAYS);
    let (_, wrong) = traffic.end();
    let says =
        |from: &str, what: &str| wrong.iter().filter(|line| line.starts_with(from) && line.contains(what)).count();
    let families = world.node.families().len();
    assert_eq!(says("shop/guest to shop/db", "delivered, the first"), families, "{wrong:?}");
    assert_eq!(says("shop/web to shop/db", "lost, the first"), families, "{wrong:?}");
    assert_eq!(wrong.len(), 2 * families, "{wrong:?}");
}

#[test]
fn an_hour_of_faults_changes_no_verdict() {
    let Some(mut world) = World::start() else { return };
    world.server.install_cluster_policies(&["v1beta1"]);
    world.server.apply(deny_all("nobody", "v1beta1"));
    let traffic = Traffic::start(&world, &ALWAYS);
    let started = Instant::now();
    let mut number = 0;
    for (place, (scope, fault)) in faults_of_the_hour().into_iter().enumerate() {
        let fault = world.server.faults().add(scope, fault);
        // Every second time the faults meet running watches, and then new requests.
        if place % 2 == 0 {
            world.server.cut_connections();
        }
        if place % 5 == 3 {
            world.kill_agent();
            world.launch_agent();
        }
        let ends = Instant::now() + FAULT_LASTS;
        while Instant::now() < ends {
            go_on(&world, number);
            number += 1;
            thread::sleep(Duration::from_millis(100));
        }
        world.server.faults().remove(fault);
        if place % 4 == 1 {
            world.server.compact();
        }
        if place % 7 == 6 {
            world.server.go_away();
            go_on(&world, number);
            thread::sleep(FAULT_LASTS / 2);
            world.server.come_back();
        }
    }
    // A stalled watch would be given up only much later.
    world.server.cut_connections();
    world.server.apply(allow("mark", &["web"]));
    let obeyed = [("shop/web", "shop/mark", ACCEPT), ("shop/guest", "shop/mark", DENY)];
    world.eventually(PATIENCE, &obeyed);
    let counts = traffic.stop();
    world.check(&ALWAYS);
    println!("{counts:?} in {:?}, {number} rounds of changes", started.elapsed());
    assert!(counts.accepted > 5_000 && counts.denied > 5_000 && counts.echoes > 1_000, "{counts:?}");
}

/// The apps that a random policy may be about: never those of [`ALWAYS`] that must be reached.
const APPS: [&str; 2] = ["mark", "client"];

/// What random changes have made, as the server has it: policies by app, with whom each lets in, and whether a
/// ClusterNetworkPolicy denies.
fn truth(world: &World) -> Vec<Expected> {
    let policies = world.server.objects(Kind::NetworkPolicy);
    let denied = world.server.objects(Kind::ClusterNetworkPolicy);
    let app_of = |pod: &str| {
        let (namespace, name) = pod.split_once('/').expect("a pod");
        let pod = world.server.get(Kind::Pod, namespace, name).expect("a pod");
        pod["metadata"]["labels"]["app"].as_str().expect("an app").to_owned()
    };
    let reaches = |from: &str, to: &str| {
        let (app, peer) = (app_of(to), app_of(from));
        let is_denied =
            |policy: &Value| policy["spec"]["subject"]["pods"]["podSelector"]["matchLabels"]["app"] == app.as_str();
        if denied.iter().any(|policy| is_denied(policy)) {
            return false;
        }
        let namespace = |pod: &str| pod.split_once('/').expect("a pod").0.to_owned();
        let about: Vec<_> = policies
            .iter()
            .filter(|policy| policy["metadata"]["namespace"] == namespace(to).as_str())
            .filter(|policy| policy["spec"]["podSelector"]["matchLabels"]["app"] == app.as_str())
            .collect();
        let lets_in = |policy: &Value| {
            let peers = policy["spec"]["ingress"][0]["from"].as_array().cloned().unwrap_or_default();
            let is_peer = |peer_of: &Value| peer_of["podSelector"]["matchLabels"]["app"] == peer.as_str();
            namespace(from) == namespace(to) && peers.iter().any(is_peer)
        };
        about.is_empty() || about.iter().any(|policy| lets_in(policy))
    };
    let mut expected = Vec::new();
    for (from, _) in PODS {
        for (to, _) in PODS.iter().filter(|(to, _)| *to != from) {
            expected.push((from, *to, if reaches(from, to) { ACCEPT } else { DENY }));
        }
    }
    expected
}

/// One random change of what is not of [`ALWAYS`].
fn change(world: &World, random: &mut fastrand::Rng) {
    let server = &world.server;
    let app = *random.choice(APPS.iter()).expect("an app");
    match random.u8(..8) {
        0..3 => {
            let count = random.usize(..3);
            let peers = random.choose_multiple(["web", "guest", "db"], count);
            server.apply(allow(app, &peers));
        }
        3 if server.get(Kind::NetworkPolicy, "shop", app).is_some() => server.delete(Kind::NetworkPolicy, "shop", app),
        4 => drop(server.apply(deny_all(app, "v1beta1"))),
        5 if server.get(Kind::ClusterNetworkPolicy, "", &format!("deny-{app}")).is_some() => {
            server.delete(Kind::ClusterNetworkPolicy, "", &format!("deny-{app}"));
        }
        6 => drop(server.edit(Kind::Pod, "shop", "mark", |pod| {
            pod["metadata"]["labels"]["app"] = ["mark", "client", "none"][random.usize(..3)].into();
        })),
        _ => go_on(world, random.u64(..100)),
    }
}

#[test]
fn whatever_goes_wrong_the_agent_ends_with_the_truth_and_is_never_looser() {
    let Some(mut world) = World::start() else { return };
    world.server.set_bookmark_interval(Duration::from_millis(200));
    world.server.install_cluster_policies(&["v1beta1"]);
    let mut seen = BTreeSet::new();
    for seed in 0..8 {
        let traffic = Traffic::start(&world, &ALWAYS);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut active: Vec<(_, Instant)> = Vec::new();
        let mut schedule = Schedule::new(seed);
        let ends = Instant::now() + Duration::from_millis(2500);
        while Instant::now() < ends {
            change(&world, &mut random);
            match random.u8(..40) {
                0 => world.server.compact(),
                1 | 2 => world.server.cut_connections(),
                3 => {
                    world.kill_agent();
                    world.launch_agent();
                }
                _ => {}
            }
            active.retain(|(fault, until)| {
                let goes_on = *until > Instant::now();
                if !goes_on {
                    world.server.faults().remove(*fault);
                }
                goes_on
            });
            if active.len() < 2 {
                let next = schedule.next().expect("a fault");
                seen.insert(format!("{:?}", std::mem::discriminant(&next.fault)));
                active.push((world.server.faults().add(next.scope, next.fault), Instant::now() + next.lasts));
            }
            thread::sleep(Duration::from_millis(30));
        }
        world.server.faults().clear();
        // A stalled connection would be given up only much later.
        world.server.cut_connections();
        let expected = truth(&world);
        assert!(ALWAYS.iter().all(|always| expected.contains(always)), "seed {seed}: {expected:?}");
        println!(
            "seed {seed}: {} of {} denied",
            expected.iter().filter(|(.., it)| *it == DENY).count(),
            expected.len()
        );
        world.eventually(PATIENCE, &expected);
        traffic.stop();
    }
    assert!(seen.len() > 10, "{seen:?}");
}
