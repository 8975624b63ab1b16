//! What is cached of Secrets: summaries without their data, and which of them are our own writes that the watch has yet to show.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::limits::{CacheLimits, MAX_SECRET, SECRET};
use super::relist::Relists;
use crate::api::{ObjectKey, is_in_scope};
use crate::kubernetes::resource_version::is_older;
use crate::kubernetes::secret_summary::SecretSummary;

/// The cached Secrets.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    all: HashMap<ObjectKey, CachedSecret>,
    /// The highest resourceVersion that the watch has shown, by namespace.
    highest_seen_version: HashMap<String, String>,
    relists: Relists,
    /// What may be kept before Secrets are dropped that no request claims.
    limits: CacheLimits,
    /// Bytes of all.
    used: usize,
    /// Bytes by namespace.
    used_in: HashMap<Box<str>, usize>,
    /// The namespaces of Secrets that were dropped.
    dropped_in: HashSet<Box<str>>,
    /// The same since the last relist began.
    dropped_since: HashSet<Box<str>>,
    /// How often a Secret was dropped.
    dropped: u64,
}

#[derive(Debug)]
struct CachedSecret {
    summary: CompactSummary,
    /// Whether it is our own write since the last relist began, which the watch has yet to show.
    awaiting_watch: bool,
}

impl Secrets {
    /// Without Secrets.
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Starts a relist of `scope`. It shows all that was written before now, so only later writes are awaited.
    pub(super) fn begin_relist(&mut self, scope: &str) {
        self.relists.begin(scope);
        self.highest_seen_version
            .retain(|namespace, _| !is_in_scope(namespace, scope));
        for (_, cached) in self.all.iter_mut().filter(|(key, _)| key.is_in(scope)) {
            cached.awaiting_watch = false;
        }
        self.dropped_since
            .retain(|namespace| !is_in_scope(namespace, scope));
    }

    /// Stores a Secret as a watch or list shows it. Returns whether it was unknown: false after our own write. One that no request claims is
    /// dropped if there is no room for it.
    pub(super) fn upsert(&mut self, key: ObjectKey, summary: &SecretSummary, is_claimed: bool) -> bool {
        let version = summary.resource_version.as_str();
        self.observe_version(key.namespace(), version);
        let is_known = match self.all.get_mut(&key) {
            Some(cached) => {
                // A list is right even if it is older, as after a restore of etcd, except about what was written since it began.
                let is_right = self.relists.record(&key) && !cached.awaiting_watch;
                let known = cached.summary.resource_version();
                if !is_right && is_older(version, known) {
                    return false;
                }
                if version == known {
                    cached.awaiting_watch = false;
                    return false;
                }
                true
            }
            None => false,
        };
        let compact = CompactSummary::new(summary);
        let has_place = is_known || is_claimed || self.has_room(&key, &compact);
        if !has_place || compact.0.len() > MAX_SECRET {
            self.remove(&key);
            self.leave_out(&key);
            return true;
        }
        if !is_known {
            self.relists.record(&key);
        }
        self.insert(key, compact, false);
        true
    }

    /// Ends the relist of `scope`. Returns the Secrets that are gone.
    pub(super) fn end_relist(&mut self, scope: &str) -> Vec<(ObjectKey, SecretSummary)> {
        let Some(relist) = self.relists.end(scope) else {
            return Vec::new();
        };
        let gone: Vec<_> = self
            .all
            .extract_if(|key, cached| !cached.awaiting_watch && relist.lacks(key))
            .collect();
        for (key, cached) in &gone {
            self.free(key, cached);
        }
        // Only now is it known that the Secrets were shown again that were dropped before.
        let since = &self.dropped_since;
        self.dropped_in
            .retain(|namespace| !is_in_scope(namespace, scope) || since.contains(namespace));
        let unpacked = |(key, cached): (ObjectKey, CachedSecret)| Some((key, cached.summary.unpack()?));
        gone.into_iter().filter_map(unpacked).collect()
    }

    /// No request claims the Secret any more: it is dropped if there is no room for it.
    pub(super) fn release(&mut self, key: &ObjectKey) {
        let is_over = self.used > self.limits.total || self.used_by(key.namespace()) > self.limits.namespace;
        if is_over && self.all.contains_key(key) {
            self.remove(key);
            self.leave_out(key);
        }
    }

    /// Whether the Secret may exist although it is not cached, for lack of memory.
    pub(super) fn may_lack(&self, key: &ObjectKey) -> bool {
        !self.dropped_in.is_empty()
            && self.dropped_in.contains(key.namespace())
            && !self.all.contains_key(key)
    }

    /// Bytes of all, counted one by one.
    #[cfg(test)]
    pub(super) fn all_bytes(&self) -> usize {
        self.all.values().map(|cached| cached.summary.bytes()).sum()
    }

    /// Bytes of all, and how often one was dropped.
    pub(super) fn usage(&self) -> (usize, u64) {
        (self.used, self.dropped)
    }

    /// Removes a Secret that the watch shows as deleted at `resource_version`, unless the cached one was written later.
    pub(super) fn delete(&mut self, key: &ObjectKey, resource_version: &str) {
        self.observe_version(key.namespace(), resource_version);
        let cached = self.all.get(key);
        if cached.is_some_and(|cached| !is_older(resource_version, cached.summary.resource_version())) {
            self.remove(key);
        }
    }

