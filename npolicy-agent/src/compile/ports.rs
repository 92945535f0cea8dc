//! Sets of ports and what they make up for one class.

use npolicy_common::FlowProtocol;

use crate::model::PortProtocol;

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

    /// Keeps the ports that another set holds, too.
    pub fn intersect(&mut self, other: &Self) {
        if other.is_everything() {
            return;
        }
        let mut both = Vec::new();
        let mut theirs = other.0.iter().copied().peekable();
        for &(first, last) in &self.0 {
            // What ends before this range begins is of no use to those behind it either.
            while theirs.next_if(|&(_, end)| end < first).is_some() {}
            while let Some(&(start, end)) = theirs.peek().filter(|&&(start, _)| start <= last) {
                both.push((first.max(start), last.min(end)));
                if end > last {
                    break;
                }
                theirs.next();
            }
        }
        self.0 = both;
    }

    /// Takes away the ports that another set holds.
    pub fn subtract(&mut self, other: &Self) {
        let mut gaps = Vec::with_capacity(other.0.len() + 1);
        let mut from = Some(0);
        for &(first, last) in &other.0 {
            if let Some(from) = from.filter(|&from| from < first) {
                gaps.push((from, first - 1));
            }
            from = last.checked_add(1);
        }
        gaps.extend(from.map(|from| (from, u16::MAX)));
        self.intersect(&Self(gaps));
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

    /// Keeps what another bundle accepts, too.
    pub fn intersect(&mut self, other: &Self) {
        for (mine, theirs) in self.ports.iter_mut().zip(&other.ports) {
            mine.intersect(theirs);
        }
        self.other &= other.other;
    }

    /// Takes away what another bundle accepts.
    pub fn subtract(&mut self, other: &Self) {
        for (mine, theirs) in self.ports.iter_mut().zip(&other.ports) {
            mine.subtract(theirs);
        }
        self.other &= !other.other;
    }

    /// Adds one port of a protocol, or takes it away.
    pub fn set(&mut self, protocol: PortProtocol, port: u16, accepted: bool) {
        let ports = &mut self.ports[protocol.flow() as usize];
        let one = PortSet::range(port, port);
        if accepted { ports.add(&one) } else { ports.subtract(&one) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets whose boundaries meet, overlap, touch the ends and leave gaps of one.
    fn sets() -> Vec<PortSet> {
        let edges = [0, 1, 2, 80, 81, 82, 65_533, 65_534, 65_535];
        let mut sets = vec![PortSet::nothing(), PortSet::everything()];
        for (at, &first) in edges.iter().enumerate() {
            for &last in &edges[at..] {
                let one = PortSet::range(first, last);
                let mut two = one.clone();
                two.add(&PortSet::range(81, 443));
                let mut three = one.clone();
                three.add(&PortSet::range(3, 3));
                three.add(&PortSet::range(79, 80));
                sets.extend([one, two, three]);
            }
        }
        sets
    }

    fn is_canonical(set: &PortSet) -> bool {
        let ranges = set.ranges();
        ranges.iter().all(|(first, last)| first <= last) && ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0)
    }

    #[test]
    fn sets_are_joined_cut_and_subtracted_port_by_port() {
        let ports: Vec<u16> = (0..=90).chain(440..=445).chain(65_530..=65_535).collect();
        for a in sets() {
            for b in sets() {
                let [mut both, mut only, mut any] = [a.clone(), a.clone(), a.clone()];
                both.intersect(&b);
                only.subtract(&b);
                any.add(&b);
                for &port in &ports {
                    let (a, b) = (a.contains(port), b.contains(port));
                    assert_eq!(both.contains(port), a && b, "{port}");
                    assert_eq!(only.contains(port), a && !b, "{port}");
                    assert_eq!(any.contains(port), a || b, "{port}");
                }
                for set in [&both, &only, &any] {
                    assert!(is_canonical(set), "{set:?} of {a:?} and {b:?}");
                }
            }
        }
    }

    #[test]
    fn bundles_are_cut_with_their_portless_protocols() {
        let mut bundle = Bundle::everything();
        bundle.set(PortProtocol::Udp, 53, false);
        assert!(!bundle.accepts(FlowProtocol::Udp, 53) && bundle.accepts(FlowProtocol::Tcp, 53) && bundle.other);
        let mut rest = Bundle::everything();
        rest.subtract(&bundle);
        assert_eq!(rest.ports, [PortSet::nothing(), PortSet::range(53, 53), PortSet::nothing()]);
        assert!(!rest.other);
        rest.set(PortProtocol::Udp, 53, false);
        assert_eq!(rest, Bundle::nothing());
        bundle.intersect(&Bundle::nothing());
        assert_eq!(bundle, Bundle::nothing());
    }
}
