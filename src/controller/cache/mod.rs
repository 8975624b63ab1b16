//! What is known of requests, Secrets and namespaces between reconciles, in little memory.
//!
//! May import [`crate::request`], [`crate::kubernetes`] and what is below them, and fills the metrics' [`CacheUsage`]. Makes no calls, and
//! never decides what a request needs.
//!
//! [`Cache`] holds the parts, one a file, under one lock: an upserted request is stored, releases its old Secret and claims its new one in one
//! step. Methods that take a UID do nothing if the request was recreated or deleted meanwhile.
//!
//! What it keeps is bounded by [`CacheLimits`], not by what is in the cluster: the budget decides which requests are served.
//!
//! A scope is a namespace, or empty for all namespaces.

mod budget;
mod claims;
mod compressed_request;
mod failures;
pub mod foreign_secrets;
mod ledger;
mod limits;
mod namespaces;
mod notices;
mod relist;
pub mod request_state;
mod requests;
mod secrets;
mod state;
pub mod unserved;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use jiff::Timestamp;

use self::compressed_request::{CompressedRequest, trim_metadata, trim_status};
use self::limits::{MARKER, request_cost};
use self::request_state::RequestState;
use self::requests::{CachedObject, SecretWrite};
use self::state::State;
use self::unserved::{Marker, Unserved};
use crate::api::ObjectKey;
use crate::api::v1alpha1::IdTokenRequest;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::metrics::CacheUsage;
use crate::request::size::check_size;
use crate::request::target_name;
use crate::sync::lock;

pub use self::claims::Claimant;
pub use self::limits::CacheLimits;
pub use self::requests::Standing;
pub use self::state::EndedRelist;

/// A write of a request's Secret that is expected until this is dropped.
#[derive(Debug)]
pub struct ExpectedWrite<'a> {
    cache: &'a Cache,
    request: &'a ObjectKey,
}

impl ExpectedWrite<'_> {
    /// Stops expecting the write. Returns whether the watch showed another client's change of the Secret meanwhile: the request must be
    /// requeued.
    pub fn end(self) -> bool {
        self.set(SecretWrite::None) == SecretWrite::Unexplained
    }

    /// Returns what was set before.
    fn set(&self, write: SecretWrite) -> SecretWrite {
        let mut state = self.cache.lock();
        let cached = state.requests.get_mut(self.request);
        cached.map_or(SecretWrite::None, |cached| {
            std::mem::replace(&mut cached.secret_write, write)
        })
    }
}

impl Drop for ExpectedWrite<'_> {
    fn drop(&mut self) {
        self.set(SecretWrite::None);
    }
}

/// The cache. Each method holds the lock for a few map operations only.
#[derive(Debug)]
pub struct Cache(Mutex<State>);

impl Default for Cache {
    fn default() -> Self {
        Self::new(CacheLimits::default())
    }
}

