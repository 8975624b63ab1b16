//! What is cached of each request: the object, the fingerprint of its spec, and its state between reconciles.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::claims::Claimant;
use super::compressed_request::CompressedRequest;
use super::relist::Relists;
use super::request_state::RequestState;
use super::unserved::{Marker, Unserved};
use crate::api::{ObjectKey, annotations};
use crate::kubernetes::resource_version::is_older;
use crate::request::ValidateError;

/// The cached requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    all: HashMap<ObjectKey, Box<CachedRequest>>,
    /// The UIDs of all of them.
    uids: HashSet<Arc<str>>,
    pub(super) relists: Relists,
    /// The lists of grants that allow requests. Many requests share one.
    grants: HashSet<Arc<[String]>>,
}

#[derive(Debug)]
pub(super) struct CachedRequest {
    pub(super) fingerprint: SpecFingerprint,
    pub(super) object: CachedObject,
    pub(super) state: RequestState,
    /// Whether the Secret is to be read before the next issue.
    pub(super) needs_read: bool,
    pub(super) secret_write: SecretWrite,
    /// What the request counts for in the limits of memory.
    pub(super) cost: u32,
}

/// Whether a reconcile may write the Secret now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SecretWrite {
    /// No reconcile is in flight.
    #[default]
    None,
    /// It may, and the watch shows no change that no write of ours explains.
    Expected,
    /// It may, and the watch shows such a change.
    Unexplained,
}

/// What a watch shows of a request.
#[derive(Debug)]
pub(super) enum CachedObject {
    Decoded(CompressedRequest),
    /// It is not served, so it claims no Secret. Its reconcile only reports why.
    Unserved(Box<Marker>),
}

impl CachedObject {
    /// Why the request is not served, if it is not.
    pub(super) fn error(&self) -> Option<&ValidateError> {
        match self {
            Self::Decoded(_) => None,
            Self::Unserved(marker) => Some(&marker.error),
        }
    }

    /// What is left of it if it is not served because of `error`.
    pub(super) fn into_marker(self, error: ValidateError) -> Self {
        let parts = match &self {
            Self::Decoded(request) => request,
            Self::Unserved(marker) => &marker.parts,
        };
        match Unserved::without_spec(parts, error) {
            Some(request) => Self::Unserved(Box::new(Marker::new(request))),
            // Never, since this process compressed it.
            None => self,
        }
    }
}

/// What the cache says of a request, the worst first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It was deleted or recreated.
    Gone,
    /// Its spec changed since the reconcile started.
    Outdated,
    /// It is relisted, so it may be another than the cached one, or gone.
    Relisting,
    /// It is as the reconcile has it.
    #[default]
    Current,
}

/// Changes whenever the spec, the renew annotation or the accepted subject changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SpecFingerprint {
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    /// The values of the annotations that request a renewal and accept a subject; none if it has neither. Most requests have neither.
    requested: Option<Box<[Option<Box<str>>; 2]>>,
    /// As [`Claimant::created`].
    pub(super) created: i64,
    /// The Secret that the request claims; none if the request is not served.
    pub(super) target: Option<ObjectKey>,
}

impl SpecFingerprint {
    /// The fingerprint of the request with this metadata, which claims the Secret `target`.
    pub(super) fn new(meta: &ObjectMeta, target: Option<ObjectKey>) -> Self {
        let annotation = |key: &str| Some(meta.annotations.as_ref()?.get(key)?.as_str().into());
        let requested = [annotations::RENEW, annotations::ACCEPT_SUBJECT].map(annotation);
        Self {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            generation: meta.generation.unwrap_or_default(),
            requested: requested.iter().any(Option::is_some).then(|| Box::new(requested)),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(i64::MIN, |time| time.0.as_second()),
            target,
        }
    }

    /// The request `key` with this fingerprint in the order of requests.
    pub(super) fn claimant(&self, key: &ObjectKey) -> Claimant {
        Claimant {
            unrecorded: false,
            created: self.created,
            uid: self.uid.clone(),
            request: key.clone(),
        }
    }

    /// Whether both are of one object.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        self.uid == other.uid && self.created == other.created
    }
}

impl Requests {
    /// `key` as it is stored, if it is, so that its text is in memory once.
    pub(super) fn intern(&self, key: ObjectKey) -> ObjectKey {
        let stored = self.all.get_key_value(&key);
        stored.map_or(key, |(stored, _)| stored.clone())
    }

