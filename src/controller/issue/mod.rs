//! The effects that a plan asks for: read, repair, mint and remove.

pub mod federation;
pub mod mint;
pub mod render;
pub mod write;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;

use crate::api::FIELD_MANAGER;
use crate::api::conditions::reason;
use crate::api::v1alpha1::{IdTokenRequest, IdTokenRequestStatus};
use crate::controller::cache::{ObjectKey, SecretSummary, WrittenHashes};
use crate::controller::issue::mint::{MintError, VerifiedToken};
use crate::controller::issue::render::render;
use crate::controller::issue::write::{self as apply, Precondition};
use crate::controller::reconcile::Work;
use crate::controller::reconcile::log::Action;
use crate::controller::reconcile::outcome::Stop;
use crate::controller::reconcile::plan::{Integrity, IssueCause};
use crate::controller::reconcile::status;
use crate::kubernetes::error::KubeError;
use crate::kubernetes::secret::{SecretContent, read_secret};
use crate::request::TokenSource;
use crate::schedule::renewal as schedule;
use crate::token::{Expected, IdToken};

/// Repairs within [`REPAIR_WINDOW`] after which the operator stops putting a field back.
const MAX_REPAIRS: usize = 5;
const REPAIR_WINDOW: SignedDuration = SignedDuration::from_mins(10);

