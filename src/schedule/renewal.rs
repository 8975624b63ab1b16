//! Pure: when a token is renewed and when a failed attempt is repeated.

use jiff::{SignedDuration, Timestamp};

/// A failed attempt's class decides how soon it is repeated.
pub use crate::google::ErrorClass;

/// Longest wait after a refusal during the first hour: a new IAM binding takes up to 7 minutes to hold
/// (<https://cloud.google.com/iam/docs/access-change-propagation>).
const REFUSED_CAP_FIRST_HOUR: SignedDuration = SignedDuration::from_mins(2);
const REFUSED_CAP_LATER: SignedDuration = SignedDuration::from_mins(10);
const REFUSED_BASE: SignedDuration = SignedDuration::from_secs(5);
const PASSING_BASE: SignedDuration = SignedDuration::from_secs(1);
const PASSING_CAP: SignedDuration = SignedDuration::from_mins(2);
/// Least `renewBefore` of tokens that live long: at the very end, a single failure would leave an expired token.
const LEAST_BEFORE: SignedDuration = SignedDuration::from_mins(5);
const SHORTEST: SignedDuration = SignedDuration::from_secs(1);
/// How long before a token's end a metadata server that gives the same one again is asked anew: it replaces tokens about 5 minutes
/// before their end, serverless ones 4 minutes.
const REPLACED_BEFORE: [SignedDuration; 2] = [SignedDuration::from_secs(285), SignedDuration::from_secs(225)];
/// After these, how often it is asked: every 10 to 30 s.
const ASKED_EVERY: (SignedDuration, SignedDuration) =
    (SignedDuration::from_secs(10), SignedDuration::from_secs(20));

/// When a token is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The moment of the renewal.
    pub at: Timestamp,
    /// The `renewBefore` that was used instead of the one asked for, which left less than a fifth of the lifetime between renewals, or too
    /// little of it to try again in.
    pub clamped_to: Option<SignedDuration>,
}

/// The moment to renew a token: `exp - renew_before`, minus a jitter of up to a tenth of the lifetime that depends on `uid` alone, so
/// that it is the same after a restart. `renew_before` is half of the lifetime where absent; it leaves at least a fifth of the lifetime
/// between renewals, and at least a tenth of it or 5 minutes, whichever is less, for further tries.
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
    let least = (lifetime / 10).min(LEAST_BEFORE);
    let used = wanted.max(least).min(most);
    Renewal {
        // Saturating: a Secret's times are whatever its last writer made them.
        at: expires.saturating_sub(used + jitter).unwrap_or(expires),
        clamped_to: (wanted != used).then_some(used),
    }
}

/// What decides the wait after a failed attempt.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Refused or passing.
    pub class: ErrorClass,
    /// How many attempts have failed in a row, this one included.
    pub attempts: u32,
    /// Time since the first of them.
    pub since_first: SignedDuration,
    /// The wait after the failure before this one, if there was one.
    pub waited: Option<SignedDuration>,
    /// What the server asked for.
    pub retry_after: Option<std::time::Duration>,
    /// Life left of the valid token that is held, if one is.
    pub remaining: Option<SignedDuration>,
}

/// How long to wait after a failed attempt. `uid` jitters it, by up to a quarter.
pub fn retry_delay(failure: &Failure, uid: &str) -> SignedDuration {
    let (base, cap) = match failure.class {
        ErrorClass::Rejected if failure.since_first < SignedDuration::from_hours(1) => {
            (REFUSED_BASE, REFUSED_CAP_FIRST_HOUR)
        }
        ErrorClass::Rejected => (REFUSED_BASE, REFUSED_CAP_LATER),
        ErrorClass::Transient => (PASSING_BASE, PASSING_CAP),
    };
    let doublings = failure.attempts.saturating_sub(1).min(16);
    let delay = (base * (1_i32 << doublings)).min(cap);
    let delay = (delay - scale(delay / 4, hash(uid, failure.attempts))).max(SHORTEST);
    // While a token was held the waits were short, however many there were: its end is no reason to wait long at once. Three times
    // leaves room for doubling what jitter made shorter.
    let delay = match failure.waited {
        Some(waited) => delay.min(waited.saturating_mul(3).max(base)),
        None => delay,
    };
    let delay = match failure.remaining {
        Some(left) => delay.min((left / 4).max(SHORTEST)),
        None => delay,
    };
    let asked = failure
        .retry_after
        .and_then(|asked| SignedDuration::try_from(asked).ok());
    asked.map_or(delay, |asked| delay.max(asked))
}

/// How long an attempt that was put off by `by` stays away: up to twice as long, and no longer than a quarter of the life that is left.
pub fn postponed_delay(
    by: std::time::Duration,
    remaining: Option<SignedDuration>,
    uid: &str,
    now: Timestamp,
) -> SignedDuration {
    let by = SignedDuration::try_from(by).unwrap_or(PASSING_CAP);
    // Another one each time, or the same ones would always come too late.
    let delay = by + scale(by, hash(uid, now.as_second() as u32));
    remaining.map_or(delay, |left| delay.min(left / 4)).max(SHORTEST)
}

