//! Bounds an attempt in time and keeps its panic from others, and says what failed when it was aborted.
//!
//! Imports no context: what it needs is passed. Never retries.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;

use super::conclude::{failed, reconciled};
use super::inputs::Inputs;
use super::outcome::Reconciled;
use super::snapshot::Snapshot;
use crate::controller::cache::Cache;
use crate::controller::issue::observation::Observation;
use crate::controller::queue::stopwatch::Stopwatch;
use crate::kubernetes::error::KubeError;
use crate::request::ValidateError;

/// Bounds an attempt in time, and keeps a bug that one request meets from stopping all others. The locks of the caches outlive a panic.
pub(super) async fn guarded(
    limit: Duration,
    stopwatch: &Stopwatch,
    attempt: Pin<&mut impl Future<Output = Reconciled>>,
) -> Result<Reconciled, KubeError> {
    let seconds = limit.as_secs();
    match stopwatch
        .limit(limit, AssertUnwindSafe(attempt).catch_unwind())
        .await
    {
        Ok(Ok(reconciled)) => Ok(reconciled),
        Ok(Err(_)) => Err(KubeError::Panicked),
        Err(_) => Err(KubeError::TimedOut { seconds }),
    }
}

/// The outcome of an attempt that `error` aborted: a failure of its own, with what is known without it.
pub(super) fn aborted(
    cache: &Cache,
    snapshot: &Snapshot,
    gathered: Result<(Inputs, Observation), ValidateError>,
    error: KubeError,
    now: Timestamp,
) -> Reconciled {
    match gathered {
        Ok((inputs, secret)) => {
            let token = inputs.current_token(snapshot, &secret);
            let outcome = failed(&inputs, cache, snapshot, &error.into(), token, now);
            reconciled(inputs, outcome)
        }
        Err(error) => Reconciled::invalid(&error),
    }
}
