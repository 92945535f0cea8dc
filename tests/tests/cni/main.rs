//! Which interface is which pod, where the reference CNI plugins join them: what netlink says, and what is decided.

mod node;

use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use npolicy_agent::agent::identify::{Decision, Foreign};
use npolicy_agent::rig::{Layout, Node, NodeSettings, PodSettings};
use npolicy_agent::watch::links::{Forwarding, HostLink, LinkWatch};
use npolicy_common::Family;
use npolicy_tests::require_root;

use node::{Agent, CniNode, Network, key, of, require_plugins, run_in};

fn pod(name: &str) -> Decision {
    Decision::Pod(key(name))
}

fn one_of(names: &[&str]) -> Decision {
    Decision::Candidates(names.iter().map(|name| key(name)).collect())
}

/// Pods that come, go and come back while the agent watches.
fn check_pods_of(network: fn(&CniNode) -> Network) {
    let mut node = CniNode::new();
    let network = network(&node);
    let mut agent = Agent::start(&node, &[]);
    agent.upsert("a", &[]);
    agent.upsert("b", &[]);
    let a = node.add(&network, "a", "eth0", &[]);
    assert_eq!(a.len(), node.node.families().len());
    // The address is there before the API server knows of it.
    agent.expect(a[0], &one_of(&["a", "b"]));
    agent.upsert("a", &a);
    for &address in &a {
        agent.expect(address, &pod("a"));
    }
    let b = node.add(&network, "b", "eth0", &[]);
    agent.expect(b[0], &one_of(&["b"]));
    agent.upsert("b", &b);
    agent.expect(b[0], &pod("b"));
    agent.expect(a[0], &pod("a"));
    assert_eq!(agent.told(), "");

    // Another pod gets a's addresses at once, and a's object still lists them.
    node.delete(&network, "a");
    let c = node.add(&network, "c", "eth0", &a);
    assert_eq!(c, a);
    agent.upsert("c", &[]);
    let decided = agent.wait_for("c's interface", || {
        let link = agent.link_at(c[0]).ok_or("on no interface")?;
        let decision = agent.pass().decisions.remove(&link.ifindex).ok_or("not decided")?;
        (!matches!(decision, Decision::Unidentified)).then_some(decision).ok_or("unidentified".into())
    });
    assert_eq!(decided, one_of(&["a", "c"]));
    agent.upsert("c", &c);
    agent.expect(c[0], &pod("c"));
    agent.delete("a");
    agent.expect(c[0], &pod("c"));
    agent.expect(b[0], &pod("b"));

    node.delete(&network, "b");
    node.delete(&network, "c");
    agent.wait_for("the interfaces to go", || match agent.links().host.len() {
        0 => Ok(()),
        left => Err(format!("{left} left")),
    });
    assert_eq!(agent.pass().decisions.len(), 0);
}

#[test]
fn pods_that_ptp_joins_are_identified() {
    if require_plugins() {
        check_pods_of(Network::ptp);
    }
}

#[test]
fn pods_that_bridge_joins_are_identified() {
    if require_plugins() {
        check_pods_of(Network::bridge);
    }
}

#[test]
fn what_ptp_makes_is_read_as_it_is() {
    if !require_plugins() {
        return;
    }
    let mut node = CniNode::new();
    let network = Network::ptp(&node);
    let a = node.add(&network, "a", "eth0", &[]);
    let agent = Agent::start(&node, &[("a", &a)]);
    // An agent that starts after the pods decides at its first pass.
    agent.expect(a[0], &pod("a"));
    let link = agent.link_at(a[0]).expect("the interface");
    for &address in &a {
        assert!(link.addresses.contains(&address), "{link:?}");
        assert!(link.routes.contains(&IpNet::from(address)), "{link:?}");
    }
    // The gateway's address is on every pod's interface, and is not the node's.
    let gateway: IpAddr = "10.244.1.1".parse().expect("an address");
    assert!(link.host_addresses.contains(&gateway), "{link:?}");
    assert!(agent.links().own_addresses.contains(&gateway));
    assert_eq!((link.bridge, link.forwarding), (None, Forwarding::Unknown));
    assert_eq!(link.engines, [""; 0]);
    assert_eq!(agent.told(), "");
}

