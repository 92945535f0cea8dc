//! `npolicy demo`, as a user runs it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use npolicy_tests::{npolicy_binary, require_root};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cluster::eventually;

fn demo(scratch: &Path) -> Command {
    let mut command = Command::new(npolicy_binary());
    command.arg("demo").env("TMPDIR", scratch).stdin(Stdio::null());
    command
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).expect("a directory").next().is_none()
}

#[test]
fn prints_one_object_a_connection_and_all_are_as_expected() {
    if !require_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let output = demo(scratch.path()).arg("--json").output().expect("the demo");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    let mut objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let totals = objects.pop().expect("totals");
    assert_eq!(totals["probes"], objects.len());
    assert_eq!(totals["as_expected"], objects.len());
    assert_eq!(totals["different"], 0);
    let question = |object: &Value| {
        let part = |name: &str| object[name].to_string().replace('"', "");
        format!("{} {} {} {} {}", part("from"), part("to"), part("protocol"), part("port"), part("family"))
    };
    let observed: HashMap<_, _> = objects.iter().map(|object| (question(object), &object["observed"])).collect();
    assert_eq!(observed.len(), objects.len(), "a connection is there twice");
    assert_eq!(observed["dev/backend prod/database TCP 8080 IPv4"], "Accept");
    assert_eq!(observed["dev/frontend prod/database TCP 8080 IPv4"], "Deny");
    assert_eq!(observed["dev/backend prod/database UDP 8080 IPv6"], "Deny");
    assert_eq!(observed["prod/database dev/frontend ICMP null IPv6"], "Accept");
    assert!(is_empty(scratch.path()));
}

#[test]
fn tells_the_story_with_the_drop_line_and_the_trap() {
    if !require_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let output = demo(scratch.path()).arg("--bridged").output().expect("the demo");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("isolated by prod/database-allow-backends"), "{text}");
    let opened: Vec<_> = text.lines().filter(|line| line.contains("opened:")).collect();
    let families = if Path::new("/proc/sys/net/ipv6").exists() { 2 } else { 1 };
    assert_eq!(opened.len(), families, "{text}");
    assert!(opened.iter().all(|line| line.contains("dev/frontend to prod/database TCP 8080")), "{text}");
    assert!(!text.contains("closed:"), "{text}");
    assert!(text.lines().all(|line| line.trim_end() == line), "a line ends in blanks:\n{text}");
}

#[test]
fn takes_one_file_and_names_what_it_cannot_make() {
    if !require_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pods.yaml");
    let text = "kind: Pod\nmetadata: {name: web}\n---\nkind: Pod\nmetadata: {labels: {app: web}}\n";
    fs::write(&file, text).expect("a manifest");
    fs::write(directory.path().join("latin.yaml"), b"# caf\xe9\n").expect("a manifest");
    std::os::unix::fs::symlink("nowhere", directory.path().join("dangling.yaml")).expect("a link");
    let notes_of = |path: &Path| {
        let output = demo(scratch.path()).arg("--file").arg(path).output().expect("the demo");
        let notes = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success(), "{}\n{notes}", output.status);
        notes
    };
    for path in [file.as_path(), directory.path()] {
        let notes = notes_of(path);
        assert!(notes.contains("pods.yaml:5: error: Pod: metadata: `name` is missing"), "{notes}");
        assert!(notes.contains("making 1 pod\n"), "{notes}");
        assert!(notes.contains("default/web is the only pod"), "{notes}");
        let named = ["latin.yaml", "dangling.yaml"].iter().filter(|name| notes.contains(**name)).count();
        assert_eq!(named, if path == file { 0 } else { 2 }, "{notes}");
    }
}

