//! A real kubectl against the server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use npolicy_tests::api_server::{ApiServer, Fault, Kind, Scope};
use npolicy_tests::require;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::PATIENCE;
use crate::objects::{namespace, pod, policy};

/// kubectl, with a server of its own.
struct Kubectl {
    server: ApiServer,
    directory: TempDir,
}

impl Kubectl {
    /// With the namespace `shop`; nothing where this machine has no kubectl.
    #[track_caller]
    fn start() -> Option<Self> {
        let version = Command::new("kubectl").args(["version", "--client"]).output();
        let has_kubectl = version.is_ok_and(|output| output.status.success());
        if !require((!has_kubectl).then_some("this takes `kubectl`: apt-get install kubernetes-client")) {
            return None;
        }
        let server = ApiServer::start();
        server.apply(namespace("shop"));
        let directory = tempfile::tempdir().expect("a directory");
        server.kubeconfig(&directory.path().join("kubeconfig"));
        Some(Self { server, directory })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(arguments).env("KUBECONFIG", self.directory.path().join("kubeconfig"));
        // Where it caches what the server serves.
        command.env("HOME", self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Runs it, and gives whether it succeeded and what it said on both outputs.
    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.command(arguments).output().expect("kubectl");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).expect("text"))
    }

    /// Runs it, and checks that it succeeds and says this.
    #[track_caller]
    fn check(&self, arguments: &[&str], says: &[&str]) {
        let (is_success, text) = self.run(arguments);
        assert!(is_success && says.iter().all(|said| text.contains(said)), "{arguments:?}: {text}");
    }

    /// Puts an object in a file.
    fn file(&self, object: &Value) -> String {
        let path: PathBuf =
            self.directory.path().join(format!("{}.json", object["metadata"]["name"].as_str().expect("a name")));
        std::fs::File::create(&path).and_then(|mut file| write!(file, "{object}")).expect("a file");
        path.to_str().expect("a path").into()
    }
}

