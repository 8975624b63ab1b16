//! When a notice that concerns all requests was last given: each request finds the same, and one notice an hour is enough.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

const INTERVAL: SignedDuration = SignedDuration::from_hours(1);

/// When each notice was last given.
#[derive(Debug, Default)]
pub(super) struct Notices(HashMap<&'static str, Timestamp>);

impl Notices {
    /// Whether to give the notice `reason` at `now`, which counts as given then.
    pub(super) fn should_notify(&mut self, reason: &'static str, now: Timestamp) -> bool {
        let last = self.0.get(reason);
        // A clock that was set back counts as well as one that went on.
        let due = last.is_none_or(|last| now.duration_since(*last).abs() >= INTERVAL);
        if due {
            self.0.insert(reason, now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    #[test]
    fn a_notice_is_given_once_an_hour() {
        let mut notices = Notices::default();
        for (second, due) in [
            (10_000, true),
            (10_000, false),
            (13_599, false),
            (13_600, true),
            (10_001, false),
            (10_000, true),
        ] {
            assert_eq!(notices.should_notify("ClockSkew", at(second)), due, "{second}");
        }
        assert!(notices.should_notify("Another", at(10_000)));
    }
}
