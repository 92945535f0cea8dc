//! The agent's promises, by real packets.

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use npolicy_agent::rig::{Layout, Outcome, Probe, Protocol, probe_once};

use crate::cluster::{
    CLOSED, Cluster, OPEN, PODS, POLICY, Steady, connect, echo, eventually, retransmissions, seed_verdict,
};

/// Longer than an echo takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Shorter than the kernel waits before it sends a SYN again.
const ONE_SYN: Duration = Duration::from_millis(900);

fn tcp(to: std::net::IpAddr, port: u16) -> Probe {
    Probe { to, protocol: Protocol::Tcp, port }
}

#[test]
fn the_table_of_the_demo_holds_routed() {
    if let Some(cluster) = Cluster::start(Layout::Routed) {
        cluster.check_table(seed_verdict);
    }
}

#[test]
fn the_table_of_the_demo_holds_bridged() {
    if let Some(cluster) = Cluster::start(Layout::Bridged) {
        cluster.check_table(seed_verdict);
    }
}

#[test]
fn without_a_policy_everything_is_reached() {
    if let Some(cluster) = Cluster::start(Layout::Routed) {
        cluster.change_policy("");
        cluster.check_table(|_, _, _, _| Outcome::Accept);
        cluster.change_policy(POLICY);
        cluster.check_table(seed_verdict);
    }
}

#[test]
fn a_denied_connection_leaves_one_line_that_names_the_policy() {
    let Some(cluster) = Cluster::start(Layout::Routed) else { return };
    let database = cluster.pod("prod/database");
    for (number, to) in database.addresses().enumerate() {
        let outcome = probe_once(cluster.pod("dev/frontend"), tcp(to, OPEN), ONE_SYN, cluster.sctp).expect("a probe");
        assert_eq!(outcome, Outcome::Deny);
        eventually("a drop line", || cluster.drop_lines().len() > number);
        // Time for a second line that must not come.
        thread::sleep(Duration::from_millis(300));
        let lines = cluster.drop_lines();
        assert_eq!(lines.len(), number + 1, "{lines:?}");
        let line = &lines[number];
        assert_eq!(line["flow"]["verdict"], "DROPPED");
        assert_eq!(line["flow"]["traffic_direction"], "INGRESS");
        assert_eq!(line["flow"]["IP"]["destination"], to.to_string());
        assert_eq!(line["flow"]["l4"]["TCP"]["destination_port"], OPEN);
        assert_eq!(line["flow"]["source"]["pod_name"], "frontend");
        assert_eq!(line["flow"]["source"]["namespace"], "dev");
        assert_eq!(line["flow"]["destination"]["pod_name"], "database");
        assert_eq!(line["npolicy"]["isolated_by"], serde_json::json!(["prod/database-allow-backends"]));
        assert_eq!(line["npolicy"]["state"], "new");
        let outcome = probe_once(cluster.pod("dev/backend"), tcp(to, OPEN), PATIENCE, cluster.sctp).expect("a probe");
        assert_eq!(outcome, Outcome::Accept);
    }
}

#[test]
fn the_database_answers_and_opens_connections_itself() {
    let Some(cluster) = Cluster::start(Layout::Routed) else { return };
    let (database, frontend) = (cluster.pod("prod/database"), cluster.pod("dev/frontend"));
    for (own, other) in database.addresses().zip(frontend.addresses()) {
        let mut asked = connect(cluster.pod("prod/backend"), own, OPEN).expect("an allowed connection");
        for number in 0..20 {
            echo(&mut asked, number, PATIENCE).expect("an answer of the database");
        }
        for (protocol, port) in
            [(Protocol::Tcp, CLOSED), (Protocol::Udp, OPEN), (Protocol::Sctp, OPEN), (Protocol::Icmp, 0)]
        {
            let probe = Probe { to: other, protocol, port };
            let outcome = probe_once(database, probe, PATIENCE, cluster.sctp).expect("a probe");
            assert_eq!(outcome, Outcome::Accept, "prod/database to {probe}");
        }
    }
}

