//! Pure: how many calls to an endpoint are in flight on average.

use std::time::Duration;

use tokio::time::Instant;

/// Time constant of the average.
const OVER: Duration = Duration::from_millis(250);
/// Calls in flight of an endpoint of which nothing is known.
const INITIAL: f64 = 8.0;

/// The average of the calls in flight over the last quarter of a second.
#[derive(Debug, Default)]
pub(super) struct Usage {
    average: f64,
    until: Option<Instant>,
}

impl Usage {
    /// So many calls were in flight until `now`, since the last time.
    pub(super) fn add(&mut self, now: Instant, in_flight: usize) {
        self.average = self.at(now, in_flight);
        self.until = Some(now);
    }

    fn at(&self, now: Instant, in_flight: usize) -> f64 {
        let since = self
            .until
            .map_or(OVER, |until| now.saturating_duration_since(until));
        let weight = 1.0 - (-since.as_secs_f64() / OVER.as_secs_f64()).exp();
        self.average + (in_flight as f64 - self.average) * weight
    }

    /// How many calls were in flight on average, if so many are since the last time. At least a few, so that the number can grow.
    pub(super) fn average(&self, now: Instant, in_flight: usize) -> usize {
        self.at(now, in_flight).max(INITIAL).round() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_counts_for_little_and_steady_use_for_all() {
        let mut usage = Usage::default();
        let mut now = Instant::now();
        assert_eq!(usage.average(now, 0), 8);
        // Bursts of 100 calls that are answered after 20 ms, twice in a second.
        for _ in 0..10 {
            usage.add(now, 0);
            now += Duration::from_millis(20);
            usage.add(now, 100);
            now += Duration::from_millis(480);
        }
        assert!(usage.average(now, 0) < 10, "{usage:?}");
        // As many calls as callers are of use: the number doubles until the limit is what holds them back.
        let mut counts = Vec::new();
        for _ in 0..5 {
            let in_flight = 2 * usage.average(now, 0);
            now += Duration::from_secs(1);
            // Also while none of them ends.
            counts.push(usage.average(now, in_flight));
            usage.add(now, in_flight);
        }
        assert!(counts.is_sorted() && counts[4] > 125, "{counts:?}");
    }
}
