//! Pure: what is remembered of a failed attempt, and when the next one is due.

use jiff::{SignedDuration, Timestamp};

use crate::controller::cache::{Backoff, BackoffKey};
use crate::schedule::renewal::{self as schedule, ErrorClass};

/// An attempt that failed.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Stable reason.
    pub reason: &'static str,
    /// What failed and what to do.
    pub message: String,
    /// Refused or passing.
    pub class: ErrorClass,
    /// What the server asked for.
    pub retry_after: Option<std::time::Duration>,
    /// Whether somebody has to act.
    pub act: bool,
    /// When the valid token that is held ends, if one is.
    pub expiry: Option<Timestamp>,
}

/// The failures in a row after `attempt`; `before` are those before it, of the same `basis`.
pub fn after(
    before: Option<&Backoff>,
    attempt: Attempt,
    basis: BackoffKey,
    uid: &str,
    now: Timestamp,
) -> Backoff {
    let since = before.map_or(now, |retry| retry.since);
    let failure = schedule::Failure {
        class: attempt.class,
        attempts: before.map_or(1, |retry| retry.attempts.saturating_add(1)),
        since_first: now.duration_since(since),
        waited: before.map(|retry| retry.next.duration_since(retry.at)),
        retry_after: attempt.retry_after,
        remaining: attempt.expiry.map(|expiry| expiry.duration_since(now)),
    };
    let delay = schedule::retry_delay(&failure, uid).max(SignedDuration::ZERO);
    Backoff {
        reason: attempt.reason,
        message: attempt.message,
        class: attempt.class,
        attempts: failure.attempts,
        since,
        at: now,
        next: now.saturating_add(delay).unwrap_or(now),
        act: attempt.act,
        basis,
    }
}