    /// Stores our own write until the watch shows it, so that a lagging watch never causes a second issue. Returns whether all that the watch
    /// has shown so far is this write or older.
    pub(super) fn record_write(&mut self, key: ObjectKey, summary: &SecretSummary) -> bool {
        // If the watch is past our write and shows no Secret, another client deleted it before the response reached us.
        let seen = match self.all.get(&key) {
            Some(cached) => Some(cached.summary.resource_version()),
            None => self.highest_seen_version.get(key.namespace()).map(String::as_str),
        };
        let is_shown = seen == Some(&summary.resource_version);
        let is_latest = seen.is_none_or(|seen| is_older(seen, &summary.resource_version));
        if is_latest {
            self.insert(key, CompactSummary::new(summary), true);
        }
        is_shown || is_latest
    }

    /// Removes a Secret that does not exist.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        if let Some(removed) = self.all.remove(key) {
            self.free(key, &removed);
        }
    }

    /// The Secret as last shown or written.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<SecretSummary> {
        self.all.get(key)?.summary.unpack()
    }

    /// The key of a cached Secret that equals `key`, whose text is then shared.
    pub(super) fn key(&self, key: &ObjectKey) -> Option<&ObjectKey> {
        self.all.get_key_value(key).map(|(key, _)| key)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    fn insert(&mut self, key: ObjectKey, summary: CompactSummary, awaiting_watch: bool) {
        let cached = CachedSecret {
            summary,
            awaiting_watch,
        };
        let bytes = cached.summary.bytes();
        self.used += bytes;
        match self.used_in.get_mut(key.namespace()) {
            Some(used) => *used += bytes,
            None => drop(self.used_in.insert(key.namespace().into(), bytes)),
        }
        if let Some(before) = self.all.insert(key.clone(), cached) {
            self.free(&key, &before);
        }
    }

    /// Counts `removed` no more.
    fn free(&mut self, key: &ObjectKey, removed: &CachedSecret) {
        let bytes = removed.summary.bytes();
        self.used -= bytes;
        let Some(used) = self.used_in.get_mut(key.namespace()) else {
            return;
        };
        *used -= bytes;
        if *used == 0 {
            self.used_in.remove(key.namespace());
        }
    }

    fn has_room(&self, key: &ObjectKey, summary: &CompactSummary) -> bool {
        let bytes = summary.bytes();
        self.used + bytes <= self.limits.total
            && self.used_by(key.namespace()) + bytes <= self.limits.namespace
    }

    fn used_by(&self, namespace: &str) -> usize {
        self.used_in.get(namespace).copied().unwrap_or_default()
    }

    fn leave_out(&mut self, key: &ObjectKey) {
        self.dropped += 1;
        self.dropped_in.insert(key.namespace().into());
        self.dropped_since.insert(key.namespace().into());
    }

    fn observe_version(&mut self, namespace: &str, resource_version: &str) {
        match self.highest_seen_version.get_mut(namespace) {
            Some(highest) if is_older(highest, resource_version) => resource_version.clone_into(highest),
            Some(_) => {}
            None => {
                let first = (namespace.to_owned(), resource_version.to_owned());
                self.highest_seen_version.extend([first]);
            }
        }
    }
}

/// A [`SecretSummary`] as one string, since every Secret of ours is cached: its resourceVersion, a line feed, and the other fields as JSON,
/// which has no line feed.
#[derive(Debug)]
struct CompactSummary(Box<str>);

/// All fields but the resourceVersion.
type Fields = (String, [Option<String>; 6], [Option<Timestamp>; 2], [bool; 2]);

impl CompactSummary {
    fn new(summary: &SecretSummary) -> Self {
        let fields = (
            &summary.uid,
            [
                &summary.request,
                &summary.request_uid,
                &summary.token_hash,
                &summary.render_hash,
                &summary.token_fingerprint,
                &summary.handled_renew,
            ],
            [summary.issued_at, summary.expires_at],
            [summary.managed, summary.adopted],
        );
        // Strings, times and booleans can always be serialized.
        let fields = serde_json::to_string(&fields).unwrap_or_default();
        Self(format!("{}\n{fields}", summary.resource_version).into())
    }

    /// What the Secret counts for in the limits of memory.
    fn bytes(&self) -> usize {
        SECRET + self.0.len()
    }

    fn split(&self) -> (&str, &str) {
        self.0.rsplit_once('\n').unwrap_or_default()
    }

    fn resource_version(&self) -> &str {
        self.split().0
    }

    fn unpack(&self) -> Option<SecretSummary> {
        let (resource_version, fields) = self.split();
        let (uid, texts, [issued_at, expires_at], [managed, adopted]): Fields =
            serde_json::from_str(fields).ok()?;
        let [
            request,
            request_uid,
            token_hash,
            render_hash,
            token_fingerprint,
            handled_renew,
        ] = texts;
        Some(SecretSummary {
            uid,
            resource_version: resource_version.to_owned(),
            request,
            request_uid,
            token_hash,
            render_hash,
            token_fingerprint,
            issued_at,
            expires_at,
            managed,
            adopted,
            handled_renew,
        })
    }
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
