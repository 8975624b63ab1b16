//! What is done to and by Google: answer times, a quota, outages and errors.

use std::time::Duration;

use idtoken_operator::google::{Endpoint, Error, Reason};

use crate::calendar::{MINUTE, SECOND, Time};

/// How long a call hangs before it is given up, as in the operator's default.
const TIMEOUT: Time = 20 * SECOND;

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): the same in each run.
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

/// How a time without Google is felt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "what tells less of the operator than a refusal")
    )]
    /// Calls end by the operator's time limit.
    Hangs,
    /// Calls are answered with 503 at once.
    Refuses,
}

/// What is done to Google, and what it can take.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstream {
    /// From, until.
    pub(crate) outages: Vec<(Time, Time, Outage)>,
    /// From, until: each second call is one too many, and is told to wait for up to a minute.
    pub(crate) bursts: Vec<(Time, Time)>,
    /// Of a thousand calls, answered with 500.
    pub(crate) errors: u64,
    /// Calls that are answered in a minute; those beyond get 429.
    pub(crate) quota: Option<u64>,
    /// The usual time of an answer; each takes half to one and a half of it.
    pub(crate) answer: Time,
}

/// An answer to come, or none: status 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) at: Time,
    /// Seconds that it asks to wait; 0 for none.
    pub(crate) after: u8,
}

/// Google, with what it counts.
pub(crate) struct Google {
    upstream: Upstream,
    random: Random,
    /// A minute, and its calls.
    counted: (Time, u64),
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

    /// A call comes in.
    pub(crate) fn call(&mut self, now: Time) -> Answer {
        let Self { upstream, random, .. } = self;
        let dice = random.below(1000);
        let quick = upstream.answer / 2 + random.below(upstream.answer.max(1));
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
        let (status, takes, after) = match outage {
            Some((.., Outage::Hangs)) => (0, TIMEOUT, 0),
            Some((.., Outage::Refuses)) => (503, quick, 0),
            None if upstream.quota.is_some_and(|quota| self.counted.1 > quota) => (429, quick, 0),
            None if dice < upstream.errors => (500, quick, 0),
            None if is_burst && dice.is_multiple_of(2) => (429, quick, 1 + random.below(60) as u8),
            None => (200, quick, 0),
        };
        self.in_outages += u64::from(outage.is_some());
        let at = now + takes;
        Answer { status, at, after }
    }
}

impl Answer {
    /// What the operator makes of it; none where it is a token.
    pub(crate) fn error(self) -> Option<Error> {
        let error = |reason| Error::new(Endpoint::IamCredentials, reason, "no");
        Some(match self.status {
            200 => return None,
            0 => error(Reason::UpstreamTimeout),
            429 if self.after == 0 => error(Reason::QuotaExceeded).with_status(429),
            429 => {
                let after = Duration::from_secs(self.after.into());
                error(Reason::QuotaExceeded)
                    .with_status(429)
                    .with_retry_after(after)
            }
            status => error(Reason::UpstreamUnavailable).with_status(status),
        })
    }
}