/// The demo's policy without its second peer.
fn policy_without_dev() -> String {
    let lines: Vec<_> = POLICY.lines().collect();
    let start = lines.iter().position(|line| line.contains("- namespaceSelector")).expect("the second peer");
    let end = lines.iter().position(|line| line.contains("ports:")).expect("the ports");
    [&lines[..start], &lines[end..]].concat().join("\n") + "\n"
}

fn a_removed_peer_is_cut_and_a_kept_one_loses_nothing(layout: Layout) {
    let Some(cluster) = Cluster::start(layout) else { return };
    let (kept, removed) = (cluster.pod("prod/backend"), cluster.pod("dev/backend"));
    let addresses: Vec<_> = cluster.pod("prod/database").addresses().collect();
    let mut cut = Vec::new();
    let mut running = Vec::new();
    for &to in &addresses {
        let mut stream = connect(removed, to, OPEN).expect("an allowed connection");
        echo(&mut stream, 1, PATIENCE).expect("an echo");
        cut.push(stream);
        let mut stream = connect(kept, to, OPEN).expect("an allowed connection");
        running.push(Steady::start(move |number| echo(&mut stream, number, PATIENCE).map_err(|error| error.kind())));
    }
    thread::sleep(Duration::from_millis(100));
    cluster.change_policy(&policy_without_dev());
    for stream in &mut cut {
        let stopped = echo(stream, 2, Duration::from_millis(700)).expect_err("the removed peer's connection must stop");
        assert!(matches!(stopped.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{stopped}");
    }
    for running in running {
        let echoes = running.stop();
        assert!(echoes.len() > 50, "{}", echoes.len());
        assert!(echoes.iter().all(Result::is_ok), "{echoes:?}");
    }
    assert_eq!(retransmissions(kept), 0, "the kept peer had to send again");
    assert_ne!(retransmissions(removed), 0, "the removed peer was told why");
    cluster.check_table(|from, to, protocol, port| match (from, to) {
        ("dev/backend", "prod/database") => Outcome::Deny,
        _ => seed_verdict(from, to, protocol, port),
    });
}

#[test]
fn a_removed_peer_is_cut_and_a_kept_one_loses_nothing_routed() {
    a_removed_peer_is_cut_and_a_kept_one_loses_nothing(Layout::Routed);
}

#[test]
fn a_removed_peer_is_cut_and_a_kept_one_loses_nothing_bridged() {
    a_removed_peer_is_cut_and_a_kept_one_loses_nothing(Layout::Bridged);
}

#[test]
fn verdicts_outlive_the_agent_and_the_next_one_takes_over_without_a_gap() {
    let Some(mut cluster) = Cluster::start(Layout::Routed) else { return };
    let database: Vec<_> = cluster.pod("prod/database").addresses().collect();
    let mut allowed = Vec::new();
    let mut opened = Vec::new();
    let mut denied = Vec::new();
    for &to in &database {
        let backend = cluster.pod("prod/backend").clone();
        let mut stream = connect(&backend, to, OPEN).expect("an allowed connection");
        allowed.push(Steady::start(move |number| echo(&mut stream, number, PATIENCE).map_err(|error| error.kind())));
        let backend = cluster.pod("dev/backend").clone();
        opened.push(Steady::start(move |number| {
            connect(&backend, to, OPEN)
                .and_then(|mut stream| echo(&mut stream, number, PATIENCE))
                .map_err(|error| error.kind())
        }));
        // Datagrams that must never be answered, a few hundred a second, each from a port of its own.
        let frontend = cluster.pod("dev/frontend").clone();
        denied.push(Steady::start(move |_| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = frontend.run(|| UdpSocket::bind(any)).expect("the pod's namespace").expect("a socket");
            socket.connect((to, OPEN)).expect("a destination");
            socket.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
            socket.send(b"must not arrive").expect("a datagram");
            socket.recv(&mut [0; 64]).map(|_| ()).map_err(|error| error.kind())
        }));
    }
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(100));
        cluster.kill_agent();
        thread::sleep(Duration::from_millis(100));
        cluster.start_agent();
    }
    thread::sleep(Duration::from_millis(200));
    for steady in allowed.into_iter().chain(opened) {
        let echoes = steady.stop();
        assert!(echoes.len() > 50, "{}", echoes.len());
        let failed: Vec<_> = echoes.iter().enumerate().filter(|(_, echo)| echo.is_err()).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
    for steady in denied {
        let answers = steady.stop();
        assert!(answers.len() > 50, "{}", answers.len());
        let wrong: Vec<_> = answers
            .iter()
            .enumerate()
            .filter(|(_, answer)| !matches!(answer, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)))
            .collect();
        assert!(wrong.is_empty(), "answered: {wrong:?}");
    }
    assert_eq!(retransmissions(cluster.pod("prod/backend")), 0, "a running connection had to send again");
    assert_eq!(retransmissions(cluster.pod("dev/backend")), 0, "a new connection had to send again");
    cluster.kill_agent();
    cluster.check_table(seed_verdict);
    cluster.start_agent();
    cluster.check_table(seed_verdict);
    // The agent that took over still follows its manifests.
    cluster.change_policy("");
    cluster.check_table(|_, _, _, _| Outcome::Accept);
}

