//! What is cached: compact projections of Secrets, who wants which Secret, and what we remember of each request between reconciles:
//! expectations of our own writes, and the failures in a row.

pub mod foreign_secrets;
pub mod request_state;
pub mod requests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::{SignedDuration, Timestamp};

use crate::api::annotations;
use crate::api::v1alpha1::IdTokenRequest;
use crate::request::target_name;
use crate::sync::lock;

pub use crate::api::ObjectKey;
pub use crate::controller::cache::request_state::{RequestState, WrittenHashes};
use crate::kubernetes::resource_version::is_older;
use crate::kubernetes::secret_summary::CompactSummary;
pub use crate::kubernetes::secret_summary::SecretSummary;

/// A request that wants a Secret: the oldest keeps it, then the lowest UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    created: Option<Timestamp>,
    /// UID of the request.
    pub uid: Arc<str>,
    /// The request.
    pub request: ObjectKey,
}

/// What a change of the spec, or an order to renew, changes.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    uid: Arc<str>,
    generation: i64,
    renew: Option<Box<str>>,
    created: Option<Timestamp>,
    target: ObjectKey,
}

#[derive(Debug)]
struct Entry {
    seen: Seen,
    memory: RequestState,
    /// Another leader may have served it a moment ago, so that the cache may lack its last write.
    inherited: bool,
}

#[derive(Debug)]
struct Cached {
    meta: CompactSummary,
    /// Our own write, which the watch has not shown yet.
    expected: bool,
}

#[derive(Debug, Default)]
struct Inner {
    secrets: HashMap<ObjectKey, Cached>,
    /// The highest resourceVersion of a Secret that the watch has shown, by namespace.
    shown: HashMap<String, String>,
    /// Lists under way, by namespace; that of all namespaces has an empty name.
    listing: HashMap<String, HashSet<ObjectKey>>,
    requests: HashMap<ObjectKey, Box<Entry>>,
    /// Who wants a Secret, the one that keeps it first.
    claimants: HashMap<ObjectKey, Vec<Claimant>>,
    /// The lists of grants that requests are allowed by, which many share.
    grants: HashSet<Arc<[String]>>,
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
pub struct Cache(Mutex<Inner>);

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// Takes in the request `key` as the watch shows it. Returns the requests to reconcile: itself where anything but its status
    /// changed, and those that wait for the Secret that it gave up.
    pub fn request_applied(&self, key: &ObjectKey, object: &IdTokenRequest) -> Vec<ObjectKey> {
        let meta = &object.metadata;
        let uid = meta.uid.as_deref().unwrap_or_default();
        let version = meta.resource_version.as_deref();
        let mut inner = self.lock();
        let turned_back = inner.turned_back(key, uid, version);
        inner.caught_up(key, uid, version.unwrap_or_default());
        let renew = meta
            .annotations
            .as_ref()
            .and_then(|all| all.get(annotations::RENEW));
        let seen = Seen {
            uid: uid.into(),
            generation: meta.generation.unwrap_or_default(),
            renew: renew.map(|renew| renew.as_str().into()),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            target: inner.target(key, target_name(object)),
        };
        match inner.requests.get(key) {
            Some(known) if known.seen == seen => {
                return turned_back.then(|| key.clone()).into_iter().collect();
            }
            // Nothing new can be made in a namespace that is being deleted: this is another one of its name.
            Some(known) if known.seen.uid == seen.uid => {}
            _ if inner.ending.get(key.namespace()) == Some(&false) => {
                inner.ending.remove(key.namespace());
            }
            _ => {}
        }
        let (before, mut affected) = inner.forget(key, Some(&seen));
        let claimants = inner
            .claimants
            .entry(seen.target.clone())
            .or_insert_with(|| Vec::with_capacity(1));
        let claimant = Claimant {
            created: seen.created,
            uid: seen.uid.clone(),
            request: key.clone(),
        };
        let place = claimants.partition_point(|other| *other < claimant);
        claimants.insert(place, claimant);
        let before = before.filter(|before| before.seen.uid == seen.uid);
        let (memory, inherited) =
            before.map_or_else(Default::default, |before| (before.memory, before.inherited));
        let entry = Entry {
            seen,
            memory,
            inherited,
        };
        inner.requests.insert(key.clone(), Box::new(entry));
        affected.push(key.clone());
        affected
    }

