//! Lines of endpoints: who has one, and their numbers.

use std::collections::BTreeMap;
use std::io;

use npolicy_common::{Direction, EndpointLine, EndpointWord, RulesetId, maps};
use rustc_hash::FxHashSet;

use super::maps::{Keyed, MappedArray};
use super::slots::Slots;

/// Generation of a line's first word, while nobody knows whose it is.
pub(super) const FIRST_GENERATION: u32 = 1;

/// A line as it stands in memory.
fn words(line: &EndpointLine) -> [u64; 8] {
    let EndpointLine {
        word,
        ifindex,
        endpoint,
        slot,
        flags,
        reserved,
        netns_id,
        ipv4,
        mac,
        reserved2,
        ipv6,
        reserved3,
    } = *line;
    let mut bytes = [0; 64];
    let mut at = 0;
    let mut put = |part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    };
    put(&word.0.to_ne_bytes());
    put(&ifindex.to_ne_bytes());
    put(&endpoint.to_ne_bytes());
    put(&slot.to_ne_bytes());
    put(&flags.to_ne_bytes());
    put(&reserved.to_ne_bytes());
    put(&netns_id.to_ne_bytes());
    put(&ipv4);
    put(&mac);
    put(&reserved2);
    put(&ipv6);
    put(&reserved3);
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}

fn line(words: [u64; 8]) -> EndpointLine {
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
    fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        bytes[at..at + N].try_into().expect("the parts of a line are inside it")
    }
    EndpointLine {
        word: EndpointWord(words[0]),
        ifindex: u32::from_ne_bytes(part(&bytes, 8)),
        endpoint: u16::from_ne_bytes(part(&bytes, 12)),
        slot: u16::from_ne_bytes(part(&bytes, 14)),
        flags: u16::from_ne_bytes(part(&bytes, 16)),
        reserved: u16::from_ne_bytes(part(&bytes, 18)),
        netns_id: i32::from_ne_bytes(part(&bytes, 20)),
        ipv4: part(&bytes, 24),
        mac: part(&bytes, 28),
        reserved2: part(&bytes, 34),
        ipv6: part(&bytes, 40),
        reserved3: part(&bytes, 56),
    }
}

/// The lines in use, in ENDPOINTS or, where the slot is another's, in ENDPOINTS_MORE.
pub(super) struct Lines {
    table: MappedArray<EndpointLine>,
    more: Box<dyn Keyed<u32, EndpointLine>>,
    limit_more: u32,
    lines: BTreeMap<u32, (Home, EndpointLine)>,
    endpoints: Slots,
    slots: Slots,
    /// Endpoint numbers whose line is gone.
    resting: BTreeMap<u16, Resting>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Home {
    Table,
    More,
}

/// What keeps an endpoint number from being given out again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Resting {
    /// A program may still hold the line. Until it cannot, the line's place in ENDPOINTS rests too.
    Line(Gone),
    /// A flow may still carry the number.
    Flows,
}

/// A line that was removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gone {
    /// The interface that had it.
    pub ifindex: u32,
    /// Its endpoint number.
    pub endpoint: u16,
    /// Its slot of COUNTERS.
    pub slot: u16,
}

impl Lines {
    /// Takes over the lines. A number without a line may still stand in some flow: it rests until the flows are swept.
    ///
    /// # Errors
    ///
    /// The kernel's, when ENDPOINTS_MORE is read.
    pub(super) fn new(
        table: MappedArray<EndpointLine>,
        more: Box<dyn Keyed<u32, EndpointLine>>,
        limits: &super::tables::Limits,
        flows_of: &FxHashSet<u16>,
    ) -> io::Result<Self> {
        let mut lines = Self {
            table,
            more,
            limit_more: limits.endpoints_more,
            lines: BTreeMap::new(),
            endpoints: Slots::new(1, limits.endpoints),
            slots: Slots::new(1, limits.counter_slots),
            resting: BTreeMap::new(),
        };
        for entry in 0..lines.table.entries() {
            if lines.table.load64(entry, 1) != 0 {
                let found = line(std::array::from_fn(|word| lines.table.load64(entry, word)));
                lines.adopt(Home::Table, found);
            }
        }
        for (_, found) in lines.more.entries()? {
            lines.adopt(Home::More, found);
        }
        for &endpoint in flows_of {
            if !lines.endpoints.is_taken(endpoint.into()) {
                lines.endpoints.claim(endpoint.into());
                lines.resting.insert(endpoint, Resting::Flows);
            }
        }
        Ok(lines)
    }

