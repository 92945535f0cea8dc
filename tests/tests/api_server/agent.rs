//! The agent under the server's faults, judged by packets.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use npolicy_agent::rig::Outcome;
use npolicy_tests::api_server::{Fault, Kind, Scope, Verb};
use serde_json::json;

use crate::world::{AT_START, PATIENCE, PODS, World, allow, deny_all};

const ACCEPT: Outcome = Outcome::Accept;
const DENY: Outcome = Outcome::Deny;

/// Long enough for an agent to do what it must not do.
const MEANWHILE: Duration = Duration::from_millis(800);

fn status(code: u16) -> Fault {
    Fault::Status { code, retry_after_s: None }
}

/// The requests by which a kind is read.
fn reading(kinds: &[Kind]) -> Scope {
    Scope::all().kinds(kinds).verbs(&[Verb::List, Verb::Watch])
}

#[test]
fn nothing_is_published_before_every_kind_was_read() {
    let Some(mut world) = World::start() else { return };
    world.server.install_cluster_policies(&["v1beta1"]);
    let mut subsets: Vec<Vec<Kind>> = Kind::WATCHED.iter().map(|&kind| vec![kind]).collect();
    subsets.push(vec![Kind::Pod, Kind::NetworkPolicy]);
    subsets.push(vec![Kind::Namespace, Kind::ClusterNetworkPolicy]);
    subsets.push(vec![Kind::Node, Kind::Service, Kind::EndpointSlice]);
    for (number, missing) in subsets.iter().enumerate() {
        world.kill_agent();
        // Looser, so that whoever publishes what it knows would let packets through.
        world.server.apply(allow("db", &["web", "guest"]));
        let fault = [status(503), Fault::Drop, Fault::Stall][number % 3];
        let fault = world.server.faults().add(reading(missing), fault);
        let before = world.server.asked().len();
        world.launch_agent();
        world.wait_asked(before, &Kind::WATCHED);
        thread::sleep(MEANWHILE);
        assert_eq!(world.published(), None, "without {missing:?}");
        world.check(&AT_START);
        world.server.faults().remove(fault);
        // A stalled connection would be given up only much later.
        world.server.cut_connections();
        world.eventually(PATIENCE, &[("shop/guest", "shop/db", ACCEPT)]);
        world.server.apply(allow("db", &["web"]));
        world.eventually(PATIENCE, &AT_START);
    }
}

#[test]
fn an_outage_keeps_verdicts_and_what_changed_meanwhile_comes_after_it() {
    let Some(mut world) = World::start() else { return };
    for is_restarted in [false, true] {
        world.server.go_away();
        world.server.apply(allow("db", &["guest"]));
        world.server.compact();
        world.wait_log(&["WARN", "Pod", "trying again"]);
        let before = world.log().lines().count();
        thread::sleep(3 * MEANWHILE);
        let lines = world.log().lines().count() - before;
        // Each of the seven watches may say once more what goes wrong, as it goes wrong otherwise.
        assert!(lines <= 14, "{lines} lines while nothing happens:\n{}", world.log());
        world.check(&AT_START);
        if is_restarted {
            world.kill_agent();
            world.check(&AT_START);
            world.launch_agent();
            world.wait_log(&["WARN", "NetworkPolicy", "trying again"]);
            thread::sleep(MEANWHILE);
            assert_eq!(world.published(), None);
            world.check(&AT_START);
        }
        world.server.come_back();
        let changed = [("shop/web", "shop/db", DENY), ("shop/guest", "shop/db", ACCEPT)];
        world.eventually(PATIENCE, &changed);
        world.server.apply(allow("db", &["web"]));
        world.eventually(PATIENCE, &AT_START);
    }
}

