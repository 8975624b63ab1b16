//! Metrics of the memory that requests and Secrets take.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the cache keeps, and what not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUsage {
    /// Bytes that the requests count for that are served, with their Secrets.
    pub requests: usize,
    /// Bytes that the requests count for of which only a marker is kept.
    pub markers: usize,
    /// Bytes that all Secrets count for.
    pub secrets: usize,
    /// How often a request was seen of which nothing is kept.
    pub requests_dropped: u64,
    /// How often a Secret was seen of which nothing is kept.
    pub secrets_dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug)]
pub(super) struct CacheMetrics {
    bytes: Family<KindLabels, Gauge>,
    dropped: Family<KindLabels, Counter>,
}

impl CacheMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let all = Self {
            bytes: Family::default(),
            dropped: Family::default(),
        };
        let help = "Bytes that count toward the limits of memory: of served requests, each with its Secret; of markers of requests that \
                    are not served for lack of memory; of all Secrets that are kept";
        registry.register("cache_bytes", help, all.bytes.clone());
        let help = "How often a request or a Secret was seen of which nothing was kept for lack of memory";
        registry.register("cache_dropped", help, all.dropped.clone());
        all
    }

    /// Sets them for a scrape.
    pub(super) fn collect(&self, usage: CacheUsage) {
        for (kind, bytes) in [
            ("requests", usage.requests),
            ("markers", usage.markers),
            ("secrets", usage.secrets),
        ] {
            let gauge = self.bytes.get_or_create_owned(&KindLabels { kind });
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        for (kind, times) in [
            ("requests", usage.requests_dropped),
            ("secrets", usage.secrets_dropped),
        ] {
            let counter = self.dropped.get_or_create_owned(&KindLabels { kind });
            counter.inc_by(times.saturating_sub(counter.get()));
        }
    }
}
