use jiff::SignedDuration;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::*;
use crate::classify::ErrorClass;
use crate::controller::issue::observation::ReadSecret;
use crate::fixtures::{at, object, request};
use crate::grants::policy::Remedy;
use crate::kubernetes::secret::SecretContent;
use crate::request::validate;
use crate::schedule::backoff::BackoffKey;

#[path = "plan_model_tests.rs"]
mod model;

const T0: i64 = 1_800_000_000;
/// Lies between two renewals by annotation.
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

/// The Secret as `request`'s last mint at T0 left it.
fn left(request: &ValidRequest) -> SecretSummary {
    SecretSummary {
        uid: "secret".into(),
        resource_version: "7".into(),
        request: Some(request.name.clone()),
        request_uid: Some(request.uid.clone()),
        token_hash: Some(request.token_hash.clone()),
        render_hash: Some(request.render_hash.clone()),
        token_fingerprint: Some("d".into()),
        issued_at: Some(at(T0)),
        expires_at: Some(at(T0 + 3600)),
        managed: true,
        ..SecretSummary::default()
    }
}

/// What is known of a Secret, to be changed by a case.
#[derive(Clone)]
struct Observed {
    secret: Option<SecretSummary>,
    integrity: Option<Integrity>,
    /// The renewal by annotation that was honoured last.
    honoured: Option<HonouredRenewal>,
    facts: Facts,
}

impl Observed {
    fn new(secret: SecretSummary) -> Self {
        Self {
            secret: Some(secret),
            integrity: None,
            honoured: None,
            facts: Facts {
                recorded_version: Some("7".into()),
                ..Facts::default()
            },
        }
    }

    fn observation(&self) -> Observation {
        let read = |summary: &SecretSummary, integrity| ReadSecret {
            summary: summary.clone(),
            integrity,
            token: None,
            content: SecretContent {
                has_too_many_owners: false,
                summary: summary.clone(),
                meta: Default::default(),
                last_field_manager: None,
                type_: "Opaque".to_owned(),
                immutable: false,
                data: Default::default(),
            },
        };
        match (&self.secret, self.integrity) {
            (None, _) => Observation::Read(None),
            (Some(secret), None) => Observation::Cached(Some(secret.clone())),
            (Some(secret), Some(integrity)) => Observation::Read(Some(Box::new(read(secret, integrity)))),
        }
    }

    fn decide(&self, request: &ValidRequest, now: Timestamp) -> Expected {
        let handled = self.facts.handled_renew.as_deref();
        let requested_at = requested_at(request, handled, self.honoured.as_ref(), MINUTE, now);
        let timing = Timing {
            deferred_until: requested_at.filter(|at| *at > now),
            ..self.facts.timing
        };
        let facts = Facts {
            requested_at,
            timing,
            ..self.facts.clone()
        };
        Expected::from(decide(request, &self.observation(), &facts, now))
    }
}

/// A plan without what it borrows.
#[derive(Debug, PartialEq)]
enum Expected {
    Keep(Timestamp),
    Read,
    Repair,
    Issue(IssueCause),
    BackOff(Timestamp),
    Denied,
    Conflict(String),
    Suspended,
    Requeue,
    Gone,
}

impl From<Plan<'_>> for Expected {
    fn from(plan: Plan<'_>) -> Self {
        match plan {
            Plan::Keep(renewal) => Self::Keep(renewal.at),
            Plan::Read => Self::Read,
            Plan::Repair => Self::Repair,
            Plan::Issue(cause) => Self::Issue(cause),
            Plan::BackOff(backoff) => Self::BackOff(backoff.next),
            Plan::Denied(_) => Self::Denied,
            Plan::Conflict(owner) => Self::Conflict(owner.to_owned()),
            Plan::Suspended => Self::Suspended,
            Plan::Requeue => Self::Requeue,
            Plan::Gone => Self::Gone,
        }
    }
}

fn planned(request: &ValidRequest, issued: Timestamp, expires: Timestamp) -> Renewal {
    renewal(issued, expires, request.renew_before, &request.uid)
}

