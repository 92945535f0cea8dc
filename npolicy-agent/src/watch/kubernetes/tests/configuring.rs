//! Configurations that lead nowhere, and what must not be said of those that do.

use std::error::Error as _;
use std::path::PathBuf;

use expect_test::{Expect, expect};

use super::super::health::Board;
use super::super::request::{Failure, describe};
use super::super::wire::parse_status;
use super::super::{Kind, KubernetesConfig, KubernetesWatch};

const SECRET: &str = "c2VjcmV0LWNhbmFyeQ";

/// The directory of the file stands as `DIR`.
async fn check(file: Option<&str>, context: Option<&str>, expected: Expect) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
    }
    let config = KubernetesConfig { kubeconfig: Some(path), context: context.map(str::to_owned) };
    let error = KubernetesWatch::start(config).await.expect_err("it leads nowhere");
    assert!(error.source().is_none());
    let (printed, debug) = (error.to_string(), format!("{error:?}"));
    assert!(!printed.contains(SECRET) && !debug.contains(SECRET), "{printed} {debug}");
    expected.assert_eq(&printed.replace(&directory.path().display().to_string(), "DIR"));
}

fn kubeconfig(server: &str, current: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {current}\n\
         clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}]\n\
         users: [{{name: u, user: {{token: {SECRET}}}}}]\n\
         contexts: [{{name: one, context: {{cluster: c, user: u}}}}, {{name: two, context: {{cluster: d, user: u}}}}]\n"
    )
}

#[tokio::test]
async fn a_kubeconfig_that_leads_nowhere_says_why() {
    let good = kubeconfig("https://192.0.2.1:6443", "one");
    check(None, None, expect!["kubeconfig DIR/kubeconfig: cannot be read: No such file or directory (os error 2)"])
        .await;
    check(
        Some(&format!("users: [{{name: u, user: {{token: {SECRET}}}}}\ncontexts: }}")),
        None,
        expect!["kubeconfig DIR/kubeconfig: it is no kubeconfig in YAML; `kubectl config view` shows how one looks"],
    )
    .await;
    check(
        Some(&good),
        Some("three"),
        expect!["kubeconfig DIR/kubeconfig: no context `three`, expected one of one, two"],
    )
    .await;
    check(
        Some(&kubeconfig("https://192.0.2.1:6443", "\"\"")),
        None,
        expect![
            "kubeconfig DIR/kubeconfig: it has no current-context; name one with --context, expected one of one, two"
        ],
    )
    .await;
    check(
        Some("apiVersion: v1\nkind: Config\ncurrent-context: x\n"),
        None,
        expect!["kubeconfig DIR/kubeconfig: no context `x`, it has none at all"],
    )
    .await;
    check(
        Some(&good),
        Some("two"),
        expect!["kubeconfig DIR/kubeconfig: context `two`: failed to load the cluster of context: d"],
    )
    .await;
    check(
        Some(&kubeconfig("https://exa mple", "one")),
        None,
        expect!["kubeconfig DIR/kubeconfig: context `one`: failed to parse cluster url: invalid uri character"],
    )
    .await;
}

#[tokio::test]
async fn without_a_file_this_must_be_a_pod() {
    let error = KubernetesWatch::start(KubernetesConfig::default()).await.expect_err("no test runs in a pod");
    let printed = error.to_string();
    for part in ["not in a pod of a cluster", "--kubeconfig FILE", "--manifests DIR"] {
        assert!(printed.contains(part), "{printed}");
    }
    let config = KubernetesConfig { kubeconfig: None, context: Some("one".to_owned()) };
    let error = KubernetesWatch::start(config).await.expect_err("a context of no file");
    assert_eq!(error.to_string(), "context `one` is of no file, expected --kubeconfig FILE beside --context");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_told_and_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("kubeconfig");
    // Nothing listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    std::fs::write(&path, kubeconfig(&format!("http://user:{SECRET}@{address}"), "one")).unwrap();
    let mut watch = KubernetesWatch::start(KubernetesConfig { kubeconfig: Some(path), context: None }).await.unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while watch.health().iter().any(|health| health.trouble.is_none()) {
        tokio::time::timeout_at(deadline, watch.changed()).await.expect("it complains");
        watch.take(&crate::model::ClusterState::default());
    }
    for health in watch.health() {
        let printed = health.to_string();
        assert!(printed.contains("not listed yet") && printed.contains("onnect"), "{printed}");
        assert!(!printed.contains(SECRET), "{printed}");
    }
}

#[test]
fn nothing_that_a_server_says_breaks_a_line_or_is_endless() {
    let body = format!(r#"{{"kind": "Status", "message": "a\nb\u001b[2J{}"}}"#, "x".repeat(100_000));
    let failure = Failure::from_status(parse_status(body.as_bytes(), 500));
    assert!(failure.message.starts_with("the API server answers 500 Internal Server Error: a b [2Jxx"), "{failure}");
    assert!(failure.message.len() < 500 && failure.message.ends_with("..."));
    // What is no Status is not quoted.
    let failure = Failure::from_status(parse_status(format!("<html>{SECRET}").as_bytes(), 502));
    assert_eq!(failure.message, "the API server answers 502 Bad Gateway");
}

#[test]
fn what_gets_credentials_is_not_quoted() {
    let output = std::process::Output { status: Default::default(), stdout: SECRET.into(), stderr: Vec::new() };
    let auth =
        kube::client::AuthError::AuthExecRun { cmd: format!("get-token --password {SECRET}"), out: Box::new(output) };
    let printed = describe(&kube::Error::Service(Box::new(auth)));
    assert!(printed.contains("credentials") && !printed.contains(SECRET), "{printed}");
}

#[test]
fn trouble_begins_once_and_changes_loudly() {
    let board = Board::default();
    assert!(board.complain(Kind::Pod, "a"));
    let since = board.notice(Kind::Pod).trouble.unwrap().since;
    assert!(!board.complain(Kind::Pod, "a"));
    assert!(board.complain(Kind::Pod, "b"));
    let trouble = board.notice(Kind::Pod).trouble.unwrap();
    assert_eq!((trouble.since, &*trouble.message), (since, "b"));
    assert_eq!(board.notice(Kind::Node).trouble, None);
    assert_eq!(board.hear(Kind::Pod), Some(trouble));
    assert_eq!(board.notice(Kind::Pod).trouble, None);
}
