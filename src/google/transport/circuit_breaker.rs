//! Pure: whether calls go through after failures in a row, and how they come back. Times are the caller's.

use std::time::Duration;

use tokio::time::Instant;

use crate::google::vocabulary::Reason;

/// Failures in a row that close the way, where the server does not say until when.
pub(crate) const FAILURES: u32 = 5;
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// Longest time between two probes.
pub(crate) const LAST_PROBE: Duration = Duration::from_secs(10);
/// Calls a second just after the recovery; doubled each second.
const RAMP_START: f64 = 50.0;
const RAMP: Duration = Duration::from_secs(6);
/// How long after an outage calls that are not urgent are spread: half of the usual lifetime of a Google ID token, in which most
/// tokens are renewed once. A backlog that is cleared at once would come back at once, each half hour, for many hours.
pub(crate) const SPREAD: Duration = Duration::from_secs(30 * 60);
/// The pace of the spreading, as a multiple of what was usual before the outage: enough to clear the backlog of one that was as long as
/// the spreading is.
const SPREAD_FACTOR: f64 = 1.5;
/// The least pace of the spreading, in calls a second: a smaller storm is none.
const SPREAD_FLOOR: f64 = 5.0;
/// What the spreading may save up.
const SPREAD_BURST: Duration = Duration::from_secs(5);
/// How long after a probe is due somebody is taken to want one: longer than a request waits between two tries.
const WANTED: Duration = Duration::from_secs(3 * 60);
/// Time constant of what is usual.
const USUAL_OVER: Duration = Duration::from_secs(3600);

/// What failed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// What went wrong.
    pub reason: Reason,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
}

/// Whether a call may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Now.
    Go,
    /// Very soon: the first moments of a recovery.
    Soon(Instant),
    /// Not in the next moments, since it is not urgent: the way has just opened again.
    Spread,
    /// Not before `until`.
    Shut {
        until: Instant,
        told: Told,
        /// Whether the server named the time.
        asked: bool,
    },
}

/// Failures in a row, what follows from them, and the recovery.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    open: Option<Open>,
    recovery: Option<Recovery>,
    usual: Usual,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    last_probe: Instant,
    next_probe: Instant,
    interval: Duration,
    told: Told,
    asked: bool,
}

#[derive(Debug)]
struct Recovery {
    since: Instant,
    ramp: Instant,
    spread: Instant,
    per_second: f64,
}

/// The calls of the last hour, the older the less.
#[derive(Debug, Default)]
struct Usual {
    per_second: f64,
    at: Option<Instant>,
}

impl Usual {
    fn add(&mut self, now: Instant) {
        let age = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let decay = (-age.as_secs_f64() / USUAL_OVER.as_secs_f64()).exp();
        self.per_second = self.per_second * decay + 1.0 / USUAL_OVER.as_secs_f64();
        self.at = Some(now);
    }
}

impl Breaker {
    /// Whether a call may start now. `urgent` calls are not spread.
    pub(crate) fn standing(&self, now: Instant, urgent: bool) -> Standing {
        if let Some(open) = &self.open {
            return match open.next_probe > now {
                true => Standing::Shut {
                    until: open.next_probe,
                    told: open.told,
                    asked: open.asked,
                },
                false => Standing::Go,
            };
        }
        match &self.recovery {
            Some(recovery) if now < recovery.since + SPREAD => {
                if !urgent && recovery.spread > now + SPREAD_BURST {
                    Standing::Spread
                } else if recovery.ramp > now && now < recovery.since + RAMP {
                    Standing::Soon(recovery.ramp)
                } else {
                    Standing::Go
                }
            }
            _ => Standing::Go,
        }
    }

    /// Has the next probe come in time for a token of which `left` is left: after a quarter of it. A pause that the server asked for
    /// stays.
    pub(crate) fn hurry(&mut self, left: Duration) {
        if let Some(open) = self.open.as_mut().filter(|open| !open.asked) {
            let soon = open.last_probe + (left / 4).max(FIRST_PROBE);
            open.next_probe = open.next_probe.min(soon);
        }
    }