fn denied() -> Denied {
    Denied::NotGranted {
        namespace: "shop".to_owned(),
        name: "billing".to_owned(),
        service_account: "a".to_owned(),
        audience: "b".to_owned(),
        remedy: Remedy::ApplyGrant,
    }
}

fn retry(next: i64) -> Backoff {
    Backoff {
        reason: "Rejected",
        message: String::new(),
        class: ErrorClass::Rejected,
        attempts: 1,
        at: at(T0),
        since: at(T0),
        next: at(next),
        needs_user_action: false,
        awaits_google: false,
        key: BackoffKey {
            generation: 1,
            renew: None,
            grant: None,
        },
    }
}

fn honoured(value: &str, seconds: i64) -> Option<HonouredRenewal> {
    Some(HonouredRenewal {
        value: value.into(),
        at: at(seconds),
    })
}

#[derive(Clone, Debug)]
struct Case {
    name: &'static str,
    spec: Value,
    change: fn(&mut Observed),
    renew: Option<&'static str>,
    now: i64,
    /// Whether it is allowed, and when the next attempt is due after a failure.
    allowed: bool,
    retry: Option<i64>,
    expected: fn(&ValidRequest) -> Expected,
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
            expected: |request| Expected::Keep(planned(request, at(T0), at(T0 + 3600)).at),
        }
    }
}

