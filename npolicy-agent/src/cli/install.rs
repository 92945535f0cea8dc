//! `npolicy install`: prints the manifests that put npolicy on a cluster.
//!
//! `deploy/npolicy.yaml` is embedded. Each flag changes lines of it and leaves the rest, comments included, as they are, so
//! that what is printed without flags is that file.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::exit;

/// The manifests as they are without a flag.
const MANIFESTS: &str = include_str!("../../../deploy/npolicy.yaml");

/// Goes before the agent's container where bpffs is to be mounted. `IMAGE` stands for the image.
const MOUNT_BPFFS: &str = "      initContainers:
        # Mounts bpffs on the node where it is missing, looks whether the kernel is fit, and ends. The API allows a mount that
        # reaches the node to privileged containers only; the agent itself stays as it is.
        - name: prepare-node
          image: IMAGE
          imagePullPolicy: IfNotPresent
          args: [prepare-node, --shared]
          securityContext:
            runAsUser: 0
            runAsGroup: 0
            privileged: true
            readOnlyRootFilesystem: true
          volumeMounts:
            - name: bpffs
              mountPath: /sys/fs/bpf
              mountPropagation: Bidirectional
";

/// Flags of `npolicy install`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  A cluster whose nodes run systemd:
    npolicy install | kubectl apply -f -

  A kind cluster: its nodes have no BPF file system.
    kind load image-archive target/image/npolicy.tar
    npolicy install --mount-bpffs | kubectl apply -f -

  From a registry of one's own, on some nodes first:
    npolicy install --image registry.example/npolicy:0.1.0 --node-selector stage=canary \\
      | kubectl apply -f -

  What would change?
    npolicy install | kubectl diff -f -

  Is it there, and does it enforce?
    kubectl -n kube-system rollout status daemonset/npolicy
    kubectl -n kube-system logs -l app.kubernetes.io/name=npolicy --prefix --tail=20

  Away with it. Nodes go on enforcing the last state until they boot or `npolicy agent --remove` runs on them.
    npolicy install | kubectl delete -f -

Printed are a ServiceAccount, a ClusterRole that may list and watch what verdicts depend on and nothing else, its binding, and \
a DaemonSet. The comments say why each field is as it is. Nothing is asked of a cluster, and nothing is changed.")]
pub struct Args {
    /// The image, as `cargo xtask image` names it or as it is called in a registry
    #[arg(long, value_name = "REFERENCE", default_value = concat!("localhost/npolicy:", env!("CARGO_PKG_VERSION")),
          value_parser = image)]
    image: String,

    /// Namespace of the DaemonSet and its account; it must be there
    ///
    /// It must admit pods on the node's network with a hostPath volume (Pod Security level `privileged`), and the priority
    /// class system-node-critical, which some clusters keep for kube-system.
    #[arg(long, short = 'n', value_name = "NAME", default_value = "kube-system", value_parser = namespace)]
    namespace: String,

    /// Only nodes with this label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    node_selector: Vec<(String, String)>,

    /// Mount the BPF file system on nodes that have none, by a privileged init container
    ///
    /// Nodes with systemd have it. Without it the agent says so and does not start: what is enforced could not outlive it.
    #[arg(long)]
    mount_bpffs: bool,

    /// What a pod's interface may do before it is known which pod it is: deny, but for what the node itself sends to it and
    /// the replies, or allow
    #[arg(long, value_name = "ACTION", default_value = "deny", value_parser = ["deny", "allow"])]
    unidentified_pods: String,

    /// Address ranges of pods, where the nodes' spec.podCIDRs do not tell: an interface with such an address is a pod's. May
    /// be given several times
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<IpNet>,

    /// Interfaces of nodes never to touch. May be given several times
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = interface)]
    exclude_interfaces: Vec<String>,

    /// Where the agents reach the API server, instead of the Service `kubernetes`: for nodes on which kube-proxy comes later,
    /// or where there is none
    ///
    /// The certificate of the API server must be for this address or name, and the node must resolve the name. IPv6
    /// addresses go in brackets: [2001:db8::1]:6443.
    #[arg(long, value_name = "HOST:PORT", value_parser = api_server)]
    api_server: Option<(String, u16)>,

    /// How much the agents say on standard error
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: String,
}

/// Prints the manifests.
///
/// # Errors
///
/// A node selector names a key twice.
pub fn run(args: Args) -> anyhow::Result<u8> {
    anstream::print!("{}", manifests(args)?);
    Ok(exit::OK)
}