#[test]
fn what_bridge_makes_is_read_as_it_is() {
    if !require_plugins() {
        return;
    }
    let mut node = CniNode::new();
    let network = Network::bridge(&node);
    let a = node.add(&network, "a", "eth0", &[]);
    let agent = Agent::start(&node, &[("a", &a)]);
    let link = agent.link_at(a[0]).expect("the interface");
    let links = agent.links();
    let bridge = &links.bridges[&link.bridge.expect("a bridge")];
    assert_eq!(bridge.name, "cni0");
    let range = node.node.range(Family::V4);
    assert!(bridge.routes.contains(&range), "{bridge:?}");
    assert_eq!(of(&bridge.addresses, Family::V4), "10.244.1.1".parse::<IpAddr>().expect("an address"));
    // The pod need only send something.
    run_in(node.container("a"), "ip neigh flush all");
    let sent = node.container("a").run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(b"here", ("10.244.1.1", 9))
    });
    sent.expect("a thread").expect("a datagram");
    agent.wait_for("the forwarding entry", || match agent.link_at(a[0]).map(|link| link.forwarding) {
        Some(Forwarding::Here) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    agent.expect(a[0], &pod("a"));
    // The entry ages: what agreed once does not open or close anything by being silent.
    node.run("bridge fdb flush dev cni0");
    agent.wait_for("the entry to go", || match agent.link_at(a[0]).map(|link| link.forwarding) {
        Some(Forwarding::Unknown) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    agent.expect(a[0], &pod("a"));
}

#[test]
fn uplinks_and_other_bridges_are_foreign() {
    if !require_plugins() {
        return;
    }
    let mut node = CniNode::new();
    let network = Network::ptp(&node);
    // As in a node that is a container itself: its uplink is a veth with the node's address.
    let uplink = Network::ptp_in("192.168.77.0/24", "192.168.77.1");
    let outside = node.add(&uplink, "outside", "eth0", &[]);
    let docker = Network::bridge_in("docker0", vec!["172.17.0.0/16".parse().expect("a range")]);
    let container = node.add(&docker, "container", "eth0", &[]);
    let a = node.add(&network, "a", "eth0", &[]);
    let mut agent = Agent::start(&node, &[("a", &a)]);
    let range = [node.node.range(Family::V4)];
    // Until the Node says that the address is its own, its range tells.
    agent.expect(outside[0], &Decision::Foreign(Foreign::OutsidePodRanges));
    let address: IpAddr = "192.168.77.1".parse().expect("an address");
    agent.set_node(vec![address], range.to_vec());
    agent.expect(outside[0], &Decision::Foreign(Foreign::NodeAddress(address)));
    agent.expect(container[0], &Decision::Foreign(Foreign::OutsidePodRanges));
    agent.expect(a[0], &pod("a"));
    let link = agent.link_at(outside[0]).expect("the uplink");
    agent.set_node(Vec::new(), Vec::new());
    node.run(&format!("ip route add default dev {}", link.name));
    agent.expect(outside[0], &Decision::Foreign(Foreign::DefaultRoute));
    // Without ranges nobody can tell what the other bridge is for.
    agent.expect(container[0], &Decision::Unidentified);
    agent.expect(a[0], &pod("a"));
}

#[test]
fn a_second_interface_is_not_the_pods_own() {
    if !require_plugins() {
        return;
    }
    let mut node = CniNode::new();
    let network = Network::ptp(&node);
    let a = node.add(&network, "a", "eth0", &[]);
    let second = node.add(&Network::ptp_in("192.168.78.0/24", "192.168.78.1"), "a", "net1", &[]);
    // An interface without an end here, which stands on nothing.
    run_in(node.container("a"), "ip link add inner type bridge");
    run_in(node.container("a"), "ip address add 10.244.1.200/32 dev inner");
    let mut agent = Agent::start(&node, &[("a", &a)]);
    // Nobody says where pods' addresses come from.
    agent.set_node(Vec::new(), Vec::new());
    agent.expect(a[0], &pod("a"));
    agent.expect(second[0], &Decision::Foreign(Foreign::SecondOf(key("a"))));
    assert_eq!(agent.link_at("10.244.1.200".parse().expect("an address")), None);
    assert_eq!(agent.links().unenforceable, []);
}

#[test]
fn a_macvlan_pod_is_reported_as_not_enforceable() {
    if !require_plugins() {
        return;
    }
    let mut node = CniNode::new();
    node.run("ip link add up0 type veth peer name up1");
    node.run("ip link set up0 up");
    node.run("ip link set up1 up");
    let network = Network::macvlan(&node, "up0");
    let made = node.add(&network, "made", "eth0", &[]);
    let moved = node.add(&Network::ptp(&node), "moved", "eth0", &[]);
    let mut agent = Agent::start(&node, &[("made", &made), ("moved", &moved)]);
    agent.expect(moved[0], &pod("moved"));
    let later = Instant::now() + Duration::from_secs(10);
    agent.pass_at(later);
    let told = agent.told();
    assert!(told.starts_with("pod shop/made: ") && told.lines().count() == 1, "{told}");
    // A namespace that has a number here shows what is in it.
    node.run("ip link add mv0 link up0 type macvlan mode bridge");
    let link = agent.link_at(moved[0]).expect("the interface");
    let path = node.container("moved").path();
    node.run(&format!("nsenter --net={} ip link del eth0", path.display()));
    node.run(&format!("ip link set mv0 netns {} name eth0", path.display()));
    run_in(node.container("moved"), &format!("ip address add {}/24 dev eth0", moved[0]));
    agent.wait_for("the interface to be seen", || {
        let links = agent.links();
        let is_gone = !links.host.contains_key(&link.ifindex);
        let macvlans = links.unenforceable.iter().filter(|other| other.kind == "macvlan" && other.name == "eth0");
        let is_seen = macvlans.flat_map(|other| &other.addresses).any(|address| *address == moved[0]);
        (is_gone && is_seen).then_some(()).ok_or_else(|| format!("{links:?}"))
    });
    agent.upsert("moved", &moved);
    agent.pass_at(later + Duration::from_secs(10));
    let told = agent.told();
    assert!(told.contains("pod shop/moved: its interface eth0 is a macvlan"), "{told}");
}

#[test]
fn another_engine_on_an_interface_is_named() {
    if !require_plugins() {
        return;
    }
    let mut node = CniNode::new();
    let network = Network::ptp(&node);
    let a = node.add(&network, "a", "eth0", &[]);
    let agent = Agent::start(&node, &[("a", &a)]);
    let name = agent.link_at(a[0]).expect("the interface").name;
    node.run(&format!("tc qdisc add dev {name} handle ffff: ingress"));
    node.run(&format!("tc filter add dev {name} parent ffff: protocol all u32 match u32 0 0 flowid 1:1"));
    agent.wait_for("the filter to be named", || {
        let engines = agent.link_at(a[0]).expect("the interface").engines;
        (engines == ["a filter of `ingress` (u32, in)"]).then_some(()).ok_or_else(|| format!("{engines:?}"))
    });
    agent.expect(a[0], &pod("a"));
    assert!(agent.told().contains(&format!("interface {name}: a filter of `ingress` (u32, in) is on it")));
}

#[test]
fn a_node_full_of_pods_is_read_in_milliseconds() {
    if !require_root() {
        return;
    }
    const PODS: usize = 245;
    let settings = NodeSettings { name: "n1".into(), number: 1, layout: Layout::Routed };
    let mut node = Node::new(settings).expect("a node");
    let begun = Instant::now();
    // It follows while they come.
    let watch = node.namespace().run(LinkWatch::start).expect("a thread").expect("a watch");
    for at in 0..PODS {
        node.add_pod(PodSettings::new("test", &format!("p{at}"))).expect("a pod");
    }
    println!("{PODS} pods made in {:?}", begun.elapsed());
    let readings = (0..10).map(|_| {
        let begun = Instant::now();
        let read = node.namespace().run(LinkWatch::start).expect("a thread").expect("a watch").current();
        assert_eq!(read.host.len(), PODS);
        begun.elapsed()
    });
    let best = readings.min().expect("a reading");
    println!("a reading of {PODS} pods takes {best:?}");
    // Not optimized, and with others on the machine.
    assert!(best < Duration::from_millis(500), "{best:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    let is_complete =
        |link: &HostLink| link.addresses.len() == node.families().len() && link.routes.len() == link.addresses.len();
    while watch.current().host.values().filter(|link| is_complete(link)).count() < PODS {
        assert!(Instant::now() < deadline, "only {:?}", watch.current().host.len());
        thread::sleep(Duration::from_millis(5));
    }
}