fn edit(observed: &mut Observed, change: impl FnOnce(&mut SecretSummary)) {
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
            expected: |_| Expected::Issue(IssueCause::Missing),
            ..Case::default()
        },
        Case {
            name: "no Secret, denied",
            change: |o| o.secret = None,
            allowed: false,
            expected: |_| Expected::Denied,
            ..Case::default()
        },
        Case {
            name: "no Secret, failed lately",
            change: |o| o.secret = None,
            retry: Some(T0 + 61),
            expected: |_| Expected::BackOff(at(T0 + 61)),
            ..Case::default()
        },
        Case {
            name: "no Secret, the retry is due",
            change: |o| o.secret = None,
            retry: Some(T0 + 60),
            expected: |_| Expected::Issue(IssueCause::Missing),
            ..Case::default()
        },
        Case {
            name: "no Secret, suspended",
            spec: json!({"suspend": true}),
            change: |o| o.secret = None,
            expected: |_| Expected::Suspended,
            ..Case::default()
        },
        Case {
            name: "changed behind our back",
            change: |o| edit(o, |s| s.resource_version = "8".into()),
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "never recorded, as after a crash between the two writes",
            change: |o| o.facts.recorded_version = None,
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "read and intact",
            change: |o| {
                o.facts.recorded_version = None;
                o.integrity = Some(Integrity::Intact);
            },
            ..Case::default()
        },
        Case {
            name: "read and drifted",
            change: |o| o.integrity = Some(Integrity::Drifted),
            expected: |_| Expected::Repair,
            ..Case::default()
        },
        Case {
            name: "read and drifted, denied: no grant, no write",
            change: |o| o.integrity = Some(Integrity::Drifted),
            allowed: false,
            expected: |_| Expected::Denied,
            ..Case::default()
        },
        Case {
            name: "read and drifted, but the last repair failed",
            change: |o| o.integrity = Some(Integrity::Drifted),
            retry: Some(T0 + 70),
            expected: |_| Expected::BackOff(at(T0 + 70)),
            ..Case::default()
        },
        Case {
            name: "read and damaged",
            change: |o| o.integrity = Some(Integrity::Damaged),
            expected: |_| Expected::Issue(IssueCause::Damaged),
            ..Case::default()
        },
        Case {
            name: "the template changed",
            change: |o| edit(o, |s| s.render_hash = Some("v1-other".into())),
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "the template changed, read",
            change: |o| {
                edit(o, |s| s.render_hash = Some("v1-other".into()));
                o.integrity = Some(Integrity::Drifted);
            },
            expected: |_| Expected::Repair,
            ..Case::default()
        },
        Case {
            name: "the audience changed",
            change: |o| edit(o, |s| s.token_hash = Some("v1-other".into())),
            expected: |_| Expected::Issue(IssueCause::Changed),
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
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "the audience changed, denied",
            change: |o| edit(o, |s| s.token_hash = Some("v1-other".into())),
            allowed: false,
            expected: |_| Expected::Denied,
            ..Case::default()
        },
        Case {
            name: "due",
            now: late,
            expected: |_| Expected::Issue(IssueCause::Due),
            ..Case::default()
        },
        Case {
            name: "due and changed behind our back",
            change: |o| edit(o, |s| s.resource_version = "8".into()),
            now: late,
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "due, changed behind our back and denied: what it holds decides Ready",
            change: |o| edit(o, |s| s.resource_version = "8".into()),
            now: late,
            allowed: false,
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "due and the template changed",
            change: |o| edit(o, |s| s.render_hash = Some("v1-other".into())),
            now: late,
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "due and denied: the token is kept",
            now: late,
            allowed: false,
            expected: |_| Expected::Denied,
            ..Case::default()
        },
        Case {
            name: "not due and denied: the token is kept",
            allowed: false,
            expected: |_| Expected::Denied,
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
            expected: |_| Expected::Issue(IssueCause::Expired),
            ..Case::default()
        },
        Case {
            name: "expired while suspended",
            spec: json!({"suspend": true}),
            now: T0 + 4000,
            expected: |_| Expected::Suspended,
            ..Case::default()
        },
        Case {
            name: "the expiry was edited into the past: read first",
            change: |o| {
                edit(o, |s| {
                    s.expires_at = Some(at(T0 - 1));
                    s.resource_version = "8".into();
                });
            },
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "the expiry was removed: read first",
            change: |o| {
                edit(o, |s| {
                    s.expires_at = None;
                    s.resource_version = "8".into();
                });
            },
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "a renewal is asked for",
            renew: Some("now"),
            expected: |_| Expected::Issue(IssueCause::Requested),
            ..Case::default()
        },
        Case {
            name: "a renewal was asked for and done",
            renew: Some("now"),
            change: |o| o.facts.handled_renew = Some("now".into()),
            ..Case::default()
        },
        Case {
            name: "another renewal is asked for",
            renew: Some("again"),
            change: |o| o.facts.handled_renew = Some("now".into()),
            expected: |_| Expected::Issue(IssueCause::Requested),
            ..Case::default()
        },
        Case {
            name: "another renewal is asked for within a minute: at the end of it",
            renew: Some("again"),
            change: |o| o.honoured = honoured("now", T0 + 30),
            expected: |_| Expected::Keep(at(T0 + 90)),
            ..Case::default()
        },
        Case {
            name: "another renewal was asked for within a minute, which is over",
            renew: Some("again"),
            change: |o| o.honoured = honoured("now", T0),
            expected: |_| Expected::Issue(IssueCause::Requested),
            ..Case::default()
        },
        Case {
            name: "the renewal that was honoured lately failed: its own retry is not deferred",
            renew: Some("now"),
            change: |o| o.honoured = honoured("now", T0 + 59),
            expected: |_| Expected::Issue(IssueCause::Requested),
            ..Case::default()
        },
        Case {
            name: "another renewal is asked for, and one is due",
            renew: Some("again"),
            change: |o| o.honoured = honoured("now", T0 + 2399),
            now: late,
            expected: |_| Expected::Issue(IssueCause::Due),
            ..Case::default()
        },
        Case {
            name: "another renewal is asked for after the clock was set back",
            renew: Some("again"),
            change: |o| o.honoured = honoured("now", T0 + 1000),
            expected: |_| Expected::Issue(IssueCause::Requested),
            ..Case::default()
        },
        Case {
            name: "the annotation was taken away",
            change: |o| o.facts.handled_renew = Some("now".into()),
            ..Case::default()
        },
        Case {
            name: "renewBefore makes it due",
            spec: json!({"renewBefore": "59m"}),
            now: T0 + 720,
            expected: |_| Expected::Issue(IssueCause::Due),
            ..Case::default()
        },
        Case {
            name: "gone, whatever else",
            change: |o| {
                o.secret = None;
                o.facts.standing = Standing::Gone;
                o.facts.winning_claimant = Some("other".into());
            },
            expected: |_| Expected::Gone,
            ..Case::default()
        },
        Case {
            name: "another request has the Secret",
            change: |o| o.facts.winning_claimant = Some("other".into()),
            allowed: false,
            expected: |_| Expected::Conflict("other".into()),
            ..Case::default()
        },
        Case {
            name: "suspended, and another client changed the Secret: what it holds decides Ready",
            spec: json!({"suspend": true}),
            change: |o| edit(o, |s| s.resource_version = "8".into()),
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "the last failure needs a user, who may have acted",
            change: |o| o.facts.awaits_user = true,
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "due, and another leader may have written",
            change: |o| o.facts.needs_read = true,
            now: late,
            expected: |_| Expected::Read,
            ..Case::default()
        },
        Case {
            name: "not due, and another leader may have written",
            change: |o| o.facts.needs_read = true,
            ..Case::default()
        },
        Case {
            name: "due, and the spec changed meanwhile",
            change: |o| o.facts.standing = Standing::Outdated,
            now: late,
            expected: |_| Expected::Requeue,
            ..Case::default()
        },
        Case {
            name: "due during a relist",
            change: |o| o.facts.standing = Standing::Relisting,
            now: late,
            expected: |_| Expected::Issue(IssueCause::Due),
            ..Case::default()
        },
        Case {
            name: "no Secret during a relist",
            change: |o| {
                o.secret = None;
                o.facts.standing = Standing::Relisting;
            },
            expected: |_| Expected::Requeue,
            ..Case::default()
        },
        Case {
            name: "drifted during a relist",
            change: |o| {
                o.integrity = Some(Integrity::Drifted);
                o.facts.standing = Standing::Relisting;
            },
            expected: |_| Expected::Requeue,
            ..Case::default()
        },
    ]
}