#[test]
fn cluster_policies_are_obeyed_as_long_as_their_crd_is_there() {
    let Some(world) = World::start() else { return };
    let denied = [("shop/guest", "shop/mark", DENY)];
    world.server.install_cluster_policies(&["v1beta1"]);
    world.server.apply(deny_all("mark", "v1beta1"));
    world.eventually(PATIENCE, &denied);
    // Errors are no absence, whatever they are.
    for code in [500, 403, 404] {
        let fault = world.server.faults().add(reading(&[Kind::ClusterNetworkPolicy]), status(code));
        let before = world.server.asked().len();
        world.server.cut_connections();
        world.wait_asked(before, &[Kind::ClusterNetworkPolicy]);
        thread::sleep(MEANWHILE);
        world.check(&denied);
        // It is told with its kind, and not again at each try.
        assert!(!world.log().contains("ERROR failed with status"), "{}", world.log());
        world.server.faults().remove(fault);
    }
    // A version that nobody here knows may say anything.
    world.server.install_cluster_policies(&["v2"]);
    world.server.cut_connections();
    world.wait_log(&["ClusterNetworkPolicy in v2 alone"]);
    thread::sleep(MEANWHILE);
    world.check(&denied);
    world.server.install_cluster_policies(&["v1alpha2", "v1beta1"]);
    world.server.edit(Kind::ClusterNetworkPolicy, "", "deny-mark", |policy| {
        policy["spec"]["subject"]["pods"]["podSelector"]["matchLabels"]["app"] = "db".into();
    });
    world.eventually(PATIENCE, &[("shop/guest", "shop/mark", ACCEPT), ("shop/web", "shop/db", DENY)]);
    world.server.install_cluster_policies(&[]);
    world.eventually(PATIENCE, &AT_START);
}

#[test]
fn a_pod_that_a_list_under_way_has_not_named_yet_gets_nobodys_policies() {
    let Some(mut world) = World::start() else { return };
    // Selected by nothing, and without an address for ever: whoever is judged as this one is open.
    let pending = |name: &str, node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "other", "name": name},
            "spec": {"nodeName": node}, "status": {"phase": "Pending"},
        })
    };
    world.server.apply(pending("bait", "n1"));
    // They make the list long.
    for number in 0..100 {
        world.server.apply(pending(&format!("far{number}"), "n2"));
    }
    world.server.apply(allow("late", &["web"]));
    world.wait_published(|ready| ready.policies == 2);
    let slow = Fault::Slow { bytes: 1024, every: Duration::from_millis(500) };
    world.server.faults().add(reading(&[Kind::Pod]), slow);
    world.server.faults().add_times(reading(&[Kind::Pod]), status(410), 1);
    let before = world.server.asked().len();
    world.server.cut_connections();
    world.wait_asked(before, &[Kind::Pod]);
    let _listeners = world.add_pod("shop/late");
    world.server.apply(world.pod_object("shop/late", "late"));
    let denied = [("shop/guest", "shop/late", DENY)];
    world.eventually(PATIENCE, &denied);
    for _ in 0..5 {
        thread::sleep(MEANWHILE / 2);
        world.check(&denied);
    }
    world.server.faults().clear();
    world.server.cut_connections();
    world.eventually(PATIENCE, &[("shop/web", "shop/late", ACCEPT), ("shop/guest", "shop/late", DENY)]);
}

