//! The parts together, and the operations that are atomic over several of them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::claims::{Claimant, Claims};
use super::namespaces::Namespaces;
use super::notices::Notices;
use super::requests::{CachedObject, Requests, SpecFingerprint};
use super::secrets::Secrets;
use crate::api::ObjectKey;

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
    /// Stores the request with this metadata, whose Secret is called `target`. Returns the requests to reconcile.
    pub(super) fn upsert_request(
        &mut self,
        meta: &ObjectMeta,
        target: Option<String>,
        object: CachedObject,
    ) -> Vec<ObjectKey> {
        let key = self.requests.intern(ObjectKey::of(meta));
        let target = target.map(|name| match name == key.name() {
            true => key.clone(),
            false => self.intern_secret(ObjectKey::new(key.namespace(), &name)),
        });
        let fingerprint = SpecFingerprint::new(meta, target);
        let version = meta.resource_version.as_deref().unwrap_or_default();
        let rolled_back = self.requests.observe_version(&key, &fingerprint.uid, version);
        let previous = self.requests.get(&key).map(|cached| &cached.fingerprint);
        if previous == Some(&fingerprint) {
            let affected = rolled_back.then(|| key.clone());
            self.requests.insert(key, fingerprint, object);
            return affected.into_iter().collect();
        }
        let is_same = previous.is_some_and(|previous| previous.uid == fingerprint.uid);
        if !is_same {
            self.namespaces.note_creation(key.namespace());
        }
        let mut affected = Vec::new();
        if let Some(previous) = previous
            && let Some(target) = &previous.target
        {
            let others = self.claims.remove(target, &key);
            if !is_same || previous.target != fingerprint.target {
                affected = others;
            }
        }
        if let Some(target) = &fingerprint.target {
            let claimant = Claimant {
                created: fingerprint.created,
                uid: fingerprint.uid.clone(),
                request: key.clone(),
            };
            self.claims.add(target.clone(), claimant);
        }
        self.requests.insert(key.clone(), fingerprint, object);
        affected.push(key);
        affected
    }

    /// Removes a request. Returns the requests that can now claim its Secret.
    pub(super) fn remove_request(&mut self, key: &ObjectKey) -> Vec<ObjectKey> {
        match self.requests.remove(key).and_then(|removed| removed.target) {
            Some(target) => self.claims.remove(&target, key),
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