/// A kubectl that goes on; it is killed at the end.
struct Running {
    child: Child,
    /// What it says, a line each.
    lines: Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kubectl");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        // Ends with the pipe, which ends with the child.
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// Checks what the next line begins with, whatever its age says.
    #[track_caller]
    fn expect(&self, words: &[&str]) {
        let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("no line {words:?}: {error}"));
        assert!(line.split_whitespace().zip(words).filter(|(own, word)| own == *word).count() == words.len(), "{line}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn applies_and_patches_and_deletes() {
    let Some(kubectl) = Kubectl::start() else { return };
    let mut object = pod("shop", "db", "db");
    object["spec"]["containers"][0]["ports"] = json!([{"containerPort": 1}, {"containerPort": 2}]);
    let apply = ["apply", "--validate=false", "-f", &kubectl.file(&object)];
    kubectl.check(&apply, &["pod/db created"]);
    kubectl.check(&apply, &["pod/db unchanged"]);
    object["spec"]["containers"][0]["ports"] = json!([{"containerPort": 2}, {"containerPort": 3}]);
    object["metadata"]["labels"] = json!({"tier": "back"});
    kubectl.file(&object);
    kubectl.check(&apply, &["pod/db configured"]);
    let stored = kubectl.server.get(Kind::Pod, "shop", "db").expect("a pod");
    assert_eq!(stored["metadata"]["labels"], json!({"tier": "back"}), "what is applied no more is gone");
    assert_eq!(stored["spec"]["containers"][0]["ports"], json!([{"containerPort": 2}, {"containerPort": 3}]));
    let apply = ["apply", "--validate=false", "-f", &kubectl.file(&policy("shop", "db"))];
    kubectl.check(&apply, &["networkpolicy.networking.k8s.io/db created"]);
    let patch = r#"{"spec": {"policyTypes": ["Egress"]}}"#;
    kubectl
        .check(&["patch", "-n", "shop", "netpol", "db", "-p", patch], &["networkpolicy.networking.k8s.io/db patched"]);
    let patch = r#"[{"op": "replace", "path": "/spec/policyTypes/0", "value": "Ingress"}]"#;
    let patch = ["patch", "-n", "shop", "netpol", "db", "--type=json", "-p", patch];
    kubectl.check(&patch, &["networkpolicy.networking.k8s.io/db patched"]);
    let stored = kubectl.server.get(Kind::NetworkPolicy, "shop", "db").expect("a policy");
    assert_eq!(stored["spec"]["policyTypes"], json!(["Ingress"]));
    kubectl.check(&["delete", "-n", "shop", "pod", "db"], &["pod \"db\" deleted"]);
    kubectl.check(&["delete", "-n", "shop", "netpol", "--all"], &["networkpolicy.networking.k8s.io \"db\" deleted"]);
    assert!(kubectl.server.objects(Kind::Pod).is_empty() && kubectl.server.objects(Kind::NetworkPolicy).is_empty());
    let (is_success, text) = kubectl.run(&["delete", "-n", "shop", "pod", "db"]);
    assert!(!is_success && text.contains("Error from server (NotFound): pods \"db\" not found"), "{text}");
}

#[test]
fn applies_on_the_server_and_meets_conflicts() {
    let Some(kubectl) = Kubectl::start() else { return };
    let mut object = policy("shop", "db");
    let path = kubectl.file(&object);
    let apply = |manager: &'static str| {
        ["apply", "--validate=false", "--server-side", "--field-manager", manager, "-f", &path].map(str::to_owned)
    };
    let run = |arguments: &[String]| kubectl.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let (is_success, text) = run(&apply("one"));
    assert!(is_success && text.contains("networkpolicy.networking.k8s.io/db serverside-applied"), "{text}");
    object["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
    kubectl.file(&object);
    let (is_success, text) = run(&apply("two"));
    assert!(!is_success && text.contains(r#"conflict with "one": .spec.policyTypes"#), "{text}");
    let (is_success, text) = run(&[&apply("two")[..], &["--force-conflicts".to_owned()]].concat());
    assert!(is_success, "{text}");
    let stored = kubectl.server.get(Kind::NetworkPolicy, "shop", "db").expect("a policy");
    assert_eq!(stored["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
}

#[test]
fn gets_describes_and_labels() {
    let Some(kubectl) = Kubectl::start() else { return };
    kubectl.server.apply(policy("shop", "db"));
    let mut object = pod("shop", "db", "db");
    object["status"] = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}], "podIP": "10.0.0.7"});
    kubectl.server.apply(object);
    kubectl.check(&["version"], &["v1.33.0"]);
    kubectl.check(&["get", "-n", "shop", "pods,netpol"], &["pod/db   Running", "networkpolicy.networking.k8s.io/db"]);
    kubectl.check(&["get", "-A", "po", "-l", "app=db"], &["NAMESPACE", "shop        db     Running"]);
    kubectl.check(&["get", "-A", "po", "-l", "app!=db"], &["No resources found"]);
    kubectl.check(&["get", "-n", "shop", "po", "db", "-o", "jsonpath={.status.podIPs[0].ip}"], &["10.0.0.7"]);
    kubectl.check(&["describe", "-n", "shop", "pod", "db"], &["Status:       Running", "IP:           10.0.0.7"]);
    let says = ["PodSelector:     app=db", "Selected pods are isolated for ingress connectivity"];
    kubectl.check(&["describe", "-n", "shop", "netpol", "db"], &says);
    kubectl.check(&["label", "-n", "shop", "pod", "db", "tier=back"], &["pod/db labeled"]);
    let (is_success, text) = kubectl.run(&["label", "-n", "shop", "pod", "db", "tier=front"]);
    assert!(!is_success && text.contains("already has a value (back)"), "{text}");
    kubectl.check(&["label", "-n", "shop", "pod", "db", "app-"], &["pod/db"]);
    let stored = kubectl.server.get(Kind::Pod, "shop", "db").expect("a pod");
    assert_eq!(stored["metadata"]["labels"], json!({"tier": "back"}));
    let forbidden = Fault::Status { code: 403, retry_after_s: None };
    kubectl.server.faults().add(Scope::all().kinds(&[Kind::Pod]), forbidden);
    let (is_success, text) = kubectl.run(&["get", "-n", "shop", "pods"]);
    assert!(!is_success && text.contains("Error from server (Forbidden)"), "{text}");
}

#[test]
fn gets_and_watches() {
    let Some(kubectl) = Kubectl::start() else { return };
    kubectl.server.apply(pod("shop", "db", "db"));
    let running = Running::start(kubectl.command(&["get", "-n", "shop", "pods", "-w", "-o", "name"]));
    running.expect(&["pod/db"]);
    kubectl.server.apply(pod("shop", "web", "web"));
    running.expect(&["pod/web"]);
    let table = Running::start(kubectl.command(&["get", "-n", "shop", "pods", "-w"]));
    table.expect(&["NAME", "STATUS", "AGE"]);
    table.expect(&["db"]);
    table.expect(&["web"]);
    kubectl.server.edit(Kind::Pod, "shop", "db", |pod| pod["status"]["phase"] = "Running".into());
    table.expect(&["db", "Running"]);
    running.expect(&["pod/db"]);
}

#[test]
fn waits_for_a_namespace_that_terminates() {
    let Some(kubectl) = Kubectl::start() else { return };
    let mut running = Running::start(kubectl.command(&["delete", "namespace", "shop"]));
    running.expect(&["namespace", "\"shop\"", "deleted"]);
    thread::sleep(Duration::from_millis(300));
    assert!(running.child.try_wait().expect("a child").is_none(), "it does not wait");
    kubectl.check(&["get", "ns", "shop"], &["shop   Terminating"]);
    kubectl.server.end_namespace("shop");
    assert!(running.child.wait().expect("a child").success());
}

#[test]
fn finds_a_kind_that_is_installed_later() {
    let Some(kubectl) = Kubectl::start() else { return };
    let (is_success, text) = kubectl.run(&["get", "cnp"]);
    assert!(!is_success && text.contains("the server doesn't have a resource type \"cnp\""), "{text}");
    kubectl.server.install_cluster_policies(&["v1beta1"]);
    let object = json!({
        "apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy", "metadata": {"name": "tenancy"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
    });
    let apply = ["apply", "--validate=false", "-f", &kubectl.file(&object)];
    kubectl.check(&apply, &["clusternetworkpolicy.policy.networking.k8s.io/tenancy created"]);
    kubectl.check(&["get", "cnp", "tenancy", "-o", "jsonpath={.spec.tier}"], &["Admin"]);
}
