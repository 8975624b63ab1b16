//! The phases in order, under one timeout: validate → observe → authorize → plan → mint → render → apply → status.

pub(crate) mod log;
pub(crate) mod outcome;
pub mod plan;
pub mod status;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use kube::Resource;
use tracing::Instrument;

use crate::api::conditions::{READY, reason};
use crate::api::v1alpha1::{GrantRef, IdTokenRequest, IdTokenRequestStatus};
use crate::api::{LABEL_SHARD, annotations};
use crate::controller::Context;
use crate::controller::cache::{Backoff, BackoffKey, ObjectKey, RequestState, SecretSummary, older};
use crate::controller::issue::render::hash_of_renewal;
use crate::controller::queue::permit::Permit;
use crate::controller::reconcile::log as line;
use crate::controller::reconcile::outcome::Stop;
use crate::controller::reconcile::plan::{IssueCause, Observation, Plan};
use crate::controller::reconcile::status::{Failure, Report};
use crate::grants::policy::Denied;
use crate::kubernetes::error::KubeError;
use crate::kubernetes::secret::SecretContent;
use crate::metrics;
use crate::request::{TokenSource, ValidRequest, permitted, validate};
use crate::schedule::renewal as schedule;

/// Longest time for writing the status and the event.
pub(crate) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);

/// How long what is cached may be out of date before it is looked at again.
const BEHIND: Duration = Duration::from_millis(500);

/// Numbers the reconciles of this process, for its log.
static RECONCILES: AtomicU64 = AtomicU64::new(1);

/// Brings one request to where its spec wants it, and says after which time to look again, if that is not on a change only.
pub(crate) async fn reconcile(key: ObjectKey, ctx: Arc<Context>, turn: Permit) -> Option<Duration> {
    // At the level of errors, so that whatever is logged has the number.
    let span = tracing::error_span!("reconcile", id = RECONCILES.fetch_add(1, Ordering::Relaxed));
    work(key, ctx, turn).instrument(span).await
}

async fn work(key: ObjectKey, ctx: Arc<Context>, mut turn: Permit) -> Option<Duration> {
    let (object, memory, previous) = current(&ctx, &key)?;
    let started = std::time::Instant::now();
    let uid = object.metadata.uid.clone().unwrap_or_default();
    if ctx.index.is_ending(key.namespace()) {
        return None;
    }
    let attempt = tokio::time::timeout(
        ctx.settings.reconcile_timeout,
        // A bug that one request meets must not end the service of all others. The caches' locks outlive a panic.
        AssertUnwindSafe(phases(&ctx, &object, &previous, &memory, &mut turn)).catch_unwind(),
    )
    .await;
    let report = match attempt {
        Ok(Ok(report)) => report,
        Ok(Err(_)) => unfinished(&ctx, &object, &previous, &memory, &mut turn, KubeError::Panicked),
        Err(_) => {
            let fault = late(ctx.settings.reconcile_timeout);
            unfinished(&ctx, &object, &previous, &memory, &mut turn, fault)
        }
    };
    // What was found out on the way is of no use to anybody.
    if ctx.index.is_ending(key.namespace()) {
        return None;
    }
    if report.behind {
        return Some(BEHIND);
    }
    let now = Timestamp::now();
    let generation = object.metadata.generation.unwrap_or_default();
    let next = status::compute(&previous, generation, &report, now);
    let outcome = report
        .failure
        .as_ref()
        .map_or(reason::RECONCILED, |failure| failure.reason);
    ctx.metrics.count_reconcile(outcome, started.elapsed());
    let suspended = object.spec.suspend.unwrap_or_default();
    ctx.metrics
        .set_request(&key, metrics::RequestState::new(&next, suspended), now);
    // Asked after it: a watch that sees the end later drops it from the metrics itself.
    if !ctx.index.is_current(&key, &uid) {
        ctx.metrics.remove_request(&key, now);
    }
    if report.postponed && status::says_still(&previous, generation, &report) {
        return report.next.map(after);
    }
    let published = tokio::time::timeout(
        PUBLISH_TIMEOUT,
        turn.within(Box::pin(publish(&ctx, &object, &key, &memory, &previous, &next))),
    )
    .await;
    let published = published.unwrap_or_else(|_| Err(late(PUBLISH_TIMEOUT)));
    line::write(&key, &report, &published, started.elapsed());
    let wake = match published {
        Ok(_) => report.next,
        Err(fault) => {
            let attempts = memory.unpublished.saturating_add(1);
            ctx.index
                .remember(&key, &uid, |memory| memory.unpublished = attempts);
            let failure = schedule::Failure {
                class: fault.class(),
                attempts,
                since_first: SignedDuration::ZERO,
                waited: None,
                retry_after: None,
                remaining: None,
            };
            let again = now + schedule::retry_delay(&failure, &uid);
            Some(report.next.map_or(again, |next| next.min(again)))
        }
    };
    wake.map(after)
}

