//! The parts together, and the operations that are atomic over several of them.
//!
//! A request is in the budget if it is stored. It has a claim if it is served.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::budget::Budget;
use super::claims::{Claimant, Claims, Named};
use super::ledger::{Admission, Changes};
use super::limits::CacheLimits;
use super::namespaces::Namespaces;
use super::notices::Notices;
use super::requests::{CachedObject, CachedRequest, Requests, SecretWrite, SpecFingerprint};
use super::secrets::Secrets;
use crate::api::ObjectKey;
use crate::kubernetes::secret_summary::SecretSummary;

/// Most claimants of a Secret that are reconciled when it changes or another one wins it: the winner, and others, whose conditions name the
/// winner. In a namespace with thousands that claim one Secret, each change would else reconcile all of them.
const MAX_AFFECTED: usize = 16;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) requests: Requests,
    pub(super) budget: Budget,
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
    /// The requests to reconcile, since a Secret of those is theirs now.
    pub affected: Vec<ObjectKey>,
}

impl State {
    /// Without objects.
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self {
            budget: Budget::new(limits),
            secrets: Secrets::new(limits.of_secrets()),
            ..Self::default()
        }
    }

    /// The Secret as last shown or written, if several requests claim it.
    pub(super) fn contended_secret(&self, key: &ObjectKey) -> Option<SecretSummary> {
        let is_contended = self.claims.is_contended(key);
        is_contended.then(|| self.secrets.get(key)).flatten()
    }

    /// Who wins the Secret `target`.
    pub(super) fn winner(&self, target: &ObjectKey) -> Option<&Claimant> {
        // Nearly every Secret has one claimant, who wins whatever the Secret says.
        let secret = self.contended_secret(target);
        let named = secret.as_ref().map(Named::from);
        self.claims.winner(target, named)
    }

    /// Stores the request with this metadata. `claim` is the name of its Secret, if it is served, and whether its status records that Secret.
    /// Returns the requests to reconcile, and those of which nothing is kept any more.
    pub(super) fn upsert_request(
        &mut self,
        meta: &ObjectMeta,
        claim: Option<(String, bool)>,
        object: CachedObject,
        cost: u32,
    ) -> Vec<ObjectKey> {
        let key = self.requests.intern(ObjectKey::of(meta));
        let recorded = claim.as_ref().is_some_and(|(_, recorded)| *recorded);
        let mut fingerprint = SpecFingerprint::new(meta, None);
        let mut affected = self.account(&key, &fingerprint, cost);
        let (claim, object) = match self.budget.admission(&fingerprint.claimant(&key)) {
            Admission::Admitted => (claim, object),
            Admission::Waiting(limit) => {
                let error = limit.error(self.budget.limits());
                (None, object.into_marker(error))
            }
            Admission::Dropped => {
                affected.extend(self.forget(&key));
                affected.push(key);
                return affected;
            }
        };
        fingerprint.target = claim.map(|(name, _)| match name == key.name() {
            true => key.clone(),
            false => self.intern_secret(ObjectKey::new(key.namespace(), &name)),
        });
        let version = meta.resource_version.as_deref().unwrap_or_default();
        let rolled_back = self.requests.observe_version(&key, &fingerprint.uid, version);
        let target = fingerprint.target.clone();
        let winner = |state: &Self| {
            let winner = target.as_ref().and_then(|target| state.winner(target));
            winner.map(|winner| winner.request.clone())
        };
        let before = winner(self);
        let previous = self.requests.get(&key);
        let is_equal = previous.is_some_and(|previous| {
            previous.fingerprint == fingerprint && previous.object.error() == object.error()
        });
        if is_equal {
            affected.extend(rolled_back.then(|| key.clone()));
            if let Some(target) = &fingerprint.target {
                self.claims.set_recorded(target, &key, recorded);
            }
            let after = winner(self);
            if before != after {
                affected.extend(before.into_iter().chain(after));
            }
            self.requests.insert(key, fingerprint, object, cost);
            return affected;
        }
        let previous = previous.map(|cached| &cached.fingerprint);
        let is_same = previous.is_some_and(|previous| previous.uid == fingerprint.uid);
        if !is_same {
            self.namespaces.note_creation(key.namespace());
        }
        let given_up = previous.and_then(|previous| previous.target.clone());
        if let Some(given_up) = given_up {
            match is_same && fingerprint.target.as_ref() == Some(&given_up) {
                true => self.claims.remove(&given_up, &key),
                false => affected.extend(self.release(&given_up, &key)),
            }
        }
        if let Some(target) = &fingerprint.target {
            let claimant = Claimant {
                unrecorded: !recorded,
                ..fingerprint.claimant(&key)
            };
            self.claims.add(target.clone(), claimant);
        }
        let after = winner(self);
        if before != after {
            for other in before.into_iter().chain(after) {
                if other != key && !affected.contains(&other) {
                    affected.push(other);
                }
            }
        }
        self.requests.insert(key.clone(), fingerprint, object, cost);
        affected.push(key);
        affected
    }

    /// Removes a request. Returns those that win or lose its Secret by that, and those that are admitted or dropped because memory changed.
    pub(super) fn remove_request(&mut self, key: &ObjectKey) -> Vec<ObjectKey> {
        let Some(cached) = self.requests.get(key) else {
            return Vec::new();
        };
        let changes = self.budget.remove(&cached.fingerprint.claimant(key), cached.cost);
        let mut affected = self.forget(key);
        affected.extend(self.apply(changes, key));
        affected
    }

    /// Starts a relist of the requests of `scope`.
    pub(super) fn begin_request_relist(&mut self, scope: &str) {
        self.requests.begin_relist(scope);
        self.budget.begin_relist(scope);
    }

    /// Ends the relist of the requests of `scope`: removes those that were not upserted since it began.
    pub(super) fn end_request_relist(&mut self, scope: &str) -> EndedRelist {
        let gone = self.requests.end_relist(scope);
        let affected = gone.iter().flat_map(|key| self.remove_request(key)).collect();
        self.requests.shrink();
        EndedRelist { gone, affected }
    }

    /// Stores a Secret as a watch or list shows it. Returns whether to reconcile the requests that it concerns: not after our own write, nor
    /// while the one that claims it is reconciled, which learns of the change at its end.
    pub(super) fn upsert_secret(&mut self, key: ObjectKey, summary: &SecretSummary) -> bool {
        let key = self.intern_secret(key);
        let is_claimed = self.claims.key(&key).is_some();
        self.secrets.upsert(key.clone(), summary, is_claimed) && !self.defer_change(&key)
    }

    /// Leaves a change of the Secret `target` to the reconcile that may have made it, if there is one and nobody else claims the Secret.
    fn defer_change(&mut self, target: &ObjectKey) -> bool {
        let Some(cached) = self.sole_claimant_mut(target) else {
            return false;
        };
        let is_expected = cached.secret_write != SecretWrite::None;
        if is_expected {
            cached.secret_write = SecretWrite::Unexplained;
        }
        is_expected
    }

    /// The request that claims the Secret `target`, if only one does.
    fn sole_claimant_mut(&mut self, target: &ObjectKey) -> Option<&mut CachedRequest> {
        let mut claimants = self.claims.of(target);
        let only = claimants.next().filter(|_| claimants.next().is_none())?;
        self.requests.get_mut(only)
    }

    /// The requests that a change of the Secret `target` affects. `before` is its previous state.
    pub(super) fn affected_by_secret(
        &self,
        target: &ObjectKey,
        before: Option<&SecretSummary>,
    ) -> Vec<ObjectKey> {
        let before = self.claims.winner(target, before.map(Named::from));
        let winners = before.into_iter().chain(self.winner(target));
        self.affected(target, winners.map(|winner| &winner.request))
    }

    /// Stores our own write until the watch shows it, so that a lagging watch never causes a second issue.
    pub(super) fn record_secret_write(&mut self, key: ObjectKey, summary: &SecretSummary) {
        let key = self.intern_secret(key);
        if self.secrets.record_write(key.clone(), summary)
            && let Some(cached) = self.sole_claimant_mut(&key)
            && cached.secret_write == SecretWrite::Unexplained
        {
            cached.secret_write = SecretWrite::Expected;
        }
    }

    /// The key of a Secret as it is stored, if it is, so that its text is in memory once.
    fn intern_secret(&self, key: ObjectKey) -> ObjectKey {
        let stored = self.claims.key(&key).or_else(|| self.secrets.key(&key));
        stored.cloned().unwrap_or(key)
    }

    /// Enters what the request `key` counts for. Returns the other requests whose place in memory changed with it.
    fn account(&mut self, key: &ObjectKey, fingerprint: &SpecFingerprint, cost: u32) -> Vec<ObjectKey> {
        let known = self.requests.get(key);
        let before = known.filter(|known| known.fingerprint.is_of(fingerprint));
        let before = before.map(|known| known.cost);
        if before == Some(cost) {
            return Vec::new();
        }
        let recreated = known.filter(|_| before.is_none());
        let changes = recreated.map(|known| self.budget.remove(&known.fingerprint.claimant(key), known.cost));
        let mut affected = self.apply(changes.unwrap_or_default(), key);
        let others = self
            .requests
            .claimants()
            .filter(|(other, _)| other.request != *key);
        let changes = self.budget.put(fingerprint.claimant(key), before, cost, others);
        affected.extend(self.apply(changes, key));
        affected
    }

    /// Applies the changes of the budget to all requests but `key`. Returns the affected requests.
    fn apply(&mut self, changes: Changes, key: &ObjectKey) -> Vec<ObjectKey> {
        let mut affected = Vec::new();
        for (demoted, limit) in changes.demoted.into_iter().filter(|(other, _)| other != key) {
            let error = limit.error(self.budget.limits());
            if let Some(target) = self.requests.demote(&demoted, error) {
                affected.extend(self.release(&target, &demoted));
            }
            affected.push(demoted);
        }
        for dropped in changes.dropped.iter().filter(|other| *other != key) {
            affected.extend(self.forget(dropped));
            affected.push(dropped.clone());
        }
        affected
    }

    /// Removes what is stored of the request `key`. Returns the requests that are concerned by who wins its Secret now.
    fn forget(&mut self, key: &ObjectKey) -> Vec<ObjectKey> {
        let target = self.requests.remove(key).and_then(|removed| removed.target);
        target.map_or_else(Vec::new, |target| self.release(&target, key))
    }

    /// Removes the claim of `request` on the Secret `target`, whose summary is then kept only if there is room for it. Returns the requests
    /// that are concerned by who wins the Secret now: the winner first. If `request` did not win it, none is.
    fn release(&mut self, target: &ObjectKey, request: &ObjectKey) -> Vec<ObjectKey> {
        let before = self.winner(target).map(|winner| winner.request.clone());
        self.claims.remove(target, request);
        let Some(after) = self.winner(target).map(|winner| &winner.request) else {
            self.secrets.release(target);
            return Vec::new();
        };
        if before.as_ref() == Some(after) {
            return Vec::new();
        }
        self.affected(target, [after])
    }

    /// The requests that a change of the Secret `target` concerns: `winners`, the one before and the one after, and others that claim it.
    fn affected<'a>(
        &'a self,
        target: &ObjectKey,
        winners: impl IntoIterator<Item = &'a ObjectKey>,
    ) -> Vec<ObjectKey> {
        let mut affected: Vec<ObjectKey> = Vec::with_capacity(1);
        for request in winners.into_iter().chain(self.claims.of(target)) {
            if affected.len() == MAX_AFFECTED {
                break;
            }
            if !affected.contains(request) {
                affected.push(request.clone());
            }
        }
        affected
    }
}
