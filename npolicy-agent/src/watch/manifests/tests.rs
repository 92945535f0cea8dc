//! Files as a whole: what one mistake does to the rest, and what a later reading makes of it.

use super::*;

fn pod(name: &str, label: &str) -> String {
    format!("---\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {label}}}}}\n")
}

const POLICY: &str = "---\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {matchLabels: {app: web}}}\n";

fn findings(manifests: &Manifests) -> Vec<String> {
    manifests.diagnostics().iter().map(ToString::to_string).collect()
}

#[test]
fn a_broken_document_does_not_take_the_others() {
    let text = format!("# first\n{}---\na: [\n{}--- # none\n---\n\n...\n---\nb: 1\n", pod("a", "x"), pod("b", "x"));
    let manifests = Manifests::from_text("t.yaml", &text);
    assert_eq!(
        manifests.objects().map(|object| object.key().to_string()).collect::<Vec<_>>(),
        ["Pod default/a", "Pod default/b"]
    );
    let findings = findings(&manifests);
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings[0].starts_with("t.yaml:6: error: "), "{findings:?}");
    assert_eq!(findings[1], "t.yaml:15: error: `kind` is missing; the document is ignored");
    assert!(!manifests.is_certain());
}

#[test]
fn documents_are_split_at_markers_at_the_margin_alone() {
    let text = "a: |\n  x\n  ---\n  y\n---\nb: 1\n--- {c: 1}\n---- \n";
    assert_eq!(documents(text), [(0, "a: |\n  x\n  ---\n  y\n"), (4, "---\nb: 1\n"), (6, "--- {c: 1}\n---- \n")]);
    assert_eq!(documents(""), []);
    assert_eq!(documents("---\n# nothing\n---"), []);
    assert_eq!(documents("a: 1"), [(0, "a: 1")]);
    assert_eq!(documents("---\r\na: 1\r\n---\r\nb: 1\r\n").len(), 2);
}

#[test]
fn the_later_of_two_objects_counts() {
    let manifests = Manifests::from_text("t.yaml", &(pod("a", "x") + &pod("a", "y")));
    let labels = manifests.objects().map(|object| match object {
        Object::Pod(pod) => pod.labels.get("app").unwrap().to_owned(),
        other => panic!("{other:?}"),
    });
    assert_eq!(labels.collect::<Vec<_>>(), ["y"]);
    assert_eq!(
        findings(&manifests),
        ["t.yaml:5: warning: Pod default/a: replaces the object of the same name at t.yaml:2"]
    );
    assert!(manifests.is_certain());
}

#[test]
fn the_later_version_of_a_policy_counts_even_where_it_cannot_be_read() {
    let broken = POLICY.replace("matchLabels", "matchLabel");
    let manifests = Manifests::from_text("t.yaml", &(POLICY.to_owned() + &broken));
    assert_eq!((manifests.objects().count(), manifests.unreadable_policies().count()), (0, 1));
    let manifests = Manifests::from_text("t.yaml", &(broken + POLICY));
    assert_eq!((manifests.objects().count(), manifests.unreadable_policies().count()), (1, 0));
}

#[test]
fn changes_are_what_differs_between_two_readings() {
    let before = Manifests::from_text("t.yaml", &(pod("a", "x") + &pod("b", "x") + POLICY));
    let after = Manifests::from_text("u.yaml", &("\n".to_owned() + POLICY + &pod("b", "y") + &pod("c", "x")));
    let events: Vec<_> = after
        .events_since(&before)
        .iter()
        .map(|event| match event {
            Event::Upsert(object) => format!("+ {}", object.key()),
            Event::Delete(key) => format!("- {key}"),
        })
        .collect();
    assert_eq!(events, ["- Pod default/a", "+ Pod default/b", "+ Pod default/c"]);
    let mut state = before.state();
    for event in after.events_since(&before) {
        assert!(state.apply(event));
    }
    assert_eq!(state, after.state());
}