/// When to ask again for a token that ends at `expires` after the same one came again: that is no renewal, and no failure either.
/// `uid` spreads requests over up to 10 s.
pub fn after_unchanged(expires: Timestamp, now: Timestamp, uid: &str) -> Timestamp {
    let spread = scale(SignedDuration::from_secs(10), hash(uid, 1));
    let planned = REPLACED_BEFORE
        .into_iter()
        .filter_map(|before| expires.saturating_sub(before - spread).ok())
        .find(|at| *at >= now.saturating_add(SHORTEST).unwrap_or(now));
    planned.unwrap_or_else(|| {
        let second = u32::try_from(now.as_second().rem_euclid(1 << 20)).unwrap_or_default();
        let wait = ASKED_EVERY.0 + scale(ASKED_EVERY.1, hash(uid, second));
        // Short-lived tokens end before that.
        let wait = wait.min((expires.duration_since(now) / 4).max(SHORTEST));
        now.saturating_add(wait).unwrap_or(now)
    })
}

/// `duration` times `fraction / 2^16`.
fn scale(duration: SignedDuration, fraction: u16) -> SignedDuration {
    SignedDuration::from_millis_i128(duration.as_millis() * i128::from(fraction) / 65536)
}

/// FNV-1a with a final mix, folded to 16 bits: stable across versions and platforms, which `std`'s hashers do not promise.
fn hash(text: &str, salt: u32) -> u16 {
    let fnv = text
        .bytes()
        .chain(salt.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let mixed = (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 48) as u16
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
            let least = (life / 10).min(LEAST_BEFORE);
            prop_assert!(at(lifetime).duration_since(renewal.at) >= least);
            if let (Some(before), None) = (before, renewal.clamped_to) {
                let wanted = at(lifetime) - SignedDuration::from_secs(before);
                prop_assert!(renewal.at <= wanted);
                prop_assert!(wanted.duration_since(renewal.at) <= life / 10);
            }
        }

        #[test]
        fn an_unchanged_token_is_asked_for_again_before_its_end(lifetime in 1_i64..8000, uid in "[a-f0-9-]{36}") {
            let expires = at(lifetime);
            let mut now = at(0);
            let mut asked = 0;
            while now < expires {
                let left = expires.duration_since(now).as_secs();
                let next = after_unchanged(expires, now, &uid);
                let wait = next.duration_since(now);
                prop_assert!(wait >= SHORTEST);
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
                asked += 1;
            }
            prop_assert!(asked <= 60, "asked {} times", asked);
        }

        #[test]
        fn retries_are_bounded(attempts in 1_u32..100, age in 0_i64..100_000, refused: bool, left in proptest::option::of(1_i64..4000)) {
            let class = if refused { ErrorClass::Rejected } else { ErrorClass::Transient };
            let since_first = SignedDuration::from_secs(age);
            let remaining = left.map(SignedDuration::from_secs);
            let delay = retry_delay(&Failure { class, attempts, since_first, waited: None, retry_after: None, remaining }, "uid");
            prop_assert!(delay >= SHORTEST);
            let cap = if age < 3600 { REFUSED_CAP_FIRST_HOUR } else { REFUSED_CAP_LATER };
            prop_assert!(delay <= cap);
            if let Some(left) = remaining {
                prop_assert!(delay <= (left / 4).max(SHORTEST));
            }
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

    #[test]
    fn the_end_of_a_token_does_not_make_waits_long_at_once() {
        let mut waited = None;
        let mut failure = |attempts, left: Option<i64>| {
            let delay = retry_delay(
                &Failure {
                    class: ErrorClass::Transient,
                    attempts,
                    since_first: SignedDuration::from_secs(attempts.into()),
                    waited,
                    retry_after: None,
                    remaining: left.map(SignedDuration::from_secs),
                },
                "uid",
            );
            waited = Some(delay);
            delay
        };
        for attempts in 1..=20 {
            assert_eq!(failure(attempts, Some(4)), SHORTEST);
        }
        assert!(failure(21, None) <= SignedDuration::from_secs(3));
        let later: Vec<_> = (22..32).map(|attempts| failure(attempts, None)).collect();
        assert!(later.last() > Some(&(PASSING_CAP / 2)), "{later:?}");
    }

    #[test]
    fn the_server_is_obeyed() {
        let failure = Failure {
            class: ErrorClass::Transient,
            attempts: 1,
            since_first: SignedDuration::ZERO,
            waited: None,
            retry_after: Some(std::time::Duration::from_secs(77)),
            remaining: Some(SignedDuration::from_secs(10)),
        };
        assert_eq!(retry_delay(&failure, "uid"), SignedDuration::from_secs(77));
    }
}
