//! The cache of the operator's access token: single flight, with a backoff after failures.

use std::time::Duration;

use crate::clock::Clock;
use crate::google::vocabulary::{AccessToken, Error};
use crate::single_flight::{Fetched, SingleFlight};

/// The shortest and longest backoff after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// One access token for many callers.
pub(crate) type TokenCache = SingleFlight<AccessToken, Error>;

/// An empty cache.
pub(crate) fn token_cache(clock: Clock) -> TokenCache {
    SingleFlight::new(backoff, clock)
}

/// When a fetched token is refreshed and expires, as the cache takes it.
pub(crate) fn fetched(token: AccessToken) -> Fetched<AccessToken> {
    Fetched {
        refresh_at: token.refresh_at,
        expires_at: token.expires_at,
        value: token,
    }
}

/// How long to wait after a failure that so many others in a row preceded.
pub(crate) fn backoff_after(failures: u32) -> Duration {
    BACKOFF.0.saturating_mul(1 << failures.min(16)).min(BACKOFF.1)
}

/// As [`backoff_after`], and at least as long as the server asks for.
pub(crate) fn backoff(failures: u32, error: &Error) -> Duration {
    backoff_after(failures).max(error.retry_after().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::google::vocabulary::{Endpoint, Reason};

    #[test]
    fn the_backoff_doubles_and_obeys_the_server() {
        let error = Error::new(Endpoint::Credentials, Reason::CredentialsUnavailable, "no");
        let seconds = |failures| backoff(failures, &error).as_secs();
        assert_eq!(
            [0, 1, 2, 5, 6, 7, u32::MAX].map(seconds),
            [1, 2, 4, 32, 60, 60, 60]
        );
        let error = error.with_retry_after(Duration::from_secs(30));
        assert_eq!(
            [0, 5, 6].map(|failures| backoff(failures, &error).as_secs()),
            [30, 32, 60]
        );
    }
}
