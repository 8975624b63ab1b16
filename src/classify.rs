//! What an error means for the next attempt. Each error states its own consequence, and one place turns it into a status.
//!
//! Imports nothing. Never decides how long to wait: that is [`crate::schedule`]'s.

use std::time::Duration;

/// Whether trying again soon can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A user must change something, such as a binding, an account or a setting: retried slowly.
    Rejected,
    /// It passes without anyone's help: retried, at first after a second.
    Transient,
}

/// An error that states its consequence.
pub trait Classify: std::error::Error {
    /// Stable reason of the condition, the event and the metric.
    fn reason(&self) -> &'static str;

    /// Whether trying again soon can help.
    fn class(&self) -> ErrorClass {
        ErrorClass::Rejected
    }

    /// How long the server asks to wait.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// Whether only a user can end it, by acting on the request or its Secret.
    fn needs_user_action(&self) -> bool {
        false
    }
}
