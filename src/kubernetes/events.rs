//! Writes events: hints for people, which status, log and metrics do not depend on. Where thousands of requests change at once, a share of
//! each namespace is written, as an event costs the API server as much as a Secret. kube's recorder remembers each for minutes and looks
//! through all of them at the next; here only warnings are remembered, and a bounded number of them.

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
use crate::metrics::Metrics;
use crate::sync::lock;

/// How long the same warning is counted on the event that told of it first
/// (<https://github.com/kubernetes/enhancements/blob/master/keps/sig-instrumentation/383-new-event-api-ga-graduation/README.md>).
const SERIES: SignedDuration = SignedDuration::from_mins(6);
/// Most warnings that are remembered for it. Those beyond are events of their own.
const MAX_REMEMBERED: usize = 512;
/// EventRecorder that a namespace gets, and that all of them get together.
const OF_A_NAMESPACE: Rate = Rate {
    at_once: 50.0,
    a_second: 1.0,
};
const OF_ALL: Rate = Rate {
    at_once: 100.0,
    a_second: 10.0,
};
/// Namespaces after which those that may have all of them again are forgotten.
const MAX_NAMESPACES: usize = 1024;

/// Whose warning it was, by UID, and its reason.
type Subject = (String, String);

/// A warning that was written.
#[derive(Clone, Debug)]
struct Told {
    event: String,
    count: i32,
    last: Timestamp,
}

/// How many events at once, and how many a second after that.
#[derive(Debug)]
struct Rate {
    at_once: f64,
    a_second: f64,
}

/// How many events were left, as of when.
#[derive(Clone, Copy, Debug)]
struct Left(f64, Timestamp);

/// What each namespace may have written, and all of them together.
#[derive(Debug, Default)]
struct Allowance {
    namespaces: HashMap<String, Left>,
    all: Option<Left>,
}

/// Writes events as this operator.
pub struct EventRecorder {
    client: Client,
    instance: String,
    metrics: Arc<Metrics>,
    allowance: Mutex<Allowance>,
    warnings: Mutex<HashMap<Subject, Told>>,
}

