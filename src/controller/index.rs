//! What is cached: compact projections of Secrets, who wants which Secret, and what we remember of each request between reconciles:
//! expectations of our own writes, and the failures in a row.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::schedule::Class;
use super::validate::target_name;
use crate::api::v1alpha1::{IdTokenRequest, IdTokenRequestStatus};
use crate::api::{LABEL_MANAGED_BY, MANAGED_BY, annotations};

pub use crate::api::Key;

/// What is kept of a Secret: never its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretMeta {
    /// UID.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// The IdTokenRequest that its annotation names.
    pub request: Option<String>,
    /// UID of that request.
    pub request_uid: Option<String>,
    /// Hash of what decided the token.
    pub token_hash: Option<String>,
    /// Hash of what decided the rendering.
    pub render_hash: Option<String>,
    /// Fingerprint of the token as written.
    pub digest: Option<String>,
    /// The token's `iat`.
    pub issued: Option<Timestamp>,
    /// The token's `exp`.
    pub expires: Option<Timestamp>,
    /// Whether it carries our label.
    pub managed: bool,
    /// Whether it was somebody else's before: it then stays when its request goes.
    pub adopted: bool,
    /// Hash of the renewal by annotation that its token honoured.
    pub handled_renew: Option<String>,
}

impl From<&ObjectMeta> for SecretMeta {
    fn from(meta: &ObjectMeta) -> Self {
        let note = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).cloned();
        let time = |key: &str| note(key).and_then(|text| text.parse().ok());
        let label = meta.labels.as_ref().and_then(|all| all.get(LABEL_MANAGED_BY));
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            request: note(annotations::REQUEST),
            request_uid: note(annotations::REQUEST_UID),
            token_hash: note(annotations::TOKEN_HASH),
            render_hash: note(annotations::RENDER_HASH),
            digest: note(annotations::DIGEST),
            issued: time(annotations::ISSUED),
            expires: time(annotations::EXPIRES),
            adopted: note(annotations::ADOPTED).is_some(),
            handled_renew: note(annotations::HANDLED_RENEW),
            managed: label.is_some_and(|value| value == MANAGED_BY),
        }
    }
}

/// Failures in a row of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Stable reason of the last one.
    pub reason: &'static str,
    /// What the last one said.
    pub message: String,
    /// Class of the last one.
    pub class: Class,
    /// How many.
    pub attempts: u32,
    /// When the first was.
    pub since: Timestamp,
    /// When the last was.
    pub at: Timestamp,
    /// When the next attempt is due.
    pub next: Timestamp,
    /// Whether somebody has to act, and the Secret is read before the next mint.
    pub act: bool,
    /// What they depend on; another value makes them void.
    pub basis: Basis,
}

impl Retry {
    /// Whether the wait still makes sense: what it depends on is the same, and the clock was not set back behind the last attempt.
    pub fn holds(&self, basis: &Basis, now: Timestamp) -> bool {
        self.basis == *basis && self.at <= now
    }
}

/// What an attempt depends on: a change of any makes waiting pointless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// `metadata.generation`.
    pub generation: i64,
    /// The annotation that asks for a renewal.
    pub renew: Option<String>,
    /// Name of the allowing grant.
    pub grant: Option<String>,
}

/// What we remember of a request, by its UID.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The resourceVersion of the status that we wrote last, and that status until the watch has shown it.
    pub status: Option<(String, Option<Box<IdTokenRequestStatus>>)>,
    /// Whether it was written since the last list of requests began.
    pub expected: bool,
    /// Failures in a row.
    pub retry: Option<Retry>,
    /// When a field of ours was put back, the latest last.
    pub repairs: Vec<Timestamp>,
    /// The hashes of token and rendering as we last wrote them: what the Secret says of itself can be edited.
    pub written: Option<(String, String)>,
    /// The renewal by annotation that was honoured, until the status says so.
    pub handled_renew: Option<String>,
    /// The end of a token that came again unchanged, and when another may come.
    pub unchanged: Option<(Timestamp, Timestamp)>,
    /// When a token was issued last, by this machine's clock.
    pub issued_at: Option<Timestamp>,
    /// How often in a row the status could not be written.
    pub unpublished: u32,
    /// Names of the IdTokenGrants that allow it, once it was looked at.
    pub allowed_by: Option<Vec<String>>,
}

