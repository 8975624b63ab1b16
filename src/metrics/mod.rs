//! Counters and gauges for Prometheus. Labels are closed lists and namespaces, never names of objects or error texts; only
//! [`Options::per_request`] adds names. Every metric is described in `docs/metrics.md`.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

mod exposition;
mod process;
mod requests;
#[cfg(test)]
mod tests;
mod upstream;
mod watch;

use self::process::Process;
use self::requests::Requests;
use self::upstream::Upstreams;
use self::watch::Watches;
use crate::api::ObjectKey;
use crate::google::UpstreamLoad;

pub use self::exposition::Format;
pub use self::requests::RequestState;
pub use self::watch::WatchMetrics;

/// What is told besides the usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether there are series of single requests, with their names as labels.
    pub per_request: bool,
}

/// Where grants come from.
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

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    mints: Family<MintLabels, Counter>,
    reconciles: Family<ResultLabels, Counter>,
    reconcile_seconds: Histogram,
    upstreams: Upstreams,
    loads: OnceLock<Loads>,
    watches: Watches,
    requests: Mutex<Requests>,
    served_expired: Counter<f64, std::sync::atomic::AtomicU64>,
    events_left_out: Counter,
    queue_seconds: Histogram,
    queue_depth: Gauge,
    reconciles_in_flight: Gauge,
    leader: Gauge,
    lease_transitions: Gauge,
    synced: Gauge,
    grants: Family<OriginLabels, Gauge>,
    clock_skew: Gauge,
}

struct Loads(Box<dyn Fn() -> Vec<UpstreamLoad> + Send + Sync>);

impl std::fmt::Debug for Loads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Loads")
    }
}

