//! What happens to a call before it starts, and how it ended.

use std::time::Duration;

use tokio::time::Instant;

use super::circuit_breaker::LastFailure;

/// Names a waiting call.
pub type WaiterId = u64;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It starts now.
    Admit,
    /// It cannot start: the endpoint does not answer, or asked for a pause.
    Reject {
        /// What failed.
        last_failure: LastFailure,
        /// How long the server asked to wait, if it did.
        retry_after: Option<Duration>,
    },
    /// It is to come back later, though nothing is wrong.
    Defer {
        /// The shortest time to wait.
        by: Duration,
    },
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// With an answer; a rejection is one.
    Answered,
    /// With a transient error.
    Failed {
        /// What failed.
        failure: LastFailure,
        /// How long the server asked to wait, if it did.
        retry_after: Option<Duration>,
    },
    /// The caller did not wait for the answer.
    Cancelled,
}

/// The decisions that are due, and when to poll again if nothing happens before.
pub type Decisions = (Vec<(WaiterId, Decision)>, Option<Instant>);