#[test]
fn a_pod_that_changes_its_addresses_without_end_holds_up_no_other() {
    let Some(mut world) = World::start() else { return };
    world.server.apply(allow("late", &["web"]));
    // So many that the kernel cannot list them in one go.
    let mut all = String::new();
    for number in 0..6000 {
        writeln!(all, "address add 10.99.{}.{}/32 dev eth0", number / 250, number % 250).expect("a String");
    }
    let mut one = String::new();
    for _ in 0..2000 {
        one.push_str("address add 10.98.0.1/32 dev eth0\naddress delete 10.98.0.1/32 dev eth0\n");
    }
    let batch = |text: &str| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a batch");
        file
    };
    let (all, one) = (batch(&all), batch(&one));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let restless = world.pod("other/client").namespace.path();
        let (all, one, is_over) = (&all, &one, &is_over);
        let ip = move |file: &tempfile::NamedTempFile| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", restless.display())).args(["ip", "-batch"]).arg(file.path());
            assert!(command.status().expect("ip").success());
        };
        ip(all);
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                ip(one);
            }
        });
        thread::sleep(MEANWHILE);
        let _listeners = world.add_pod("shop/late");
        world.server.apply(world.pod_object("shop/late", "late"));
        world.eventually(PATIENCE, &[("shop/web", "shop/late", ACCEPT), ("shop/guest", "shop/late", DENY)]);
        assert!(!world.log().contains("cannot read the interfaces"), "{}", world.log());
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_kind_that_is_refused_is_named_and_opens_nothing() {
    let Some(world) = World::start() else { return };
    for (code, kind) in
        [(403, Kind::NetworkPolicy), (401, Kind::Namespace), (403, Kind::Pod), (404, Kind::NetworkPolicy)]
    {
        let fault = world.server.faults().add(reading(&[kind]), status(code));
        world.server.apply(allow("db", &["web", "guest"]));
        world.server.cut_connections();
        world.wait_log(&["WARN", kind.name(), &code.to_string()]);
        if code == 403 {
            world.wait_log(&["ClusterRole", kind.plural()]);
        }
        if kind == Kind::NetworkPolicy {
            thread::sleep(MEANWHILE);
            world.check(&AT_START);
        }
        world.server.faults().remove(fault);
        world.eventually(PATIENCE, &[("shop/guest", "shop/db", ACCEPT)]);
        world.server.apply(allow("db", &["web"]));
        world.eventually(PATIENCE, &AT_START);
    }
}

#[test]
fn an_empty_list_after_an_error_is_not_taken_for_the_truth() {
    let Some(world) = World::start() else { return };
    for kind in [Kind::NetworkPolicy, Kind::Namespace, Kind::Pod] {
        let before = world.server.asked().len();
        world.server.faults().add_times(reading(&[kind]), Fault::RefuseStreaming, 1);
        let lie = world.server.faults().add_times(reading(&[kind]), Fault::EmptyList, 1);
        world.server.faults().add_times(reading(&[kind]), status(410), 1);
        world.server.cut_connections();
        world.wait_asked(before, &[kind]);
        thread::sleep(2 * MEANWHILE);
        world.check(&AT_START);
        assert_eq!(world.server.faults().happened(lie), 1, "{kind:?}");
        world.server.faults().clear();
    }
}

#[test]
fn what_cannot_be_represented_is_named_and_opens_nothing() {
    let Some(world) = World::start() else { return };
    let reached = [("shop/guest", "shop/mark", ACCEPT)];
    let denied = [("shop/guest", "shop/mark", DENY), ("other/client", "shop/mark", DENY)];
    // A field of the future may narrow what the rule means.
    let mut policy = allow("mark", &["guest"]);
    policy["spec"]["ingress"][0]["from"][0]["schedule"] = json!({"days": ["Monday"]});
    world.server.apply(policy);
    world.wait_log(&["shop/mark", "schedule"]);
    world.eventually(PATIENCE, &denied);
    world.server.apply(allow("mark", &["guest"]));
    world.eventually(PATIENCE, &reached);
    world.server.delete(Kind::NetworkPolicy, "shop", "mark");
    world.eventually(PATIENCE, &[("other/client", "shop/mark", ACCEPT)]);
    // An operator that nobody knows, in what selects the subjects: the policy may be about any pod of its namespace.
    let mut policy = allow("mark", &["web"]);
    policy["spec"]["podSelector"] =
        json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["mark"]}]});
    world.server.apply(policy);
    world.wait_log(&["shop/mark", "Like"]);
    world.check(&AT_START[..3]);
    world.server.delete(Kind::NetworkPolicy, "shop", "mark");
    world.eventually(PATIENCE, &reached);
    // Objects with fields of the future that nothing here depends on.
    world.server.edit(Kind::Pod, "shop", "guest", |pod| pod["spec"]["futureField"] = json!({"a": [1]}));
    world.server.edit(Kind::Namespace, "", "shop", |namespace| namespace["spec"]["futureField"] = true.into());
    world.server.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "broken", "labels": {"app": "guest"}},
        "spec": {"nodeName": "n2"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.256"}]},
    }));
    world.wait_log(&["shop/broken", "10.0.0.256"]);
    world.server.apply(allow("mark", &["guest"]));
    world.eventually(PATIENCE, &[("shop/guest", "shop/mark", ACCEPT), ("other/client", "shop/mark", DENY)]);
}

