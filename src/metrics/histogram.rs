//! Histograms of durations.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Buckets from a millisecond to half a minute.
pub(super) fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}
