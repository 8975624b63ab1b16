//! Metrics of the requests: counts by namespace, how fresh their tokens are, and on demand series of each request.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroI64;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::exposition::gauge_histogram;
use crate::api::ObjectKey;
use crate::api::conditions::{READY, RECONCILING, RENEWAL_FAILING, STALLED};
use crate::api::v1alpha1::IdTokenRequestStatus;

/// How late a renewal may be before it counts as overdue: a busy queue and a first retry take about this long.
const OVERDUE_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// Upper bounds of the buckets of the remaining lifetime, in seconds. Expired tokens are in the first bucket.
const REMAINING: [f64; 9] = [
    0.0, 60.0, 300.0, 900.0, 1800.0, 2700.0, 3600.0, 14_400.0, 43_200.0,
];

/// What the metrics need of one request, in little memory.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestState {
    ready: bool,
    suspended: bool,
    reason: Box<str>,
    /// Types of the other conditions that are True, and their reasons.
    conditions: Box<[(&'static str, Box<str>)]>,
    failing_since: Option<Second>,
    expires: Option<Second>,
    renews: Option<Second>,
}

/// A time as Unix time, in whole seconds. Zero is none: nothing of ours is that old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Second(NonZeroI64);

impl Second {
    fn new(at: Timestamp) -> Option<Self> {
        NonZeroI64::new(at.as_second()).map(Self)
    }

    fn timestamp(self) -> Option<Timestamp> {
        Timestamp::from_second(self.0.get()).ok()
    }
}

impl RequestState {
    /// From a status; none if it has no Ready condition yet. `suspended` is `spec.suspend`: no renewal is due then.
    pub fn new(status: &IdTokenRequestStatus, suspended: bool) -> Option<Self> {
        let is_true = |type_: &'static str| {
            status
                .condition(type_)
                .filter(|condition| condition.status == "True")
                .map(|condition| (type_, condition.reason.as_str().into()))
        };
        let ready = status.condition(READY)?;
        let failing = status
            .condition(RENEWAL_FAILING)
            .filter(|condition| condition.status == "True");
        Some(Self {
            ready: ready.status == "True",
            reason: ready.reason.as_str().into(),
            conditions: [RENEWAL_FAILING, RECONCILING, STALLED]
                .into_iter()
                .filter_map(is_true)
                .collect(),
            failing_since: failing.and_then(|condition| Second::new(condition.last_transition_time.0)),
            suspended,
            expires: status
                .token
                .as_ref()
                .and_then(|token| token.expiration_time.as_ref())
                .and_then(|time| Second::new(time.0)),
            renews: status.renewal_time.as_ref().and_then(|time| Second::new(time.0)),
        })
    }

    /// When the token expires; none if the request is suspended, since the token is not to be renewed then.
    fn expected_expiry(&self) -> Option<Timestamp> {
        self.expires.filter(|_| !self.suspended)?.timestamp()
    }

    /// As [`Self::expected_expiry`], if the renewal is late. A token that does not match the spec has no renewal time, and counts as late
    /// too.
    fn overdue(&self, now: Timestamp) -> Option<Timestamp> {
        let is_late = |renews: Timestamp| now.duration_since(renews) > OVERDUE_AFTER;
        let renews = self.renews.and_then(Second::timestamp);
        self.expected_expiry().filter(|_| renews.is_none_or(is_late))
    }
}

#[derive(Debug)]
struct TrackedRequest {
    state: Arc<RequestState>,
    /// Time with an expired token is counted up to here.
    counted: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadyLabels {
    namespace: String,
    ready: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    namespace: String,
    r#type: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamespaceLabels {
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    namespace: String,
    name: String,
}

/// The requests that this process reconciles.
#[derive(Debug, Default)]
pub(super) struct Requests(HashMap<ObjectKey, TrackedRequest>);

/// A copy of the states of all requests.
pub(super) type Snapshot = Vec<(ObjectKey, Arc<RequestState>)>;

/// The series of the requests, which a scrape sets from a [`Snapshot`].
#[derive(Debug, Default)]
pub(super) struct RequestSeries {
    ready: Family<ReadyLabels, Gauge>,
    conditions: Family<ConditionLabels, Gauge>,
    earliest: Family<NamespaceLabels, Gauge>,
    overdue: Family<NamespaceLabels, Gauge>,
    failing: Family<NamespaceLabels, Gauge>,
    per_request: Option<PerRequestSeries>,
}

/// Series of single requests.
#[derive(Debug, Default)]
struct PerRequestSeries {
    expiration: Family<RequestLabels, Gauge>,
    renewal: Family<RequestLabels, Gauge>,
    ready: Family<RequestLabels, Gauge>,
}

impl Requests {
    /// Sets the state of a request at `now`. Returns the seconds since the last count in which its token was expired.
    pub(super) fn set(&mut self, key: &ObjectKey, state: RequestState, now: Timestamp) -> f64 {
        let (state, counted) = (Arc::new(state), now);
        let before = self.0.insert(key.clone(), TrackedRequest { state, counted });
        before.map_or(0.0, |mut tracked| tracked.expired(now))
    }

    /// Removes a request. Returns the seconds as [`Self::set`] does.
    pub(super) fn remove(&mut self, key: &ObjectKey, now: Timestamp) -> f64 {
        self.0.remove(key).map_or(0.0, |mut tracked| tracked.expired(now))
    }

    /// Removes each request of `scope` that `alive` does not hold; `scope` is a namespace, or empty for all. Returns the seconds as
    /// [`Self::set`] does.
    pub(super) fn retain(&mut self, scope: &str, alive: &HashSet<ObjectKey>, now: Timestamp) -> f64 {
        let gone = |key: &ObjectKey, _: &mut TrackedRequest| key.is_in(scope) && !alive.contains(key);
        self.0
            .extract_if(gone)
            .map(|(_, mut tracked)| tracked.expired(now))
            .sum()
    }