#[test]
fn an_editing_mistake_keeps_the_last_good_version() {
    let good = Manifests::from_text("t.yaml", &(pod("a", "x") + POLICY));
    let misspelt = POLICY.replace("matchLabels", "matchLabel");
    let kept = Manifests::from_text("t.yaml", &(pod("a", "x") + &misspelt)).or_last_good(&good);
    assert_eq!(kept.state(), good.state());
    assert!(findings(&kept).last().unwrap().contains("NetworkPolicy default/p: its last good version stays"));

    let cut = Manifests::from_text("t.yaml", &(pod("a", "y") + "---\nkind: NetworkPolicy\nmetadata: {name: [p\n"));
    let kept = cut.or_last_good(&good);
    assert_eq!(kept.objects().count(), 2, "the policy may be what the broken document was");
    assert_eq!(kept.events_since(&good).len(), 1, "what can be read is taken");

    for mistake in [
        POLICY.replace("NetworkPolicy", "NetworkPolcy"),
        POLICY.replace("name: p", "name: p, namespce: shop"),
        POLICY.replace("kind:", "kinds:"),
    ] {
        let shop = Manifests::from_text("t.yaml", &POLICY.replace("name: p", "name: p, namespace: shop"));
        let kept = Manifests::from_text("t.yaml", &mistake).or_last_good(&shop);
        let known = |object: &Object| object.key().to_string() == "NetworkPolicy shop/p";
        assert!(kept.objects().any(known), "{mistake}");
        assert!(!kept.is_certain());
    }

    let gone = Manifests::from_text("t.yaml", &pod("a", "x")).or_last_good(&good);
    assert_eq!(gone.objects().count(), 1, "what was taken out of a good file is gone");
}

const CLUSTER_POLICY: &str = "---\nkind: ClusterNetworkPolicy\nmetadata: {name: g}\nspec: {tier: Admin, priority: 1, \
                              subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}]}]}\n";

#[test]
fn a_cluster_policy_without_a_place_or_subject_keeps_its_last_good_version() {
    let good = Manifests::from_text("t.yaml", CLUSTER_POLICY);
    for (written, mistake) in [
        ("tier: Admin", "tier: Edge"),
        ("tier: Admin, ", ""),
        ("priority: 1", "priority: 1001"),
        ("priority: 1, ", ""),
        ("subject: {namespaces", "subject: {everybody"),
        ("subject: {namespaces: {}}, ", ""),
        ("egress:", "egres:"),
        ("spec:", "spce:"),
    ] {
        let broken = CLUSTER_POLICY.replace(written, mistake);
        assert_ne!(broken, CLUSTER_POLICY);
        // In another file, so that it is not the file that keeps it.
        let bad = Manifests::from_text("u.yaml", &broken);
        assert_eq!((bad.objects().count(), bad.unreadable_policies().count()), (0, 1), "{mistake}");
        assert!(!bad.is_certain(), "{mistake}");
        let kept = bad.or_last_good(&good);
        assert_eq!(kept.state(), good.state(), "{mistake}");
        let said = findings(&kept).pop().unwrap();
        assert!(said.ends_with("ClusterNetworkPolicy g: its last good version stays in force"), "{said}");
    }
    // A rule that cannot be read fails closed instead: the policy is the new one.
    let closed = Manifests::from_text("u.yaml", &CLUSTER_POLICY.replace("to: [{namespaces", "to: [{everybody"));
    assert!(closed.is_certain());
    assert_ne!(closed.or_last_good(&good).state(), good.state());
    let gone = Manifests::from_text("t.yaml", &pod("a", "x")).or_last_good(&good);
    assert_eq!(gone.state().cluster_policies().count(), 0, "what was taken out of a good file is gone");
}

const SERVICE: &str = "---\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 10.96.0.1, selector: {app: x}, \
                       ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]}\n";
const SLICE: &str = "---\nkind: EndpointSlice\nmetadata: {name: s-1, labels: {kubernetes.io/service-name: s}}\n\
                     addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}, \
                     {addresses: [10.0.0.2]}]\n";

