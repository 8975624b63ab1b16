//! Jumps of the wall clock.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::controller::queue::Enqueuer;

/// How often wall time and monotonic time are compared.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// By how much the two may differ in that time.
const TOLERANCE: Duration = Duration::from_secs(5);

/// Enqueues every request after a jump of the wall clock: timers neither count the time that the machine sleeps, nor follow a clock that is
/// set.
pub(super) async fn detect_clock_jumps(clock: Clock, enqueuer: Enqueuer) {
    let read = || (clock.now(), clock.monotonic());
    let mut before = read();
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let after = read();
        if let Some(jump) = jump(before, after) {
            tracing::warn!(
                seconds = jump.as_secs(),
                "the clock was set or the machine slept, reconciling all requests"
            );
            enqueuer.all();
        }
        before = after;
    }
}

/// By how much wall time ran ahead of monotonic time, or behind if negative; none within the tolerance.
fn jump(before: (Timestamp, Instant), after: (Timestamp, Instant)) -> Option<SignedDuration> {
    let wall = after.0.duration_since(before.0);
    let monotonic = SignedDuration::try_from(after.1.duration_since(before.1)).unwrap_or_default();
    let jump = wall - monotonic;
    (jump.unsigned_abs() > TOLERANCE).then_some(jump)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::VirtualClock;

    #[tokio::test]
    async fn a_clock_that_is_set_and_a_machine_that_sleeps_are_jumps() {
        let control = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let clock = control.clock();
        let read = || (clock.now(), clock.monotonic());
        let jump_by = |change: &dyn Fn()| {
            let before = read();
            change();
            jump(before, read()).map(|jump| jump.as_secs())
        };
        let near = |jump: Option<i64>, seconds: i64| {
            assert!(jump.is_some_and(|jump| (jump - seconds).abs() < 30), "{jump:?}");
        };
        assert_eq!(jump_by(&|| {}), None);
        assert_eq!(
            jump_by(&|| control.set_forward(SignedDuration::from_secs(1))),
            None
        );
        let hour = SignedDuration::from_hours(1);
        near(jump_by(&|| control.set_forward(hour)), 3600);
        near(jump_by(&|| control.set_forward(-hour)), -3600);
        near(jump_by(&|| control.sleep_machine(Duration::from_secs(60))), 60);
    }
}
