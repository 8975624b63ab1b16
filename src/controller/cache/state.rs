//! The parts together, and the operations that are atomic over several of them.

use super::claims::{Claimant, Claims};
use super::compressed_request::CompressedRequest;
use super::namespaces::Namespaces;
use super::notices::Notices;
use super::requests::{Requests, SpecFingerprint};
use super::secrets::Secrets;
use crate::api::ObjectKey;
use crate::api::v1alpha1::IdTokenRequest;
use crate::request::target_name;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) requests: Requests,
    pub(super) claims: Claims,
    pub(super) secrets: Secrets,
    pub(super) namespaces: Namespaces,
    pub(super) notices: Notices,
}

/// What a relist of requests showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EndedRelist {
    /// The requests that are gone.
    pub gone: Vec<ObjectKey>,
    /// The requests that can now claim a Secret of those.
    pub affected: Vec<ObjectKey>,
}

impl State {
    /// Stores `object`, which `compressed` holds too. Returns the requests to reconcile.
    pub(super) fn upsert_request(
        &mut self,
        object: &IdTokenRequest,
        compressed: CompressedRequest,
    ) -> Vec<ObjectKey> {
        let meta = &object.metadata;
        let key = self.requests.intern(ObjectKey::of(meta));
        let target = match target_name(object) {
            name if name == key.name() => key.clone(),
            name => self.intern_secret(ObjectKey::new(key.namespace(), &name)),
        };
        let fingerprint = SpecFingerprint::new(object, target);
        let version = meta.resource_version.as_deref().unwrap_or_default();
        let rolled_back = self.requests.observe_version(&key, &fingerprint.uid, version);
        let previous = self.requests.get(&key).map(|cached| &cached.fingerprint);
        if previous == Some(&fingerprint) {
            let affected = rolled_back.then(|| key.clone());
            self.requests.insert(key, fingerprint, compressed);
            return affected.into_iter().collect();
        }
        let is_same = previous.is_some_and(|previous| previous.uid == fingerprint.uid);
        if !is_same {
            self.namespaces.note_creation(key.namespace());
        }
        let mut affected = Vec::new();
        if let Some(previous) = previous {
            let others = self.claims.remove(&previous.target, &key);
            if !is_same || previous.target != fingerprint.target {
                affected = others;
            }
        }
        let claimant = Claimant {
            created: fingerprint.created,
            uid: fingerprint.uid.clone(),
            request: key.clone(),
        };
        self.claims.add(fingerprint.target.clone(), claimant);
        self.requests.insert(key.clone(), fingerprint, compressed);
        affected.push(key);
        affected
    }

    /// Removes a request. Returns the requests that can now claim its Secret.
    pub(super) fn remove_request(&mut self, key: &ObjectKey) -> Vec<ObjectKey> {
        match self.requests.remove(key) {
            Some(fingerprint) => self.claims.remove(&fingerprint.target, key),
            None => Vec::new(),
        }
    }

    /// Ends the relist of the requests of `scope`: removes those that were not upserted since it began.
    pub(super) fn end_request_relist(&mut self, scope: &str) -> EndedRelist {
        let gone = self.requests.end_relist(scope);
        let affected = gone.iter().flat_map(|key| self.remove_request(key)).collect();
        self.requests.shrink();
        EndedRelist { gone, affected }
    }

    /// The key of a Secret as it is stored, if it is, so that its text is in memory once.
    pub(super) fn intern_secret(&self, key: ObjectKey) -> ObjectKey {
        let stored = self.claims.key(&key).or_else(|| self.secrets.key(&key));
        stored.cloned().unwrap_or(key)
    }
}
