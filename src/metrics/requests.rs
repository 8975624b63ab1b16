//! What a scrape tells of the requests: counts by namespace, how fresh their tokens are, and on demand each one.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::exposition::gauge_histogram;
use crate::api::ObjectKey;
use crate::api::conditions::{READY, RECONCILING, RENEWAL_FAILING, STALLED};
use crate::api::v1alpha1::IdTokenRequestStatus;

/// How late a renewal may be before it is told as overdue: what a busy queue and a first repetition take.
const OVERDUE_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// Upper ends of the buckets of the remaining time, in seconds. Tokens that have ended are in the first.
const REMAINING: [f64; 9] = [
    0.0, 60.0, 300.0, 900.0, 1800.0, 2700.0, 3600.0, 14_400.0, 43_200.0,
];

/// What is told of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestState {
    ready: bool,
    reason: String,
    /// Types of the other conditions that are True, and their reasons.
    conditions: Vec<(&'static str, String)>,
    failing_since: Option<Timestamp>,
    suspended: bool,
    expires: Option<Timestamp>,
    renews: Option<Timestamp>,
}

impl RequestState {
    /// From a status that has a Ready condition; none where it has none yet. `suspended` is `spec.suspend`: nobody then waits for a
    /// renewal.
    pub fn new(status: &IdTokenRequestStatus, suspended: bool) -> Option<Self> {
        let is_true = |type_: &'static str| {
            status
                .condition(type_)
                .filter(|condition| condition.status == "True")
                .map(|condition| (type_, condition.reason.clone()))
        };
        let ready = status.condition(READY)?;
        let failing = status
            .condition(RENEWAL_FAILING)
            .filter(|condition| condition.status == "True");
        Some(Self {
            ready: ready.status == "True",
            reason: ready.reason.clone(),
            conditions: [RENEWAL_FAILING, RECONCILING, STALLED]
                .into_iter()
                .filter_map(is_true)
                .collect(),
            failing_since: failing.map(|condition| condition.last_transition_time.0),
            suspended,
            expires: status
                .token
                .as_ref()
                .and_then(|token| token.expiration_time.as_ref())
                .map(|time| time.0),
            renews: status.renewal_time.as_ref().map(|time| time.0),
        })
    }

    /// The end of a token that is to be followed by another.
    fn awaited(&self) -> Option<Timestamp> {
        self.expires.filter(|_| !self.suspended)
    }

    /// The same, where the renewal is late. A token that is no more what the spec asks for has no time of renewal, and is late too.
    fn overdue(&self, now: Timestamp) -> Option<Timestamp> {
        let is_late = |renews: Timestamp| now.duration_since(renews) > OVERDUE_AFTER;
        self.awaited().filter(|_| self.renews.is_none_or(is_late))
    }
}

#[derive(Debug)]
struct Told {
    state: RequestState,
    /// Up to when its time with an expired token is counted.
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

/// The requests that this process tells of.
#[derive(Debug, Default)]
pub(super) struct Requests {
    told: HashMap<ObjectKey, Told>,
    ready: Family<ReadyLabels, Gauge>,
    conditions: Family<ConditionLabels, Gauge>,
    earliest: Family<NamespaceLabels, Gauge>,
    overdue: Family<NamespaceLabels, Gauge>,
    failing: Family<NamespaceLabels, Gauge>,
    each: Option<Each>,
}

/// Series of single requests.
#[derive(Debug, Default)]
struct Each {
    expiration: Family<RequestLabels, Gauge>,
    renewal: Family<RequestLabels, Gauge>,
    ready: Family<RequestLabels, Gauge>,
}

impl Requests {
    /// With series of single requests only where `per_request` asks for them.
    pub(super) fn register(registry: &mut Registry, per_request: bool) -> Self {
        let all = Self {
            each: per_request.then(Each::default),
            ..Self::default()
        };
        let help = "IdTokenRequests, by state of the Ready condition";
        registry.register("requests", help, all.ready.clone());
        let help = "IdTokenRequests whose condition of this type is True, Ready aside";
        registry.register("request_conditions", help, all.conditions.clone());
        let help = "Unix time at which the first of a namespace's tokens expires, those of suspended requests aside; \
                    it lies in the past where one has expired";
        registry.register(
            "earliest_expiration_timestamp_seconds",
            help,
            all.earliest.clone(),
        );
        let help =
            "The same of those tokens alone whose renewal is more than a minute late; absent where none is";
        registry.register(
            "earliest_overdue_expiration_timestamp_seconds",
            help,
            all.overdue.clone(),
        );
        let help = "Unix time since when the request that fails for the longest time has the condition RenewalFailing; \
                    absent where none has";
        registry.register(
            "earliest_renewal_failure_timestamp_seconds",
            help,
            all.failing.clone(),
        );
        if let Some(each) = &all.each {
            let help = "Unix time at which the request's token expires";
            registry.register(
                "request_expiration_timestamp_seconds",
                help,
                each.expiration.clone(),
            );
            let help = "Unix time at which the request's token is renewed";
            registry.register("request_renewal_timestamp_seconds", help, each.renewal.clone());
            let help = "Whether the request's Ready condition is True";
            registry.register("request_ready", help, each.ready.clone());
        }
        all
    }

