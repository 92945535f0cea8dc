//! Several nodes without an agent: who reaches whom, and under which address.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use npolicy_agent::rig::{
    Cluster, Layout, Listeners, Namespace, Node, NodeSettings, Outcome, Patience, Pod, PodSettings, Probe, Protocol,
    SctpMeans, Service, Source, Translation, probe_each,
};
use npolicy_tests::require_cluster;

const PORT: u16 = 8080;
const EVERY: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];
const OUTSIDE: [&str; 2] = ["203.0.113.7", "2001:db8::7"];

/// Two nodes with two pods each; nothing where this machine cannot run it.
fn cluster(layouts: [Layout; 2]) -> Option<Cluster> {
    if !require_cluster() {
        return None;
    }
    let node = |number, layout| Node::new(NodeSettings { name: format!("n{number}"), number, layout }).expect("a node");
    let mut cluster = Cluster::new(vec![node(1, layouts[0]), node(2, layouts[1])]).expect("a cluster");
    for (node, pod) in [("n1", "a"), ("n1", "b"), ("n2", "c"), ("n2", "d")] {
        cluster.add_pod(node, PodSettings::new("test", pod)).expect("a pod");
    }
    for host in OUTSIDE.map(|host| host.parse::<IpAddr>().expect("an address")) {
        if cluster.families().iter().any(|family| is_of(host, *family)) {
            cluster.add_outside_host(host).expect("a host");
        }
    }
    Some(cluster)
}

fn is_of(address: IpAddr, family: npolicy_common::Family) -> bool {
    address.is_ipv4() == (family == npolicy_common::Family::V4)
}

fn pods(cluster: &Cluster) -> Vec<Pod> {
    cluster.pods().cloned().collect()
}

fn serve(cluster: &Cluster, sctp: SctpMeans) -> Vec<Listeners> {
    let services = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| Service { protocol, port: PORT });
    cluster.pods().map(|pod| Listeners::start(pod, &services, sctp).expect("servers")).collect()
}

fn probe(to: IpAddr, protocol: Protocol) -> Probe {
    Probe { to, protocol, port: if protocol == Protocol::Icmp { 0 } else { PORT } }
}

#[track_caller]
fn check(asked: &[(Source, Probe)], sctp: SctpMeans, expected: Outcome) {
    let probes: Vec<_> = asked.iter().map(|(source, probe)| (source, *probe, Patience::THOROUGH)).collect();
    let outcomes = probe_each(&probes, sctp, || {}).expect("probes");
    let wrong: Vec<_> = asked
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| *outcome != expected)
        .map(|((source, probe), outcome)| format!("{} to {probe}: {outcome}", source.name()))
        .collect();
    assert!(wrong.is_empty(), "{} of {} are not {expected}:\n{}", wrong.len(), asked.len(), wrong.join("\n"));
}

/// The address under which a server at `to` sees a client that connects to `through`.
fn seen_by(server: &Namespace, to: IpAddr, client: &Namespace, own: Option<IpAddr>, through: SocketAddr) -> IpAddr {
    let listener = server.run(|| TcpListener::bind((to, PORT))).expect("a namespace").expect("a listener");
    let connect = || match own {
        None => TcpStream::connect_timeout(&through, Duration::from_secs(5)),
        Some(own) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let socket =
                    if own.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
                socket.bind(SocketAddr::new(own, 0))?;
                socket.connect(through).await?.into_std()
            })
        }
    };
    let _stream = client.run(connect).expect("a namespace").expect("a connection");
    listener.accept().expect("the connection").1.ip()
}

