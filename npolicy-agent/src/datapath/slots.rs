//! Which entries of a table are taken.

/// The entries of a table that may be given out, lowest first.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    taken: Vec<bool>,
    first: u32,
    /// No entry below this one is free.
    hint: u32,
    free: u32,
}

impl Slots {
    /// All entries from `first` to the one before `end`, none taken.
    pub(super) fn new(first: u32, end: u32) -> Self {
        Self { taken: vec![false; end.max(first) as usize], first, hint: first, free: end.saturating_sub(first) }
    }

    /// Takes the lowest free entry, if there is one.
    pub(super) fn take(&mut self) -> Option<u32> {
        let from = self.hint as usize;
        let found = from + self.taken[from..].iter().position(|taken| !taken)?;
        self.taken[found] = true;
        self.hint = found as u32 + 1;
        self.free -= 1;
        Some(found as u32)
    }

    /// Gives an entry back.
    pub(super) fn give_back(&mut self, entry: u32) {
        assert!(self.is_taken(entry), "entry {entry} was not taken");
        self.taken[entry as usize] = false;
        self.hint = self.hint.min(entry);
        self.free += 1;
    }

    /// Takes this very entry, unless it is taken or never given out.
    pub(super) fn claim(&mut self, entry: u32) {
        if entry >= self.first && (entry as usize) < self.taken.len() && !self.taken[entry as usize] {
            self.taken[entry as usize] = true;
            self.free -= 1;
        }
    }

    /// Whether an entry was given out.
    pub(super) fn is_taken(&self, entry: u32) -> bool {
        self.taken.get(entry as usize).copied().unwrap_or(false)
    }

    /// How many more can be given out.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// How many are given out.
    pub(super) fn used(&self) -> u32 {
        self.taken.len() as u32 - self.first - self.free
    }

    /// The taken entries, ascending.
    pub(super) fn taken(&self) -> impl Iterator<Item = u32> {
        self.taken.iter().enumerate().filter(|(_, taken)| **taken).map(|(entry, _)| entry as u32)
    }

    /// Gives back every taken entry that does not pass; returns how many that were.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) -> u32 {
        let gone: Vec<u32> = self.taken().filter(|&entry| !keep(entry)).collect();
        gone.iter().for_each(|&entry| self.give_back(entry));
        gone.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_out_the_lowest_free_entry_and_nothing_when_full() {
        let mut slots = Slots::new(2, 5);
        slots.claim(1);
        slots.claim(3);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some(2), Some(4), None));
        assert_eq!((slots.free(), slots.used()), (0, 3));
        slots.give_back(3);
        assert_eq!(slots.take(), Some(3));
        assert_eq!(slots.retain(|entry| entry == 4), 2);
        assert_eq!(slots.taken().collect::<Vec<_>>(), [4]);
    }
}
