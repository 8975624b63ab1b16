//! Fences off what only the leader may do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{BootTime, Clock};

/// Checked right before each call that only the leader may send. A process that was paused for a while finds the fence closed at its next
/// call, even before any timer fires. A clone is the same fence.
#[derive(Clone, Debug)]
pub struct Fence {
    /// Milliseconds since the machine started.
    open_until: Arc<AtomicU64>,
    clock: Clock,
}

/// The fence is closed: this process may not act.
#[derive(Debug, thiserror::Error)]
#[error("the write was not sent: this replica does not hold the Lease, or could not renew it in time")]
pub struct FenceClosed;

impl Fence {
    /// A closed fence.
    pub fn closed(clock: Clock) -> Self {
        Self::until(0, clock)
    }

    /// A fence that is always open, for a process without leader election.
    pub fn open(clock: Clock) -> Self {
        Self::until(u64::MAX, clock)
    }

    fn until(millis: u64, clock: Clock) -> Self {
        let open_until = Arc::new(AtomicU64::new(millis));
        Self { open_until, clock }
    }

    /// Opens the fence until `deadline`.
    pub fn open_until(&self, deadline: BootTime) {
        self.open_until.store(deadline.as_millis(), Ordering::SeqCst);
    }

    /// Closes the fence.
    pub fn close(&self) {
        self.open_until.store(0, Ordering::SeqCst);
    }

    /// Whether this process may act now.
    pub fn is_open(&self) -> bool {
        self.clock.boot().as_millis() < self.open_until.load(Ordering::SeqCst)
    }

    /// As [`Self::is_open`], as an error.
    ///
    /// # Errors
    /// The fence is closed.
    pub fn check(&self) -> Result<(), FenceClosed> {
        self.is_open().then_some(()).ok_or(FenceClosed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::clock::VirtualClock;

    #[test]
    fn it_closes_automatically_even_while_the_machine_sleeps() {
        let control = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let clock = control.clock();
        let fence = Fence::closed(clock.clone());
        assert!(!fence.is_open() && fence.check().is_err());
        fence.open_until(clock.boot() + Duration::from_secs(10));
        let other = fence.clone();
        control.sleep_machine(Duration::from_secs(5));
        assert!(other.is_open() && other.check().is_ok());
        control.sleep_machine(Duration::from_secs(6));
        assert!(!other.is_open());
        fence.open_until(clock.boot() + Duration::from_secs(60));
        assert!(other.is_open());
        fence.close();
        assert!(!other.is_open());
        assert!(Fence::open(clock).is_open());
    }
}