    fn adopt(&mut self, home: Home, found: EndpointLine) {
        self.endpoints.claim(found.endpoint.into());
        self.slots.claim(found.slot.into());
        self.lines.insert(found.ifindex, (home, found));
    }

    /// The line of an interface.
    pub(super) fn get(&self, ifindex: u32) -> Option<&EndpointLine> {
        self.lines.get(&ifindex).map(|(_, line)| line)
    }

    /// All lines, by interface.
    pub(super) fn iter(&self) -> impl Iterator<Item = &EndpointLine> {
        self.lines.values().map(|(_, line)| line)
    }

    /// Rulesets that some line names.
    pub(super) fn rulesets(&self) -> impl Iterator<Item = RulesetId> {
        self.iter().flat_map(|line| [Direction::Ingress, Direction::Egress].map(|d| line.word.ruleset(d)))
    }

    /// Makes a line with endpoint and slot numbers of its own, at ruleset 2 in both directions; returns whether there
    /// was room. The slot is 0 where the others are taken.
    ///
    /// # Errors
    ///
    /// The kernel's, when ENDPOINTS_MORE is written.
    pub(super) fn add(&mut self, ifindex: u32, flags: u16, netns_id: i32) -> io::Result<bool> {
        let entry = ifindex & (maps::ENDPOINTS_ENTRIES - 1);
        let is_resting = self.in_grace().iter().any(|gone| gone.ifindex & (maps::ENDPOINTS_ENTRIES - 1) == entry);
        let is_taken = is_resting || self.table.load64(entry, 1) != 0;
        let in_more = self.lines.values().filter(|(home, _)| *home == Home::More).count();
        if is_taken && in_more >= self.limit_more as usize {
            return Ok(false);
        }
        let Some(endpoint) = self.endpoints.take() else { return Ok(false) };
        let new = EndpointLine {
            word: EndpointWord::new(RulesetId::UNIDENTIFIED, RulesetId::UNIDENTIFIED, FIRST_GENERATION),
            ifindex,
            endpoint: endpoint as u16,
            slot: self.slots.take().unwrap_or(0) as u16,
            flags,
            netns_id,
            ..EndpointLine::EMPTY
        };
        let home = if is_taken {
            self.more.set(ifindex, new)?;
            Home::More
        } else {
            let words = words(&new);
            for word in [0, 2, 3, 4, 5, 6, 7] {
                self.table.store64(entry, word, words[word]);
            }
            // The word with the interface's index makes it a line.
            self.table.flip64(entry, 1, words[1]);
            Home::Table
        };
        self.lines.insert(ifindex, (home, new));
        Ok(true)
    }

    /// Changes what a line says beside its word and numbers. A program can meet the parts in between.
    ///
    /// # Errors
    ///
    /// The kernel's, when ENDPOINTS_MORE is written.
    pub(super) fn change(&mut self, ifindex: u32, change: impl FnOnce(&mut EndpointLine)) -> io::Result<()> {
        let Some((home, now)) = self.lines.get_mut(&ifindex) else { return Ok(()) };
        let before = words(now);
        change(now);
        let after = words(now);
        match home {
            Home::More if before != after => self.more.set(ifindex, *now),
            Home::More => Ok(()),
            Home::Table => {
                let entry = ifindex & (maps::ENDPOINTS_ENTRIES - 1);
                for word in (1..8).chain([0]).filter(|&word| before[word] != after[word]) {
                    self.table.flip64(entry, word, after[word]);
                }
                Ok(())
            }
        }
    }

