//! Percentiles.

use std::fmt;

use serde::Serialize;

/// Percentiles of signed times, in microseconds, by nearest rank: each is one of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: i64,
    pub(super) p90: i64,
    pub(super) p99: i64,
}

impl Percentiles {
    /// Of times in microseconds; none without any.
    pub(super) fn of(values: impl IntoIterator<Item = i64>) -> Option<Self> {
        let mut values: Vec<i64> = values.into_iter().collect();
        values.sort_unstable();
        let rank = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self { p50: rank(50)?, p90: rank(90)?, p99: rank(99)? })
    }
}

/// In milliseconds, as three columns.
impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99 } = *self;
        write!(f, "{:>8} {:>8} {:>8}", milliseconds(p50), milliseconds(p90), milliseconds(p99))
    }
}

/// Microseconds as milliseconds with two digits.
pub(super) fn milliseconds(us: i64) -> String {
    // Times here are below 2^52 microseconds.
    format!("{:.2}", us as f64 / 1000.0)
}

/// From one time to another on the same clock, both in nanoseconds, in microseconds; negative if it was before.
pub(super) fn from_to_us(from_ns: u64, to_ns: u64) -> i64 {
    let difference = i128::from(to_ns) - i128::from(from_ns);
    i64::try_from(difference / 1000).expect("times of one run must lie close together")
}

#[cfg(test)]
mod tests {
    use super::{Percentiles, from_to_us};

    #[test]
    fn a_percentile_is_a_value_by_its_rank() {
        assert_eq!(Percentiles::of([]), None);
        assert_eq!(Percentiles::of([-7]), Some(Percentiles { p50: -7, p90: -7, p99: -7 }));
        assert_eq!(Percentiles::of((1..=100).rev()), Some(Percentiles { p50: 50, p90: 90, p99: 99 }));
        assert_eq!(Percentiles::of(1..=10), Some(Percentiles { p50: 5, p90: 9, p99: 10 }));
    }

    #[test]
    fn what_came_first_is_negative() {
        assert_eq!(from_to_us(5_000, 3_000), -2);
        assert_eq!(from_to_us(3_000, 5_999), 2);
    }
}
