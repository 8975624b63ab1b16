//! Pure: how calls come back after an outage, so that a backlog does not hit the endpoint at once. Times are the caller's.

use std::time::Duration;

use tokio::time::Instant;

/// Calls a second right after the recovery; doubled each second.
const RAMP_START: f64 = 50.0;
pub(crate) const RAMP: Duration = Duration::from_secs(6);
/// How long after an outage calls whose tokens have time are spread: until the tokens that were replaced at once, having expired, were renewed
/// one by one, and that twice. A backlog that is cleared at once would come back at once, each half hour, for many hours.
pub(crate) const SPREAD: Duration = Duration::from_secs(2 * 3600);
/// The rate of spread calls, as a multiple of the rate before the outage: it clears the backlog of half an hour before a token of an hour
/// expires.
const SPREAD_FACTOR: f64 = 1.4;
/// The lowest rate of spread calls, in calls a second: fewer calls do no harm.
const SPREAD_FLOOR: f64 = 5.0;
/// How far spread calls may run ahead of their rate.
const SPREAD_BURST: Duration = Duration::from_secs(1);
/// Below this remaining lifetime calls may run further ahead of the rate, the less is left the further.
const PRESSED_BELOW: Duration = Duration::from_secs(5 * 60);
/// Below this they are not spread, though they count.
const URGENT_BELOW: Duration = Duration::from_secs(2 * 60);
/// How far they may run ahead of the rate just before that, beyond the others: so they come before them, and are hardly more in a minute.
const PRESSED_BURST: Duration = Duration::from_secs(3);
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
            per_second: (before.per_second() * SPREAD_FACTOR).max(SPREAD_FLOOR),
        }
    }

    /// When a call may start whose token is valid for `remaining`, or that has none. It is spread only as far as that allows.
    pub(crate) fn pace(&self, now: Instant, remaining: Option<Duration>) -> Pace {
        let burst = remaining.and_then(spread_burst);
        if self.is_over(now) {
            Pace::Now
        } else if burst.is_some_and(|burst| self.spread > now + burst) {
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

/// How far a call may run ahead of the rate of spread calls; none if it is not spread.
fn spread_burst(remaining: Duration) -> Option<Duration> {
    if remaining < URGENT_BELOW {
        return None;
    }
    let pressed = PRESSED_BELOW.saturating_sub(remaining).as_secs_f64();
    let most = (PRESSED_BELOW - URGENT_BELOW).as_secs_f64();
    Some(SPREAD_BURST + PRESSED_BURST.mul_f64(pressed / most))
}

/// Calls a second over the last hour; the older a call, the less it counts.
#[derive(Debug, Default)]
pub(crate) struct RateEstimate {
    per_second: f64,
    /// Seconds that were taken into account, with the same weights.
    weight: f64,
    last: Option<Instant>,
}

impl RateEstimate {
    /// Calls a second; also if less than an hour is known.
    pub(crate) fn per_second(&self) -> f64 {
        if self.weight > 0.0 {
            self.per_second / self.weight
        } else {
            0.0
        }
    }

    pub(crate) fn add(&mut self, now: Instant) {
        let last = self.last;
        let age = last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let decay = (-age.as_secs_f64() / ESTIMATE_OVER.as_secs_f64()).exp();
        self.per_second = self.per_second * decay + 1.0 / ESTIMATE_OVER.as_secs_f64();
        self.weight = self.weight * decay + (1.0 - decay);
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