/// A request that wants a Secret: the oldest keeps it, then the lowest UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    created: Option<Timestamp>,
    /// UID of the request.
    pub uid: String,
    /// Name of the request.
    pub name: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    uid: String,
    generation: i64,
    renew: Option<String>,
    target: Key,
    claimant: Claimant,
}

#[derive(Debug)]
struct Cached {
    meta: SecretMeta,
    /// Our own write, which the watch has not shown yet.
    expected: bool,
}

#[derive(Debug, Default)]
struct Inner {
    secrets: HashMap<Key, Cached>,
    /// The highest resourceVersion of a Secret that the watch has shown, by namespace.
    shown: HashMap<String, String>,
    /// Lists under way, by namespace; that of all namespaces has an empty name.
    listing: HashMap<String, HashSet<Key>>,
    requests: HashMap<Key, Seen>,
    claimants: HashMap<Key, BTreeSet<Claimant>>,
    memory: HashMap<String, Memory>,
    /// UIDs of the requests that another leader may have served a moment ago, so that the cache may lack its last write.
    inherited: HashSet<String>,
    /// Of which namespaces, all where the name is empty, a list of requests is under way.
    listing_requests: HashSet<String>,
    /// Namespaces that are being deleted, and whether a watch said so rather than a refused write.
    ending: HashMap<String, bool>,
    /// Of which namespaces, all where the name is empty, the requests may be others than those that are cached.
    behind: HashSet<String>,
    /// When something that concerns all requests was last said.
    news: HashMap<&'static str, Timestamp>,
}

/// The caches. Each method holds the lock for a few map operations only.
#[derive(Debug, Default)]
pub struct Index(Mutex<Inner>);

/// Whether resourceVersion `a` is older than `b`. They are decimal numbers of any length since Kubernetes 1.35 and were so in practice
/// before (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>).
pub fn older(a: &str, b: &str) -> bool {
    (a.len(), a) < (b.len(), b)
}

