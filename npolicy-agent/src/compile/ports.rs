//! Sets of ports and what they make up for one class.

use npolicy_common::FlowProtocol;

/// A set of ports 0 to 65535: ascending ranges, both ends included, with a gap between each two.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// No port.
    pub const fn nothing() -> Self {
        Self(Vec::new())
    }

    /// Every port, 0 among them: "any port" is any 16-bit number in a header.
    pub fn everything() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// The ports from `first` to `last`, both included; nothing if they are the wrong way round.
    pub fn range(first: u16, last: u16) -> Self {
        if first <= last { Self(vec![(first, last)]) } else { Self::nothing() }
    }

    /// The ranges, ascending and apart.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Whether it holds no port.
    pub fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it holds every port.
    pub fn is_everything(&self) -> bool {
        self.0 == [(0, u16::MAX)]
    }

    /// Whether it holds this port.
    pub fn contains(&self, port: u16) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= port);
        after > 0 && port <= self.0[after - 1].1
    }

    /// Adds the ports of another set.
    pub fn add(&mut self, other: &Self) {
        if other.is_nothing() || self.is_everything() {
            return;
        }
        let mut all: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        self.0 = merged;
    }
}

/// What one class may reach: ports of TCP, UDP and SCTP (as [`FlowProtocol`] numbers them), and every other protocol.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct Bundle {
    /// Ports by protocol.
    pub ports: [PortSet; 3],
    /// Whether protocols without ports are accepted.
    pub other: bool,
}

impl Bundle {
    /// Accepts nothing.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Accepts everything.
    pub fn everything() -> Self {
        Self { ports: std::array::from_fn(|_| PortSet::everything()), other: true }
    }

    /// Whether it accepts a packet of this protocol to this port; the port is ignored for other protocols.
    pub fn accepts(&self, protocol: FlowProtocol, port: u16) -> bool {
        match protocol {
            FlowProtocol::Other => self.other,
            _ => self.ports[protocol as usize].contains(port),
        }
    }

    /// Adds what another bundle accepts.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.ports.iter_mut().zip(&other.ports) {
            mine.add(theirs);
        }
        self.other |= other.other;
    }
}
