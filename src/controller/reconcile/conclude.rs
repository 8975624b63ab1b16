//! What was done → the outcome.

use jiff::Timestamp;

use super::inputs::Inputs;
use super::outcome::{CurrentToken, Failure, Outcome, Reconciled};
use super::plan::Timing;
use super::snapshot::Snapshot;
use super::status::reported_since;
use crate::classify::{Classify, ErrorClass};
use crate::controller::cache::Cache;
use crate::controller::cache::request_state::{DeniedSince, HonouredRenewal};
use crate::controller::issue::{IssueCause, IssueError, Issued, Issuer};
use crate::grants::policy::Denied;
use crate::kubernetes::error::KubeError;
use crate::schedule::backoff::{Backoff, FailedAttempt, deferral, pause_after_lost_tokens};

/// What was done to the Secret.
pub(super) enum Acted {
    /// A new token was written, or the source returned the same token again.
    Issued(Issued, IssueCause),
    /// The stored token was written again.
    Repaired(Issued),
    /// Nothing.
    Nothing(Outcome),
}

/// Turns what was done into the outcome. `token` is the token that the Secret held before, if it was current. The Secret of the target's
/// former name is deleted once the new one holds a token.
pub(super) async fn conclude(
    issuer: &Issuer<'_>,
    snapshot: &Snapshot,
    mut inputs: Inputs,
    acted: Result<Acted, IssueError>,
    token: Option<CurrentToken>,
) -> Reconciled {
    let (cache, clock) = (issuer.cache, issuer.sources.clock);
    let (outcome, token) = match acted {
        Err(error) => {
            let token = token.filter(|_| !error.loses_secret());
            (Err(error), token)
        }
        Ok(Acted::Nothing(outcome)) => (Ok(outcome), None),
        Ok(Acted::Issued(issued, cause)) => {
            inputs.grant = issued.grant.clone();
            inputs
                .facts
                .handled_renew
                .clone_from(&inputs.request.renew_request);
            let is_unchanged = issued.repeats_until.is_some();
            let stored = stored(&inputs, snapshot, &issued).map(|token| {
                let token = token
                    .pinned(&issued.token)
                    .consuming(inputs.request.accept_subject.as_deref());
                match is_unchanged {
                    true => Outcome::Unchanged(token),
                    false => Outcome::Issued(token, cause),
                }
            });
            (stored, None)
        }
        Ok(Acted::Repaired(issued)) => {
            let stored = stored(&inputs, snapshot, &issued);
            let stored = stored.map(|token| inputs.pin(token, &issued.token));
            (stored.map(Outcome::Repaired), None)
        }
    };
    let outcome = match outcome {
        Ok(outcome) => delete_renamed(issuer, snapshot, &inputs, outcome).await,
        Err(error) => failed(&inputs, cache, snapshot, &error, token, clock.now()),
    };
    let is_known = !matches!(outcome, Outcome::Deferred { .. } | Outcome::Stale | Outcome::Gone);
    if is_known && outcome.failure().is_none() && snapshot.state.backoff.is_some() {
        cache.update(&snapshot.key, snapshot.uid(), |state| state.backoff = None);
    }
    if is_known && !matches!(outcome, Outcome::Denied(_)) && snapshot.state.denied.is_some() {
        cache.update(&snapshot.key, snapshot.uid(), |state| state.denied = None);
    }
    reconciled(inputs, outcome)
}

/// The token as it was stored. If the stored Secret is not what was written, a webhook changed it on the way.
fn stored(inputs: &Inputs, snapshot: &Snapshot, issued: &Issued) -> Result<CurrentToken, IssueError> {
    let timing = Timing {
        source_repeats_until: issued.repeats_until.or(inputs.facts.timing.source_repeats_until),
        issued_at: issued.issued_at,
        deferred_until: None,
    };
    let request = &inputs.request;
    CurrentToken::new(
        request,
        &snapshot.status,
        &issued.secret,
        Some(&issued.token),
        timing,
        snapshot.now,
    )
    .ok_or_else(|| {
        let name = request.target.name.clone();
        KubeError::MutatedByWebhook { name }.into()
    })
}

