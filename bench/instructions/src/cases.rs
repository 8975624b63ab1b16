//! The cases: each is one phase, and two are all that a reconcile decides. What a phase gives is dropped inside, as a reconcile does.

use std::hint::black_box;

use idtoken_operator::controller::cache::{Retry, SecretMeta};
use idtoken_operator::controller::issue::render::render;
use idtoken_operator::controller::reconcile::plan::{self, Plan};
use idtoken_operator::controller::reconcile::status::{Report, compute, merge_patch};
use idtoken_operator::kubernetes::secret::Content;
use idtoken_operator::request::{Request, validate};
use idtoken_operator::schedule::renewal as schedule;
use idtoken_operator::token::{Account, Expected, IdToken};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::inputs::Inputs;

/// One thing to count.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What is done, for the table.
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Inputs),
}

const fn case(name: &'static str, what: &'static str, run: fn(&Inputs)) -> Case {
    Case { name, what, run }
}

pub(crate) const CASES: [Case; 20] = [
    case("store/get", "a request out of the cache", |i| {
        black_box(i.store.get(&i.key));
    }),
    case("validate", "the spec, its defaults and its two hashes", |i| {
        let _ = black_box(validate(&i.object));
    }),
    case("authorize", "by one of 1,001 grants", |i| {
        let token = &i.request.token;
        let _ = black_box(i.grants.authorize("shop", "billing", token, i.early));
    }),
    case("project", "what the cache keeps of a Secret's metadata", |i| {
        black_box(SecretMeta::from(&i.content.meta));
    }),
    case("plan/keep", "nothing is due", |i| {
        black_box(decide(i, &i.request, None, i.early));
    }),
    case("plan/mint", "the renewal is due", |i| {
        black_box(decide(i, &i.request, None, i.late));
    }),
    case("plan/wait", "the renewal is due and has just failed", |i| {
        black_box(decide(i, &i.request, Some(&i.retry), i.late));
    }),
    case("schedule/renewal", "when to renew", |i| {
        let before = Some(SignedDuration::from_mins(25));
        black_box(schedule::renewal(i.issued, i.expires, before, &i.request.uid));
    }),
    case("schedule/retry", "when to try again", |i| {
        let failure = schedule::Failure {
            class: i.retry.class,
            attempts: i.retry.attempts,
            since_first: i.late.duration_since(i.retry.since),
            waited: Some(SignedDuration::from_secs(40)),
            retry_after: None,
            remaining: Some(i.expires.duration_since(i.late)),
        };
        black_box(schedule::retry_delay(&failure, &i.request.uid));
    }),
    case("schedule/postpone", "when to come back to a busy endpoint", |i| {
        let (by, left) = (
            std::time::Duration::from_secs(3),
            i.expires.duration_since(i.late),
        );
        black_box(schedule::postponed_delay(by, Some(left), &i.request.uid, i.late));
    }),
    case(
        "schedule/unchanged",
        "when the metadata server has another token",
        |i| {
            black_box(schedule::after_unchanged(i.expires, i.late, &i.request.uid));
        },
    ),
    case(
        "verify",
        "a token parsed, and its claims compared with what was asked for",
        |i| {
            black_box(verified(i, &i.request));
        },
    ),
    case(
        "render/token",
        "the patch of a Secret with the token alone",
        |i| {
            black_box(patch(i, &i.request, &i.token));
        },
    ),
    case(
        "render/template",
        "the patch of a Secret with two templates and metadata",
        |i| {
            black_box(patch(i, &i.templated, &i.token));
        },
    ),
    case("read", "a Secret decoded from the API server's answer", |i| {
        let _ = black_box(Content::decode("shop", "get", i.secret.clone()));
    }),
    case(
        "drift",
        "a Secret that was read compared with what was rendered",
        |i| {
            black_box(i.rendered.drift(&i.content));
        },
    ),
    case(
        "status/unchanged",
        "the status of a request that is as it was",
        |i| {
            black_box(change(i, &i.unchanged, i.early));
        },
    ),
    case(
        "status/renewed",
        "the status after a renewal, and its patch",
        |i| {
            black_box(change(i, &i.renewed, i.late));
        },
    ),
    case(
        "reconcile/keep",
        "all that is decided of a request that is as it should be",
        |i| {
            black_box(keep(i));
        },
    ),
    case(
        "reconcile/renew",
        "all that is decided, checked and made in a renewal",
        |i| {
            black_box(renew(i));
        },
    ),
];