#[test]
fn an_agent_that_takes_over_beside_a_broken_manifest_loosens_nothing() {
    let Some(mut cluster) = Cluster::start(Layout::Routed) else { return };
    cluster.kill_agent();
    cluster.write("policy.yaml", "kind: NetworkPolicy\nspec: [");
    cluster.launch_agent();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(cluster.published(), None);
    cluster.check_table(seed_verdict);
    cluster.write("policy.yaml", POLICY);
    cluster.wait_until_all_are_identified();
    cluster.check_table(seed_verdict);
}

// It may have been emptied to be filled again, or its volume may be gone.
#[test]
fn an_emptied_directory_opens_nothing() {
    let Some(mut cluster) = Cluster::start(Layout::Routed) else { return };
    cluster.check_table(seed_verdict);
    cluster.remove_manifests();
    eventually("the agent says that the manifests are gone", || {
        cluster.agent_log().iter().any(|line| line.contains("holds no manifests any more"))
    });
    cluster.check_table(seed_verdict);
    cluster.kill_agent();
    cluster.launch_agent();
    eventually("the next agent waits for manifests", || {
        cluster.agent_log().iter().any(|line| line.contains("verdicts of the last agent stay in force"))
    });
    cluster.check_table(seed_verdict);
}

#[test]
fn an_agent_after_one_that_never_published_waits_for_nothing() {
    let Some(mut cluster) = Cluster::start(Layout::Routed) else { return };
    cluster.kill_agent();
    cluster.forget_verdicts();
    cluster.write("broken.yaml", "kind: NetworkPolicy\nspec: [");
    cluster.start_agent();
    cluster.check_table(seed_verdict);
}

#[test]
fn an_interface_that_could_not_be_attached_is_tried_again() {
    let Some(mut cluster) = Cluster::start(Layout::Routed) else { return };
    let last = cluster.node.pods().map(|pod| pod.host_ifindex).max().expect("pods");
    // No link can be pinned over a directory.
    let hooks = |ifindex| ["ingress", "egress"].map(|hook| format!("{ifindex}-{hook}"));
    let obstacles: Vec<_> = (last + 1..last + 10).flat_map(hooks).map(|name| cluster.link_pins().join(name)).collect();
    obstacles.iter().for_each(|obstacle| fs::create_dir(obstacle).expect("a directory"));
    cluster.add_pod("prod", "late");
    thread::sleep(Duration::from_secs(1));
    let identified = || cluster.published().expect("a publish").identified;
    assert_eq!(identified(), PODS.len());
    obstacles.iter().for_each(|obstacle| fs::remove_dir(obstacle).expect("a directory that nobody used"));
    eventually("programs on the pod's interface", || identified() == PODS.len() + 1);
}
