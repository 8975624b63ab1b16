//! One access token for many callers, of whom one fetches it for all.

use std::sync::{Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::google::vocabulary::{AccessToken, Error};

/// The shortest and longest pause after a failure before another fetch.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// One access token for many callers.
#[derive(Default)]
pub(crate) struct TokenCache {
    state: SyncMutex<State>,
    /// Held by the one who fetches.
    fetching: Mutex<()>,
}

#[derive(Default)]
struct State {
    token: Option<AccessToken>,
    failures: u32,
    pause: Option<(Instant, Error)>,
}

impl TokenCache {
    /// The cached token, or else a fetched one. A token that still lives is used on while another caller fetches the next one,
    /// and after a fetch that failed.
    pub(crate) async fn get(
        &self,
        fetch: impl Future<Output = Result<AccessToken, Error>>,
    ) -> Result<AccessToken, Error> {
        let alive = match self.state().look(Instant::now()) {
            Look::Fresh(token) => return Ok(token),
            Look::Paused(error) => return Err(error),
            Look::Stale(token) => token,
        };
        let _fetching = match (self.fetching.try_lock(), alive) {
            (Ok(guard), _) => guard,
            (Err(_), Some(token)) => return Ok(token),
            (Err(_), None) => self.fetching.lock().await,
        };
        // Another caller may have fetched meanwhile.
        let alive = match self.state().look(Instant::now()) {
            Look::Fresh(token) => return Ok(token),
            Look::Paused(error) => return Err(error),
            Look::Stale(token) => token,
        };
        match fetch.await {
            Ok(token) => {
                *self.state() = State::of(token.clone());
                Ok(token)
            }
            Err(error) => {
                let now = Instant::now();
                self.state().fail(&error, now);
                alive.filter(|token| token.is_alive(now)).ok_or(error)
            }
        }
    }

    /// Drops a token that its reader rejected. The next fetch waits a little, lest it be rejected again and again.
    pub(crate) fn reject(&self, token: &AccessToken, error: &Error) {
        self.state().reject(token, error, Instant::now());
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Look {
    /// To be used.
    Fresh(AccessToken),
    /// To be replaced, usable if still there.
    Stale(Option<AccessToken>),
    /// The last fetch failed a moment ago.
    Paused(Error),
}

impl State {
    fn of(token: AccessToken) -> Self {
        Self {
            token: Some(token),
            ..Self::default()
        }
    }

    fn look(&self, now: Instant) -> Look {
        let alive = self.token.as_ref().filter(|token| token.is_alive(now)).cloned();
        let paused = self.pause.as_ref().filter(|(until, _)| now < *until);
        match (alive, paused) {
            (Some(token), paused) if token.is_fresh(now) || paused.is_some() => Look::Fresh(token),
            (None, Some((_, error))) => Look::Paused(error.clone()),
            (alive, _) => Look::Stale(alive),
        }
    }

    fn reject(&mut self, token: &AccessToken, error: &Error, now: Instant) {
        if self
            .token
            .as_ref()
            .is_some_and(|current| current.secret == token.secret)
        {
            self.token = None;
            self.fail(error, now);
        }
    }

    fn fail(&mut self, error: &Error, now: Instant) {
        let pause = pause_after(self.failures).max(error.retry_after().unwrap_or_default());
        self.failures = self.failures.saturating_add(1);
        self.pause = Some((now + pause, error.clone()));
    }
}

/// How long to wait after so many failures before the one at hand.
pub(crate) fn pause_after(failures: u32) -> Duration {
    PAUSE.0.saturating_mul(1 << failures.min(16)).min(PAUSE.1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::google::vocabulary::{Endpoint, Reason};

    fn failure() -> Error {
        Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, "no")
    }

    /// What a caller gets without a fetch, and whether it would fetch.
    fn look(state: &State, now: Instant) -> (bool, bool) {
        match state.look(now) {
            Look::Fresh(_) => (true, false),
            Look::Stale(token) => (token.is_some(), true),
            Look::Paused(_) => (false, false),
        }
    }

    #[test]
    fn a_token_is_replaced_shortly_before_its_end() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let state = State::of(AccessToken::new("a".to_owned(), Duration::from_secs(3600), start));
        assert_eq!(look(&state, at(3374)), (true, false));
        assert_eq!(look(&state, at(3376)), (true, true));
        assert_eq!(look(&state, at(3601)), (false, true));
        let short = State::of(AccessToken::new("a".to_owned(), Duration::from_secs(8), start));
        assert_eq!(
            (look(&short, at(5)), look(&short, at(7))),
            ((true, false), (true, true))
        );
        let endless = State::of(AccessToken::new("a".to_owned(), Duration::MAX, start));
        assert_eq!(look(&endless, at(13 * 3600)), (false, true));
    }

    #[test]
    fn failures_are_spaced() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut state = State::default();
        assert_eq!(look(&state, start), (false, true));
        state.fail(&failure(), start);
        assert_eq!(look(&state, at(900)), (false, false));
        assert_eq!(look(&state, at(1100)), (false, true));
        state.fail(&failure(), at(1100));
        assert_eq!(look(&state, at(3000)), (false, false));
        assert_eq!(look(&state, at(3200)), (false, true));
        // The server's word is obeyed, and a token that still lives is used on.
        let mut state = State::of(AccessToken::new("a".to_owned(), Duration::from_secs(3600), start));
        state.fail(
            &failure().with_retry_after(Duration::from_secs(30)),
            at(3_500_000),
        );
        assert_eq!(look(&state, at(3_529_000)), (true, false));
        assert_eq!(look(&state, at(3_531_000)), (true, true));
    }

    #[test]
    fn only_the_rejected_token_goes() {
        let start = Instant::now();
        let token = |secret: &str| AccessToken::new(secret.to_owned(), Duration::from_secs(3600), start);
        let mut state = State::of(token("a"));
        state.reject(&token("b"), &failure(), start);
        assert_eq!(look(&state, start), (true, false));
        state.reject(&token("a"), &failure(), start);
        assert_eq!(look(&state, start), (false, false));
        assert_eq!(look(&state, start + Duration::from_secs(2)), (false, true));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_callers_cost_one_fetch() {
        let (cache, fetches) = (Arc::new(TokenCache::default()), Arc::new(AtomicU32::new(0)));
        let callers: Vec<_> = (0..50)
            .map(|_| {
                let (cache, fetches) = (cache.clone(), fetches.clone());
                tokio::spawn(async move {
                    let fetch = async {
                        fetches.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        Ok(AccessToken::new(
                            "a".to_owned(),
                            Duration::from_secs(60),
                            Instant::now(),
                        ))
                    };
                    cache.get(fetch).await.is_ok()
                })
            })
            .collect();
        for caller in callers {
            assert!(caller.await.expect("no panic"));
        }
        assert_eq!(fetches.load(Ordering::SeqCst), 1);
    }
}