fn manifests(args: Args) -> anyhow::Result<String> {
    let Args {
        image,
        namespace,
        node_selector,
        mount_bpffs,
        unidentified_pods,
        pod_cidrs,
        exclude_interfaces,
        api_server,
        log_level,
    } = args;
    let mut text = Text::new();
    text.replace("namespace: kube-system", &format!("namespace: {}", quoted(&namespace)));
    text.replace(
        "            - --unidentified-pods=deny",
        &format!("            - --unidentified-pods={unidentified_pods}"),
    );
    text.replace("              value: info", &format!("              value: {log_level}"));
    let mut keys = vec!["kubernetes.io/os"];
    for (key, value) in &node_selector {
        anyhow::ensure!(
            !keys.contains(&&**key),
            "--node-selector {key}={value}: there is a condition on {key} already"
        );
        keys.push(key);
    }
    for (key, value) in node_selector.iter().rev() {
        text.insert_after("        kubernetes.io/os: linux", &format!("        {}: {}", quoted(key), quoted(value)));
    }
    let mut argument = |flag: &str, values: &[String]| {
        if !values.is_empty() {
            let argument = quoted(&format!("{flag}={}", values.join(",")));
            text.insert_after("            - --drop-format=json", &format!("            - {argument}"));
        }
    };
    argument("--exclude-interfaces", &exclude_interfaces);
    argument("--pod-cidrs", &pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>());
    if let Some((host, port)) = api_server {
        let variables = format!(
            "            # Where the API server is, instead of its Service.\n            \
             - name: KUBERNETES_SERVICE_HOST\n              value: {}\n            \
             - name: KUBERNETES_SERVICE_PORT\n              value: {}",
            quoted(&host),
            quoted(&port.to_string())
        );
        text.insert_after(&format!("              value: {log_level}"), &variables);
    }
    if mount_bpffs {
        text.insert_before("      containers:", MOUNT_BPFFS.trim_end());
        text.replace("          image: IMAGE", &format!("          image: {}", quoted(&image)));
    }
    let default_image = concat!("          image: localhost/npolicy:", env!("CARGO_PKG_VERSION"));
    text.replace(default_image, &format!("          image: {}", quoted(&image)));
    Ok(text.0)
}

/// The manifests, changed line by line.
struct Text(String);

impl Text {
    fn new() -> Self {
        Self(MANIFESTS.to_owned())
    }

    /// Replaces every line that ends so, from there on.
    ///
    /// # Panics
    ///
    /// No line does: the manifests and this file disagree.
    fn replace(&mut self, end: &str, new: &str) {
        self.change(end, |before| format!("{before}{new}"));
    }

    fn insert_after(&mut self, line: &str, new: &str) {
        self.change(line, |before| format!("{before}{line}\n{new}"));
    }

    fn insert_before(&mut self, line: &str, new: &str) {
        self.change(line, |before| format!("{new}\n{before}{line}"));
    }

    fn change(&mut self, end: &str, change: impl Fn(&str) -> String) {
        let mut found = false;
        let changed = self.0.lines().map(|line| {
            let Some(before) = line.strip_suffix(end) else { return format!("{line}\n") };
            found = true;
            change(before) + "\n"
        });
        self.0 = changed.collect();
        assert!(found, "the manifests must have a line `{end}`");
    }
}

