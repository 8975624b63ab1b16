//! For whom a call is made, and how urgent it is.

use std::time::Duration;

/// For whom a call is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// Those of one lane queue up; lanes take turns. The operator has one for each namespace.
    pub lane: &'a str,
    /// What is left of the valid token that the call is to replace; none without one.
    pub left: Option<Duration>,
}

impl Caller<'_> {
    /// The operator itself, for its own credentials.
    pub const OPERATOR: Self = Self { lane: "", left: None };
}
