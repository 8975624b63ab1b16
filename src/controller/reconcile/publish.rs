//! The one publisher: writes the status and the event, logs, counts, and says when to requeue.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::outcome::{Outcome, Reconciled};
use super::snapshot::Snapshot;
use super::{event, log, status};
use crate::api::conditions::reason;
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::classify::Classify;
use crate::controller::cache::request_state::WrittenStatus;
use crate::controller::context::Context;
use crate::controller::queue::permit::Permit;
use crate::kubernetes::error::KubeError;
use crate::kubernetes::events::request_ref;
use crate::kubernetes::status as status_api;
use crate::metrics;
use crate::schedule::backoff::Retry;

/// Longest time for writing the status, and for writing the event.
const STATUS_TIMEOUT: Duration = Duration::from_secs(20);
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for publishing, without the wait for a permit.
pub(crate) const PUBLISH_TIMEOUT: Duration = STATUS_TIMEOUT.saturating_add(EVENT_TIMEOUT);

/// Publishes the outcome of the reconcile. Returns the delay until the next reconcile, if not on a change only.
pub(super) async fn publish(
    ctx: &Context,
    snapshot: &Snapshot,
    reconciled: &Reconciled,
    permit: &mut Permit,
    started: tokio::time::Instant,
) -> Option<Duration> {
    let (outcome, key) = (&reconciled.outcome, &snapshot.key);
    // Nothing can be written in a namespace that is terminating.
    if ctx.cache.is_terminating(key.namespace()) {
        return None;
    }
    let now = ctx.clock.now();
    let requeue = outcome.next(now);
    if matches!(outcome, Outcome::Stale) {
        return requeue.map(|at| until(at, now));
    }
    let next = status::next(&snapshot.status, snapshot.generation(), reconciled, now);
    let elapsed = || ctx.clock.monotonic().saturating_duration_since(started);
    count(ctx, snapshot, outcome, &next, now, elapsed());
    let is_deferred = matches!(outcome, Outcome::Deferred { .. });
    if is_deferred && status::still_accurate(&snapshot.status, snapshot.generation(), outcome) {
        return requeue.map(|at| until(at, now));
    }
    let published = permit.holding(Box::pin(write(ctx, snapshot, &next))).await;
    log::log(key, reconciled, &published, requeue, elapsed());
    let requeue = match published {
        Ok(_) => requeue,
        Err(error) => {
            let again = now + retry_of_status(ctx, snapshot, &error);
            Some(requeue.map_or(again, |requeue| requeue.min(again)))
        }
    };
    requeue.map(|at| until(at, ctx.clock.now()))
}

/// Counts the reconcile, and shows the request's state in the metrics.
fn count(
    ctx: &Context,
    snapshot: &Snapshot,
    outcome: &Outcome,
    next: &IdTokenRequestStatus,
    now: Timestamp,
    elapsed: Duration,
) {
    let reason = outcome
        .failure()
        .map_or(reason::RECONCILED, |failure| failure.reason);
    ctx.metrics.count_reconcile(reason, elapsed);
    let spec = snapshot.object.as_ref().ok().map(|object| &object.spec);
    let suspended = spec.and_then(|spec| spec.suspend).unwrap_or_default();
    ctx.metrics
        .set_request(&snapshot.key, metrics::RequestState::new(next, suspended), now);
    // Checked after that: a watch that sees the deletion later removes the request from the metrics itself.
    if !ctx.cache.is_current(&snapshot.key, snapshot.uid()) {
        ctx.metrics.remove_request(&snapshot.key, now);
    }
}

/// Writes the status and the event. Returns whether there was anything to write.
async fn write(ctx: &Context, snapshot: &Snapshot, next: &IdTokenRequestStatus) -> Result<bool, KubeError> {
    let (key, uid) = (&snapshot.key, snapshot.uid());
    // The request was deleted or recreated meanwhile; do not write this status to its successor.
    if !ctx.cache.is_current(key, uid) {
        return Ok(false);
    }
    let meta = snapshot.metadata();
    let version = &snapshot.resource_version;
    let write = status_api::write(&ctx.client, meta, version, &snapshot.status, next);
    let resource = "idtokenrequests/status";
    let written = KubeError::within(STATUS_TIMEOUT, "patch", resource, key.namespace(), write).await??;
    let Some(written) = written else {
        return Ok(false);
    };
    let written = WrittenStatus::new(written, next);
    ctx.cache.update(key, uid, |state| {
        let recorded = next.token.as_ref().and_then(|token| token.digest.as_deref());
        if state.unrecorded_digest.as_deref() == recorded {
            state.unrecorded_digest = None;
        }
        state.status = Some(written);
        state.failed_publishes = 0;
    });
    let Some(event) = event::between(&snapshot.status, next) else {
        return Ok(true);
    };
    let request = request_ref(meta);
    let publish = ctx.events.publish(&event, &request);
    let published = KubeError::within(EVENT_TIMEOUT, "create", "events", key.namespace(), publish).await;
    let failed = |error| KubeError::new("create", "events", key.namespace(), &error);
    if let Err(error) = published.and_then(|published| published.map_err(failed)) {
        tracing::warn!(
            namespace = key.namespace(),
            name = key.name(),
            "the event was not written: {error}"
        );
    }
    Ok(true)
}

/// The delay after a status that was not written.
fn retry_of_status(ctx: &Context, snapshot: &Snapshot, error: &KubeError) -> SignedDuration {
    let attempts = snapshot.state.failed_publishes.saturating_add(1);
    ctx.cache.update(&snapshot.key, snapshot.uid(), |state| {
        state.failed_publishes = attempts;
    });
    let retry = Retry {
        class: error.class(),
        attempts,
        since_first: SignedDuration::ZERO,
        waited: None,
        retry_after: None,
        remaining: None,
    };
    retry.delay(snapshot.uid())
}

/// The time from `now` until `at`.
fn until(at: Timestamp, now: Timestamp) -> Duration {
    let wait = at.duration_since(now).max(SignedDuration::ZERO);
    // A timer may fire a millisecond early, and the reconcile would then find nothing to do.
    wait.unsigned_abs() + Duration::from_millis(2)
}