fn check_layouts(layouts: [Layout; 2]) {
    let Some(mut cluster) = cluster(layouts) else { return };
    let sctp = SctpMeans::find();
    let families = cluster.families().to_vec();
    let listeners = serve(&cluster, sctp);
    let pods = pods(&cluster);

    let mut asked = Vec::new();
    for source in &pods {
        for to in pods.iter().filter(|to| to.key != source.key).flat_map(Pod::addresses) {
            asked.extend(EVERY.map(|protocol| (Source::from(source), probe(to, protocol))));
        }
    }
    for node in cluster.nodes() {
        for to in pods.iter().flat_map(Pod::addresses) {
            asked.extend(EVERY.map(|protocol| (Source::new(node.name(), node.namespace()), probe(to, protocol))));
        }
        for source in &pods {
            asked.extend(node.addresses().map(|to| (Source::from(source), probe(to, Protocol::Icmp))));
        }
    }
    for to in pods.iter().flat_map(Pod::addresses) {
        let outside = Source::new("outside", cluster.outside())
            .leaving_by(OUTSIDE.map(|host| host.parse::<IpAddr>().expect("an address")));
        asked.extend(EVERY.map(|protocol| (outside.clone(), probe(to, protocol))));
    }
    assert_eq!(asked.len(), (12 * 4 + 8 * 4 + 8 + 4 * 4) * families.len());
    check(&asked, sctp, Outcome::Accept);

    // Pods of both nodes behind one Service, and one that has no pods.
    let mut services = Vec::new();
    let mut through = Vec::new();
    for &family in &families {
        let address = |host: u16| match family {
            npolicy_common::Family::V4 => format!("10.96.0.{host}:80"),
            npolicy_common::Family::V6 => format!("[fd00:10:96::{host}]:80"),
        };
        let backends: Vec<_> =
            [&pods[1], &pods[2]].map(|pod| SocketAddr::new(pod.address(family).expect("an address"), PORT)).to_vec();
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            for (host, backends) in [(1, backends.clone()), (2, Vec::new())] {
                let address = address(host).parse().expect("an address");
                services.push(Translation { protocol, address, backends, masquerade: false });
                through.push((host, protocol, address));
            }
        }
    }
    cluster.translate(&services).expect("translation");
    let asked = |wanted| {
        let mut asked = Vec::new();
        // Across a bridge a Service cannot lead back to the pod that asks: its port does not send out what came in by it.
        let is_bridged = layouts.contains(&Layout::Bridged);
        for source in pods.iter().filter(|pod| !is_bridged || !["b", "c"].contains(&&*pod.key.name)) {
            for &(host, protocol, address) in &through {
                if host == wanted {
                    let probe = Probe { to: address.ip(), protocol, port: address.port() };
                    asked.extend([(Source::from(source), probe), (Source::from(source), probe)]);
                }
            }
        }
        asked
    };
    check(&asked(1), sctp, Outcome::Accept);
    check(&asked(2), sctp, Outcome::Refused);

    drop(listeners);
    for &family in &families {
        let own = |pod: &Pod| pod.address(family).expect("an address");
        let [a, _, c, d] = &pods[..] else { panic!("four pods") };
        let node = cluster.node("n1").address(family).expect("an address");
        let direct = |to| SocketAddr::new(to, PORT);
        assert_eq!(seen_by(&c.namespace, own(c), &a.namespace, None, direct(own(c))), own(a), "pod to pod");
        let service = |port| Translation {
            protocol: Protocol::Tcp,
            address: SocketAddr::new(node, port),
            backends: vec![direct(own(d))],
            masquerade: port == 30_002,
        };
        cluster.translate(&[service(30_001), service(30_002)]).expect("translation");
        let through = |port| SocketAddr::new(node, port);
        assert_eq!(seen_by(&d.namespace, own(d), &a.namespace, None, through(30_001)), own(a), "through a Service");
        let outside: IpAddr = OUTSIDE[usize::from(node.is_ipv6())].parse().expect("an address");
        let seen = seen_by(&d.namespace, own(d), cluster.outside(), Some(outside), through(30_002));
        assert_eq!(seen, node, "through a node port");
        let seen = seen_by(&d.namespace, own(d), cluster.outside(), Some(outside), direct(own(d)));
        assert_eq!(seen, outside, "from the outside");
        let seen = seen_by(cluster.outside(), outside, &a.namespace, None, direct(outside));
        assert_eq!(seen, node, "to the outside");
    }
    for node in ["n1", "n2"] {
        let guest = cluster.add_guest(node).expect("a guest");
        for &family in &families {
            let own = cluster.node(node).address(family).expect("an address");
            for pod in &pods {
                let to = pod.address(family).expect("an address");
                let seen = seen_by(&pod.namespace, to, &guest.namespace, None, SocketAddr::new(to, PORT));
                assert_eq!(seen, own, "{node}'s guest to {}", pod.key);
            }
        }
    }
}

#[test]
fn routed_nodes_reach_each_other_and_the_outside() {
    check_layouts([Layout::Routed, Layout::Routed]);
}

#[test]
fn bridged_nodes_reach_each_other_and_the_outside() {
    check_layouts([Layout::Bridged, Layout::Bridged]);
}

#[test]
fn pods_with_addresses_outside_their_nodes_range_are_reached_until_they_are_removed() {
    let Some(mut cluster) = cluster([Layout::Routed, Layout::Bridged]) else { return };
    let sctp = SctpMeans::find();
    let mut settings = PodSettings::new("test", "stray");
    settings.addresses = vec!["10.0.1.10".parse().expect("an address"), "fd00:1::10".parse().expect("an address")];
    settings.addresses.retain(|address| cluster.families().iter().any(|family| is_of(*address, *family)));
    let stray = cluster.add_pod("n1", settings).expect("a pod").clone();
    let _listeners = serve(&cluster, sctp);
    let asked: Vec<_> = pods(&cluster)
        .iter()
        .filter(|pod| pod.key != stray.key)
        .flat_map(|pod| stray.addresses().map(move |to| (Source::from(pod), probe(to, Protocol::Tcp))))
        .collect();
    check(&asked, sctp, Outcome::Accept);
    cluster.remove_pod(&stray.key).expect("removal");
    check(&asked, sctp, Outcome::Refused);
}