/// The time from now until `at`.
fn after(at: Timestamp) -> Duration {
    let wait = at.duration_since(Timestamp::now()).max(SignedDuration::ZERO);
    // Timers may fire early by a millisecond, which would cost a reconcile for nothing.
    wait.unsigned_abs() + Duration::from_millis(2)
}

/// The request, what is remembered of it, and its status as the API server has it: ours, until the watch has caught up with our last write.
fn current(ctx: &Context, key: &ObjectKey) -> Option<(IdTokenRequest, RequestState, IdTokenRequestStatus)> {
    let look = || {
        let object = ctx.requests.get(key)?;
        let memory = ctx
            .index
            .memory(key, object.metadata.uid.as_deref().unwrap_or_default());
        Some((object, memory))
    };
    let (mut object, mut memory) = look()?;
    let mut ours = None;
    if let Some((written, status)) = &memory.status
        && older(version(&object), written)
    {
        ours.clone_from(status);
        // The watch has caught up between the two looks.
        if ours.is_none() {
            (object, memory) = look()?;
        }
    }
    let status = ours.map(|status| *status).or_else(|| object.status.clone());
    Some((object, memory, status.unwrap_or_default()))
}

fn version(object: &IdTokenRequest) -> &str {
    object.metadata.resource_version.as_deref().unwrap_or_default()
}

/// Writes the status, and says whether there was anything to write.
async fn publish(
    ctx: &Arc<Context>,
    object: &IdTokenRequest,
    key: &ObjectKey,
    memory: &RequestState,
    previous: &IdTokenRequestStatus,
    next: &IdTokenRequestStatus,
) -> Result<bool, KubeError> {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    // Deleted, perhaps made anew, while it was worked on: what was found out is not the new one's.
    if !ctx.index.is_current(key, uid) {
        return Ok(false);
    }
    let seen = version(object);
    let known = memory
        .status
        .as_ref()
        .map(|(written, _)| written.as_str())
        .filter(|written| older(seen, written));
    let Some(written) = status::write(ctx, &object.metadata, known.unwrap_or(seen), previous, next).await?
    else {
        return Ok(false);
    };
    ctx.index.remember(key, uid, |memory| {
        memory.status = Some((written, Some(Box::new(next.clone()))));
        memory.expected = true;
        memory.unpublished = 0;
    });
    if let Some(event) = status::event(previous, next)
        && let Err(error) = ctx.events.publish(&event, &object.object_ref(&())).await
    {
        let fault = KubeError::new("create", "events", key.namespace(), &error);
        tracing::warn!(
            namespace = key.namespace(),
            name = key.name(),
            "the event was not written: {fault}"
        );
    }
    Ok(true)
}

async fn phases(
    ctx: &Arc<Context>,
    object: &IdTokenRequest,
    previous: &IdTokenRequestStatus,
    memory: &RequestState,
    turn: &mut Permit,
) -> Report {
    let mut report = Report::default();
    let valid = validate(object)
        .and_then(|request| permitted(&request.token.source, &ctx.settings.sources).map(|()| request));
    let request = match valid {
        Ok(request) => marked(request, ctx),
        Err(error) => {
            report.failure = Some(Failure {
                reason: error.reason(),
                message: error.to_string(),
                stalled: true,
            });
            note_grants(ctx, object, memory, Vec::new());
            return report;
        }
    };
    note_grants(ctx, object, memory, ctx.grants.allowing(&request));
    report.source = Some(request.token.source.name());
    let observed = observed(ctx, &request, previous, memory);
    // Said again until the status could be written.
    report.handled_renew = observed.handled_renew.clone();
    let now = Timestamp::now();
    let allowed = allowed(ctx, &request, previous, now);
    report.grant = allowed.as_ref().ok().cloned().flatten();
    let basis = basis(object, allowed.as_ref().ok().and_then(Option::as_ref));
    let mut work = Work {
        ctx,
        request: &request,
        generation: object.metadata.generation.unwrap_or_default(),
        previous,
        memory,
        denied: allowed.err(),
        retry: memory.retry_on(&basis, now),
        observed,
        content: None,
        report,
        turn,
        now,
    };
    let end = work.run().await;
    work.finish(end, basis)
}

/// Has the Secret carry the label by which this shard watches it.
fn marked(mut request: ValidRequest, ctx: &Context) -> ValidRequest {
    let label = ctx.settings.shard.label();
    request
        .target
        .labels
        .extend(label.map(|label| (LABEL_SHARD.to_owned(), label)));
    request
}

