use jiff::SignedDuration;
use serde_json::{Value, json};

use super::*;
use crate::controller::cache::BackoffKey;
use crate::fixtures::{at, request};
use crate::schedule::renewal::ErrorClass;

#[path = "plan_model_tests.rs"]
mod model;
#[path = "plan_ownership_tests.rs"]
mod ownership;

const T0: i64 = 1_800_000_000;

/// The Secret as `request`'s last mint at T0 left it.
fn left(request: &ValidRequest) -> SecretSummary {
    SecretSummary {
        uid: "secret".into(),
        resource_version: "7".into(),
        request: Some(request.name.clone()),
        request_uid: Some(request.uid.clone()),
        token_hash: Some(request.token_hash.clone()),
        render_hash: Some(request.render_hash.clone()),
        digest: Some("d".into()),
        issued: Some(at(T0)),
        expires: Some(at(T0 + 3600)),
        managed: true,
        ..SecretSummary::default()
    }
}

fn observed(secret: SecretSummary, content: Option<Integrity>) -> Observation {
    Observation {
        secret: Some(secret),
        unchanged_until: None,
        content,
        recorded: Some("7".into()),
        handled_renew: None,
        issued_at: None,
    }
}

fn denied() -> Denied {
    Denied::Unavailable { since: at(T0) }
}

fn retry(next: i64) -> Backoff {
    Backoff {
        reason: "Refused",
        message: String::new(),
        class: ErrorClass::Rejected,
        attempts: 1,
        at: at(T0),
        since: at(T0),
        next: at(next),
        act: false,
        basis: BackoffKey {
            generation: 1,
            renew: None,
            grant: None,
        },
    }
}

struct Case {
    name: &'static str,
    spec: Value,
    change: fn(&mut Observation),
    renew: Option<&'static str>,
    now: i64,
    /// Whether it is allowed, and when the next attempt is due after a failure.
    allowed: bool,
    retry: Option<i64>,
    expected: fn(&ValidRequest) -> Plan,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            name: "",
            spec: json!({}),
            change: |_| {},
            renew: None,
            now: T0 + 60,
            allowed: true,
            retry: None,
            expected: |request| Plan::Keep {
                until: renewal(request, at(T0), at(T0 + 3600)).at,
            },
        }
    }
}

fn edit(observed: &mut Observation, change: impl FnOnce(&mut SecretSummary)) {
    change(observed.secret.as_mut().unwrap());
}