    /// The request `key`.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&CachedRequest> {
        self.all.get(key).map(|cached| &**cached)
    }

    /// The request `key`, if it has this UID.
    pub(super) fn current(&self, key: &ObjectKey, uid: &str) -> Option<&CachedRequest> {
        self.get(key).filter(|cached| *cached.fingerprint.uid == *uid)
    }

    /// The request `key`, if it has this UID.
    pub(super) fn current_mut(&mut self, key: &ObjectKey, uid: &str) -> Option<&mut CachedRequest> {
        let cached = self.all.get_mut(key)?;
        (*cached.fingerprint.uid == *uid).then_some(cached)
    }

    /// The request `key`.
    pub(super) fn get_mut(&mut self, key: &ObjectKey) -> Option<&mut CachedRequest> {
        self.all.get_mut(key).map(|cached| &mut **cached)
    }

    /// Whether any request has this UID.
    pub(super) fn has_uid(&self, uid: &str) -> bool {
        self.uids.contains(uid)
    }

    /// What is known of the request `key`, which had this UID and generation.
    pub(super) fn standing(&self, key: &ObjectKey, uid: &str, generation: i64) -> Standing {
        match self.current(key, uid) {
            None => Standing::Gone,
            Some(cached) if cached.fingerprint.generation != generation => Standing::Outdated,
            Some(_) if self.relists.is_stale(key) => Standing::Relisting,
            Some(_) => Standing::Current,
        }
    }

    /// The requests of `scope`, a namespace or empty for all.
    pub(super) fn keys(&self, scope: &str) -> Vec<ObjectKey> {
        let keys = self.all.keys().filter(|key| key.is_in(scope));
        keys.cloned().collect()
    }

    /// Each of them as it stands in the order of requests, with what it counts for.
    pub(super) fn claimants(&self) -> impl Iterator<Item = (Claimant, u32)> {
        let all = self.all.iter();
        all.map(|(key, cached)| (cached.fingerprint.claimant(key), cached.cost))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Records that a watch or list shows the request `key` at `resource_version`. Returns whether it was rolled back: a list shows it older
    /// than our last write of its status, as after a restore of etcd. The state of its status is dropped then.
    pub(super) fn observe_version(&mut self, key: &ObjectKey, uid: &str, resource_version: &str) -> bool {
        let listed = self.relists.record(key);
        let Some(CachedRequest { state, .. }) = self.current_mut(key, uid) else {
            return false;
        };
        let Some(status) = &mut state.status else {
            return false;
        };
        if !is_older(resource_version, &status.resource_version) {
            status.unseen = None;
            return false;
        }
        let rolled_back = listed && !status.since_relist;
        if rolled_back {
            state.status = None;
            state.handled_renew = None;
            state.unrecorded_digest = None;
        }
        rolled_back
    }

    /// Stores a request. Its state is kept if it has the same UID as before.
    pub(super) fn insert(
        &mut self,
        key: ObjectKey,
        fingerprint: SpecFingerprint,
        object: CachedObject,
        cost: u32,
    ) {
        match self.current_mut(&key, &fingerprint.uid) {
            Some(cached) => {
                // The text is in memory once.
                let uid = cached.fingerprint.uid.clone();
                cached.fingerprint = SpecFingerprint { uid, ..fingerprint };
                cached.object = object;
                cached.cost = cost;
            }
            None => {
                self.uids.insert(fingerprint.uid.clone());
                let cached = CachedRequest {
                    fingerprint,
                    object,
                    state: RequestState::default(),
                    needs_read: false,
                    secret_write: SecretWrite::default(),
                    cost,
                };
                if let Some(recreated) = self.all.insert(key, Box::new(cached)) {
                    self.uids.remove(&recreated.fingerprint.uid);
                }
            }
        }
    }

    /// Leaves a marker of the request `key`, which is not served because of `error`. Returns the Secret that it claimed.
    pub(super) fn demote(&mut self, key: &ObjectKey, error: ValidateError) -> Option<ObjectKey> {
        let cached = self.all.get_mut(key)?;
        let object = std::mem::replace(
            &mut cached.object,
            CachedObject::Decoded(CompressedRequest::default()),
        );
        cached.object = object.into_marker(error);
        // What decides which status is the latest is kept.
        cached.state = RequestState {
            status: cached.state.status.take(),
            ..RequestState::default()
        };
        cached.fingerprint.target.take()
    }

    /// Removes the request `key`. Returns its fingerprint.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<SpecFingerprint> {
        let removed = self.all.remove(key)?;
        self.uids.remove(&removed.fingerprint.uid);
        Some(removed.fingerprint)
    }

    /// Starts a relist of `scope`. It shows every status that was written before now.
    pub(super) fn begin_relist(&mut self, scope: &str) {
        self.relists.begin(scope);
        for (_, cached) in self.all.iter_mut().filter(|(key, _)| key.is_in(scope)) {
            if let Some(status) = &mut cached.state.status {
                status.since_relist = false;
            }
        }
    }

    /// Ends the relist of `scope`. Returns the requests that are gone, which are still stored.
    pub(super) fn end_relist(&mut self, scope: &str) -> Vec<ObjectKey> {
        let Some(relist) = self.relists.end(scope) else {
            return Vec::new();
        };
        let gone = self.all.keys().filter(|key| relist.lacks(key));
        gone.cloned().collect()
    }

    /// Frees memory that removed requests left.
    pub(super) fn shrink(&mut self) {
        self.all.shrink_to_fit();
        self.uids.shrink_to_fit();
        self.grants.retain(|grants| Arc::strong_count(grants) > 1);
    }

    /// The requests with their states.
    pub(super) fn states(&mut self) -> impl Iterator<Item = (&ObjectKey, &mut RequestState)> {
        self.all.iter_mut().map(|(key, cached)| (key, &mut cached.state))
    }

    /// Drops the state of all requests. The Secret of each is to be read before the next issue.
    pub(super) fn reset(&mut self) {
        for cached in self.all.values_mut() {
            cached.state = RequestState::default();
            cached.needs_read = true;
        }
    }

    /// Records the names of the IdTokenGrants that allow the request `key`.
    pub(super) fn record_allowing_grants(&mut self, key: &ObjectKey, uid: &str, grants: &[String]) {
        let shared = self.grants.get(grants).cloned().unwrap_or_else(|| {
            let shared: Arc<[String]> = grants.into();
            self.grants.insert(shared.clone());
            shared
        });
        if let Some(cached) = self.current_mut(key, uid) {
            cached.state.allowing_grants = Some(shared);
        }
    }

    /// How many requests each IdTokenGrant allows; none before every request has been reconciled.
    pub(super) fn allowed_request_counts(&self) -> Option<HashMap<String, i64>> {
        let mut counts = HashMap::new();
        for cached in self.all.values() {
            for grant in cached.state.allowing_grants.as_ref()?.iter() {
                match counts.get_mut(grant) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(grant.clone(), 1)),
                }
            }
        }
        Some(counts)
    }
}
