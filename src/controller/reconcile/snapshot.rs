//! What a reconcile starts from: the request, its status as the API server has it, and its state in this process.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{Facts, Timing, requested_at};
use super::status::reported_since;
use crate::api::conditions::{READY, reason};
use crate::api::v1alpha1::{GrantRef, IdTokenRequest, IdTokenRequestStatus};
use crate::api::{LABEL_SHARD, ObjectKey, annotations};
use crate::controller::cache::request_state::RequestState;
use crate::controller::cache::unserved::Unserved;
use crate::controller::cache::{Cache, Standing};
use crate::controller::issue::History;
use crate::controller::issue::mint::accept_command;
use crate::grants::policy::Denied;
use crate::kubernetes::resource_version::is_older;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::render::renew_request_hash;
use crate::request::token_source::check_allowed;
use crate::request::{SourceSettings, TokenSource, ValidRequest, ValidateError, validate};
use crate::schedule::backoff::{Backoff, BackoffKey};
use crate::schedule::renewal::renewal;
use crate::shard::Shard;

/// What a reconcile starts from.
pub(super) struct Snapshot {
    pub(super) key: ObjectKey,
    /// The request, or what is known of it if it is not served.
    pub(super) object: Result<IdTokenRequest, Unserved>,
    /// The status as the API server has it.
    pub(super) status: IdTokenRequestStatus,
    /// The resourceVersion of the request with that status.
    pub(super) resource_version: String,
    pub(super) state: RequestState,
    /// Shortest time between two renewals that the annotation asks for.
    pub(super) renew_interval: SignedDuration,
    /// When the reconcile started.
    pub(super) now: Timestamp,
}

/// Whether the author of the request has run the command that the last failure asked for, so that waiting is pointless. Another value ends no
/// wait: a client that annotates in a loop gets no call of Google for each.
fn accepts(request: &ValidRequest, failure: &Backoff) -> bool {
    let accepted = request.accept_subject.as_deref();
    accepted.is_some_and(|subject| failure.message.ends_with(&accept_command(request, subject)))
}

impl Snapshot {
    /// Loads what is known of the request `key`; none if it is gone. Its status is the one that this process wrote last, until the watch
    /// shows it.
    pub(super) fn load(
        cache: &Cache,
        key: ObjectKey,
        renew_interval: SignedDuration,
        now: Timestamp,
    ) -> Option<Self> {
        let (mut object, state) = cache.snapshot(&key)?;
        let (metadata, shown) = match &mut object {
            Ok(object) => (&object.metadata, object.status.take()),
            Err(object) => (&object.metadata, object.status.take()),
        };
        let version = metadata.resource_version.as_deref().unwrap_or_default();
        let (resource_version, status) = match &state.status {
            Some(written) if is_older(version, &written.resource_version) => {
                (written.resource_version.to_string(), written.unseen().or(shown))
            }
            _ => (version.to_owned(), shown),
        };
        Some(Self {
            key,
            status: status.unwrap_or_default(),
            resource_version,
            object,
            state,
            renew_interval,
            now,
        })
    }

    pub(super) fn metadata(&self) -> &ObjectMeta {
        match &self.object {
            Ok(object) => &object.metadata,
            Err(object) => &object.metadata,
        }
    }

    pub(super) fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    pub(super) fn generation(&self) -> i64 {
        self.metadata().generation.unwrap_or_default()
    }

