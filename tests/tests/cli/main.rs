//! The commands that answer questions, as people and scripts use them.

mod tiers_and_services;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use expect_test::{Expect, expect};
use npolicy_tests::cases;
use tempfile::TempDir;

/// Two pods of a shop, and one elsewhere.
const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: dev, labels: {env: dev}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: main, ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n2}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: dev, labels: {app: web}}
spec: {nodeName: n2}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
";

/// Lets the web pods of the shop reach its database.
const DB: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
    ports:
    - port: sql
";

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Runs the command in a folder, with text on stdin.
fn run(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_npolicy-under-test"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // A command that does not read its input may close it first.
    let _ = writer.join().unwrap();
    output
}

/// Runs the command and compares everything that it says.
#[track_caller]
fn check(files: &[(&str, &str)], arguments: &[&str], input: &str, expected: Expect) {
    let folder = folder(files);
    let output = run(folder.path(), arguments, input);
    let code = output.status.code().expect("it ends by itself");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let mut said = format!("{stdout}exit {code}\n");
    if !stderr.is_empty() {
        said.push_str(&format!("--- stderr\n{stderr}"));
    }
    expected.assert_eq(&said);
}

#[test]
fn batch_answers_every_case_as_expected() {
    for case in cases::all().unwrap() {
        let mut arguments = vec!["can", "--batch"];
        for file in &case.files {
            arguments.extend(["-f", file.to_str().unwrap()]);
        }
        let questions: String = case.rows.iter().map(|row| row.line() + "\n").collect();
        let output = run(Path::new("/"), &arguments, &questions);
        assert_eq!(output.status.code(), Some(0), "{}: {}", case.name, String::from_utf8_lossy(&output.stderr));
        let answers = String::from_utf8(output.stdout).unwrap();
        assert_eq!(answers.lines().count(), case.rows.len(), "{}", case.name);
        for (row, line) in case.rows.iter().zip(answers.lines()) {
            let answer: serde_json::Value = serde_json::from_str(line).unwrap();
            let (said, why) = match &*row.expect {
                "error" => (answer["error"].is_string(), &answer["error"]),
                verdict => (answer["verdict"] == verdict, &answer["reason"]),
            };
            assert!(said, "{}: {}: {line}, not {}: {}", case.name, row.line(), row.expect, row.why);
            assert!(why.as_str().is_some_and(|why| !why.is_empty()), "{}: {line} says why", case.name);
        }
    }
}

