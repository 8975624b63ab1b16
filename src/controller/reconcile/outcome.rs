//! What the phases came to: the token that is held, the failure, and when the next attempt is due.

use jiff::{SignedDuration, Timestamp};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::conditions::reason;
use crate::api::v1alpha1::{SecretStatus, TokenStatus};
use crate::controller::cache::{Backoff, BackoffKey, ObjectKey, SecretSummary};
use crate::controller::issue::mint::MintError;
use crate::controller::issue::render::RenderError;
use crate::controller::reconcile::Work;
use crate::controller::reconcile::plan::{self, Integrity};
use crate::controller::reconcile::status::{CurrentToken, Failure, Report, STALLED_AFTER};
use crate::grants::policy::Denied;
use crate::kubernetes::error::KubeError;
use crate::request::TokenSource;
use crate::schedule::backoff::{self as retry, Attempt};
use crate::schedule::renewal::{self as schedule, ErrorClass};
use crate::token::Claims;

/// What a phase ends with where the wanted state is not reached.
pub(crate) enum Stop {
    Fault(KubeError),
    Mint(MintError),
    Render(RenderError),
    Denied(Denied),
    Rival(String),
    Waiting(Box<Backoff>),
    Gone,
}

impl From<KubeError> for Stop {
    fn from(fault: KubeError) -> Self {
        Self::Fault(fault)
    }
}