/// Remembers which grants allow a request, for them to be told.
fn note_grants(ctx: &Context, object: &IdTokenRequest, memory: &RequestState, grants: Vec<String>) {
    if memory.allowed_by.as_deref() != Some(&*grants) {
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        ctx.index
            .remember_grants(&ObjectKey::of(&object.metadata), uid, &grants);
    }
}

/// Decides on the request. Where only the source knows the account, the one of the token at hand is looked at first, so that a grant
/// which goes is missed; another may have come since, on which the mint decides.
fn allowed(
    ctx: &Context,
    request: &ValidRequest,
    previous: &IdTokenRequestStatus,
    now: Timestamp,
) -> Result<Option<GrantRef>, Denied> {
    let known = previous
        .token
        .as_ref()
        .and_then(|token| token.email.as_deref().or(token.subject.as_deref()));
    ctx.grants
        .authorize_account(request, known, now)
        .or_else(|_| ctx.grants.authorize(request, now))
}

fn basis(object: &IdTokenRequest, grant: Option<&GrantRef>) -> BackoffKey {
    BackoffKey {
        generation: object.metadata.generation.unwrap_or_default(),
        renew: object
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(annotations::RENEW))
            .cloned(),
        grant: grant.map(|grant| grant.name.clone()),
    }
}

fn observed(
    ctx: &Context,
    request: &ValidRequest,
    previous: &IdTokenRequestStatus,
    memory: &RequestState,
) -> Observation {
    let target = ObjectKey::new(&request.namespace, &request.target.name);
    let recorded = previous
        .secret
        .as_ref()
        .filter(|secret| secret.name == target.name());
    let secret = ctx.index.secret(&target);
    // The Secret tells what the status does not yet, where the operator ended between its two writes.
    let written = secret
        .as_ref()
        .filter(|secret| secret.request_uid.as_ref() == Some(&request.uid))
        .and_then(|secret| secret.handled_renew.as_deref());
    let renew = request.renew_request.as_ref();
    let told = renew.filter(|renew| written == Some(&hash_of_renewal(renew)));
    Observation {
        unchanged_until: unchanged_until(request, secret.as_ref(), previous, memory),
        secret,
        content: None,
        recorded: recorded.and_then(|secret| secret.resource_version.clone()),
        issued_at: memory.issued_at,
        handled_renew: told
            .or(memory.handled_renew.as_ref())
            .cloned()
            .or_else(|| previous.last_handled_renew_request.clone()),
    }
}

/// Until when the metadata server is known to give the same token again: as remembered or, after a restart, as the status said.
fn unchanged_until(
    request: &ValidRequest,
    secret: Option<&SecretSummary>,
    previous: &IdTokenRequestStatus,
    memory: &RequestState,
) -> Option<Timestamp> {
    let (issued, expires) = (secret?.issued?, secret?.expires?);
    if let Some((end, until)) = memory.unchanged {
        return (end == expires).then_some(until);
    }
    let told = previous.token.as_ref()?.expiration_time.as_ref()?.0;
    let same = told == expires && matches!(request.token.source, TokenSource::MetadataServer { .. });
    previous
        .renewal_time
        .as_ref()
        .map(|time| time.0)
        .filter(|until| same && *until > plan::renewal(request, issued, expires).at)
}

/// The report of work that did not finish: as a failure of Kubernetes or Google that is likely to pass.
fn unfinished(
    ctx: &Arc<Context>,
    object: &IdTokenRequest,
    previous: &IdTokenRequestStatus,
    memory: &RequestState,
    turn: &mut Permit,
    fault: KubeError,
) -> Report {
    let Ok(request) = validate(object).map(|request| marked(request, ctx)) else {
        return Report::default();
    };
    let now = Timestamp::now();
    let allowed = allowed(ctx, &request, previous, now);
    let basis = basis(object, allowed.as_ref().ok().and_then(Option::as_ref));
    let work = Work {
        ctx,
        request: &request,
        generation: object.metadata.generation.unwrap_or_default(),
        previous,
        memory,
        denied: None,
        retry: memory.retry_on(&basis, now),
        observed: observed(ctx, &request, previous, memory),
        content: None,
        report: Report {
            source: Some(request.token.source.name()),
            grant: allowed.ok().flatten(),
            ..Report::default()
        },
        turn,
        now,
    };
    work.finish(Err(Stop::Fault(fault)), basis)
}

fn late(limit: Duration) -> KubeError {
    KubeError::TimedOut {
        seconds: limit.as_secs(),
    }
}

