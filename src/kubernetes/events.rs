//! Writes events. They are hints for people: status, log and metrics do not depend on them. Each namespace has a budget of events, since
//! thousands of requests can change at once and an event costs the API server as much as a Secret. kube's recorder keeps all events of the
//! last minutes and scans them for each new one; this one keeps only warnings, and a bounded number of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event as Object, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::runtime::events::{Event, EventType};
use kube::{Client, Resource};
use serde_json::json;

use crate::api::FIELD_MANAGER;
use crate::api::v1alpha1::IdTokenRequest;
use crate::clock::Clock;
use crate::fair_share::may_take;
use crate::kubernetes::answer::text;
use crate::metrics::Metrics;
use crate::sync::lock;
use crate::text::printable;

/// How long after its last occurrence a warning is counted on the event of the first one
/// (<https://github.com/kubernetes/enhancements/blob/master/keps/sig-instrumentation/383-new-event-api-ga-graduation/README.md>).
const SERIES: SignedDuration = SignedDuration::from_mins(6);
/// Maximum number of tracked warnings. Each occurrence of another warning is an event of its own.
const MAX_TRACKED: usize = 512;
/// Events of one namespace.
const PER_NAMESPACE: Rate = Rate {
    burst: 50.0,
    per_second: 1.0,
};
/// Events of all namespaces.
const TOTAL: Rate = Rate {
    burst: 100.0,
    per_second: 10.0,
};
/// Number of namespaces at which those with a full bucket are dropped.
const MAX_NAMESPACES: usize = 1024;

/// UID of the object of a warning, and the reason.
type Subject = (String, String);

/// A warning that was written as an event.
#[derive(Clone, Debug)]
struct EmittedWarning {
    /// Name of the event.
    event: String,
    namespace: String,
    count: i32,
    last: Timestamp,
}

/// The size of a token bucket, and how fast it refills.
#[derive(Debug)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// A token bucket: its tokens at a time.
#[derive(Clone, Copy, Debug)]
struct TokenBucket {
    tokens: f64,
    at: Timestamp,
}

/// How many more events each namespace may have, and all of them together. A bucket that is absent is full. Namespaces that have many leave
/// some of the total to the others.
#[derive(Debug, Default)]
struct EventBudget {
    namespaces: HashMap<String, TokenBucket>,
    total: Option<TokenBucket>,
}

/// Writes events as this operator.
pub struct EventRecorder {
    client: Client,
    instance: String,
    metrics: Arc<Metrics>,
    clock: Clock,
    budget: Mutex<EventBudget>,
    warnings: Mutex<HashMap<Subject, EmittedWarning>>,
}

impl EventRecorder {
    /// A recorder of events. `instance` names this process among its replicas.
    pub fn new(client: Client, instance: Option<String>, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self {
            client,
            instance: instance.unwrap_or_else(|| FIELD_MANAGER.to_owned()),
            metrics,
            clock,
            budget: Mutex::default(),
            warnings: Mutex::default(),
        }
    }

    /// Writes `event` about `regarding`. Drops and counts it if the budget is spent.
    ///
    /// # Errors
    /// The API server rejected the call or did not respond.
    pub async fn publish(&self, event: &Event, regarding: &ObjectReference) -> Result<(), kube::Error> {
        let now = self.clock.now();
        let subject = (event.type_ == EventType::Warning)
            .then(|| (regarding.uid.clone().unwrap_or_default(), event.reason.clone()));
        let namespace = regarding.namespace.as_deref().unwrap_or("default");
        let allowed = lock(&self.budget).take(namespace, now);
        if !allowed {
            self.metrics.count_dropped_event();
            return Ok(());
        }
        let calls = Request::new(Object::url_path(&(), Some(namespace)));
        let emitted = subject
            .as_ref()
            .and_then(|subject| bump_series(&mut self.warnings(), subject, now));
        if let Some(warning) = emitted {
            let series = EventSeries {
                count: warning.count,
                last_observed_time: MicroTime(now),
            };
            let patch = Patch::Merge(json!({ "series": series }));
            let call = calls.patch(&warning.event, &PatchParams::default(), &patch);
            match self.send(call).await {
                // The API server deletes events after an hour, and a user can delete them sooner.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                sent => return sent,
            }
        }
        let object = self.object(event, regarding, now);
        let name = object.metadata.name.clone().unwrap_or_default();
        let body = serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?;
        self.send(calls.create(&PostParams::default(), body)).await?;
        if let Some(subject) = subject {
            let warning = EmittedWarning {
                event: name,
                namespace: namespace.to_owned(),
                count: 1,
                last: now,
            };
            track(&mut self.warnings(), subject, warning);
        }
        Ok(())
    }

