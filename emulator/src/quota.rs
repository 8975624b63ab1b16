//! A quota of calls, in the two ways in which one can be enforced.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A quota. In JSON: `{"calls": 60000, "seconds": 60, "by": "windows"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Calls in each period.
    pub calls: u32,
    /// The length of a period.
    pub seconds: u32,
    /// How it is enforced.
    pub by: Enforcement,
}

/// How a quota is enforced. Google does not document which of them it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Enforcement {
    /// A token bucket that holds the calls of a period, is filled with as many in each, and is full at first.
    Bucket,
    /// One period after the other, each with as many calls. The first begins when the quota is set.
    Windows,
}

/// What is used of a quota.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// When the window began, or the bucket was filled last.
    since: Instant,
    /// Calls in the window, or missing in the bucket.
    calls: f64,
}

impl Used {
    pub(crate) fn nothing(now: Instant) -> Self {
        Self {
            since: now,
            calls: 0.0,
        }
    }

    /// Whether the quota admits a call now. If so, it counts.
    pub(crate) fn admit(&mut self, quota: Quota, now: Instant) -> bool {
        let most = f64::from(quota.calls);
        let period = Duration::from_secs(quota.seconds.into());
        let elapsed = now.saturating_duration_since(self.since);
        match quota.by {
            Enforcement::Bucket => {
                let filled = most * elapsed.as_secs_f64() / period.as_secs_f64();
                (self.since, self.calls) = (now, (self.calls - filled).max(0.0));
            }
            Enforcement::Windows if elapsed >= period => {
                let into = elapsed.as_secs_f64() % period.as_secs_f64();
                (self.since, self.calls) = (now - Duration::from_secs_f64(into), 0.0);
            }
            Enforcement::Windows => {}
        }
        let is_admitted = self.calls + 1.0 <= most;
        if is_admitted {
            self.calls += 1.0;
        }
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_evenly_and_a_window_at_once() {
        let start = Instant::now();
        let admitted = |by, calls: u32| {
            let quota = Quota {
                calls: 60,
                seconds: 60,
                by,
            };
            let mut used = Used::nothing(start);
            let mut admitted = |second: u64| {
                let now = start + Duration::from_secs(second);
                (0..calls).filter(|_| used.admit(quota, now)).count()
            };
            [
                admitted(0),
                admitted(10),
                admitted(59),
                admitted(70),
                admitted(119),
                admitted(700),
            ]
        };
        assert_eq!(admitted(Enforcement::Bucket, 100), [60, 10, 49, 11, 49, 60]);
        assert_eq!(admitted(Enforcement::Windows, 100), [60, 0, 0, 60, 0, 60]);
        assert_eq!(admitted(Enforcement::Windows, 25), [25, 25, 10, 25, 25, 25]);
    }
}
