//! For whom a call is made, and how urgent it is.

use std::time::Duration;

/// The flow of a call, and what its token has left.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallPriority<'a> {
    /// The calls of one flow wait for each other; flows take turns. The operator has one flow for each namespace.
    pub flow: &'a str,
    /// How long the token that the call replaces is still valid; none if there is no valid token.
    pub remaining_lifetime: Option<Duration>,
}

/// The shortest part of a token's remaining life that a call is given.
const LEAST: Duration = Duration::from_secs(1);

impl CallPriority<'_> {
    /// Calls of the operator itself, for its own credentials.
    pub const OPERATOR: Self = Self {
        flow: "",
        remaining_lifetime: None,
    };

    /// The longest time for a step of the call, at most `limit`: a quarter of what the token has left, so that further attempts have time.
    pub(crate) fn time_limit(&self, limit: Duration) -> Duration {
        self.remaining_lifetime
            .map_or(limit, |remaining| limit.min((remaining / 4).max(LEAST)))
    }
}