/// One reconcile under way.
pub(crate) struct Work<'a> {
    pub(crate) ctx: &'a Arc<Context>,
    pub(crate) request: &'a ValidRequest,
    pub(crate) generation: i64,
    pub(crate) previous: &'a IdTokenRequestStatus,
    pub(crate) memory: &'a RequestState,
    pub(crate) denied: Option<Denied>,
    pub(crate) retry: Option<Backoff>,
    pub(crate) observed: Observation,
    pub(crate) content: Option<SecretContent>,
    pub(crate) report: Report,
    pub(crate) turn: &'a mut Permit,
    pub(crate) now: Timestamp,
}

impl Work<'_> {
    async fn run(&mut self) -> Result<(), Stop> {
        self.rule_out_rivals()?;
        let shown = self.previous.condition(READY).map(|c| c.reason.as_str());
        let in_the_way = self
            .memory
            .retry
            .as_ref()
            .is_some_and(|retry| retry.reason == reason::SECRET_CONFLICT);
        let contested = self.memory.retry.as_ref().is_some_and(|retry| retry.act)
            || matches!(shown, Some(reason::SECRET_CONFLICT | reason::SECRET_IMMUTABLE));
        // WrittenHashes once and gone from the watch: deleted, or only robbed of its label, which costs no mint.
        let lost = self.observed.recorded.is_some() && self.observed.secret.is_none();
        if (contested || lost) && !self.request.suspend {
            self.read().await?;
            // Handed over, or gone: what failed is no reason to wait any more.
            self.retry = self.retry.take().filter(|_| !in_the_way);
        }
        if self.request.suspend && self.is_touched() {
            self.read().await?;
        }
        let mut plan = self.plan();
        if plan == Plan::Read {
            self.read().await?;
            plan = self.plan();
        }
        if matches!(plan, Plan::Issue(_)) && self.ctx.index.is_inherited(&self.key(), &self.request.uid) {
            self.read().await?;
            plan = self.plan();
        }
        // After an outage the cluster may be another, as after a restore of etcd. A renewal is due in any case; a difference between the
        // request and its Secret may come of one being listed anew and the other not. Secrets are read, requests are waited for.
        let key = self.key();
        let differs = matches!(
            plan,
            Plan::Repair | Plan::Issue(IssueCause::Missing | IssueCause::Changed | IssueCause::Damaged)
        );
        // The spec may have changed, or the request gone, while the Secret was read.
        let acts = matches!(plan, Plan::Repair | Plan::Issue(_));
        let outdated = acts && !self.ctx.index.is_at(&key, &self.request.uid, self.generation);
        if outdated || (differs && self.ctx.index.is_behind(&key)) {
            self.report.behind = true;
            return Ok(());
        }
        match plan {
            Plan::Keep { .. } => self.record(),
            // No grant, no write, not even of a token that is there already.
            Plan::Repair if self.denied.is_some() => {}
            Plan::Repair => Box::pin(self.repair()).await?,
            // Its own allocation: what waits for Google is to hold what that takes and no more.
            Plan::Issue(cause) => Box::pin(self.mint(cause)).await?,
            Plan::Suspended => self.report.suspended = true,
            Plan::Denied(denied) => return Err(Stop::Denied(denied)),
            Plan::BackOff { .. } => {
                if let Some(retry) = self.retry.clone() {
                    return Err(Stop::Waiting(Box::new(retry)));
                }
            }
            // Decided again after a read: then it is never asked for a second time.
            Plan::Read => {}
        }
        Box::pin(self.remove_renamed()).await?;
        match &self.denied {
            Some(denied) if !self.request.suspend => Err(Stop::Denied(denied.clone())),
            _ => Ok(()),
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        plan::decide(
            self.request,
            &self.observed,
            self.denied.as_ref(),
            self.retry.as_ref(),
            self.now,
        )
    }

    /// Whether the Secret is another than the status recorded.
    fn is_touched(&self) -> bool {
        let secret = self.observed.secret.as_ref();
        secret.is_some_and(|secret| self.observed.recorded.as_ref() != Some(&secret.resource_version))
    }

    pub(crate) fn target(&self) -> ObjectKey {
        ObjectKey::new(&self.request.namespace, &self.request.target.name)
    }

    /// Makes sure that the request is still there, and that the Secret is its to write.
    pub(crate) fn rule_out_rivals(&self) -> Result<(), Stop> {
        let key = self.key();
        if !self.ctx.index.is_current(&key, &self.request.uid) {
            return Err(Stop::Gone);
        }
        match self.ctx.index.rival(&self.target(), &self.request.uid) {
            Some(rival) => Err(Stop::Rival(rival.request.name().to_owned())),
            None => Ok(()),
        }
    }
}
