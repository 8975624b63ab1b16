//! Pure: what is remembered of a failed attempt, and when the next one is due.

use jiff::{SignedDuration, Timestamp};

use crate::controller::cache::{Basis, Retry};
use crate::schedule::renewal::{self as schedule, Class};

/// An attempt that failed.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Stable reason.
    pub reason: &'static str,
    /// What failed and what to do.
    pub message: String,
    /// Refused or passing.
    pub class: Class,
    /// What the server asked for.
    pub retry_after: Option<std::time::Duration>,
    /// Whether somebody has to act.
    pub act: bool,
    /// When the valid token that is held ends, if one is.
    pub expiry: Option<Timestamp>,
}

/// The failures in a row after `attempt`; `before` are those before it, of the same `basis`.
pub fn after(before: Option<&Retry>, attempt: Attempt, basis: Basis, uid: &str, now: Timestamp) -> Retry {
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
    Retry {
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
