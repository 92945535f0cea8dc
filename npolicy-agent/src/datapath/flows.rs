//! The sweep of the flow tables.

use npolicy_common::{FLOW_WAYS, FlowBucket4, FlowBucket6, FlowData, FlowProtocol, timeouts};
use rustc_hash::{FxHashMap, FxHashSet};

use super::maps::MappedArray;

/// Entries this many generations behind are erased, long before the counter comes round.
const GENERATIONS_BEHIND: u32 = 1 << 22;

/// The flow tables, which the programs fill.
#[derive(Debug)]
pub(super) struct Flows {
    pub(super) v4: MappedArray<FlowBucket4>,
    pub(super) v6: MappedArray<FlowBucket6>,
}

/// What a sweep saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Swept {
    /// Entries left.
    pub(super) kept: usize,
    /// Entries erased.
    pub(super) erased: usize,
    /// Endpoint numbers that stood in some entry when the sweep came by.
    pub(super) endpoints: FxHashSet<u16>,
}

impl Flows {
    /// Erases what is expired, far behind its endpoint's generation, or of no endpoint in `generations`. `now` is the
    /// tables' time. A packet can refresh an entry at the very moment it is erased; then its flow loses a cache entry.
    pub(super) fn sweep(&self, now: u32, generations: &FxHashMap<u16, u32>) -> Swept {
        let mut swept = Swept::default();
        sweep_table(&self.v4, 2, now, generations, &mut swept);
        sweep_table(&self.v6, 4, now, generations, &mut swept);
        swept
    }

    /// Erases the entries that were made under a generation, all but TCP's, whose direction a SYN or a socket told.
    ///
    /// Whoever sends the first packet that is seen counts as the opener. On an interface with only one of the programs
    /// yet, that may be an answer; taken for the opener, it would have its exchange judged the wrong way round.
    pub(super) fn forget_openers(&self, generation: u32) {
        forget_openers_in(&self.v4, 2, generation);
        forget_openers_in(&self.v6, 4, generation);
    }

    /// Endpoint numbers that stand in some entry.
    pub(super) fn endpoints(&self) -> FxHashSet<u16> {
        let v4 = keys(&self.v4, 2).map(|(_, _, key)| key.endpoint());
        let v6 = keys(&self.v6, 4).map(|(_, _, key)| key.endpoint());
        v4.chain(v6).collect()
    }
}

/// Used entries of a table whose entries are `words` long: bucket, first word, key word.
fn keys<T>(table: &MappedArray<T>, words: usize) -> impl Iterator<Item = (u32, usize, FlowData)> {
    (0..table.entries()).flat_map(move |bucket| {
        (0..FLOW_WAYS)
            .map(move |way| (bucket, way * words, FlowData(table.load64(bucket, way * words))))
            .filter(|(_, _, key)| !key.is_free())
    })
}

fn forget_openers_in<T>(table: &MappedArray<T>, words: usize, generation: u32) {
    let is_guess = |key: FlowData| key.protocol() != FlowProtocol::Tcp && key.generation() == generation;
    for (bucket, word, _) in keys(table, words).filter(|&(_, _, key)| is_guess(key)) {
        table.store64(bucket, word, 0);
    }
}

fn sweep_table<T>(
    table: &MappedArray<T>,
    words: usize,
    now: u32,
    generations: &FxHashMap<u16, u32>,
    swept: &mut Swept,
) {
    for (bucket, word, key) in keys(table, words) {
        swept.endpoints.insert(key.endpoint());
        if is_dead(key, now, generations) {
            table.store64(bucket, word, 0);
            swept.erased += 1;
        } else {
            swept.kept += 1;
        }
    }
}

