//! Counters and gauges for Prometheus. A label's values are a closed list or namespaces, never names of objects or error texts; only
//! [`Options::per_request`] adds names. `docs/metrics.md` describes every metric.
//!
//! May import the API's types, counts of grants and the load of [`crate::google`]'s endpoints. Imports no caller: callers pass values. Never calls an API.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

mod cache;
mod exposition;
mod histogram;
mod process;
mod requests;
#[cfg(test)]
mod tests;
mod upstream;
mod watch;

use self::cache::CacheMetrics;
use self::histogram::seconds;
use self::process::Process;
use self::requests::{RequestSeries, Requests, write_remaining};
use self::upstream::Upstreams;
use self::watch::Watches;
use crate::api::ObjectKey;
use crate::google::EndpointLoad;
use crate::grants::store::GrantCount;
use crate::sync::lock;

pub use self::cache::CacheUsage;
pub use self::exposition::Format;
pub use self::requests::RequestState;
pub use self::watch::WatchMetrics;

/// What is exported beyond the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether each request has series of its own, with its name as a label.
    pub per_request: bool,
}

/// Where a grant comes from.
#[derive(Clone, Copy, Debug)]
pub enum GrantOrigin {
    /// IdTokenGrants.
    Object,
    /// `--grants-file`.
    File,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MintLabels {
    source: String,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OriginLabels {
    origin: &'static str,
}

/// Of a series that is absent at times: a gauge without a family never is.
type NoLabels = [(&'static str, &'static str); 0];

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    mints: Family<MintLabels, Counter>,
    reconciles: Family<ResultLabels, Counter>,
    reconcile_seconds: Histogram,
    upstreams: Upstreams,
    loads: OnceLock<Collector<Vec<EndpointLoad>>>,
    cache: CacheMetrics,
    cache_usage: OnceLock<Collector<CacheUsage>>,
    watches: Watches,
    requests: Mutex<Requests>,
    /// Locked for a whole scrape, so that a concurrent one sees no gauges half set. Nothing else locks it.
    request_series: Mutex<RequestSeries>,
    served_expired: Counter<f64, std::sync::atomic::AtomicU64>,
    events_dropped: Counter,
    queue_seconds: Histogram,
    queue_depth: Gauge,
    reconciles_in_flight: Gauge,
    leader: Gauge,
    lease_transitions: Gauge,
    overlapping_releases: Gauge,
    synced: Gauge,
    grants: Family<OriginLabels, Gauge>,
    invalid_grants: Family<OriginLabels, Gauge>,
    grants_file_failing_since: Family<NoLabels, Gauge>,
    clock_skew: Gauge,
}

/// Reports a `T` for a scrape.
struct Collector<T>(Box<dyn Fn() -> T + Send + Sync>);

impl<T> std::fmt::Debug for Collector<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collector")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Metrics {
    /// All at zero.
    pub fn new(options: Options) -> Self {
        let mut root = Registry::default();
        root.register_collector(Box::new(Process));
        let registry = root.sub_registry_with_prefix("idtoken");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What this process was built from", version);
        let request_series = RequestSeries::register(registry, options.per_request);
        let upstreams = Upstreams::register(registry);
        let watches = Watches::register(registry);
        let cache = CacheMetrics::register(registry);

        let mints = Family::default();
        let help = "Attempts to get a token, by source and result";
        registry.register("mint", help, mints.clone());
        let reconciles = Family::default();
        let help = "Reconciles of an IdTokenRequest, by result";
        registry.register("reconcile", help, reconciles.clone());
        let reconcile_seconds = seconds();
        let help = "Duration of a reconcile";
        registry.register_with_unit(
            "reconcile_duration",
            help,
            Unit::Seconds,
            reconcile_seconds.clone(),
        );
        let served_expired = Counter::default();
        let help = "Seconds for which Secrets held an expired token, summed over all requests that are not suspended";
        registry.register_with_unit("served_expired", help, Unit::Seconds, served_expired.clone());

        let events_dropped = Counter::default();
        let help =
            "Events that were not written, since the event budget of their namespace or of all was used up";
        registry.register("events_dropped", help, events_dropped.clone());
        let help = "Former name of idtoken_events_dropped_total";
        registry.register("events_left_out", help, events_dropped.clone());

        let queue_seconds = seconds();
        let help = "Time from when a reconcile was due until it started";
        registry.register_with_unit("queue_wait", help, Unit::Seconds, queue_seconds.clone());
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let help = "IdTokenRequests whose reconcile is due and has not started";
        let queue_depth = gauge(registry, "queue_depth", help);
        let reconciles_in_flight = gauge(registry, "reconciles_in_flight", "Reconciles in flight");
        let help = "Whether this process reconciles: 1 for the replica that holds the Lease, and without leader election";
        let leader = gauge(registry, "leader", help);
        let help = "How often the Lease has changed hands, by its own count; 0 without leader election";
        let lease_transitions = gauge(registry, "lease_transitions", help);
        let help = "Other releases that serve some of the same requests";
        let overlapping_releases = gauge(registry, "overlapping_releases", help);
        let help = "Whether the caches are synced, as /readyz reports";
        let synced = gauge(registry, "synced", help);
        let grants = Family::default();
        registry.register("grants", "Grants in force, by origin", grants.clone());
        let invalid_grants = Family::default();
        let help = "Grants of which a part or all grants nothing, since it is invalid, by origin";
        registry.register("invalid_grants", help, invalid_grants.clone());
        let grants_file_failing_since = Family::default();
        let help = "Unix time since when the grants file cannot be used, so that its last good content is in force; absent if it can";
        registry.register(
            "grants_file_failing_since_timestamp_seconds",
            help,
            grants_file_failing_since.clone(),
        );
        let clock_skew = Gauge::default();
        let help = "Google's clock minus this machine's, by the last issued token";
        registry.register_with_unit("clock_skew", help, Unit::Seconds, clock_skew.clone());
        Self {
            registry: root,
            mints,
            reconciles,
            reconcile_seconds,
            upstreams,
            loads: OnceLock::new(),
            cache,
            cache_usage: OnceLock::new(),
            watches,
            requests: Mutex::default(),
            request_series: Mutex::new(request_series),
            served_expired,
            events_dropped,
            queue_seconds,
            queue_depth,
            reconciles_in_flight,
            leader,
            lease_transitions,
            overlapping_releases,
            synced,
            grants,
            invalid_grants,
            grants_file_failing_since,
            clock_skew,
        }
    }