/// A scalar that YAML reads as this text: as it is where it cannot be anything else, otherwise as a JSON string, which YAML
/// contains.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !text.ends_with(':')
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | "null"
        );
    if is_word { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, as the distribution specification writes references.
fn image(text: &str) -> Result<String, String> {
    let wanted = || format!("`{text}` is no image reference: expected one like registry.example/npolicy:0.1.0");
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = match name.rsplit_once(':') {
        // A colon before the last slash is the registry's port.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let is_digest = |digest: &str| {
        digest.split_once(':').is_some_and(|(algorithm, digits)| {
            is_made_of(algorithm, "+._-") && digits.len() >= 32 && digits.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let is_tag = |tag: &str| tag.len() <= 128 && is_made_of(tag, "._-") && !tag.starts_with(['.', '-']);
    let is_part = |part: &str| {
        let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        is_made_of(part, "._-")
            && !part.contains(|c: char| c.is_ascii_uppercase())
            && part.starts_with(is_end)
            && part.ends_with(is_end)
    };
    let is_registry = |part: &str| {
        let (host, port) = part.rsplit_once(':').map_or((part, None), |(host, port)| (host, Some(port)));
        is_made_of(host, ".-") && port.is_none_or(|port| port.parse::<u16>().is_ok())
    };
    let mut parts = path.split('/');
    // Splitting gives at least one part, be it empty, which is no good one.
    let first = parts.next().unwrap_or_default();
    let rest: Vec<_> = parts.collect();
    let good =
        if rest.is_empty() { is_part(first) } else { is_registry(first) && rest.iter().all(|part| is_part(part)) };
    if good && tag.is_none_or(is_tag) && digest.is_none_or(is_digest) { Ok(text.to_owned()) } else { Err(wanted()) }
}

/// A DNS label, as names of namespaces are (RFC 1123).
fn namespace(text: &str) -> Result<String, String> {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = text.len() <= 63
        && text.chars().all(|c| is_end(c) || c == '-')
        && text.starts_with(is_end)
        && text.ends_with(is_end);
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is no namespace: expected at most 63 lower-case letters, digits and `-`, a letter or digit at both ends"
        ))
    }
}

/// A label as Kubernetes writes it: an optional DNS prefix and a name, and a value that may be empty.
fn label(text: &str) -> Result<(String, String), String> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(format!("`{text}` is no label: expected KEY=VALUE"));
    };
    let is_end = |c: char| c.is_ascii_alphanumeric();
    let is_name =
        |name: &str| name.len() <= 63 && is_made_of(name, "._-") && name.starts_with(is_end) && name.ends_with(is_end);
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_prefix = |prefix: &str| prefix.len() <= 253 && prefix.split('.').all(|part| namespace(part).is_ok());
    if !is_name(name) || !prefix.is_none_or(is_prefix) {
        return Err(format!("`{key}` is no key of a label: expected one like example.com/role or role"));
    }
    if !value.is_empty() && !is_name(value) {
        return Err(format!(
            "`{value}` is no value of a label: expected at most 63 letters, digits, `-`, `_` and `.`, a letter or digit at \
             both ends"
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The kernel's rule for names of interfaces (`dev_valid_name`, net/core/dev.c, v6.6), without what flags cannot carry.
fn interface(text: &str) -> Result<String, String> {
    let good = (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':'));
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no name of an interface: expected 1 to 15 characters without space, `/` and `:`"))
    }
}

/// An address or a name, and a port.
fn api_server(text: &str) -> Result<(String, u16), String> {
    let wanted = |what: &str| {
        format!("`{text}`: {what}: expected one like 192.0.2.1:6443, [2001:db8::1]:6443 or api.example:6443")
    };
    let Some((host, port)) = text.rsplit_once(':') else { return Err(wanted("there is no port")) };
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| wanted("the port is no number of 1 to 65535"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(address) => {
            address.parse::<Ipv6Addr>().map_err(|_| wanted("in the brackets is no IPv6 address"))?.to_string()
        }
        None if host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()) => host.to_owned(),
        None if host.contains(':') => return Err(wanted("an IPv6 address goes in brackets")),
        None if host.len() <= 253 && host.split('.').all(|part| namespace(&part.to_ascii_lowercase()).is_ok()) => {
            host.to_owned()
        }
        None => return Err(wanted("the host is neither an address nor a name")),
    };
    Ok((host, port))
}