impl Work<'_> {
    /// Reads the Secret, makes sure that it is ours to write, and compares it with what we wrote.
    pub(crate) async fn read(&mut self) -> Result<(), Stop> {
        let target = self.target();
        let content = read_secret(&self.ctx.client, target.namespace(), target.name()).await?;
        self.ctx.index.caught_up(&self.key(), &self.request.uid);
        let Some(content) = content else {
            self.ctx.index.secret_missing(&target);
            self.ctx.obstacles.remove(&target);
            self.observed.secret = None;
            return Ok(());
        };
        let adopted = apply::claim(self.ctx, self.request, &content)?;
        let token = stored_token(&content, &self.request.target.key)
            .filter(|token| !adopted && self.is_wanted(token, &content.summary));
        let mut secret = content.summary.clone();
        if token.is_some() && self.wrote_this_token() {
            // We know better than an annotation that somebody changed: no mint for that alone.
            secret.token_hash = Some(self.request.token_hash.clone());
        }
        self.observed.content = Some(match &token {
            None => Integrity::Damaged,
            // It is to be replaced, so whether the new template suits it is no matter.
            Some(_) if secret.token_hash.as_ref() != Some(&self.request.token_hash) => Integrity::Drifted,
            Some(token) => {
                let drift = render(self.request, token).map_err(Stop::Render)?.drift(&content);
                match drift.is_some() || content.type_ != self.request.target.type_ {
                    true => Integrity::Drifted,
                    false => Integrity::Intact,
                }
            }
        });
        if let Some(token) = token {
            secret.issued = Some(token.claims().iat);
            secret.expires = Some(token.claims().exp);
        }
        self.observed.secret = Some(secret);
        self.content = Some(content);
        Ok(())
    }

    /// Whether a stored token says what the spec asks for, its age aside: hashes and fingerprint stand beside it, where whoever may
    /// change the Secret can change them too.
    fn is_wanted(&self, token: &IdToken, secret: &SecretSummary) -> bool {
        let changed =
            secret.token_hash.as_ref() != Some(&self.request.token_hash) && !self.wrote_this_token();
        let alive = self.now.min(token.claims().iat);
        let expected = mint::expected(self.request, None);
        // Which OAuth client a developer's token is for, no spec says.
        let told = self
            .previous
            .token
            .as_ref()
            .and_then(|token| token.audience.as_deref());
        let audience = match self.request.token.source {
            TokenSource::Developer => told.unwrap_or(&token.claims().aud),
            _ => expected.audience,
        };
        changed || token.verify(&Expected { audience, ..expected }, alive).is_ok()
    }

    /// The Secret is as it should be: only the status may have to say so.
    pub(crate) fn record(&mut self) {
        let token = self
            .content
            .as_ref()
            .and_then(|content| stored_token(content, &self.request.target.key));
        if let Some(secret) = self.observed.secret.clone() {
            self.report.held = self.held(&secret, token.as_ref().map(IdToken::claims));
        }
    }

    /// Writes the stored token anew: the template changed, or somebody changed what is ours.
    pub(crate) async fn repair(&mut self) -> Result<(), Stop> {
        let Some(content) = self.content.take() else {
            return Ok(());
        };
        let Some(token) = stored_token(&content, &self.request.target.key) else {
            return Ok(());
        };
        apply::changeable(self.request, &content)?;
        let rendered = render(self.request, &token).map_err(Stop::Render)?;
        let drift = rendered.drift(&content).unwrap_or_else(|| "type".to_owned());
        let reverted = self.wrote_this_rendering().then_some(drift);
        self.refuse_a_fight(reverted.as_deref(), Some(&content))?;
        let before = Precondition::Read(Box::new(content));
        let written = apply::write(self.ctx, self.request, &rendered, before).await?;
        self.settle(written, &token, reverted.is_some())?;
        self.report.acted = Some(Action::Repaired);
        Ok(())
    }

    /// Gets a new token and writes it.
    pub(crate) async fn mint(&mut self, cause: IssueCause) -> Result<(), Stop> {
        let (ctx, request) = (self.ctx, self.request);
        if let Some(content) = &self.content {
            apply::changeable(request, content)?;
        }
        let reverted = matches!(
            cause,
            IssueCause::Damaged | IssueCause::Changed | IssueCause::Missing
        ) && self.wrote_this_token();
        let field = format!("data[{}]", request.target.key);
        self.refuse_a_fight(reverted.then_some(field.as_str()), self.content.as_ref())?;
        if self.was_refused_a_write() {
            Box::pin(self.rehearse()).await?;
        }
        let left = self.expiry().map(|expiry| expiry.duration_since(self.now));
        let left = left.and_then(|left| left.try_into().ok());
        let before = before(self.previous, self.holds_this_spec());
        let minted = self
            .turn
            .aside(Box::pin(mint::mint(ctx, request, before, left)))
            .await;
        let unchanged = minted
            .as_ref()
            .is_ok_and(|minted| self.is_unchanged(cause, &minted.token));
        if minted.as_ref().err().and_then(MintError::postponed).is_none() {
            let result = match &minted {
                Ok(_) if unchanged => reason::UNCHANGED,
                Ok(_) => reason::ISSUED,
                Err(error) => error.reason(),
            };
            ctx.metrics.count_mint(request.token.source.name(), result);
        }
        let VerifiedToken { token, account } = minted.map_err(|error| match error {
            MintError::Denied(denied) => Stop::Denied(denied),
            error => Stop::Mint(error),
        })?;
        self.observed.issued_at = Some(Timestamp::now());
        Box::pin(self.tell_clock_skew(&token)).await;
        // The grant, the request itself or its claim on the Secret may have gone while Google answered.
        self.report.grant = ctx
            .grants
            .authorize_account(request, Some(&account), Timestamp::now())
            .map_err(Stop::Denied)?;
        self.rule_out_rivals()?;
        if unchanged {
            self.keep_unchanged(&token);
            return Ok(());
        }
        let rendered = render(request, &token).map_err(Stop::Render)?;
        let before = match (self.content.take(), self.observed.secret.clone()) {
            (Some(content), _) => Precondition::Read(Box::new(content)),
            (None, Some(secret)) => Precondition::Untouched(Box::new(secret)),
            (None, None) => Precondition::Unknown,
        };
        let written = Box::pin(apply::write(ctx, request, &rendered, before)).await?;
        self.settle(written, &token, reverted)?;
        self.report.handled_renew = request.renew_request.clone();
        self.report.acted = Some(Action::Issued(cause));
        Ok(())
    }

    /// Whether the metadata server gave the very token that the Secret holds, of which nothing else is to be written either. Other
    /// sources make a new token each time, even if two of the same second are equal.
    fn is_unchanged(&self, cause: IssueCause, token: &IdToken) -> bool {
        let secret = self.observed.secret.as_ref().filter(|secret| {
            secret.render_hash.as_ref() == Some(&self.request.render_hash)
                && secret.request_uid.as_ref() == Some(&self.request.uid)
        });
        matches!(self.request.token.source, TokenSource::MetadataServer { .. })
            && matches!(cause, IssueCause::Due | IssueCause::Requested)
            && matches!(self.observed.content, None | Some(Integrity::Intact))
            && secret.and_then(|secret| secret.digest.as_ref()) == Some(&token.fingerprint())
    }

    /// The same token again is no renewal: the Secret stays, and another one is asked for when there may be one.
    fn keep_unchanged(&mut self, token: &IdToken) {
        let Some(secret) = self.observed.secret.clone() else {
            return;
        };
        let (expires, request) = (token.claims().exp, self.request);
        let until = schedule::after_unchanged(expires, Timestamp::now(), &request.uid);
        self.observed.unchanged_until = Some(until);
        self.report.handled_renew = request.renew_request.clone();
        let renew = request.renew_request.clone();
        self.ctx.index.remember(&self.key(), &request.uid, |memory| {
            memory.unchanged = Some((expires, until));
            memory.handled_renew = renew;
        });
        self.report.held = self.held(&secret, Some(token.claims()));
        self.report.acted = Some(Action::Unchanged);
    }

    /// Whether the Kubernetes API refused what the last attempt had to write or read, as a quota or an admission policy does.
    fn was_refused_a_write(&self) -> bool {
        let refused = |reason: &str| reason == reason::KUBERNETES_REFUSED;
        let retry = self.memory.retry.as_ref();
        let shown = &self.previous.conditions;
        retry.is_some_and(|retry| refused(retry.reason)) || shown.iter().any(|c| refused(&c.reason))
    }

    /// Tries the write with a token that proves nothing and without an effect, so that a refusal that lasts costs no mint an attempt.
    async fn rehearse(&self) -> Result<(), Stop> {
        let (ctx, request) = (self.ctx, self.request);
        let Some(token) = mint::placeholder(request, self.now) else {
            return Ok(());
        };
        let rendered = render(request, &token).map_err(Stop::Render)?;
        let secret = self.observed.secret.as_ref();
        Ok(apply::rehearse(ctx, request, &rendered, self.content.as_ref(), secret).await?)
    }

    /// Takes in what was written.
    fn settle(
        &mut self,
        written: Option<SecretSummary>,
        token: &IdToken,
        reverted: bool,
    ) -> Result<(), Stop> {
        let written = written.ok_or(Stop::Gone)?;
        let now = Timestamp::now();
        let request = self.request;
        let renew = request.renew_request.clone();
        let issued_at = self.observed.issued_at;
        self.ctx.index.remember(&self.key(), &request.uid, |memory| {
            memory.written = Some(WrittenHashes::new(&request.token_hash, &request.render_hash));
            memory.handled_renew = renew;
            memory.issued_at = issued_at;
            memory
                .repairs
                .retain(|at| now.duration_since(*at) < REPAIR_WINDOW);
            memory.repairs.extend(reverted.then_some(now));
        });
        self.report.held = self.held(&written, Some(token.claims()));
        match self.report.held {
            Some(_) => Ok(()),
            None => Err(Stop::Fault(KubeError::Altered {
                name: request.target.name.clone(),
            })),
        }
    }

    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.request.namespace, &self.request.name)
    }

    /// Says that this machine's clock is wrong: schedules and checks go by it. At most one event an hour, since every request finds the
    /// same.
    async fn tell_clock_skew(&self, token: &IdToken) {
        // A metadata server answers with a token that it has had for a while.
        if matches!(self.request.token.source, TokenSource::MetadataServer { .. }) {
            return;
        }
        let now = Timestamp::now();
        self.ctx
            .metrics
            .set_clock_skew(token.claims().iat.duration_since(now));
        let Some(skew) = token.clock_skew(now) else {
            return;
        };
        let note = status::clock_skew(skew);
        tracing::warn!(skew_seconds = skew.as_secs(), "{note}");
        if self.ctx.index.is_news(reason::CLOCK_SKEW, now) {
            let event = status::warning(reason::CLOCK_SKEW, &note);
            let object = ObjectReference {
                api_version: Some(IdTokenRequest::api_version(&()).into_owned()),
                kind: Some(IdTokenRequest::kind(&()).into_owned()),
                namespace: Some(self.request.namespace.clone()),
                name: Some(self.request.name.clone()),
                uid: Some(self.request.uid.clone()),
                ..ObjectReference::default()
            };
            if let Err(error) = self.ctx.events.publish(&event, &object).await {
                let fault = KubeError::new("create", "events", &self.request.namespace, &error);
                tracing::warn!("the event was not written: {fault}");
            }
        }
    }

    /// Whether this process wrote a token for this very spec: another one in the Secret is then somebody's doing.
    fn wrote_this_token(&self) -> bool {
        self.memory
            .written
            .as_ref()
            .is_some_and(|written| written.token_hash() == self.request.token_hash)
    }

    fn wrote_this_rendering(&self) -> bool {
        self.memory
            .written
            .as_ref()
            .is_some_and(|written| written.render_hash() == self.request.render_hash)
    }

    /// Whether the Secret holds a token for this very spec.
    fn holds_this_spec(&self) -> bool {
        let secret = self.observed.secret.as_ref();
        secret.and_then(|secret| secret.token_hash.as_ref()) == Some(&self.request.token_hash)
    }

    /// Stops putting back what was put back too often. `field` is what somebody changed, if it was ours.
    fn refuse_a_fight(&self, field: Option<&str>, content: Option<&SecretContent>) -> Result<(), Stop> {
        let Some(field) = field else { return Ok(()) };
        let recent = |at: &&Timestamp| self.now.duration_since(**at) < REPAIR_WINDOW;
        let count = self.memory.repairs.iter().filter(recent).count();
        if count < MAX_REPAIRS {
            return Ok(());
        }
        Err(Stop::Fault(KubeError::Contested {
            name: self.request.target.name.clone(),
            field: field.to_owned(),
            manager: content.and_then(last_manager).unwrap_or("somebody").to_owned(),
            count,
        }))
    }

    /// Removes the Secret of the name that the target had before, if it is still ours.
    pub(crate) async fn remove_renamed(&mut self) -> Result<(), Stop> {
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
            .secret(&ObjectKey::new(&self.request.namespace, &old.name));
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
}

/// The token that status shows, which pins the account's unique ID.
fn before(previous: &IdTokenRequestStatus, same_spec: bool) -> Option<mint::PreviousToken<'_>> {
    let token = previous.token.as_ref()?;
    Some(mint::PreviousToken { token, same_spec })
}

/// The token that we wrote, under its key or, where the key was changed or spoilt, under another.
fn stored_token(content: &SecretContent, key: &str) -> Option<IdToken> {
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

fn last_manager(content: &SecretContent) -> Option<&str> {
    let entries = content.meta.managed_fields.iter().flatten();
    let others = entries.filter(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER));
    others
        .max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?
        .manager
        .as_deref()
}