#[test]
fn a_service_or_slice_that_can_be_read_in_part_keeps_its_last_good_version() {
    let good = Manifests::from_text("t.yaml", &(SERVICE.to_owned() + SLICE));
    assert!(good.is_certain());
    for (written, mistake) in [
        ("{addresses: [10.0.0.2]}", "{addresses: [10.0.0.256]}"),
        ("{addresses: [10.0.0.2]}", "{adresses: [10.0.0.2]}"),
        ("port: 8080", "port: web"),
        ("clusterIP: 10.96.0.1", "clusterIP: 10.96"),
        ("port: 80,", "port: 0,"),
    ] {
        let broken = Manifests::from_text("u.yaml", &(SERVICE.to_owned() + SLICE).replace(written, mistake));
        assert_eq!(broken.objects().count(), 2, "what can be read is");
        assert!(!broken.is_certain());
        assert_ne!(broken.state(), good.state(), "{mistake}");
        assert_eq!(broken.or_last_good(&good).state(), good.state(), "{mistake}");
    }
    // A second mistake does not end it, and what was read in part is no good version.
    let [one, two] = ["10.0.0.256", "10.0.0.257"].map(|address| {
        Manifests::from_text("u.yaml", &(SERVICE.to_owned() + SLICE).replace("10.0.0.2]", &format!("{address}]")))
    });
    assert_eq!(two.clone().or_last_good(&one.clone().or_last_good(&good)).state(), good.state());
    let moved = (SERVICE.to_owned() + SLICE).replace("10.0.0.1]", "10.0.0.9]").replace("10.0.0.2]", "10.0.0.256]");
    let moved = Manifests::from_text("u.yaml", &moved);
    assert_eq!(moved.clone().or_last_good(&one).state(), moved.state());
    let less = Manifests::from_text("u.yaml", &(SERVICE.to_owned() + SLICE).replace(", {addresses: [10.0.0.2]}", ""));
    assert!(less.is_certain());
    assert_ne!(less.or_last_good(&good).state(), good.state(), "an endpoint may well go");
}

fn running(name: &str, label: &str, address: &str, rest: &str) -> String {
    format!(
        "---\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {label}}}}}\nspec: {{nodeName: n1, containers: \
         [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}\nstatus: {{phase: Running, podIPs: [{address}]}}\n{rest}"
    )
}

/// What derived slices lead to, and the notes about them.
fn derived(manifests: &Manifests) -> (Vec<String>, Vec<String>) {
    let mut found = Vec::new();
    for object in manifests.objects() {
        let Object::EndpointSlice(slice) = object else { continue };
        let ports: Vec<_> = slice.ports.iter().map(|port| format!("{}={}", port.name, port.number)).collect();
        let at = slice.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>();
        found.push(format!("{} {} {}", slice.key.name, ports.join(","), at.join(",")));
    }
    let notes = manifests.diagnostics().iter().filter(|found| found.severity == Severity::Note);
    (found, notes.map(|note| note.message.clone()).collect())
}