    fn warnings(&self) -> MutexGuard<'_, HashMap<Subject, EmittedWarning>> {
        lock(&self.warnings)
    }

    /// Sends a call whose response is not used.
    async fn send(
        &self,
        call: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<(), kube::Error> {
        let call = call.map_err(kube::Error::BuildRequest)?;
        text(&self.client, call).await.map(drop)
    }

    /// The event in the form that the API server requires
    /// (<https://kubernetes.io/docs/reference/using-api/deprecation-guide/#event-v125>).
    fn object(&self, event: &Event, regarding: &ObjectReference, now: Timestamp) -> Object {
        let name = regarding.name.as_deref().unwrap_or(FIELD_MANAGER);
        // With the time in nanoseconds appended, the name must be a DNS subdomain of at most 253 characters.
        let name = name[..name.floor_char_boundary(230)].trim_end_matches(['-', '.']);
        Object {
            action: Some(event.action.clone()),
            event_time: Some(MicroTime(now)),
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(regarding.namespace.as_deref().unwrap_or("default").to_owned()),
                ..ObjectMeta::default()
            },
            note: event.note.clone(),
            reason: Some(event.reason.clone()),
            regarding: Some(regarding.clone()),
            reporting_controller: Some(FIELD_MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(match event.type_ {
                EventType::Normal => "Normal".to_owned(),
                EventType::Warning => "Warning".to_owned(),
            }),
            ..Object::default()
        }
    }
}

impl TokenBucket {
    /// The tokens at `now`.
    fn refilled(self, rate: &Rate, now: Timestamp) -> f64 {
        let elapsed = now.duration_since(self.at).as_secs_f64().max(0.0);
        (self.tokens + elapsed * rate.per_second).min(rate.burst)
    }
}

impl EventBudget {
    /// Takes a token for an event of `namespace`. Returns whether there was one.
    fn take(&mut self, namespace: &str, now: Timestamp) -> bool {
        if self.namespaces.len() >= MAX_NAMESPACES {
            self.namespaces
                .retain(|_, bucket| bucket.refilled(&PER_NAMESPACE, now) < PER_NAMESPACE.burst);
        }
        let total = self
            .total
            .map_or(TOTAL.burst, |bucket| bucket.refilled(&TOTAL, now));
        let own = self.namespaces.get(namespace);
        let own = own.map_or(PER_NAMESPACE.burst, |bucket| bucket.refilled(&PER_NAMESPACE, now));
        // Whole events: what a namespace has spent of its burst is what it holds of the total.
        let (spent, left) = ((PER_NAMESPACE.burst - own) as usize, total as usize);
        let allowed = own >= 1.0 && may_take(spent, left);
        let spent = if allowed { 1.0 } else { 0.0 };
        let bucket = |tokens: f64| TokenBucket {
            tokens: tokens - spent,
            at: now,
        };
        // Also if nothing is spent: after the clock was set back, the buckets refill from the new time on.
        self.total = Some(bucket(total));
        self.namespaces.insert(namespace.to_owned(), bucket(own));
        allowed
    }
}

/// Counts another occurrence of a tracked warning, and returns it; none if its last occurrence is too long ago.
fn bump_series(
    warnings: &mut HashMap<Subject, EmittedWarning>,
    subject: &Subject,
    now: Timestamp,
) -> Option<EmittedWarning> {
    let warning = warnings.get_mut(subject)?;
    if now.duration_since(warning.last) > SERIES {
        warnings.remove(subject);
        return None;
    }
    warning.count = warning.count.saturating_add(1);
    warning.last = now;
    Some(warning.clone())
}

/// Tracks the first occurrence of a warning, unless too many are tracked, of all namespaces or of its own.
fn track(warnings: &mut HashMap<Subject, EmittedWarning>, subject: Subject, warning: EmittedWarning) {
    let has_room = |warnings: &HashMap<_, EmittedWarning>| {
        let own = warnings
            .values()
            .filter(|other| other.namespace == warning.namespace);
        may_take(own.count(), MAX_TRACKED - warnings.len())
    };
    if !has_room(warnings) {
        warnings.retain(|_, other| warning.last.duration_since(other.last) <= SERIES);
    }
    if has_room(warnings) {
        warnings.insert(subject, warning);
    }
}