/// All phases of a request whose plan is to keep what there is. Gives the change of its status.
fn keep(i: &Inputs) -> Option<Value> {
    let (_, plan) = begin(i, i.early)?;
    let change = change(i, &i.unchanged, i.early);
    matches!(plan, Plan::Keep { .. }).then_some(change)?
}

/// All phases of a renewal. Gives the patch of the Secret and the change of the status.
fn renew(i: &Inputs) -> Option<(String, Value)> {
    let (request, plan) = begin(i, i.late)?;
    let token = verified(i, &request).filter(|_| matches!(plan, Plan::Mint(_)))?;
    Some((patch(i, &request, &token)?, change(i, &i.renewed, i.late)?))
}

/// The phases up to the plan.
fn begin(i: &Inputs, now: Timestamp) -> Option<(Request, Plan)> {
    let object = i.store.get(&i.key)?;
    let request = validate(&object).ok()?;
    let allowed = i
        .grants
        .authorize(&request.namespace, &request.name, &request.token, now);
    let plan = decide(i, &request, None, now);
    allowed.ok().map(|_| (request, plan))
}

fn decide(i: &Inputs, request: &Request, retry: Option<&Retry>, now: Timestamp) -> Plan {
    plan::decide(request, &i.observed, None, retry, now)
}

/// The token that came from Google, where it is the one that was asked for.
fn verified(i: &Inputs, request: &Request) -> Option<IdToken> {
    let token = IdToken::parse(i.jwt.clone()).ok()?;
    let expected = Expected {
        audience: &request.token.audience,
        account: request.token.service_account.as_deref().map(Account::from_name),
        include_email: request.token.include_email,
        subject: i.status.token.as_ref().and_then(|token| token.subject.as_deref()),
    };
    token.verify(&expected, i.late).ok()?;
    Some(token)
}

/// The body of the request that puts the token into the Secret.
fn patch(i: &Inputs, request: &Request, token: &IdToken) -> Option<String> {
    let rendered = render(request, token).ok()?;
    let uid = &i.content.summary.uid;
    serde_json::to_string(&rendered.renew(uid, &i.content.summary.resource_version)).ok()
}

/// What is to be written of the status that `report` makes; none where it is as it was.
fn change(i: &Inputs, report: &Report, now: Timestamp) -> Option<Value> {
    let json = |status| serde_json::to_value(status).ok();
    merge_patch(&json(&i.status)?, &json(&compute(&i.status, 3, report, now))?)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use idtoken_operator::controller::reconcile::plan::Cause;

    use super::*;

    /// A case that went another way would be counted all the same.
    #[test]
    fn each_case_goes_the_way_it_says() -> Result<(), Box<dyn Error>> {
        let i = Inputs::new()?;
        assert!(i.store.get(&i.key).is_some());
        assert!(matches!(decide(&i, &i.request, None, i.early), Plan::Keep { .. }));
        assert_eq!(decide(&i, &i.request, None, i.late), Plan::Mint(Cause::Due));
        let wait = decide(&i, &i.request, Some(&i.retry), i.late);
        assert_eq!(wait, Plan::Wait { until: i.retry.next });
        assert!(verified(&i, &i.request).is_some());
        assert_eq!(i.rendered.drift(&i.content), None);
        assert_eq!(change(&i, &i.unchanged, i.early), None);
        assert!(begin(&i, i.early).is_some_and(|(_, plan)| matches!(plan, Plan::Keep { .. })));
        assert_eq!(keep(&i), None);
        let (patch, status) = renew(&i).ok_or("nothing is renewed")?;
        assert!(patch.contains("resourceVersion") && status["token"]["expirationTime"].is_string());
        Ok(())
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
    }
}