/// Whether `text` is one character or more, each a letter, a digit or one of `others`.
fn is_made_of(text: &str, others: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn printed(flags: &[&str]) -> String {
        let command =
            Command::try_parse_from(["install"].iter().chain(flags)).unwrap_or_else(|error| panic!("{error}"));
        manifests(command.args).unwrap()
    }

    /// The lines that flags take away and put in.
    fn changes(flags: &[&str]) -> String {
        let (before, after) = (printed(&[]), printed(flags));
        let without = |lines: &str, others: &str, sign: &str| -> String {
            let others: Vec<_> = others.lines().collect();
            lines
                .lines()
                .filter(|line| !others.contains(line))
                .map(|line| format!("{sign} {}\n", line.trim()))
                .collect()
        };
        without(&before, &after, "-") + &without(&after, &before, "+")
    }

    #[test]
    fn prints_the_committed_manifests_without_flags() {
        assert_eq!(printed(&[]), MANIFESTS);
    }

    #[test]
    fn each_flag_changes_its_own_lines() {
        #[track_caller]
        fn check(flags: &[&str], expected: &str) {
            assert_eq!(changes(flags), expected, "{flags:?}");
        }
        let defaults = ["--image", "localhost/npolicy:0.1.0", "-n", "kube-system", "--unidentified-pods", "deny"];
        check(&defaults, "");
        check(&["--log-level", "debug"], "- value: info\n+ value: debug\n");
        check(&["--unidentified-pods", "allow"], "- - --unidentified-pods=deny\n+ - --unidentified-pods=allow\n");
        let image = "registry.example:5000/a/npolicy:1";
        check(&["--image", image], &format!("- image: localhost/npolicy:0.1.0\n+ image: {image}\n"));
        let ranges = ["--pod-cidrs", "10.0.0.0/8", "--pod-cidrs", "fd00::/8,fd01::/16"];
        check(&ranges, "+ - \"--pod-cidrs=10.0.0.0/8,fd00::/8,fd01::/16\"\n");
        check(&["--exclude-interfaces", "eth1,#x"], "+ - \"--exclude-interfaces=eth1,#x\"\n");
        check(&["--node-selector", "a.b/c=true", "--node-selector", "x="], "+ a.b/c: \"true\"\n+ x: \"\"\n");
        check(
            &["--api-server", "[2001:db8::1]:6443"],
            "+ # Where the API server is, instead of its Service.\n+ - name: KUBERNETES_SERVICE_HOST\n\
             + value: \"2001:db8::1\"\n+ - name: KUBERNETES_SERVICE_PORT\n+ value: \"6443\"\n",
        );
        let namespace = "- namespace: kube-system\n".repeat(3) + &"+ namespace: \"1\"\n".repeat(3);
        check(&["-n", "1"], &namespace);
    }

    #[test]
    fn init_container_has_the_agents_image() {
        let text = printed(&["--mount-bpffs", "--image", "other/npolicy:2"]);
        assert_eq!(text.matches("image: other/npolicy:2\n").count(), 2, "{text}");
        assert!(!text.contains("localhost/npolicy"), "{text}");
        assert!(!printed(&["--mount-bpffs"]).contains("IMAGE"));
    }

    #[test]
    fn a_node_selector_names_a_key_once() {
        let command = Command::parse_from(["install", "--node-selector", "kubernetes.io/os=linux"]);
        let error = manifests(command.args).unwrap_err().to_string();
        assert_eq!(error, "--node-selector kubernetes.io/os=linux: there is a condition on kubernetes.io/os already");
    }

    #[test]
    fn scalars_stay_texts() {
        for text in
            ["", "true", "No", "null", "1.5", "0x1f", "1e3", "a: b", "a #b", "~", "a:", "[x]", "- x", ".inf", "kube"]
        {
            let value: serde_json::Value = serde_saphyr::from_str(&quoted(text)).unwrap();
            assert_eq!(value, serde_json::Value::from(text));
        }
    }

    #[test]
    fn values_of_flags_are_checked() {
        fn check<T: std::fmt::Debug>(parse: fn(&str) -> Result<T, String>, good: &[&str], bad: &[&str]) {
            for text in good {
                assert!(parse(text).is_ok(), "{text}: {:?}", parse(text));
            }
            for text in bad {
                let error = parse(text).map(|value| panic!("{text} is read as {value:?}")).unwrap_err();
                assert!(error.starts_with('`') && error.contains("expected"), "{error}");
            }
        }
        let digest = format!("npolicy@sha256:{}", "0a".repeat(32));
        let cut = format!("npolicy@sha256:{}", "0a".repeat(15));
        check(
            image,
            &["npolicy", "npolicy:1", "a/b/c", "Registry.example:5000/a_b/c-d:V1", "localhost/npolicy:0.1.0", &digest],
            &["", "npolicy:", "Npolicy", "a//b", "/a", "a/", "a b", "a:1:2", "r:x/a", "a\nb: c", "a@b", "-a", &cut],
        );
        check(namespace, &["a", "1", "a-b"], &["", "A", "-a", "a-", "a.b", "a_b", &"a".repeat(64)]);
        check(
            label,
            &["a=b", "a=", "a.b/c=d", "A_b=C.d"],
            &["a", "=b", "a/b/c=d", "a=b=c", "a=b c", "-a=b", "a=-b", "A.b/c=d", "/c=d"],
        );
        check(
            interface,
            &["eth0", "a@b", "exactly15chars_"],
            &["", ".", "..", "a/b", "a:b", "a b", "sixteen_chars_ab"],
        );
        check(
            api_server,
            &["192.0.2.1:6443", "[::1]:1", "api.example:65535", "API:443"],
            &[
                "",
                "api",
                "api:",
                "api:0",
                "api:65536",
                "::1:6443",
                "[::1]",
                "[x]:1",
                "[192.0.2.1]:1",
                "a b:1",
                ":1",
                "a/b:1",
            ],
        );
    }
}