#[test]
fn decisions() {
    for case in cases() {
        let (request, observed) = prepared(&case);
        let plan = observed.decide(&request, at(case.now));
        assert_eq!(plan, (case.expected)(&request), "{}", case.name);
    }
}

/// The request and what is known of its Secret in a case.
fn prepared(case: &Case) -> (ValidRequest, Observed) {
    let mut request = request(case.spec.clone());
    request.renew_request = case.renew.map(str::to_owned);
    let mut observed = Observed::new(left(&request));
    (case.change)(&mut observed);
    observed.facts.denied = (!case.allowed).then(denied);
    observed.facts.backoff = case.retry.map(retry);
    (request, observed)
}

#[test]
fn a_secret_that_is_gone_from_the_cache_is_read_before_a_token_is_issued() {
    let request = request(json!({}));
    let facts = Facts {
        recorded_version: Some("7".into()),
        ..Facts::default()
    };
    let decide = |observation, facts| Expected::from(decide(&request, &observation, facts, at(T0)));
    let missing = Expected::Issue(IssueCause::Missing);
    assert_eq!(decide(Observation::Cached(None), &facts), Expected::Read);
    assert_eq!(decide(Observation::Read(None), &facts), missing);
    assert_eq!(decide(Observation::Cached(None), &Facts::default()), missing);
}

#[test]
fn a_recreated_request_owns_its_secret_again() {
    let mut object = object(json!({}));
    let recreated = validate(&object).unwrap();
    object.metadata.uid = Some("an-earlier-life".to_owned());
    let earlier = validate(&object).unwrap();
    let observed = Observed::new(left(&earlier));
    assert_eq!(observed.decide(&recreated, at(T0 + 60)), Expected::Read);
    assert!(matches!(
        observed.decide(&earlier, at(T0 + 60)),
        Expected::Keep(_)
    ));
}

#[test]
fn without_a_digest_times_that_no_token_of_googles_has_are_read() {
    let request = request(json!({}));
    for (has_digest, expires, is_read) in [(false, 3600, false), (false, 86_400, true), (true, 86_400, false)]
    {
        let mut observed = Observed::new(left(&request));
        edit(&mut observed, |secret| secret.expires_at = Some(at(T0 + expires)));
        observed.facts.has_digest = has_digest;
        let plan = observed.decide(&request, at(T0 + 60));
        assert_eq!(
            plan == Expected::Read,
            is_read,
            "{has_digest}, {expires} s: {plan:?}"
        );
    }
}

