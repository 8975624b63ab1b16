//! A request that this version cannot decode. The operator does nothing for it but to report it: in its status, an event and the log.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, Resource};
use tokio::time::timeout;

use crate::api::ObjectKey;
use crate::api::conditions::reason;
use crate::api::v1alpha1::{IdTokenRequest, IdTokenRequestStatus};
use crate::classify::Classify;
use crate::clock::Clock;
use crate::controller::cache::undecodable::{Undecodable, UndecodableRequests};
use crate::controller::queue::permit::Permit;
use crate::controller::reconcile::outcome::{Failure, Outcome, Reconciled};
use crate::controller::reconcile::{event, status};
use crate::kubernetes::error::{KubeError, problem};
use crate::kubernetes::events::EventRecorder;
use crate::kubernetes::status as status_api;
use crate::schedule::backoff::Retry;

/// Longest time for writing the status and the event.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);

/// What reports a request that cannot be decoded.
#[derive(Clone)]
pub(crate) struct UndecodableReconciler {
    pub(crate) client: Client,
    pub(crate) events: Arc<EventRecorder>,
    pub(crate) requests: Arc<UndecodableRequests>,
    pub(crate) clock: Clock,
}

impl UndecodableReconciler {
    /// Reports the request `key`, unless its status says all of it already. Returns the delay after which it is requeued; none without a
    /// failed write: a change of the object enqueues it.
    pub(crate) async fn reconcile(self, key: ObjectKey, mut permit: Permit) -> Option<Duration> {
        let object = self.requests.get(&key)?;
        let publish = permit.holding(self.publish(&key, &object));
        let timed_out = |_| {
            Err(KubeError::TimedOut {
                seconds: PUBLISH_TIMEOUT.as_secs(),
            })
        };
        let error = match timeout(PUBLISH_TIMEOUT, publish).await.unwrap_or_else(timed_out) {
            Ok(false) => return None,
            Ok(true) => None,
            Err(error) => Some(error),
        };
        let suffix = error
            .as_ref()
            .map(|error| format!("; the status was not written: {error}"));
        tracing::warn!(
            namespace = key.namespace(),
            name = key.name(),
            source = "Unknown",
            reason = reason::INVALID_SPEC,
            "cannot decode IdTokenRequest: {}{}",
            object.error,
            suffix.unwrap_or_default()
        );
        error.map(|error| self.backoff(&key, &object, &error))
    }

    /// Writes the status and the event. Returns whether the status was written; it is not if it is the same.
    async fn publish(&self, key: &ObjectKey, object: &Undecodable) -> Result<bool, KubeError> {
        let previous = object.status.clone().unwrap_or_default();
        let next = undecodable_status(object, self.clock.now());
        let version = object.metadata.resource_version.as_deref().unwrap_or_default();
        let written = status_api::write(&self.client, &object.metadata, version, &previous, &next).await?;
        let Some(written) = written else {
            return Ok(false);
        };
        let event = event::between(&previous, &next);
        self.requests.record_publish(key, object, written, next);
        if let Some(event) = event
            && let Err(error) = self.events.publish(&event, &object_ref(object)).await
        {
            let problem = problem(&error);
            tracing::debug!(
                namespace = key.namespace(),
                name = key.name(),
                "the event was not written: {problem}"
            );
        }
        Ok(true)
    }

    /// The delay after a status that could not be written: as for a request that can be decoded.
    fn backoff(&self, key: &ObjectKey, object: &Undecodable, error: &KubeError) -> Duration {
        let retry = Retry {
            class: error.class(),
            attempts: self.requests.record_failure(key, object),
            since_first: SignedDuration::ZERO,
            waited: None,
            retry_after: None,
            remaining: None,
        };
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        retry.delay(uid).unsigned_abs()
    }
}

/// Ready is False: what the Secret holds is not known to match a spec that cannot be decoded.
fn undecodable_status(object: &Undecodable, now: Timestamp) -> IdTokenRequestStatus {
    let message = format!(
        "this version of the operator cannot read the object, so it does nothing for it: {}; upgrade the operator, or use \
         what its own CRD allows",
        object.error
    );
    let failure = Failure {
        reason: reason::INVALID_SPEC,
        message,
        stalled: true,
        ..Failure::default()
    };
    let reconciled = Reconciled {
        outcome: Outcome::Failed(failure),
        source: None,
        grant: None,
        handled_renew: None,
    };
    let previous = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    status::next(&previous, generation, &reconciled, now)
}

fn object_ref(object: &Undecodable) -> ObjectReference {
    let metadata = &object.metadata;
    ObjectReference {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        api_version: Some(IdTokenRequest::api_version(&()).into_owned()),
        kind: Some(IdTokenRequest::kind(&()).into_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    #[test]
    fn an_undecodable_request_is_reported_once() {
        let metadata = ObjectMeta {
            generation: Some(3),
            ..ObjectMeta::default()
        };
        let unobserved = IdTokenRequestStatus {
            observed_generation: Some(-1),
            ..IdTokenRequestStatus::default()
        };
        let object = |status| Undecodable::new(metadata.clone(), Some(status), "unknown variant `Merge`");
        let status = undecodable_status(&object(unobserved), Timestamp::UNIX_EPOCH);
        assert_eq!(status.observed_generation, Some(3));
        for type_ in ["Ready", "Stalled"] {
            let found = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
            assert_eq!(found.reason, reason::INVALID_SPEC);
            assert!(found.message.contains("Merge"), "{}", found.message);
        }
        let again = undecodable_status(&object(status.clone()), Timestamp::MAX);
        assert_eq!(again, status);
    }
}
