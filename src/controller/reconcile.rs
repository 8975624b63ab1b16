//! The phases in order, under one timeout: validate → observe → authorize → plan → mint → render → apply → status.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kube::Resource;
use kube::runtime::controller::Action;

use super::Context;
use super::apply::{self, Before};
use super::authorize::Denied;
use super::fault::KubeFault;
use super::index::{Basis, Key, Memory, Retry, SecretMeta, older};
use super::mint::{self, MintError};
use super::observe::{Content, read_secret};
use super::plan::{self, Integrity, Observed, Plan};
use super::render::{RenderError, render};
use super::schedule::{self, Class};
use super::status::{self, Failure, Held, Report, STALLED_AFTER};
use super::validate::{Request, source_name, validate};
use crate::api::annotations;
use crate::api::conditions::{READY, reason};
use crate::api::v1alpha1::{GrantStatus, IdTokenRequest, IdTokenRequestStatus, SecretStatus, TokenStatus};
use crate::token::{Claims, IdToken};

/// Repairs within [`REPAIR_WINDOW`] after which the operator stops putting a field back.
const MAX_REPAIRS: usize = 5;
const REPAIR_WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// Brings one request to where its spec wants it, and says when to look again.
pub async fn reconcile(object: Arc<IdTokenRequest>, ctx: Arc<Context>) -> Action {
    if object.metadata.deletion_timestamp.is_some() {
        return Action::await_change();
    }
    let started = std::time::Instant::now();
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let key = key(&object);
    let memory = ctx.index.memory(&uid);
    let previous = current_status(&object, &memory);
    let attempt = tokio::time::timeout(
        ctx.settings.reconcile_timeout,
        phases(&ctx, &object, &previous, &memory),
    )
    .await;
    let report = attempt.unwrap_or_else(|_| timed_out(&ctx, &object, &key, &previous, &memory));
    let now = Timestamp::now();
    let generation = object.metadata.generation.unwrap_or_default();
    let next = status::compute(&previous, generation, &report, now);
    let outcome = report
        .failure
        .as_ref()
        .map_or(reason::RECONCILED, |failure| failure.reason);
    ctx.metrics.reconciled(outcome, started.elapsed());
    let wake = match publish(&ctx, &object, &key, &previous, &next).await {
        Ok(()) => report.next,
        Err(fault) => {
            tracing::warn!(
                namespace = key.0,
                name = key.1,
                reason = fault.reason(),
                "the status was not written: {fault}"
            );
            let soon = now + SignedDuration::from_secs(2);
            Some(report.next.map_or(soon, |next| next.min(soon)))
        }
    };
    match wake {
        Some(at) => {
            let wait = at.duration_since(Timestamp::now()).max(SignedDuration::ZERO);
            // Timers may fire early by a millisecond, which would cost a reconcile for nothing.
            Action::requeue(wait.unsigned_abs() + std::time::Duration::from_millis(2))
        }
        None => Action::await_change(),
    }
}

fn key(object: &IdTokenRequest) -> Key {
    (
        object.metadata.namespace.clone().unwrap_or_default(),
        object.metadata.name.clone().unwrap_or_default(),
    )
}

/// The status as the API server has it: ours, until the watch has caught up with our last write.
fn current_status(object: &IdTokenRequest, memory: &Memory) -> IdTokenRequestStatus {
    let seen = object.metadata.resource_version.as_deref().unwrap_or_default();
    match &memory.status {
        Some((written, status)) if older(seen, written) => status.clone(),
        _ => object.status.clone().unwrap_or_default(),
    }
}