#[test]
fn files_without_a_pod_cannot_be_used() {
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("nameless.yaml");
    fs::write(&file, "kind: Pod\nmetadata: {}\n").expect("a manifest");
    for path in [&file, &scratch.path().join("nowhere")] {
        let output = demo(scratch.path()).arg("--file").arg(path).output().expect("the demo");
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn takes_ones_own_manifests() {
    if !require_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let manifests = tempfile::tempdir().expect("a directory");
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: web, labels: {app: web}}\n\
        status: {phase: Running, podIPs: [{ip: 192.0.2.7}]}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: db, labels: {app: db}}\n\
        spec: {containers: [{name: db, ports: [{containerPort: 5432}]}]}\n---\n\
        apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: db}\n\
        spec:\n  podSelector: {matchLabels: {app: db}}\n  ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]\n";
    fs::write(manifests.path().join("shop.yaml"), text).expect("a manifest");
    let output = demo(scratch.path()).arg("--json").arg("--file").arg(manifests.path()).output().expect("the demo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let line = |to: &str, port: u16| {
        let wanted = format!("\"to\":\"{to}\",\"protocol\":\"TCP\",\"port\":{port},\"family\":\"IPv4\"");
        text.lines().find(|line| line.contains(&wanted)).unwrap_or_else(|| panic!("no {wanted} in\n{text}")).to_owned()
    };
    assert!(line("shop/db", 5432).contains("\"observed\":\"Accept\""));
    assert!(line("shop/db", 5433).contains("\"observed\":\"Deny\""));
    assert!(line("shop/web", 5433).contains("\"observed\":\"Accept\""));
    // The web pod has an IPv4 address and no other.
    assert!(!text.contains("IPv6"), "{text}");
}

/// Starts a demo that stays up, and waits until it does; also gives its agent, and what it says of the ways in.
fn hold(scratch: &Path) -> (std::process::Child, Vec<Pid>, Vec<String>) {
    let mut demo = demo(scratch).arg("--hold").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the demo");
    let stdout = BufReader::new(demo.stdout.take().expect("stdout"));
    let mut lines = stdout.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("stays up until Ctrl-C")), "it ended early");
    let ways_in: Vec<_> = lines.by_ref().take_while(|line| line != "Drops:").collect();
    let children = format!("/proc/{}/task", demo.id());
    let mut agents = Vec::new();
    for thread in fs::read_dir(children).expect("threads") {
        let of_thread = fs::read_to_string(thread.expect("a thread").path().join("children")).unwrap_or_default();
        agents.extend(of_thread.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().expect("a number"))));
    }
    assert_eq!(agents.len(), 1, "one agent");
    // Keeps the pipe open until the demo ends.
    thread::spawn(move || lines.count());
    (demo, agents, ways_in)
}

fn is_running(process: Pid) -> bool {
    // A process that ended and that nobody has waited for yet still has a number.
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[test]
fn holds_the_first_policy_and_gives_a_line_to_copy() {
    if !require_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let (mut demo, _, ways_in) = hold(scratch.path());
    assert!(ways_in[0].contains("TCP 8080, TCP 9090"), "{ways_in:?}");
    let example = ways_in.iter().find(|line| line.ends_with("echo connected")).expect("an example");
    let is_connected = |line: &str| {
        let output = Command::new("timeout").args(["2", "bash", "-c", line]).output().expect("bash");
        output.stdout == b"connected\n"
    };
    assert!(is_connected(example), "{example}");
    // The same connection from where only the split policy accepts it.
    let namespace = |line: &str| line.split(' ').find(|word| word.starts_with("--net=")).expect("a path").to_owned();
    let frontend = ways_in.iter().find(|line| line.contains("dev/frontend ")).expect("the pod");
    assert!(!is_connected(&example.replace(&namespace(example), &namespace(frontend))), "{ways_in:?}");
    kill_process(Pid::from_child(&demo), Signal::INT).expect("a signal");
    assert!(demo.wait().expect("the demo").success());
}

#[test]
fn leaves_nothing_behind_on_ctrl_c() {
    if !require_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let (mut demo, agents, _) = hold(scratch.path());
    kill_process(Pid::from_child(&demo), Signal::INT).expect("a signal");
    let status = demo.wait().expect("the demo");
    assert!(status.success(), "{status}");
    assert!(agents.iter().all(|agent| !is_running(*agent)));
    assert!(is_empty(scratch.path()));
}

#[test]
fn a_killed_demo_takes_its_agent_along_and_the_next_one_removes_its_files() {
    if !require_root() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let (mut first, agents, _) = hold(scratch.path());
    first.kill().expect("a signal");
    first.wait().expect("the demo");
    eventually("the agent ends with the demo", || agents.iter().all(|agent| !is_running(*agent)));
    assert!(!is_empty(scratch.path()), "nothing is left that the next demo could remove");
    let (mut second, _, _) = hold(scratch.path());
    assert_eq!(fs::read_dir(scratch.path()).expect("a directory").count(), 1);
    kill_process(Pid::from_child(&second), Signal::TERM).expect("a signal");
    assert!(second.wait().expect("the demo").success());
    thread::sleep(Duration::from_millis(10));
    assert!(is_empty(scratch.path()));
}
