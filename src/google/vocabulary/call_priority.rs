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

impl CallPriority<'_> {
    /// Calls of the operator itself, for its own credentials.
    pub const OPERATOR: Self = Self {
        flow: "",
        remaining_lifetime: None,
    };
}
