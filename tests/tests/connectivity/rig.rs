//! The rig by itself: without an agent everything that is served is reached, and what is not served is refused.

use npolicy_agent::rig::{
    Layout, Listeners, Node, NodeSettings, Outcome, Pod, PodSettings, Probe, Protocol, SctpMeans, Service, probe_all,
};
use npolicy_tests::require_root;

const SERVED: u16 = 8080;
const NOT_SERVED: u16 = 8081;
const PORT_PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn node(layout: Layout) -> Node {
    let mut node = Node::new(NodeSettings { name: "n1".into(), number: 1, layout }).expect("a node");
    for name in ["a", "b", "c"] {
        node.add_pod(PodSettings::new("test", name)).expect("a pod");
    }
    node
}

fn serve(node: &Node, sctp: SctpMeans) -> Vec<Listeners> {
    let services = PORT_PROTOCOLS.map(|protocol| Service { protocol, port: SERVED });
    node.pods().map(|pod| Listeners::start(pod, &services, sctp).expect("servers")).collect()
}

fn probes(node: &Node, port: u16, protocols: &[Protocol]) -> Vec<(Pod, Probe)> {
    let mut probes = Vec::new();
    for source in node.pods() {
        for destination in node.pods().filter(|pod| pod.key != source.key) {
            for to in destination.addresses() {
                for &protocol in protocols {
                    let port = if protocol == Protocol::Icmp { 0 } else { port };
                    probes.push((source.clone(), Probe { to, protocol, port }));
                }
            }
        }
    }
    probes
}

#[track_caller]
fn check_all(probes: &[(Pod, Probe)], sctp: SctpMeans, expected: Outcome) {
    let asked: Vec<_> = probes.iter().map(|(source, probe)| (source, *probe)).collect();
    let outcomes = probe_all(&asked, sctp, || {}).expect("probes");
    for ((source, probe), outcome) in probes.iter().zip(outcomes) {
        assert_eq!(outcome, expected, "{} to {probe}", source.key);
    }
}

fn check_layout(layout: Layout) {
    let sctp = SctpMeans::find();
    let node = node(layout);
    let _listeners = serve(&node, sctp);
    let every = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];
    let answered = probes(&node, SERVED, &every);
    assert_eq!(answered.len(), 3 * 2 * node.families().len() * every.len());
    check_all(&answered, sctp, Outcome::Accept);
    check_all(&probes(&node, NOT_SERVED, &PORT_PROTOCOLS), sctp, Outcome::Refused);
}

#[test]
fn routed_pods_reach_each_other() {
    if require_root() {
        check_layout(Layout::Routed);
    }
}

#[test]
fn bridged_pods_reach_each_other() {
    if require_root() {
        check_layout(Layout::Bridged);
    }
}

#[test]
fn a_removed_pod_answers_nobody() {
    if !require_root() {
        return;
    }
    let sctp = SctpMeans::find();
    let mut node = node(Layout::Routed);
    let _listeners = serve(&node, sctp);
    let gone = node.pod("test", "b").expect("the pod").clone();
    node.remove_pod(&gone.key).expect("removal");
    let left = node.pod("test", "a").expect("the pod").clone();
    for to in gone.addresses() {
        let probe = Probe { to, protocol: Protocol::Tcp, port: SERVED };
        let outcomes = probe_all(&[(&left, probe)], sctp, || {}).expect("a probe");
        assert_ne!(outcomes, [Outcome::Accept], "{probe}");
    }
}

#[test]
fn nothing_of_a_rig_is_left_behind() {
    if !require_root() {
        return;
    }
    let before = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let links = || std::fs::read_dir("/sys/class/net").map_or(0, Iterator::count);
    let links_before = links();
    {
        let node = node(Layout::Bridged);
        let pins = npolicy_agent::rig::BpfFs::new().expect("a BPF file system");
        std::fs::create_dir(pins.pin_dir()).expect("a directory for pins");
        assert_eq!(links(), links_before, "a node shows in the caller's namespace");
        assert_eq!(node.pods().count(), 3);
    }
    assert_eq!(links(), links_before);
    assert_eq!(std::fs::read_to_string("/proc/self/mounts").expect("mounts"), before);
}
