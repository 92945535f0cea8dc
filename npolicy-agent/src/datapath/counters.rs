//! What the programs count and report.

use aya::maps::{MapData, PerCpuArray, PerCpuValues, RingBuf};
use aya::util::nr_cpus;
use npolicy_common::{CounterKey, CounterRow, Direction, FlowEvent, maps};

use super::error::DatapathError;
use super::load::read_error;

/// Events taken in one go; the rest waits for the next.
const EVENTS_AT_ONCE: usize = 4_096;

/// Verdicts of one endpoint in one direction since its line was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointCounters {
    /// Interface; 0 for what has no line or shares slot 0.
    pub ifindex: u32,
    /// Endpoint number; 0 likewise.
    pub endpoint: u16,
    /// Direction, from the endpoint's point of view.
    pub direction: Direction,
    /// By [`npolicy_common::Reason`], all processors together.
    pub row: CounterRow,
}

/// COUNTERS and EVENTS.
pub(super) struct Counters {
    pub(super) rows: PerCpuArray<MapData, CounterRow>,
    pub(super) events: RingBuf<MapData>,
}

impl Counters {
    /// Sums a row over all processors.
    pub(super) fn row(&self, slot: u16, direction: Direction) -> Result<CounterRow, DatapathError> {
        let key = CounterKey::new(slot, direction);
        let values = self.rows.get(&key.0, 0).map_err(read_error(maps::COUNTERS))?;
        let mut sum = [0; 32];
        for row in values.iter() {
            sum.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
        }
        Ok(sum)
    }

    /// Sets a slot that nobody counts in to zero.
    pub(super) fn clear(&mut self, slot: u16) -> Result<(), DatapathError> {
        for direction in [Direction::Ingress, Direction::Egress] {
            if self.row(slot, direction)? == [0; 32] {
                continue;
            }
            let cpus = nr_cpus().map_err(|(path, error)| DatapathError::kernel(format!("read {path}"))(error))?;
            let zeros = PerCpuValues::try_from(vec![[0_u64; 32]; cpus])
                .map_err(DatapathError::kernel("make a row of zeros"))?;
            let key = CounterKey::new(slot, direction);
            self.rows.set(key.0, zeros, 0).map_err(read_error(maps::COUNTERS))?;
        }
        Ok(())
    }

    /// Takes the events that are there, without waiting.
    pub(super) fn take_events(&mut self) -> Vec<FlowEvent> {
        let mut taken = Vec::new();
        while taken.len() < EVENTS_AT_ONCE {
            let Some(record) = self.events.next() else { break };
            // Both sides were built from one layout; a record of another size could only be somebody else's.
            if record.len() == size_of::<FlowEvent>() {
                // SAFETY: the record has the size of the event (checked), whose every bit pattern is a valid value.
                taken.push(unsafe { record.as_ptr().cast::<FlowEvent>().read_unaligned() });
            }
        }
        taken
    }
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counters")
    }
}