    /// Drops a deleted request. Returns the requests that wait for its Secret.
    pub fn request_deleted(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        self.lock().forget(key, None).1
    }

    /// The requests of `scope`, a namespace or all where empty, are to be listed anew after the API server was away.
    pub fn requests_behind(&self, scope: &str) {
        self.lock().behind.insert(scope.to_owned());
    }

    /// Whether the request `key` may be another than the cached one, or gone, until the list is there.
    pub fn is_behind(&self, key: &ObjectKey) -> bool {
        self.lock().behind.iter().any(|scope| key.is_in(scope))
    }

    /// A new list of the requests of `scope`, a namespace or all where empty, begins. It shows every status that was written before now.
    pub fn requests_listing(&self, scope: &str) {
        let mut inner = self.lock();
        inner.listing_requests.insert(scope.to_owned());
        for (_, entry) in inner.requests.iter_mut().filter(|(key, _)| key.is_in(scope)) {
            if let Some(status) = &mut entry.memory.status {
                status.since_relist = false;
            }
        }
    }

    /// Drops every request of `scope`, a namespace or all where empty, that `alive` does not hold, after a new list.
    pub fn requests_listed(&self, scope: &str, alive: &HashSet<ObjectKey>) -> Vec<ObjectKey> {
        let mut inner = self.lock();
        inner.listing_requests.remove(scope);
        inner.behind.remove(scope);
        let gone: Vec<ObjectKey> = inner
            .requests
            .keys()
            .filter(|key| key.is_in(scope) && !alive.contains(*key))
            .cloned()
            .collect();
        let waiting = gone.iter().flat_map(|key| inner.forget(key, None).1).collect();
        inner.grants.retain(|grants| Arc::strong_count(grants) > 1);
        waiting
    }

    /// The request that comes before `uid` for the Secret `target`, if one does.
    pub fn rival(&self, target: &ObjectKey, uid: &str) -> Option<Claimant> {
        let inner = self.lock();
        let first = inner.claimants.get(target)?.first()?;
        (*first.uid != *uid).then(|| first.clone())
    }

    /// Whether the request `key` is still the one with this UID.
    pub fn is_current(&self, key: &ObjectKey, uid: &str) -> bool {
        self.lock().entry(key, uid).is_some()
    }

    /// Whether the request `key` is still the one with this UID, at this generation of its spec.
    pub fn is_at(&self, key: &ObjectKey, uid: &str, generation: i64) -> bool {
        let mut inner = self.lock();
        let entry = inner.entry(key, uid);
        entry.is_some_and(|entry| entry.seen.generation == generation)
    }

    /// The requests that want the Secret `target`, the one that keeps it first.
    pub fn claimants(&self, target: &ObjectKey) -> Vec<ObjectKey> {
        let inner = self.lock();
        inner
            .claimants
            .get(target)
            .into_iter()
            .flatten()
            .map(|claimant| claimant.request.clone())
            .collect()
    }

    /// Whether the request `key` exists and wants the Secret `target`.
    pub fn wants(&self, key: &ObjectKey, target: &ObjectKey) -> bool {
        self.lock()
            .requests
            .get(key)
            .is_some_and(|entry| entry.seen.target == *target)
    }

    /// The Secret as last seen or written.
    pub fn secret(&self, key: &ObjectKey) -> Option<SecretSummary> {
        self.lock().secrets.get(key)?.meta.unpack()
    }

    /// A new list of the Secrets in `scope`, a namespace or all where empty, begins. It shows all that was written before now, so only
    /// what is written from now on is expected.
    pub fn secrets_listing(&self, scope: &str) {
        let mut inner = self.lock();
        inner.listing.insert(scope.to_owned(), HashSet::new());
        inner
            .shown
            .retain(|namespace, _| !scope.is_empty() && namespace != scope);
        for (_, cached) in inner.secrets.iter_mut().filter(|(key, _)| key.is_in(scope)) {
            cached.expected = false;
        }
    }

