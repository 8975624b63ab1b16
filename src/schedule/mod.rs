//! When: the renewal of a token ([`renewal`]) and the next attempt after a failure ([`backoff`]). Pure: `now` is an argument.
//!
//! May import the ground. Never reads a clock and never waits.

pub mod backoff;
mod jitter;
pub mod renewal;
