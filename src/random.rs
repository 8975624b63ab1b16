//! Randomness. Code that needs it has a [`Random`], which `app.rs` makes, so that a run can be repeated.
//!
//! Imports nothing. No other file asks the system for random bytes.

#![allow(
    clippy::disallowed_methods,
    reason = "all other code gets its randomness here"
)]

use std::fmt;
use std::sync::Arc;

/// A source of random bytes. A clone is the same source.
#[derive(Clone)]
pub struct Random(Arc<Fill>);

type Fill = dyn Fn(&mut [u8]) -> Result<(), RandomError> + Send + Sync;

/// The system gives no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct RandomError;

impl Random {
    /// The system's generator, fit for secrets.
    pub fn system() -> Self {
        Self::new(|bytes| aws_lc_rs::rand::fill(bytes).map_err(|_| RandomError))
    }

    /// Bytes that `fill` chooses, for tests and simulations.
    pub fn new(fill: impl Fn(&mut [u8]) -> Result<(), RandomError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(fill))
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// There are none to be had; `bytes` must not be used then.
    pub fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        (self.0)(bytes)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Random")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_gives_other_bytes_each_time() {
        let random = Random::system();
        let (mut one, mut other) = ([0; 16], [0; 16]);
        random.fill(&mut one).unwrap();
        random.clone().fill(&mut other).unwrap();
        assert_ne!(one, other);
    }
}
