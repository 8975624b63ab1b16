//! An OAuth access token of the operator's own, and how long it is used.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::clock::BootTime;

/// The scope of the operator's access token: <https://cloud.google.com/iam/docs/reference/credentials/rest>.
pub(crate) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// How long before it expires a token is replaced, as Google's libraries do; a quarter of the lifetime if that is less.
const REFRESH_MARGIN: Duration = Duration::from_secs(225);

/// The longest lifetime that is accepted; Google's are at most 12 hours.
const MAX_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// An access token. Wiped on drop; hence no `Debug`.
pub(crate) struct AccessToken {
    pub(crate) secret: Zeroizing<String>,
    /// When it is to be replaced.
    pub(crate) refresh_at: BootTime,
    pub(crate) expires_at: BootTime,
}

impl AccessToken {
    /// A token that is valid for `lifetime` from `now` on.
    pub(crate) fn new(secret: impl Into<Zeroizing<String>>, lifetime: Duration, now: BootTime) -> Self {
        let lifetime = lifetime.min(MAX_LIFETIME);
        Self {
            secret: secret.into(),
            refresh_at: now + (lifetime - REFRESH_MARGIN.min(lifetime / 4)),
            expires_at: now + lifetime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_shortly_before_it_expires() {
        let start = BootTime::new(Duration::from_secs(60));
        let seconds = |lifetime| {
            let token = AccessToken::new("a".to_owned(), lifetime, start);
            [token.refresh_at, token.expires_at].map(|at| at.saturating_duration_since(start).as_secs())
        };
        assert_eq!(seconds(Duration::from_secs(3600)), [3375, 3600]);
        assert_eq!(seconds(Duration::from_secs(8)), [6, 8]);
        assert_eq!(seconds(Duration::MAX), [12 * 3600 - 225, 12 * 3600]);
    }
}
