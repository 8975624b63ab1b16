//! Steps of the wall clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::controller::Context;
use crate::controller::watch::Enqueuer;

/// How often the wall clock is compared with the timers' clock, and by how much they may part.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// Has every request looked at after a step of the wall clock: timers do not count the time that a machine sleeps, and do not follow a
/// clock that is set.
pub(crate) async fn clock(ctx: Arc<Context>, triggers: Enqueuer) {
    let now = || (Timestamp::now(), Instant::now());
    let mut before = now();
    loop {
        tokio::time::sleep(CLOCK_INTERVAL).await;
        ctx.federated.sweep();
        let after = now();
        let wall = after.0.duration_since(before.0);
        let timers = jiff::SignedDuration::try_from(after.1.duration_since(before.1)).unwrap_or_default();
        if (wall - timers).unsigned_abs() > CLOCK_TOLERANCE {
            tracing::warn!(
                seconds = (wall - timers).as_secs(),
                "the clock was set, or the machine slept"
            );
            triggers.everything();
        }
        before = after;
    }
}