fn cases() -> Vec<Case> {
    let late = T0 + 2400;
    vec![
        Case {
            name: "untouched",
            ..Case::default()
        },
        Case {
            name: "no Secret",
            change: |o| o.secret = None,
            expected: |_| Plan::Issue(IssueCause::Missing),
            ..Case::default()
        },
        Case {
            name: "no Secret, denied",
            change: |o| o.secret = None,
            allowed: false,
            expected: |_| Plan::Denied(denied()),
            ..Case::default()
        },
        Case {
            name: "no Secret, failed lately",
            change: |o| o.secret = None,
            retry: Some(T0 + 61),
            expected: |_| Plan::BackOff { until: at(T0 + 61) },
            ..Case::default()
        },
        Case {
            name: "no Secret, the retry is due",
            change: |o| o.secret = None,
            retry: Some(T0 + 60),
            expected: |_| Plan::Issue(IssueCause::Missing),
            ..Case::default()
        },
        Case {
            name: "no Secret, suspended",
            spec: json!({"suspend": true}),
            change: |o| o.secret = None,
            expected: |_| Plan::Suspended,
            ..Case::default()
        },
        Case {
            name: "changed behind our back",
            change: |o| edit(o, |s| s.resource_version = "8".into()),
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "never recorded, as after a crash between the two writes",
            change: |o| o.recorded = None,
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "read and intact",
            change: |o| {
                o.recorded = None;
                o.content = Some(Integrity::Intact);
            },
            ..Case::default()
        },
        Case {
            name: "read and drifted",
            change: |o| o.content = Some(Integrity::Drifted),
            expected: |_| Plan::Repair,
            ..Case::default()
        },
        Case {
            name: "read and drifted, which needs no grant",
            change: |o| o.content = Some(Integrity::Drifted),
            allowed: false,
            expected: |_| Plan::Repair,
            ..Case::default()
        },
        Case {
            name: "read and drifted, but the last repair failed",
            change: |o| o.content = Some(Integrity::Drifted),
            retry: Some(T0 + 70),
            expected: |_| Plan::BackOff { until: at(T0 + 70) },
            ..Case::default()
        },
        Case {
            name: "read and damaged",
            change: |o| o.content = Some(Integrity::Damaged),
            expected: |_| Plan::Issue(IssueCause::Damaged),
            ..Case::default()
        },
        Case {
            name: "the template changed",
            change: |o| edit(o, |s| s.render_hash = Some("v1-other".into())),
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "the template changed, read",
            change: |o| {
                edit(o, |s| s.render_hash = Some("v1-other".into()));
                o.content = Some(Integrity::Drifted);
            },
            expected: |_| Plan::Repair,
            ..Case::default()
        },
        Case {
            name: "restored from a backup",
            change: |o| edit(o, |s| s.request_uid = Some("an-earlier-life".into())),
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "the audience changed",
            change: |o| edit(o, |s| s.token_hash = Some("v1-other".into())),
            expected: |_| Plan::Issue(IssueCause::Changed),
            ..Case::default()
        },
        Case {
            name: "audience and template changed at once",
            change: |o| {
                edit(o, |s| {
                    s.token_hash = Some("v1-other".into());
                    s.render_hash = Some("v1-other".into());
                });
            },
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "the audience changed, denied",
            change: |o| edit(o, |s| s.token_hash = Some("v1-other".into())),
            allowed: false,
            expected: |_| Plan::Denied(denied()),
            ..Case::default()
        },
        Case {
            name: "due",
            now: late,
            expected: |_| Plan::Issue(IssueCause::Due),
            ..Case::default()
        },
        Case {
            name: "due and changed behind our back",
            change: |o| edit(o, |s| s.resource_version = "8".into()),
            now: late,
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "due, changed behind our back and denied: what it holds decides Ready",
            change: |o| edit(o, |s| s.resource_version = "8".into()),
            now: late,
            allowed: false,
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "due and the template changed",
            change: |o| edit(o, |s| s.render_hash = Some("v1-other".into())),
            now: late,
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "due and denied: the token is kept",
            now: late,
            allowed: false,
            expected: |_| Plan::Denied(denied()),
            ..Case::default()
        },
        Case {
            name: "not due and denied: nothing is to be done",
            allowed: false,
            ..Case::default()
        },
        Case {
            name: "not due, and an old failure says to wait",
            retry: Some(T0 + 1000),
            ..Case::default()
        },
        Case {
            name: "expired at this very moment",
            now: T0 + 3600,
            expected: |_| Plan::Issue(IssueCause::Expired),
            ..Case::default()
        },
        Case {
            name: "expired while suspended",
            spec: json!({"suspend": true}),
            now: T0 + 4000,
            expected: |_| Plan::Suspended,
            ..Case::default()
        },
        Case {
            name: "the expiry was edited into the past: read first",
            change: |o| {
                edit(o, |s| {
                    s.expires = Some(at(T0 - 1));
                    s.resource_version = "8".into();
                });
            },
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "the expiry was removed: read first",
            change: |o| {
                edit(o, |s| {
                    s.expires = None;
                    s.resource_version = "8".into();
                });
            },
            expected: |_| Plan::Read,
            ..Case::default()
        },
        Case {
            name: "a renewal is asked for",
            renew: Some("now"),
            expected: |_| Plan::Issue(IssueCause::Requested),
            ..Case::default()
        },
        Case {
            name: "a renewal was asked for and done",
            renew: Some("now"),
            change: |o| o.handled_renew = Some("now".into()),
            ..Case::default()
        },
        Case {
            name: "another renewal is asked for",
            renew: Some("again"),
            change: |o| o.handled_renew = Some("now".into()),
            expected: |_| Plan::Issue(IssueCause::Requested),
            ..Case::default()
        },
        Case {
            name: "the annotation was taken away",
            change: |o| o.handled_renew = Some("now".into()),
            ..Case::default()
        },
        Case {
            name: "renewBefore makes it due",
            spec: json!({"renewBefore": "59m"}),
            now: T0 + 720,
            expected: |_| Plan::Issue(IssueCause::Due),
            ..Case::default()
        },
    ]
}

