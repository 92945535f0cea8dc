//! The manifests of a demo: which pods to make, which ports to try, and the text that the agent gets to read.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::PodKey;
use crate::rig::{PodSettings, Protocol, Service};

mod ports;

/// Files with Namespaces, Pods and policies of both kinds. What is not understood here is handed to the agent as it is.
#[derive(Debug)]
pub(super) struct World {
    files: Vec<File>,
}

/// What the demo does not do, for people to read.
pub(super) type Notes = Vec<String>;

#[derive(Debug)]
struct File {
    name: String,
    documents: Vec<Document>,
}

#[derive(Debug)]
struct Document {
    text: String,
    /// None where the text is not YAML: the agent names the place.
    value: Option<Value>,
    changed: bool,
}

/// Ports tried with every pair of pods.
const MAX_SERVICES: usize = 16;
/// Tried where nothing names a port.
const DEFAULT_SERVICE: Service = Service { protocol: Protocol::Tcp, port: 8080 };

impl World {
    /// Takes files by name and text.
    pub(super) fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let files = files.into_iter().map(|(name, text)| File::new(name, text)).collect();
        Self { files }
    }

    /// Reads a file, or the manifests of a directory in the order of their names. What [`Manifests`] reports as unreadable
    /// is passed over.
    ///
    /// [`Manifests`]: crate::watch::manifests::Manifests
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let kind = fs::metadata(path).with_context(|| format!("read {}", path.display()))?;
        // What can be read only once is of no use: the findings come from another reading.
        anyhow::ensure!(kind.is_file() || kind.is_dir(), "{} is neither a file nor a directory", path.display());
        let mut paths = BTreeSet::new();
        if kind.is_file() {
            paths.insert(path.to_owned());
        } else {
            for entry in fs::read_dir(path).with_context(|| format!("read directory {}", path.display()))? {
                let file = entry?.path();
                if has_ending(&file) && !file.is_dir() {
                    paths.insert(file);
                }
            }
            anyhow::ensure!(!paths.is_empty(), "{} holds no .yaml, .yml or .json file", path.display());
        }
        let readable = paths.iter().filter_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            let mut name = path.file_name()?.to_string_lossy().into_owned();
            if !has_ending(path) {
                // The agent gets a directory, and looks for the endings there.
                name.push_str(".yaml");
            }
            Some(File::new(&name, text.strip_prefix('\u{feff}').unwrap_or(&text)))
        });
        Ok(Self { files: readable.collect() })
    }

    /// The pods to make. Pods that have ended or live in their node's network are left out, and of two with one
    /// name the later counts.
    pub(super) fn pods(&self) -> (Vec<PodSettings>, Notes) {
        let (mut pods, mut notes): (Vec<PodSettings>, _) = (Vec::new(), Notes::new());
        for object in self.objects() {
            let Some(pod) = PodLite::of(object).filter(|pod| !pod.metadata.name.is_empty()) else {
                match object["metadata"]["name"].as_str() {
                    Some(name) if object["kind"] == "Pod" => notes.push(format!("pod {name} cannot be read: not made")),
                    // What lacks a name is a finding of the reading, with its line.
                    _ => {}
                }
                continue;
            };
            let key = pod.key();
            if pod.has_ended() {
                notes.push(format!("pod {key} has ended: not made"));
            } else if pod.spec.host_network {
                notes.push(format!("pod {key} lives in its node's network: not made"));
            } else if let Some(made) = pods.iter_mut().find(|made| made.key == key) {
                notes.push(format!("pod {key} is there twice: the later counts"));
                made.addresses = pod.addresses();
            } else {
                pods.push(PodSettings { key, addresses: pod.addresses() });
            }
        }
        (pods, notes)
    }

    /// What to try with every pair: the ports that policies and containers name, and the one beside each.
    pub(super) fn services(&self) -> (Vec<Service>, Notes) {
        let mut named = BTreeSet::new();
        let (mut notes, mut not_tried) = (Notes::new(), 0);
        for object in self.objects() {
            match object["kind"].as_str() {
                Some("Pod") => {
                    let containers = PodLite::of(object).into_iter().flat_map(|pod| pod.spec.containers);
                    named.extend(containers.flat_map(|container| container.ports).filter_map(|port| port.service()));
                }
                Some("NetworkPolicy") => named.extend(ports::of_network_policy(&object["spec"])),
                Some("ClusterNetworkPolicy") => named.extend(ports::of_cluster_policy(&object["spec"])),
                Some("Service") => not_tried += 1,
                _ => {}
            }
        }
        match not_tried {
            0 => {}
            1 => notes.push("the Service is not tried: nothing here translates its addresses".into()),
            many => notes.push(format!("the {many} Services are not tried: nothing here translates their addresses")),
        }
        named.retain(|service| service.port != 0);
        if named.is_empty() {
            named.insert(DEFAULT_SERVICE);
        }
        let beside = named.iter().map(|service| Service { port: beside(service.port), ..*service });
        let beside: Vec<_> =
            beside.filter(|service| !named.contains(service)).collect::<BTreeSet<_>>().into_iter().collect();
        let mut services: Vec<_> = named.into_iter().chain(beside).collect();
        let left_out = services.len().saturating_sub(MAX_SERVICES);
        services.truncate(MAX_SERVICES);
        services.sort();
        if left_out > 0 {
            notes.push(format!("{left_out} of the ports named are not tried: {MAX_SERVICES} are the most"));
        }
        (services, notes)
    }

    /// Writes the addresses of the pods that were made into their manifests, as a kubelet does.
    pub(super) fn set_addresses(&mut self, pods: impl IntoIterator<Item = (PodKey, Vec<IpAddr>)>) {
        for (key, addresses) in pods {
            for document in self.files.iter_mut().flat_map(|file| &mut file.documents) {
                for object in document.value.iter_mut().flat_map(objects_mut) {
                    let lite = PodLite::of(object);
                    if lite.is_some_and(|lite| lite.key() == key && lite.addresses() != addresses) {
                        let addresses: Vec<_> = addresses.iter().map(|address| json!({"ip": address})).collect();
                        object["status"]["podIPs"] = addresses.into();
                        object["status"]["phase"] = "Running".into();
                        document.changed = true;
                    }
                }
            }
        }
    }

    /// Puts another text in the place of a file.
    pub(super) fn replace(&mut self, name: &str, text: &str) {
        let file = self.files.iter_mut().find(|file| file.name == name).expect("the file to replace must be there");
        *file = File::new(name, text);
    }

    /// Writes all files. Each appears whole: it is written in `scratch`, on the same file system, and renamed.
    pub(super) fn write(&self, directory: &Path, scratch: &Path) -> anyhow::Result<()> {
        for file in &self.files {
            let (partial, whole) = (scratch.join("partial"), directory.join(&file.name));
            let text = file.text()?;
            // A reader of the directory need not look at what has not changed.
            if fs::read_to_string(&whole).is_ok_and(|written| written == text) {
                continue;
            }
            fs::write(&partial, text).with_context(|| format!("write {}", partial.display()))?;
            fs::rename(&partial, &whole).with_context(|| format!("write {}", whole.display()))?;
        }
        Ok(())
    }

    fn objects(&self) -> impl Iterator<Item = &Value> {
        self.files.iter().flat_map(|file| &file.documents).filter_map(|document| document.value.as_ref()).flat_map(
            |value| match value["items"].as_array() {
                Some(items) => items.iter().collect::<Vec<_>>(),
                None => vec![value],
            },
        )
    }
}

