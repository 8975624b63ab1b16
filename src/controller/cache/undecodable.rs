//! IdTokenRequests that this version cannot decode, such as one with an enum value of a newer version's CRD.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::ObjectKey;
use crate::api::v1alpha1::IdTokenRequestStatus;
use crate::sync::lock;
use crate::text::redacted;

/// Most characters of an error: it may quote the object.
const MAX_ERROR: usize = 400;

/// What is known of an IdTokenRequest that cannot be decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Undecodable {
    /// Names, UID, resourceVersion, generation and deletion time.
    pub metadata: ObjectMeta,
    /// The status; none if it is absent or cannot be decoded.
    pub status: Option<IdTokenRequestStatus>,
    /// Why the object cannot be decoded, redacted and bounded.
    pub error: String,
}

impl Undecodable {
    /// Keeps of `metadata` what is read of it, and of `error` what may be published.
    pub fn new(metadata: ObjectMeta, status: Option<IdTokenRequestStatus>, error: &str) -> Self {
        Self {
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                uid: metadata.uid,
                resource_version: metadata.resource_version,
                generation: metadata.generation,
                deletion_timestamp: metadata.deletion_timestamp,
                ..ObjectMeta::default()
            },
            status,
            error: redacted(error, MAX_ERROR),
        }
    }
}

#[derive(Debug)]
struct Entry {
    object: Arc<Undecodable>,
    failed_publishes: u32,
}

/// The undecodable requests, as the watches show them or as the operator left their status.
#[derive(Debug, Default)]
pub struct UndecodableRequests(Mutex<HashMap<ObjectKey, Entry>>);

impl UndecodableRequests {
    /// Adds a request, or replaces what is known of it.
    pub fn upsert(&self, key: ObjectKey, object: Undecodable) {
        let mut all = lock(&self.0);
        let known = all.get(&key);
        let known = known.filter(|entry| entry.object.metadata.uid == object.metadata.uid);
        let entry = Entry {
            failed_publishes: known.map_or(0, |entry| entry.failed_publishes),
            object: Arc::new(object),
        };
        all.insert(key, entry);
    }

    /// Removes a request that was deleted, or that can be decoded now.
    pub fn remove(&self, key: &ObjectKey) {
        lock(&self.0).remove(key);
    }

    /// Removes every request of `scope`, a namespace or all if empty, that is not in `alive`.
    pub fn retain(&self, scope: &str, alive: &HashSet<ObjectKey>) {
        lock(&self.0).retain(|key, _| !key.is_in(scope) || alive.contains(key));
    }

    /// What is known of the request `key`, if it cannot be decoded.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Undecodable>> {
        lock(&self.0).get(key).map(|entry| entry.object.clone())
    }

    /// Whether the request `key` cannot be decoded.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        lock(&self.0).contains_key(key)
    }

    /// The requests of `scope`, a namespace or all if empty.
    pub fn keys(&self, scope: &str) -> Vec<ObjectKey> {
        let all = lock(&self.0);
        all.keys().filter(|key| key.is_in(scope)).cloned().collect()
    }

    /// The status of `object` was written: it is `status` at `resource_version` now. Ignored if the watch has shown a later version
    /// meanwhile.
    pub fn record_publish(
        &self,
        key: &ObjectKey,
        object: &Undecodable,
        resource_version: String,
        status: IdTokenRequestStatus,
    ) {
        if let Some(entry) = lock(&self.0).get_mut(key)
            && entry.object.metadata.uid == object.metadata.uid
        {
            entry.failed_publishes = 0;
            if entry.object.metadata.resource_version == object.metadata.resource_version {
                let object = Arc::make_mut(&mut entry.object);
                object.metadata.resource_version = Some(resource_version);
                object.status = Some(status);
            }
        }
    }

    /// The status of `object` could not be written. Returns how many times in a row.
    pub fn record_failure(&self, key: &ObjectKey, object: &Undecodable) -> u32 {
        match lock(&self.0).get_mut(key) {
            Some(entry) if entry.object.metadata.uid == object.metadata.uid => {
                entry.failed_publishes = entry.failed_publishes.saturating_add(1);
                entry.failed_publishes
            }
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(namespace, name)
    }

    fn object(uid: &str, version: &str) -> Undecodable {
        let metadata = ObjectMeta {
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_owned()),
            annotations: Some([("large".to_owned(), "x".repeat(10_000))].into()),
            ..ObjectMeta::default()
        };
        Undecodable::new(metadata, None, "an error")
    }

    #[test]
    fn little_is_kept_of_an_object_and_no_credential() {
        let error = format!("unknown value `Bearer abcdefghijklmnop`{}", "x".repeat(10_000));
        let object = Undecodable::new(object("u", "1").metadata, None, &error);
        assert_eq!(object.metadata.annotations, None);
        assert!(object.error.chars().count() <= MAX_ERROR + 1, "{}", object.error);
        assert!(!object.error.contains("abcdefghijklmnop"), "{}", object.error);
    }

    #[test]
    fn a_list_removes_what_it_lacks_in_its_scope_only() {
        let all = UndecodableRequests::default();
        for key in [key("shop", "a"), key("shop", "b"), key("bank", "a")] {
            all.upsert(key, object("u", "1"));
        }
        all.retain("shop", &[key("shop", "b")].into());
        assert!(!all.contains(&key("shop", "a")) && all.contains(&key("bank", "a")));
        assert_eq!(all.keys("shop"), [key("shop", "b")]);
        all.retain("", &[key("bank", "a")].into());
        assert_eq!(all.keys(""), [key("bank", "a")]);
        all.remove(&key("bank", "a"));
        assert_eq!(all.get(&key("bank", "a")), None);
    }

    #[test]
    fn our_own_status_counts_until_the_watch_shows_a_later_version() {
        let all = UndecodableRequests::default();
        let (key, first) = (key("shop", "a"), object("u", "1"));
        let status = IdTokenRequestStatus {
            observed_generation: Some(1),
            ..IdTokenRequestStatus::default()
        };
        all.upsert(key.clone(), first.clone());
        all.record_publish(&key, &first, "2".to_owned(), status.clone());
        let ours = all.get(&key).unwrap();
        assert_eq!(ours.metadata.resource_version.as_deref(), Some("2"));
        assert_eq!(ours.status.as_ref(), Some(&status));
        // Another client's change, which came while the write was in flight.
        all.upsert(key.clone(), object("u", "3"));
        all.record_publish(&key, &ours, "4".to_owned(), status);
        assert_eq!(*all.get(&key).unwrap(), object("u", "3"));
    }

    #[test]
    fn failures_are_counted_in_a_row_and_for_one_uid() {
        let all = UndecodableRequests::default();
        let (key, first) = (key("shop", "a"), object("u", "1"));
        all.upsert(key.clone(), first.clone());
        assert_eq!(all.record_failure(&key, &first), 1);
        all.upsert(key.clone(), object("u", "2"));
        assert_eq!(all.record_failure(&key, &first), 2);
        all.upsert(key.clone(), object("recreated", "3"));
        assert_eq!(all.record_failure(&key, &first), 1);
        assert_eq!(all.record_failure(&key, &object("recreated", "3")), 1);
        let status = IdTokenRequestStatus::default();
        all.record_publish(&key, &object("recreated", "3"), "4".to_owned(), status);
        assert_eq!(all.record_failure(&key, &object("recreated", "4")), 1);
    }
}
