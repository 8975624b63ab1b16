//! An OAuth access token of the operator's own, with its end.

use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroizing;

/// The scope of the operator's access token: <https://cloud.google.com/iam/docs/reference/credentials/rest>.
pub(crate) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// How long before its end a token is replaced, as Google's libraries do; less for a short one.
const MARGIN: Duration = Duration::from_secs(225);

/// The longest lifetime that is believed; Google's are at most 12 hours.
const MAX_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// An access token. Wiped on drop; hence no `Debug`.
#[derive(Clone)]
pub(crate) struct AccessToken {
    pub(crate) secret: Zeroizing<String>,
    refresh: Instant,
    end: Instant,
}

impl AccessToken {
    /// A token that lives for `lifetime` from `now` on.
    pub(crate) fn new(secret: impl Into<Zeroizing<String>>, lifetime: Duration, now: Instant) -> Self {
        let lifetime = lifetime.min(MAX_LIFETIME);
        Self {
            secret: secret.into(),
            refresh: now + (lifetime - MARGIN.min(lifetime / 4)),
            end: now + lifetime,
        }
    }

    /// Whether it is not to be replaced yet.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        now < self.refresh
    }

    /// Whether Google still accepts it.
    pub(crate) fn is_alive(&self, now: Instant) -> bool {
        now < self.end
    }
}