    /// Moves an endpoint to these rulesets and to the next generation, by one store.
    ///
    /// # Errors
    ///
    /// The kernel's, when ENDPOINTS_MORE is written.
    pub(super) fn flip(&mut self, ifindex: u32, ingress: RulesetId, egress: RulesetId) -> io::Result<()> {
        self.change(ifindex, |line| line.word = EndpointWord::new(ingress, egress, line.word.next_generation()))
    }

    /// Moves an endpoint to the next generation, so that everything it accepted is judged again.
    ///
    /// # Errors
    ///
    /// The kernel's, when ENDPOINTS_MORE is written.
    pub(super) fn raise(&mut self, ifindex: u32) -> io::Result<()> {
        let Some(line) = self.get(ifindex) else { return Ok(()) };
        self.flip(ifindex, line.word.ruleset(Direction::Ingress), line.word.ruleset(Direction::Egress))
    }

    /// Removes the line of an interface that is gone; its numbers rest.
    ///
    /// # Errors
    ///
    /// The kernel's, when ENDPOINTS_MORE is written.
    pub(super) fn remove(&mut self, ifindex: u32) -> io::Result<()> {
        let Some(&(home, gone)) = self.lines.get(&ifindex) else { return Ok(()) };
        match home {
            Home::More => self.more.remove(ifindex)?,
            Home::Table => self.table.flip64(ifindex & (maps::ENDPOINTS_ENTRIES - 1), 1, 0),
        }
        self.lines.remove(&ifindex);
        let gone = Gone { ifindex, endpoint: gone.endpoint, slot: gone.slot };
        self.resting.insert(gone.endpoint, Resting::Line(gone));
        Ok(())
    }

    /// Lines that are gone, but not yet for a grace period.
    pub(super) fn in_grace(&self) -> Vec<Gone> {
        let gone = |resting: &Resting| match resting {
            Resting::Line(gone) => Some(*gone),
            Resting::Flows => None,
        };
        self.resting.values().filter_map(gone).collect()
    }

    /// Notes that a grace period has passed since [`Self::in_grace`] named these. Their slots stay taken.
    pub(super) fn grace_passed(&mut self, lines: &[Gone]) {
        for gone in lines {
            self.resting.insert(gone.endpoint, Resting::Flows);
        }
    }

    /// Gives back a slot whose last counts were read and set to zero.
    pub(super) fn give_back_slot(&mut self, slot: u16) {
        self.slots.give_back(slot.into());
    }

    /// Endpoint numbers that are free as soon as a sweep meets no flow of them.
    pub(super) fn awaiting_sweep(&self) -> FxHashSet<u16> {
        self.resting.iter().filter(|(_, rest)| **rest == Resting::Flows).map(|(&endpoint, _)| endpoint).collect()
    }

    /// Gives back numbers of which a whole sweep met no flow. `asked` is what awaited it when it began.
    pub(super) fn swept(&mut self, asked: &FxHashSet<u16>, met: &FxHashSet<u16>) {
        for endpoint in asked.difference(met) {
            self.resting.remove(endpoint);
            self.endpoints.give_back((*endpoint).into());
        }
    }