    /// Registers what reports the load of Google's endpoints on each scrape. Only the first call has an effect.
    pub fn register_load_collector(&self, loads: impl Fn() -> Vec<EndpointLoad> + Send + Sync + 'static) {
        // Fails only if it was set before.
        let _ = self.loads.set(Collector(Box::new(loads)));
    }

    /// Registers what reports on each scrape what the cache keeps. Only the first call has an effect.
    pub fn register_cache_collector(&self, usage: impl Fn() -> CacheUsage + Send + Sync + 'static) {
        // Fails only if it was set before.
        let _ = self.cache_usage.set(Collector(Box::new(usage)));
    }

    /// Counts an attempt to get a token.
    pub fn count_mint(&self, source: &str, result: &str) {
        self.mints
            .get_or_create(&MintLabels {
                source: source.into(),
                result: result.into(),
            })
            .inc();
    }

    /// Sets Google's clock minus this machine's.
    pub fn set_clock_skew(&self, by: jiff::SignedDuration) {
        self.clock_skew.set(by.as_secs());
    }

    /// Counts an event that exceeded the event budget.
    pub fn count_dropped_event(&self) {
        self.events_dropped.inc();
    }

    /// Counts a reconcile.
    pub fn count_reconcile(&self, result: &str, took: Duration) {
        self.reconciles
            .get_or_create(&ResultLabels {
                result: result.into(),
            })
            .inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// Sets whether this process reconciles from `now` on. A process that does not exports no state of requests, so that no request is
    /// counted twice.
    pub fn set_leader(&self, leads: bool, now: Timestamp) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.retain_requests("", &HashSet::new(), now);
        }
    }

    /// Sets how often the Lease has changed hands.
    pub fn set_lease_transitions(&self, times: i32) {
        self.lease_transitions.set(times.into());
    }

    /// Sets how many other releases serve some of the same requests.
    pub fn set_overlapping_releases(&self, count: i64) {
        self.overlapping_releases.set(count);
    }

    /// Records that the caches are synced.
    pub fn set_synced(&self) {
        self.synced.set(1);
    }

    /// Sets how many grants there are.
    pub fn set_grants(&self, origin: GrantOrigin, count: GrantCount) {
        let origin = match origin {
            GrantOrigin::Object => "object",
            GrantOrigin::File => "file",
        };
        let set = |family: &Family<OriginLabels, Gauge>, count| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            family.get_or_create(&OriginLabels { origin }).set(count);
        };
        set(&self.grants, count.in_force);
        set(&self.invalid_grants, count.invalid);
    }

    /// Sets since when the grants file cannot be used; none if it can.
    pub fn set_grants_file_failing_since(&self, since: Option<Timestamp>) {
        match since {
            Some(since) => drop(
                self.grants_file_failing_since
                    .get_or_create(&[])
                    .set(since.as_second()),
            ),
            None => self.grants_file_failing_since.clear(),
        }
    }

    /// Sets since when one of several namespaces cannot be listed or watched; none if it can.
    pub fn set_namespace_failing_since(&self, namespace: &str, since: Option<Timestamp>) {
        self.watches.set_namespace_failing_since(namespace, since);
    }

    /// Observes how long a due reconcile waited until it started.
    pub fn observe_queue_wait(&self, waited: Duration) {
        self.queue_seconds.observe(waited.as_secs_f64());
    }

    /// Sets how many reconciles are due and how many are in flight.
    pub fn set_queue_depth(&self, due: usize, running: usize) {
        self.queue_depth.set(i64::try_from(due).unwrap_or(i64::MAX));
        self.reconciles_in_flight
            .set(i64::try_from(running).unwrap_or(i64::MAX));
    }

    /// Observes a call to one of Google's endpoints and how long the limits delayed it; `code` is the HTTP status or the reason of the
    /// failure.
    pub fn observe_upstream_call(
        &self,
        endpoint: &'static str,
        code: &'static str,
        took: Duration,
        waited: Duration,
    ) {
        self.upstreams.observe_call(endpoint, code, took, waited);
    }

    /// The metrics of one watch of `resource`.
    pub fn watch(&self, resource: &'static str) -> WatchMetrics {
        self.watches.of(resource)
    }

    /// Sets the state of a request at `now`; none leaves the last known state.
    pub fn set_request(&self, key: &ObjectKey, state: Option<RequestState>, now: Timestamp) {
        let Some(state) = state else { return };
        let expired = self.requests().set(key, state, now);
        self.served_expired.inc_by(expired);
    }

    /// Removes a deleted request.
    pub fn remove_request(&self, key: &ObjectKey, now: Timestamp) {
        let expired = self.requests().remove(key, now);
        self.served_expired.inc_by(expired);
    }

    /// Removes each request of `scope` that `alive` does not hold; `scope` is a namespace, or empty for all.
    pub fn retain_requests(&self, scope: &str, alive: &HashSet<ObjectKey>, now: Timestamp) {
        let expired = self.requests().retain(scope, alive, now);
        self.served_expired.inc_by(expired);
    }

    /// All metrics at `now`, as text.
    ///
    /// # Errors
    /// Formatting failed; writing to a string does not.
    pub fn encode(&self, format: Format, now: Timestamp) -> Result<String, std::fmt::Error> {
        let series = lock(&self.request_series);
        // A statement of its own, so that the lock that reconciles want is released after it.
        let (requests, expired) = self.requests().snapshot(now);
        self.served_expired.inc_by(expired);
        series.collect(&requests, now);
        if let Some(loads) = self.loads.get() {
            self.upstreams.collect(&(loads.0)());
        }
        if let Some(usage) = self.cache_usage.get() {
            self.cache.collect((usage.0)());
        }
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        write_remaining(&mut text, &requests, now);
        encode_eof(&mut text)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Text => exposition::as_text(&text),
        })
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        lock(&self.requests)
    }
}
