//! Load: label changes of other pods, each of which moves a peer of a policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Config};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

use super::stage::{NAMESPACE, OTHERS, Stage, other};

/// Between two changes: 50 a second.
const EVERY: Duration = Duration::from_millis(20);
/// Changes that may be unanswered at a time; one more is left out, and missing from the rate.
const UNANSWERED: usize = 16;

/// Changes labels until it is stopped or dropped.
pub(super) struct Changes {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    begin: Instant,
    thread: Option<JoinHandle<()>>,
}

/// What became of the changes.
pub(super) struct Changed {
    /// Answered a second.
    pub(super) rate: f64,
    /// Those that the API server refused, or that got no answer.
    pub(super) refused: u64,
}

impl Changes {
    /// Starts, on a thread and a connection of its own.
    pub(super) fn start(stage: &Stage) -> anyhow::Result<Self> {
        let config = stage.config();
        let (stop, answered, refused) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (is_stopped, when_answered, when_refused) = (stop.clone(), answered.clone(), refused.clone());
        let thread = thread::spawn(move || runtime.block_on(change(config, &is_stopped, when_answered, when_refused)));
        Ok(Self { stop, answered, refused, begin: Instant::now(), thread: Some(thread) })
    }

    /// Stops them, and says what became of them.
    pub(super) fn stop(mut self) -> Changed {
        let took = self.begin.elapsed();
        self.end();
        // Fewer than 2^52 changes are exact.
        let rate = self.answered.load(Ordering::Relaxed) as f64 / took.as_secs_f64();
        Changed { rate, refused: self.refused.load(Ordering::Relaxed) }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("label changes must not panic");
        }
    }
}

async fn change(config: Config, stop: &AtomicBool, answered: Arc<AtomicU64>, refused: Arc<AtomicU64>) {
    let Ok(client) = Client::try_from(config) else {
        refused.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let pods = Api::<Pod>::namespaced(client, NAMESPACE);
    let places = Arc::new(Semaphore::new(UNANSWERED));
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0_usize.. {
        ticks.tick().await;
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let state = if (number / OTHERS).is_multiple_of(2) { "even" } else { "odd" };
        let patch = Patch::Merge(json!({"metadata": {"labels": {"state": state}}}));
        let (pods, answered, refused) = (pods.clone(), answered.clone(), refused.clone());
        tokio::spawn(async move {
            let patched = pods.patch_metadata(&other(number % OTHERS), &PatchParams::default(), &patch).await;
            let count = if patched.is_ok() { answered } else { refused };
            count.fetch_add(1, Ordering::Relaxed);
            drop(place);
        });
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
