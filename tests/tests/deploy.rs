//! The manifests: that they are what `npolicy install` prints, that the agent has the rights that it needs and no others, and
//! that what they call is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use npolicy_agent::observe::{Health, Report};
use npolicy_tests::{cases, require, require_root};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Every flag that puts something in, so that what holds without flags is seen to hold with them.
const FLAGS: &[&str] = &[
    "--mount-bpffs",
    "--image=registry.example:5000/npolicy:7",
    "--namespace=policy",
    "--node-selector=example.com/canary=true",
    "--unidentified-pods=allow",
    "--pod-cidrs=10.0.0.0/8,fd00::/8",
    "--exclude-interfaces=eth1",
    "--api-server=[2001:db8::1]:6443",
    "--log-level=debug",
];

fn npolicy(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_npolicy-under-test")).args(arguments).output().expect("npolicy starts")
}

fn text(output: Output) -> String {
    let Output { status, stdout, stderr } = output;
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("UTF-8")
}

fn install(flags: &[&str]) -> Vec<Value> {
    let printed = text(npolicy(&[&["install"], flags].concat()));
    cases::from_yaml(&printed).expect("what is printed is YAML")
}

/// The one object of a kind.
fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut of_kind = objects.iter().filter(|object| object["kind"] == kind);
    let object = of_kind.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(of_kind.next().is_none(), "there are two of {kind}");
    object
}

fn pod(objects: &[Value]) -> &Value {
    &object(objects, "DaemonSet")["spec"]["template"]["spec"]
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    match &value[field] {
        Value::Null => &[],
        other => other.as_array().unwrap_or_else(|| panic!("{field} is no list: {other}")),
    }
}

fn texts(values: &[Value]) -> Vec<&str> {
    values.iter().map(|value| value.as_str().unwrap_or_else(|| panic!("{value} is no text"))).collect()
}

fn agent(pod: &Value) -> &Value {
    let [agent] = list(pod, "containers") else { panic!("there is one container") };
    agent
}

#[test]
fn install_prints_the_committed_manifests() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let files: Vec<_> = fs::read_dir(&deploy).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files, [deploy.join("npolicy.yaml")], "`kubectl apply -f deploy/` would apply more");
    assert_eq!(text(npolicy(&["install"])), fs::read_to_string(&files[0]).unwrap());
}

#[test]
fn a_bad_value_is_named_and_prints_nothing() {
    for (flags, named) in [
        (&["--image", "UPPER/x:1:2"][..], "`UPPER/x:1:2` is no image reference"),
        (&["-n", "Kube"], "`Kube` is no namespace"),
        (
            &["--node-selector", "a=b", "--node-selector", "a=c"],
            "--node-selector a=c: there is a condition on a already",
        ),
        (&["--pod-cidrs", "10.0.0.0/33"], "'10.0.0.0/33'"),
        (&["--api-server", "::1:6443"], "an IPv6 address goes in brackets"),
        (&["--unidentified-pods", "maybe"], "possible values: deny, allow"),
    ] {
        let Output { status, stdout, stderr } = npolicy(&[&["install"], flags].concat());
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{flags:?}: {stderr}");
        assert!(stdout.is_empty() && stderr.contains(named), "{flags:?}: {stderr}");
    }
}

#[test]
fn objects_name_each_other() {
    for (flags, namespace) in [(&[][..], "kube-system"), (FLAGS, "policy")] {
        let objects = install(flags);
        assert_eq!(objects.len(), 4);
        for object in &objects {
            assert_eq!(object["metadata"]["name"], "npolicy");
            assert_eq!(object["metadata"]["labels"], json!({"app.kubernetes.io/name": "npolicy"}));
        }
        for kind in ["ServiceAccount", "DaemonSet"] {
            assert_eq!(object(&objects, kind)["metadata"]["namespace"], namespace);
        }
        let binding = object(&objects, "ClusterRoleBinding");
        assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "npolicy", "namespace": namespace}]));
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "npolicy"});
        assert_eq!(binding["roleRef"], role);
        assert_eq!(pod(&objects)["serviceAccountName"], "npolicy");
        let spec = &object(&objects, "DaemonSet")["spec"];
        assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
    }
}

