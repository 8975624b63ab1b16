//! Whether the reconcile loop is alive: it sends heartbeats, and `/livez` fails once they stop or a reconcile is stuck.
//!
//! May import `crate::sync` only. Reads no clock, knows no request, and stops nothing: the kubelet restarts a process that is stuck.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use crate::sync::lock;

/// Longest time between two heartbeats. The loop sends one every second.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// The last heartbeat of the loop.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    /// When it was sent.
    pub at: Instant,
    /// When the oldest reconcile in flight started; none if no reconcile is in flight.
    pub oldest_start: Option<Instant>,
}

/// Why the loop counts as stuck.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Stuck {
    /// No heartbeat.
    #[error("the reconcile loop has sent no heartbeat for {seconds}s")]
    Silent {
        /// Time since the last heartbeat.
        seconds: u64,
    },
    /// A reconcile still runs after its own time limits have passed.
    #[error("a reconcile has been in flight for {seconds}s, past its own time limit")]
    Overdue {
        /// Time since the reconcile started.
        seconds: u64,
    },
}

/// Checks the last heartbeat at `now`. A reconcile that runs for longer than `limit` is stuck.
///
/// # Errors
/// The loop is stuck.
pub fn check(last: Heartbeat, limit: Duration, now: Instant) -> Result<(), Stuck> {
    let since = |then| now.saturating_duration_since(then);
    if since(last.at) > MAX_SILENCE {
        let seconds = since(last.at).as_secs();
        return Err(Stuck::Silent { seconds });
    }
    match last.oldest_start.map(since).filter(|age| *age > limit) {
        Some(age) => Err(Stuck::Overdue {
            seconds: age.as_secs(),
        }),
        None => Ok(()),
    }
}

/// The last heartbeat, shared between the loop and `/livez`.
#[derive(Clone, Debug)]
pub struct Liveness {
    last: Arc<Mutex<Heartbeat>>,
    limit: Duration,
}

impl Liveness {
    /// The process starts at `now`, which counts as the first heartbeat. A reconcile that runs for longer than `limit` is stuck.
    pub fn new(limit: Duration, now: Instant) -> Self {
        let first = Heartbeat {
            at: now,
            oldest_start: None,
        };
        Self {
            last: Arc::new(Mutex::new(first)),
            limit,
        }
    }

    /// Records a heartbeat at `now`; `oldest_start` is when the oldest reconcile in flight started.
    pub fn heartbeat(&self, now: Instant, oldest_start: Option<Instant>) {
        *lock(&self.last) = Heartbeat {
            at: now,
            oldest_start,
        };
    }

    /// Checks the last heartbeat at `now`.
    ///
    /// # Errors
    /// The loop is stuck.
    pub fn check(&self, now: Instant) -> Result<(), Stuck> {
        let last = *lock(&self.last);
        check(last, self.limit, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_a_stuck_reconcile_differ_from_a_long_one() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let limit = Duration::from_secs(150);
        let quiet = Heartbeat {
            at: now,
            oldest_start: None,
        };
        assert_eq!(check(quiet, limit, later(30)), Ok(()));
        assert_eq!(check(quiet, limit, later(31)), Err(Stuck::Silent { seconds: 31 }));
        let busy = Heartbeat {
            at: later(151),
            oldest_start: Some(now),
        };
        assert_eq!(check(busy, limit, later(150)), Ok(()));
        assert_eq!(
            check(busy, limit, later(152)),
            Err(Stuck::Overdue { seconds: 152 })
        );
    }
}