async fn publish(
    ctx: &Arc<Context>,
    object: &IdTokenRequest,
    key: &Key,
    previous: &IdTokenRequestStatus,
    next: &IdTokenRequestStatus,
) -> Result<(), KubeFault> {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let ready = next.conditions.iter().find(|condition| condition.type_ == READY);
    let expires = next
        .token
        .as_ref()
        .filter(|_| ready.is_some_and(|c| c.status == "True"));
    let expires = expires
        .and_then(|token| token.expiration_time.as_ref())
        .map(|time| time.0);
    ctx.metrics.state(
        key,
        ready.map(|c| (c.status == "True", c.reason.as_str())),
        expires,
    );
    let Some(written) = status::write(ctx, object, previous, next).await? else {
        return Ok(());
    };
    ctx.index
        .remember(key, uid, |memory| memory.status = Some((written, next.clone())));
    if let Some(event) = status::event(previous, next) {
        if let Err(error) = ctx.recorder.publish(&event, &object.object_ref(&())).await {
            let fault = KubeFault::new("create", "events", &key.0, &error);
            tracing::warn!(
                namespace = key.0,
                name = key.1,
                "the event was not written: {fault}"
            );
        }
    }
    Ok(())
}

/// What a phase ends with where the wanted state is not reached.
enum Stop {
    Fault(KubeFault),
    Mint(MintError),
    Render(RenderError),
    Denied(Denied),
    Rival(String),
    Waiting(Retry),
}

impl From<KubeFault> for Stop {
    fn from(fault: KubeFault) -> Self {
        Self::Fault(fault)
    }
}

async fn phases(
    ctx: &Arc<Context>,
    object: &IdTokenRequest,
    previous: &IdTokenRequestStatus,
    memory: &Memory,
) -> Report {
    let mut report = empty_report();
    let request = match validate(object) {
        Ok(request) => request,
        Err(error) => {
            report.failure = Some(Failure {
                reason: error.reason(),
                message: error.to_string(),
                stalled: true,
            });
            return report;
        }
    };
    report.source = Some(source_name(request.token.source));
    let now = Timestamp::now();
    let allowed = ctx.grants.authorize(&request, now);
    report.grant = allowed.as_ref().ok().cloned();
    let basis = basis(object, allowed.as_ref().ok());
    let mut work = Work {
        ctx,
        request: &request,
        previous,
        memory,
        denied: allowed.err(),
        retry: memory.retry.clone().filter(|retry| retry.basis == basis),
        observed: observed(ctx, &request, previous),
        content: None,
        report,
    };
    let end = work.run().await;
    work.finish(end, basis)
}

fn empty_report() -> Report {
    Report {
        held: None,
        failure: None,
        suspended: false,
        source: None,
        grant: None,
        handled_renew: None,
        keep_secret_name: false,
        next: None,
    }
}

