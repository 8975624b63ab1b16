//! What is counted.

use crate::calendar::{MINUTE, Time};

/// Counts, by minute and altogether. Times are those of the simulation.
pub(crate) struct Tally {
    start: Time,
    /// Tokens issued, by minute.
    pub(crate) minted: Vec<u32>,
    /// Calls that failed, by minute.
    pub(crate) failed: Vec<u32>,
    /// Writes to the API server, by minute.
    pub(crate) written: Vec<u32>,
    /// Requests that were looked at, by minute.
    pub(crate) reconciled: Vec<u32>,
    /// Tokens issued, by shard.
    pub(crate) by_shard: Vec<u64>,
    /// Calls that got 429.
    pub(crate) over_quota: u64,
    /// Reconciles that found Google unreachable without a call, or waited too long for their turn.
    pub(crate) held_back: u64,
    /// Reconciles that were put off since many came at once.
    pub(crate) put_off: u64,
    /// Tokens that ended before they were renewed.
    pub(crate) expired: u64,
    /// For how long altogether, and the longest.
    pub(crate) expired_for: Time,
    pub(crate) longest: Time,
    /// When the last request got its first token.
    pub(crate) ready: Time,
    /// When the last request got a token that had been without one, or whose call had failed.
    pub(crate) well: Time,
}

impl Tally {
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
            held_back: 0,
            put_off: 0,
            expired: 0,
            expired_for: 0,
            longest: 0,
            ready: 0,
            well: 0,
        }
    }

    /// Which minute of the run it is.
    pub(crate) fn minute(&self, now: Time) -> usize {
        ((now - self.start) / MINUTE) as usize
    }

    pub(crate) fn late(&mut self, by: Time) {
        self.expired += 1;
        self.expired_for += by;
        self.longest = self.longest.max(by);
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
