//! How much is generated, and what came of it.

use std::fmt;

use super::judges::Said;

/// Variable that multiplies the counts of generated tests; `cargo xtask test --long` sets it.
const TIMES: &str = "NPOLICY_WORLDS_TIMES";
/// Variable with the seed of the first world.
const SEED: &str = "NPOLICY_WORLDS_SEED";

/// By how much counts are multiplied.
///
/// # Panics
///
/// If the variable does not hold a number.
pub fn times() -> u64 {
    number(TIMES).unwrap_or(1)
}

/// Seed of the first world; those after it have the numbers that follow.
///
/// # Panics
///
/// If the variable does not hold a number.
pub fn first_seed() -> u64 {
    number(SEED).unwrap_or(1)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

/// What was asked and answered.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Worlds.
    pub worlds: u64,
    /// Answers, by what was said: accepted, denied, without an answer, not asked.
    pub said: [u64; 4],
}

impl Tally {
    /// Counts the answers about one world.
    pub fn count(&mut self, answers: &[Said]) {
        self.worlds += 1;
        for &said in answers {
            self.said[said as usize] += 1;
        }
    }

    /// Questions that were answered.
    pub fn answered(&self) -> u64 {
        self.said[0] + self.said[1]
    }

    /// Prints the counts. Neither verdict may be rare, nor may most questions go without an answer: the worlds would no
    /// longer try anything.
    ///
    /// # Panics
    ///
    /// If one is.
    #[track_caller]
    pub fn report(&self, what: &str) {
        println!("{what}: {self}");
        let all: u64 = self.said.iter().sum();
        for (said, least) in [(Said::Accept, 15), (Said::Deny, 15)] {
            let count = self.said[said as usize];
            assert!(count * 100 >= self.answered() * least, "{what}: fewer than {least} % are {said:?}: {self}");
        }
        assert!(self.answered() * 2 >= all, "{what}: most questions have no answer: {self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [accepted, denied, without, not_asked] = self.said;
        let share = |part: u64| 100.0 * part as f64 / self.answered().max(1) as f64;
        write!(
            f,
            "{} worlds, {} verdicts ({:.1} % Accept, {:.1} % Deny)",
            self.worlds,
            self.answered(),
            share(accepted),
            share(denied)
        )?;
        write!(f, ", {without} questions without an answer, {not_asked} not asked")
    }
}
