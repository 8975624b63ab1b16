//! What is cached of Secrets: summaries without their data, and which of them are our own writes that the watch has yet to show.

use std::collections::HashMap;

use jiff::Timestamp;

use super::relist::Relists;
use crate::api::ObjectKey;
use crate::kubernetes::resource_version::is_older;
use crate::kubernetes::secret_summary::SecretSummary;

/// The cached Secrets.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    all: HashMap<ObjectKey, CachedSecret>,
    /// The highest resourceVersion that the watch has shown, by namespace.
    highest_seen_version: HashMap<String, String>,
    relists: Relists,
}

#[derive(Debug)]
struct CachedSecret {
    summary: CompactSummary,
    /// Whether it is our own write since the last relist began, which the watch has yet to show.
    awaiting_watch: bool,
}

impl Secrets {
    /// Starts a relist of `scope`. It shows all that was written before now, so only later writes are awaited.
    pub(super) fn begin_relist(&mut self, scope: &str) {
        self.relists.begin(scope);
        self.highest_seen_version
            .retain(|namespace, _| !scope.is_empty() && namespace != scope);
        for (_, cached) in self.all.iter_mut().filter(|(key, _)| key.is_in(scope)) {
            cached.awaiting_watch = false;
        }
    }

    /// Stores a Secret as a watch or list shows it. Returns whether it was unknown: false after our own write.
    pub(super) fn upsert(&mut self, key: ObjectKey, summary: &SecretSummary) -> bool {
        let listed = self.relists.record(&key);
        let version = summary.resource_version.as_str();
        self.observe_version(key.namespace(), version);
        if let Some(cached) = self.all.get_mut(&key) {
            // A list is right even if it is older, as after a restore of etcd, except about what was written since it began.
            let is_right = listed && !cached.awaiting_watch;
            let known = cached.summary.resource_version();
            if !is_right && is_older(version, known) {
                return false;
            }
            if version == known {
                cached.awaiting_watch = false;
                return false;
            }
        }
        self.insert(key, summary, false);
        true
    }

    /// Ends the relist of `scope`. Returns the Secrets that are gone.
    pub(super) fn end_relist(&mut self, scope: &str) -> Vec<(ObjectKey, SecretSummary)> {
        let Some(relist) = self.relists.end(scope) else {
            return Vec::new();
        };
        self.all
            .extract_if(|key, cached| !cached.awaiting_watch && relist.lacks(key))
            .filter_map(|(key, cached)| Some((key, cached.summary.unpack()?)))
            .collect()
    }

    /// Removes a Secret that the watch shows as deleted at `resource_version`, unless the cached one was written later.
    pub(super) fn delete(&mut self, key: &ObjectKey, resource_version: &str) {
        self.observe_version(key.namespace(), resource_version);
        let cached = self.all.get(key);
        if cached.is_some_and(|cached| !is_older(resource_version, cached.summary.resource_version())) {
            self.all.remove(key);
        }
    }

    /// Stores our own write until the watch shows it, so that a lagging watch never causes a second issue.
    pub(super) fn record_write(&mut self, key: ObjectKey, summary: &SecretSummary) {
        // If the watch is past our write and shows no Secret, another client deleted it before the response reached us.
        let seen = match self.all.get(&key) {
            Some(cached) => Some(cached.summary.resource_version()),
            None => self.highest_seen_version.get(key.namespace()).map(String::as_str),
        };
        if seen.is_none_or(|seen| is_older(seen, &summary.resource_version)) {
            self.insert(key, summary, true);
        }
    }

    /// Removes a Secret that does not exist.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        self.all.remove(key);
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

    fn insert(&mut self, key: ObjectKey, summary: &SecretSummary, awaiting_watch: bool) {
        let cached = CachedSecret {
            summary: CompactSummary::new(summary),
            awaiting_watch,
        };
        self.all.insert(key, cached);
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