/// Whether a file of a directory is read.
fn has_ending(file: &Path) -> bool {
    matches!(file.extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"))
}

fn objects_mut(value: &mut Value) -> Vec<&mut Value> {
    if value["items"].is_array() {
        value["items"].as_array_mut().expect("it is an array").iter_mut().collect()
    } else {
        vec![value]
    }
}

impl File {
    fn new(name: &str, text: &str) -> Self {
        Self { name: name.into(), documents: split_documents(text).into_iter().map(Document::new).collect() }
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut texts = Vec::new();
        for document in &self.documents {
            texts.push(match &document.value {
                Some(value) if document.changed => serde_json::to_string_pretty(value)? + "\n",
                _ => document.text.clone(),
            });
        }
        Ok(texts.join("---\n"))
    }
}

impl Document {
    fn new(text: String) -> Self {
        // An error here is the agent's to report.
        let value = serde_saphyr::from_str(&text).ok();
        Self { text, value, changed: false }
    }
}

/// Splits a stream at its `---` lines, so that a bad document leaves the others readable.
fn split_documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else {
            let last = documents.last_mut().expect("one is always there");
            last.push_str(line);
            last.push('\n');
        }
    }
    documents
}

/// The port after, and before the last one.
fn beside(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(port - 1)
}

