//! Pure: whether calls may start after failures in a row. Times are the caller's.

use std::time::Duration;

use tokio::time::Instant;

use super::recovery::{Pace, RateEstimate, Recovery};
use crate::google::vocabulary::Reason;

/// Failures in a row that open the circuit, where the server does not say how long to wait.
pub(crate) const FAILURES: u32 = 5;
/// How long calls must have failed in a row if they were refused with 429. That is longer than an answer takes: a quota that still admits some
/// of the calls is no outage, and the limit of calls in flight follows it.
const REFUSED_FOR: Duration = Duration::from_millis(500);
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// Longest time between two probes.
pub(crate) const LAST_PROBE: Duration = Duration::from_secs(10);
/// How long after a due probe the circuit still counts as open: longer than a request waits between two attempts. If no probe was made
/// by then, nothing wants to call.
const PROBE_WANTED: Duration = Duration::from_secs(3 * 60);

/// What failed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// What went wrong.
    pub reason: Reason,
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
}

/// Whether a call may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Circuit {
    /// It may start now. If the circuit was open, the call is the probe.
    Closed,
    /// It may start at this time: the first seconds of a recovery.
    Ramping(Instant),
    /// It may not start in the next moments: a recovery in which calls that are not urgent are spread.
    Spreading,
    /// It may not start before `until`.
    Open {
        until: Instant,
        last_failure: LastFailure,
        /// Whether the server asked for this wait.
        server_requested: bool,
    },
}

/// Failures in a row, and what follows from them.
#[derive(Debug, Default)]
pub(crate) struct CircuitBreaker {
    failures: u32,
    /// When the first of them was.
    failing_since: Option<Instant>,
    outage: Option<Outage>,
    recovery: Option<Recovery>,
    rate: RateEstimate,
}

/// An open circuit.
#[derive(Debug)]
struct Outage {
    since: Instant,
    last_probe: Instant,
    next_probe: Instant,
    interval: Duration,
    last_failure: LastFailure,
    server_requested: bool,
}

impl CircuitBreaker {
    /// Whether a call may start now whose token is valid for `remaining`, or that has none.
    pub(crate) fn circuit(&self, now: Instant, remaining: Option<Duration>) -> Circuit {
        if let Some(outage) = &self.outage {
            return match outage.next_probe > now {
                true => Circuit::Open {
                    until: outage.next_probe,
                    last_failure: outage.last_failure,
                    server_requested: outage.server_requested,
                },
                false => Circuit::Closed,
            };
        }
        match self
            .recovery
            .as_ref()
            .map(|recovery| recovery.pace(now, remaining))
        {
            None | Some(Pace::Now) => Circuit::Closed,
            Some(Pace::At(at)) => Circuit::Ramping(at),
            Some(Pace::Later) => Circuit::Spreading,
        }
    }

    /// Makes the next probe early enough for a token that is valid for `remaining`: after a quarter of that. A wait that the server
    /// asked for stays.
    pub(crate) fn expedite_probe(&mut self, remaining: Duration) {
        if let Some(outage) = self.outage.as_mut().filter(|outage| !outage.server_requested) {
            let soon = outage.last_probe + (remaining / 4).max(FIRST_PROBE);
            outage.next_probe = outage.next_probe.min(soon);
        }
    }

    /// A call starts; while the circuit is open it is the probe.
    pub(crate) fn started(&mut self, now: Instant) {
        if let Some(outage) = &mut self.outage {
            outage.last_probe = now;
            outage.next_probe = now + outage.interval;
            outage.interval = (outage.interval * 2).min(LAST_PROBE);
            outage.server_requested = false;
            return;
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.started(now);
            self.recovery.take_if(|recovery| recovery.is_over(now));
        }
        self.rate.add(now);
    }

    /// A call that started at `started` was answered. A rejection is an answer too: what answers is not down. Returns since when the circuit
    /// was open, if it closes now.
    pub(crate) fn answered(&mut self, now: Instant, started: Instant) -> Option<Instant> {
        (self.failures, self.failing_since) = (0, None);
        // The late answer to a call from before the outage says nothing about now.
        let ended = self.outage.take_if(|outage| outage.since <= started)?;
        self.recovery = Some(Recovery::new(now, &self.rate));
        self.rate.skip_to(now);
        Some(ended.since)
    }

    /// Closes if it opened after `since`: from then on the endpoint failed for all, and it no longer does. A wait that the server asked for
    /// stays.
    pub(crate) fn close_if_after(&mut self, since: Instant) {
        let ended = self
            .outage
            .take_if(|outage| outage.since > since && !outage.server_requested);
        if ended.is_some() {
            (self.failures, self.failing_since) = (0, None);
        }
    }

