//! One reconcile: load → validate → authorize → observe → plan → act → publish.
//!
//! Phases pass values on: `Snapshot → ValidRequest → Observation → Plan → Outcome`. The planner decides everything, and the loop around it
//! obeys. May import the issuer, the queue's permits, the cache and all below the controller; never a watch. Only this file and `publish`
//! know the context; the planner, the status, the event and the log line are pure.

mod conclude;
mod event;
mod guard;
mod inputs;
mod log;
pub mod outcome;
pub mod plan;
pub(crate) mod publish;
mod snapshot;
pub mod status;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::Instrument;

use self::conclude::{Acted, conclude, note_renewal};
use self::guard::{aborted, guarded};
use self::inputs::{Inputs, authorize, validate};
use self::outcome::{Failure, Outcome, Reconciled};
use self::plan::{Plan, decide};
use self::publish::publish;
use self::snapshot::Snapshot;
use crate::api::ObjectKey;
use crate::controller::context::Context;
use crate::controller::issue::IssueError;
use crate::controller::issue::observation::Observation;
use crate::controller::queue::Requeue;
use crate::controller::queue::permit::Permit;
use crate::request::ValidateError;

/// Numbers the reconciles of this process, for its log.
static RECONCILES: AtomicU64 = AtomicU64::new(1);

/// Reconciles one request. Returns when it is reconciled again, if not on a change only.
pub(super) fn reconcile(
    key: ObjectKey,
    ctx: Arc<Context>,
    mut permit: Permit,
) -> impl Future<Output = Option<Requeue>> + Send {
    // At the level of errors, so that each line of the reconcile has the number.
    let span = tracing::error_span!("reconcile", id = RECONCILES.fetch_add(1, Ordering::Relaxed));
    let reconcile = async move {
        let snapshot = Snapshot::load(&ctx.cache, key, ctx.settings.min_renew_interval, ctx.clock.now())?;
        if ctx.cache.is_terminating(snapshot.key.namespace()) {
            return None;
        }
        let expected_write = ctx.cache.expect_write(&snapshot.key);
        let started = ctx.clock.monotonic();
        let stopwatch = permit.stopwatch();
        let attempted = {
            // Pinned here: a future that is passed on by value is stored once more by each function.
            let attempt = pin!(attempt(&ctx, &snapshot, &mut permit));
            guarded(ctx.settings.reconcile_timeout, &stopwatch, attempt).await
        };
        let reconciled = attempted.unwrap_or_else(|error| {
            let gathered = gather(&ctx, &snapshot);
            aborted(&ctx.cache, &snapshot, gathered, error, ctx.clock.now())
        });
        let requeue = publish(&ctx, &snapshot, &reconciled, &mut permit, started).await;
        let after = match expected_write.end() {
            true => Duration::ZERO,
            false => requeue?,
        };
        let token = reconciled.outcome.token();
        let left = token.and_then(|token| token.remaining(ctx.clock.now()));
        Some(Requeue {
            after,
            token_left: left.and_then(|left| left.try_into().ok()),
        })
    };
    reconcile.instrument(span)
}

/// Validates and authorizes the request, and observes its Secret in the cache.
fn gather(ctx: &Context, snapshot: &Snapshot) -> Result<(Inputs, Observation), ValidateError> {
    let (cache, settings) = (&ctx.cache, &ctx.settings);
    let request = validate(cache, &settings.sources, &settings.shard, snapshot)?;
    let authorized = authorize(cache, &ctx.grants, snapshot, &request);
    let secret = cache.secret(&request.target_key());
    let inputs = Inputs::new(cache, snapshot, request, authorized, secret.as_ref());
    Ok((inputs, Observation::Cached(secret)))
}

/// Plans and acts until the planner asks for nothing more.
async fn attempt(ctx: &Context, snapshot: &Snapshot, permit: &mut Permit) -> Reconciled {
    let (mut inputs, mut secret) = match gather(ctx, snapshot) {
        Ok(gathered) => gathered,
        Err(error) => return Reconciled::invalid(&error),
    };
    let (issuer, history) = (ctx.issuer(&snapshot.status), snapshot.history());
    let nothing = |outcome| (Ok(Acted::Nothing(outcome)), None);
    let (acted, token) = loop {
        let Inputs { request, facts, .. } = &inputs;
        let token = || inputs.current_token(snapshot, &secret);
        break match decide(request, &secret, facts, snapshot.now) {
            // The planner never asks for a second read, which bounds the loop.
            Plan::Read if secret.is_read() => nothing(Outcome::Stale),
            // Boxed, so that this future is small: a reconcile that waits for Google holds its current branch only.
            Plan::Read => match Box::pin(issuer.read(request, history, permit)).await {
                Ok(read) => {
                    secret = read;
                    inputs.facts = inputs.facts.after_read(snapshot.standing(&ctx.cache));
                    continue;
                }
                Err(error) => (Err(error), token()),
            },
            Plan::Issue(cause) => {
                let token = token();
                let remaining = token.as_ref().and_then(|token| token.remaining(snapshot.now));
                let issue = Box::pin(issuer.issue(request, secret, history, cause, remaining, permit)).await;
                note_renewal(&ctx.cache, snapshot, &inputs, &issue);
                (issue.map(|issued| Acted::Issued(issued, cause)), token)
            }
            Plan::Repair => {
                let token = token();
                let repair = Box::pin(issuer.repair(request, secret, history, permit));
                (repair.await.map(Acted::Repaired), token)
            }
            Plan::Keep(_) => nothing(token().map_or(Outcome::Stale, Outcome::Kept)),
            Plan::Suspended => nothing(Outcome::Suspended(token())),
            Plan::BackOff(backoff) => {
                let failure = Failure::counted(backoff, token(), snapshot.now);
                nothing(Outcome::Waiting(failure))
            }
            Plan::Denied(denied) => (Err(IssueError::Denied(denied.clone())), token()),
            Plan::Conflict(owner) => (Err(IssueError::target_conflict(request, owner)), token()),
            Plan::Requeue => nothing(Outcome::Stale),
            Plan::Gone => (Err(IssueError::Gone), None),
        };
    };
    Box::pin(conclude(&issuer, snapshot, inputs, acted, token)).await
}