/// A reference to the IdTokenRequest with this metadata, for an event about it.
pub fn request_ref(metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(IdTokenRequest::api_version(&()).into_owned()),
        kind: Some(IdTokenRequest::kind(&()).into_owned()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// An event that reports a problem.
pub fn warning(reason: &str, note: &str) -> Event {
    event(EventType::Warning, reason, note)
}

/// An event that reports progress.
pub fn normal(reason: &str, note: &str) -> Event {
    event(EventType::Normal, reason, note)
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    // The API server accepts 1,024 bytes.
    let mut note = printable(note, 1024);
    note.truncate(note.floor_char_boundary(1024));
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Issue".to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn first(namespace: &str, event: &str, seconds: i64) -> EmittedWarning {
        EmittedWarning {
            event: event.to_owned(),
            namespace: namespace.to_owned(),
            count: 1,
            last: at(seconds),
        }
    }

    fn subject(uid: usize) -> Subject {
        (uid.to_string(), "NotGranted".to_owned())
    }

    #[test]
    fn notes_are_escaped_and_bounded() {
        for text in [
            "a\u{1b}[2J\u{9b}b\u{202e}\nc",
            &"\u{2066}ü".repeat(2000),
            &"x".repeat(5000),
        ] {
            let note = warning("Reason", text).note.unwrap();
            assert!(note.len() <= 1024);
            assert!(
                !note.contains(|c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2066}')),
                "{note}"
            );
        }
    }

    #[test]
    fn a_namespace_has_a_burst_and_then_a_rate() {
        let mut budget = EventBudget::default();
        let took = |budget: &mut EventBudget, namespace: &str, seconds| {
            (0..1000).filter(|_| budget.take(namespace, at(seconds))).count()
        };
        assert_eq!(took(&mut budget, "shop", 0), 50);
        assert_eq!(
            took(&mut budget, "bank", 0),
            40,
            "the budget of one namespace is not another's, but for what is left to others"
        );
        assert_eq!(
            took(&mut budget, "zoo", 0),
            8,
            "two namespaces do not spend the total"
        );
        assert_eq!(took(&mut budget, "pub", 0), 1);
        assert_eq!(took(&mut budget, "shop", 7), 7);
        assert_eq!(took(&mut budget, "shop", 1), 0, "a clock that was set back");
        assert_eq!(took(&mut budget, "shop", 3), 2);
        assert_eq!(took(&mut budget, "shop", 100_000), 50);
        for number in 0..2 * MAX_NAMESPACES {
            assert!(budget.take(&number.to_string(), at(200_000 + number as i64)));
        }
        assert!(budget.namespaces.len() <= MAX_NAMESPACES);
    }

    #[test]
    fn a_repeated_warning_is_counted_for_six_minutes_after_the_last() {
        let mut warnings = HashMap::new();
        assert!(bump_series(&mut warnings, &subject(1), at(0)).is_none());
        track(&mut warnings, subject(1), first("shop", "a.1", 0));
        for (seconds, count) in [(10, 2), (370, 3)] {
            let warning = bump_series(&mut warnings, &subject(1), at(seconds)).unwrap();
            assert_eq!((warning.event.as_str(), warning.count), ("a.1", count));
        }
        assert!(bump_series(&mut warnings, &subject(2), at(370)).is_none());
        assert!(bump_series(&mut warnings, &subject(1), at(731)).is_none());
        assert!(warnings.is_empty());
    }

    #[test]
    fn the_number_of_tracked_warnings_is_bounded() {
        let mut warnings = HashMap::new();
        for uid in 0..2 * MAX_TRACKED {
            track(&mut warnings, subject(uid), first("shop", "e", 0));
        }
        let of_one = warnings.len();
        assert!((400..=MAX_TRACKED * 4 / 5).contains(&of_one), "{of_one}");
        track(&mut warnings, subject(5555), first("bank", "e", 0));
        assert_eq!(warnings.len(), of_one + 1, "another namespace's is tracked");
        for uid in 10_000..10_000 + 2 * MAX_TRACKED {
            track(&mut warnings, subject(uid), first(&uid.to_string(), "e", 0));
        }
        assert_eq!(warnings.len(), MAX_TRACKED);
        // Series that have ended make room.
        track(&mut warnings, subject(7777), first("shop", "e", 400));
        assert_eq!(warnings.len(), 1);
    }
}