fn basis(object: &IdTokenRequest, grant: Option<&GrantStatus>) -> Basis {
    Basis {
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

fn observed(ctx: &Context, request: &Request, previous: &IdTokenRequestStatus) -> Observed {
    let target = (request.namespace.clone(), request.target.name.clone());
    let recorded = previous.secret.as_ref().filter(|secret| secret.name == target.1);
    Observed {
        secret: ctx.index.secret(&target),
        content: None,
        recorded: recorded.and_then(|secret| secret.resource_version.clone()),
        handled_renew: previous.last_handled_renew_request.clone(),
    }
}

/// The report of work that did not finish: as a failure of Kubernetes or Google that is likely to pass.
fn timed_out(
    ctx: &Arc<Context>,
    object: &IdTokenRequest,
    key: &Key,
    previous: &IdTokenRequestStatus,
    memory: &Memory,
) -> Report {
    let Ok(request) = validate(object) else {
        return empty_report();
    };
    let allowed = ctx.grants.authorize(&request, Timestamp::now());
    let basis = basis(object, allowed.as_ref().ok());
    let work = Work {
        ctx,
        request: &request,
        previous,
        memory,
        denied: None,
        retry: memory.retry.clone().filter(|retry| retry.basis == basis),
        observed: observed(ctx, &request, previous),
        content: None,
        report: Report {
            source: Some(source_name(request.token.source)),
            grant: allowed.ok(),
            ..empty_report()
        },
    };
    let seconds = ctx.settings.reconcile_timeout.as_secs();
    let problem = format!("the work did not finish within {seconds}s");
    let fault = KubeFault::Unavailable {
        verb: "reconcile",
        resource: "idtokenrequests",
        namespace: key.0.clone(),
        problem,
    };
    work.finish(Err(Stop::Fault(fault)), basis)
}

struct Work<'a> {
    ctx: &'a Arc<Context>,
    request: &'a Request,
    previous: &'a IdTokenRequestStatus,
    memory: &'a Memory,
    denied: Option<Denied>,
    retry: Option<Retry>,
    observed: Observed,
    content: Option<Content>,
    report: Report,
}

impl Work<'_> {
    async fn run(&mut self) -> Result<(), Stop> {
        self.rule_out_rivals()?;
        let shown = self
            .previous
            .conditions
            .iter()
            .find(|c| c.type_ == READY)
            .map(|c| c.reason.as_str());
        let contested = self.memory.conflicted
            || matches!(shown, Some(reason::SECRET_CONFLICT | reason::SECRET_IMMUTABLE));
        if contested && self.observed.secret.is_none() && !self.request.suspend {
            self.read().await?;
        }
        let mut plan = self.plan();
        if plan == Plan::Read {
            self.read().await?;
            plan = self.plan();
        }
        match plan {
            Plan::Keep { .. } => self.record(),
            Plan::Render => self.repair().await?,
            Plan::Mint(cause) => self.mint(cause).await?,
            Plan::Suspended => self.report.suspended = true,
            Plan::Denied(denied) => return Err(Stop::Denied(denied)),
            Plan::Wait { .. } => {
                if let Some(retry) = self.retry.clone() {
                    return Err(Stop::Waiting(retry));
                }
            }
            // Decided again after a read: then it is never asked for a second time.
            Plan::Read => {}
        }
        self.remove_renamed().await?;
        match &self.denied {
            Some(denied) if !self.request.suspend => Err(Stop::Denied(denied.clone())),
            _ => Ok(()),
        }
    }

    fn plan(&self) -> Plan {
        plan::decide(
            self.request,
            &self.observed,
            self.denied.as_ref(),
            self.retry.as_ref(),
            Timestamp::now(),
        )
    }

    fn target(&self) -> Key {
        (self.request.namespace.clone(), self.request.target.name.clone())
    }

    fn rule_out_rivals(&self) -> Result<(), Stop> {
        match self.ctx.index.rival(&self.target(), &self.request.uid) {
            Some(rival) => Err(Stop::Rival(rival.name)),
            None => Ok(()),
        }
    }

    /// Reads the Secret, makes sure that it is ours to write, and compares it with what we wrote.
    async fn read(&mut self) -> Result<(), Stop> {
        let target = self.target();
        let Some(content) = read_secret(&self.ctx.client, &target.0, &target.1).await? else {
            self.ctx.index.secret_missing(&target);
            self.observed.secret = None;
            return Ok(());
        };
        let adopted = apply::claim(self.ctx, self.request, &content)?;
        let token = stored_token(&content, &self.request.target.key);
        self.observed.content = Some(match token.filter(|_| !adopted) {
            None => Integrity::Damaged,
            Some(token) => match render(self.request, &token)
                .map_err(Stop::Render)?
                .drift(&content)
            {
                Some(_) => Integrity::Drifted,
                None if content.type_ != self.request.target.type_ => Integrity::Drifted,
                None => Integrity::Intact,
            },
        });
        self.observed.secret = Some(content.summary.clone());
        self.content = Some(content);
        Ok(())
    }

    /// The Secret is as it should be: only the status may have to say so.
    fn record(&mut self) {
        let token = self
            .content
            .as_ref()
            .and_then(|content| stored_token(content, &self.request.target.key));
        if let Some(secret) = self.observed.secret.clone() {
            self.report.held = self.held(&secret, token.as_ref().map(IdToken::claims));
        }
    }

    /// Writes the stored token anew: the template changed, or somebody changed what is ours.
    async fn repair(&mut self) -> Result<(), Stop> {
        let Some(content) = self.content.take() else {
            return Ok(());
        };
        let Some(token) = stored_token(&content, &self.request.target.key) else {
            return Ok(());
        };
        let rendered = render(self.request, &token).map_err(Stop::Render)?;
        let ours = content.summary.render_hash.as_ref() == Some(&self.request.render_hash);
        if ours && content.summary.request_uid.as_ref() == Some(&self.request.uid) {
            self.count_repair(rendered.drift(&content).as_deref().unwrap_or("type"), &content)?;
        }
        let written =
            apply::write(self.ctx, self.request, &rendered, Before::Read(Box::new(content))).await?;
        tracing::info!(
            namespace = self.request.namespace,
            name = self.request.name,
            "the Secret was written anew from its own token"
        );
        self.report.held = self.held(&written, Some(token.claims()));
        Ok(())
    }

    async fn mint(&mut self, cause: plan::Cause) -> Result<(), Stop> {
        let (ctx, request) = (self.ctx, self.request);
        if let Some(content) = self.content.as_ref().filter(|_| cause == plan::Cause::Damaged) {
            let written_by_us = content.summary.request_uid.as_ref() == Some(&request.uid);
            if written_by_us {
                self.count_repair(&format!("data[{}]", request.target.key), content)?;
            }
        }
        let started = std::time::Instant::now();
        let minted = mint::mint(ctx, request, self.pinned_subject()).await;
        let result = minted
            .as_ref()
            .map_or_else(|error| error.reason(), |_| reason::ISSUED);
        ctx.metrics.minted(source_name(request.token.source), result);
        let token = minted.map_err(Stop::Mint)?;
        // The grant, the spec's claim on the Secret or the Lease may have gone while Google answered.
        self.report.grant = Some(
            ctx.grants
                .authorize(request, Timestamp::now())
                .map_err(Stop::Denied)?,
        );
        self.rule_out_rivals()?;
        let rendered = render(request, &token).map_err(Stop::Render)?;
        let before = match (self.content.take(), self.observed.secret.clone()) {
            (Some(content), _) => Before::Read(Box::new(content)),
            (None, Some(secret)) => Before::Untouched(secret),
            (None, None) => Before::Unknown,
        };
        let written = apply::write(ctx, request, &rendered, before).await?;
        let held = self.held(&written, Some(token.claims()));
        let renews = held.as_ref().map(|held| held.renewal.at.to_string());
        tracing::info!(
            namespace = request.namespace,
            name = request.name,
            source = source_name(request.token.source),
            cause = ?cause,
            expires = %token.claims().exp,
            renews,
            milliseconds = started.elapsed().as_millis(),
            "a token was issued"
        );
        self.report.held = held;
        self.report.handled_renew = request.renew_request.clone();
        Ok(())
    }

    /// The account's unique ID as an earlier token of the same account had it.
    fn pinned_subject(&self) -> Option<&str> {
        let token = self.previous.token.as_ref()?;
        let same_spec = self
            .observed
            .secret
            .as_ref()
            .and_then(|secret| secret.token_hash.as_ref())
            == Some(&self.request.token_hash);
        let same_account = token.email.as_ref() == Some(&self.request.token.service_account);
        token.subject.as_deref().filter(|_| same_spec || same_account)
    }

    fn count_repair(&self, field: &str, content: &Content) -> Result<(), Stop> {
        let now = Timestamp::now();
        let recent = |at: &&Timestamp| now.duration_since(**at) < REPAIR_WINDOW;
        let mut repairs: Vec<Timestamp> = self.memory.repairs.iter().filter(recent).copied().collect();
        if repairs.len() >= MAX_REPAIRS {
            return Err(Stop::Fault(KubeFault::Contested {
                name: self.request.target.name.clone(),
                field: field.to_owned(),
                manager: last_manager(content).unwrap_or("somebody").to_owned(),
                count: repairs.len(),
            }));
        }
        repairs.push(now);
        let key = (self.request.namespace.clone(), self.request.name.clone());
        self.ctx
            .index
            .remember(&key, &self.request.uid, |memory| memory.repairs = repairs);
        Ok(())
    }

    /// Removes the Secret of the name that the target had before, if it is still ours.
    async fn remove_renamed(&mut self) -> Result<(), Stop> {
        let old = self
            .previous
            .secret
            .as_ref()
            .filter(|old| old.name != self.request.target.name);
        let Some(old) = old.filter(|_| self.report.held.is_some()) else {
            return Ok(());
        };
        let secret = self
            .ctx
            .index
            .secret(&(self.request.namespace.clone(), old.name.clone()));
        let Some(secret) =
            secret.filter(|secret| secret.request_uid.as_ref() == Some(&self.request.uid) && !secret.adopted)
        else {
            return Ok(());
        };
        self.report.keep_secret_name = true;
        apply::delete(self.ctx, &self.request.namespace, &old.name, &secret).await?;
        self.report.keep_secret_name = false;
        Ok(())
    }

    /// The token in `secret` as status shows it; none unless it is valid and what the spec asks for.
    fn held(&self, secret: &SecretMeta, claims: Option<&Claims>) -> Option<Held> {
        let (issued, expires) = (secret.issued?, secret.expires?);
        let matches = secret.token_hash.as_ref() == Some(&self.request.token_hash)
            && secret.render_hash.as_ref() == Some(&self.request.render_hash)
            && secret.request_uid.as_ref() == Some(&self.request.uid);
        if !matches || expires <= Timestamp::now() {
            return None;
        }
        let known = self.previous.token.clone().unwrap_or_default();
        let time = |at| Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        Some(Held {
            secret: SecretStatus {
                name: self.request.target.name.clone(),
                resource_version: Some(secret.resource_version.clone()),
            },
            token: TokenStatus {
                issue_time: time(issued),
                expiration_time: time(expires),
                audience: Some(self.request.token.audience.clone()),
                email: claims.map_or(known.email, |claims| claims.email.clone()),
                subject: claims.map_or(known.subject, |claims| Some(claims.sub.clone())),
            },
            renewal: plan::renewal(self.request, issued, expires),
        })
    }

    /// Turns the end of the phases into the report, and remembers what the next attempt depends on.
    fn finish(mut self, end: Result<(), Stop>, basis: Basis) -> Report {
        let now = Timestamp::now();
        if self.report.held.is_none() {
            let whole = match self.observed.content {
                None => {
                    self.observed
                        .secret
                        .as_ref()
                        .map(|secret| &secret.resource_version)
                        == self.observed.recorded.as_ref()
                }
                Some(integrity) => integrity == Integrity::Intact,
            };
            let secret = self.observed.secret.clone().filter(|_| whole);
            self.report.held = secret.and_then(|secret| self.held(&secret, None));
        }
        let expiry = self
            .report
            .held
            .as_ref()
            .and_then(|held| held.token.expiration_time.as_ref())
            .map(|time| time.0);
        let key = (self.request.namespace.clone(), self.request.name.clone());
        let stop = match end {
            Ok(()) => {
                if self.memory.retry.is_some() || self.memory.conflicted {
                    self.ctx.index.remember(&key, &self.request.uid, |memory| {
                        memory.retry = None;
                        memory.conflicted = false;
                    });
                }
                self.report.next = match self.report.suspended {
                    true => expiry,
                    false => self.report.held.as_ref().map(|held| held.renewal.at),
                };
                return self.report;
            }
            Err(stop) => stop,
        };
        let (failure, next) = self.failure(stop, basis, now, expiry, &key);
        self.report.failure = Some(failure);
        self.report.next = match (next, expiry) {
            (Some(next), Some(expiry)) => Some(next.min(expiry)),
            (next, expiry) => next.or(expiry),
        };
        self.report
    }

    fn failure(
        &self,
        stop: Stop,
        basis: Basis,
        now: Timestamp,
        expiry: Option<Timestamp>,
        key: &Key,
    ) -> (Failure, Option<Timestamp>) {
        let (reason, message, class, retry_after, act) = match stop {
            Stop::Denied(denied) => {
                // The grants' own events wake the request.
                let failure = Failure {
                    reason: denied.reason(),
                    message: denied.to_string(),
                    stalled: false,
                };
                let soon = now + SignedDuration::from_secs(30);
                return (
                    failure,
                    matches!(denied, Denied::Unavailable { .. }).then_some(soon),
                );
            }
            Stop::Rival(name) => {
                let message = format!(
                    "Secret {} is the target of IdTokenRequest {name} already, which is older; choose another spec.target.name",
                    self.request.target.name
                );
                return (
                    Failure {
                        reason: reason::TARGET_CONFLICT,
                        message,
                        stalled: true,
                    },
                    None,
                );
            }
            Stop::Waiting(retry) => {
                let failure = Failure {
                    reason: retry.reason,
                    message: retry.message.clone(),
                    stalled: stalled(&retry, now),
                };
                return (failure, Some(retry.next));
            }
            Stop::Fault(fault) => {
                let act = matches!(
                    fault,
                    KubeFault::SecretConflict { .. }
                        | KubeFault::SecretImmutable { .. }
                        | KubeFault::Contested { .. }
                );
                (fault.reason(), fault.to_string(), fault.class(), None, act)
            }
            Stop::Mint(error) => (
                error.reason(),
                error.to_string(),
                error.class(),
                error.retry_after(),
                false,
            ),
            Stop::Render(error) => {
                let failure = Failure {
                    reason: error.reason(),
                    message: error.to_string(),
                    stalled: true,
                };
                return (failure, None);
            }
        };
        let before = self.retry.as_ref();
        let since = before.map_or(now, |retry| retry.since);
        let failure = schedule::Failure {
            class,
            attempts: before.map_or(1, |retry| retry.attempts.saturating_add(1)),
            since_first: now.duration_since(since),
            retry_after,
            remaining: expiry.map(|expiry| expiry.duration_since(now)),
        };
        let next = now + schedule::retry_delay(&failure, &self.request.uid);
        let retry = Retry {
            reason,
            message: message.clone(),
            class,
            attempts: failure.attempts,
            since,
            next,
            basis,
        };
        let stalled = act || stalled(&retry, now);
        tracing::warn!(
            namespace = self.request.namespace,
            name = self.request.name,
            reason,
            attempts = failure.attempts,
            next = %next,
            "{message}"
        );
        self.ctx.index.remember(key, &self.request.uid, |memory| {
            memory.conflicted = act;
            memory.retry = Some(retry);
        });
        (
            Failure {
                reason,
                message,
                stalled,
            },
            Some(next),
        )
    }
}

fn stalled(retry: &Retry, now: Timestamp) -> bool {
    retry.class == Class::Refused && now.duration_since(retry.since) >= STALLED_AFTER
}

/// The token that we wrote, under its key or, where the key was changed or spoilt, under another.
fn stored_token(content: &Content, key: &str) -> Option<IdToken> {
    let written = content.summary.digest.as_deref()?;
    let keys = std::iter::once(key).chain(
        content
            .data
            .keys()
            .map(String::as_str)
            .filter(|other| *other != key),
    );
    keys.filter_map(|key| content.token(key))
        .find(|token| token.fingerprint() == written)
}

fn last_manager(content: &Content) -> Option<&str> {
    let entries = content.meta.managed_fields.iter().flatten();
    let others = entries.filter(|entry| entry.manager.as_deref() != Some(crate::api::FIELD_MANAGER));
    others
        .max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?
        .manager
        .as_deref()
}