    /// The states of all requests, and the seconds as [`Self::set`] returns them, summed. A scrape works on the copy: reconciles want the
    /// lock around this.
    pub(super) fn snapshot(&mut self, now: Timestamp) -> (Snapshot, f64) {
        let mut states = Vec::with_capacity(self.0.len());
        let mut expired = 0.0;
        for (key, tracked) in &mut self.0 {
            expired += tracked.expired(now);
            states.push((key.clone(), tracked.state.clone()));
        }
        (states, expired)
    }
}

impl RequestSeries {
    /// With series of each request only if `per_request` is set.
    pub(super) fn register(registry: &mut Registry, per_request: bool) -> Self {
        let all = Self {
            per_request: per_request.then(PerRequestSeries::default),
            ..Self::default()
        };
        let help = "IdTokenRequests, by status and reason of the Ready condition";
        registry.register("requests", help, all.ready.clone());
        let help = "IdTokenRequests whose condition of this type is True, without Ready";
        registry.register("request_conditions", help, all.conditions.clone());
        let help = "Unix time at which the first token of a namespace expires, in the past if one has expired; without suspended \
                    requests";
        registry.register(
            "earliest_expiration_timestamp_seconds",
            help,
            all.earliest.clone(),
        );
        let help = "Unix time at which the first token expires whose renewal is overdue by more than a minute; absent if none is";
        registry.register(
            "earliest_overdue_expiration_timestamp_seconds",
            help,
            all.overdue.clone(),
        );
        let help = "Unix time since when the request that has failed for the longest time has the condition RenewalFailing; \
                    absent if none has";
        registry.register(
            "earliest_renewal_failure_timestamp_seconds",
            help,
            all.failing.clone(),
        );
        if let Some(per_request) = &all.per_request {
            let help = "Unix time at which the request's token expires";
            registry.register(
                "request_expiration_timestamp_seconds",
                help,
                per_request.expiration.clone(),
            );
            let help = "Unix time at which the request's token is renewed";
            registry.register(
                "request_renewal_timestamp_seconds",
                help,
                per_request.renewal.clone(),
            );
            let help = "Whether the request's Ready condition is True";
            registry.register("request_ready", help, per_request.ready.clone());
        }
        all
    }

    /// Sets the gauges for a scrape at `now`.
    pub(super) fn collect(&self, requests: &Snapshot, now: Timestamp) {
        self.ready.clear();
        self.conditions.clear();
        for family in [&self.earliest, &self.overdue, &self.failing] {
            family.clear();
        }
        if let Some(per_request) = &self.per_request {
            for family in [&per_request.expiration, &per_request.renewal, &per_request.ready] {
                family.clear();
            }
        }
        for (key, state) in requests {
            let namespace = key.namespace();
            self.ready
                .get_or_create(&ReadyLabels {
                    namespace: namespace.to_owned(),
                    ready: if state.ready { "True" } else { "False" }.to_owned(),
                    reason: state.reason.to_string(),
                })
                .inc();
            for (type_, reason) in state.conditions.iter() {
                self.conditions
                    .get_or_create(&ConditionLabels {
                        namespace: namespace.to_owned(),
                        r#type: (*type_).to_owned(),
                        reason: reason.to_string(),
                    })
                    .inc();
            }
            set_min(&self.earliest, namespace, state.expected_expiry());
            set_min(&self.overdue, namespace, state.overdue(now));
            set_min(
                &self.failing,
                namespace,
                state.failing_since.and_then(Second::timestamp),
            );
            if let Some(per_request) = &self.per_request {
                per_request.collect(namespace, key.name(), state);
            }
        }
    }
}

/// Writes the histogram of the remaining lifetime of the tokens at `now`.
pub(super) fn write_remaining(text: &mut String, requests: &Snapshot, now: Timestamp) {
    let left = |expires: Timestamp| expires.duration_since(now).as_secs_f64().max(0.0);
    let values: Vec<f64> = requests
        .iter()
        .filter_map(|(_, state)| state.expected_expiry())
        .map(left)
        .collect();
    let help = "Remaining lifetime of the tokens, 0 for expired ones; without suspended requests";
    gauge_histogram(text, "idtoken_token_remaining_seconds", help, &REMAINING, &values);
}

impl TrackedRequest {
    /// Counts the seconds up to `now` in which the token was expired and which were not counted before.
    fn expired(&mut self, now: Timestamp) -> f64 {
        let since = std::mem::replace(&mut self.counted, now);
        let Some(expires) = self.state.expected_expiry() else {
            return 0.0;
        };
        now.duration_since(expires.max(since)).as_secs_f64().max(0.0)
    }
}

impl PerRequestSeries {
    fn collect(&self, namespace: &str, name: &str, state: &RequestState) {
        let labels = RequestLabels {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        if let Some(expires) = state.expires {
            self.expiration.get_or_create(&labels).set(expires.0.get());
        }
        if let Some(renews) = state.renews {
            self.renewal.get_or_create(&labels).set(renews.0.get());
        }
        self.ready.get_or_create(&labels).set(i64::from(state.ready));
    }
}

/// Sets a namespace's gauge to `at` unless it is lower already.
fn set_min(family: &Family<NamespaceLabels, Gauge>, namespace: &str, at: Option<Timestamp>) {
    let Some(at) = at.map(Timestamp::as_second) else {
        return;
    };
    let labels = NamespaceLabels {
        namespace: namespace.to_owned(),
    };
    let before = family.get(&labels).map(|gauge| gauge.get());
    if before.is_none_or(|before| at < before) {
        family.get_or_create(&labels).set(at);
    }
}
