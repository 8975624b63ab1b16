//! Go durations (<https://pkg.go.dev/time#ParseDuration>), as kubectl and other APIs of Kubernetes write them.

use jiff::SignedDuration;
use thiserror::Error;

/// Longest text, in bytes.
const MAX_LENGTH: usize = 32;

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DurationError {
    /// It has another form.
    #[error("must be a Go duration such as 20m or 1h30m, without a sign, at most {MAX_LENGTH} bytes")]
    Syntax,
    /// It does not fit into 64 bits of seconds.
    #[error("is too long")]
    TooLong,
}

/// Parses a Go duration without a sign, such as `1h30m`. kube's parser panics on numbers that do not fit.
///
/// # Errors
/// The text is no such duration, or too long.
pub fn parse(text: &str) -> Result<SignedDuration, DurationError> {
    let is_numeric = |c: char| c.is_ascii_digit() || c == '.';
    let mut total = SignedDuration::ZERO;
    let mut rest = text;
    if rest.is_empty() || rest.len() > MAX_LENGTH {
        return Err(DurationError::Syntax);
    }
    while !rest.is_empty() {
        let unit_start = rest.find(|c| !is_numeric(c)).ok_or(DurationError::Syntax)?;
        let (number, tail) = rest.split_at(unit_start);
        let (unit, tail) = tail.split_at(tail.find(is_numeric).unwrap_or(tail.len()));
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(DurationError::Syntax),
        };
        total = SignedDuration::try_from_secs_f64(parse_number(number)? * seconds)
            .ok()
            .and_then(|part| total.checked_add(part))
            .ok_or(DurationError::TooLong)?;
        rest = tail;
    }
    Ok(total)
}

/// Digits, with digits on both sides of a decimal point if there is one.
fn parse_number(text: &str) -> Result<f64, DurationError> {
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !is_digits(whole) || !is_digits(fraction) {
        return Err(DurationError::Syntax);
    }
    text.parse().map_err(|_| DurationError::Syntax)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in [
            ("20m", 1_200_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("1m0.5s", 60_500),
            ("2000us", 2),
            ("2000\u{b5}s", 2),
            ("0s", 0),
        ] {
            assert_eq!(
                parse(text),
                Ok(SignedDuration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn other_texts_are_errors() {
        for text in [
            "", "20", "m", "-1s", "+1s", "1 s", "1d", ".5s", "1.s", "1.2.3s", "1e3s", "s1",
        ] {
            assert_eq!(parse(text), Err(DurationError::Syntax), "{text}");
        }
        assert_eq!(parse(&"1s".repeat(17)), Err(DurationError::Syntax));
        for text in ["99999999999999999999h", "9223372036854775807s1s"] {
            assert_eq!(parse(text), Err(DurationError::TooLong), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_is_never_negative(text in "([0-9.]{0,20}(ns|us|\u{b5}s|ms|s|m|h|d|)){0,4}") {
            if let Ok(duration) = parse(&text) {
                prop_assert!(!duration.is_negative());
            }
        }
    }
}
