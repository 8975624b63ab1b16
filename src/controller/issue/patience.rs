//! How long a write is repeated with the same token, by what it failed with.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::kubernetes::error::KubeError;

/// How long a write is repeated with the same token while the API server is away.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(30);
/// How long it is repeated while the API server answers with a failure. One that has just started rejects every call until it has read its
/// RBAC rules. A webhook that fails goes on failing.
const FAILURE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a write is repeated.
pub(super) struct Patience<'a> {
    clock: &'a Clock,
    began: Instant,
    /// When the last attempt began.
    attempt: Instant,
    /// When the first attempt began that was answered with a failure.
    failing: Option<Instant>,
    pause: Duration,
}

impl<'a> Patience<'a> {
    pub(super) fn new(clock: &'a Clock) -> Self {
        let now = clock.monotonic();
        Self {
            clock,
            began: now,
            attempt: now,
            failing: None,
            pause: Duration::from_millis(250),
        }
    }

    /// An attempt begins.
    pub(super) fn attempt(&mut self) {
        self.attempt = self.clock.monotonic();
    }

    /// Pauses before the attempt that failed with `error` is repeated.
    ///
    /// # Errors
    /// `error`, if it is not to be repeated.
    pub(super) async fn pause_after(&mut self, error: KubeError) -> Result<(), KubeError> {
        let (since, limit) = match error {
            KubeError::NoAnswer { .. } => (self.began, OUTAGE_PATIENCE),
            KubeError::Unavailable { .. } | KubeError::Forbidden { .. } => {
                (*self.failing.get_or_insert(self.attempt), FAILURE_PATIENCE)
            }
            error => return Err(error),
        };
        if self.clock.monotonic().saturating_duration_since(since) >= limit {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(Duration::from_secs(4));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an attempt that took `took` seconds and fails with `error` is repeated. The first attempt began `since_first` seconds ago.
    async fn repeats(error: KubeError, since_first: u64, took: u64) -> bool {
        let clock = Clock::system();
        let now = clock.monotonic();
        let before = |seconds| {
            now.checked_sub(Duration::from_secs(seconds))
                .expect("the machine runs for longer")
        };
        let mut patience = Patience {
            began: before(since_first),
            attempt: before(took),
            pause: Duration::ZERO,
            ..Patience::new(&clock)
        };
        patience.pause_after(error).await.is_ok()
    }

    #[tokio::test]
    async fn an_outage_is_waited_for_and_a_webhook_that_fails_is_not() {
        let (verb, resource, namespace, problem) = ("create", "secrets", "shop".to_owned(), String::new());
        let away = KubeError::NoAnswer {
            verb,
            resource,
            namespace: namespace.clone(),
            problem: problem.clone(),
        };
        assert!(repeats(away.clone(), 25, 0).await);
        assert!(!repeats(away.clone(), 30, 0).await);
        // The time limit of a write.
        assert!(!repeats(away, 35, 35).await);
        let failing = KubeError::Unavailable {
            verb,
            resource,
            namespace: namespace.clone(),
            problem: problem.clone(),
        };
        assert!(
            repeats(failing.clone(), 20, 0).await,
            "the first failure after an outage"
        );
        assert!(!repeats(failing, 10, 10).await, "a webhook that hangs");
        let refused = KubeError::Rejected {
            verb,
            resource,
            namespace,
            code: 403,
            message: problem,
        };
        assert!(!repeats(refused, 0, 0).await);
    }

    #[tokio::test]
    async fn failures_are_waited_for_from_the_first_one_on() {
        let clock = Clock::system();
        let mut patience = Patience::new(&clock);
        let failing = || KubeError::undecodable("create", "secrets", "shop");
        patience.pause = Duration::ZERO;
        assert!(patience.pause_after(failing()).await.is_ok());
        patience.failing = clock.monotonic().checked_sub(FAILURE_PATIENCE);
        patience.attempt();
        assert!(patience.pause_after(failing()).await.is_err());
    }
}