impl EventRecorder {
    /// `instance` names this process among its replicas.
    pub fn new(client: Client, instance: Option<String>, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            instance: instance.unwrap_or_else(|| FIELD_MANAGER.to_owned()),
            metrics,
            allowance: Mutex::default(),
            warnings: Mutex::default(),
        }
    }

    /// Writes `event` about `regarding`, unless its namespace had many a moment ago.
    ///
    /// # Errors
    /// The API server refused, or did not answer.
    pub async fn publish(&self, event: &Event, regarding: &ObjectReference) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let subject = (event.type_ == EventType::Warning)
            .then(|| (regarding.uid.clone().unwrap_or_default(), event.reason.clone()));
        let namespace = regarding.namespace.as_deref().unwrap_or("default");
        let allowed = lock(&self.allowance).take(namespace, now);
        if !allowed {
            self.metrics.count_dropped_event();
            return Ok(());
        }
        let calls = Request::new(Object::url_path(&(), Some(namespace)));
        let told = subject
            .as_ref()
            .and_then(|subject| repeated(&mut self.warnings(), subject, now));
        if let Some(told) = told {
            let series = EventSeries {
                count: told.count,
                last_observed_time: MicroTime(now),
            };
            let patch = Patch::Merge(json!({ "series": series }));
            let call = calls.patch(&told.event, &PatchParams::default(), &patch);
            match self.send(call).await {
                // EventRecorder live for an hour, unless somebody deletes them.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                sent => return sent,
            }
        }
        let object = self.object(event, regarding, now);
        let name = object.metadata.name.clone().unwrap_or_default();
        let body = serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?;
        self.send(calls.create(&PostParams::default(), body)).await?;
        if let Some(subject) = subject {
            remember(&mut self.warnings(), subject, name, now);
        }
        Ok(())
    }

    fn warnings(&self) -> MutexGuard<'_, HashMap<Subject, Told>> {
        lock(&self.warnings)
    }

    /// Of the answer nothing is wanted.
    async fn send(
        &self,
        call: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<(), kube::Error> {
        let call = call.map_err(kube::Error::BuildRequest)?;
        self.client.request_text(call).await.map(drop)
    }

    /// The event as the API server wants it
    /// (<https://kubernetes.io/docs/reference/using-api/deprecation-guide/#event-v125>).
    fn object(&self, event: &Event, regarding: &ObjectReference, now: Timestamp) -> Object {
        let name = regarding.name.as_deref().unwrap_or(FIELD_MANAGER);
        // With the time in nanoseconds it must be a DNS subdomain of 253 characters too.
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

impl Left {
    fn now(self, rate: &Rate, now: Timestamp) -> f64 {
        let since = now.duration_since(self.1).as_secs_f64().max(0.0);
        (self.0 + since * rate.a_second).min(rate.at_once)
    }
}

impl Allowance {
    /// Whether the namespace may have one more.
    fn take(&mut self, namespace: &str, now: Timestamp) -> bool {
        if self.namespaces.len() >= MAX_NAMESPACES {
            self.namespaces
                .retain(|_, left| left.now(&OF_A_NAMESPACE, now) < OF_A_NAMESPACE.at_once);
        }
        let all = self.all.map_or(OF_ALL.at_once, |left| left.now(&OF_ALL, now));
        let known = self.namespaces.get(namespace);
        let own = known.map_or(OF_A_NAMESPACE.at_once, |left| left.now(&OF_A_NAMESPACE, now));
        let allowed = all >= 1.0 && own >= 1.0;
        let spent = if allowed { 1.0 } else { 0.0 };
        // Kept also where nothing is spent: after a clock was set back, the time counts anew.
        self.all = Some(Left(all - spent, now));
        self.namespaces
            .insert(namespace.to_owned(), Left(own - spent, now));
        allowed
    }
}

/// The warning as counted once more, where it was told a moment ago.
fn repeated(warnings: &mut HashMap<Subject, Told>, subject: &Subject, now: Timestamp) -> Option<Told> {
    let told = warnings.get_mut(subject)?;
    if now.duration_since(told.last) > SERIES {
        warnings.remove(subject);
        return None;
    }
    told.count = told.count.saturating_add(1);
    told.last = now;
    Some(told.clone())
}

fn remember(warnings: &mut HashMap<Subject, Told>, subject: Subject, event: String, now: Timestamp) {
    if warnings.len() >= MAX_REMEMBERED {
        warnings.retain(|_, told| now.duration_since(told.last) <= SERIES);
    }
    if warnings.len() < MAX_REMEMBERED {
        let told = Told {
            event,
            count: 1,
            last: now,
        };
        warnings.insert(subject, told);
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
    Event {
        type_,
        reason: reason.to_owned(),
        // The API server accepts 1,024 bytes.
        note: Some(note[..note.floor_char_boundary(1024)].to_owned()),
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

    fn subject(uid: usize) -> Subject {
        (uid.to_string(), "NotGranted".to_owned())
    }

    #[test]
    fn a_namespace_gets_many_at_once_and_then_few() {
        let mut allowance = Allowance::default();
        let took = |allowance: &mut Allowance, namespace: &str, seconds| {
            (0..1000)
                .filter(|_| allowance.take(namespace, at(seconds)))
                .count()
        };
        assert_eq!(took(&mut allowance, "shop", 0), 50);
        assert_eq!(took(&mut allowance, "bank", 0), 50, "another one's are not spent");
        assert_eq!(took(&mut allowance, "zoo", 0), 0, "all of them have had theirs");
        assert_eq!(took(&mut allowance, "shop", 7), 7);
        assert_eq!(took(&mut allowance, "shop", 1), 0, "a clock that was set back");
        assert_eq!(took(&mut allowance, "shop", 3), 2);
        assert_eq!(took(&mut allowance, "shop", 100_000), 50);
        for number in 0..2 * MAX_NAMESPACES {
            assert!(allowance.take(&number.to_string(), at(200_000 + number as i64)));
        }
        assert!(allowance.namespaces.len() <= MAX_NAMESPACES);
    }

    #[test]
    fn the_same_warning_is_counted_for_six_minutes_after_the_last() {
        let mut warnings = HashMap::new();
        assert!(repeated(&mut warnings, &subject(1), at(0)).is_none());
        remember(&mut warnings, subject(1), "a.1".to_owned(), at(0));
        for (seconds, count) in [(10, 2), (370, 3)] {
            let told = repeated(&mut warnings, &subject(1), at(seconds)).unwrap();
            assert_eq!((told.event.as_str(), told.count), ("a.1", count));
        }
        assert!(repeated(&mut warnings, &subject(2), at(370)).is_none());
        assert!(repeated(&mut warnings, &subject(1), at(731)).is_none());
        assert!(warnings.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut warnings = HashMap::new();
        for uid in 0..2 * MAX_REMEMBERED {
            remember(&mut warnings, subject(uid), "e".to_owned(), at(0));
        }
        assert_eq!(warnings.len(), MAX_REMEMBERED);
        // Those that are over make room.
        remember(&mut warnings, subject(7777), "e".to_owned(), at(400));
        assert_eq!(warnings.len(), 1);
    }
}