#[test]
fn can_says_which_rule_accepts() {
    check(
        &[("shop.yaml", SHOP), ("db.yaml", DB)],
        &["can", "-f", ".", "--from", "shop/web", "--to", "shop/db", "--port", "5432/tcp"],
        "",
        expect![[r#"
            Accept  shop/web -> shop/db  5432/TCP over IPv4
              egress of shop/web accepts: no policy isolates it
              ingress of shop/db accepts: accepted by shop/db ingress[0].from[0]
                isolated by shop/db
            exit 0
        "#]],
    );
}

#[test]
fn can_says_what_would_have_been_needed() {
    check(
        &[("shop.yaml", SHOP), ("db.yaml", DB)],
        &["can", "-f", ".", "--from", "dev/web", "--to", "shop/db", "--port", "5433/tcp"],
        "",
        expect![[r#"
            Deny  dev/web -> shop/db  5433/TCP over IPv4
              egress of dev/web accepts: no policy isolates it
              ingress of shop/db denies: no rule accepts it; nearest is shop/db ingress[0].from[0]: dev/web is in namespace dev, a podSelector alone means shop, and ingress[0].ports: the rule accepts sql/TCP (5432 on shop/db)
                isolated by shop/db
            exit 1
        "#]],
    );
}

#[test]
fn can_answers_in_json() {
    check(
        &[("shop.yaml", SHOP), ("db.yaml", DB)],
        &[
            "can",
            "-f",
            "shop.yaml",
            "-f",
            "db.yaml",
            "--from",
            "ip:192.168.0.1",
            "--to",
            "shop/db",
            "--port",
            "icmp",
            "-o",
            "json",
        ],
        "",
        expect![[r#"
            {"from":"ip:192.168.0.1","to":"shop/db","protocol":"ICMP","family":"IPv4","verdict":"Deny","certain":true,"reason":"ingress of shop/db: no rule accepts it; nearest is shop/db ingress[0].from[0]: node n1 is no pod, selectors match pods alone, and ingress[0].ports: a rule with ports accepts TCP, UDP and SCTP alone","steps":[{"direction":"ingress","subject":"shop/db","verdict":"Deny","isolated_by":["shop/db"],"nearest_miss":{"policy":"shop/db","text":"ingress[0].from[0]: node n1 is no pod, selectors match pods alone, and ingress[0].ports: a rule with ports accepts TCP, UDP and SCTP alone"}}]}
            exit 1
        "#]],
    );
}

#[test]
fn only_the_node_of_the_pod_is_exempt() {
    for (from, code) in [("node:n1", 0), ("node:n2", 1), ("ip:192.168.0.1", 1)] {
        let folder = folder(&[("shop.yaml", SHOP), ("db.yaml", DB)]);
        let output = run(folder.path(), &["can", "-f", ".", "--from", from, "--to", "shop/db", "--port", "1/udp"], "");
        assert_eq!(output.status.code(), Some(code), "{from}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn matrix_shows_the_seam_between_namespaces() {
    check(
        &[("shop.yaml", SHOP), ("db.yaml", DB)],
        &["matrix", "-f", ".", "--port", "5432/tcp"],
        "",
        expect![[r#"
            to \ from   dev/web   shop/db   shop/web
            dev/web     .         .         .
            shop/db     X         .         .
            shop/web    .         .         .

            5432/TCP: . accepted 8, X denied 1
            exit 0
        "#]],
    );
}

#[test]
fn matrix_answers_in_json_for_one_namespace() {
    check(
        &[("shop.yaml", SHOP), ("db.yaml", DB)],
        &["matrix", "-f", ".", "--port", "icmp", "-n", "dev", "-o", "json"],
        "",
        expect![[r#"
            {"from":"dev/web","to":"dev/web","protocol":"ICMP","verdict":"Accept"}
            {"from":"shop/db","to":"dev/web","protocol":"ICMP","verdict":"Accept"}
            {"from":"shop/web","to":"dev/web","protocol":"ICMP","verdict":"Accept"}
            exit 0
        "#]],
    );
}

#[test]
fn what_cannot_be_asked_is_an_error_in_its_line() {
    let questions = [
        r#"{"from":"shop/web","to":"shop/db","protocol":"TCP","port":5432}"#,
        r#"{"from":"shop/web","to":"shop/db","protocol":"TCP"}"#,
        r#"{"from":"shop/web","to":"shop/db","protocol":"UDP","port":0}"#,
        r#"{"from":"shop/web","to":"shop/db","protocol":"TCP","port":65536}"#,
        r#"{"from":"shop/web","to":"shop/db","protocol":"ICMP","port":8}"#,
        r#"{"from":"shop/web","to":"shop/db","protocol":"GRE"}"#,
        r#"{"from":"shop/web","to":"shop/db","protocol":"TCP","port":5432,"prot":1}"#,
        r#"{"from":"shop/web","to":"shop/db","protocol":"TCP","port":5432,"family":"v6"}"#,
        r#"{"from":"shop/web","to":"svc:shop/db","protocol":"TCP","port":5432}"#,
        r#"{"from":"shop/web","to":"shop/nobody","protocol":"TCP","port":5432}"#,
        r#"{"from":"node:n3","to":"shop/db","protocol":"TCP","port":5432}"#,
        r#"{"from":"web","to":"shop/db","protocol":"TCP","port":5432}"#,
        r#"{"from":"ip:10.0.0","to":"shop/db","protocol":"TCP","port":5432}"#,
        r#"{"from":"ip:fd00::1","to":"ip:10.0.0.1","protocol":"TCP","port":5432}"#,
        r#"what?"#,
        r#"{"from":"dev/web","to":"shop/db","protocol":"ICMP"}"#,
    ];
    check(
        &[("shop.yaml", SHOP), ("db.yaml", DB)],
        &["can", "-f", ".", "--batch"],
        &questions.join("\n"),
        expect![[r#"
            {"verdict":"Accept","reason":"egress of shop/web: no policy isolates it; ingress of shop/db: accepted by shop/db ingress[0].from[0]"}
            {"error":"TCP needs a `port` from 1 to 65535"}
            {"error":"UDP needs a `port` from 1 to 65535"}
            {"error":"TCP needs a `port` from 1 to 65535"}
            {"error":"ICMP has no ports, leave out `port`"}
            {"error":"unknown protocol \"GRE\", expected TCP, UDP, SCTP or ICMP"}
            {"error":"not a question: unknown field `prot`, expected one of `from`, `to`, `protocol`, `port`, `family` at column 69"}
            {"error":"unknown family \"v6\", expected IPv4 or IPv6"}
            {"error":"there is no Service shop/db"}
            {"error":"there is no pod shop/nobody"}
            {"error":"there is no node n3"}
            {"error":"\"web\" is no end, expected NAMESPACE/POD, node:NAME, ip:ADDRESS or, as a destination, svc:NAMESPACE/NAME"}
            {"error":"\"10.0.0\" is not an IP address"}
            {"error":"ip:fd00::1 and ip:10.0.0.1 have no address family in common"}
            {"error":"not JSON: expected value at column 1"}
            {"verdict":"Deny","reason":"ingress of shop/db: no rule accepts it; nearest is shop/db ingress[0].from[0]: dev/web is in namespace dev, a podSelector alone means shop, and ingress[0].ports: a rule with ports accepts TCP, UDP and SCTP alone"}
            exit 0
        "#]],
    );
}

#[test]
fn a_misspelt_field_opens_nothing() {
    let policy = DB.replace("from:", "form:").replace("port: sql", "prot: sql");
    check(
        &[("shop.yaml", SHOP), ("db.yaml", &policy)],
        &["can", "-f", ".", "--from", "dev/web", "--to", "shop/db", "--port", "80/tcp"],
        "",
        expect![[r#"
            Deny  dev/web -> shop/db  80/TCP over IPv4
              egress of dev/web accepts: no policy isolates it
              ingress of shop/db denies: no rule accepts it; nearest is shop/db ingress[0]: the rule matches nothing: unknown field `form`, did you mean `from`?
                isolated by shop/db
            exit 1
            --- stderr
            ./db.yaml:7: warning: NetworkPolicy shop/db: spec.ingress[0].form: unknown field `form`, did you mean `from`?; the rule matches nothing
            ./db.yaml:10: warning: NetworkPolicy shop/db: spec.ingress[0].ports[0].prot: unknown field `prot`, did you mean `port`?; the entry matches nothing
        "#]],
    );
}

#[test]
fn a_wrong_port_range_and_a_wrong_block_leave_the_rest() {
    let policy = format!("{DB}    - port: 80\n      endPort: 79\n  - from: [{{ipBlock: {{cidr: 10.0.0.0/99}}}}]\n");
    check(
        &[("shop.yaml", SHOP), ("db.yaml", &policy)],
        &["can", "-f", ".", "--from", "shop/web", "--to", "shop/db", "--port", "5432/tcp"],
        "",
        expect![[r#"
            Accept  shop/web -> shop/db  5432/TCP over IPv4
              egress of shop/web accepts: no policy isolates it
              ingress of shop/db accepts: accepted by shop/db ingress[0].from[0]
                isolated by shop/db
            exit 0
            --- stderr
            ./db.yaml:12: warning: NetworkPolicy shop/db: spec.ingress[0].ports[1].endPort: endPort 79 is below port 80; the entry matches nothing
            ./db.yaml:13: warning: NetworkPolicy shop/db: spec.ingress[1].from[0].ipBlock.cidr: "10.0.0.0/99": prefix length "99" is not a number from 0 to 32; the peer matches nothing
        "#]],
    );
}

#[test]
fn a_broken_document_among_good_ones_makes_answers_uncertain() {
    let files = [
        ("a.yaml", &*format!("{SHOP}---\nkind: NetworkPolicy\nmetadata: {{name: [\n---\n# nothing here\n---\n{DB}")),
        ("b.yml", "kind: NetworkPolicy\nmetadata: {name: who}\nspec: {podSelector: {matchLabel: {app: db}}}\n"),
        ("c.json", "{\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"tab\", \"labels\": {\"n\": 1}}}\n"),
        ("d.txt", "not read"),
    ];
    check(
        &files,
        &["can", "-f", ".", "--batch"],
        "{\"from\":\"dev/web\",\"to\":\"shop/db\",\"protocol\":\"TCP\",\"port\":80}\n{\"from\":\"default/tab\",\"to\":\"shop/web\",\"protocol\":\"ICMP\"}\n",
        expect![[r#"
            {"verdict":"Deny","reason":"ingress of shop/db: no rule accepts it; nearest is shop/db ingress[0].from[0]: dev/web is in namespace dev, a podSelector alone means shop, and ingress[0].ports: the rule accepts sql/TCP (5432 on shop/db)"}
            {"verdict":"Accept","reason":"egress of default/tab: no policy isolates it; ingress of shop/web: no policy isolates it"}
            exit 3
            --- stderr
            ./a.yaml:31: error: unclosed bracket '['; the document is ignored
            ./b.yml:3: error: NetworkPolicy default/who: spec.podSelector.matchLabel: unknown field `matchLabel`, did you mean `matchLabels`?; nobody can say whom it selects, so the policy is ignored
            ./c.json:2: error: Pod default/tab: metadata.labels.n: a label's value must be text, not 1 (quote it); the label is left out
        "#]],
    );
}

#[test]
fn a_block_decides_only_where_the_address_is_known() {
    let policy = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 10.0.0.0/8}}]
    ports: [{port: 80}]
  - to: [{ipBlock: {cidr: 0.0.0.0/0}}]
    ports: [{port: 443}]
";
    let ask =
        |port: u16| format!("{{\"from\":\"shop/web\",\"to\":\"dev/web\",\"protocol\":\"TCP\",\"port\":{port}}}\n");
    check(
        &[("shop.yaml", SHOP), ("out.yaml", policy)],
        &["can", "-f", ".", "--batch"],
        &[80, 443, 22].map(ask).concat(),
        expect![[r#"
            {"error":"dev/web has no address, and the answer depends on it: give it one in its status"}
            {"verdict":"Accept","reason":"egress of shop/web: accepted by shop/out egress[1].to[0]; ingress of dev/web: no policy isolates it"}
            {"verdict":"Deny","reason":"egress of shop/web: no rule accepts it; nearest is shop/out egress[1].ports: the rule accepts 443/TCP"}
            exit 0
        "#]],
    );
}

#[test]
fn a_path_that_is_not_there_is_a_usage_error() {
    check(
        &[],
        &["matrix", "-f", "nowhere", "--port", "80/tcp"],
        "",
        expect![[r#"
        exit 2
        --- stderr
        npolicy: read manifests from nowhere: No such file or directory (os error 2)
    "#]],
    );
}

#[test]
fn a_misspelt_kind_is_said_beside_the_answer() {
    let db = DB.replace("kind: NetworkPolicy", "kind: NetworkPolcy");
    let files = [("shop.yaml", SHOP), ("db.yaml", &*db)];
    let question = ["can", "-f", ".", "--from", "shop/web", "--to", "shop/db", "--port", "80/tcp"];
    check(
        &files,
        &question,
        "",
        expect![[r#"
            Accept  shop/web -> shop/db  80/TCP over IPv4
              egress of shop/web accepts: no policy isolates it
              ingress of shop/db accepts: no policy isolates it
            not certain: something in the manifests could not be read (see the errors on stderr)
            exit 3
            --- stderr
            ./db.yaml:2: error: kind: unknown kind `NetworkPolcy`, did you mean `NetworkPolicy`?; the document is ignored
        "#]],
    );
    let folder = folder(&files);
    let output = run(folder.path(), &[&question[..], &["-o", "json"]].concat(), "");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["certain"], false);
}

#[test]
fn what_selects_nobody_for_its_namespace_and_what_is_of_another_kind_is_said() {
    let policies = "\
kind: NetworkPolicy
metadata: {name: db}
spec: {podSelector: {}}
---
kind: NetworkPolicy
metadata: {namespace: shpo, name: db}
spec: {podSelector: {}}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: fence}
";
    check(
        &[("shop.yaml", SHOP), ("policies.yaml", policies)],
        &["matrix", "-f", ".", "--port", "80/tcp", "--to", "shop/db"],
        "",
        expect![[r#"
            to \ from   dev/web   shop/db   shop/web
            shop/db     .         .         .

            80/TCP: . accepted 3, X denied 0
            not certain: something in the manifests could not be read (see the errors on stderr)
            exit 3
            --- stderr
            ./policies.yaml:9: error: AdminNetworkPolicy: not enforced: objects of this kind are not read; write it as a ClusterNetworkPolicy with `tier: Admin`
            ./policies.yaml:1: note: NetworkPolicy default/db: metadata.namespace: namespace default, which is meant where none is written, has no Namespace and no pod here: the policy selects nobody
            ./policies.yaml:5: note: NetworkPolicy shpo/db: metadata.namespace: namespace shpo has no Namespace and no pod here: the policy selects nobody
        "#]],
    );
}

#[test]
fn what_a_command_line_cannot_ask_is_said_with_what_it_could() {
    let ask =
        |to: &'static str, port: &'static str| vec!["can", "-f", ".", "--from", "shop/web", "--to", to, "--port", port];
    for (arguments, message) in [
        (ask("shop/db", "80800/tcp"), "--port: port 80800 is outside 1 to 65535"),
        (ask("shop/db", "0/udp"), "--port: port 0 is outside 1 to 65535"),
        (ask("shop/nope", "80/tcp"), "there is no pod shop/nope; shop has db, web"),
        (ask("nope/web", "80/tcp"), "there is no pod nope/web; pods are in dev, shop"),
        (vec!["matrix", "-f", ".", "--port", "80/tcp", "-n", "nope"], "there is no pod in namespace nope"),
        (ask("node:n9", "80/tcp"), "there is no node n9; there are n1, n2"),
        (ask("svc:shop", "80/tcp"), "--to: \"svc:shop\" is no Service, expected svc:NAMESPACE/NAME"),
        (ask("svc:shop/nope", "80/tcp"), "there is no Service shop/nope"),
        (vec!["matrix", "-f", ".", "--port", "80/tcp", "--to", "svc:a/b"], "--to: there is no Service a/b"),
        (vec!["matrix", "-f", ".", "--port", "80/tcp", "--to", "shop/nope"], "--to: there is no pod shop/nope"),
        (vec!["matrix", "-f", ".", "--port", "80/tcp", "--to", "node:n9"], "--to: there is no node n9"),
        (
            vec!["matrix", "-f", "empty", "--port", "80/tcp"],
            "empty holds no .yaml, .yml or .json file (directories in it are not read)",
        ),
    ] {
        let folder = folder(&[("shop.yaml", SHOP)]);
        fs::create_dir(folder.path().join("empty")).unwrap();
        let output = run(folder.path(), &arguments, "");
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("npolicy: {message}\n"));
        assert_eq!(output.status.code(), Some(2), "{message}");
    }
}

#[test]
fn a_port_in_quotes_is_an_error_that_says_what_is_expected() {
    check(
        &[("shop.yaml", SHOP)],
        &["can", "-f", ".", "--batch"],
        r#"{"from":"shop/web","to":"shop/db","protocol":"TCP","port":"8080"}"#,
        expect![[r#"
            {"error":"`port` must be a number from 1 to 65535, not \"8080\""}
            exit 0
        "#]],
    );
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error() {
    for arguments in [
        &["can", "-f", ".", "--from", "shop/web", "--to", "shop/db", "--port", "80/tcp"][..],
        &["can", "-f", ".", "--from", "shop/web", "--to", "shop/db", "--port", "80/tcp", "-o", "json"],
        &["can", "-f", ".", "--batch"],
        &["matrix", "-f", ".", "--port", "80/tcp"],
        &["matrix", "-f", ".", "--port", "80/tcp", "-o", "json"],
    ] {
        let folder = folder(&[("shop.yaml", SHOP)]);
        fs::write(folder.path().join("questions"), "what?\n").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_npolicy-under-test"))
            .args(arguments)
            .current_dir(folder.path())
            .stdin(fs::File::open(folder.path().join("questions")).unwrap())
            .stdout(fs::File::options().write(true).open("/dev/full").unwrap())
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(message, "npolicy: write the answer: No space left on device (os error 28)\n", "{arguments:?}");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_matrix_with_gaps_is_not_certain_and_has_no_trailing_blanks() {
    let block = "kind: NetworkPolicy\nmetadata: {name: in, namespace: shop}\n\
                 spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}\n";
    let folder = folder(&[("shop.yaml", SHOP), ("block.yaml", block)]);
    let output = run(folder.path(), &["matrix", "-f", ".", "--port", "80/tcp"], "");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("without an answer"), "{table}");
    assert!(table.lines().all(|line| line.trim_end() == line), "{table:?}");
    assert_eq!(output.status.code(), Some(3));
}
