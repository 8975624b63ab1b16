//! How long a reconcile has run, and its time limit.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::clock::Clock;
use crate::sync::lock;

/// The shortest sleep between two checks of a time limit.
const LIMIT_STEP: Duration = Duration::from_millis(20);

/// How long a reconcile has run. The time in which it waited for a permit does not count: others decide how long that is.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    clock: Clock,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    /// When it would have started without the pauses that have ended.
    start: Instant,
    paused: Option<Instant>,
}

impl Stopwatch {
    pub(super) fn new(clock: Clock) -> Self {
        let start = clock.monotonic();
        Self {
            clock,
            times: Mutex::new(Times { start, paused: None }),
        }
    }

    /// When the reconcile would have started if it had not waited for permits.
    pub(crate) fn start(&self) -> Instant {
        let times = lock(&self.times);
        let now = self.clock.monotonic();
        let paused = times.paused.map(|since| now.saturating_duration_since(since));
        times.start + paused.unwrap_or_default()
    }

    /// Starts again from zero.
    pub(crate) fn restart(&self) {
        lock(&self.times).start = self.clock.monotonic();
    }

    pub(super) fn pause(&self) -> Paused<'_> {
        lock(&self.times).paused = Some(self.clock.monotonic());
        Paused(self)
    }

    /// Does `work` for at most `limit`.
    ///
    /// # Errors
    /// It took longer.
    pub(crate) async fn limit<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, TimedOut> {
        let timer = async {
            loop {
                // A pause that goes on moves the end.
                let (end, now) = (self.start() + limit, self.clock.monotonic());
                if now >= end {
                    return;
                }
                sleep_until(end.max(now + LIMIT_STEP)).await;
            }
        };
        tokio::select! {
            // What is done is done, also if it took long.
            biased;
            done = work => Ok(done),
            () = timer => Err(TimedOut),
        }
    }
}

/// The work took longer than its limit.
#[derive(Debug)]
pub(crate) struct TimedOut;

/// The stopwatch stands still until this is dropped.
pub(super) struct Paused<'s>(&'s Stopwatch);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        let start = self.0.start();
        *lock(&self.0.times) = Times { start, paused: None };
    }
}
