//! Pure: how many calls may be in flight to an endpoint, found from how its calls end. Times are the caller's.
//!
//! The limit grows while answers stay as fast as they were: from the start with each answer, so that it doubles in the time of one, and above
//! the point where calls failed last by a few in the time of one. It shrinks on 429, on 5xx, on timeouts and on slow answers, in proportion to
//! what was in flight. Several operators that share a quota come to equal shares that way. `docs/decisions/0012-adaptive-limit.md` says why.

use std::time::Duration;

use tokio::time::Instant;

/// The limit before anything is known of the endpoint.
const INITIAL: usize = 32;
/// The lowest limit.
const FLOOR: usize = 8;
/// How much the limit grows in the time of one answer, above the point where calls failed last.
const GROWTH: f64 = 2.0;
/// What is left of the calls in flight after the endpoint refused some: its quota is exceeded, or answers became slow.
const AFTER_REFUSAL: f64 = 0.8;
/// What is left of them after the endpoint failed.
const AFTER_FAILURE: f64 = 0.5;
/// Answers that are compared with those before.
const SAMPLES: u32 = 32;
/// Answers are slow that take this many times as long as usual, and [`SLACK`] more: within that, latencies vary without a cause.
const SLOW_FACTOR: f64 = 2.0;
const SLACK: Duration = Duration::from_millis(50);
/// Time constant with which slower answers become the usual ones.
const USUAL_OVER: Duration = Duration::from_secs(120);

/// Why the limit moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitMove {
    /// Answers were as fast as before, and the limit was used.
    Grown,
    /// The endpoint answered 429.
    Throttled,
    /// The endpoint failed: 5xx, no connection.
    Failed,
    /// A call got no answer in time.
    TimedOut,
    /// Answers took much longer than before.
    Slow,
}

impl LimitMove {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Grown,
        Self::Throttled,
        Self::Failed,
        Self::TimedOut,
        Self::Slow,
    ];

    /// The value of a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grown => "grown",
            Self::Throttled => "throttled",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
            Self::Slow => "slow",
        }
    }
}

/// How often the limit moved, by [`LimitMove::ALL`].
pub type LimitMoves = [u64; LimitMove::ALL.len()];

/// The limit of one endpoint.
#[derive(Debug)]
pub(crate) struct AdaptiveLimit {
    ceiling: usize,
    limit: f64,
    /// Where calls failed last; below it the limit grows fast.
    threshold: f64,
    /// Whether the limit grew since it shrank last.
    has_grown: bool,
    /// When it shrank last. Calls that started before were sent at the former limit.
    shrunk: Option<Instant>,
    latency: Latency,
    moves: LimitMoves,
}

/// How long answers take.
#[derive(Debug, Default)]
struct Latency {
    sum: Duration,
    count: u32,
    usual: Option<Duration>,
    /// When the last samples were complete.
    last: Option<Instant>,
}

impl AdaptiveLimit {
    /// A limit that is never above `ceiling`.
    pub(crate) fn new(ceiling: usize) -> Self {
        Self {
            ceiling,
            limit: INITIAL.min(ceiling) as f64,
            threshold: f64::INFINITY,
            has_grown: false,
            shrunk: None,
            latency: Latency::default(),
            moves: LimitMoves::default(),
        }
    }

    /// How many calls may be in flight now.
    pub(crate) fn get(&self) -> usize {
        (self.limit as usize).clamp(1, self.ceiling.max(1))
    }

    /// How often it moved, and why.
    pub(crate) fn moves(&self) -> LimitMoves {
        self.moves
    }

    /// A call that started at `started` was answered, and `in_flight` were in flight with it.
    pub(crate) fn answered(&mut self, now: Instant, started: Instant, in_flight: usize) {
        let took = now.saturating_duration_since(started);
        if self.latency.add(now, took) && self.is_current(started) {
            self.shrink(now, in_flight, LimitMove::Slow);
            return;
        }
        // Whether the endpoint takes more shows only while the limit is what holds calls back.
        if self.get() >= self.ceiling || in_flight * 2 < self.get() || !self.is_current(started) {
            return;
        }
        let before = self.get();
        self.limit += match self.limit < self.threshold {
            true => 1.0,
            false => GROWTH / self.limit,
        };
        self.limit = self.limit.min(self.ceiling as f64);
        self.has_grown = true;
        self.moves[LimitMove::Grown as usize] += u64::from(self.get() > before);
    }

    /// A call that started at `started` failed, and `in_flight` were in flight with it.
    pub(crate) fn failed(&mut self, now: Instant, started: Instant, in_flight: usize, why: LimitMove) {
        if self.is_current(started) {
            self.shrink(now, in_flight, why);
        }
    }

    /// The endpoint is back after an outage. Where calls failed in it says nothing about what the endpoint takes now, so the limit grows fast
    /// until a call fails. The outage's [`Recovery`](super::recovery::Recovery) bounds how fast calls come meanwhile.
    pub(crate) fn recovered(&mut self) {
        self.threshold = f64::INFINITY;
    }

    /// Whether a call was sent at the limit that holds now.
    fn is_current(&self, started: Instant) -> bool {
        self.shrunk.is_none_or(|shrunk| started >= shrunk)
    }

    fn shrink(&mut self, now: Instant, in_flight: usize, why: LimitMove) {
        let factor = match why {
            LimitMove::Failed | LimitMove::TimedOut => AFTER_FAILURE,
            LimitMove::Grown | LimitMove::Throttled | LimitMove::Slow => AFTER_REFUSAL,
        };
        let floor = FLOOR.min(self.ceiling) as f64;
        let before = self.get();
        let used = self.limit.min(in_flight.max(1) as f64);
        // Failures in a row, as those of an outage, say nothing about where the limit was before them.
        if self.has_grown || self.threshold.is_infinite() {
            self.threshold = (self.limit.min(in_flight.max(INITIAL) as f64) * factor).max(floor);
        }
        self.limit = (used * factor).max(floor).min(self.limit);
        self.has_grown = false;
        self.shrunk = Some(now);
        self.moves[why as usize] += u64::from(self.get() < before);
    }
}

impl Latency {
    /// Adds an answer. Returns whether the last ones were slow.
    fn add(&mut self, now: Instant, took: Duration) -> bool {
        self.sum += took;
        self.count += 1;
        if self.count < SAMPLES {
            return false;
        }
        let mean = std::mem::take(&mut self.sum) / std::mem::take(&mut self.count);
        let since = self
            .last
            .replace(now)
            .map(|last| now.saturating_duration_since(last));
        let Some(usual) = self.usual else {
            self.usual = Some(mean);
            return false;
        };
        let is_slow = mean > usual.mul_f64(SLOW_FACTOR) + SLACK;
        // What is faster is the usual at once; what is slower becomes it, in case it stays so.
        self.usual = Some(match mean.checked_sub(usual) {
            None => mean,
            Some(more) => {
                let share = since.unwrap_or_default().as_secs_f64() / USUAL_OVER.as_secs_f64();
                usual + more.mul_f64(share.min(1.0))
            }
        });
        is_slow
    }
}

#[cfg(test)]
#[path = "adaptive_limit_tests.rs"]
mod tests;
