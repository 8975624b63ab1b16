//! What the acts came to → the outcome.

use super::inputs::Inputs;
use super::outcome::{CurrentToken, Outcome, Reconciled};
use super::plan::Timing;
use super::snapshot::Snapshot;
use crate::api::conditions::reason;
use crate::controller::issue::{IssueCause, IssueError, Issued, Issuer};
use crate::kubernetes::error::KubeError;

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
        Err(error) => inputs.failed(cache, snapshot, &error, token, clock.now()),
    };
    let succeeded = !matches!(
        outcome,
        Outcome::Failed(_) | Outcome::Deferred { .. } | Outcome::Stale | Outcome::Gone
    );
    if succeeded && snapshot.state.backoff.is_some() {
        cache.update(&snapshot.key, snapshot.uid(), |state| state.backoff = None);
    }
    let is_denied = outcome
        .failure()
        .is_some_and(|failure| matches!(failure.reason, reason::NOT_GRANTED | reason::GRANTS_UNAVAILABLE));
    let is_known = !matches!(outcome, Outcome::Deferred { .. } | Outcome::Stale | Outcome::Gone);
    if is_known && !is_denied && snapshot.state.denied.is_some() {
        cache.update(&snapshot.key, snapshot.uid(), |state| state.denied = None);
    }
    inputs.reconciled(outcome)
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
    match inputs.failed(issuer.cache, snapshot, &error.into(), Some(token), now) {
        Outcome::Failed(mut failure) => {
            failure.old_secret_remains = true;
            Outcome::Failed(failure)
        }
        outcome => outcome,
    }
}
