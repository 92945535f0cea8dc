//! Waiting for a grace period beside the publisher, which may publish meanwhile.

use std::sync::Arc;

use crate::datapath::class6::Place;
use crate::datapath::error::DatapathError;
use crate::datapath::grace::Grace;
use crate::datapath::lines::Gone;

/// What waits for a grace period.
#[derive(Debug)]
pub struct Settling {
    pub(super) grace: Arc<Grace>,
    /// What had been published when the wait began.
    pub(super) revision: u64,
    pub(super) chunks4: Vec<u32>,
    pub(super) ways6: Vec<Place>,
    pub(super) lines: Vec<Gone>,
}

impl Settling {
    /// Waits for one grace period: some milliseconds.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Kernel`] if the kernel refuses.
    pub fn wait(&self) -> Result<(), DatapathError> {
        self.grace.wait().map_err(DatapathError::kernel("wait for a grace period"))
    }
}
