//! Pure: when an attempt is repeated after a failure, and what is kept of failures in a row.

use jiff::{SignedDuration, Timestamp};

use super::jitter::{hash, scale};
use crate::classify::ErrorClass;

/// Longest delay after a rejection during the first hour: a new IAM binding typically takes 2 minutes to take effect, or 7 and longer
/// (<https://cloud.google.com/iam/docs/access-change-propagation>).
const REJECTED_CAP_FIRST_HOUR: SignedDuration = SignedDuration::from_mins(2);
const REJECTED_CAP_LATER: SignedDuration = SignedDuration::from_mins(10);
const REJECTED_BASE: SignedDuration = SignedDuration::from_secs(5);
const TRANSIENT_BASE: SignedDuration = SignedDuration::from_secs(1);
const TRANSIENT_CAP: SignedDuration = SignedDuration::from_mins(2);
const MIN_DELAY: SignedDuration = SignedDuration::from_secs(1);

/// The first pause after tokens that could not be written although the write was rehearsed, and the longest.
const LOST_TOKEN_BASE: SignedDuration = SignedDuration::from_mins(5);
const LOST_TOKEN_CAP: SignedDuration = SignedDuration::from_hours(1);
const LOST_TOKEN_MIN: SignedDuration = SignedDuration::from_mins(1);

/// What failed attempts depend on: a change of any of it makes further waiting pointless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackoffKey {
    /// `metadata.generation`.
    pub generation: i64,
    /// The annotation that requests a renewal.
    pub renew: Option<String>,
    /// Name of the grant that allows the request.
    pub grant: Option<String>,
}

/// Failures in a row of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// Stable reason of the last one.
    pub reason: &'static str,
    /// Message of the last one.
    pub message: String,
    /// Class of the last one.
    pub class: ErrorClass,
    /// How many. Counted from zero again when Google is back after an outage.
    pub attempts: u32,
    /// When the first was.
    pub since: Timestamp,
    /// When the last was.
    pub at: Timestamp,
    /// When the next attempt is due.
    pub next: Timestamp,
    /// Whether a user has to act. The Secret is then read before the next attempt.
    pub needs_user_action: bool,
    /// Whether Google failed and there is no valid token: the next attempt is due as soon as Google is back.
    pub awaits_google: bool,
    /// What they depend on.
    pub key: BackoffKey,
}

/// A failed attempt.
#[derive(Clone, Debug)]
pub struct FailedAttempt {
    /// Since when the same is known to fail, if that is longer than the failures in a row: as before a restart.
    pub since: Option<Timestamp>,
    /// Stable reason.
    pub reason: &'static str,
    /// What failed and what to do.
    pub message: String,
    /// Whether it is likely to pass.
    pub class: ErrorClass,
    /// What the server asked for.
    pub retry_after: Option<std::time::Duration>,
    /// Whether a user has to act.
    pub needs_user_action: bool,
    /// When the current token expires, if there is one.
    pub expires: Option<Timestamp>,
    /// Whether Google failed, or the operator made no call because it fails.
    pub is_from_google: bool,
}

impl Backoff {
    /// The failures in a row, if the delay after them still makes sense: what it depends on is the same, and the clock was not set back
    /// before the last attempt. A renewal by annotation ends it once one may be honoured, at `renewal`.
    pub fn at(&self, key: &BackoffKey, renewal: Timestamp, now: Timestamp) -> Option<Self> {
        let same = self.key.generation == key.generation && self.key.grant == key.grant;
        let next = match self.key.renew == key.renew {
            true => self.next,
            false if renewal > now => self.next.min(renewal),
            false => return None,
        };
        (same && self.at <= now).then(|| Self { next, ..self.clone() })
    }

