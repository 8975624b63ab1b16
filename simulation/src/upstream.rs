//! The simulated Google: latency, a quota that others use as well, outages and errors.

use std::time::Duration;

use idtoken_operator::google::{Endpoint, Error, Reason};

use crate::time::{MINUTE, SECOND, Time};

/// The operator's default timeout of a call.
const CALL_TIMEOUT: Time = 20 * SECOND;

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>), with the same numbers in each run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// How calls fail in an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Calls get no response and time out.
    Timeout,
    /// Calls get 503 without delay.
    Unavailable,
}

/// How Google enforces its quota. Which of the two it does is not documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quota {
    /// A token bucket that is filled with so many calls a second, and holds as many.
    Bucket { per_second: u64 },
    /// Windows of a minute, each with so many calls.
    Window { per_minute: u64 },
}

/// The share of a quota that other users take, all of the time: a third.
const OTHERS: f64 = 1.0 / 3.0;
/// Where the windows begin: at no full minute of the simulation, so that a window ends soon after each scenario's incident.
const WINDOW_OFFSET: Time = 23 * SECOND;

/// What is left of a quota.
#[derive(Clone, Copy, Debug, Default)]
struct QuotaState {
    /// When [`QuotaState::admit`] was called last.
    last: Time,
    window: Time,
    /// Calls that the bucket holds, or that the window has had.
    count: f64,
    /// Calls of the others, and how many of them got 429.
    others: f64,
    others_refused: f64,
}

impl QuotaState {
    /// Whether the quota admits a call now.
    fn admit(&mut self, quota: Quota, others: bool, now: Time) -> bool {
        let elapsed = (now - self.last) as f64 / SECOND as f64;
        self.last = now;
        let others_per_second = match quota {
            _ if !others => 0.0,
            Quota::Bucket { per_second } => per_second as f64 * OTHERS,
            Quota::Window { per_minute } => per_minute as f64 / 60.0 * OTHERS,
        };
        let arrived = others_per_second * elapsed;
        self.others += arrived;
        match quota {
            Quota::Bucket { per_second } => {
                let most = per_second as f64;
                let left = self.count + per_second as f64 * elapsed - arrived;
                self.others_refused += (-left).max(0.0);
                self.count = left.clamp(0.0, most);
                let admitted = self.count >= 1.0;
                self.count -= f64::from(u8::from(admitted));
                admitted
            }
            Quota::Window { per_minute } => {
                let window = (now + WINDOW_OFFSET) / MINUTE;
                if window != self.window {
                    let into = (now + WINDOW_OFFSET) % MINUTE;
                    self.window = window;
                    self.count = others_per_second * into as f64 / SECOND as f64;
                } else {
                    let left = per_minute as f64 - self.count;
                    self.others_refused += (arrived - left.max(0.0)).max(0.0);
                    self.count += arrived;
                }
                let admitted = self.count + 1.0 <= per_minute as f64;
                self.count += f64::from(u8::from(admitted));
                admitted
            }
        }
    }
}

/// The settings of the simulated Google.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstream {
    /// Start and end.
    pub(crate) outages: Vec<(Time, Time, Outage)>,
    /// Start and end. Half of the calls get 429 with a `Retry-After` of up to a minute.
    pub(crate) bursts: Vec<(Time, Time)>,
    /// How many of a thousand calls get 500.
    pub(crate) errors: u64,
    /// Calls beyond it get 429.
    pub(crate) quota: Option<Quota>,
    /// Whether other users take a third of the quota.
    pub(crate) others: bool,
    /// The mean latency. Each response takes half to one and a half of it.
    pub(crate) latency: Time,
}

/// A response at a future time, or a timeout (status 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) at: Time,
    /// Seconds of `Retry-After`; 0 for none.
    pub(crate) retry_after: u8,
}

/// The simulated Google.
pub(crate) struct Google {
    upstream: Upstream,
    random: Random,
    quota: QuotaState,
    /// All calls.
    pub(crate) calls: u64,
    /// Calls during outages.
    pub(crate) in_outages: u64,
}