#[test]
fn policies_of_a_namespace_that_is_being_deleted_stay_until_it_is_gone() {
    let Some(world) = World::start() else { return };
    world.server.delete(Kind::Namespace, "", "shop");
    // As the controller does, which hears of the namespace first: policies before pods.
    thread::sleep(MEANWHILE / 4);
    world.server.delete(Kind::NetworkPolicy, "shop", "db");
    thread::sleep(2 * MEANWHILE);
    world.check(&AT_START);
    assert_eq!(world.published().map(|ready| ready.policies), Some(1));
    let pods = PODS.iter().filter_map(|(pod, _)| pod.strip_prefix("shop/"));
    pods.for_each(|pod| world.server.delete(Kind::Pod, "shop", pod));
    // Nobody knows whose their interfaces are now; the controller ends the namespace when it has seen all this.
    world.wait_published(|ready| ready.identified == 1);
    world.server.end_namespace("shop");
    world.wait_published(|ready| ready.policies == 0);
    let denied = [("shop/guest", "shop/db", DENY), ("other/client", "shop/db", DENY)];
    world.check(&denied);
}

#[test]
fn a_kind_that_stalls_holds_up_no_other() {
    let Some(world) = World::start() else { return };
    let stalled = world.server.faults().add(reading(&[Kind::Service]), Fault::Stall);
    let cut = world.server.faults().add(reading(&[Kind::EndpointSlice]), Fault::StallWithin { bytes: 20 });
    world.server.cut_connections();
    world.server.apply(allow("db", &["guest"]));
    world.eventually(PATIENCE, &[("shop/web", "shop/db", DENY), ("shop/guest", "shop/db", ACCEPT)]);
    world.wait_log(&["Service", "no answer from the API server within"]);
    world.server.faults().remove(stalled);
    world.server.faults().remove(cut);
}

#[test]
fn an_expired_token_keeps_verdicts_and_a_new_one_is_used() {
    let Some(mut world) = World::without_agent() else { return };
    world.server.require_token(Some("first"));
    world.renew_kubeconfig();
    world.start_agent();
    world.check(&AT_START);
    world.server.require_token(Some("second"));
    world.server.cut_connections();
    world.server.apply(allow("db", &["web", "guest"]));
    world.wait_log(&["WARN", "401"]);
    world.check(&AT_START);
    assert!(!world.log().contains("first"), "the token is in the log:\n{}", world.log());
    // A kubeconfig is read once; the next agent reads it anew.
    world.renew_kubeconfig();
    world.kill_agent();
    world.check(&AT_START);
    world.start_agent();
    world.eventually(PATIENCE, &[("shop/guest", "shop/db", ACCEPT)]);
}

#[test]
fn a_server_that_was_restored_from_a_backup_is_believed() {
    let Some(world) = World::start() else { return };
    let backup = world.server.snapshot();
    world.server.apply(allow("db", &["web", "guest"]));
    world.eventually(PATIENCE, &[("shop/guest", "shop/db", ACCEPT)]);
    for number in 0..10 {
        world.server.edit(Kind::Namespace, "", "other", |it| it["metadata"]["labels"]["n"] = number.to_string().into());
    }
    world.server.restore(&backup);
    world.eventually(PATIENCE, &AT_START);
    world.server.apply(allow("db", &["guest"]));
    world.eventually(PATIENCE, &[("shop/web", "shop/db", DENY), ("shop/guest", "shop/db", ACCEPT)]);
}
