//! Pure: what is known of a request from before a reconcile, and what follows from it for a write.

use jiff::{SignedDuration, Timestamp};

use crate::api::conditions::reason;
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::controller::cache::request_state::RequestState;
use crate::kubernetes::error::KubeError;
use crate::kubernetes::secret::SecretContent;
use crate::request::ValidRequest;

/// Repairs within [`REPAIR_WINDOW`] after which the operator no longer repairs a field.
const MAX_REPAIRS: usize = 5;
pub(super) const REPAIR_WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// What is known of a request from before this reconcile.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// Its status.
    pub status: &'a IdTokenRequestStatus,
    /// Its state in this process.
    pub state: &'a RequestState,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// When the reconcile started.
    pub now: Timestamp,
}

impl History<'_> {
    /// Whether this process wrote a token for this very spec: another token in the Secret is then a change by another client.
    pub(super) fn is_own_token(&self, request: &ValidRequest) -> bool {
        let written = self.state.written.as_ref();
        written.is_some_and(|written| written.is_token(&request.token_hash))
    }

    pub(super) fn is_own_rendering(&self, request: &ValidRequest) -> bool {
        let written = self.state.written.as_ref();
        written.is_some_and(|written| written.is_rendering(&request.render_hash))
    }

    /// Digest of the token that was written last, if that is known: a Secret that holds another token was changed.
    pub fn digest(&self) -> Option<&str> {
        let recorded = self
            .status
            .token
            .as_ref()
            .and_then(|token| token.digest.as_deref());
        self.state.unrecorded_digest.as_deref().or(recorded)
    }

    /// Whether a dry run precedes the next issue: the last token could not be written, or the Kubernetes API failed the last attempt, as a
    /// quota, an admission policy and a webhook do.
    pub(super) fn needs_dry_run(&self) -> bool {
        let is_failed_write = |reason: &str| {
            matches!(
                reason,
                reason::KUBERNETES_REFUSED | reason::KUBERNETES_UNAVAILABLE | reason::CONTESTED
            )
        };
        let backoff = self.state.backoff.as_ref();
        let conditions = &self.status.conditions;
        self.state.lost_tokens > 0
            || backoff.is_some_and(|backoff| is_failed_write(backoff.reason))
            || conditions
                .iter()
                .any(|condition| is_failed_write(&condition.reason))
    }

    /// Fails if the operator repaired the Secret too often. `field` is what another client changed, if it is ours.
    pub(super) fn check_repair_budget(
        &self,
        request: &ValidRequest,
        field: Option<&str>,
        content: Option<&SecretContent>,
    ) -> Result<(), KubeError> {
        let Some(field) = field else { return Ok(()) };
        let is_recent = |at: &&Timestamp| self.now.duration_since(**at) < REPAIR_WINDOW;
        let count = self.state.repairs.iter().filter(is_recent).count();
        if count < MAX_REPAIRS {
            return Ok(());
        }
        Err(KubeError::FieldConflict {
            name: request.target.name.clone(),
            field: field.to_owned(),
            manager: content
                .and_then(|content| content.last_field_manager.as_deref())
                .unwrap_or("another client")
                .to_owned(),
            count,
        })
    }
}