fn is_dead(key: FlowData, now: u32, generations: &FxHashMap<u16, u32>) -> bool {
    let Some(generation) = generations.get(&key.endpoint()) else { return true };
    let window = match key.protocol() {
        FlowProtocol::Tcp => timeouts::TCP,
        // An echo's window is shorter, but its entry looks like any other protocol's; the programs heed it.
        FlowProtocol::Udp | FlowProtocol::Sctp | FlowProtocol::Other => timeouts::IDLE,
    };
    let behind = generation.wrapping_sub(key.generation()) & 0xff_ffff;
    key.age(now) > window || behind > GENERATIONS_BEHIND
}

#[cfg(test)]
mod tests {
    use npolicy_common::{Direction, Origin};

    use super::super::maps::double::array;
    use super::*;

    fn key(endpoint: u16, protocol: FlowProtocol, time: u32, generation: u32) -> FlowData {
        FlowData::new(endpoint, protocol, Direction::Ingress, Origin::CLASS, time, generation)
    }

    #[test]
    fn erases_what_is_expired_far_behind_or_of_nobody_and_nothing_else() {
        let flows = Flows { v4: array(4), v6: array(4) };
        let generations = FxHashMap::from_iter([(1, 5), (2, 1 << 23)]);
        let now = 50_u32;
        let before = |age: u32| now.wrapping_sub(age) & (FlowData::TIME_LIMIT - 1);
        let cases = [
            (key(1, FlowProtocol::Udp, before(timeouts::IDLE), 5), true),
            (key(1, FlowProtocol::Udp, before(timeouts::IDLE + 1), 5), false),
            (key(1, FlowProtocol::Tcp, before(timeouts::IDLE + 1), 4), true),
            (key(1, FlowProtocol::Tcp, before(timeouts::TCP + 1), 4), false),
            // The counter came round from 2^24 - 1 to 1.
            (key(1, FlowProtocol::Tcp, now, 0xff_ffff), true),
            (key(2, FlowProtocol::Tcp, now, (1 << 23) - GENERATIONS_BEHIND - 1), false),
            (key(2, FlowProtocol::Tcp, now, (1 << 23) - GENERATIONS_BEHIND), true),
            (key(3, FlowProtocol::Tcp, now, 1), false),
        ];
        for (at, (key, _)) in cases.into_iter().enumerate() {
            flows.v4.store64(at as u32 / 4, at % 4 * 2, key.0);
            flows.v6.store64(at as u32 / 4, at % 4 * 4, key.0);
        }
        let swept = flows.sweep(now, &generations);
        assert_eq!((swept.kept, swept.erased), (8, 8));
        assert_eq!(swept.endpoints, FxHashSet::from_iter([1, 2, 3]));
        for (at, (_, is_kept)) in cases.into_iter().enumerate() {
            assert_eq!(flows.v4.load64(at as u32 / 4, at % 4 * 2) != 0, is_kept, "case {at}");
            assert_eq!(flows.v6.load64(at as u32 / 4, at % 4 * 4) != 0, is_kept, "case {at}");
        }
        assert_eq!(flows.endpoints(), FxHashSet::from_iter([1, 2]));
    }
    #[test]
    fn forgets_who_opened_what_under_a_generation_but_not_for_tcp() {
        let flows = Flows { v4: array(1), v6: array(1) };
        let cases = [
            (key(1, FlowProtocol::Tcp, 0, 1), true),
            (key(1, FlowProtocol::Udp, 0, 1), false),
            (key(2, FlowProtocol::Other, 0, 1), false),
            (key(2, FlowProtocol::Sctp, 0, 2), true),
        ];
        for (at, (key, _)) in cases.into_iter().enumerate() {
            flows.v4.store64(0, at * 2, key.0);
            flows.v6.store64(0, at * 4, key.0);
        }
        flows.forget_openers(1);
        for (at, (key, is_kept)) in cases.into_iter().enumerate() {
            let expected = if is_kept { key.0 } else { 0 };
            assert_eq!(flows.v4.load64(0, at * 2), expected, "case {at}");
            assert_eq!(flows.v6.load64(0, at * 4), expected, "case {at}");
        }
    }
}