/// Whether `key` is in the namespace `scope`; all are where it is empty.
pub(super) fn is_within(key: &Key, scope: &str) -> bool {
    scope.is_empty() || key.0 == scope
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a request as the watch shows it. Returns the names, in its namespace, of the requests to reconcile: itself where
    /// anything but its status changed, and those that wait for the Secret that it gave up.
    pub fn request_applied(&self, object: &IdTokenRequest) -> Vec<String> {
        let meta = &object.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        let uid = meta.uid.clone().unwrap_or_default();
        let seen = Seen {
            claimant: Claimant {
                created: meta.creation_timestamp.as_ref().map(|time| time.0),
                uid: uid.clone(),
                name: name.clone(),
            },
            uid,
            generation: meta.generation.unwrap_or_default(),
            renew: meta
                .annotations
                .as_ref()
                .and_then(|all| all.get(annotations::RENEW))
                .cloned(),
            target: (namespace.clone(), target_name(object)),
        };
        let key = (namespace, name);
        let mut inner = self.lock();
        let version = meta.resource_version.as_deref();
        let turned_back = inner.turned_back(&key, &seen.uid, version);
        inner.caught_up(&seen.uid, version.unwrap_or_default());
        match inner.requests.get(&key) {
            Some(known) if *known == seen => {
                return turned_back.then_some(key.1).into_iter().collect();
            }
            // Nothing new can be made in a namespace that is being deleted: this is another one of its name.
            Some(known) if known.uid == seen.uid => {}
            _ if inner.ending.get(&key.0) == Some(&false) => drop(inner.ending.remove(&key.0)),
            _ => {}
        }
        let mut affected = inner.forget(&key, Some(&seen));
        inner
            .claimants
            .entry(seen.target.clone())
            .or_default()
            .insert(seen.claimant.clone());
        inner.requests.insert(key.clone(), seen);
        affected.push(key.1);
        affected
    }

    /// Drops a deleted request. Returns the names of the requests that wait for its Secret.
    pub fn request_deleted(&self, key: &Key) -> Vec<String> {
        self.lock().forget(key, None)
    }

    /// The requests of `scope`, a namespace or all where empty, are to be listed anew after the API server was away.
    pub fn requests_behind(&self, scope: &str) {
        self.lock().behind.insert(scope.to_owned());
    }

    /// Whether the request `key` may be another than the cached one, or gone, until the list is there.
    pub fn is_behind(&self, key: &Key) -> bool {
        self.lock().behind.iter().any(|scope| is_within(key, scope))
    }

    /// A new list of the requests of `scope`, a namespace or all where empty, begins. It shows every status that was written before now.
    pub fn requests_listing(&self, scope: &str) {
        let mut inner = self.lock();
        inner.listing_requests.insert(scope.to_owned());
        let uids: Vec<String> = inner
            .requests
            .iter()
            .filter(|(key, _)| is_within(key, scope))
            .map(|(_, seen)| seen.uid.clone())
            .collect();
        for uid in uids {
            if let Some(memory) = inner.memory.get_mut(&uid) {
                memory.expected = false;
            }
        }
    }

    /// Drops every request of `scope`, a namespace or all where empty, that `alive` does not hold, after a new list.
    pub fn requests_listed(&self, scope: &str, alive: &HashSet<Key>) -> Vec<Key> {
        let mut inner = self.lock();
        inner.listing_requests.remove(scope);
        inner.behind.remove(scope);
        let gone: Vec<Key> = inner
            .requests
            .keys()
            .filter(|key| is_within(key, scope) && !alive.contains(*key))
            .cloned()
            .collect();
        gone.iter()
            .flat_map(|key| {
                let waiting = inner.forget(key, None);
                waiting
                    .into_iter()
                    .map(|name| (key.0.clone(), name))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// The request that comes before `uid` for the Secret `target`, if one does.
    pub fn rival(&self, target: &Key, uid: &str) -> Option<Claimant> {
        let inner = self.lock();
        let first = inner.claimants.get(target)?.first()?;
        (first.uid != uid).then(|| first.clone())
    }

    /// Whether the request `key` is still the one with this UID.
    pub fn is_current(&self, key: &Key, uid: &str) -> bool {
        self.lock().requests.get(key).is_some_and(|seen| seen.uid == uid)
    }

    /// Whether the request `key` is still the one with this UID, at this generation of its spec.
    pub fn is_at(&self, key: &Key, uid: &str, generation: i64) -> bool {
        let inner = self.lock();
        let seen = inner.requests.get(key);
        seen.is_some_and(|seen| seen.uid == uid && seen.generation == generation)
    }

    /// Names of the requests that want the Secret `target`, the one that keeps it first.
    pub fn claimants(&self, target: &Key) -> Vec<String> {
        let inner = self.lock();
        inner
            .claimants
            .get(target)
            .into_iter()
            .flatten()
            .map(|claimant| claimant.name.clone())
            .collect()
    }

    /// Whether the request `key` exists and wants the Secret `target`.
    pub fn wants(&self, key: &Key, target: &Key) -> bool {
        self.lock()
            .requests
            .get(key)
            .is_some_and(|seen| seen.target == *target)
    }

    /// The Secret as last seen or written.
    pub fn secret(&self, key: &Key) -> Option<SecretMeta> {
        self.lock().secrets.get(key).map(|cached| cached.meta.clone())
    }

    /// A new list of the Secrets in `scope`, a namespace or all where empty, begins. It shows all that was written before now, so only
    /// what is written from now on is expected.
    pub fn secrets_listing(&self, scope: &str) {
        let mut inner = self.lock();
        inner.listing.insert(scope.to_owned(), HashSet::new());
        inner
            .shown
            .retain(|namespace, _| !scope.is_empty() && namespace != scope);
        for (_, cached) in inner.secrets.iter_mut().filter(|(key, _)| is_within(key, scope)) {
            cached.expected = false;
        }
    }

    /// Takes in a Secret as the watch or list shows it. False where it was known already, as after our own write.
    pub fn secret_applied(&self, key: Key, meta: SecretMeta) -> bool {
        let mut inner = self.lock();
        let scope = if inner.listing.contains_key(&key.0) {
            key.0.as_str()
        } else {
            ""
        };
        let listing = match inner.listing.get_mut(scope) {
            Some(listed) => {
                listed.insert(key.clone());
                true
            }
            None => false,
        };
        inner.saw(&key.0, &meta.resource_version);
        if let Some(cached) = inner.secrets.get_mut(&key) {
            // What a list shows is true even where it is older, as after a restore of etcd, but for what was written since it began.
            let listed = listing && !cached.expected;
            if !listed && older(&meta.resource_version, &cached.meta.resource_version) {
                return false;
            }
            if meta.resource_version == cached.meta.resource_version {
                cached.expected = false;
                return false;
            }
        }
        inner.secrets.insert(
            key,
            Cached {
                meta,
                expected: false,
            },
        );
        true
    }

    /// The list of the Secrets in `scope` ends. Returns those that are gone.
    pub fn secrets_listed(&self, scope: &str) -> Vec<(Key, SecretMeta)> {
        let mut inner = self.lock();
        let Some(listed) = inner.listing.remove(scope) else {
            return Vec::new();
        };
        let gone = |key: &Key, cached: &mut Cached| {
            is_within(key, scope) && !cached.expected && !listed.contains(key)
        };
        inner
            .secrets
            .extract_if(gone)
            .map(|(key, cached)| (key, cached.meta))
            .collect()
    }

    /// Takes in a deletion, unless what is cached was written after it.
    pub fn secret_deleted(&self, key: &Key, resource_version: &str) -> bool {
        let mut inner = self.lock();
        inner.saw(&key.0, resource_version);
        let current = inner
            .secrets
            .get(key)
            .is_some_and(|cached| !older(resource_version, &cached.meta.resource_version));
        current && inner.secrets.remove(key).is_some()
    }

    /// Keeps our own write until the watch shows it, so that a lagging watch never causes a second mint.
    pub fn secret_written(&self, key: Key, meta: SecretMeta) {
        let mut inner = self.lock();
        // Where the watch is past our write and shows nothing, somebody deleted it before its answer reached us.
        let seen = match inner.secrets.get(&key) {
            Some(cached) => Some(&cached.meta.resource_version),
            None => inner.shown.get(&key.0),
        };
        if seen.is_none_or(|seen| older(seen, &meta.resource_version)) {
            inner.secrets.insert(key, Cached { meta, expected: true });
        }
    }

    /// The Secret turned out not to exist.
    pub fn secret_missing(&self, key: &Key) {
        self.lock().secrets.remove(key);
    }

    /// This replica leads from now on. What it remembers is of a time before another led.
    pub fn take_over(&self) {
        let mut inner = self.lock();
        inner.memory.clear();
        inner.inherited = inner.requests.values().map(|seen| seen.uid.clone()).collect();
    }

    /// Whether the Secret of the request `uid` is to be read before a mint: another leader may have written it unseen.
    pub fn is_inherited(&self, uid: &str) -> bool {
        self.lock().inherited.contains(uid)
    }

    /// The Secret of the request `uid` was read.
    pub fn caught_up(&self, uid: &str) {
        self.lock().inherited.remove(uid);
    }

    /// What is remembered of the request `uid`.
    pub fn memory(&self, uid: &str) -> Memory {
        self.lock().memory.get(uid).cloned().unwrap_or_default()
    }

    /// Remembers; nothing is kept of a request that is gone.
    pub fn remember(&self, key: &Key, uid: &str, change: impl FnOnce(&mut Memory)) {
        let mut inner = self.lock();
        if inner.requests.get(key).is_some_and(|seen| seen.uid == uid) {
            change(inner.memory.entry(uid.to_owned()).or_default());
        }
    }

    /// How many requests each IdTokenGrant allows; none before every request was looked at.
    pub fn allowed(&self) -> Option<HashMap<String, i64>> {
        let inner = self.lock();
        let mut allowed = HashMap::new();
        for seen in inner.requests.values() {
            for grant in inner.memory.get(&seen.uid)?.allowed_by.as_ref()? {
                *allowed.entry(grant.clone()).or_insert(0) += 1;
            }
        }
        Some(allowed)
    }

    /// Takes in which namespaces are being deleted, after a list of all.
    pub fn namespaces_listed(&self, ending: Vec<String>) {
        self.lock().ending = ending.into_iter().map(|name| (name, true)).collect();
    }

    /// Takes in whether a namespace is being deleted, as the watch shows it.
    pub fn namespace_ends(&self, name: &str, ends: bool) {
        let mut inner = self.lock();
        match ends {
            true => inner.ending.insert(name.to_owned(), true),
            false => inner.ending.remove(name),
        };
    }

    /// A write was refused because the namespace is being deleted.
    pub fn namespace_refused(&self, name: &str) {
        self.lock().ending.entry(name.to_owned()).or_insert(false);
    }

    /// Whether the namespace is being deleted, so that nothing can be made in it any more.
    pub fn is_ending(&self, namespace: &str) -> bool {
        self.lock().ending.contains_key(namespace)
    }

    /// Whether what concerns all requests, and each of them finds, is to be said again: once an hour.
    pub fn is_news(&self, what: &'static str, now: Timestamp) -> bool {
        let mut inner = self.lock();
        let last = inner.news.get(what);
        let news = last.is_none_or(|last| now.duration_since(*last).abs() >= SignedDuration::from_hours(1));
        if news {
            inner.news.insert(what, now);
        }
        news
    }

    /// How many requests and Secrets are cached.
    pub fn sizes(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.requests.len(), inner.secrets.len())
    }
}

impl Inner {
    /// Whether a list shows the request `uid` older than we left it, as after a restore of etcd. What we remember of its status is void
    /// then.
    fn turned_back(&mut self, key: &Key, uid: &str, resource_version: Option<&str>) -> bool {
        let listing = self.listing_requests.iter().any(|scope| is_within(key, scope));
        let Some(memory) = self.memory.get_mut(uid).filter(|_| listing) else {
            return false;
        };
        let newer = memory.status.as_ref().is_some_and(|(written, _)| {
            resource_version.is_some_and(|listed| older(listed, written)) && !memory.expected
        });
        if newer {
            memory.status = None;
            memory.handled_renew = None;
        }
        newer
    }

    /// The watch shows the request `uid` at this resourceVersion: our status, if it is not newer, is in the store too.
    fn caught_up(&mut self, uid: &str, resource_version: &str) {
        let memory = self.memory.get_mut(uid);
        if let Some((written, status)) = memory.and_then(|memory| memory.status.as_mut())
            && !older(resource_version, written)
        {
            *status = None;
        }
    }

    fn saw(&mut self, namespace: &str, resource_version: &str) {
        match self.shown.get_mut(namespace) {
            Some(highest) if older(highest, resource_version) => resource_version.clone_into(highest),
            Some(_) => {}
            None => drop(
                self.shown
                    .insert(namespace.to_owned(), resource_version.to_owned()),
            ),
        }
    }

    /// Takes `key` out, unless `by` still wants the same. Returns who waits for the Secret that is free now.
    fn forget(&mut self, key: &Key, by: Option<&Seen>) -> Vec<String> {
        let Some(old) = self.requests.remove(key) else {
            return Vec::new();
        };
        if by.is_none_or(|new| new.uid != old.uid) {
            self.memory.remove(&old.uid);
            self.inherited.remove(&old.uid);
        }
        let Some(claimants) = self.claimants.get_mut(&old.target) else {
            return Vec::new();
        };
        claimants.remove(&old.claimant);
        let waiting: Vec<String> = claimants.iter().map(|claimant| claimant.name.clone()).collect();
        if waiting.is_empty() {
            self.claimants.remove(&old.target);
        }
        if by.is_some_and(|new| new.target == old.target && new.uid == old.uid) {
            Vec::new()
        } else {
            waiting
        }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
