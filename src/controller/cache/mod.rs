//! What is known of requests, Secrets and namespaces between reconciles, in little memory.
//!
//! May import [`crate::request`], [`crate::kubernetes`] and what is below them. Makes no calls, and never decides what a request needs.
//! [`Cache`] holds the parts, one a file, under one lock: an upserted request is stored, releases its old Secret and claims its new one in one
//! step. Methods that take a UID do nothing if the request was recreated or deleted meanwhile.
//!
//! A scope is a namespace, or empty for all namespaces.

mod claims;
mod compressed_request;
pub mod foreign_secrets;
mod namespaces;
mod notices;
mod relist;
pub mod request_state;
mod requests;
mod secrets;
mod state;
pub mod undecodable;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use jiff::Timestamp;

use self::compressed_request::{CompressedRequest, trim_metadata};
use self::request_state::RequestState;
use self::requests::CachedObject;
use self::state::State;
use self::undecodable::Undecodable;
use crate::api::ObjectKey;
use crate::api::v1alpha1::IdTokenRequest;
use crate::kubernetes::secret_summary::SecretSummary;
use crate::request::target_name;
use crate::sync::lock;

pub use self::claims::Claimant;
pub use self::requests::Standing;
pub use self::state::EndedRelist;

/// The cache. Each method holds the lock for a few map operations only.
#[derive(Debug, Default)]
pub struct Cache(Mutex<State>);

/// Requests.
impl Cache {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Stores a request as a watch or list shows it. Returns the requests to reconcile: itself if anything but its status changed, and
    /// those that can now claim the Secret that it gave up.
    pub fn upsert_request(&self, mut object: IdTokenRequest) -> Vec<ObjectKey> {
        object.metadata = trim_metadata(object.metadata);
        let compressed = CachedObject::Decoded(CompressedRequest::new(&object));
        let target = Some(target_name(&object));
        self.lock().upsert_request(&object.metadata, target, compressed)
    }

    /// Stores a request that cannot be decoded. Returns the requests to reconcile, as [`Self::upsert_request`] does.
    pub fn upsert_undecodable(&self, object: Undecodable) -> Vec<ObjectKey> {
        let metadata = object.metadata.clone();
        let object = CachedObject::Undecodable(Box::new(object));
        self.lock().upsert_request(&metadata, None, object)
    }

    /// Removes a request. Returns the requests that can now claim its Secret.
    pub fn remove_request(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        self.lock().remove_request(key)
    }

    /// The request `key` as last shown, and its state.
    pub fn snapshot(&self, key: &ObjectKey) -> Option<(Result<IdTokenRequest, Undecodable>, RequestState)> {
        let state = self.lock();
        let cached = state.requests.get(key)?;
        let request_state = cached.state.clone();
        let json = match &cached.object {
            CachedObject::Decoded(compressed) => compressed.decompress()?,
            CachedObject::Undecodable(object) => return Some((Err((**object).clone()), request_state)),
        };
        drop(state);
        Some((Ok(serde_json::from_slice(&json).ok()?), request_state))
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
        self.lock().requests.begin_relist(scope);
    }

    /// Ends the relist of the requests of `scope`: removes those that were not upserted since it began.
    pub fn end_request_relist(&self, scope: &str) -> EndedRelist {
        self.lock().end_request_relist(scope)
    }

    /// Marks the requests of `scope` as stale until their next relist ends: the API server was away.
    pub fn mark_stale(&self, scope: &str) {
        self.lock().requests.relists.mark_stale(scope);
    }

    /// Whether the request `key` still has this UID.
    pub fn is_current(&self, key: &ObjectKey, uid: &str) -> bool {
        self.lock().requests.current(key, uid).is_some()
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
        let winner = state.claims.winner(target);
        winner.filter(|winner| *winner.uid != *uid).cloned()
    }

    /// The requests that claim the Secret `target`, the winner first.
    pub fn claimants(&self, target: &ObjectKey) -> Vec<ObjectKey> {
        self.lock().claims.claimants(target)
    }

    /// Whether the request `key` exists and claims the Secret `target`.
    pub fn claims(&self, key: &ObjectKey, target: &ObjectKey) -> bool {
        let state = self.lock();
        let cached = state.requests.get(key);
        cached.is_some_and(|cached| cached.fingerprint.target.as_ref() == Some(target))
    }

    /// The Secret as last shown or written.
    pub fn secret(&self, key: &ObjectKey) -> Option<SecretSummary> {
        self.lock().secrets.get(key)
    }

    /// Starts a relist of the Secrets of `scope`.
    pub fn begin_secret_relist(&self, scope: &str) {
        self.lock().secrets.begin_relist(scope);
    }

    /// Stores a Secret as a watch or list shows it. Returns whether it was unknown: false after our own write.
    pub fn upsert_secret(&self, key: ObjectKey, summary: &SecretSummary) -> bool {
        let mut state = self.lock();
        let key = state.intern_secret(key);
        state.secrets.upsert(key, summary)
    }

    /// Ends the relist of the Secrets of `scope`. Returns those that are gone.
    pub fn end_secret_relist(&self, scope: &str) -> Vec<(ObjectKey, SecretSummary)> {
        self.lock().secrets.end_relist(scope)
    }

    /// Removes a Secret that the watch shows as deleted at `resource_version`, unless the cached one was written later.
    pub fn delete_secret(&self, key: &ObjectKey, resource_version: &str) {
        self.lock().secrets.delete(key, resource_version);
    }

    /// Stores our own write until the watch shows it, so that a lagging watch never causes a second issue.
    pub fn record_secret_write(&self, key: ObjectKey, summary: &SecretSummary) {
        let mut state = self.lock();
        let key = state.intern_secret(key);
        state.secrets.record_write(key, summary);
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
}

/// Namespaces and notices.
impl Cache {
    /// Replaces what is known of namespaces by a list of all that are terminating.
    pub fn set_terminating_namespaces(&self, terminating: Vec<String>) {
        self.lock().namespaces.replace(terminating);
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

    /// Whether to give the notice `reason`, which concerns all requests, at `now`: once an hour.
    pub fn should_notify(&self, reason: &'static str, now: Timestamp) -> bool {
        self.lock().notices.should_notify(reason, now)
    }
}

#[cfg(test)]
mod tests;
