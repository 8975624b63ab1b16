//! Pure: the outcome of a reconcile. The status, the event, the log line and the requeue are functions of it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Timing, due_renewal};
use crate::api::v1alpha1::{GrantRef, IdTokenRequestStatus, SecretStatus, TokenStatus};
use crate::classify::{Classify, ErrorClass};
use crate::controller::issue::IssueCause;
use crate::controller::issue::ownership::is_recorded;
use crate::grants::policy::Denied;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::request::{TokenSource, ValidRequest, ValidateError};
use crate::schedule::backoff::Backoff;
use crate::schedule::renewal::Renewal;
use crate::token::IdToken;

/// A refusal that lasts this long is shown as Stalled: by Google, by the API server, or since no grant allows the request. A permission, a
/// binding or a grant that is applied together with the request takes effect before.
pub const STALLED_AFTER: SignedDuration = SignedDuration::from_mins(10);
/// When a request is reconciled again whose grants are unknown.
const GRANTS_UNAVAILABLE: SignedDuration = SignedDuration::from_secs(30);

/// Proof that the Secret holds a valid token for the current spec (Ready=True). Made only after a write or from a Secret that is as the
/// operator left it.
#[derive(Clone, Debug)]
pub struct CurrentToken {
    /// The Secret.
    pub secret: SecretStatus,
    /// The token in it.
    pub token: TokenStatus,
    /// When it is renewed.
    pub renewal: Renewal,
    /// Whether the source returned this very token again when it was asked for another.
    pub unchanged: bool,
}

/// The outcome of a reconcile.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The Secret is as it should be.
    Kept(CurrentToken),
    /// A new token was written.
    Issued(CurrentToken, IssueCause),
    /// The stored token was written again.
    Repaired(CurrentToken),
    /// The source returned the same token again, and nothing was written.
    Unchanged(CurrentToken),
    /// The request is suspended; with the token that its Secret still holds, if there is one.
    Suspended(Option<CurrentToken>),
    /// The attempt was deferred: nothing was tried, and nothing failed.
    Deferred {
        /// The current token, if there is one.
        token: Option<CurrentToken>,
        /// When the next attempt is due.
        until: Timestamp,
    },
    /// No grant allows the request, or the grants are unknown.
    Denied(Failure),
    /// Nothing was tried: an earlier failure is waited out, or only a change of the request, a grant or the Secret helps.
    Waiting(Failure),
    /// An attempt failed; the number says how many in a row have.
    Failed(Failure, u32),
    /// Nothing was done, since what is cached may be stale.
    Stale,
    /// The request is gone, or its namespace is terminating.
    Gone,
}

/// Why the wanted state was not reached.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    /// Stable reason.
    pub reason: &'static str,
    /// What failed and what to do.
    pub message: String,
    /// Whether only a user can fix it.
    pub stalled: bool,
    /// The current token, if there is one: Ready stays True then.
    pub token: Option<CurrentToken>,
    /// When the next attempt is due, if not on a change only.
    pub retry_at: Option<Timestamp>,
    /// Whether the Secret of the name in the previous status could not be deleted, so that the status has to keep that name.
    pub old_secret_remains: bool,
}

/// What a reconcile found out, for the status.
#[derive(Clone, Debug)]
pub struct Reconciled {
    /// Its outcome.
    pub outcome: Outcome,
    /// Name of the source; none if the spec is invalid.
    pub source: Option<&'static str>,
    /// The grant that allows the request.
    pub grant: Option<GrantRef>,
    /// The renewal by annotation that was handled.
    pub handled_renew: Option<String>,
}

impl Reconciled {
    /// The spec is invalid.
    pub fn invalid(error: &ValidateError) -> Self {
        let failure = Failure {
            reason: error.reason(),
            message: error.to_string(),
            stalled: true,
            ..Failure::default()
        };
        Self {
            outcome: Outcome::Waiting(failure),
            source: None,
            grant: None,
            handled_renew: None,
        }
    }
}

impl Outcome {
    /// The current token, if there is one.
    pub fn token(&self) -> Option<&CurrentToken> {
        match self {
            Self::Kept(token) | Self::Issued(token, _) | Self::Repaired(token) | Self::Unchanged(token) => {
                Some(token)
            }
            Self::Suspended(token) | Self::Deferred { token, .. } => token.as_ref(),
            Self::Denied(failure) | Self::Waiting(failure) | Self::Failed(failure, _) => {
                failure.token.as_ref()
            }
            Self::Stale | Self::Gone => None,
        }
    }

    /// The failure, if it is one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Denied(failure) | Self::Waiting(failure) | Self::Failed(failure, _) => Some(failure),
            _ => None,
        }
    }

    /// When to requeue; none if on a change only.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Kept(token) | Self::Issued(token, _) | Self::Repaired(token) | Self::Unchanged(token) => {
                Some(token.renewal.at)
            }
            Self::Suspended(token) => token.as_ref()?.expiry(),
            Self::Deferred { until, .. } => Some(*until),
            Self::Denied(failure) | Self::Waiting(failure) | Self::Failed(failure, _) => {
                let expiry = failure.token.as_ref().and_then(CurrentToken::expiry);
                match (failure.retry_at, expiry) {
                    (Some(retry), Some(expiry)) => Some(retry.min(expiry)),
                    (retry, expiry) => retry.or(expiry),
                }
            }
            Self::Stale => now.checked_add(STALE_REQUEUE).ok(),
            Self::Gone => None,
        }
    }
}

