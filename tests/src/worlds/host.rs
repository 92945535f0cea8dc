//! The packet path built for the host, over tables in memory that say what a plan says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use npolicy_agent::compile::{Peer, Plan, Subject};
use npolicy_common::{Class, ClassWord, Direction, EndpointLine, EndpointWord, Family, RulesetId};
use npolicy_ebpf::host::{HostFrame, Node};
use serde_json::Value;

use super::frames::{Part, SOURCE_PORTS, came_by, frame};
use super::interest::Step;
use super::judges::{Judge, Said, plans, pod_key};
use crate::oracle::Origin;

/// Interface of the first pod; those of the others follow.
const FIRST_LINK: u32 = 10;
/// Where packets of others come in.
const UPLINK: u32 = 2;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs packets through the packet path's code without a kernel.
#[derive(Debug)]
pub struct HostJudge;

impl Judge<Step> for HostJudge {
    fn judge(&mut self, objects: &[Value], steps: &[Step]) -> Vec<Said> {
        let mut nodes: BTreeMap<String, HostNode> =
            plans(objects, steps).into_iter().map(|(name, plan)| (name, HostNode::new(plan))).collect();
        let ports = SOURCE_PORTS.cycle();
        let packet = |(step, port): (&Step, u16)| nodes.get_mut(&step.node).expect("a plan a node").packet(step, port);
        steps.iter().zip(ports).map(packet).collect()
    }
}

/// A node's tables. Classes have the numbers of the plan, from the first free one on; of addresses and rows only those
/// are there that a packet asks for.
struct HostNode {
    node: Node,
    plan: Plan,
    rulesets: Vec<[RulesetId; 2]>,
    addresses: BTreeSet<IpAddr>,
    rows: BTreeSet<(RulesetId, Class)>,
}

impl HostNode {
    fn new(plan: Plan) -> Self {
        let node = Node::new(1024);
        let mut rulesets = Vec::new();
        for (number, subject) in (0..).zip(plan.subjects.values()) {
            let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|direction| {
                let is_governed = subject.ruleset(direction).is_governed();
                if is_governed { node.new_ruleset() } else { RulesetId::ACCEPT_ALL }
            });
            node.put_line(line(number, subject, EndpointWord::new(ingress, egress, 1)));
            rulesets.push([ingress, egress]);
        }
        Self { node, plan, rulesets, addresses: BTreeSet::new(), rows: BTreeSet::new() }
    }

    fn packet(&mut self, step: &Step, source_port: u16) -> Said {
        let pod = pod_key(step);
        let Some(place) = self.plan.subjects.keys().position(|key| *key == pod) else { return Said::NoAnswer };
        self.fill(step, place);
        let own = FIRST_LINK + place as u32;
        let bytes = frame(step, Part::Opening, source_port, MAC);
        let frame = HostFrame::new(bytes, own, came_by(step.direction, step.origin, own, UPLINK));
        self.node.run(step.direction, &frame).0.into()
    }

    /// Puts into the tables what the packet of a step has to meet there.
    fn fill(&mut self, step: &Step, place: usize) {
        let Self { node, plan, rulesets, addresses, rows } = self;
        let key = plan.class_of(step.remote);
        let index = plan.classes.iter().position(|known| known == key).expect("the class is one of the plan's");
        let by_address = Class(Class::FIRST.0 + index as u32);
        if addresses.insert(step.remote) {
            let bits = if plan.node_addresses.contains(&step.remote) { ClassWord::NODE } else { 0 };
            node.put_class(step.remote, by_address, bits);
        }
        let subject = plan.subjects.values().nth(place).expect("the place of a subject");
        let ruleset = rulesets[place][step.direction.index() as usize];
        let (class, peer) = match step.origin {
            Origin::ByAddress => (by_address, Peer::Class(key)),
            Origin::NodeSelf => (Class::NODE_SELF, Peer::NodeSelf),
            Origin::PodSelf => (Class::POD_SELF, Peer::PodSelf),
        };
        if ruleset != RulesetId::ACCEPT_ALL && rows.insert((ruleset, class)) {
            let row = subject.ruleset(step.direction).row(peer);
            node.accept_ranges(ruleset, class, row.ports.each_ref().map(|ports| ports.ranges()), row.other);
        }
    }
}

fn line(number: u32, subject: &Subject, word: EndpointWord) -> EndpointLine {
    let ipv4 = match subject.address(Family::V4) {
        Some(IpAddr::V4(address)) => address.octets(),
        _ => [0; 4],
    };
    let ipv6 = match subject.address(Family::V6) {
        Some(IpAddr::V6(address)) => address.octets(),
        _ => [0; 16],
    };
    let ifindex = FIRST_LINK + number;
    let (endpoint, slot) = (number as u16 + 1, number as u16 + 1);
    EndpointLine { word, ifindex, endpoint, slot, mac: MAC, ipv4, ipv6, ..EndpointLine::EMPTY }
}