    /// A call failed with a transient error. `retry_after` is what the server asked for; `may_open` says whether failures in a row may open
    /// the circuit.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        failure: LastFailure,
        retry_after: Option<Duration>,
        may_open: bool,
    ) {
        self.failures = self.failures.saturating_add(1);
        let failing_since = *self.failing_since.get_or_insert(now);
        let is_down = failure.status != Some(429) || now >= failing_since + REFUSED_FOR;
        let until = retry_after.map(|after| now + after);
        match &mut self.outage {
            Some(outage) => {
                outage.last_failure = failure;
                if let Some(until) = until.filter(|until| *until > outage.next_probe) {
                    outage.next_probe = until;
                    outage.server_requested = true;
                }
            }
            None if until.is_some() || (may_open && is_down && self.failures >= FAILURES) => {
                self.outage = Some(Outage {
                    since: now,
                    last_probe: now,
                    next_probe: until.unwrap_or(now + FIRST_PROBE),
                    interval: FIRST_PROBE * 2,
                    last_failure: failure,
                    server_requested: until.is_some(),
                });
            }
            None => {}
        }
    }

    /// Whether calls are held back but for single probes. A circuit for which no probe was made for a while does not count.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        let outage = self.outage.as_ref();
        outage.is_some_and(|outage| now < outage.next_probe + PROBE_WANTED)
    }

    /// Whether nothing has failed that still matters.
    pub(crate) fn is_pristine(&self, now: Instant) -> bool {
        let recovery = self.recovery.as_ref();
        self.failures == 0 && self.outage.is_none() && recovery.is_none_or(|recovery| recovery.is_over(now))
    }

    /// When a call started last, or the next probe of an open circuit is due.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.rate
            .last()
            .max(self.outage.as_ref().map(|outage| outage.next_probe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::transport::recovery::{RAMP, SPREAD};

    const FAILURE: LastFailure = LastFailure {
        reason: Reason::UpstreamUnavailable,
        status: Some(503),
    };

    const HALF_AN_HOUR: Option<Duration> = Some(Duration::from_secs(30 * 60));

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// A breaker after an hour with a call each `interval`, down for `outage`, and up again at the returned time.
    fn recovered(interval: f64, outage: f64) -> (CircuitBreaker, Instant) {
        let mut breaker = CircuitBreaker::default();
        let mut now = Instant::now();
        for _ in 0..(4.0 * 3600.0 / interval) as u32 {
            breaker.started(now);
            breaker.answered(now, now);
            now += seconds(interval);
        }
        for _ in 0..FAILURES {
            breaker.failed(now, FAILURE, None, true);
        }
        now += seconds(outage);
        assert_eq!(breaker.circuit(now, HALF_AN_HOUR), Circuit::Closed);
        breaker.started(now);
        breaker.answered(now, now);
        (breaker, now)
    }

    #[test]
    fn probes_come_one_at_a_time_and_less_and_less_often() {
        let mut breaker = CircuitBreaker::default();
        let start = Instant::now();
        for _ in 0..FAILURES {
            assert_eq!(breaker.circuit(start, None), Circuit::Closed);
            breaker.failed(start, FAILURE, None, true);
        }
        let mut probes = Vec::new();
        for tenth in 0..600 {
            let now = start + Duration::from_millis(tenth * 100);
            if breaker.circuit(now, None) == Circuit::Closed {
                probes.push(tenth / 10);
                breaker.started(now);
                breaker.failed(now, FAILURE, None, true);
            }
        }
        assert_eq!(probes, [1, 3, 7, 15, 25, 35, 45, 55]);
        assert!(breaker.is_open(start + seconds(65.0 + 179.0)));
        assert!(!breaker.is_open(start + seconds(65.0 + 181.0)));
    }

    #[test]
    fn a_quota_that_still_admits_some_of_the_calls_is_no_outage() {
        const REFUSED: LastFailure = LastFailure {
            reason: Reason::QuotaExceeded,
            status: Some(429),
        };
        let (mut breaker, mut now) = (CircuitBreaker::default(), Instant::now());
        // Each 0.4 s a call is answered, and 39 between them are refused.
        for call in 0..400 {
            match call % 40 {
                0 => assert_eq!(breaker.answered(now, now), None),
                _ => breaker.failed(now, REFUSED, None, true),
            }
            assert_eq!(breaker.circuit(now, None), Circuit::Closed, "call {call}");
            now += Duration::from_millis(10);
        }
        // Then all are refused.
        for _ in 0..20 {
            breaker.failed(now, REFUSED, None, true);
            now += Duration::from_millis(10);
        }
        assert!(breaker.is_open(now));
        // Where nothing answers, five calls say so.
        let mut breaker = CircuitBreaker::default();
        (0..FAILURES).for_each(|_| breaker.failed(now, FAILURE, None, true));
        assert!(breaker.is_open(now));
    }

    #[test]
    fn probes_come_in_time_for_the_token_that_expires_first() {
        let mut breaker = CircuitBreaker::default();
        let start = Instant::now();
        for _ in 0..FAILURES {
            breaker.failed(start, FAILURE, None, true);
        }
        let mut probes = Vec::new();
        // A token that is valid for 16 s more, whose request comes each tenth of a second, beside one that has time.
        for tenth in 0..160 {
            let now = start + Duration::from_millis(tenth * 100);
            breaker.expedite_probe(start + seconds(16.0) - now);
            breaker.expedite_probe(seconds(1800.0));
            if breaker.circuit(now, None) == Circuit::Closed {
                probes.push(tenth / 10);
                breaker.started(now);
                breaker.failed(now, FAILURE, None, true);
            }
        }
        assert_eq!(probes, [1, 3, 5, 7, 9, 10, 11, 12, 13, 14, 15]);
        // A wait that the server asked for stays.
        breaker.failed(start + seconds(16.0), FAILURE, Some(seconds(30.0)), true);
        breaker.expedite_probe(seconds(1.0));
        let now = start + seconds(40.0);
        assert!(matches!(
            breaker.circuit(now, None),
            Circuit::Open {
                server_requested: true,
                ..
            }
        ));
    }

    #[test]
    fn the_server_is_obeyed_and_the_longest_wait_wins() {
        let mut breaker = CircuitBreaker::default();
        let now = Instant::now();
        breaker.failed(now, FAILURE, Some(seconds(100.0)), true);
        breaker.failed(now, FAILURE, Some(seconds(5.0)), true);
        let open = |breaker: &CircuitBreaker| match breaker.circuit(now, None) {
            Circuit::Open {
                until,
                server_requested,
                ..
            } => Some((until - now, server_requested)),
            _ => None,
        };
        assert_eq!(open(&breaker), Some((seconds(100.0), true)));
        assert_eq!(breaker.circuit(now + seconds(100.0), None), Circuit::Closed);
    }

    #[test]
    fn late_answers_do_not_close_the_circuit() {
        let mut breaker = CircuitBreaker::default();
        let start = Instant::now();
        let now = start + seconds(1.0);
        for _ in 0..FAILURES {
            breaker.failed(now, FAILURE, None, true);
        }
        breaker.answered(now + seconds(0.1), start);
        assert!(breaker.outage.is_some());
        breaker.answered(now + seconds(2.0), now + seconds(1.5));
        assert!(breaker.outage.is_none());
    }

    #[test]
    fn calls_whose_tokens_have_time_come_back_at_little_more_than_the_usual_rate() {
        let (mut breaker, start) = recovered(0.1, 600.0);
        let mut calls = 0;
        for tenth in 0..6000 {
            let now = start + Duration::from_millis(tenth * 100);
            while breaker.circuit(now, HALF_AN_HOUR) == Circuit::Closed {
                breaker.started(now);
                calls += 1;
            }
        }
        // 10 a second were usual.
        assert!((8000..=8600).contains(&calls), "{calls} calls in ten minutes");
        let after = start + SPREAD;
        assert_eq!(breaker.circuit(after, HALF_AN_HOUR), Circuit::Closed);
        breaker.started(after);
        assert!(breaker.is_pristine(after));
    }

    #[test]
    fn calls_are_spread_only_as_far_as_their_tokens_allow() {
        let (mut breaker, start) = recovered(0.1, 600.0);
        let now = start + RAMP;
        while breaker.circuit(now, HALF_AN_HOUR) == Circuit::Closed {
            breaker.started(now);
        }
        // How many calls more may start, by what their tokens have left.
        let mut more = |left: f64| {
            let mut calls = 0_u32;
            while calls < 10_000 && breaker.circuit(now, Some(seconds(left))) == Circuit::Closed {
                breaker.started(now);
                calls += 1;
            }
            calls
        };
        assert_eq!([more(301.0), more(300.0)], [0, 0]);
        // 14 a second, for up to three seconds.
        let pressed = [more(240.0), more(180.0), more(120.0)];
        assert!(pressed.iter().all(|calls| calls.abs_diff(14) <= 1), "{pressed:?}");
        assert_eq!(more(119.9), 10_000);
    }

    #[test]
    fn what_is_usual_is_known_before_an_hour_has_passed() {
        let (mut rate, mut now) = (RateEstimate::default(), Instant::now());
        for second in 1..3600 * 8_u32 {
            (0..10).for_each(|_| rate.add(now));
            now += seconds(1.0);
            if second >= 60 {
                let usual = rate.per_second();
                assert!((9.5..=10.5).contains(&usual), "{usual} after {second} s");
            }
        }
    }

    #[test]
    fn urgent_calls_come_back_in_seconds_and_not_in_one() {
        let (mut breaker, start) = recovered(0.1, 600.0);
        let mut per_second = Vec::new();
        for second in 0..4_u32 {
            let mut calls = 0;
            for thousandth in 0..1000 {
                let now = start + Duration::from_secs(second.into()) + Duration::from_millis(thousandth);
                if breaker.circuit(now, None) == Circuit::Closed {
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