    /// Takes in a Secret as the watch or list shows it. False where it was known already, as after our own write.
    pub fn secret_applied(&self, key: ObjectKey, meta: &SecretSummary) -> bool {
        let mut inner = self.lock();
        let key = inner.shared(key);
        let scope = match inner.listing.contains_key(key.namespace()) {
            true => key.namespace(),
            false => "",
        };
        let listing = match inner.listing.get_mut(scope) {
            Some(listed) => {
                listed.insert(key.clone());
                true
            }
            None => false,
        };
        inner.saw(key.namespace(), &meta.resource_version);
        if let Some(cached) = inner.secrets.get_mut(&key) {
            // What a list shows is true even where it is older, as after a restore of etcd, but for what was written since it began.
            let listed = listing && !cached.expected;
            let known = cached.meta.resource_version();
            if !listed && is_older(&meta.resource_version, known) {
                return false;
            }
            if meta.resource_version == *known {
                cached.expected = false;
                return false;
            }
        }
        inner.secrets.insert(
            key,
            Cached {
                meta: CompactSummary::new(meta),
                expected: false,
            },
        );
        true
    }

    /// The list of the Secrets in `scope` ends. Returns those that are gone.
    pub fn secrets_listed(&self, scope: &str) -> Vec<(ObjectKey, SecretSummary)> {
        let mut inner = self.lock();
        let Some(listed) = inner.listing.remove(scope) else {
            return Vec::new();
        };
        let gone = |key: &ObjectKey, cached: &mut Cached| {
            key.is_in(scope) && !cached.expected && !listed.contains(key)
        };
        inner
            .secrets
            .extract_if(gone)
            .filter_map(|(key, cached)| Some((key, cached.meta.unpack()?)))
            .collect()
    }

    /// Takes in a deletion, unless what is cached was written after it.
    pub fn secret_deleted(&self, key: &ObjectKey, resource_version: &str) -> bool {
        let mut inner = self.lock();
        inner.saw(key.namespace(), resource_version);
        let current = inner
            .secrets
            .get(key)
            .is_some_and(|cached| !is_older(resource_version, cached.meta.resource_version()));
        current && inner.secrets.remove(key).is_some()
    }

    /// Keeps our own write until the watch shows it, so that a lagging watch never causes a second mint.
    pub fn secret_written(&self, key: ObjectKey, meta: &SecretSummary) {
        let mut inner = self.lock();
        let key = inner.shared(key);
        // Where the watch is past our write and shows nothing, somebody deleted it before its answer reached us.
        let seen = match inner.secrets.get(&key) {
            Some(cached) => Some(cached.meta.resource_version()),
            None => inner.shown.get(key.namespace()).map(String::as_str),
        };
        if seen.is_none_or(|seen| is_older(seen, &meta.resource_version)) {
            let meta = CompactSummary::new(meta);
            inner.secrets.insert(key, Cached { meta, expected: true });
        }
    }

    /// The Secret turned out not to exist.
    pub fn secret_missing(&self, key: &ObjectKey) {
        self.lock().secrets.remove(key);
    }

    /// This replica leads from now on. What it remembers is of a time before another led.
    pub fn take_over(&self) {
        for entry in self.lock().requests.values_mut() {
            entry.memory = RequestState::default();
            entry.inherited = true;
        }
    }

    /// Whether the Secret of the request `key` is to be read before a mint: another leader may have written it unseen.
    pub fn is_inherited(&self, key: &ObjectKey, uid: &str) -> bool {
        self.lock().entry(key, uid).is_some_and(|entry| entry.inherited)
    }

    /// The Secret of the request `key` was read.
    pub fn caught_up(&self, key: &ObjectKey, uid: &str) {
        if let Some(entry) = self.lock().entry(key, uid) {
            entry.inherited = false;
        }
    }

    /// What is remembered of the request `key`.
    pub fn memory(&self, key: &ObjectKey, uid: &str) -> RequestState {
        let mut inner = self.lock();
        let entry = inner.entry(key, uid);
        entry.map(|entry| entry.memory.clone()).unwrap_or_default()
    }

    /// Remembers; nothing is kept of a request that is gone.
    pub fn remember(&self, key: &ObjectKey, uid: &str, change: impl FnOnce(&mut RequestState)) {
        if let Some(entry) = self.lock().entry(key, uid) {
            change(&mut entry.memory);
        }
    }

