//! For whom a call is made, and how urgent it is.

use std::time::Duration;

/// For whom a call is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallPriority<'a> {
    /// Those of one flow queue up; lanes take turns. The operator has one for each namespace.
    pub flow: &'a str,
    /// What is remaining_lifetime of the valid token that the call is to replace; none without one.
    pub remaining_lifetime: Option<Duration>,
}

impl CallPriority<'_> {
    /// The operator itself, for its own credentials.
    pub const OPERATOR: Self = Self {
        flow: "",
        remaining_lifetime: None,
    };
}