/// What making a pod needs of its manifest.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodLite {
    metadata: MetadataLite,
    spec: SpecLite,
    status: StatusLite,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetadataLite {
    namespace: Option<String>,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecLite {
    host_network: bool,
    containers: Vec<ContainerLite>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerLite {
    ports: Vec<PortLite>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PortLite {
    container_port: u16,
    protocol: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StatusLite {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<IpLite>,
}

#[derive(Deserialize)]
struct IpLite {
    ip: IpAddr,
}

impl PodLite {
    fn of(object: &Value) -> Option<Self> {
        // What is wrong with a pod that cannot be read is the agent's to say.
        (object["kind"] == "Pod").then(|| Self::deserialize(object).ok()).flatten()
    }

    fn key(&self) -> PodKey {
        let namespace = self.metadata.namespace.as_deref().unwrap_or("default");
        PodKey { namespace: namespace.into(), name: self.metadata.name.as_str().into() }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        if self.status.pod_ips.is_empty() {
            self.status.pod_ip.into_iter().collect()
        } else {
            self.status.pod_ips.iter().map(|entry| entry.ip).collect()
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl PortLite {
    fn service(&self) -> Option<Service> {
        let protocol = ports::protocol_of(self.protocol.as_deref())?;
        Some(Service { protocol, port: self.container_port })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn service(protocol: Protocol, port: u16) -> Service {
        Service { protocol, port }
    }

    fn key(namespace: &str, name: &str) -> PodKey {
        PodKey { namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn makes_the_pods_that_live_in_a_network_of_their_own() {
        let pods = "kind: Pod\nmetadata: {name: a}\n---\n\
            kind: Pod\nmetadata: {namespace: x, name: b}\nstatus: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}\n";
        let list = "kind: List\nitems:\n\
            - {kind: Pod, metadata: {name: done}, status: {phase: Succeeded}}\n\
            - {kind: Pod, metadata: {name: host}, spec: {hostNetwork: true}}\n\
            - {kind: Pod, metadata: {name: a}}\n\
            - {kind: Pod, metadata: {name: odd}, spec: 7}\n\
            - {kind: Pod, metadata: {labels: {name: none}}}\n\
            - {kind: Pod, metadata: {name: c}, status: {podIP: 10.0.0.2}}\n";
        let (pods, notes) = World::new([("pods.yaml", pods), ("list.yaml", list)]).pods();
        let made: BTreeMap<_, _> = pods.into_iter().map(|pod| (pod.key, pod.addresses)).collect();
        let expected = [
            (key("default", "a"), vec![]),
            (key("x", "b"), vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
            (key("default", "c"), vec!["10.0.0.2".parse().unwrap()]),
        ];
        assert_eq!(made, expected.into());
        assert_eq!(notes.len(), 4, "{notes:?}");
    }

    #[test]
    fn tries_the_ports_that_are_named_and_the_ones_beside() {
        let text = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{ports: [{containerPort: 53, protocol: UDP}]}]}\n---\n\
            kind: NetworkPolicy\nspec:\n  ingress: [{ports: [{port: 65535}, {port: http}, {protocol: SCTP}]}]\n  \
            egress: [{ports: [{port: 80, endPort: 90}]}]\n";
        let (services, notes) = World::new([("all.yaml", text)]).services();
        let tcp = |port| service(Protocol::Tcp, port);
        let udp = |port| service(Protocol::Udp, port);
        assert_eq!(services, [tcp(80), tcp(81), tcp(90), tcp(91), tcp(65534), tcp(65535), udp(53), udp(54)]);
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn tries_the_ports_of_cluster_policies_and_says_that_services_are_not_tried() {
        let text = "kind: ClusterNetworkPolicy\nspec:\n  ingress: [{protocols: [{tcp: {destinationPort: {number: 80}}}, \
            {destinationNamedPort: http}, {tcp: {}}]}]\n  egress: [{protocols: [{udp: {destinationPort: {range: {start: \
            50, end: 59}}}}, {sctp: {destinationPort: {number: 70000}}}]}, {}]\n---\n\
            kind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 443}]}\n";
        let (services, notes) = World::new([("all.yaml", text)]).services();
        let tcp = |port| service(Protocol::Tcp, port);
        let udp = |port| service(Protocol::Udp, port);
        assert_eq!(services, [tcp(80), tcp(81), udp(50), udp(51), udp(59), udp(60)]);
        assert_eq!(notes, ["the Service is not tried: nothing here translates its addresses"]);
    }

    #[test]
    fn says_how_many_ports_are_too_many() {
        let ports = (0..20).map(|number| format!("{{port: {}}}", 1000 + number * 10)).collect::<Vec<_>>().join(", ");
        let text = format!("kind: NetworkPolicy\nspec: {{ingress: [{{ports: [{ports}]}}]}}\n");
        let (services, notes) = World::new([("policy.yaml", text.as_str())]).services();
        assert_eq!(services.len(), MAX_SERVICES);
        assert!(notes[0].starts_with("24 of"), "{notes:?}");
    }

    #[test]
    fn writes_addresses_into_pods_and_leaves_every_other_document_as_it_is() {
        let broken = "kind: NetworkPolicy\n  spec: [\n";
        let text = format!("# a comment\nkind: Namespace\n---\nkind: Pod\nmetadata: {{name: a}}\n---\n{broken}");
        let mut world = World::new([("all.yaml", text.as_str())]);
        let (pods, _) = world.pods();
        let addresses = vec!["10.244.1.10".parse().unwrap(), "fd00::a".parse().unwrap()];
        world.set_addresses(pods.into_iter().map(|pod| (pod.key, addresses.clone())));
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        world.write(&manifests, dir.path()).unwrap();
        let written = fs::read_to_string(manifests.join("all.yaml")).unwrap();
        assert!(written.starts_with("# a comment\nkind: Namespace\n---\n"), "{written}");
        assert!(written.ends_with(&format!("---\n{broken}")), "{written}");
        let read = World::read(&manifests).unwrap();
        assert_eq!(read.pods().0[0].addresses, addresses);
    }

    #[test]
    fn reads_one_file_or_what_is_readable_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.yaml"), "kind: Pod\nmetadata: {name: a}\n").unwrap();
        fs::write(path("pods"), "kind: Pod\nmetadata: {name: b}\n").unwrap();
        fs::write(path("latin.yaml"), b"kind: Pod\nmetadata: {name: caf\xe9}\n").unwrap();
        std::os::unix::fs::symlink(path("nowhere"), path("dangling.yaml")).unwrap();
        fs::create_dir(path("directory.yaml")).unwrap();
        let names = |path: &Path| {
            let (pods, _) = World::read(path).unwrap().pods();
            pods.into_iter().map(|pod| pod.key.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(names(&path("pods")), ["b"]);
        assert_eq!(World::read(&path("pods")).unwrap().files[0].name, "pods.yaml");
        World::read(&path("nowhere")).unwrap_err();
        World::read(Path::new("/dev/null")).unwrap_err();
    }
}
