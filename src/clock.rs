//! The clocks of the process. Code that needs the time takes it as an argument or has a [`Clock`], which `app.rs` makes, so that the
//! operator can run on virtual time.
//!
//! May import `crate::sync` only. No other file reads a clock of the system.

#![allow(clippy::disallowed_methods, reason = "all other code reads the time here")]

use std::ops::Add;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::sync::lock;

/// The time since the machine started.
#[cfg(unix)]
fn since_boot() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    // A sleeping machine's CLOCK_MONOTONIC stands still on Linux, so a Lease that expired long ago would look valid after the machine wakes.
    #[cfg(target_os = "linux")]
    const BOOT_CLOCK: ClockId = ClockId::Boottime;
    // macOS counts sleep in CLOCK_MONOTONIC (man clock_gettime).
    #[cfg(not(target_os = "linux"))]
    const BOOT_CLOCK: ClockId = ClockId::Monotonic;

    let time = clock_gettime(BOOT_CLOCK);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanoseconds)
}

/// The time since the first call: only the operator compares it with that of other processes, and it runs on Unix.
#[cfg(not(unix))]
fn since_boot() -> Duration {
    static FIRST: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    FIRST.elapsed()
}

/// A point in time, as the time since the machine started, including the time in which it slept. No one can set this clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// The point in time `since_boot` after the machine started.
    pub fn new(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// Milliseconds since the machine started.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// Time since `earlier`; zero if that is later.
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Reads the time. A clone reads the same clocks.
///
/// Timers are tokio's, and [`Self::monotonic`] reads tokio's clock: a test that pauses tokio's time and has a [`VirtualClock`] controls
/// both.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Virtual(VirtualClock),
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// Wall time. It can be set, so it may jump forward and back.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Virtual(clock) => clock.now(),
        }
    }

    /// Monotonic time, by which tokio's timers fire. It stands still while the machine sleeps.
    pub fn monotonic(&self) -> Instant {
        match &self.0 {
            Source::System => Instant::now(),
            Source::Virtual(clock) => Instant::now() + lock(&clock.changes).skipped,
        }
    }

    /// Monotonic time that goes on while the machine sleeps.
    pub fn boot(&self) -> BootTime {
        match &self.0 {
            Source::System => BootTime(since_boot()),
            Source::Virtual(clock) => clock.boot(),
        }
    }
}

/// Controls the clocks of a test or a simulation. They advance with tokio's time, which can be paused.
#[derive(Clone, Debug)]
pub struct VirtualClock {
    start: Timestamp,
    origin: Instant,
    changes: Arc<Mutex<Changes>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Changes {
    /// By how much wall time was set.
    set: SignedDuration,
    /// How long the machine has slept.
    slept: Duration,
    /// How much time was skipped.
    skipped: Duration,
}

impl VirtualClock {
    /// Wall time is `start` now, and the machine has just started.
    pub fn new(start: Timestamp) -> Self {
        Self {
            start,
            origin: Instant::now(),
            changes: Arc::default(),
        }
    }

    /// The clock for the code under test.
    pub fn clock(&self) -> Clock {
        Clock(Source::Virtual(self.clone()))
    }

    /// Sets wall time forward, or back if `by` is negative.
    pub fn set_forward(&self, by: SignedDuration) {
        let mut changes = lock(&self.changes);
        changes.set = changes.set.saturating_add(by);
    }

    /// Lets the machine sleep: wall time and boot time advance, monotonic time does not.
    pub fn sleep_machine(&self, duration: Duration) {
        let mut changes = lock(&self.changes);
        changes.slept = changes.slept.saturating_add(duration);
    }

    /// Advances all clocks at once, without any timer that would have fired meanwhile.
    pub fn skip(&self, duration: Duration) {
        let mut changes = lock(&self.changes);
        changes.skipped = changes.skipped.saturating_add(duration);
    }

    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.boot().0).unwrap_or(SignedDuration::MAX);
        let set = lock(&self.changes).set;
        // Saturates only at the year 9999 and the year -9999.
        self.start
            .saturating_add(passed.saturating_add(set))
            .unwrap_or(self.start)
    }

    fn boot(&self) -> BootTime {
        let Changes { slept, skipped, .. } = *lock(&self.changes);
        BootTime(
            self.origin
                .elapsed()
                .saturating_add(slept)
                .saturating_add(skipped),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_clocks_advance() {
        let clock = Clock::system();
        let read = || (clock.now(), clock.monotonic(), clock.boot());
        let before = read();
        std::thread::sleep(Duration::from_millis(20));
        let after = read();
        assert!(after.0 > before.0 && after.1 - before.1 >= Duration::from_millis(20));
        assert!(after.2.saturating_duration_since(before.2) >= Duration::from_millis(20));
        assert_eq!(before.2.saturating_duration_since(after.2), Duration::ZERO);
    }

    #[test]
    fn a_virtual_clock_is_set_and_sleeps() {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let control = VirtualClock::new(start);
        let clock = control.clock();
        let near = |seconds: i64| {
            let offset = clock.now().duration_since(start).as_secs() - seconds;
            assert!((0..30).contains(&offset), "{offset}");
        };
        near(0);
        let (monotonic, boot) = (clock.monotonic(), clock.boot());
        control.sleep_machine(Duration::from_secs(600));
        near(600);
        assert!(clock.boot().saturating_duration_since(boot) >= Duration::from_secs(600));
        control.set_forward(SignedDuration::from_secs(-3600));
        near(-3000);
        assert!(clock.boot() > boot);
        assert!(clock.monotonic() - monotonic < Duration::from_secs(30));
        control.skip(Duration::from_secs(4000));
        near(1000);
        assert!(clock.monotonic() - monotonic >= Duration::from_secs(4000));
        assert!(clock.boot().saturating_duration_since(boot) >= Duration::from_secs(4600));
    }
}