/// Deletes the Secret of the target's former name. If that fails, the status keeps the name.
async fn delete_renamed(
    issuer: &Issuer<'_>,
    snapshot: &Snapshot,
    inputs: &Inputs,
    outcome: Outcome,
) -> Outcome {
    let former = snapshot.status.secret.as_ref().map(|secret| &secret.name);
    if former.is_none_or(|former| *former == inputs.request.target.name) {
        return outcome;
    }
    let token = match &outcome {
        Outcome::Kept(token)
        | Outcome::Issued(token, _)
        | Outcome::Repaired(token)
        | Outcome::Unchanged(token) => token.clone(),
        _ => return outcome,
    };
    let delete = Box::pin(issuer.delete_renamed(&inputs.request, &snapshot.status));
    let Err(error) = delete.await else {
        return outcome;
    };
    let now = issuer.sources.clock.now();
    match failed(inputs, issuer.cache, snapshot, &error.into(), Some(token), now) {
        Outcome::Failed(mut failure, attempts) => {
            failure.old_secret_remains = true;
            Outcome::Failed(failure, attempts)
        }
        outcome => outcome,
    }
}

/// The outcome of `error`. A failed attempt is counted in the request's state.
pub(super) fn failed(
    inputs: &Inputs,
    cache: &Cache,
    snapshot: &Snapshot,
    error: &IssueError,
    token: Option<CurrentToken>,
    now: Timestamp,
) -> Outcome {
    let expires = token.as_ref().and_then(CurrentToken::expiry);
    let remaining = token.as_ref().and_then(|token| token.remaining(now));
    if let Some(by) = error.deferred_for() {
        let delay = deferral(by, remaining, &inputs.request.uid, now);
        let until = now.saturating_add(delay).unwrap_or(now);
        return Outcome::Deferred { token, until };
    }
    match error {
        IssueError::Gone => Outcome::Gone,
        IssueError::Outdated => Outcome::Stale,
        IssueError::Denied(denied) => {
            let since = snapshot.denied_since(denied.reason(), now);
            let generation = snapshot.generation();
            if matches!(denied, Denied::NotGranted { .. }) {
                cache.update(&snapshot.key, snapshot.uid(), |state| {
                    state.denied = Some(Box::new(DeniedSince {
                        generation,
                        at: since,
                    }));
                });
            }
            Outcome::Denied(Failure::denied(denied, since, token, now))
        }
        error if error.is_retried() => {
            let mut lost = 0;
            cache.update(&snapshot.key, snapshot.uid(), |state| lost = state.lost_tokens);
            // Only if this attempt has lost one: a dry run costs none.
            let pause = (lost > snapshot.state.lost_tokens)
                .then(|| pause_after_lost_tokens(lost, remaining))
                .flatten();
            // How long a refusal has lasted decides what is reported of it; anything else passes.
            let since = reported_since(&snapshot.status, error.reason(), snapshot.generation());
            let attempt = FailedAttempt {
                since: since.filter(|_| error.class() == ErrorClass::Rejected),
                reason: error.reason(),
                message: error.to_string(),
                class: error.class(),
                retry_after: error.retry_after().max(pause),
                needs_user_action: error.needs_user_action(),
                expires,
                is_from_google: error.is_from_google(),
            };
            let previous = inputs.facts.backoff.as_ref();
            let key = snapshot.backoff_key(inputs.grant.as_ref());
            let backoff = Backoff::next(previous, attempt, key, snapshot.uid(), now);
            let failure = Outcome::Failed(Failure::counted(&backoff, token, now), backoff.attempts);
            cache.update(&snapshot.key, snapshot.uid(), |state| {
                state.backoff = Some(Box::new(backoff));
            });
            failure
        }
        error => Outcome::Waiting(Failure::of(error, token)),
    }
}

/// What the reconcile found out, for the status.
pub(super) fn reconciled(inputs: Inputs, outcome: Outcome) -> Reconciled {
    Reconciled {
        outcome,
        source: Some(inputs.request.token.source.name()),
        grant: inputs.grant,
        // Said again until the status could be written.
        handled_renew: inputs.facts.handled_renew,
    }
}

/// Notes that the renewal was honoured that the annotation asks for, if it asks for one. An attempt that was deferred was none.
pub(super) fn note_renewal(
    cache: &Cache,
    snapshot: &Snapshot,
    inputs: &Inputs,
    issue: &Result<Issued, IssueError>,
) {
    let is_deferred = matches!(issue, Err(error) if error.deferred_for().is_some());
    let value = inputs.request.renew_request.as_deref();
    let pending = value.filter(|_| inputs.facts.requested_at.is_some() && !is_deferred);
    if let Some(value) = pending {
        cache.update(&snapshot.key, snapshot.uid(), |state| {
            state.honoured_renew = Some(Box::new(HonouredRenewal {
                value: value.into(),
                at: snapshot.now,
            }));
        });
    }
}
