//! The simulated Google: latency, a quota, outages and errors.

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
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the table shows the harder case, errors without delay")
    )]
    /// Calls get no response and time out.
    Timeout,
    /// Calls get 503 without delay.
    Unavailable,
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
    /// Calls in a minute. Further calls get 429.
    pub(crate) quota: Option<u64>,
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
    /// The current minute, and its calls.
    counted: (Time, u64),
    /// Calls during outages.
    pub(crate) in_outages: u64,
}

impl Google {
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self {
            upstream,
            random: Random(42),
            counted: (0, 0),
            in_outages: 0,
        }
    }

    /// Receives a call.
    pub(crate) fn call(&mut self, now: Time) -> Response {
        let Self { upstream, random, .. } = self;
        let dice = random.below(1000);
        let latency = upstream.latency / 2 + random.below(upstream.latency.max(1));
        let minute = now / MINUTE;
        if self.counted.0 != minute {
            self.counted = (minute, 0);
        }
        self.counted.1 += 1;
        let outages = &upstream.outages;
        let outage = outages
            .iter()
            .find(|(from, until, _)| (*from..*until).contains(&now));
        let is_burst = upstream
            .bursts
            .iter()
            .any(|(from, until)| (*from..*until).contains(&now));
        let (status, delay, retry_after) = match outage {
            Some((.., Outage::Timeout)) => (0, CALL_TIMEOUT, 0),
            Some((.., Outage::Unavailable)) => (503, latency, 0),
            None if upstream.quota.is_some_and(|quota| self.counted.1 > quota) => (429, latency, 0),
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
