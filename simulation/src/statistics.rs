//! The counts of a simulation.

use crate::time::{MINUTE, Time};

/// Counts by minute and in total. Times count from the start of the simulation.
pub(crate) struct Statistics {
    start: Time,
    /// Issued tokens, by minute.
    pub(crate) minted: Vec<u32>,
    /// Failed calls, by minute.
    pub(crate) failed: Vec<u32>,
    /// Writes to the API server, by minute.
    pub(crate) written: Vec<u32>,
    /// Reconciles, by minute.
    pub(crate) reconciled: Vec<u32>,
    /// Issued tokens, by shard.
    pub(crate) by_shard: Vec<u64>,
    /// Calls with the response 429.
    pub(crate) over_quota: u64,
    /// Reconciles without a call, because the circuit breaker was open or the call waited too long.
    pub(crate) rejected_locally: u64,
    /// Reconciles that were deferred because many came at once.
    pub(crate) deferred: u64,
    /// Tokens that expired before they were renewed.
    pub(crate) expired: u64,
    /// How long requests had an expired token, in total.
    pub(crate) expired_for: Time,
    /// How long one request had an expired token at most.
    pub(crate) longest_expired: Time,
    /// When the last outage ends.
    pub(crate) outage_end: Time,
    /// How long one request had an expired token at most since the outage ended.
    pub(crate) longest_after_outage: Time,
    /// When the last request got its first token.
    pub(crate) ready: Time,
    /// When the last request got a token after its token had expired or a call had failed. `Time::MAX` if one has none at the end.
    pub(crate) recovered: Time,
}

impl Statistics {
    pub(crate) fn new(start: Time, length: Time, shards: usize) -> Self {
        let minutes = vec![0; (length / MINUTE) as usize + 2];
        Self {
            start,
            minted: minutes.clone(),
            failed: minutes.clone(),
            written: minutes.clone(),
            reconciled: minutes,
            by_shard: vec![0; shards],
            over_quota: 0,
            rejected_locally: 0,
            deferred: 0,
            expired: 0,
            expired_for: 0,
            longest_expired: 0,
            outage_end: 0,
            longest_after_outage: 0,
            ready: 0,
            recovered: 0,
        }
    }

    /// The minute of the run, from 0.
    pub(crate) fn minute(&self, now: Time) -> usize {
        ((now - self.start) / MINUTE) as usize
    }

    /// Counts a token that was expired for `duration`, until `now`.
    pub(crate) fn record_expired(&mut self, duration: Time, now: Time) {
        self.expired += 1;
        let after = duration.min(now.saturating_sub(self.outage_end));
        self.longest_after_outage = self.longest_after_outage.max(after);
        self.expired_for += duration;
        self.longest_expired = self.longest_expired.max(duration);
    }

    /// The busiest shard's tokens, as a multiple of the mean.
    pub(crate) fn imbalance(&self) -> f64 {
        let all: u64 = self.by_shard.iter().sum();
        let most = self.by_shard.iter().max().copied().unwrap_or_default();
        most as f64 * self.by_shard.len() as f64 / (all as f64).max(1.0)
    }
}

pub(crate) fn mean(counts: &[u32]) -> f64 {
    let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    all as f64 / (counts.len() as f64).max(1.0)
}

pub(crate) fn peak(counts: &[u32]) -> f64 {
    counts.iter().max().copied().unwrap_or_default().into()
}
