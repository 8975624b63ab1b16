//! Durations and times as text.

use jiff::{SignedDuration, Timestamp};

/// A duration as kubectl shows ages: its two largest units, such as `42m`, `3h5m` or `2d4h`, without a sign.
pub(crate) fn age(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().unsigned_abs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, name) in units {
        if rest >= size {
            parts.push(format!("{}{name}", rest / size));
            rest %= size;
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.concat()
    }
}

/// A time and its distance from now: `2026-01-02T03:04:05Z (in 42m)`.
pub(crate) fn relative(time: Timestamp, now: Timestamp) -> String {
    let distance = time.duration_since(now);
    if distance.is_negative() {
        format!("{time} ({} ago)", age(distance))
    } else {
        format!("{time} (in {})", age(distance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (150, "2m30s"),
            (3_600, "1h"),
            (3_605, "1h"),
            (11_100, "3h5m"),
            (187_200, "2d4h"),
            (-90, "1m30s"),
        ] {
            assert_eq!(age(SignedDuration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn past_and_future() {
        let now = Timestamp::UNIX_EPOCH;
        let at = |seconds| relative(Timestamp::from_second(seconds).unwrap(), now);
        assert_eq!(at(120), "1970-01-01T00:02:00Z (in 2m)");
        assert_eq!(at(-5), "1969-12-31T23:59:55Z (5s ago)");
    }
}
