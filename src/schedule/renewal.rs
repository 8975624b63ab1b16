//! Pure: when a token is renewed, and when a source that returned the same token again is polled next.

use jiff::{SignedDuration, Timestamp};

use super::jitter::{hash, scale};

/// Minimum `renewBefore` of tokens with a long lifetime: a renewal at the very end would leave an expired token after a single failure.
const MIN_BEFORE: SignedDuration = SignedDuration::from_mins(5);
const MIN_DELAY: SignedDuration = SignedDuration::from_secs(1);
/// How long before the expiry of a token the metadata server is polled for the next one: it replaces tokens about 5 minutes before they
/// expire, on serverless platforms 4 minutes.
const REFRESH_WINDOW: [SignedDuration; 2] = [SignedDuration::from_secs(285), SignedDuration::from_secs(225)];
/// The interval of polls after that: 10 to 30 s.
const POLL_INTERVAL: (SignedDuration, SignedDuration) =
    (SignedDuration::from_secs(10), SignedDuration::from_secs(20));

/// When a token is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The moment of the renewal.
    pub at: Timestamp,
    /// The `renewBefore` that is used if the one in the spec leaves less than a fifth of the lifetime between renewals, or too little of it
    /// for further attempts.
    pub clamped_to: Option<SignedDuration>,
}

/// The moment to renew a token: `exp - renew_before`, minus a jitter of up to a tenth of the lifetime. The jitter depends on `uid` alone, so
/// that a restart keeps it. Without `renew_before` it is half of the lifetime. It is clamped to leave at least a fifth of the lifetime
/// between renewals, and at least a tenth of the lifetime or 5 minutes, whichever is less, for further attempts.
pub fn renewal(
    issued: Timestamp,
    expires: Timestamp,
    renew_before: Option<SignedDuration>,
    uid: &str,
) -> Renewal {
    let lifetime = expires.duration_since(issued).max(SignedDuration::from_secs(1));
    let jitter = scale(lifetime / 10, hash(uid, 0));
    let wanted = renew_before.unwrap_or(lifetime / 2);
    let most = lifetime - lifetime / 5 - jitter;
    let least = (lifetime / 10).min(MIN_BEFORE);
    let used = wanted.max(least).min(most);
    Renewal {
        // Saturating: any client can write any time into a Secret.
        at: expires.saturating_sub(used + jitter).unwrap_or(expires),
        clamped_to: (wanted != used).then_some(used),
    }
}

/// When the next renewal by annotation may be honoured, if the last one was at `last` and `interval` lies between two at least. After a
/// clock was set back, `last` says nothing.
pub fn next_renewal(last: Option<Timestamp>, interval: SignedDuration, now: Timestamp) -> Timestamp {
    let next = last
        .filter(|last| *last <= now)
        .map(|last| last.saturating_add(interval));
    next.and_then(Result::ok).map_or(now, |next| next.max(now))
}

/// When to poll the source again after it returned the same token, which expires at `expires`. That is no renewal and no failure. `uid`
/// spreads requests over up to 10 s.
pub fn next_poll(expires: Timestamp, now: Timestamp, uid: &str) -> Timestamp {
    let spread = scale(SignedDuration::from_secs(10), hash(uid, 1));
    let planned = REFRESH_WINDOW
        .into_iter()
        .filter_map(|before| expires.saturating_sub(before - spread).ok())
        .find(|at| *at >= now.saturating_add(MIN_DELAY).unwrap_or(now));
    planned.unwrap_or_else(|| {
        let second = u32::try_from(now.as_second().rem_euclid(1 << 20)).unwrap_or_default();
        let wait = POLL_INTERVAL.0 + scale(POLL_INTERVAL.1, hash(uid, second));
        // Tokens with a short lifetime expire before that.
        let wait = wait.min((expires.duration_since(now) / 4).max(MIN_DELAY));
        now.saturating_add(wait).unwrap_or(now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    proptest! {
        #[test]
        fn renewal_lies_within_the_lifetime(lifetime in 1_i64..1_000_000, before in proptest::option::of(0_i64..2_000_000), uid in "[a-f0-9-]{36}") {
            let renewal = renewal(at(0), at(lifetime), before.map(SignedDuration::from_secs), &uid);
            prop_assert!(renewal.at <= at(lifetime));
            let life = SignedDuration::from_secs(lifetime);
            prop_assert!(renewal.at.duration_since(at(0)) >= life / 5 - SignedDuration::from_millis(1));
            let least = (life / 10).min(MIN_BEFORE);
            prop_assert!(at(lifetime).duration_since(renewal.at) >= least);
            if let (Some(before), None) = (before, renewal.clamped_to) {
                let wanted = at(lifetime) - SignedDuration::from_secs(before);
                prop_assert!(renewal.at <= wanted);
                prop_assert!(wanted.duration_since(renewal.at) <= life / 10);
            }
        }

        #[test]
        fn an_unchanged_token_is_polled_again_before_it_expires(lifetime in 1_i64..8000, uid in "[a-f0-9-]{36}") {
            let expires = at(lifetime);
            let mut now = at(0);
            let mut polls = 0;
            while now < expires {
                let left = expires.duration_since(now).as_secs();
                let next = next_poll(expires, now, &uid);
                let wait = next.duration_since(now);
                prop_assert!(wait >= MIN_DELAY);
                if left > 285 {
                    let before = expires.duration_since(next).as_secs();
                    prop_assert!((275..=285).contains(&before), "{} s before the end", before);
                } else {
                    prop_assert!(wait <= SignedDuration::from_secs(61));
                    prop_assert!(left > 215 || wait <= SignedDuration::from_secs(30), "{} of {}", wait, left);
                }
                if left > 4 {
                    prop_assert!(next < expires);
                }
                now = next;
                polls += 1;
            }
            prop_assert!(polls <= 60, "polls {} times", polls);
        }
    }

    #[test]
    fn jitter_differs_between_uids_and_not_between_calls() {
        let times: std::collections::BTreeSet<_> = (0..100)
            .map(|n| renewal(at(0), at(3600), None, &format!("uid-{n}")).at)
            .collect();
        assert!(times.len() > 90, "{} different times", times.len());
        assert_eq!(
            renewal(at(0), at(3600), None, "a"),
            renewal(at(0), at(3600), None, "a")
        );
    }

    #[test]
    fn no_time_that_a_secret_can_hold_panics() {
        for (issued, expires) in [
            (Timestamp::MIN, Timestamp::MIN),
            (Timestamp::MAX, Timestamp::MIN),
            (Timestamp::MIN, Timestamp::MAX),
        ] {
            for before in [None, Some(SignedDuration::MAX), Some(SignedDuration::ZERO)] {
                assert!(renewal(issued, expires, before, "uid").at <= expires);
            }
        }
    }
}
