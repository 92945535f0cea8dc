//! The kernel's tick: how long one is, and how many there were.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{ClockId, clock_getres};

use super::sys;

/// Ticks a second (CONFIG_HZ). The coarse clocks advance once a tick, and `clock_getres` tells by how much
/// (`posix_get_coarse_res`, kernel/time/posix-timers.c).
pub(super) fn hertz() -> u32 {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    let tick_ns = tick.tv_sec.unsigned_abs() * 1_000_000_000 + tick.tv_nsec.unsigned_abs();
    ((1_000_000_000 + tick_ns / 2) / tick_ns.max(1)) as u32
}

/// By how much jiffies are shifted to give about seconds: the power of two nearest to the ticks of a second.
pub(super) fn jiffies_shift(hertz: u32) -> u32 {
    let below = hertz.max(1).ilog2();
    // The middle between two powers, by ratio: hertz² against 2^below · 2^(below + 1).
    if u64::from(hertz).pow(2) > 1 << (2 * below + 1) { below + 1 } else { below }
}

/// Reads jiffies as the programs do: by a program of two instructions.
#[derive(Debug)]
pub(super) struct Jiffies(OwnedFd);

impl Jiffies {
    /// Loads the program.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn new() -> io::Result<Self> {
        sys::load_jiffies_program().map(Self)
    }

    /// The lower 32 bits of the kernel's counter of ticks.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn now(&self) -> io::Result<u32> {
        Ok(sys::test_run(&self.0, &[0; 64], 0, 0, 1)?.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_are_the_nearest_powers() {
        assert_eq!([100, 250, 300, 1000].map(jiffies_shift), [7, 8, 8, 10]);
    }

    #[test]
    fn the_tick_is_one_that_kernels_have() {
        let hertz = hertz();
        assert!((24..=1200).contains(&hertz), "{hertz} ticks a second");
    }
}