#[test]
fn what_was_known_during_a_relist_is_not_trusted_after_it() {
    let request = request(json!({}));
    let mut observed = Observed::new(left(&request));
    observed.integrity = Some(Integrity::Damaged);
    let gathered = |standing| Facts {
        standing,
        ..observed.facts.clone()
    };
    for (before, after, expected) in [
        (Standing::Relisting, Standing::Current, Expected::Requeue),
        (Standing::Relisting, Standing::Relisting, Expected::Requeue),
        (Standing::Relisting, Standing::Gone, Expected::Gone),
        (
            Standing::Current,
            Standing::Current,
            Expected::Issue(IssueCause::Damaged),
        ),
    ] {
        let facts = gathered(before).after_read(after);
        let plan = decide(&request, &observed.observation(), &facts, at(T0 + 60));
        assert_eq!(Expected::from(plan), expected, "{before:?}, then {after:?}");
    }
}

#[test]
fn a_conflict_that_is_resolved_is_not_waited_for() {
    let facts = Facts {
        backoff: Some(retry(T0 + 600)),
        ..Facts::default()
    };
    assert!(facts.clone().after_read(Standing::Current).backoff.is_some());
    let conflict = Facts {
        was_conflicting: true,
        ..facts
    };
    assert_eq!(conflict.after_read(Standing::Current).backoff, None);
}

#[test]
fn a_secret_that_only_memory_lacks_is_read() {
    for spec in [json!({}), json!({"suspend": true})] {
        let request = request(spec);
        let plan = |may_lack_secret, observation: Observation| {
            let facts = Facts {
                may_lack_secret,
                ..Facts::default()
            };
            Expected::from(decide(&request, &observation, &facts, at(T0)))
        };
        assert_eq!(plan(true, Observation::Cached(None)), Expected::Read);
        for settled in [
            plan(false, Observation::Cached(None)),
            plan(true, Observation::Read(None)),
        ] {
            let is_done = matches!(
                settled,
                Expected::Issue(IssueCause::Missing) | Expected::Suspended
            );
            assert!(is_done, "{settled:?}");
        }
    }
}

proptest! {
    #[test]
    fn a_read_is_never_asked_for_twice(
        case in select(cases()),
        integrity in select(vec![None, Some(Integrity::Damaged), Some(Integrity::Drifted), Some(Integrity::Intact)]),
        flags in any::<[bool; 6]>(),
        standing in select(vec![Standing::Gone, Standing::Outdated, Standing::Relisting, Standing::Current]),
        now in T0 - 100..T0 + 4000,
    ) {
        let (request, mut observed) = prepared(&case);
        match integrity {
            None => observed.secret = None,
            integrity => observed.integrity = integrity,
        }
        let facts = &mut observed.facts;
        facts.standing = standing;
        [facts.awaits_user, facts.was_conflicting, facts.needs_read] = [flags[0], flags[1], flags[2]];
        facts.winning_claimant = flags[3].then(|| "other".to_owned());
        facts.recorded_version = facts.recorded_version.take().filter(|_| flags[4]);
        facts.may_lack_secret = flags[5];
        prop_assert_ne!(observed.decide(&request, at(now)), Expected::Read);
    }

    #[test]
    fn nothing_is_written_without_a_grant_or_a_claim_or_while_suspended(
        case in select(cases()),
        integrity in select(vec![None, Some(Integrity::Damaged), Some(Integrity::Drifted), Some(Integrity::Intact)]),
        flags in any::<[bool; 3]>(),
        suspend: bool,
        denied_: bool,
        rival: bool,
        now in T0 - 100..T0 + 4000,
    ) {
        prop_assume!(suspend || denied_ || rival);
        let (mut request, mut observed) = prepared(&case);
        request.suspend = suspend;
        observed.integrity = integrity.or(observed.integrity);
        let facts = &mut observed.facts;
        [facts.awaits_user, facts.was_conflicting, facts.needs_read] = flags;
        facts.denied = denied_.then(denied);
        facts.winning_claimant = rival.then(|| "other".to_owned());
        let plan = observed.decide(&request, at(now));
        prop_assert!(!matches!(plan, Expected::Issue(_) | Expected::Repair), "{:?}", plan);
    }
}

