//! Validates and authorizes: what the planner decides on.

use super::outcome::CurrentToken;
use super::plan::{Facts, is_whole};
use super::snapshot::Snapshot;
use crate::api::v1alpha1::GrantRef;
use crate::controller::cache::Cache;
use crate::controller::issue::observation::Observation;
use crate::grants::policy::Denied;
use crate::grants::store::GrantStore;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::request::{SourceSettings, ValidRequest, ValidateError};
use crate::shard::Shard;
use crate::token::IdToken;

/// The request, if its spec is valid and the flags permit it. No grant allows it otherwise.
///
/// # Errors
/// The spec is invalid.
pub(super) fn validate(
    cache: &Cache,
    sources: &SourceSettings,
    shard: &Shard,
    snapshot: &Snapshot,
) -> Result<ValidRequest, ValidateError> {
    let request = snapshot.validate(sources, shard);
    if request.is_err() {
        record_allowing_grants(cache, snapshot, Vec::new());
    }
    request
}

/// The grant that allows the request. If the spec names no account, the current token's account is checked first, so that a revoked grant is
/// noticed. Issuing checks the account that the source returns.
///
/// # Errors
/// No grant allows it.
pub(super) fn authorize(
    cache: &Cache,
    grants: &GrantStore,
    snapshot: &Snapshot,
    request: &ValidRequest,
) -> Result<Option<GrantRef>, Denied> {
    record_allowing_grants(cache, snapshot, grants.matching(request));
    grants.authorize_known(request, snapshot.account(), snapshot.now)
}

/// What the planner decides on.
pub(super) struct Inputs {
    pub(super) request: ValidRequest,
    /// The grant that allows it, if one does.
    pub(super) grant: Option<GrantRef>,
    pub(super) facts: Facts,
}

impl Inputs {
    /// What the planner decides on. `authorized` is the grant that allows the request, or why none does; `secret` is the Secret as the cache
    /// has it.
    pub(super) fn new(
        cache: &Cache,
        snapshot: &Snapshot,
        request: ValidRequest,
        authorized: Result<Option<GrantRef>, Denied>,
        secret: Option<&SecretSummary>,
    ) -> Self {
        let (grant, denied) = match authorized {
            Ok(grant) => (grant, None),
            Err(denied) => (None, Some(denied)),
        };
        Self {
            facts: snapshot.facts(&request, secret, cache, grant.as_ref(), denied),
            request,
            grant,
        }
    }

    /// The valid token that the Secret holds, if no other client changed the Secret since it was seen to be whole.
    pub(super) fn current_token(
        &self,
        snapshot: &Snapshot,
        observation: &Observation,
    ) -> Option<CurrentToken> {
        let secret = observation
            .secret()
            .filter(|_| is_whole(observation, &self.facts))?;
        let token = observation.read().and_then(|read| read.token.as_ref());
        let current = CurrentToken::new(
            &self.request,
            &snapshot.status,
            secret,
            token,
            self.facts.timing,
            snapshot.now,
        )?;
        Some(match token {
            Some(token) => self.pin(current, token),
            None => current,
        })
    }

    /// `current` with the subject of `token`, which the Secret holds, if the digest proves that it is the token that Google gave.
    pub(super) fn pin(&self, current: CurrentToken, token: &IdToken) -> CurrentToken {
        match self.facts.has_digest {
            true => current.pinned(token),
            false => current,
        }
    }
}

/// Remembers which grants allow the request, for the counts in their status.
fn record_allowing_grants(cache: &Cache, snapshot: &Snapshot, grants: Vec<String>) {
    if snapshot.state.allowing_grants.as_deref() != Some(&*grants) {
        cache.record_allowing_grants(&snapshot.key, snapshot.uid(), &grants);
    }
}
