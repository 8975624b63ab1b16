//! A clock that goes on while the machine sleeps and that nobody can set.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

// A sleeping machine's CLOCK_MONOTONIC stands still on Linux, so that a Lease which ended long ago would look alive after it wakes.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
// macOS counts sleep in CLOCK_MONOTONIC (man clock_gettime).
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// A moment: the time since the machine's start, sleep included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// Now.
    pub fn now() -> Self {
        let time = clock_gettime(CLOCK);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
        Self(Duration::new(seconds, nanoseconds))
    }

    /// The moment that long after the machine's start.
    pub fn from_boot(duration: Duration) -> Self {
        Self(duration)
    }

    /// Milliseconds since the machine's start.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long after `now` this is; zero when it is past.
    pub fn after(self, now: Self) -> Duration {
        self.0.saturating_sub(now.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let before = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        let after = Instant::now();
        assert!(after.after(before) >= Duration::from_millis(20));
        assert_eq!(before.after(after), Duration::ZERO);
    }
}