#[test]
fn a_service_without_slices_leads_to_the_pods_that_it_selects() {
    let other_namespace = running("d", "x", "{ip: 10.0.0.4}", "").replace("name: d,", "name: d, namespace: other,");
    let ended = running("e", "x", "{ip: 10.0.0.5}", "").replace("Running", "Succeeded");
    let renamed = running("f", "x", "{ip: 10.0.0.6}", "").replace("name: web", "name: wob");
    let elsewhere = running("g", "x", "{ip: 10.0.0.7}", "").replace("8080", "9090");
    let text = [
        SERVICE.to_owned(),
        running("a", "x", "{ip: 10.0.0.1}, {ip: 'fd00::1'}", ""),
        running("b", "x", "{ip: 10.0.0.2}", ""),
        running("c", "y", "{ip: 10.0.0.3}", ""),
        other_namespace,
        ended,
        renamed,
        elsewhere,
        pod("h", "x"),
    ];
    let manifests = Manifests::from_text("t.yaml", &text.concat());
    let (slices, notes) = derived(&manifests);
    assert_eq!(
        slices,
        [
            "s-derived dns=53 10.0.0.6",
            "s-derived-2 http=8080,dns=53 10.0.0.1,fd00::1,10.0.0.2",
            "s-derived-3 http=9090,dns=53 10.0.0.7",
        ]
    );
    assert_eq!(
        notes,
        [
            "no EndpointSlice of it is given: its backends are the 4 pods that it selects; 1 pod without an address left out"
        ]
    );
    assert!(manifests.is_certain());
    assert!(findings(&manifests).last().unwrap().starts_with("t.yaml:2: note: Service default/s: "));
    let state = manifests.state();
    let frontends = state.frontends("10.96.0.1".parse().unwrap());
    let backends = frontends[0].backends.iter().map(|backend| format!("{}:{}", backend.address, backend.port));
    assert_eq!(backends.collect::<Vec<_>>(), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.7:9090"]);
    assert_eq!(frontends[0].backends[0].node.as_deref(), Some("n1"));
}

#[test]
fn nothing_is_derived_where_a_slice_is_given_or_no_pod_is_selected() {
    let a = running("a", "x", "{ip: 10.0.0.1}", "");
    for (text, slices, notes) in [
        (SERVICE.to_owned() + SLICE + &a, 1, 0),
        (SERVICE.to_owned() + &SLICE.replace("endpoints: [", "endpoints: [] # "), 1, 0),
        (SERVICE.replace("selector: {app: x}, ", "") + &a, 0, 0),
        (SERVICE.replace("10.96.0.1", "None") + &a, 0, 0),
        (SERVICE.replace("app: x", "app: z") + &a, 0, 1),
        (SERVICE.to_owned(), 0, 1),
        (SERVICE.replace("clusterIP: 10.96.0.1, selector: {app: x}, ", "") + &a, 0, 0),
        // The later Service counts, with what it says.
        (SERVICE.to_owned() + &SERVICE.replace("selector: {app: x}, ", "") + &a, 0, 0),
        (SERVICE.replace("selector: {app: x}, ", "") + SERVICE + &a, 1, 1),
    ] {
        let manifests = Manifests::from_text("t.yaml", &text);
        let found = derived(&manifests);
        assert_eq!((found.0.len(), found.1.len()), (slices, notes), "{text} {found:?}");
    }
    let taken = SLICE.replace("s-1", "s-derived").replace("service-name: s}", "service-name: other}");
    let (slices, _) = derived(&Manifests::from_text("t.yaml", &(SERVICE.to_owned() + &taken + &a)));
    assert_eq!(slices, ["s-derived http=8080 10.0.0.1,10.0.0.2", "s-derived-2 http=8080,dns=53 10.0.0.1"]);
}

#[test]
fn a_service_that_nobody_knows_the_backends_of_is_named() {
    let manual = SERVICE.replace("selector: {app: x}, ", "");
    let manifests = Manifests::from_text("t.yaml", &manual);
    assert_eq!(
        findings(&manifests),
        [
            "t.yaml:2: warning: Service default/s: no EndpointSlice of it is given and it selects no pods: it counts as having \
          no backends"
        ]
    );
    assert!(findings(&Manifests::from_text("t.yaml", &(manual.clone() + SLICE))).is_empty());
    assert!(findings(&Manifests::from_text("t.yaml", &manual.replace("10.96.0.1", "None"))).is_empty());
}

#[test]
fn what_was_derived_follows_what_is_read_later() {
    let a = running("a", "x", "{ip: 10.0.0.1}", "");
    let before = Manifests::from_text("t.yaml", &(SERVICE.to_owned() + &a));
    let more = SERVICE.to_owned() + &a + &running("b", "x", "{ip: 10.0.0.2}", "");
    let after = Manifests::from_text("t.yaml", &more).or_last_good(&before);
    assert_eq!(derived(&after).0, ["s-derived http=8080,dns=53 10.0.0.1,10.0.0.2"]);
    assert_eq!(after.events_since(&before).len(), 2, "the pod and the slice");
    assert_eq!(derived(&after).1.len(), 1, "{:?}", derived(&after).1);

    let given = Manifests::from_text("t.yaml", &(more.clone() + SLICE)).or_last_good(&after);
    assert_eq!(derived(&given).0, ["s-1 http=8080 10.0.0.1,10.0.0.2"]);
    let mut state = after.state();
    for event in given.events_since(&after) {
        state.apply(event);
    }
    assert_eq!(state, given.state());

    // The file with the slice cannot be read: the slice stays, and nothing is derived beside it.
    let cut = Manifests::from_text("t.yaml", &(more.clone() + "---\nkind: [\n")).or_last_good(&given);
    assert_eq!(derived(&cut), (vec!["s-1 http=8080 10.0.0.1,10.0.0.2".to_owned()], vec![]));
    // The Service cannot be read: what it said of its pods stays too.
    let cut = Manifests::from_text("t.yaml", &(a + "---\nkind: [\n")).or_last_good(&after);
    assert_eq!(derived(&cut).0, ["s-derived http=8080,dns=53 10.0.0.1,10.0.0.2"], "pod b stays as well");
}

#[test]
fn no_text_makes_reading_panic() {
    let whole =
        [SERVICE, SLICE, CLUSTER_POLICY, POLICY, &pod("a", "x"), &running("b", "x", "{ip: 10.0.0.1}", "")].concat();
    let snippets =
        ["", "{", "}", "[", "]", ":", "-", "\n", " ", "null", "~", "'", "\"", "&a ", "*a", "|\n", "<<: ", "\0"];
    let snippets: Vec<_> =
        snippets.into_iter().chain(["0", "-1", "1e999", "\u{feff}", "---\n", "é", "!!int x"]).collect();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |limit: usize| {
        // Marsaglia's xorshift: the same texts in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % limit as u64) as usize
    };
    for _ in 0..400 {
        let mut text: Vec<char> = whole.chars().collect();
        for _ in 0..1 + below(3) {
            let at = below(text.len());
            let end = (at + below(12)).min(text.len());
            text.splice(at..end, snippets[below(snippets.len())].chars());
        }
        let text: String = text.into_iter().collect();
        let manifests = Manifests::from_text("t.yaml", &text);
        let state = manifests.state();
        assert_eq!(manifests.events_since(&Manifests::default()).len(), manifests.objects().count());
        assert!(state.pods().count() <= 2);
        let _kept = manifests.or_last_good(&Manifests::from_text("t.yaml", &whole)).state();
    }
}

#[test]
fn a_carriage_return_alone_ends_a_line_too() {
    let text = format!("# a comment\r{}", "kind: Namespace\nmetadata: {name: a}\n".replace('\n', "\r"));
    assert_eq!(Manifests::from_text("t.yaml", &text).objects().count(), 1);
    assert_eq!(Manifests::from_text("t.yaml", "# a comment\r\r# another\r").diagnostics(), []);
}

#[test]
fn a_label_that_cannot_be_read_frees_no_pod() {
    let text = |pod: &str, namespace: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: p, labels: {pod}}}\n---\nkind: Namespace\nmetadata: {{name: n, labels: {namespace}}}\n"
        )
    };
    let before = Manifests::from_text("t.yaml", &text("{app: db}", "{env: prod}"));
    for (pod, namespace) in [("{app: 5}", "{env: prod}"), ("{app: db}", "{env: 1}"), ("[app]", "true")] {
        let broken = Manifests::from_text("t.yaml", &text(pod, namespace));
        assert!(!broken.is_certain());
        let kept = broken.or_last_good(&before);
        assert_eq!(kept.state(), before.state(), "{pod} {namespace}");
        let kept = Manifests::from_text("t.yaml", &text("{app: 6}", namespace)).or_last_good(&kept);
        assert_eq!(kept.state(), before.state());
    }
    let misspelt = text("{app: db}", "{env: prod}").replace("p, labels", "p, lables");
    assert_eq!(Manifests::from_text("t.yaml", &misspelt).or_last_good(&before).state(), before.state());
    let mended = Manifests::from_text("t.yaml", &text("{app: '5'}", "{env: prod}")).or_last_good(&before);
    assert_ne!(mended.state(), before.state());
    let policy = "kind: NetworkPolicy\nmetadata: {name: p, labels: {version: 1}}\nspec: {podSelector: {}}\n";
    assert!(Manifests::from_text("t.yaml", policy).is_certain(), "nobody selects a policy");
}

