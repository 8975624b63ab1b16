//! What holds calls to one endpoint back: a rate, a cap of calls under way, and a gate that `Retry-After` closes.
//!
//! One [`Limits`] is for one endpoint (or, with federation, one provider), so that a slow or exhausted one never holds up
//! another.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::{Endpoint, Error, Reason};

/// The limits of one endpoint.
#[derive(Debug)]
pub(crate) struct Limits {
    endpoint: Endpoint,
    rate: Option<DefaultDirectRateLimiter>,
    in_flight: Arc<Semaphore>,
    max_wait: Duration,
    gate: Mutex<Option<Gate>>,
}

/// Closed until a time, by an answer that said so.
#[derive(Clone, Debug)]
struct Gate {
    until: Instant,
    reason: Reason,
    status: Option<u16>,
}

/// The right to make one call; holds its place in the cap until dropped.
#[derive(Debug)]
pub(crate) struct Admission {
    _place: OwnedSemaphorePermit,
    /// How long the limits held the call back.
    pub(crate) waited: Duration,
}

impl Limits {
    pub(crate) fn new(
        endpoint: Endpoint,
        rate_per_second: Option<NonZeroU32>,
        max_in_flight: usize,
        max_wait: Duration,
    ) -> Self {
        Self {
            endpoint,
            rate: rate_per_second.map(|rate| RateLimiter::direct(Quota::per_second(rate))),
            in_flight: Arc::new(Semaphore::new(max_in_flight.min(Semaphore::MAX_PERMITS))),
            max_wait,
            gate: Mutex::new(None),
        }
    }

    /// Waits for a place and for the rate. While the gate is closed it does not wait but says until when: the caller has
    /// a queue of its own, ordered by what is most urgent.
    pub(crate) async fn acquire(&self) -> Result<Admission, Error> {
        self.check_gate()?;
        let start = Instant::now();
        let deadline = start + self.max_wait;
        let place = timeout_at(deadline, Arc::clone(&self.in_flight).acquire_owned())
            .await
            .map_err(|_| self.waited_too_long("in-flight cap"))?
            .map_err(|_| self.waited_too_long("in-flight cap"))?;
        if let Some(rate) = &self.rate {
            timeout_at(deadline, rate.until_ready())
                .await
                .map_err(|_| self.waited_too_long("rate limit"))?;
        }
        // It may have closed in the meantime.
        self.check_gate()?;
        Ok(Admission {
            _place: place,
            waited: start.elapsed(),
        })
    }

    /// Closes the gate when an answer asks for it (429 or 503 with `Retry-After`).
    pub(crate) fn observe(&self, error: &Error) {
        let (Some(status @ (429 | 503)), Some(after)) = (error.status(), error.retry_after()) else {
            return;
        };
        let closed = Gate {
            until: Instant::now() + after,
            reason: error.kind(),
            status: Some(status),
        };
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.as_ref().is_none_or(|gate| gate.until < closed.until) {
            *gate = Some(closed);
        }
    }

    fn check_gate(&self) -> Result<(), Error> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(closed) = gate.clone() else { return Ok(()) };
        let left = closed.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            *gate = None;
            return Ok(());
        }
        let message = format!(
            "Google asked to wait; no call is made for another {} s",
            left.as_secs_f64().ceil()
        );
        let error = Error::new(self.endpoint, closed.reason, &message).with_retry_after(left);
        Err(match closed.status {
            Some(status) => error.with_status(status),
            None => error,
        })
    }

    fn waited_too_long(&self, limit: &str) -> Error {
        let message = format!(
            "the operator's own {limit} held this call back for {} s; raise it",
            self.max_wait.as_secs_f64()
        );
        Error::new(self.endpoint, Reason::LocallyLimited, &message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::error::Class;

    fn limits(rate: Option<u32>, in_flight: usize, max_wait: Duration) -> Limits {
        Limits::new(
            Endpoint::IamCredentials,
            rate.and_then(NonZeroU32::new),
            in_flight,
            max_wait,
        )
    }

    fn quota(status: u16, after: u64) -> Error {
        Error::new(Endpoint::IamCredentials, Reason::QuotaExceeded, "no")
            .with_status(status)
            .with_retry_after(Duration::from_secs(after))
    }

    #[tokio::test]
    async fn cap_holds_back_until_a_place_is_free() {
        let limits = Arc::new(limits(None, 1, Duration::from_secs(60)));
        let first = limits.acquire().await.expect("free");
        let second = tokio::spawn({
            let limits = Arc::clone(&limits);
            async move { limits.acquire().await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        assert!(second.await.expect("joins").is_ok());
    }

    #[tokio::test]
    async fn waiting_ends() {
        let limits = limits(None, 1, Duration::from_millis(20));
        let _first = limits.acquire().await.expect("free");
        let error = limits.acquire().await.expect_err("full");
        assert_eq!(
            (error.reason(), error.class()),
            ("LocallyLimited", Class::Passing)
        );
    }

    #[tokio::test]
    async fn rate_holds_back() {
        let limits = limits(Some(20), 100, Duration::from_secs(60));
        let start = Instant::now();
        let mut waited = Duration::ZERO;
        for _ in 0..26 {
            waited += limits.acquire().await.expect("in time").waited;
        }
        // The first 20 are the burst of a second; six more take at least 5/20 s.
        assert!(
            start.elapsed() >= Duration::from_millis(240),
            "{:?}",
            start.elapsed()
        );
        assert!(waited >= Duration::from_millis(240), "{waited:?}");
    }

    #[tokio::test]
    async fn retry_after_closes_the_gate_and_the_longest_wins() {
        let limits = limits(None, 1, Duration::from_secs(1));
        limits.observe(&quota(500, 100));
        assert!(limits.acquire().await.is_ok());
        limits.observe(&quota(429, 100));
        limits.observe(&quota(503, 5));
        let error = limits.acquire().await.expect_err("closed");
        assert_eq!((error.reason(), error.status()), ("QuotaExceeded", Some(429)));
        assert!(
            error
                .retry_after()
                .is_some_and(|after| after > Duration::from_secs(90))
        );
    }

    #[tokio::test]
    async fn the_gate_opens_again() {
        let limits = limits(None, 1, Duration::from_secs(1));
        limits.observe(&quota(429, 0));
        assert!(limits.acquire().await.is_ok());
    }
}
