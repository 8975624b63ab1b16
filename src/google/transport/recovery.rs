//! Pure: how calls come back after an outage, so that a backlog does not hit the endpoint at once. Times are the caller's.

use std::time::Duration;

use tokio::time::Instant;

/// Calls a second right after the recovery; doubled each second.
const RAMP_START: f64 = 50.0;
const RAMP: Duration = Duration::from_secs(6);
/// How long after an outage calls that are not urgent are spread: half of the usual lifetime of a Google ID token. Most tokens are renewed
/// once in that time. A backlog that is cleared at once would come back at once, each half hour, for many hours.
pub(crate) const SPREAD: Duration = Duration::from_secs(30 * 60);
/// The rate of spread calls, as a multiple of the rate before the outage. It clears the backlog of an outage that lasted as long as the
/// spreading.
const SPREAD_FACTOR: f64 = 1.5;
/// The lowest rate of spread calls, in calls a second: fewer calls do no harm.
const SPREAD_FLOOR: f64 = 5.0;
/// How far spread calls may run ahead of their rate.
const SPREAD_BURST: Duration = Duration::from_secs(5);
/// Time constant of the estimated rate.
const ESTIMATE_OVER: Duration = Duration::from_secs(3600);

/// Whether a recovery lets a call start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Now.
    Now,
    /// At this time, by the ramp of the first seconds.
    At(Instant),
    /// Not in the next moments: the call is not urgent, and others are ahead of it.
    Later,
}

/// The time after an outage.
#[derive(Debug)]
pub(crate) struct Recovery {
    since: Instant,
    ramp: Instant,
    spread: Instant,
    per_second: f64,
}

impl Recovery {
    /// Begins `now`, after an outage before which calls came at the rate `before`.
    pub(crate) fn new(now: Instant, before: &RateEstimate) -> Self {
        Self {
            since: now,
            ramp: now,
            spread: now,
            per_second: (before.per_second * SPREAD_FACTOR).max(SPREAD_FLOOR),
        }
    }

    /// When a call may start. `urgent` calls are not spread.
    pub(crate) fn pace(&self, now: Instant, urgent: bool) -> Pace {
        if self.is_over(now) {
            Pace::Now
        } else if !urgent && self.spread > now + SPREAD_BURST {
            Pace::Later
        } else if self.ramp > now && now < self.since + RAMP {
            Pace::At(self.ramp)
        } else {
            Pace::Now
        }
    }

    /// A call starts.
    pub(crate) fn started(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        let ramp = RAMP_START * age.as_secs_f64().exp2();
        self.ramp = self.ramp.max(now) + Duration::from_secs_f64(1.0 / ramp);
        self.spread = self.spread.max(now) + Duration::from_secs_f64(1.0 / self.per_second);
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.since + SPREAD
    }
}

/// Calls a second over the last hour; the older a call, the less it counts.
#[derive(Debug, Default)]
pub(crate) struct RateEstimate {
    per_second: f64,
    last: Option<Instant>,
}

impl RateEstimate {
    pub(crate) fn add(&mut self, now: Instant) {
        let last = self.last;
        let age = last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let decay = (-age.as_secs_f64() / ESTIMATE_OVER.as_secs_f64()).exp();
        self.per_second = self.per_second * decay + 1.0 / ESTIMATE_OVER.as_secs_f64();
        self.last = Some(now);
    }

    /// Leaves out the time until `now`, an outage, in which the calls did not come at their usual rate.
    pub(crate) fn skip_to(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// When the last call was added.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.last
    }
}