#[test]
fn a_pod_or_node_that_cannot_be_read_whole_stays_what_it_was() {
    const GOOD: &str = "kind: Pod
metadata: {name: p}
spec: {nodeName: n1, hostNetwork: false, containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
---
kind: Node
metadata: {name: n1}
status: {addresses: [{address: 192.168.0.1}]}
";
    let before = Manifests::from_text("t.yaml", GOOD);
    assert!(before.is_certain());
    for (good, bad) in [
        ("[{ip: 10.0.0.1}]", "10.0.0.1"),
        ("{ip: 10.0.0.1}", "10.0.0.1"),
        ("10.0.0.1}", "10.0.0}"),
        ("nodeName: n1", "nodeName: 1"),
        ("hostNetwork: false", "hostNetwork: 0"),
        ("containerPort: 80", "containerPort: '80'"),
        ("name: web", "name: 80"),
        ("address: 192.168.0.1", "address: 192"),
        ("[{address: 192.168.0.1}]", "192.168.0.1"),
        ("podIPs:", "podIps:"),
        ("{ip:", "{Ip:"),
        ("nodeName:", "nodename:"),
        ("ports:", "port:"),
        ("addresses:", "adresses:"),
        ("status: {phase", "state: {phase"),
    ] {
        let broken = Manifests::from_text("t.yaml", &GOOD.replace(good, bad));
        assert!(!broken.is_certain(), "{bad}");
        assert_eq!(broken.or_last_good(&before).state(), before.state(), "{bad}");
    }
}

#[test]
fn rules_beside_the_spec_do_not_leave_the_policy_without_them() {
    let rules = "ingress: [{action: Deny, from: [{namespaces: {}}]}]";
    let text = |indent| {
        format!(
            "kind: ClusterNetworkPolicy\nmetadata: {{name: c}}\nspec:\n  tier: Admin\n  priority: 1\n  subject: {{namespaces: {{}}}}\n{indent}{rules}\n"
        )
    };
    let before = Manifests::from_text("t.yaml", &text("  "));
    assert!(before.is_certain());
    let misplaced = Manifests::from_text("t.yaml", &text(""));
    assert_eq!(misplaced.unreadable_policies().count(), 1);
    assert_eq!(misplaced.or_last_good(&before).state(), before.state());
    assert!(Manifests::from_text("t.yaml", &(text("  ") + "note: x\n")).is_certain());
}

#[test]
fn a_file_that_the_system_refuses_is_worth_another_try() {
    let directory = tempfile::tempdir().unwrap();
    let read = || Manifests::read(&[directory.path().to_owned()]).unwrap();
    std::fs::write(directory.path().join("a.yaml"), "kind: [").unwrap();
    assert!(!read().was_refused(), "it was read, and is no YAML");
    std::os::unix::fs::symlink("/nowhere/b.yaml", directory.path().join("b.yaml")).unwrap();
    assert!(read().was_refused());
}

#[test]
fn a_name_that_could_forge_a_line_is_none() {
    for name in ["a\\nb", "a b", "a/b", "a\\u007f", "\\u2028"] {
        let text = format!("kind: Namespace\nmetadata: {{name: \"{name}\"}}\n");
        let manifests = Manifests::from_text("t.yaml", &text);
        assert_eq!(manifests.objects().count(), 0, "{name}");
        assert!(!manifests.is_certain(), "{name}");
    }
}
