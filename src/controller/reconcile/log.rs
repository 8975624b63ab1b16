//! The log line of a reconcile: one where it did something or failed, none otherwise.

use std::time::Duration;

use crate::api::conditions::reason;
use crate::controller::cache::ObjectKey;
use crate::controller::reconcile::plan::IssueCause;
use crate::controller::reconcile::status::{CurrentToken, Report};
use crate::kubernetes::error::KubeError;

/// What a reconcile did to the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It wrote a new token.
    Issued(IssueCause),
    /// It wrote the stored token anew.
    Repaired,
    /// It asked for a new token and got the same one.
    Unchanged,
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    warns: bool,
    reason: &'static str,
    cause: Option<IssueCause>,
    message: String,
}

/// Writes the line. `published` tells whether the status was written.
pub(crate) fn write(key: &ObjectKey, report: &Report, published: &Result<bool, KubeError>, took: Duration) {
    let Some(line) = line(report, published) else {
        return;
    };
    macro_rules! write {
        ($level:ident) => {
            tracing::$level!(
                namespace = key.namespace(),
                name = key.name(),
                source = report.source.unwrap_or("Unknown"),
                reason = line.reason,
                duration = (took.as_secs_f64() * 1000.0).round() / 1000.0,
                cause = line.cause.map(tracing::field::debug),
                attempts = report.attempts,
                expires = report
                    .held
                    .as_ref()
                    .and_then(CurrentToken::expiry)
                    .map(tracing::field::display),
                next = report.next.map(tracing::field::display),
                "{}",
                line.message
            )
        };
    }
    match line.warns {
        true => write!(warn),
        false => write!(info),
    }
}

fn line(report: &Report, published: &Result<bool, KubeError>) -> Option<Line> {
    let has_tried = report.attempts.is_some();
    if report.acted.is_none() && !has_tried && matches!(published, Ok(false)) {
        return None;
    }
    let (reason, said) = match (&report.failure, report.acted) {
        (Some(failure), _) => (failure.reason, failure.message.as_str()),
        (None, Some(Action::Issued(_))) => (reason::ISSUED, "a token was issued"),
        (None, Some(Action::Repaired)) => (
            reason::RECONCILED,
            "the Secret was written anew from its own token",
        ),
        (None, Some(Action::Unchanged)) => {
            (reason::UNCHANGED, "the metadata server gave the same token again")
        }
        (None, None) if report.suspended => (reason::SUSPENDED, "the request is suspended"),
        (None, None) => (reason::RECONCILED, "the status is up to date again"),
    };
    let fault = published.as_ref().err();
    Some(Line {
        warns: report.failure.is_some() || fault.is_some(),
        reason: match (&report.failure, fault) {
            (None, Some(fault)) => fault.reason(),
            _ => reason,
        },
        cause: match report.acted {
            Some(Action::Issued(cause)) => Some(cause),
            _ => None,
        },
        message: match fault {
            Some(fault) => format!("{said}; the status was not written: {fault}"),
            None => said.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::reconcile::status::Failure;

    fn failed() -> Report {
        Report {
            failure: Some(Failure {
                reason: reason::NOT_GRANTED,
                message: "no grant".to_owned(),
                stalled: false,
            }),
            ..Report::default()
        }
    }

    #[test]
    fn nothing_is_said_where_nothing_was_done() {
        assert_eq!(line(&Report::default(), &Ok(false)), None);
        // A known failure that is waited out.
        assert_eq!(line(&failed(), &Ok(false)), None);
        // Told by the status, tried again, or told nowhere.
        assert!(line(&failed(), &Ok(true)).is_some());
        let again = Report {
            attempts: Some(2),
            ..failed()
        };
        let said = line(&again, &Ok(false)).unwrap();
        assert_eq!(
            (said.warns, said.reason, said.message.as_str()),
            (true, "NotGranted", "no grant")
        );
    }

    #[test]
    fn what_was_done_and_what_failed_is_one_line() {
        let issued = Report {
            acted: Some(Action::Issued(IssueCause::Due)),
            ..Report::default()
        };
        let said = line(&issued, &Ok(true)).unwrap();
        assert_eq!(
            (said.warns, said.reason, said.cause),
            (false, "Issued", Some(IssueCause::Due))
        );
        let late = || Err(KubeError::TimedOut { seconds: 30 });
        let said = line(&issued, &late()).unwrap();
        assert_eq!((said.warns, said.reason), (true, "TimedOut"));
        assert!(
            said.message
                .starts_with("a token was issued; the status was not written: "),
            "{}",
            said.message
        );
        assert_eq!(line(&failed(), &late()).unwrap().reason, "NotGranted");
    }
}
