//! Pure: the outcome of a reconcile → its log line: one if it did something or failed, none otherwise. Then the line is logged.

use std::time::Duration;

use jiff::Timestamp;

use super::outcome::{CurrentToken, Outcome, Reconciled};
use crate::api::ObjectKey;
use crate::api::conditions::reason;
use crate::classify::Classify;
use crate::controller::issue::IssueCause;
use crate::kubernetes::error::KubeError;

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
struct LogLine {
    is_warning: bool,
    reason: &'static str,
    cause: Option<IssueCause>,
    /// Attempts in a row that have failed, if one was made in this reconcile.
    attempts: Option<u32>,
    message: String,
}

/// Logs the reconcile. `published` says whether the status was written, `next` when the request is reconciled again.
pub(super) fn log(
    key: &ObjectKey,
    reconciled: &Reconciled,
    published: &Result<bool, KubeError>,
    next: Option<Timestamp>,
    elapsed: Duration,
) {
    let Some(line) = log_line(&reconciled.outcome, published) else {
        return;
    };
    let outcome = &reconciled.outcome;
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                namespace = key.namespace(),
                name = key.name(),
                source = reconciled.source.unwrap_or("Unknown"),
                reason = line.reason,
                duration = (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
                cause = line.cause.map(tracing::field::debug),
                attempts = line.attempts,
                expires = outcome
                    .token()
                    .and_then(CurrentToken::expiry)
                    .map(tracing::field::display),
                next = next.map(tracing::field::display),
                "{}",
                line.message
            )
        };
    }
    match line.is_warning {
        true => log!(warn),
        false => log!(info),
    }
}

fn log_line(outcome: &Outcome, published: &Result<bool, KubeError>) -> Option<LogLine> {
    let has_acted = matches!(
        outcome,
        Outcome::Issued(..) | Outcome::Repaired(_) | Outcome::Unchanged(_) | Outcome::Failed(..)
    );
    if !has_acted && matches!(published, Ok(false)) {
        return None;
    }
    let (reason, message) = match outcome {
        Outcome::Issued(..) => (reason::ISSUED, "a token was issued"),
        Outcome::Repaired(_) => (reason::RECONCILED, "the Secret was repaired from its own token"),
        Outcome::Unchanged(_) => (
            reason::UNCHANGED,
            "the metadata server returned the same token again",
        ),
        Outcome::Suspended(_) => (reason::SUSPENDED, "the request is suspended"),
        Outcome::Denied(failure) | Outcome::Waiting(failure) | Outcome::Failed(failure, _) => {
            (failure.reason, failure.message.as_str())
        }
        Outcome::Kept(_) | Outcome::Deferred { .. } | Outcome::Stale | Outcome::Gone => {
            (reason::RECONCILED, "the status is up to date again")
        }
    };
    let is_failure = outcome.failure().is_some();
    let unpublished = published.as_ref().err();
    Some(LogLine {
        is_warning: is_failure || unpublished.is_some(),
        reason: match unpublished {
            Some(error) if !is_failure => error.reason(),
            _ => reason,
        },
        cause: match outcome {
            Outcome::Issued(_, cause) => Some(*cause),
            _ => None,
        },
        attempts: match outcome {
            Outcome::Failed(_, attempts) => Some(*attempts),
            _ => None,
        },
        message: match unpublished {
            Some(error) => format!("{message}; the status was not written: {error}"),
            None => message.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::reconcile::outcome::Failure;
    use crate::fixtures::current_token;

    fn failure() -> Failure {
        Failure {
            reason: reason::NOT_GRANTED,
            message: "no grant".to_owned(),
            ..Failure::default()
        }
    }

    #[test]
    fn a_reconcile_that_did_nothing_logs_nothing() {
        assert_eq!(log_line(&Outcome::Kept(current_token()), &Ok(false)), None);
        assert_eq!(
            log_line(&Outcome::Waiting(failure()), &Ok(false)),
            None,
            "a known failure that is waited for"
        );
        assert!(
            log_line(&Outcome::Waiting(failure()), &Ok(true)).is_some(),
            "the status is news"
        );
        let line = log_line(&Outcome::Failed(failure(), 2), &Ok(false)).unwrap();
        assert_eq!(
            (line.is_warning, line.reason, line.attempts, line.message.as_str()),
            (true, "NotGranted", Some(2), "no grant")
        );
    }

    #[test]
    fn what_was_done_and_what_failed_is_one_line() {
        let issued = Outcome::Issued(current_token(), IssueCause::Due);
        let line = log_line(&issued, &Ok(true)).unwrap();
        assert_eq!(
            (line.is_warning, line.reason, line.cause),
            (false, "Issued", Some(IssueCause::Due))
        );
        let timed_out = || Err(KubeError::TimedOut { seconds: 30 });
        let line = log_line(&issued, &timed_out()).unwrap();
        assert_eq!((line.is_warning, line.reason), (true, "TimedOut"));
        assert!(
            line.message
                .starts_with("a token was issued; the status was not written: "),
            "{}",
            line.message
        );
        let line = log_line(&Outcome::Waiting(failure()), &timed_out()).unwrap();
        assert_eq!(line.reason, "NotGranted");
    }
}