proptest! {
    #[test]
    fn a_loop_of_annotations_is_a_renewal_a_minute_and_the_last_one_is_not_lost(
        changes in prop::collection::vec((0_i64..90, 0_u8..4), 1..60),
    ) {
        let mut request = request(json!({}));
        let (mut handled, mut last, mut now) = (None, None::<HonouredRenewal>, T0);
        let mut renew = |request: &ValidRequest, until: i64| {
            let due = requested_at(request, handled.as_deref(), last.as_ref(), MINUTE, at(now));
            if let Some(due) = due.filter(|due| *due <= at(until)) {
                if let Some(last) = &last {
                    let pause = due.duration_since(last.at);
                    prop_assert!(pause >= SignedDuration::from_secs(60), "{pause:?} after the one before");
                }
                let value = request.renew_request.clone().unwrap();
                last = honoured(&value, due.as_second());
                handled = Some(value);
            }
            now = until;
            Ok(())
        };
        let mut time = T0;
        for (wait, value) in changes {
            time += wait;
            renew(&request, time)?;
            request.renew_request = Some(value.to_string());
        }
        renew(&request, time + 60)?;
        prop_assert_eq!(&handled, &request.renew_request);
    }
}

#[test]
fn a_clamped_renewal_leaves_a_fifth() {
    let request = request(json!({"renewBefore": "2h"}));
    let renewal = planned(&request, at(T0), at(T0 + 3600));
    assert!(renewal.clamped_to.is_some());
    assert!(renewal.at >= at(T0) + SignedDuration::from_secs(719));
}

#[test]
fn a_source_that_has_no_other_token_is_not_asked() {
    let request = request(json!({}));
    let secret = left(&request);
    let (issued, expires) = (secret.issued_at.unwrap(), secret.expires_at.unwrap());
    let due = planned(&request, issued, expires).at;
    let later = due + SignedDuration::from_mins(10);
    let decide_at = |now, until| {
        let mut observed = Observed::new(secret.clone());
        observed.facts.timing.source_repeats_until = until;
        observed.decide(&request, now)
    };
    assert_eq!(decide_at(due, None), Expected::Issue(IssueCause::Due));
    assert_eq!(decide_at(due, Some(later)), Expected::Keep(later));
    assert_eq!(decide_at(later, Some(later)), Expected::Issue(IssueCause::Due));
    // Neither before the renewal nor beyond the token's end.
    let early = issued;
    assert_eq!(decide_at(issued, Some(early)), Expected::Keep(due));
    let never = expires + SignedDuration::from_hours(1);
    assert_eq!(decide_at(due, Some(never)), Expected::Keep(expires));
    assert_eq!(
        decide_at(expires, Some(never)),
        Expected::Issue(IssueCause::Expired)
    );
}

#[test]
fn a_clock_that_is_ahead_does_not_issue_again_and_again() {
    let request = request(json!({"renewBefore": "3h"}));
    let secret = left(&request);
    let ahead = at(T0 + 1800);
    let decide_with = |issued_at| {
        let mut observed = Observed::new(secret.clone());
        observed.facts.timing.issued_at = issued_at;
        observed.decide(&request, ahead)
    };
    assert_eq!(decide_with(None), Expected::Issue(IssueCause::Due));
    // A tenth of the half hour that it has by this clock.
    let until = at(T0 + 1980);
    assert_eq!(decide_with(Some(ahead)), Expected::Keep(until));
}

#[test]
fn a_wait_ends_with_what_it_depends_on_and_where_the_clock_was_set_back() {
    let failed = retry(T0 + 60);
    let waits = |key: &BackoffKey, now| failed.at(key, at(now), at(now)).is_some();
    assert!(waits(&failed.key, T0));
    assert!(waits(&failed.key, T0 + 3600));
    assert!(!waits(&failed.key, T0 - 3600));
    let other = BackoffKey {
        generation: 2,
        ..failed.key.clone()
    };
    assert!(!waits(&other, T0));
}