    /// A call starts; while the way is shut it is the probe.
    pub(crate) fn started(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.last_probe = now;
            open.next_probe = now + open.interval;
            open.interval = (open.interval * 2).min(LAST_PROBE);
            open.asked = false;
            return;
        }
        if let Some(recovery) = &mut self.recovery {
            let age = now.saturating_duration_since(recovery.since);
            let ramp = RAMP_START * age.as_secs_f64().exp2();
            recovery.ramp = recovery.ramp.max(now) + Duration::from_secs_f64(1.0 / ramp);
            recovery.spread = recovery.spread.max(now) + Duration::from_secs_f64(1.0 / recovery.per_second);
            if age >= SPREAD {
                self.recovery = None;
            }
        }
        self.usual.add(now);
    }

    /// A call that started at `started` was answered, if only by a refusal: what answers is not down.
    pub(crate) fn answered(&mut self, now: Instant, started: Instant) {
        self.failures = 0;
        // The late answer to a call of before says nothing about now.
        if self.open.take_if(|open| open.since <= started).is_some() {
            self.recovery = Some(Recovery {
                since: now,
                ramp: now,
                spread: now,
                per_second: (self.usual.per_second * SPREAD_FACTOR).max(SPREAD_FLOOR),
            });
            // The outage was not usual.
            self.usual.at = Some(now);
        }
    }

    /// A call failed in a way that passes. `after` is what the server asked for; `alone` tells whether failures in a row are enough.
    pub(crate) fn failed(&mut self, now: Instant, told: Told, after: Option<Duration>, alone: bool) {
        self.failures = self.failures.saturating_add(1);
        let until = after.map(|after| now + after);
        match &mut self.open {
            Some(open) => {
                open.told = told;
                if let Some(until) = until.filter(|until| *until > open.next_probe) {
                    open.next_probe = until;
                    open.asked = true;
                }
            }
            None if until.is_some() || (alone && self.failures >= FAILURES) => {
                self.open = Some(Open {
                    since: now,
                    last_probe: now,
                    next_probe: until.unwrap_or(now + FIRST_PROBE),
                    interval: FIRST_PROBE * 2,
                    told,
                    asked: until.is_some(),
                });
            }
            None => {}
        }
    }

    /// Whether calls are held back, but for single probes. Where nobody has wanted to call for a while, nobody is.
    pub(crate) fn holds_back(&self, now: Instant) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| now < open.next_probe + WANTED)
    }

    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether nothing of it matters any more.
    pub(crate) fn is_pristine(&self, now: Instant) -> bool {
        let recovered = self
            .recovery
            .as_ref()
            .is_none_or(|recovery| now >= recovery.since + SPREAD);
        self.failures == 0 && self.open.is_none() && recovered
    }

    /// When a call of it started last, or it opened.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.usual.at.max(self.open.as_ref().map(|open| open.next_probe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: Told = Told {
        reason: Reason::UpstreamUnavailable,
        status: Some(503),
    };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// A breaker after an hour with a call each `interval`, down for `outage`, and up again at the returned time.
    fn recovered(interval: f64, outage: f64) -> (Breaker, Instant) {
        let mut breaker = Breaker::default();
        let mut now = Instant::now();
        for _ in 0..(4.0 * 3600.0 / interval) as u32 {
            breaker.started(now);
            breaker.answered(now, now);
            now += seconds(interval);
        }
        for _ in 0..FAILURES {
            breaker.failed(now, TOLD, None, true);
        }
        now += seconds(outage);
        assert_eq!(breaker.standing(now, false), Standing::Go);
        breaker.started(now);
        breaker.answered(now, now);
        (breaker, now)
    }

    #[test]
    fn probes_come_one_at_a_time_and_less_and_less_often() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        for _ in 0..FAILURES {
            assert_eq!(breaker.standing(start, true), Standing::Go);
            breaker.failed(start, TOLD, None, true);
        }
        let mut probes = Vec::new();
        for tenth in 0..600 {
            let now = start + Duration::from_millis(tenth * 100);
            if breaker.standing(now, true) == Standing::Go {
                probes.push(tenth / 10);
                breaker.started(now);
                breaker.failed(now, TOLD, None, true);
            }
        }
        assert_eq!(probes, [1, 3, 7, 15, 25, 35, 45, 55]);
        assert!(breaker.holds_back(start + seconds(65.0 + 179.0)));
        assert!(!breaker.holds_back(start + seconds(65.0 + 181.0)));
    }

    #[test]
    fn probes_come_in_time_for_the_token_that_ends_first() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        for _ in 0..FAILURES {
            breaker.failed(start, TOLD, None, true);
        }
        let mut probes = Vec::new();
        // A token with 16 s left, whose owner asks each tenth of a second, beside one that has time.
        for tenth in 0..160 {
            let now = start + Duration::from_millis(tenth * 100);
            breaker.hurry(start + seconds(16.0) - now);
            breaker.hurry(seconds(1800.0));
            if breaker.standing(now, true) == Standing::Go {
                probes.push(tenth / 10);
                breaker.started(now);
                breaker.failed(now, TOLD, None, true);
            }
        }
        assert_eq!(probes, [1, 3, 5, 7, 9, 10, 11, 12, 13, 14, 15]);
        // What the server asked for stays.
        breaker.failed(start + seconds(16.0), TOLD, Some(seconds(30.0)), true);
        breaker.hurry(seconds(1.0));
        let now = start + seconds(40.0);
        assert!(matches!(
            breaker.standing(now, true),
            Standing::Shut { asked: true, .. }
        ));
    }

    #[test]
    fn the_server_is_obeyed_and_the_longest_wins() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        breaker.failed(now, TOLD, Some(seconds(100.0)), true);
        breaker.failed(now, TOLD, Some(seconds(5.0)), true);
        let shut = |breaker: &Breaker| match breaker.standing(now, true) {
            Standing::Shut { until, asked, .. } => Some((until - now, asked)),
            _ => None,
        };
        assert_eq!(shut(&breaker), Some((seconds(100.0), true)));
        assert_eq!(breaker.standing(now + seconds(100.0), true), Standing::Go);
    }

    #[test]
    fn late_answers_do_not_open_the_way() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        let now = start + seconds(1.0);
        for _ in 0..FAILURES {
            breaker.failed(now, TOLD, None, true);
        }
        breaker.answered(now + seconds(0.1), start);
        assert!(breaker.is_open());
        breaker.answered(now + seconds(2.0), now + seconds(1.5));
        assert!(!breaker.is_open());
    }

    #[test]
    fn what_is_not_urgent_comes_back_at_one_and_a_half_times_the_usual_pace() {
        let (mut breaker, start) = recovered(0.1, 600.0);
        let mut calls = 0;
        for tenth in 0..6000 {
            let now = start + Duration::from_millis(tenth * 100);
            while breaker.standing(now, false) == Standing::Go {
                breaker.started(now);
                calls += 1;
            }
        }
        // 10 a second were usual.
        assert!((8000..=9200).contains(&calls), "{calls} calls in ten minutes");
        let after = start + SPREAD;
        assert_eq!(breaker.standing(after, false), Standing::Go);
        breaker.started(after);
        assert!(breaker.is_pristine(after));
    }

    #[test]
    fn what_is_urgent_comes_back_in_seconds_and_not_in_one() {
        let (mut breaker, start) = recovered(0.1, 600.0);
        let mut per_second = Vec::new();
        for second in 0..4_u32 {
            let mut calls = 0;
            for thousandth in 0..1000 {
                let now = start + Duration::from_secs(second.into()) + Duration::from_millis(thousandth);
                if breaker.standing(now, true) == Standing::Go {
                    breaker.started(now);
                    calls += 1;
                }
            }
            per_second.push(calls);
        }
        assert!((50..=110).contains(&per_second[0]), "{per_second:?}");
        assert!(
            per_second.windows(2).all(|pair| pair[1] > pair[0]),
            "{per_second:?}"
        );
    }
}