    /// The failures in a row after `attempt`. `previous` are the failures before it with the same `key`.
    pub fn next(
        previous: Option<&Self>,
        attempt: FailedAttempt,
        key: BackoffKey,
        uid: &str,
        now: Timestamp,
    ) -> Self {
        let since = previous.map_or(attempt.since.unwrap_or(now).min(now), |backoff| backoff.since);
        let retry = Retry {
            class: attempt.class,
            attempts: previous.map_or(1, |backoff| backoff.attempts.saturating_add(1)),
            since_first: now.duration_since(since),
            waited: previous.map(|backoff| backoff.next.duration_since(backoff.at)),
            retry_after: attempt.retry_after,
            remaining: attempt.expires.map(|expires| expires.duration_since(now)),
        };
        let delay = retry.delay(uid).max(SignedDuration::ZERO);
        Self {
            reason: attempt.reason,
            message: attempt.message,
            class: attempt.class,
            attempts: retry.attempts,
            since,
            at: now,
            next: now.saturating_add(delay).unwrap_or(now),
            needs_user_action: attempt.needs_user_action,
            awaits_google: attempt.is_from_google
                && attempt.class == ErrorClass::Transient
                && attempt.expires.is_none(),
            key,
        }
    }

    /// Google is back. Returns whether that ends the wait. The failures in the outage no longer count: if the quota is exceeded in the
    /// recovery, the next delay is short.
    pub fn end(&mut self, now: Timestamp) -> bool {
        if self.awaits_google {
            self.attempts = 0;
        }
        let ends = self.awaits_google && self.next > now;
        if ends {
            self.next = now;
        }
        ends
    }
}

/// What decides the delay after a failed attempt.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Whether the failure is likely to pass.
    pub class: ErrorClass,
    /// How many attempts have failed in a row, this one included.
    pub attempts: u32,
    /// Time since the first of them.
    pub since_first: SignedDuration,
    /// The delay after the failure before this one, if there was one.
    pub waited: Option<SignedDuration>,
    /// What the server asked for.
    pub retry_after: Option<std::time::Duration>,
    /// Remaining lifetime of the current token, if there is one.
    pub remaining: Option<SignedDuration>,
}

impl Retry {
    /// The delay. `uid` jitters it by up to a quarter.
    pub fn delay(&self, uid: &str) -> SignedDuration {
        let (base, cap) = match self.class {
            ErrorClass::Rejected if self.since_first < SignedDuration::from_hours(1) => {
                (REJECTED_BASE, REJECTED_CAP_FIRST_HOUR)
            }
            ErrorClass::Rejected => (REJECTED_BASE, REJECTED_CAP_LATER),
            ErrorClass::Transient => (TRANSIENT_BASE, TRANSIENT_CAP),
        };
        let doublings = self.attempts.saturating_sub(1).min(16);
        let delay = (base * (1_i32 << doublings)).min(cap);
        let delay = (delay - scale(delay / 4, hash(uid, self.attempts))).max(MIN_DELAY);
        // Retries were frequent while a token was valid; do not jump to the cap when it expires. Grow at most threefold (doubling plus
        // jitter).
        let delay = match self.waited {
            Some(waited) => delay.min(waited.saturating_mul(3).max(base)),
            None => delay,
        };
        let delay = match self.remaining {
            Some(remaining) => delay.min((remaining / 4).max(MIN_DELAY)),
            None => delay,
        };
        let requested = self
            .retry_after
            .and_then(|requested| SignedDuration::try_from(requested).ok());
        requested.map_or(delay, |requested| delay.max(requested))
    }
}

/// How long no token is issued after `lost` ones in a row could not be written. The first one may have met an outage. The write of each
/// further one was rehearsed before, so only the write itself can show whether it works, and each try costs a token.
pub fn pause_after_lost_tokens(lost: u32, remaining: Option<SignedDuration>) -> Option<std::time::Duration> {
    let doublings = lost.checked_sub(2)?.min(16);
    let pause = (LOST_TOKEN_BASE * (1_i32 << doublings)).min(LOST_TOKEN_CAP);
    let pause = match remaining {
        Some(remaining) => pause.min((remaining / 4).max(LOST_TOKEN_MIN)),
        None => pause,
    };
    Some(pause.unsigned_abs())
}

