//! Does a manifest give this ruleset? Clusters as files, asked through the library.

use std::collections::BTreeMap;
use std::net::IpAddr;

use npolicy_agent::compile::{Bundle, Compiler, End, Engine, Peer, Plan, Protocol, Question, Scope};
use npolicy_agent::model::{ClusterState, Event, Object, PodKey};
use npolicy_agent::watch::manifests::Manifests;
use npolicy_common::{Direction, Family, Verdict};
use npolicy_tests::cases::{self, Case};

fn read(case: &Case) -> Manifests {
    Manifests::read(&case.files).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

#[test]
fn answers_every_case_as_expected() {
    let (mut asked, mut differences) = (0, Vec::new());
    for case in cases::all().unwrap() {
        let mut engine = Engine::new(read(&case).state());
        for row in &case.rows {
            let answer = match engine.ask(&row.question()) {
                Ok(answer) if answer.verdict == Verdict::Accept => "Accept",
                Ok(_) => "Deny",
                Err(_) => "error",
            };
            asked += 1;
            if answer != row.expect {
                differences.push(format!("{}: {}: {answer}, not {}: {}", case.name, row.line(), row.expect, row.why));
            }
        }
    }
    assert!(differences.is_empty(), "{} of {asked} answers differ:\n{}", differences.len(), differences.join("\n"));
    assert_eq!(asked, 786, "cases were added or lost: count them here");
}

/// What a plan means, without the numbers it gives: what each subject accepts from and to each address that the plan knows.
fn meaning(plan: &Plan) -> BTreeMap<(PodKey, Direction, IpAddr), Bundle> {
    let known = plan.exact.keys().copied().chain(plan.prefixes.iter().map(|(block, _)| block.network()));
    let mut addresses: Vec<IpAddr> = known.chain(plan.prefixes.iter().map(|(block, _)| block.broadcast())).collect();
    addresses.push("198.51.100.1".parse().unwrap());
    let mut meaning = BTreeMap::new();
    for (key, subject) in &plan.subjects {
        for direction in [Direction::Ingress, Direction::Egress] {
            for &address in &addresses {
                let row = subject.ruleset(direction).row(Peer::Class(plan.class_of(address)));
                meaning.insert((key.clone(), direction, address), row);
            }
        }
    }
    meaning
}

#[test]
fn the_order_of_events_and_earlier_compilations_change_nothing() {
    let mut used = Compiler::new(Scope::Everything);
    for case in cases::all().unwrap() {
        let objects: Vec<Object> = read(&case).objects().cloned().collect();
        let mut forward = ClusterState::default();
        for object in &objects {
            assert!(forward.apply(Event::Upsert(object.clone())), "{}: {} changes something", case.name, object.key());
        }
        let mut detour = ClusterState::default();
        for object in objects.iter().rev() {
            detour.apply(Event::Upsert(object.clone()));
            assert!(!detour.apply(Event::Upsert(object.clone())), "{}: the same again changes nothing", case.name);
        }
        for object in objects.iter().step_by(2) {
            assert!(detour.apply(Event::Delete(object.key())));
            assert!(!detour.apply(Event::Delete(object.key())));
        }
        for object in objects.iter().step_by(2) {
            assert!(detour.apply(Event::Upsert(object.clone())));
        }
        assert_eq!(forward, detour, "{}", case.name);

        let (fresh, _) = Compiler::new(Scope::Everything).compile(&forward);
        let (again, _) = used.compile(&detour);
        assert_eq!(meaning(&fresh), meaning(&again), "{}", case.name);
        assert_eq!(fresh.classes.len(), again.classes.len(), "{}", case.name);
    }
}

#[test]
fn a_node_compiles_only_what_its_own_pods_need() {
    for case in cases::all().unwrap() {
        let state = read(&case).state();
        let (everything, _) = Compiler::new(Scope::Everything).compile(&state);
        let mut subjects = 0;
        for node in state.nodes() {
            let (plan, _) = Compiler::new(Scope::Node(node.name.clone())).compile(&state);
            subjects += plan.subjects.len();
            assert!(plan.classes.len() <= everything.classes.len(), "{}: {}", case.name, node.name);
            assert_eq!(plan.node_addresses, node.addresses.iter().copied().collect());
            for (key, subject) in &plan.subjects {
                assert_eq!(state.pod(key).unwrap().node.as_ref(), Some(&node.name));
                for other in everything.subjects.values().flat_map(|subject| &subject.addresses) {
                    for direction in [Direction::Ingress, Direction::Egress] {
                        let mine = subject.ruleset(direction).row(Peer::Class(plan.class_of(*other)));
                        let theirs =
                            everything.subjects[key].ruleset(direction).row(Peer::Class(everything.class_of(*other)));
                        assert_eq!(mine, theirs, "{}: {key} {direction:?} {other}", case.name);
                    }
                }
            }
        }
        assert_eq!(subjects, everything.subjects.len(), "{}: every pod is some node's", case.name);
    }
}

#[test]
fn says_why_a_pod_cannot_be_asked_about() {
    let pod = |name: &str, status: &str| format!("---\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{{status}}}\n");
    let text = [
        pod("done", "phase: Succeeded, podIPs: [{ip: 10.0.0.1}]"),
        pod("waits", "phase: Pending"),
        pod("old", "phase: Running, startTime: '2026-01-01T00:00:00Z', podIPs: [{ip: 10.0.0.1}]"),
        pod("new", "phase: Running, startTime: '2026-01-01T00:00:01Z', podIPs: [{ip: 10.0.0.1}]"),
        pod("six", "phase: Running, podIPs: [{ip: 'fd00::1'}]"),
        pod("planned", ""),
    ]
    .concat();
    let mut engine = Engine::new(Manifests::from_text("t.yaml", &text).state());
    let pod = |name: &str| End::Pod(PodKey { namespace: "default".into(), name: name.into() });
    for (to, said) in [
        ("done", "pod default/done has finished, it sends and receives nothing"),
        ("waits", "pod default/waits has no address yet"),
        ("nobody", "there is no pod default/nobody"),
        ("new", ""),
        // A newer pod has its address: that one is asked.
        ("old", ""),
    ] {
        let question = Question { from: pod("new"), to: pod(to), protocol: Protocol::Icmp, family: Some(Family::V4) };
        let answered = engine.verdict(&question).map_err(|error| error.to_string());
        assert_eq!(answered, if said.is_empty() { Ok(Verdict::Accept) } else { Err(said.to_owned()) }, "{to}");
    }
    // A pod that no cluster has run could have an address of either family; one that runs has what it has.
    let mut question = Question { from: pod("planned"), to: pod("six"), protocol: Protocol::Icmp, family: None };
    assert_eq!(engine.verdict(&question), Ok(Verdict::Accept));
    question.from = pod("new");
    let said = engine.verdict(&question).unwrap_err().to_string();
    assert_eq!(said, "default/new and default/six have no address family in common");
}
