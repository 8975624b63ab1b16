//! Counters and gauges in OpenMetrics' text format. Labels are closed lists and namespaces, never names of objects or error texts.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::api::Key;

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
struct UpstreamLabels {
    endpoint: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    namespace: String,
    ready: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamespaceLabels {
    namespace: String,
}

#[derive(Debug)]
struct State {
    ready: bool,
    reason: String,
    expires: Option<Timestamp>,
}

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    mints: Family<MintLabels, Counter>,
    reconciles: Family<ResultLabels, Counter>,
    reconcile_seconds: Histogram,
    upstream_seconds: Family<UpstreamLabels, Histogram, fn() -> Histogram>,
    upstream_wait_seconds: Histogram,
    requests: Family<RequestLabels, Gauge>,
    earliest: Family<NamespaceLabels, Gauge>,
    queue_seconds: Histogram,
    queue_depth: Gauge,
    leader: Gauge,
    reconciles_in_flight: Gauge,
    clock_skew: Gauge,
    states: Mutex<HashMap<Key, State>>,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("idtoken");
        let mints = Family::default();
        registry.register(
            "mint",
            "Attempts to get a token, by source and result",
            mints.clone(),
        );
        let reconciles = Family::default();
        registry.register(
            "reconcile",
            "Reconciles of an IdTokenRequest, by result",
            reconciles.clone(),
        );
        let reconcile_seconds = seconds();
        registry.register_with_unit(
            "reconcile_duration",
            "Time of one reconcile",
            Unit::Seconds,
            reconcile_seconds.clone(),
        );
        let upstream_seconds: Family<UpstreamLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(seconds as fn() -> Histogram);
        let help = "Time of one call of Google's endpoints, by endpoint and HTTP status or kind of failure";
        registry.register_with_unit(
            "upstream_request_duration",
            help,
            Unit::Seconds,
            upstream_seconds.clone(),
        );
        let upstream_wait_seconds = seconds();
        let help =
            "Time that a call of Google's endpoints was held back by the rate limit and the in-flight cap";
        registry.register_with_unit(
            "upstream_wait",
            help,
            Unit::Seconds,
            upstream_wait_seconds.clone(),
        );
        let requests = Family::default();
        registry.register(
            "requests",
            "IdTokenRequests, by state of the Ready condition",
            requests.clone(),
        );
        let earliest = Family::default();
        let help = "Unix time at which the first of a namespace's valid tokens expires";
        registry.register("earliest_expiration_timestamp_seconds", help, earliest.clone());
        let queue_seconds = seconds();
        let help = "Time from when a reconcile was due until it began";
        registry.register_with_unit("queue_wait", help, Unit::Seconds, queue_seconds.clone());
        let leader = Gauge::default();
        let help = "Whether this process does the work: 1 for the replica that holds the Lease, and without an election";
        registry.register("leader", help, leader.clone());
        let queue_depth = Gauge::default();
        let help = "IdTokenRequests whose reconcile is due and has not begun";
        registry.register("queue_depth", help, queue_depth.clone());
        let reconciles_in_flight = Gauge::default();
        let help = "Reconciles under way";
        registry.register("reconciles_in_flight", help, reconciles_in_flight.clone());
        let clock_skew = Gauge::default();
        let help = "Google's clock less this machine's, by the last token that was issued";
        registry.register_with_unit("clock_skew", help, Unit::Seconds, clock_skew.clone());
        Self {
            registry,
            queue_seconds,
            queue_depth,
            leader,
            reconciles_in_flight,
            mints,
            reconciles,
            reconcile_seconds,
            upstream_seconds,
            upstream_wait_seconds,
            requests,
            earliest,
            clock_skew,
            states: Mutex::default(),
        }
    }
}

impl Metrics {
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

    /// Counts a reconcile.
    pub fn reconciled(&self, result: &str, took: Duration) {
        self.reconciles
            .get_or_create(&ResultLabels {
                result: result.into(),
            })
            .inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// Whether this process does the work from now on. One that does not says nothing of requests.
    pub fn lead(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.keep_only("", &HashSet::new());
        }
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
    pub fn upstream(&self, endpoint: &str, code: String, took: Duration, waited: Duration) {
        self.upstream_wait_seconds.observe(waited.as_secs_f64());
        let labels = UpstreamLabels {
            endpoint: endpoint.into(),
            code,
        };
        self.upstream_seconds
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Keeps the state of a request: whether it is ready and why, and when its valid token expires.
    pub fn state(&self, key: &Key, ready: Option<(bool, &str)>, expires: Option<Timestamp>) {
        let Some((ready, reason)) = ready else { return };
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.insert(
            key.clone(),
            State {
                ready,
                reason: reason.to_owned(),
                expires,
            },
        );
    }

    /// Drops a request that was deleted.
    pub fn forget(&self, key: &Key) {
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }

    /// Drops every request of `scope`, a namespace or all where empty, that `alive` does not hold.
    pub fn keep_only(&self, scope: &str, alive: &HashSet<Key>) {
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, _| (!scope.is_empty() && key.0 != scope) || alive.contains(key));
    }

    /// All metrics as text, <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
    ///
    /// # Errors
    /// Formatting failed, which writing to a string does not.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        self.requests.clear();
        self.earliest.clear();
        for ((namespace, _), state) in states.iter() {
            let ready = if state.ready { "True" } else { "False" }.to_owned();
            let labels = RequestLabels {
                namespace: namespace.clone(),
                ready,
                reason: state.reason.clone(),
            };
            self.requests.get_or_create(&labels).inc();
            if let Some(expires) = state.expires {
                let gauge = self.earliest.get_or_create(&NamespaceLabels {
                    namespace: namespace.clone(),
                });
                let before = gauge.get();
                gauge.set(if before == 0 {
                    expires.as_second()
                } else {
                    before.min(expires.as_second())
                });
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_counted_by_namespace_and_forgotten() {
        let metrics = Metrics::default();
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        metrics.state(&key("a"), Some((true, "Issued")), at(2000));
        metrics.state(&key("b"), Some((true, "Issued")), at(1000));
        metrics.state(&key("c"), Some((false, "NotGranted")), None);
        let text = metrics.encode().unwrap();
        assert!(
            text.contains(r#"idtoken_requests{namespace="shop",ready="True",reason="Issued"} 2"#),
            "{text}"
        );
        assert!(
            text.contains(r#"idtoken_earliest_expiration_timestamp_seconds{namespace="shop"} 1000"#),
            "{text}"
        );
        metrics.forget(&key("b"));
        let text = metrics.encode().unwrap();
        assert!(
            text.contains(r#"idtoken_earliest_expiration_timestamp_seconds{namespace="shop"} 2000"#),
            "{text}"
        );
    }
}