    /// Slots of COUNTERS that are given out.
    pub(super) fn slots(&self) -> FxHashSet<u16> {
        self.slots.taken().map(|slot| slot as u16).collect()
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.lines.iter().map(|(ifindex, (_, line))| (ifindex, line.word))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::maps::double::{Double, File};
    use super::super::tables::Limits;
    use super::*;

    /// The second interface's slot is the first one's.
    const COLLIDING: [u32; 3] = [7, 65_536 + 7, 2 * 65_536 + 7];

    fn start(file: &File, more: &Double<u32, EndpointLine>, limits: Limits, flows_of: &[u16]) -> Lines {
        let flows_of = flows_of.iter().copied().collect();
        Lines::new(file.map(), Box::new(more.clone()), &limits, &flows_of).unwrap()
    }

    fn table() -> (File, Double<u32, EndpointLine>) {
        (File::new::<EndpointLine>(maps::ENDPOINTS_ENTRIES), Double::default())
    }

    #[test]
    fn a_line_is_the_same_after_a_restart() {
        let (file, more) = table();
        let mut lines = start(&file, &more, Limits::default(), &[]);
        for ifindex in &COLLIDING[..2] {
            assert!(lines.add(*ifindex, 3, -5).unwrap());
            let fill = |line: &mut EndpointLine| {
                line.ipv4 = [10, 1, 2, 3];
                line.ipv6 = *b"0123456789abcdef";
                line.mac = *b"ABCDEF";
            };
            lines.change(*ifindex, fill).unwrap();
            lines.flip(*ifindex, RulesetId(77), RulesetId(0xf_ffff)).unwrap();
        }
        let again = start(&file, &more, Limits::default(), &[]);
        for ifindex in &COLLIDING[..2] {
            let (old, new) = (lines.get(*ifindex).unwrap(), again.get(*ifindex).unwrap());
            assert_eq!(words(old), words(new));
            assert_eq!((new.flags, new.netns_id, new.mac), (3, -5, *b"ABCDEF"));
            assert_eq!((new.word.ruleset(Direction::Egress).0, new.word.generation()), (0xf_ffff, 2));
        }
        assert_ne!(again.get(COLLIDING[0]).unwrap().endpoint, again.get(COLLIDING[1]).unwrap().endpoint);
    }

    #[test]
    fn an_interface_finds_no_line_when_its_slot_and_the_others_are_taken() {
        let (file, more) = table();
        let mut lines = start(&file, &more, Limits { endpoints_more: 1, ..Limits::default() }, &[]);
        let added = COLLIDING.map(|ifindex| lines.add(ifindex, 0, 1).unwrap());
        assert_eq!(added, [true, true, false]);
        lines.remove(COLLIDING[1]).unwrap();
        assert!(lines.add(COLLIDING[2], 0, 1).unwrap());
    }

    #[test]
    fn a_number_rests_until_a_sweep_after_a_grace_period_meets_no_flow_of_it() {
        let (file, more) = table();
        let mut lines = start(&file, &more, Limits { endpoints: 2, counter_slots: 2, ..Limits::default() }, &[]);
        let is_added = |lines: &mut Lines| lines.add(9, 0, 1).unwrap();
        lines.add(7, 0, 1).unwrap();
        lines.remove(7).unwrap();
        assert!(!is_added(&mut lines));
        lines.swept(&lines.awaiting_sweep(), &FxHashSet::default());
        assert!(!is_added(&mut lines), "swept, but not after a grace period");
        let gone = lines.in_grace();
        lines.grace_passed(&gone);
        lines.swept(&lines.awaiting_sweep(), &FxHashSet::from_iter([1]));
        assert!(!is_added(&mut lines), "a flow of it was met");
        lines.swept(&lines.awaiting_sweep(), &FxHashSet::default());
        assert!(is_added(&mut lines));
        assert_eq!(lines.get(9).map(|line| (line.endpoint, line.slot)), Some((1, 0)), "its slot was not read yet");
        lines.give_back_slot(gone[0].slot);
        assert_eq!(lines.slots(), FxHashSet::default());
    }

    #[test]
    fn a_number_that_stands_in_a_flow_rests_after_a_restart() {
        let (file, more) = table();
        let mut lines = start(&file, &more, Limits { endpoints: 2, ..Limits::default() }, &[1]);
        assert!(!lines.add(7, 0, 1).unwrap());
        lines.swept(&lines.awaiting_sweep(), &FxHashSet::default());
        assert!(lines.add(7, 0, 1).unwrap());
    }

    #[test]
    fn the_place_of_a_removed_line_rests_for_a_grace_period() {
        let (file, more) = table();
        let mut lines = start(&file, &more, Limits::default(), &[]);
        lines.add(COLLIDING[0], 0, 1).unwrap();
        lines.remove(COLLIDING[0]).unwrap();
        lines.add(COLLIDING[1], 0, 1).unwrap();
        assert_eq!(more.0.lock().unwrap().len(), 1);
    }
}