/// Buckets from a millisecond to half a minute.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Metrics {
    /// All at zero.
    pub fn new(options: Options) -> Self {
        let mut whole = Registry::default();
        whole.register_collector(Box::new(Process));
        let registry = whole.sub_registry_with_prefix("idtoken");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What this process was built from", version);
        let requests = Requests::register(registry, options.per_request);
        let upstreams = Upstreams::register(registry);
        let watches = Watches::register(registry);

        let mints = Family::default();
        let help = "Attempts to get a token, by source and result";
        registry.register("mint", help, mints.clone());
        let reconciles = Family::default();
        let help = "Reconciles of an IdTokenRequest, by result";
        registry.register("reconcile", help, reconciles.clone());
        let reconcile_seconds = seconds();
        let help = "Time of one reconcile";
        registry.register_with_unit(
            "reconcile_duration",
            help,
            Unit::Seconds,
            reconcile_seconds.clone(),
        );
        let served_expired = Counter::default();
        let help = "Seconds for which tokens were in use after their end, added up over all requests that are not suspended";
        registry.register_with_unit("served_expired", help, Unit::Seconds, served_expired.clone());

        let events_left_out = Counter::default();
        let help =
            "Events that were not written, since their namespace, or all together, had many a moment ago";
        registry.register("events_left_out", help, events_left_out.clone());

        let queue_seconds = seconds();
        let help = "Time from when a reconcile was due until it began";
        registry.register_with_unit("queue_wait", help, Unit::Seconds, queue_seconds.clone());
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let help = "IdTokenRequests whose reconcile is due and has not begun";
        let queue_depth = gauge(registry, "queue_depth", help);
        let reconciles_in_flight = gauge(registry, "reconciles_in_flight", "Reconciles under way");
        let help = "Whether this process does the work: 1 for the replica that holds the Lease, and without an election";
        let leader = gauge(registry, "leader", help);
        let help = "How often the Lease has changed hands, as it says itself; 0 without an election";
        let lease_transitions = gauge(registry, "lease_transitions", help);
        let help = "Whether the caches were filled, as /readyz says";
        let synced = gauge(registry, "synced", help);
        let grants = Family::default();
        registry.register(
            "grants",
            "Grants that are in force, by where they come from",
            grants.clone(),
        );
        let clock_skew = Gauge::default();
        let help = "Google's clock less this machine's, by the last token that was issued";
        registry.register_with_unit("clock_skew", help, Unit::Seconds, clock_skew.clone());
        Self {
            registry: whole,
            mints,
            reconciles,
            reconcile_seconds,
            upstreams,
            loads: OnceLock::new(),
            watches,
            requests: Mutex::new(requests),
            served_expired,
            events_left_out,
            queue_seconds,
            queue_depth,
            reconciles_in_flight,
            leader,
            lease_transitions,
            synced,
            grants,
            clock_skew,
        }
    }

    /// Has each scrape ask how much goes on at Google's endpoints. Only the first call counts.
    pub fn ask_for_loads(&self, loads: impl Fn() -> Vec<UpstreamLoad> + Send + Sync + 'static) {
        // An error means that it was set before.
        let _ = self.loads.set(Loads(Box::new(loads)));
    }

    /// Counts an attempt to get a token.
    pub fn minted(&self, source: &str, result: &str) {
        self.mints
            .get_or_create(&MintLabels {
                source: source.into(),
                result: result.into(),
            })
            .inc();
    }

    /// Takes in Google's clock less this machine's.
    pub fn clock_differs(&self, by: jiff::SignedDuration) {
        self.clock_skew.set(by.as_secs());
    }

    /// Counts an event that was not written.
    pub fn event_left_out(&self) {
        self.events_left_out.inc();
    }

    /// Counts a reconcile.
    pub fn reconciled(&self, result: &str, took: Duration) {
        self.reconciles
            .get_or_create(&ResultLabels {
                result: result.into(),
            })
            .inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// Whether this process does the work from `now` on. One that does not says nothing of requests.
    pub fn lead(&self, leads: bool, now: Timestamp) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.keep_only("", &HashSet::new(), now);
        }
    }

    /// Takes in how often the Lease has changed hands.
    pub fn lease_changed_hands(&self, times: i32) {
        self.lease_transitions.set(times.into());
    }

    /// The caches are filled.
    pub fn synced(&self) {
        self.synced.set(1);
    }

    /// Sets how many grants are in force.
    pub fn granted(&self, origin: GrantOrigin, count: usize) {
        let origin = match origin {
            GrantOrigin::Object => "object",
            GrantOrigin::File => "file",
        };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.grants.get_or_create(&OriginLabels { origin }).set(count);
    }

    /// Counts how long a reconcile that was due waited for its turn.
    pub fn queued(&self, waited: Duration) {
        self.queue_seconds.observe(waited.as_secs_f64());
    }

    /// Sets how many reconciles are due and how many are under way.
    pub fn queue(&self, due: usize, running: usize) {
        self.queue_depth.set(i64::try_from(due).unwrap_or(i64::MAX));
        self.reconciles_in_flight
            .set(i64::try_from(running).unwrap_or(i64::MAX));
    }

    /// Counts a call of one of Google's endpoints, and how long the limits held it back; `code` is the HTTP status or the kind of failure.
    pub fn upstream(&self, endpoint: &'static str, code: &'static str, took: Duration, waited: Duration) {
        self.upstreams.called(endpoint, code, took, waited);
    }

    /// What a watch of `resource` tells; one for each watch.
    pub fn watch(&self, resource: &'static str) -> WatchMetrics {
        self.watches.of(resource)
    }

    /// Keeps the state of a request as it is at `now`; none leaves what is known.
    pub fn state(&self, key: &ObjectKey, state: Option<RequestState>, now: Timestamp) {
        let Some(state) = state else { return };
        let expired = self.requests().put(key, state, now);
        self.served_expired.inc_by(expired);
    }

    /// Drops a request that was deleted.
    pub fn forget(&self, key: &ObjectKey, now: Timestamp) {
        let expired = self.requests().drop_one(key, now);
        self.served_expired.inc_by(expired);
    }

    /// Drops every request of `scope`, a namespace or all where empty, that `alive` does not hold.
    pub fn keep_only(&self, scope: &str, alive: &HashSet<ObjectKey>, now: Timestamp) {
        let expired = self.requests().keep_only(scope, alive, now);
        self.served_expired.inc_by(expired);
    }

    /// All metrics as text, as they are at `now`.
    ///
    /// # Errors
    /// Formatting failed, which writing to a string does not.
    pub fn encode(&self, format: Format, now: Timestamp) -> Result<String, std::fmt::Error> {
        // Held to the end: of two scrapes at once none sees the gauges half set.
        let mut requests = self.requests();
        self.served_expired.inc_by(requests.count_expired(now));
        requests.tell(now);
        if let Some(loads) = self.loads.get() {
            self.upstreams.tell(&(loads.0)());
        }
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        requests.write_remaining(&mut text, now);
        encode_eof(&mut text)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Text => exposition::as_text(&text),
        })
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
