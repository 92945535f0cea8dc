//! The ports of a rule.

use npolicy_common::{Direction, FlowProtocol};

use super::Question;
use crate::model::{Owner, Pod, PortEntry, PortProtocol, Ports};

impl Question<'_> {
    pub(super) fn ports_match(&self, ports: &Ports) -> bool {
        match ports {
            Ports::Any => true,
            Ports::Of(entries) => entries.iter().any(|entry| match entry {
                PortEntry::Broken(_) => false,
                PortEntry::All(protocol) => protocol.flow() == self.protocol,
                PortEntry::Range { protocol, first, last } => {
                    protocol.flow() == self.protocol && (*first..=*last).contains(&self.port)
                }
                PortEntry::Named { protocol, name } => self.is_named(name, *protocol),
                PortEntry::NamedAny { name } => {
                    PortProtocol::NAMES.iter().any(|&(_, protocol)| self.is_named(name, protocol))
                }
            }),
        }
    }

    fn is_named(&self, name: &str, protocol: PortProtocol) -> bool {
        protocol.flow() == self.protocol
            && self.destination().is_some_and(|pod| pod.numbers_of(name, protocol).any(|port| port == self.port))
    }

    /// The pod whose container ports a name refers to.
    fn destination(&self) -> Option<&Pod> {
        match (self.direction, self.remote.owner) {
            (Direction::Ingress, _) => Some(self.subject),
            (Direction::Egress, Owner::Pod(pod)) => Some(pod),
            (Direction::Egress, Owner::Service(_) | Owner::Node(_) | Owner::Outside) => None,
        }
    }

    pub(super) fn describe_ports(&self, ports: &Ports) -> String {
        let Ports::Of(entries) = ports else { unreachable!("a rule without ports accepts every port") };
        if self.protocol == FlowProtocol::Other {
            return "a rule with ports accepts TCP, UDP and SCTP alone".to_owned();
        }
        let described = entries.iter().map(|entry| match entry {
            PortEntry::Named { protocol, name } => match self.destination() {
                None => format!("{entry} (only pods have named ports)"),
                Some(pod) => {
                    let numbers: Vec<_> = pod.numbers_of(name, *protocol).map(|number| number.to_string()).collect();
                    match &*numbers {
                        [] => format!("{entry} ({} has no such port)", pod.key),
                        numbers => format!("{entry} ({} on {})", numbers.join(" and "), pod.key),
                    }
                }
            },
            entry => entry.to_string(),
        });
        format!("the rule accepts {}", described.collect::<Vec<_>>().join(", "))
    }
}
