//! Validates and authorizes: what the planner decides on, and what is said of it.

use jiff::Timestamp;

use super::outcome::{CurrentToken, Failure, Outcome, Reconciled};
use super::plan::{Facts, is_whole};
use super::snapshot::Snapshot;
use super::status::reported_since;
use crate::api::v1alpha1::GrantRef;
use crate::classify::{Classify, ErrorClass};
use crate::controller::cache::Cache;
use crate::controller::cache::request_state::DeniedSince;
use crate::controller::issue::IssueError;
use crate::controller::issue::observation::Observation;
use crate::grants::policy::Denied;
use crate::grants::store::GrantStore;
use crate::request::{SourceSettings, ValidRequest, ValidateError};
use crate::schedule::backoff::{Backoff, FailedAttempt, deferral, pause_after_lost_tokens};
use crate::shard::Shard;
use crate::token::IdToken;

/// What the planner decides on.
pub(super) struct Inputs {
    pub(super) request: ValidRequest,
    /// The grant that allows it, if one does.
    pub(super) grant: Option<GrantRef>,
    pub(super) facts: Facts,
}

impl Inputs {
    /// Validates and authorizes the request, and observes its Secret in the cache.
    ///
    /// # Errors
    /// The spec is invalid.
    pub(super) fn gather(
        cache: &Cache,
        grants: &GrantStore,
        sources: &SourceSettings,
        shard: &Shard,
        snapshot: &Snapshot,
    ) -> Result<(Self, Observation), ValidateError> {
        let request = match snapshot.validate(sources, shard) {
            Ok(request) => request,
            Err(error) => {
                record_allowing_grants(cache, snapshot, Vec::new());
                return Err(error);
            }
        };
        record_allowing_grants(cache, snapshot, grants.matching(&request));
        // If the spec names no account, the current token's account is checked first, so that a revoked grant is noticed. Issuing checks
        // the account that the source returns.
        let (grant, denied) = match grants.authorize_known(&request, snapshot.account(), snapshot.now) {
            Ok(grant) => (grant, None),
            Err(denied) => (None, Some(denied)),
        };
        let secret = cache.secret(&request.target_key());
        let inputs = Self {
            facts: snapshot.facts(&request, secret.as_ref(), cache, grant.as_ref(), denied),
            request,
            grant,
        };
        Ok((inputs, Observation::Cached(secret)))
    }

    /// The valid token that the Secret holds, if no other client changed the Secret since it was seen to be whole.
    pub(super) fn current_token(
        &self,
        snapshot: &Snapshot,
        observation: &Observation,
    ) -> Option<CurrentToken> {
        let secret = observation
            .secret()
            .filter(|_| is_whole(observation, &self.facts))?;
        let token = observation.read().and_then(|read| read.token.as_ref());
        let current = CurrentToken::new(
            &self.request,
            &snapshot.status,
            secret,
            token,
            self.facts.timing,
            snapshot.now,
        )?;
        Some(match token {
            Some(token) => self.pin(current, token),
            None => current,
        })
    }

    /// `current` with the subject of `token`, which the Secret holds, if the digest proves that it is the token that Google gave.
    pub(super) fn pin(&self, current: CurrentToken, token: &IdToken) -> CurrentToken {
        match self.facts.has_digest {
            true => current.pinned(token),
            false => current,
        }
    }

    /// The outcome of `error`. A failed attempt is counted in the request's state.
    pub(super) fn failed(
        &self,
        cache: &Cache,
        snapshot: &Snapshot,
        error: &IssueError,
        token: Option<CurrentToken>,
        now: Timestamp,
    ) -> Outcome {
        let expires = token.as_ref().and_then(CurrentToken::expiry);
        let remaining = token.as_ref().and_then(|token| token.remaining(now));
        if let Some(by) = error.deferred_for() {
            let delay = deferral(by, remaining, &self.request.uid, now);
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
                Outcome::Failed(Failure::denied(denied, since, token, now))
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
                    is_googles: error.is_googles(),
                };
                let previous = self.facts.backoff.as_ref();
                let key = snapshot.backoff_key(self.grant.as_ref());
                let backoff = Backoff::next(previous, attempt, key, snapshot.uid(), now);
                let failure = Failure::attempt(&backoff, token, now);
                cache.update(&snapshot.key, snapshot.uid(), |state| {
                    state.backoff = Some(Box::new(backoff));
                });
                Outcome::Failed(failure)
            }
            error => Outcome::Failed(Failure::of(error, token)),
        }
    }

    /// What the reconcile found out, for the status.
    pub(super) fn reconciled(self, outcome: Outcome) -> Reconciled {
        Reconciled {
            outcome,
            source: Some(self.request.token.source.name()),
            grant: self.grant,
            // Said again until the status could be written.
            handled_renew: self.facts.handled_renew,
        }
    }
}

/// Remembers which grants allow the request, for the counts in their status.
fn record_allowing_grants(cache: &Cache, snapshot: &Snapshot, grants: Vec<String>) {
    if snapshot.state.allowing_grants.as_deref() != Some(&*grants) {
        cache.record_allowing_grants(&snapshot.key, snapshot.uid(), &grants);
    }
}
