//! Whether the process still does its work: the loop of the controller gives signs of life, and [`judge`] tells whether they suffice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

/// Longest silence of the loop, which gives a sign of life every second.
const SILENCE: Duration = Duration::from_secs(30);

/// What is known of the loop.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// The last sign of life.
    pub beat: Instant,
    /// Since when the work is under way that began first; none where nothing is.
    pub oldest: Option<Instant>,
}

/// What is wrong with the loop.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Stuck {
    /// No sign of life.
    #[error("the reconcile loop has given no sign of life for {seconds}s")]
    Silent {
        /// Since the last one.
        seconds: u64,
    },
    /// Work does not end although its own time limits have passed.
    #[error("the work on a request has been under way for {seconds}s, past its own time limit")]
    Endless {
        /// Since it began.
        seconds: u64,
    },
}

/// Decides from `signs` whether the loop is stuck at `now`. No work takes longer than `limit`, unless it is stuck.
///
/// # Errors
/// It is.
pub fn judge(signs: Signs, limit: Duration, now: Instant) -> Result<(), Stuck> {
    let since = |then| now.saturating_duration_since(then);
    if since(signs.beat) > SILENCE {
        let seconds = since(signs.beat).as_secs();
        return Err(Stuck::Silent { seconds });
    }
    match signs.oldest.map(since).filter(|took| *took > limit) {
        Some(took) => Err(Stuck::Endless {
            seconds: took.as_secs(),
        }),
        None => Ok(()),
    }
}

/// The signs of life, shared between the loop and `/livez`.
#[derive(Clone, Debug)]
pub struct Pulse {
    signs: Arc<Mutex<Signs>>,
    limit: Duration,
}

impl Pulse {
    /// No work takes longer than `limit`, unless it is stuck.
    pub fn new(limit: Duration) -> Self {
        let signs = Signs {
            beat: Instant::now(),
            oldest: None,
        };
        Self {
            signs: Arc::new(Mutex::new(signs)),
            limit,
        }
    }

    /// A sign of life at `now`; `oldest` is since when the work is under way that began first.
    pub fn beat(&self, now: Instant, oldest: Option<Instant>) {
        *self.signs.lock().unwrap_or_else(PoisonError::into_inner) = Signs { beat: now, oldest };
    }

    /// Whether the loop is stuck at `now`.
    ///
    /// # Errors
    /// It is.
    pub fn check(&self, now: Instant) -> Result<(), Stuck> {
        let signs = *self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        judge(signs, self.limit, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_endless_work_are_told_apart_from_long_work() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let limit = Duration::from_secs(150);
        let quiet = Signs {
            beat: now,
            oldest: None,
        };
        assert_eq!(judge(quiet, limit, later(30)), Ok(()));
        assert_eq!(judge(quiet, limit, later(31)), Err(Stuck::Silent { seconds: 31 }));
        let busy = Signs {
            beat: later(151),
            oldest: Some(now),
        };
        assert_eq!(judge(busy, limit, later(150)), Ok(()));
        assert_eq!(
            judge(busy, limit, later(152)),
            Err(Stuck::Endless { seconds: 152 })
        );
    }
}