impl Google {
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self {
            upstream,
            random: Random(42),
            quota: QuotaState::default(),
            calls: 0,
            in_outages: 0,
        }
    }

    /// The share of the others' calls that got 429.
    pub(crate) fn others_refused(&self) -> f64 {
        self.quota.others_refused / self.quota.others.max(1.0)
    }

    /// Receives a call.
    pub(crate) fn call(&mut self, now: Time) -> Response {
        self.calls += 1;
        let Self { upstream, random, .. } = self;
        let dice = random.below(1000);
        let latency = upstream.latency / 2 + random.below(upstream.latency.max(1));
        let outages = &upstream.outages;
        let outage = outages
            .iter()
            .find(|(from, until, _)| (*from..*until).contains(&now));
        let is_burst = upstream
            .bursts
            .iter()
            .any(|(from, until)| (*from..*until).contains(&now));
        let is_over = |quota| !self.quota.admit(quota, upstream.others, now);
        let (status, delay, retry_after) = match outage {
            Some((.., Outage::Timeout)) => (0, CALL_TIMEOUT, 0),
            Some((.., Outage::Unavailable)) => (503, latency, 0),
            None if upstream.quota.is_some_and(is_over) => (429, latency, 0),
            None if dice < upstream.errors => (500, latency, 0),
            None if is_burst && dice.is_multiple_of(2) => (429, latency, 1 + random.below(60) as u8),
            None => (200, latency, 0),
        };
        self.in_outages += u64::from(outage.is_some());
        let at = now + delay;
        Response {
            status,
            at,
            retry_after,
        }
    }
}

impl Response {
    /// The operator's error for this response; none if it is a token.
    pub(crate) fn error(self) -> Option<Error> {
        let error = |reason| Error::new(Endpoint::IamCredentials, reason, "simulated");
        Some(match self.status {
            200 => return None,
            0 => error(Reason::UpstreamTimeout),
            429 if self.retry_after == 0 => error(Reason::QuotaExceeded).with_status(429),
            429 => {
                let retry_after = Duration::from_secs(self.retry_after.into());
                error(Reason::QuotaExceeded)
                    .with_status(429)
                    .with_retry_after(retry_after)
            }
            status => error(Reason::UpstreamUnavailable).with_status(status),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `per_second` calls in each of `seconds` seconds are admitted.
    fn admitted(quota: Quota, others: bool, per_second: u64, seconds: u64) -> Vec<u64> {
        let mut state = QuotaState::default();
        let start = 1000 * MINUTE - WINDOW_OFFSET;
        state.admit(quota, others, start);
        let second = |second: u64| {
            let calls = (0..per_second).map(|call| start + second * SECOND + call * SECOND / per_second);
            calls.filter(|at| state.admit(quota, others, *at)).count() as u64
        };
        (0..seconds).map(second).collect()
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_its_rate() {
        let bucket = Quota::Bucket { per_second: 1000 };
        let counts = admitted(bucket, false, 1500, 10);
        assert_eq!(counts[0], 1500, "half of what it held");
        assert!(
            counts[4..].iter().all(|count| count.abs_diff(1000) <= 2),
            "{counts:?}"
        );
        let counts = admitted(bucket, true, 1500, 10);
        assert!(
            counts[4..].iter().all(|count| count.abs_diff(667) <= 2),
            "{counts:?}"
        );
    }

    #[test]
    fn a_window_gives_all_it_has_and_then_nothing() {
        let window = Quota::Window { per_minute: 60_000 };
        let counts = admitted(window, false, 1500, 70);
        assert_eq!(counts[..39], [1500; 39]);
        assert!(counts[41..59].iter().all(|count| *count == 0), "{counts:?}");
        assert!(counts[61..].iter().all(|count| *count == 1500), "{counts:?}");
        let all: u64 = admitted(window, true, 1000, 60).iter().sum();
        assert!(
            (44_900..=45_100).contains(&all),
            "{all}, while the others took 15,000"
        );
    }
}