impl Work<'_> {
    /// The token in `secret` as status shows it; none unless it is valid and what the spec asks for.
    pub(crate) fn held(&self, secret: &SecretSummary, claims: Option<&Claims>) -> Option<CurrentToken> {
        let (issued, expires) = (secret.issued?, secret.expires?);
        let matches = secret.token_hash.as_ref() == Some(&self.request.token_hash)
            && secret.render_hash.as_ref() == Some(&self.request.render_hash)
            && secret.request_uid.as_ref() == Some(&self.request.uid);
        if !matches || expires <= self.now {
            return None;
        }
        let known = self.previous.token.clone().unwrap_or_default();
        let renewal = plan::due(self.request, &self.observed, issued, expires);
        let time = |at| Some(Time(at));
        Some(CurrentToken {
            secret: SecretStatus {
                name: self.request.target.name.clone(),
                resource_version: Some(secret.resource_version.clone()),
            },
            token: TokenStatus {
                issue_time: time(issued),
                expiration_time: time(expires),
                audience: Some(match (&self.request.token.source, claims, known.audience) {
                    (TokenSource::Developer, Some(claims), _) => claims.aud.clone(),
                    (TokenSource::Developer, None, Some(known)) => known,
                    _ => self.request.token.audience.clone(),
                }),
                email: claims.map_or(known.email, |claims| claims.email.clone()),
                subject: claims.map_or(known.subject, |claims| Some(claims.sub.clone())),
            },
            unchanged: self
                .observed
                .unchanged_until
                .is_some_and(|until| until == renewal.at),
            renewal,
        })
    }

    /// The valid token that the Secret holds, if nobody touched it since it was seen to be whole.
    fn kept(&self) -> Option<CurrentToken> {
        let secret = self.observed.secret.as_ref()?;
        let whole = match self.observed.content {
            None => self.observed.recorded.as_ref() == Some(&secret.resource_version),
            Some(integrity) => integrity == Integrity::Intact,
        };
        whole.then(|| self.held(secret, None)).flatten()
    }

    /// When the valid token that is held ends.
    pub(crate) fn expiry(&self) -> Option<Timestamp> {
        self.kept()?.expiry()
    }

    /// Turns the end of the phases into the report, and remembers what the next attempt depends on.
    pub(crate) fn finish(mut self, end: Result<(), Stop>, basis: BackoffKey) -> Report {
        let now = Timestamp::now();
        if self.report.held.is_none() {
            self.report.held = self.kept();
        }
        let expiry = self.report.held.as_ref().and_then(CurrentToken::expiry);
        let key = self.key();
        let stop = match end {
            Ok(()) => {
                if self.memory.retry.is_some() {
                    self.ctx
                        .index
                        .remember(&key, &self.request.uid, |memory| memory.retry = None);
                }
                self.report.next = match (self.report.suspended, &self.report.held) {
                    (true, _) => expiry,
                    (false, Some(held)) => Some(held.renewal.at),
                    (false, None) => Some(now + SignedDuration::from_secs(1)),
                };
                return self.report;
            }
            // Its successor of the same name, if there is one, is reconciled by itself.
            Err(Stop::Gone) => return self.report,
            Err(Stop::Mint(error)) if let Some(by) = error.postponed() => {
                let left = expiry.map(|expiry| expiry.duration_since(now));
                let delay = schedule::postponed_delay(by, left, &self.request.uid, now);
                self.report.postponed = true;
                self.report.next = now.checked_add(delay).ok();
                return self.report;
            }
            Err(stop) => stop,
        };
        let (failure, next, attempts) = self.failure(stop, basis, now, expiry, &key);
        self.report.failure = Some(failure);
        self.report.attempts = attempts;
        self.report.next = match (next, expiry) {
            (Some(next), Some(expiry)) => Some(next.min(expiry)),
            (next, expiry) => next.or(expiry),
        };
        self.report
    }

    /// The failure, when the next attempt is due, and how many have failed where one was made.
    fn failure(
        &self,
        stop: Stop,
        basis: BackoffKey,
        now: Timestamp,
        expiry: Option<Timestamp>,
        key: &ObjectKey,
    ) -> (Failure, Option<Timestamp>, Option<u32>) {
        let (reason, message, class, retry_after, act) = match stop {
            Stop::Gone => {
                let message = "the request was deleted".to_owned();
                return (
                    Failure {
                        reason: reason::RECONCILED,
                        message,
                        stalled: false,
                    },
                    None,
                    None,
                );
            }
            Stop::Denied(denied) => {
                // The grants' own events wake the request.
                let failure = Failure {
                    reason: denied.reason(),
                    message: denied.to_string(),
                    stalled: false,
                };
                let soon = now + SignedDuration::from_secs(30);
                return (
                    failure,
                    matches!(denied, Denied::Unavailable { .. }).then_some(soon),
                    None,
                );
            }
            Stop::Rival(name) => {
                let message = format!(
                    "Secret {} is the target of IdTokenRequest {name} already, which is older; choose another spec.target.name",
                    self.request.target.name
                );
                return (
                    Failure {
                        reason: reason::TARGET_CONFLICT,
                        message,
                        stalled: true,
                    },
                    None,
                    None,
                );
            }
            Stop::Waiting(retry) => {
                let failure = Failure {
                    reason: retry.reason,
                    message: retry.message.clone(),
                    stalled: stalled(&retry, now),
                };
                return (failure, Some(retry.next), None);
            }
            Stop::Fault(fault) => {
                let act = matches!(
                    fault,
                    KubeError::SecretConflict { .. }
                        | KubeError::SecretImmutable { .. }
                        | KubeError::Contested { .. }
                );
                (fault.reason(), fault.to_string(), fault.class(), None, act)
            }
            Stop::Mint(error) => (
                error.reason(),
                error.to_string(),
                error.class(),
                error.retry_after(),
                false,
            ),
            Stop::Render(error) => {
                let failure = Failure {
                    reason: error.reason(),
                    message: error.to_string(),
                    stalled: true,
                };
                return (failure, None, None);
            }
        };
        let attempt = Attempt {
            reason,
            message: message.clone(),
            class,
            retry_after,
            act,
            expiry,
        };
        let retry = retry::after(self.retry.as_ref(), attempt, basis, &self.request.uid, now);
        let next = retry.next;
        let stalled = stalled(&retry, now);
        let attempts = retry.attempts;
        self.ctx.index.remember(key, &self.request.uid, |memory| {
            memory.retry = Some(Box::new(retry));
        });
        (
            Failure {
                reason,
                message,
                stalled,
            },
            Some(next),
            Some(attempts),
        )
    }
}

fn stalled(retry: &Backoff, now: Timestamp) -> bool {
    retry.act || (retry.class == ErrorClass::Rejected && now.duration_since(retry.since) >= STALLED_AFTER)
}
