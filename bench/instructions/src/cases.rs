//! The cases: each is one phase of a reconcile, and two are all of its decisions. A case drops its results inside, as a reconcile does.

use std::hint::black_box;

use idtoken_operator::controller::reconcile::outcome::Reconciled;
use idtoken_operator::controller::reconcile::plan::{self, Facts, Plan};
use idtoken_operator::controller::reconcile::status;
use idtoken_operator::grants::policy::{Remedy, authorize};
use idtoken_operator::kubernetes::secret::SecretContent;
use idtoken_operator::kubernetes::secret_summary::SecretSummary;
use idtoken_operator::kubernetes::status::status_patch;
use idtoken_operator::render::render;
use idtoken_operator::request::{ValidRequest, validate};
use idtoken_operator::schedule::backoff::{Retry, deferral};
use idtoken_operator::schedule::renewal;
use idtoken_operator::token::{Account, Expected, IdToken};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::inputs::Inputs;

/// One case to count.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What the case does, for the table.
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Inputs),
}

const fn case(name: &'static str, what: &'static str, run: fn(&Inputs)) -> Case {
    Case { name, what, run }
}

pub(crate) const CASES: [Case; 20] = [
    case("store/get", "a request from the cache", |i| {
        black_box(i.cache.snapshot(&i.key));
    }),
    case("validate", "the spec, its defaults and its two hashes", |i| {
        let _ = black_box(validate(&i.object));
    }),
    case("authorize", "by one of 1,001 grants", |i| {
        let token = &i.request.token;
        let _ = black_box(authorize(&i.grants, "shop", "billing", token, Remedy::ApplyGrant));
    }),
    case(
        "project",
        "the summary of a Secret's metadata for the cache",
        |i| {
            black_box(SecretSummary::from(&i.content.meta));
        },
    ),
    case("plan/keep", "nothing is due", |i| {
        black_box(decide(i, &i.request, &i.facts, i.early));
    }),
    case("plan/mint", "the renewal is due", |i| {
        black_box(decide(i, &i.request, &i.facts, i.late));
    }),
    case("plan/wait", "the renewal is due and has just failed", |i| {
        black_box(decide(i, &i.request, &i.failed, i.late));
    }),
    case("schedule/renewal", "when to renew", |i| {
        let before = Some(SignedDuration::from_mins(25));
        black_box(renewal::renewal(i.issued, i.expires, before, &i.request.uid));
    }),
    case("schedule/retry", "when to retry", |i| {
        let Some(backoff) = &i.failed.backoff else { return };
        let retry = Retry {
            class: backoff.class,
            attempts: backoff.attempts,
            since_first: i.late.duration_since(backoff.since),
            waited: Some(SignedDuration::from_secs(40)),
            retry_after: None,
            remaining: Some(i.expires.duration_since(i.late)),
        };
        black_box(retry.delay(&i.request.uid));
    }),
    case(
        "schedule/postpone",
        "how long to defer for a busy endpoint",
        |i| {
            let (by, left) = (
                std::time::Duration::from_secs(3),
                i.expires.duration_since(i.late),
            );
            black_box(deferral(by, Some(left), &i.request.uid, i.late));
        },
    ),
    case(
        "schedule/unchanged",
        "when the metadata server has another token",
        |i| {
            black_box(renewal::next_poll(i.expires, i.late, &i.request.uid));
        },
    ),
    case(
        "verify",
        "a token parsed, and its claims compared with the request",
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
    case("read", "a Secret decoded from the API server's response", |i| {
        let _ = black_box(SecretContent::decode("shop", "get", &i.secret));
    }),
    case("drift", "a Secret compared with its rendering", |i| {
        black_box(i.rendered.drift(&i.content));
    }),
    case("status/unchanged", "the status of an unchanged request", |i| {
        black_box(change(i, &i.unchanged, i.early));
    }),
    case(
        "status/renewed",
        "the status after a renewal, and its patch",
        |i| {
            black_box(change(i, &i.renewed, i.late));
        },
    ),
    case(
        "reconcile/keep",
        "all decisions for a request that needs nothing",
        |i| {
            black_box(keep(i));
        },
    ),
    case(
        "reconcile/renew",
        "all decisions, checks and bodies of a renewal",
        |i| {
            black_box(renew(i));
        },
    ),
];

/// All phases of a request that needs nothing. Returns the change of its status.
fn keep(i: &Inputs) -> Option<Value> {
    let (_, plan) = begin(i, i.early)?;
    let change = change(i, &i.unchanged, i.early);
    matches!(plan, Plan::Keep(_)).then_some(change)?
}

/// All phases of a renewal. Returns the patch of the Secret and the change of the status.
fn renew(i: &Inputs) -> Option<(String, Value)> {
    let (request, plan) = begin(i, i.late)?;
    let token = verified(i, &request).filter(|_| matches!(plan, Plan::Issue(_)))?;
    Some((patch(i, &request, &token)?, change(i, &i.renewed, i.late)?))
}

/// The phases up to the plan.
fn begin(i: &Inputs, now: Timestamp) -> Option<(ValidRequest, Plan<'_>)> {
    let (object, _) = i.cache.snapshot(&i.key)?;
    let request = validate(&object.ok()?).ok()?;
    let allowed = authorize(
        &i.grants,
        &request.namespace,
        &request.name,
        &request.token,
        Remedy::ApplyGrant,
    );
    let plan = decide(i, &request, &i.facts, now);
    allowed.ok().map(|_| (request, plan))
}

fn decide<'i>(i: &'i Inputs, request: &ValidRequest, facts: &'i Facts, now: Timestamp) -> Plan<'i> {
    plan::decide(request, &i.observation, facts, now)
}

/// Google's token, if it matches the request.
fn verified(i: &Inputs, request: &ValidRequest) -> Option<IdToken> {
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

/// The body of the patch that writes the token to the Secret.
fn patch(i: &Inputs, request: &ValidRequest, token: &IdToken) -> Option<String> {
    let rendered = render(request, token).ok()?;
    let uid = &i.content.summary.uid;
    serde_json::to_string(&rendered.token_patch(uid, &i.content.summary.resource_version)).ok()
}

/// The patch of the status for `report`; none if the status is unchanged.
fn change(i: &Inputs, report: &Reconciled, now: Timestamp) -> Option<Value> {
    status_patch(&i.status, &status::next(&i.status, 3, report, now))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use idtoken_operator::controller::issue::IssueCause;

    use super::*;

    /// The counter would not notice a case that takes another path.
    #[test]
    fn each_case_takes_its_path() -> Result<(), Box<dyn Error>> {
        let i = Inputs::new()?;
        assert!(i.cache.snapshot(&i.key).is_some());
        assert!(matches!(decide(&i, &i.request, &i.facts, i.early), Plan::Keep(_)));
        assert_eq!(
            decide(&i, &i.request, &i.facts, i.late),
            Plan::Issue(IssueCause::Due)
        );
        let backoff = i.failed.backoff.as_ref().ok_or("no backoff")?;
        let wait = decide(&i, &i.request, &i.failed, i.late);
        assert_eq!(wait, Plan::BackOff(backoff));
        assert!(verified(&i, &i.request).is_some());
        assert_eq!(i.rendered.drift(&i.content), None);
        assert_eq!(change(&i, &i.unchanged, i.early), None);
        assert!(begin(&i, i.early).is_some_and(|(_, plan)| matches!(plan, Plan::Keep(_))));
        assert_eq!(keep(&i), None);
        let (patch, status) = renew(&i).ok_or("no renewal")?;
        assert!(patch.contains("resourceVersion") && status["token"]["expirationTime"].is_string());
        Ok(())
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
    }
}
