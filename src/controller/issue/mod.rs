//! A token into a Secret: mints, renders, and writes with preconditions.
//!
//! May import the cache, the queue's permits, and all below the controller. Never decides whether a token is due: that is the planner's.

mod cause;
pub mod clock_skew;
pub mod error;
pub mod federation;
pub mod history;
pub mod mint;
pub mod observation;
pub mod ownership;
mod patience;
mod proof;
mod relevant;
pub mod write;

use jiff::{SignedDuration, Timestamp};

pub use self::cause::IssueCause;
pub use self::error::IssueError;
use self::error::MintError;
use self::federation::TokenSources;
pub use self::history::History;
use self::history::REPAIR_WINDOW;
use self::mint::{PreviousToken, VerifiedToken};
use self::observation::{Expectations, Integrity, Observation, Precondition, ReadSecret};
use self::ownership::{has_foreign_controller, may_delete};
use self::write::SecretWriter;
use crate::api::ObjectKey;
use crate::api::conditions::reason;
use crate::api::v1alpha1::{GrantRef, IdTokenRequestStatus};
use crate::classify::Classify;
use crate::controller::cache::request_state::{UnchangedToken, WrittenHashes};
use crate::controller::cache::{Cache, Standing};
use crate::controller::queue::permit::Permit;
use crate::grants::policy::Denied;
use crate::grants::store::GrantStore;
use crate::kubernetes::error::KubeError;
use crate::kubernetes::events::EventRecorder;
use crate::kubernetes::secret::read_secret;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::metrics::Metrics;
use crate::render::render;
use crate::request::{TokenSource, ValidRequest};
use crate::schedule::renewal::next_poll;
use crate::token::IdToken;

/// What an issuance or a repair left in the Secret.
#[derive(Debug)]
pub struct Issued {
    /// The Secret as written, or as it was if the source returned the same token again.
    pub secret: SecretSummary,
    /// The token in it.
    pub token: IdToken,
    /// When this process issued the token, if it did.
    pub issued_at: Option<Timestamp>,
    /// When the source is polled again, if it returned the same token again and nothing was written.
    pub repeats_until: Option<Timestamp>,
    /// The grant that allows it.
    pub grant: Option<GrantRef>,
}

/// Brings tokens into Secrets. Borrows what it needs for one reconcile.
#[derive(Clone, Copy)]
pub struct Issuer<'a> {
    /// Where tokens come from.
    pub sources: TokenSources<'a>,
    /// Writes the Secret.
    pub secrets: SecretWriter<'a>,
    /// What is known of requests and Secrets.
    pub cache: &'a Cache,
    /// Counters.
    pub metrics: &'a Metrics,
    /// Writes events.
    pub events: &'a EventRecorder,
}