/// Threat S05: a stolen token reads what verdicts depend on, and does nothing else.
#[test]
fn token_lists_and_watches_what_the_agent_watches_and_nothing_else() {
    for flags in [&[][..], FLAGS] {
        let objects = install(flags);
        let rules = list(object(&objects, "ClusterRole"), "rules");
        let mut granted = BTreeSet::new();
        for rule in rules {
            let fields: Vec<_> = rule.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(fields, ["apiGroups", "resources", "verbs"]);
            for group in texts(list(rule, "apiGroups")) {
                for resource in texts(list(rule, "resources")) {
                    for verb in texts(list(rule, "verbs")) {
                        granted.insert(format!("{verb} {resource}.{group}"));
                    }
                }
            }
        }
        let resources = [
            "clusternetworkpolicies.policy.networking.k8s.io",
            "endpointslices.discovery.k8s.io",
            "namespaces.",
            "networkpolicies.networking.k8s.io",
            "nodes.",
            "pods.",
            "services.",
        ];
        let needed = resources.iter().flat_map(|name| [format!("list {name}"), format!("watch {name}")]);
        assert_eq!(granted, needed.collect());
        assert!(!objects.iter().any(|object| matches!(object["kind"].as_str(), Some("Role" | "RoleBinding"))));
    }
}

/// Threats S06 and S07: nothing of the node can be written but bpffs, and root is root by name only.
#[test]
fn container_has_four_capabilities_and_writes_to_bpffs_alone() {
    for flags in [&[][..], FLAGS] {
        let objects = install(flags);
        let pod = pod(&objects);
        for field in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert!(pod[field].is_null(), "{field}");
        }
        assert_eq!(pod["securityContext"], json!({"seccompProfile": {"type": "RuntimeDefault"}}));
        let bpffs = json!([{"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf", "type": "Directory"}}]);
        assert_eq!(pod["volumes"], bpffs);
        let agent = agent(pod);
        let expected = json!({
            "runAsUser": 0,
            "runAsGroup": 0,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "NET_BROADCAST", "PERFMON"]},
        });
        assert_eq!(agent["securityContext"], expected);
        assert_eq!(agent["volumeMounts"], json!([{"name": "bpffs", "mountPath": "/sys/fs/bpf"}]));
        // Nobody else's port may be this one: what a port mapping of the node's makes of it would answer the probes.
        let port = json!({
            "name": "health", "hostIP": "127.0.0.1", "hostPort": 9717, "containerPort": 9717, "protocol": "TCP",
        });
        assert_eq!(agent["ports"], json!([port]));
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(agent[probe]["httpGet"]["port"], 9717);
        }
    }
}

#[test]
fn only_mount_bpffs_brings_a_privileged_container() {
    let privileged = |flags: &[&str]| -> Vec<Value> {
        let objects = install(flags);
        let pod = pod(&objects);
        let all = list(pod, "initContainers").iter().chain(list(pod, "containers"));
        all.filter(|container| container["securityContext"]["privileged"] != false).cloned().collect()
    };
    let others: Vec<_> = FLAGS.iter().copied().filter(|flag| *flag != "--mount-bpffs").collect();
    assert_eq!(privileged(&[]), [] as [Value; 0]);
    assert_eq!(privileged(&others), [] as [Value; 0]);
    assert!(list(pod(&install(&others)), "initContainers").is_empty());
    let expected = json!({
        "name": "prepare-node",
        "image": "localhost/npolicy:0.1.0",
        "imagePullPolicy": "IfNotPresent",
        "args": ["prepare-node", "--shared"],
        "securityContext": {"runAsUser": 0, "runAsGroup": 0, "privileged": true, "readOnlyRootFilesystem": true},
        "volumeMounts": [{"name": "bpffs", "mountPath": "/sys/fs/bpf", "mountPropagation": "Bidirectional"}],
    });
    assert_eq!(privileged(&["--mount-bpffs"]), [expected]);
}

#[test]
fn agent_runs_on_every_node_and_outlives_the_clusters_troubles() {
    let objects = install(&[]);
    let pod = pod(&objects);
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["dnsPolicy"], "Default");
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    assert!(agent(pod)["resources"]["limits"].is_null());
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}});
    assert_eq!(object(&objects, "DaemonSet")["spec"]["updateStrategy"], strategy);
}

#[test]
fn flags_reach_the_agent() {
    let objects = install(FLAGS);
    let agent = agent(pod(&objects));
    let arguments: BTreeSet<_> = texts(list(agent, "args")).into_iter().collect();
    for expected in ["--unidentified-pods=allow", "--pod-cidrs=10.0.0.0/8,fd00::/8", "--exclude-interfaces=eth1"] {
        assert!(arguments.contains(expected), "{expected} of {arguments:?}");
    }
    let environment = json!([
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "NPOLICY_LOG", "value": "debug"},
        {"name": "KUBERNETES_SERVICE_HOST", "value": "2001:db8::1"},
        {"name": "KUBERNETES_SERVICE_PORT", "value": "6443"},
    ]);
    assert_eq!(agent["env"], environment);
    let selector = json!({"kubernetes.io/os": "linux", "example.com/canary": "true"});
    assert_eq!(pod(&objects)["nodeSelector"], selector);
}