#[test]
fn decisions() {
    for case in cases() {
        let mut request = request(case.spec);
        request.renew_request = case.renew.map(str::to_owned);
        let mut observed = observed(left(&request), None);
        (case.change)(&mut observed);
        let denied = (!case.allowed).then(denied);
        let retry = case.retry.map(retry);
        let plan = decide(&request, &observed, denied.as_ref(), retry.as_ref(), at(case.now));
        assert_eq!(plan, (case.expected)(&request), "{}", case.name);
    }
}

#[test]
fn a_read_is_never_asked_for_twice() {
    for case in cases() {
        for content in [Integrity::Damaged, Integrity::Drifted, Integrity::Intact] {
            let mut request = request(case.spec.clone());
            request.renew_request = case.renew.map(str::to_owned);
            let mut observed = observed(left(&request), None);
            (case.change)(&mut observed);
            observed.content = Some(content);
            let plan = decide(&request, &observed, None, None, at(case.now));
            assert_ne!(plan, Plan::Read, "{} {content:?}", case.name);
        }
    }
}

#[test]
fn a_clamped_renewal_leaves_a_fifth() {
    let request = request(json!({"renewBefore": "2h"}));
    let renewal = renewal(&request, at(T0), at(T0 + 3600));
    assert!(renewal.clamped_to.is_some());
    assert!(renewal.at >= at(T0) + SignedDuration::from_secs(719));
}

#[test]
fn a_source_that_has_no_other_token_is_not_asked() {
    let request = request(json!({}));
    let secret = left(&request);
    let (issued, expires) = (secret.issued.unwrap(), secret.expires.unwrap());
    let due = renewal(&request, issued, expires).at;
    let later = due + SignedDuration::from_mins(10);
    let decide_at = |now, until| {
        let observed = Observation {
            unchanged_until: until,
            ..observed(secret.clone(), None)
        };
        decide(&request, &observed, None, None, now)
    };
    assert_eq!(decide_at(due, None), Plan::Issue(IssueCause::Due));
    assert_eq!(decide_at(due, Some(later)), Plan::Keep { until: later });
    assert_eq!(decide_at(later, Some(later)), Plan::Issue(IssueCause::Due));
    // Neither before the renewal nor beyond the token's end.
    let early = issued;
    assert_eq!(decide_at(issued, Some(early)), Plan::Keep { until: due });
    let never = expires + SignedDuration::from_hours(1);
    assert_eq!(decide_at(due, Some(never)), Plan::Keep { until: expires });
    assert_eq!(decide_at(expires, Some(never)), Plan::Issue(IssueCause::Expired));
}

#[test]
fn a_clock_that_is_ahead_does_not_issue_again_and_again() {
    let request = request(json!({"renewBefore": "3h"}));
    let secret = left(&request);
    let ahead = at(T0 + 1800);
    let decide_with = |issued_at| {
        let observed = Observation {
            issued_at,
            ..observed(secret.clone(), None)
        };
        decide(&request, &observed, None, None, ahead)
    };
    assert_eq!(decide_with(None), Plan::Issue(IssueCause::Due));
    // A tenth of the half hour that it has by this clock.
    let until = at(T0 + 1980);
    assert_eq!(decide_with(Some(ahead)), Plan::Keep { until });
}

#[test]
fn a_wait_ends_with_what_it_depends_on_and_where_the_clock_was_set_back() {
    let failed = retry(T0 + 60);
    assert!(failed.holds(&failed.basis, at(T0)));
    assert!(failed.holds(&failed.basis, at(T0 + 3600)));
    assert!(!failed.holds(&failed.basis, at(T0 - 3600)));
    let other = BackoffKey {
        generation: 2,
        ..failed.basis.clone()
    };
    assert!(!failed.holds(&other, at(T0)));
}