impl Issuer<'_> {
    /// Reads the Secret, checks that it may be written, and compares it with what the operator writes.
    ///
    /// # Errors
    /// The Secret belongs to another client, the API server did not give it, or the stored token cannot be rendered.
    pub(crate) async fn read(
        &self,
        request: &ValidRequest,
        history: History<'_>,
        permit: &mut Permit,
    ) -> Result<Observation, IssueError> {
        let target = request.target_key();
        let content = read_secret(self.secrets.client, target.namespace(), target.name()).await?;
        self.cache.mark_read(&request.key(), &request.uid);
        let Some(mut content) = content else {
            self.secrets.forget(&target);
            return Ok(Observation::Read(None));
        };
        relevant::retain(&mut content, &request.target);
        let adopts = self.secrets.check_ownership(request, &content)?;
        let known = history.status.token.as_ref();
        let digest = match adopts {
            // No token in a Secret of another client is ours.
            true => None,
            false => {
                let minter = self.sources.minter;
                proof::written_digest(minter, request, &content, history, permit).await
            }
        };
        let expectations = Expectations {
            wrote_token: history.is_own_token(request),
            audience: known.and_then(|token| token.audience.as_deref()),
            digest: digest.as_deref(),
        };
        let read = ReadSecret::compare(content, request, &expectations, history.now)?;
        Ok(Observation::Read(Some(Box::new(read))))
    }

    /// Writes the stored token again: the template changed, or another client changed what is ours.
    ///
    /// # Errors
    /// The Secret cannot be changed, or is changed back and forth; or the API server rejected the write or did not answer.
    pub(crate) async fn repair(
        &self,
        request: &ValidRequest,
        observation: Observation,
        history: History<'_>,
        permit: &mut Permit,
    ) -> Result<Issued, IssueError> {
        // The planner repairs only what was read and holds a token.
        let Some((content, token)) = observation.into_stored() else {
            return Err(IssueError::Gone);
        };
        write::ensure_mutable(request, &content)?;
        let rendered = render(request, &token)?;
        let drift = rendered.drift(&content).unwrap_or_else(|| "type".to_owned());
        let repaired = history.is_own_rendering(request).then_some(drift);
        history.check_repair_budget(request, repaired.as_deref(), Some(&content))?;
        let claims = token.claims();
        let account = claims.email.as_deref().unwrap_or(&claims.sub);
        let authorize =
            |grants: &GrantStore, now: Timestamp| grants.authorize_known(request, Some(account), now);
        let may_write = || self.authorize_write(request, history.generation, authorize);
        let precondition = Precondition::Read(Box::new(content));
        let (secret, _) = self
            .secrets
            .write(request, &rendered, precondition, &may_write, permit)
            .await?;
        self.record_write(request, &token, history.state.issued_at, repaired.is_some());
        Ok(Issued {
            secret,
            token,
            issued_at: history.state.issued_at,
            repeats_until: None,
            grant: None,
        })
    }

    /// Gets a new token and writes it. `remaining` is the remaining lifetime of the current token, if there is one. The permit is released
    /// while Google answers.
    ///
    /// # Errors
    /// Google or the API server rejected a call or did not answer; the grant, the request or its claim on the Secret is gone.
    pub(crate) async fn issue(
        &self,
        request: &ValidRequest,
        observation: Observation,
        history: History<'_>,
        cause: IssueCause,
        remaining: Option<SignedDuration>,
        permit: &mut Permit,
    ) -> Result<Issued, IssueError> {
        let content = observation.read().map(|read| &read.content);
        if let Some(content) = content {
            write::ensure_mutable(request, content)?;
        }
        let repairs = matches!(
            cause,
            IssueCause::Damaged | IssueCause::Changed | IssueCause::Missing
        ) && history.is_own_token(request);
        let field = format!("data[{}]", request.target.key);
        history.check_repair_budget(request, repairs.then_some(field.as_str()), content)?;
        // No token is issued for a write that cannot land. Without such a failure before, a rehearsal would only double the writes.
        if history.needs_dry_run() || self.cache.fails_writes(&request.namespace) {
            Box::pin(self.dry_run(request, &observation, history.now)).await?;
        }
        let remaining = remaining.and_then(|remaining| remaining.try_into().ok());
        let previous = PreviousToken::of(request, observation.secret(), history.status);
        let minted = Box::pin(mint::mint(&self.sources, request, previous, remaining, permit)).await;
        let repeats = minted
            .as_ref()
            .is_ok_and(|minted| is_unchanged(request, &observation, cause, &minted.token));
        self.count(request, &minted, repeats);
        let VerifiedToken { token, account } = minted?;
        // Google's time is not taken from that of the write.
        permit.stopwatch().restart();
        let issued_at = self.sources.clock.now();
        Box::pin(self.report_clock_skew(request, &token)).await;
        let authorize =
            |grants: &GrantStore, now: Timestamp| grants.authorize_account(request, Some(&account), now);
        let may_write = || self.authorize_write(request, history.generation, authorize);
        let grant = may_write()?;
        if repeats {
            return self.record_unchanged(request, observation, token, grant);
        }
        let rendered = render(request, &token)?;
        let lost = history.state.lost_tokens;
        // Until it is written, also if the attempt is aborted.
        self.count_lost(request, lost.saturating_add(1));
        let precondition = observation.into_precondition();
        let write = self
            .secrets
            .write(request, &rendered, precondition, &may_write, permit);
        let (secret, grant) = Box::pin(write).await.inspect_err(|error| {
            // Other errors are no failures of the API server, and are found without another token.
            if !error.is_failed_call() {
                self.count_lost(request, lost);
            }
        })?;
        self.record_write(request, &token, Some(issued_at), repairs);
        Ok(Issued {
            secret,
            token,
            issued_at: Some(issued_at),
            repeats_until: None,
            grant,
        })
    }

    /// Deletes the Secret of the name that the target had before, if it is still ours.
    ///
    /// # Errors
    /// The Secret changed meanwhile, or the API server rejected the call or did not answer.
    pub async fn delete_renamed(
        &self,
        request: &ValidRequest,
        status: &IdTokenRequestStatus,
    ) -> Result<(), KubeError> {
        let old = status.secret.as_ref();
        let Some(old) = old.filter(|old| old.name != request.target.name) else {
            return Ok(());
        };
        let key = ObjectKey::new(&request.namespace, &old.name);
        let is_ours = |secret: &SecretSummary| may_delete(request, &old.name, secret, Some(old));
        let is_as_recorded =
            |secret: &SecretSummary| old.resource_version.as_ref() == Some(&secret.resource_version);
        let secret = match self.cache.secret(&key) {
            None if !self.cache.may_lack_secret(&key) => return Ok(()),
            Some(secret) if !is_ours(&secret) => return Ok(()),
            Some(secret) if is_as_recorded(&secret) => Some(secret),
            // The cache does not show whether another controller owns it by now.
            _ => read_secret(self.secrets.client, key.namespace(), key.name())
                .await?
                .filter(|content| !has_foreign_controller(request, content))
                .map(|content| content.summary)
                .filter(is_ours),
        };
        match secret {
            Some(secret) => self.secrets.delete(&request.namespace, &old.name, &secret).await,
            None => Ok(()),
        }
    }

    fn count(&self, request: &ValidRequest, minted: &Result<VerifiedToken, MintError>, repeats: bool) {
        let result = match minted {
            Ok(_) if repeats => reason::UNCHANGED,
            Ok(_) => reason::ISSUED,
            // No attempt was made.
            Err(error) if error.deferred_for().is_some() => return,
            Err(error) => error.reason(),
        };
        self.metrics.count_mint(request.token.source.name(), result);
    }

    /// Counts the tokens in a row that were issued and could not be written.
    fn count_lost(&self, request: &ValidRequest, lost: u32) {
        self.cache
            .update(&request.key(), &request.uid, |state| state.lost_tokens = lost);
    }

    /// Tries the write with a token that proves nothing and without an effect, so that a lasting rejection costs no token for each attempt.
    async fn dry_run(
        &self,
        request: &ValidRequest,
        observation: &Observation,
        now: Timestamp,
    ) -> Result<(), IssueError> {
        let Some(token) = mint::dry_run_token(request, now) else {
            return Ok(());
        };
        let rendered = render(request, &token)?;
        Ok(self.secrets.dry_run(request, &rendered, observation).await?)
    }

    /// The grant that allows the write now by `authorize`. The grant, the request, its spec or its claim on the Secret may have gone while
    /// Google or the API server answered.
    fn authorize_write(
        &self,
        request: &ValidRequest,
        generation: i64,
        authorize: impl Fn(&GrantStore, Timestamp) -> Result<Option<GrantRef>, Denied>,
    ) -> Result<Option<GrantRef>, IssueError> {
        match self.cache.standing(&request.key(), &request.uid, generation) {
            Standing::Gone => return Err(IssueError::Gone),
            // Another spec, which may suspend the request.
            Standing::Outdated => return Err(IssueError::Outdated),
            Standing::Relisting | Standing::Current => {}
        }
        let grant = authorize(self.sources.grants, self.sources.clock.now())?;
        match self.cache.winning_claimant(&request.target_key(), &request.uid) {
            Some(winner) => Err(IssueError::target_conflict(request, winner.request.name())),
            None => Ok(grant),
        }
    }

    /// Remembers what was written, until the watch shows it.
    fn record_write(
        &self,
        request: &ValidRequest,
        token: &IdToken,
        issued_at: Option<Timestamp>,
        is_repair: bool,
    ) {
        let now = self.sources.clock.now();
        self.cache.update(&request.key(), &request.uid, |state| {
            state.written = WrittenHashes::new(&request.token_hash, &request.render_hash);
            state.unrecorded_digest = Some(token.digest().into());
            state.handled_renew.clone_from(&request.renew_request);
            state.issued_at = issued_at;
            state.repairs.retain(|at| now.duration_since(*at) < REPAIR_WINDOW);
            state.repairs.extend(is_repair.then_some(now));
            state.lost_tokens = 0;
        });
    }

    /// The same token again is no renewal: the Secret stays, and the source is polled again when it may return another token.
    fn record_unchanged(
        &self,
        request: &ValidRequest,
        observation: Observation,
        token: IdToken,
        grant: Option<GrantRef>,
    ) -> Result<Issued, IssueError> {
        let (expires, now) = (token.claims().exp, self.sources.clock.now());
        let repeats_until = next_poll(expires, now, &request.uid);
        self.cache.update(&request.key(), &request.uid, |state| {
            state.unchanged = Some(Box::new(UnchangedToken {
                expires,
                retry_at: repeats_until,
            }));
            state.handled_renew.clone_from(&request.renew_request);
        });
        Ok(Issued {
            // A token is unchanged only beside the Secret that holds it.
            secret: observation.secret().cloned().ok_or(IssueError::Gone)?,
            token,
            issued_at: Some(now),
            repeats_until: Some(repeats_until),
            grant,
        })
    }
}

/// Whether the metadata server returned the very token that the Secret holds, and nothing else has to be written. Other sources return a new
/// token each time, even if two of the same second are equal.
fn is_unchanged(
    request: &ValidRequest,
    observation: &Observation,
    cause: IssueCause,
    token: &IdToken,
) -> bool {
    let secret = observation.secret().filter(|secret| {
        secret.render_hash.as_ref() == Some(&request.render_hash)
            && secret.request_uid.as_ref() == Some(&request.uid)
    });
    matches!(request.token.source, TokenSource::MetadataServer { .. })
        && matches!(cause, IssueCause::Due | IssueCause::Requested)
        && matches!(observation.integrity(), None | Some(Integrity::Intact))
        && secret.and_then(|secret| secret.token_fingerprint.as_ref()) == Some(&token.fingerprint())
}