/// The binary reads its arguments in order, so it answers a last `--help` only if it knows those before it, and their values.
#[test]
fn binary_knows_the_arguments_of_the_containers() {
    for flags in [&[][..], FLAGS] {
        let objects = install(flags);
        let pod = pod(&objects);
        for container in list(pod, "initContainers").iter().chain(list(pod, "containers")) {
            assert!(container["command"].is_null(), "the image's entrypoint is npolicy");
            let mut arguments = texts(list(container, "args"));
            arguments.push("--help");
            let help = text(npolicy(&arguments));
            assert!(help.contains(&format!(" {} [OPTIONS]\n", arguments[0])), "{arguments:?}: {help}");
            arguments.insert(arguments.len() - 1, "--no-such-flag");
            assert_eq!(npolicy(&arguments).status.code(), Some(2), "an unknown flag passes: {arguments:?}");
        }
    }
}

#[tokio::test]
async fn probes_ask_for_pages_that_are_served() {
    let objects = install(&[]);
    let agent = agent(pod(&objects));
    let address =
        texts(list(agent, "args")).into_iter().find_map(|argument| argument.strip_prefix("--health-address="));
    let health = Health::new();
    health.set(Report { is_ready: true, lines: vec![] });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let served = listener.local_addr().unwrap();
    tokio::spawn(health.clone().serve(listener));
    let ask = async |path: &str| -> String {
        let mut stream = TcpStream::connect(served).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    };
    let probes = [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")];
    for (probe, page) in probes {
        let get = &agent[probe]["httpGet"];
        assert_eq!(get["path"], page, "{probe}");
        let host = get["host"].as_str().expect("a host: the default is the pod's address, which is the node's");
        assert_eq!(address, Some(&*format!("{host}:{}", get["port"])), "{probe}");
        assert_eq!(ask(page).await, "HTTP/1.1 200 OK", "{probe}");
    }
    health.set(Report { is_ready: false, lines: vec![] });
    assert_eq!(ask("/livez").await, "HTTP/1.1 200 OK", "what is not ready is not restarted");
    assert_eq!(ask("/readyz").await, "HTTP/1.1 503 Service Unavailable");
}

/// Threat N02, in a mount namespace of its own that ends with the shell.
#[test]
fn prepare_node_mounts_bpffs_once_and_says_what_is_wrong() {
    let has_unshare = Command::new("unshare").arg("--version").output().is_ok_and(|output| output.status.success());
    if !require_root() || !require((!has_unshare).then_some("a mount namespace takes `unshare`, of util-linux")) {
        return;
    }
    let script = r#"
        mount -t tmpfs none /mnt && mkdir /mnt/bpf && cd /mnt || exit 9
        prepare() { "$NPOLICY" prepare-node "$@" 2>&1 | tail -n 1; }
        prepare --path /mnt/bpf --shared
        stat -f -c %T bpf
        prepare --path /mnt/bpf
        prepare --path /mnt/bpf --shared
        stat -f -c %T bpf; stat -c %a bpf
        umount bpf || exit 9
        mount --make-shared /mnt
        prepare --path /mnt/bpf --shared
        mount -o remount,ro bpf
        prepare --path /mnt/bpf
        prepare --path /mnt/none
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .env("NPOLICY", env!("CARGO_BIN_EXE_npolicy-under-test"))
        .output()
        .expect("unshare starts");
    let told = text(output);
    let expected = "\
npolicy: /mnt/bpf is not on a shared mount, so the node would not see what is mounted here: the container's volumeMount \
wants mountPropagation: Bidirectional, and the node's own mount must be shared (mount --make-rshared /sys)
tmpfs
/mnt/bpf: mounted a BPF file system
/mnt/bpf: a BPF file system already
bpf_fs
1700
/mnt/bpf: mounted a BPF file system
npolicy: /mnt/bpf is a BPF file system that is read-only: mount -o remount,rw /mnt/bpf
npolicy: /mnt/none cannot be looked at; it is there where /sys is mounted and the kernel has CONFIG_BPF_SYSCALL: No such \
file or directory (os error 2)
";
    assert_eq!(told, expected);
}