    /// Remembers by which IdTokenGrants a request is allowed.
    pub fn remember_grants(&self, key: &ObjectKey, uid: &str, grants: &[String]) {
        let mut inner = self.lock();
        let shared = match inner.grants.get(grants) {
            Some(shared) => shared.clone(),
            None => {
                let shared: Arc<[String]> = grants.into();
                inner.grants.insert(shared.clone());
                shared
            }
        };
        if let Some(entry) = inner.entry(key, uid) {
            entry.memory.allowing_grants = Some(shared);
        }
    }

    /// How many requests each IdTokenGrant allows; none before every request was looked at.
    pub fn allowed(&self) -> Option<HashMap<String, i64>> {
        let inner = self.lock();
        let mut allowed = HashMap::new();
        for entry in inner.requests.values() {
            for grant in entry.memory.allowing_grants.as_ref()?.iter() {
                match allowed.get_mut(grant) {
                    Some(count) => *count += 1,
                    None => drop(allowed.insert(grant.clone(), 1)),
                }
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
    /// The request `key`, if it is still the one with this UID.
    fn entry(&mut self, key: &ObjectKey, uid: &str) -> Option<&mut Entry> {
        let entry = self.requests.get_mut(key)?;
        (*entry.seen.uid == *uid).then_some(entry)
    }

    /// The key of the Secret `name` that the request `key` wants, as another holds it where one does.
    fn target(&self, key: &ObjectKey, name: String) -> ObjectKey {
        match name == key.name() {
            true => key.clone(),
            false => self.shared(ObjectKey::new(key.namespace(), &name)),
        }
    }

    /// The same key of a Secret as another holds it, so that its text is there once.
    fn shared(&self, key: ObjectKey) -> ObjectKey {
        let held = self.claimants.get_key_value(&key).map(|(held, _)| held);
        let held = held.or_else(|| self.secrets.get_key_value(&key).map(|(held, _)| held));
        held.cloned().unwrap_or(key)
    }

    /// Whether a list shows the request `uid` older than we left it, as after a restore of etcd. What we remember of its status is void
    /// then.
    fn turned_back(&mut self, key: &ObjectKey, uid: &str, resource_version: Option<&str>) -> bool {
        let listing = self.listing_requests.iter().any(|scope| key.is_in(scope));
        let Some(entry) = self.entry(key, uid).filter(|_| listing) else {
            return false;
        };
        let memory = &mut entry.memory;
        let newer = memory.status.as_ref().is_some_and(|written| {
            resource_version.is_some_and(|listed| is_older(listed, &written.resource_version))
                && !written.since_relist
        });
        if newer {
            memory.status = None;
            memory.handled_renew = None;
        }
        newer
    }

    /// The watch shows the request `uid` at this resourceVersion: our status, if it is not newer, is in the store too.
    fn caught_up(&mut self, key: &ObjectKey, uid: &str, resource_version: &str) {
        let entry = self.entry(key, uid);
        if let Some(written) = entry.and_then(|entry| entry.memory.status.as_mut())
            && !is_older(resource_version, &written.resource_version)
        {
            written.unseen = None;
        }
    }

    fn saw(&mut self, namespace: &str, resource_version: &str) {
        match self.shown.get_mut(namespace) {
            Some(highest) if is_older(highest, resource_version) => resource_version.clone_into(highest),
            Some(_) => {}
            None => drop(
                self.shown
                    .insert(namespace.to_owned(), resource_version.to_owned()),
            ),
        }
    }

    /// Takes `key` out. Returns what was there, and who waits for the Secret that is free now, which it is not where `by`, its
    /// successor, still wants it.
    fn forget(&mut self, key: &ObjectKey, by: Option<&Seen>) -> (Option<Box<Entry>>, Vec<ObjectKey>) {
        let Some(old) = self.requests.remove(key) else {
            return (None, Vec::new());
        };
        let Some(claimants) = self.claimants.get_mut(&old.seen.target) else {
            return (Some(old), Vec::new());
        };
        claimants.retain(|claimant| claimant.request != *key);
        let mut waiting: Vec<ObjectKey> = claimants
            .iter()
            .map(|claimant| claimant.request.clone())
            .collect();
        if waiting.is_empty() {
            self.claimants.remove(&old.seen.target);
        }
        if by.is_some_and(|new| new.target == old.seen.target && new.uid == old.seen.uid) {
            waiting.clear();
        }
        (Some(old), waiting)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