/// How long what is cached may be stale before it is reconciled again.
const STALE_REQUEUE: SignedDuration = SignedDuration::from_millis(500);

/// Whether a refusal since `since` is shown as Stalled.
fn is_lasting(since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(since) >= STALLED_AFTER
}

impl Failure {
    /// The failure that `error` states, without a further attempt.
    pub fn of(error: &impl Classify, token: Option<CurrentToken>) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
            stalled: error.needs_user_action(),
            token,
            ..Self::default()
        }
    }

    /// No grant has allowed the request since `since`. The events of grants enqueue it; so it is only to be Stalled that it is reconciled
    /// again.
    pub fn denied(denied: &Denied, since: Timestamp, token: Option<CurrentToken>, now: Timestamp) -> Self {
        // What is unknown is no refusal, and ends without a user.
        let is_unknown = matches!(denied, Denied::Unavailable { .. });
        let stalled = !is_unknown && is_lasting(since, now);
        let retry_at = match is_unknown {
            true => now.checked_add(GRANTS_UNAVAILABLE).ok(),
            false => since.checked_add(STALLED_AFTER).ok().filter(|_| !stalled),
        };
        Self {
            reason: denied.reason(),
            message: denied.to_string(),
            stalled,
            token,
            retry_at,
            ..Self::default()
        }
    }

    /// The failure that `backoff` counts last.
    pub fn counted(backoff: &Backoff, token: Option<CurrentToken>, now: Timestamp) -> Self {
        let is_lasting = backoff.class == ErrorClass::Rejected && is_lasting(backoff.since, now);
        Self {
            reason: backoff.reason,
            message: backoff.message.clone(),
            stalled: backoff.needs_user_action || is_lasting,
            token,
            retry_at: Some(backoff.next),
            ..Self::default()
        }
    }
}

impl CurrentToken {
    /// The token in `secret` as the status shows it; none unless it is valid and what the spec asks for. `token` is the token itself if it is
    /// available. Otherwise `previous`, the status before, has what the Secret does not show. The subject is always from the status, since it
    /// pins the account: only a response of Google's may change it.
    pub fn new(
        request: &ValidRequest,
        previous: &IdTokenRequestStatus,
        secret: &SecretSummary,
        token: Option<&IdToken>,
        timing: Timing,
        now: Timestamp,
    ) -> Option<Self> {
        let (issued, expires) = (secret.issued_at?, secret.expires_at?);
        let matches = secret.token_hash.as_ref() == Some(&request.token_hash)
            && secret.render_hash.as_ref() == Some(&request.render_hash)
            && secret.request_uid.as_ref() == Some(&request.uid);
        if !matches || expires <= now {
            return None;
        }
        let known = previous.token.clone().unwrap_or_default();
        let claims = token.map(IdToken::claims);
        // A status of an older version has no UID of the Secret. It gets one with the next write: an upgrade writes nothing.
        let recorded = previous.secret.as_ref();
        let uid = match recorded.filter(|_| is_recorded(recorded, &request.target.name, secret)) {
            Some(recorded) => recorded.uid.clone(),
            None => Some(secret.uid.clone()),
        };
        let renewal = due_renewal(request, timing, issued, expires);
        let time = |at| Some(Time(at));
        Some(Self {
            secret: SecretStatus {
                name: request.target.name.clone(),
                uid,
                resource_version: Some(secret.resource_version.clone()),
            },
            token: TokenStatus {
                issue_time: time(issued),
                expiration_time: time(expires),
                digest: token.map_or(known.digest, |token| Some(token.digest())),
                subject: known.subject,
                accepted_subject: known.accepted_subject,
                audience: Some(match (&request.token.source, claims, known.audience) {
                    (TokenSource::Developer, Some(claims), _) => claims.aud.clone(),
                    (TokenSource::Developer, None, Some(known)) => known,
                    _ => request.token.audience.clone(),
                }),
                email: claims.map_or(known.email, |claims| claims.email.clone()),
            },
            unchanged: timing
                .source_repeats_until
                .is_some_and(|until| until == renewal.at),
            renewal,
        })
    }

    /// The same with the subject of `token`, an answer of Google's: from now on the account is the one with this ID.
    pub fn pinned(mut self, token: &IdToken) -> Self {
        self.token.subject = Some(token.claims().sub.clone());
        self
    }

    /// Records that the annotation `accept` accepted this subject, so that it accepts it only once.
    pub fn consuming(mut self, accept: Option<&str>) -> Self {
        if let (Some(subject), Some(accept)) = (&self.token.subject, accept)
            && subject == accept
        {
            self.token.accepted_subject = Some(subject.clone());
        }
        self
    }

    /// Its remaining lifetime.
    pub fn remaining(&self, now: Timestamp) -> Option<SignedDuration> {
        Some(self.expiry()?.duration_since(now))
    }

    /// When the token expires.
    pub fn expiry(&self) -> Option<Timestamp> {
        self.token.expiration_time.as_ref().map(|time| time.0)
    }
}