/// Requests.
impl Cache {
    /// Without objects.
    pub fn new(limits: CacheLimits) -> Self {
        Self(Mutex::new(State::new(limits)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Stores a request as a watch or list shows it. Returns the requests to reconcile:
    ///
    /// - itself, if anything but its status changed;
    /// - those that win or lose a Secret by it;
    /// - those that are no longer served because it displaces them. The cache may keep nothing of these.
    pub fn upsert_request(&self, object: IdTokenRequest) -> Vec<ObjectKey> {
        let (metadata, status) = (object.metadata, object.status.map(trim_status));
        let object = IdTokenRequest {
            metadata: trim_metadata(metadata),
            status,
            ..object
        };
        let bytes = match check_size(&object.spec) {
            Ok(bytes) => bytes,
            Err(error) => {
                return self.upsert_unserved(Unserved {
                    metadata: object.metadata,
                    status: object.status,
                    error,
                });
            }
        };
        let compressed = CompressedRequest::new(&object);
        let cost = request_cost(bytes, &compressed);
        let target = target_name(&object);
        let status = object.status.as_ref();
        let recorded = status.and_then(|status| status.secret.as_ref());
        let recorded = recorded.is_some_and(|secret| secret.name == target);
        let cached = CachedObject::Decoded(compressed);
        self.lock()
            .upsert_request(&object.metadata, Some((target, recorded)), cached, cost)
    }

    /// Stores a request that is not served. Returns the requests to reconcile, as [`Self::upsert_request`] does.
    pub fn upsert_unserved(&self, object: Unserved) -> Vec<ObjectKey> {
        let metadata = object.metadata.clone();
        let marker = Marker::new(object);
        let cost = request_cost(0, &marker.parts);
        let cached = CachedObject::Unserved(Box::new(marker));
        self.lock().upsert_request(&metadata, None, cached, cost)
    }

    /// Removes a request. Returns the requests to reconcile, as [`Self::upsert_request`] does.
    pub fn remove_request(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        self.lock().remove_request(key)
    }

    /// The request `key` as last shown, and its state.
    pub fn snapshot(&self, key: &ObjectKey) -> Option<(Result<IdTokenRequest, Unserved>, RequestState)> {
        let state = self.lock();
        let cached = state.requests.get(key)?;
        let request_state = cached.state.clone();
        let json = match &cached.object {
            CachedObject::Decoded(compressed) => compressed.decompress()?,
            CachedObject::Unserved(marker) => return Some((Err(marker.unserved()?), request_state)),
        };
        drop(state);
        Some((Ok(serde_json::from_str(&json).ok()?), request_state))
    }

    /// Whether there is a request `key`.
    pub fn has_request(&self, key: &ObjectKey) -> bool {
        self.lock().requests.get(key).is_some()
    }

    /// The requests of `scope`.
    pub fn request_keys(&self, scope: &str) -> Vec<ObjectKey> {
        self.lock().requests.keys(scope)
    }

    /// Starts a relist of the requests of `scope`.
    pub fn begin_request_relist(&self, scope: &str) {
        self.lock().begin_request_relist(scope);
    }

    /// Ends the relist of the requests of `scope`: removes those that were not upserted since it began.
    pub fn end_request_relist(&self, scope: &str) -> EndedRelist {
        self.lock().end_request_relist(scope)
    }

    /// Whether to relist the requests of `scope`: there is memory for some of which too little is kept, and no relist is in progress.
    pub fn needs_request_relist(&self, scope: &str) -> bool {
        let state = self.lock();
        !state.requests.relists.is_in_progress(scope) && state.budget.needs_relist(scope)
    }

    /// Marks the requests of `scope` as stale until their next relist ends: the API server was away.
    pub fn mark_stale(&self, scope: &str) {
        self.lock().requests.relists.mark_stale(scope);
    }

    /// Whether the request `key` still has this UID.
    pub fn is_current(&self, key: &ObjectKey, uid: &str) -> bool {
        self.lock().requests.current(key, uid).is_some()
    }

    /// Whether any request has this UID.
    pub fn has_uid(&self, uid: &str) -> bool {
        self.lock().requests.has_uid(uid)
    }

    /// What is known of the request `key`, which had this UID and generation when a reconcile started.
    pub fn standing(&self, key: &ObjectKey, uid: &str, generation: i64) -> Standing {
        self.lock().requests.standing(key, uid, generation)
    }

    /// Updates the state of the request `key`.
    pub fn update(&self, key: &ObjectKey, uid: &str, change: impl FnOnce(&mut RequestState)) {
        if let Some(cached) = self.lock().requests.current_mut(key, uid) {
            change(&mut cached.state);
        }
    }

    /// Records the names of the IdTokenGrants that allow the request `key`.
    pub fn record_allowing_grants(&self, key: &ObjectKey, uid: &str, grants: &[String]) {
        self.lock().requests.record_allowing_grants(key, uid, grants);
    }

    /// How many requests each IdTokenGrant allows; none before every request has been reconciled.
    pub fn allowed_request_counts(&self) -> Option<HashMap<String, i64>> {
        self.lock().requests.allowed_request_counts()
    }

    /// Drops the state of all requests, which may be older than another leader's work, and marks their Secrets as to be read.
    pub fn reset_for_leadership(&self) {
        self.lock().requests.reset();
    }

    /// Whether the Secret of the request `key` is to be read before the next issue: another leader may have written it unseen.
    pub fn needs_read(&self, key: &ObjectKey, uid: &str) -> bool {
        let state = self.lock();
        let cached = state.requests.current(key, uid);
        cached.is_some_and(|cached| cached.needs_read)
    }

    /// Records that the Secret of the request `key` was read.
    pub fn mark_read(&self, key: &ObjectKey, uid: &str) {
        if let Some(cached) = self.lock().requests.current_mut(key, uid) {
            cached.needs_read = false;
        }
    }
}

/// Secrets, and who claims them.
impl Cache {
    /// The claimant that wins the Secret `target` against the request `uid`, if there is one.
    pub fn winning_claimant(&self, target: &ObjectKey, uid: &str) -> Option<Claimant> {
        let state = self.lock();
        let winner = state.winner(target);
        winner.filter(|winner| *winner.uid != *uid).cloned()
    }

    /// Whether a request claims the Secret `target`.
    pub fn is_claimed(&self, target: &ObjectKey) -> bool {
        self.lock().claims.key(target).is_some()
    }

    /// The Secret as last shown or written, if several requests claim it.
    pub fn contended_secret(&self, key: &ObjectKey) -> Option<SecretSummary> {
        self.lock().contended_secret(key)
    }

    /// The requests to reconcile after a change of the Secret `target`, which was as `before`: who won it, who wins it, and others that claim
    /// it, at most 16.
    pub fn affected_by_secret(&self, target: &ObjectKey, before: Option<&SecretSummary>) -> Vec<ObjectKey> {
        self.lock().affected_by_secret(target, before)
    }

    /// The requests that claim the Secret `target`.
    #[cfg(test)]
    pub(super) fn claimants(&self, target: &ObjectKey) -> Vec<ObjectKey> {
        self.lock().claims.of(target).cloned().collect()
    }

    /// The Secret as last shown or written.
    pub fn secret(&self, key: &ObjectKey) -> Option<SecretSummary> {
        self.lock().secrets.get(key)
    }

    /// Whether the Secret may exist although it is not cached: others take the memory for Secrets, and only a read tells.
    pub fn may_lack_secret(&self, key: &ObjectKey) -> bool {
        self.lock().secrets.may_lack(key)
    }

    /// Starts a relist of the Secrets of `scope`.
    pub fn begin_secret_relist(&self, scope: &str) {
        self.lock().secrets.begin_relist(scope);
    }

    /// Stores a Secret as a watch or list shows it. Returns whether to reconcile the requests that it concerns: not after our own write, nor
    /// while the one that claims it is reconciled, which learns of the change by [`ExpectedWrite::end`].
    pub fn upsert_secret(&self, key: ObjectKey, summary: &SecretSummary) -> bool {
        self.lock().upsert_secret(key, summary)
    }

    /// Ends the relist of the Secrets of `scope`. Returns those that are gone.
    pub fn end_secret_relist(&self, scope: &str) -> Vec<(ObjectKey, SecretSummary)> {
        self.lock().secrets.end_relist(scope)
    }

    /// Removes a Secret that the watch shows as deleted at `resource_version`, unless the cached one was written later.
    pub fn delete_secret(&self, key: &ObjectKey, resource_version: &str) {
        self.lock().secrets.delete(key, resource_version);
    }

    /// Expects that the reconcile of the request `key` writes its Secret. The watch may show the write before its answer arrives, and it
    /// is no reason for another reconcile.
    pub fn expect_write<'a>(&'a self, key: &'a ObjectKey) -> ExpectedWrite<'a> {
        let expected = ExpectedWrite {
            cache: self,
            request: key,
        };
        expected.set(SecretWrite::Expected);
        expected
    }

    /// Stores our own write until the watch shows it, so that a lagging watch never causes a second issue.
    pub fn record_secret_write(&self, key: ObjectKey, summary: &SecretSummary) {
        self.lock().record_secret_write(key, summary);
    }

    /// Removes a Secret that does not exist.
    pub fn remove_secret(&self, key: &ObjectKey) {
        self.lock().secrets.remove(key);
    }

    /// How many requests and Secrets are cached.
    pub fn len(&self) -> (usize, usize) {
        let state = self.lock();
        (state.requests.len(), state.secrets.len())
    }

    /// What is kept, and what not.
    pub fn usage(&self) -> CacheUsage {
        let state = self.lock();
        let (requests, markers, requests_dropped) = state.budget.usage();
        let (secrets, secrets_dropped) = state.secrets.usage();
        CacheUsage {
            requests,
            markers: markers * MARKER,
            secrets,
            requests_dropped,
            secrets_dropped,
        }
    }
}

/// Namespaces and notices.
impl Cache {
    /// Replaces what is known of namespaces by a list of all, each with whether it is terminating.
    pub fn replace_namespaces<'a>(&self, all: impl IntoIterator<Item = (&'a str, bool)>) {
        self.lock().namespaces.replace(all);
    }

    /// Forgets the namespace `name`, which was deleted.
    pub fn remove_namespace(&self, name: &str) {
        self.lock().namespaces.remove(name);
    }

    /// Sets whether the namespace `name` is terminating, as the watch shows it.
    pub fn set_terminating(&self, name: &str, terminating: bool) {
        self.lock().namespaces.set(name, terminating);
    }

    /// Notes that the API server rejected a write because the namespace `name` is terminating.
    pub fn note_terminating(&self, name: &str) {
        self.lock().namespaces.note_rejected_write(name);
    }

    /// Whether the namespace `name` is terminating, so that nothing can be created in it.
    pub fn is_terminating(&self, name: &str) -> bool {
        self.lock().namespaces.is_terminating(name)
    }

    /// Notes whether a Secret could be written in the namespace `name`.
    pub fn note_write(&self, name: &str, succeeded: bool) {
        self.lock().namespaces.note_write(name, succeeded);
    }

    /// Whether the last Secret could not be written in the namespace `name`.
    pub fn fails_writes(&self, name: &str) -> bool {
        self.lock().namespaces.fails_writes(name)
    }

    /// Whether to give the notice `reason`, which concerns all requests, at `now`: once an hour.
    pub fn should_notify(&self, reason: &'static str, now: Timestamp) -> bool {
        self.lock().notices.should_notify(reason, now)
    }
}

#[cfg(test)]
mod limits_tests;
#[cfg(test)]
mod tests;