    /// Takes in the state of a request at `now`. Returns the seconds since it was last looked at in which its token had expired.
    pub(super) fn put(&mut self, key: &ObjectKey, state: RequestState, now: Timestamp) -> f64 {
        let counted = now;
        let before = self.told.insert(key.clone(), Told { state, counted });
        before.map_or(0.0, |mut told| told.expired(now))
    }

    /// Drops a request. Returns the seconds as [`Self::put`] does.
    pub(super) fn drop_one(&mut self, key: &ObjectKey, now: Timestamp) -> f64 {
        self.told.remove(key).map_or(0.0, |mut told| told.expired(now))
    }

    /// Drops every request of `scope`, a namespace or all where empty, that `alive` does not hold. Returns the seconds as
    /// [`Self::put`] does.
    pub(super) fn keep_only(&mut self, scope: &str, alive: &HashSet<ObjectKey>, now: Timestamp) -> f64 {
        let gone = |key: &ObjectKey, _: &mut Told| key.is_in(scope) && !alive.contains(key);
        self.told
            .extract_if(gone)
            .map(|(_, mut told)| told.expired(now))
            .sum()
    }

    /// The seconds as [`Self::put`] returns them, of all requests.
    pub(super) fn count_expired(&mut self, now: Timestamp) -> f64 {
        self.told.values_mut().map(|told| told.expired(now)).sum()
    }

    /// Sets the gauges for a scrape at `now`.
    pub(super) fn tell(&self, now: Timestamp) {
        self.ready.clear();
        self.conditions.clear();
        for family in [&self.earliest, &self.overdue, &self.failing] {
            family.clear();
        }
        if let Some(each) = &self.each {
            for family in [&each.expiration, &each.renewal, &each.ready] {
                family.clear();
            }
        }
        for (key, Told { state, .. }) in &self.told {
            let namespace = key.namespace();
            self.ready
                .get_or_create(&ReadyLabels {
                    namespace: namespace.to_owned(),
                    ready: if state.ready { "True" } else { "False" }.to_owned(),
                    reason: state.reason.clone(),
                })
                .inc();
            for (type_, reason) in &state.conditions {
                self.conditions
                    .get_or_create(&ConditionLabels {
                        namespace: namespace.to_owned(),
                        r#type: (*type_).to_owned(),
                        reason: reason.clone(),
                    })
                    .inc();
            }
            lower(&self.earliest, namespace, state.awaited());
            lower(&self.overdue, namespace, state.overdue(now));
            lower(&self.failing, namespace, state.failing_since);
            if let Some(each) = &self.each {
                each.tell(namespace, key.name(), state);
            }
        }
    }

    /// Writes what is left of each token at `now`.
    pub(super) fn write_remaining(&self, text: &mut String, now: Timestamp) {
        let left = |expires: Timestamp| expires.duration_since(now).as_secs_f64().max(0.0);
        let values: Vec<f64> = self
            .told
            .values()
            .filter_map(|told| told.state.awaited())
            .map(left)
            .collect();
        let help =
            "Time until the tokens expire, those of suspended requests aside; 0 for those that have expired";
        gauge_histogram(text, "idtoken_token_remaining_seconds", help, &REMAINING, &values);
    }
}

impl Told {
    /// The seconds up to `now` in which the token had expired and that are not counted yet.
    fn expired(&mut self, now: Timestamp) -> f64 {
        let since = std::mem::replace(&mut self.counted, now);
        let Some(expires) = self.state.awaited() else {
            return 0.0;
        };
        now.duration_since(expires.max(since)).as_secs_f64().max(0.0)
    }
}

impl Each {
    fn tell(&self, namespace: &str, name: &str, state: &RequestState) {
        let labels = RequestLabels {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        if let Some(expires) = state.expires {
            self.expiration.get_or_create(&labels).set(expires.as_second());
        }
        if let Some(renews) = state.renews {
            self.renewal.get_or_create(&labels).set(renews.as_second());
        }
        self.ready.get_or_create(&labels).set(i64::from(state.ready));
    }
}

/// Lowers a namespace's gauge to `at`.
fn lower(family: &Family<NamespaceLabels, Gauge>, namespace: &str, at: Option<Timestamp>) {
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