/// How long an attempt stays away that was deferred by `by`: up to twice as long, and at most a quarter of the remaining lifetime of the
/// current token.
pub fn deferral(
    by: std::time::Duration,
    remaining: Option<SignedDuration>,
    uid: &str,
    now: Timestamp,
) -> SignedDuration {
    let by = SignedDuration::try_from(by).unwrap_or(TRANSIENT_CAP);
    // Another jitter each time: otherwise the same requests would always come too late.
    let delay = by + scale(by, hash(uid, now.as_second() as u32));
    remaining
        .map_or(delay, |remaining| delay.min(remaining / 4))
        .max(MIN_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn key() -> BackoffKey {
        BackoffKey {
            generation: 1,
            renew: None,
            grant: None,
        }
    }

    fn failed(class: ErrorClass) -> FailedAttempt {
        FailedAttempt {
            since: None,
            reason: "Failed",
            message: String::new(),
            class,
            retry_after: None,
            needs_user_action: false,
            expires: None,
            is_from_google: class == ErrorClass::Transient,
        }
    }

    proptest! {
        #[test]
        fn retries_are_bounded(attempts in 1_u32..100, age in 0_i64..100_000, rejected: bool, left in proptest::option::of(1_i64..4000)) {
            let class = if rejected { ErrorClass::Rejected } else { ErrorClass::Transient };
            let since_first = SignedDuration::from_secs(age);
            let remaining = left.map(SignedDuration::from_secs);
            let delay = Retry { class, attempts, since_first, waited: None, retry_after: None, remaining }.delay("uid");
            prop_assert!(delay >= MIN_DELAY);
            let cap = if age < 3600 { REJECTED_CAP_FIRST_HOUR } else { REJECTED_CAP_LATER };
            prop_assert!(delay <= cap);
            if let Some(left) = remaining {
                prop_assert!(delay <= (left / 4).max(MIN_DELAY));
            }
        }
    }

    #[test]
    fn the_end_of_a_token_does_not_make_waits_long_at_once() {
        let mut waited = None;
        let mut failure = |attempts, left: Option<i64>| {
            let delay = Retry {
                class: ErrorClass::Transient,
                attempts,
                since_first: SignedDuration::from_secs(attempts.into()),
                waited,
                retry_after: None,
                remaining: left.map(SignedDuration::from_secs),
            }
            .delay("uid");
            waited = Some(delay);
            delay
        };
        for attempts in 1..=20 {
            assert_eq!(failure(attempts, Some(4)), MIN_DELAY);
        }
        assert!(failure(21, None) <= SignedDuration::from_secs(3));
        let later: Vec<_> = (22..32).map(|attempts| failure(attempts, None)).collect();
        assert!(later.last() > Some(&(TRANSIENT_CAP / 2)), "{later:?}");
    }

    #[test]
    fn tokens_that_cannot_be_written_are_few() {
        let minutes = |lost| pause_after_lost_tokens(lost, None).map(|pause| pause.as_secs() / 60);
        let pauses: Vec<_> = (0..8).map(minutes).collect();
        let expected = [
            None,
            None,
            Some(5),
            Some(10),
            Some(20),
            Some(40),
            Some(60),
            Some(60),
        ];
        assert_eq!(pauses, expected);
        assert_eq!(minutes(u32::MAX), Some(60));
        let left = |seconds| pause_after_lost_tokens(5, Some(SignedDuration::from_secs(seconds)));
        assert_eq!(
            left(1200),
            Some(std::time::Duration::from_secs(300)),
            "a quarter of what is left"
        );
        assert_eq!(left(8), Some(std::time::Duration::from_secs(60)));
    }

    #[test]
    fn an_annotation_ends_a_delay_once_a_renewal_may_be_honoured() {
        let key = |renew: &str, generation| BackoffKey {
            generation,
            renew: Some(renew.to_owned()),
            grant: None,
        };
        let attempt = FailedAttempt {
            retry_after: Some(std::time::Duration::from_secs(300)),
            ..failed(ErrorClass::Rejected)
        };
        let backoff = Backoff::next(None, attempt, key("a", 1), "uid", at(100));
        let next =
            |key: &BackoffKey, renewal, now| backoff.at(key, at(renewal), at(now)).map(|waits| waits.next);
        assert_eq!(next(&key("a", 1), 0, 110), Some(at(400)));
        assert_eq!(next(&key("b", 1), 160, 110), Some(at(160)), "deferred, not lost");
        assert_eq!(next(&key("b", 1), 160, 160), None);
        assert_eq!(
            next(&key("b", 1), 500, 110),
            Some(at(400)),
            "the retry comes first"
        );
        assert_eq!(next(&key("b", 2), 160, 110), None, "another spec");
        assert_eq!(next(&key("a", 1), 0, 99), None, "a clock that was set back");
    }

    #[test]
    fn failures_in_a_row_began_when_they_are_known_to_have_begun() {
        let attempt = |since: Option<i64>| FailedAttempt {
            since: since.map(at),
            ..failed(ErrorClass::Rejected)
        };
        let first = |since| Backoff::next(None, attempt(since), key(), "uid", at(1000));
        assert_eq!(first(None).since, at(1000));
        assert_eq!(first(Some(100)).since, at(100), "before a restart");
        assert_eq!(first(Some(2000)).since, at(1000), "a clock that was set back");
        let second = Backoff::next(
            Some(&first(Some(100))),
            attempt(Some(500)),
            key(),
            "uid",
            at(1100),
        );
        assert_eq!(second.since, at(100));
    }

    #[test]
    fn google_is_waited_for_only_without_a_valid_token() {
        for (is_from_google, class, expires, ends) in [
            (true, ErrorClass::Transient, None, true),
            (true, ErrorClass::Transient, Some(2000), false),
            (true, ErrorClass::Rejected, None, false),
            (false, ErrorClass::Transient, None, false),
        ] {
            let attempt = FailedAttempt {
                retry_after: Some(std::time::Duration::from_secs(100)),
                expires: expires.map(at),
                is_from_google,
                ..failed(class)
            };
            let mut backoff = Backoff::next(None, attempt, key(), "uid", at(1000));
            assert_eq!(backoff.end(at(1050)), ends, "{class:?}, {expires:?}");
            assert_eq!(backoff.next, at(if ends { 1050 } else { 1100 }));
            assert!(!backoff.end(at(1200)), "it is over");
        }
    }

    #[test]
    fn a_refusal_after_an_outage_is_repeated_soon() {
        let next = |previous: Option<&Backoff>, now| {
            Backoff::next(previous, failed(ErrorClass::Transient), key(), "uid", now)
        };
        let mut backoff = next(None, at(0));
        for _ in 0..20 {
            backoff = next(Some(&backoff), backoff.next);
        }
        let now = backoff.at + SignedDuration::from_secs(1);
        assert!(backoff.next > now + SignedDuration::from_mins(1));
        // Whether it still waits or is already due.
        for back in [now, backoff.next] {
            let mut backoff = backoff.clone();
            backoff.end(back);
            let refused = next(Some(&backoff), back);
            assert_eq!(refused.next, back + MIN_DELAY);
        }
    }

    #[test]
    fn retry_after_is_obeyed() {
        let failure = Retry {
            class: ErrorClass::Transient,
            attempts: 1,
            since_first: SignedDuration::ZERO,
            waited: None,
            retry_after: Some(std::time::Duration::from_secs(77)),
            remaining: Some(SignedDuration::from_secs(10)),
        };
        assert_eq!(failure.delay("uid"), SignedDuration::from_secs(77));
    }
}