    pub(super) fn history(&self) -> History<'_> {
        History {
            status: &self.status,
            state: &self.state,
            generation: self.generation(),
            now: self.now,
        }
    }

    /// Since when no grant allows this generation of the request: as this process remembers or, after a restart, as the status says.
    pub(super) fn denied_since(&self, reason: &str, now: Timestamp) -> Timestamp {
        let known = self.state.denied.as_deref();
        let since = match known.filter(|denied| denied.generation == self.generation()) {
            Some(denied) => Some(denied.at),
            None => reported_since(&self.status, reason, self.generation()),
        };
        // The clock may have been set back.
        since.map_or(now, |since| since.min(now))
    }

    /// The request, if it is served, its spec is valid and the flags permit it. Its Secret gets the label by which this shard watches it.
    pub(super) fn validate(
        &self,
        sources: &SourceSettings,
        shard: &Shard,
    ) -> Result<ValidRequest, ValidateError> {
        let object = self.object.as_ref();
        let mut request = validate(object.map_err(|unserved| unserved.error.clone())?)?;
        check_allowed(&request.token.source, sources)?;
        let label = shard.label_value();
        request
            .target
            .labels
            .extend(label.map(|label| (LABEL_SHARD.to_owned(), label)));
        Ok(request)
    }

    /// The account of the current token, if the status names one.
    pub(super) fn account(&self) -> Option<&str> {
        let token = self.status.token.as_ref()?;
        token.email.as_deref().or(token.subject.as_deref())
    }

    /// What failures in a row depend on.
    pub(super) fn backoff_key(&self, grant: Option<&GrantRef>) -> BackoffKey {
        let annotations = self.metadata().annotations.as_ref();
        BackoffKey {
            generation: self.generation(),
            renew: annotations.and_then(|all| all.get(annotations::RENEW)).cloned(),
            grant: grant.map(|grant| grant.name.clone()),
        }
    }

    /// What decides besides the request, its Secret and the time. `secret` is the Secret as the cache has it.
    pub(super) fn facts(
        &self,
        request: &ValidRequest,
        secret: Option<&SecretSummary>,
        cache: &Cache,
        grant: Option<&GrantRef>,
        denied: Option<Denied>,
    ) -> Facts {
        let target = request.target_key();
        let recorded = self
            .status
            .secret
            .as_ref()
            .filter(|secret| secret.name == target.name());
        let last_failure = self.state.backoff.as_deref();
        let ready = self.status.condition(READY).map(|ready| ready.reason.as_str());
        let handled_renew = self.handled_renew(request, secret);
        let (handled, honoured) = (handled_renew.as_deref(), self.state.honoured_renew.as_deref());
        let interval = self.renew_interval;
        let requested_at = requested_at(request, handled, honoured, interval, self.now);
        Facts {
            standing: self.standing(cache),
            winning_claimant: cache
                .winning_claimant(&target, &request.uid)
                .map(|winner| winner.request.name().to_owned()),
            denied,
            backoff: self
                .state
                .active_backoff(&self.backoff_key(grant), interval, self.now)
                .filter(|backoff| !accepts(request, backoff)),
            has_digest: self.history().digest().is_some(),
            recorded_version: recorded.and_then(|secret| secret.resource_version.clone()),
            timing: Timing {
                source_repeats_until: self.source_repeats_until(request, secret),
                issued_at: self.state.issued_at,
                deferred_until: requested_at.filter(|at| *at > self.now),
            },
            requested_at,
            handled_renew,
            awaits_user: last_failure.is_some_and(|failure| failure.needs_user_action)
                || matches!(ready, Some(reason::SECRET_CONFLICT | reason::SECRET_IMMUTABLE)),
            was_conflicting: last_failure.is_some_and(|failure| failure.reason == reason::SECRET_CONFLICT),
            needs_read: cache.needs_read(&request.key(), &request.uid),
            may_lack_secret: cache.may_lack_secret(&target),
        }
    }

    /// What the cache says of the request at this moment.
    pub(super) fn standing(&self, cache: &Cache) -> Standing {
        cache.standing(&self.key, self.uid(), self.generation())
    }

    /// The last renewal by annotation that was handled. The Secret shows what the status does not yet, if the operator stopped between its
    /// two writes.
    fn handled_renew(&self, request: &ValidRequest, secret: Option<&SecretSummary>) -> Option<String> {
        let written = secret
            .filter(|secret| secret.request_uid.as_ref() == Some(&request.uid))
            .and_then(|secret| secret.handled_renew.as_deref());
        let renew = request.renew_request.as_ref();
        renew
            .filter(|renew| written == Some(&renew_request_hash(renew)))
            .or(self.state.handled_renew.as_ref())
            .cloned()
            .or_else(|| self.status.last_handled_renew_request.clone())
    }

    /// Until when the metadata server is known to return the same token: as this process remembers or, after a restart, as the status says.
    fn source_repeats_until(
        &self,
        request: &ValidRequest,
        secret: Option<&SecretSummary>,
    ) -> Option<Timestamp> {
        let (issued, expires) = (secret?.issued_at?, secret?.expires_at?);
        if let Some(token) = self.state.unchanged.as_deref() {
            return (token.expires == expires).then_some(token.retry_at);
        }
        let recorded = self.status.token.as_ref()?.expiration_time.as_ref()?.0;
        let is_same =
            recorded == expires && matches!(request.token.source, TokenSource::MetadataServer { .. });
        let planned = renewal(issued, expires, request.renew_before, &request.uid).at;
        self.status
            .renewal_time
            .as_ref()
            .map(|time| time.0)
            .filter(|until| is_same && *until > planned)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::classify::ErrorClass;
    use crate::fixtures::{at, request};
    use crate::schedule::backoff::FailedAttempt;

    #[test]
    fn only_the_subject_that_was_refused_ends_the_wait() {
        let mut request = request(json!({}));
        let key = BackoffKey {
            generation: 1,
            renew: None,
            grant: None,
        };
        let attempt = FailedAttempt {
            since: None,
            reason: "TokenSubjectChanged",
            message: format!("…; if that is intended: {}", accept_command(&request, "123")),
            class: ErrorClass::Rejected,
            retry_after: None,
            needs_user_action: false,
            expires: None,
            is_from_google: false,
        };
        let failure = Backoff::next(None, attempt, key, "uid", at(0));
        for (value, ends) in [
            (None, false),
            (Some("12"), false),
            (Some("7"), false),
            (Some("123"), true),
        ] {
            request.accept_subject = value.map(str::to_owned);
            assert_eq!(accepts(&request, &failure), ends, "{value:?}");
        }
    }
}
