//! The Secrets of other clients that block a request. Each is watched by its name for as long as it blocks one.
//!
//! They have a lock of their own: no operation needs them and the [`Cache`](super::Cache) in one step.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::api::ObjectKey;
use crate::sync::lock;

/// Most Secrets that are watched at once. A request that another one blocks is only retried with its backoff.
const MAX_WATCHES: usize = 100;

/// The Secrets of other clients, each with the resourceVersion at which it was found to block a request.
#[derive(Debug, Default)]
pub struct ForeignSecrets {
    watched: Mutex<HashMap<ObjectKey, String>>,
    changed: Notify,
}

impl ForeignSecrets {
    /// Adds the Secret `key`, which blocks a request as of `resource_version`.
    pub fn add(&self, key: ObjectKey, resource_version: &str) {
        let mut watched = lock(&self.watched);
        let is_full = watched.len() >= MAX_WATCHES && !watched.contains_key(&key);
        if !is_full && watched.insert(key, resource_version.to_owned()).is_none() {
            self.changed.notify_one();
        }
    }

    /// Removes the Secret `key`, which blocks no request any more.
    pub fn remove(&self, key: &ObjectKey) {
        if lock(&self.watched).remove(key).is_some() {
            self.changed.notify_one();
        }
    }

    /// The Secrets to watch.
    pub(crate) fn keys(&self) -> Vec<ObjectKey> {
        lock(&self.watched).keys().cloned().collect()
    }

    /// Whether the Secret `key` is as it was when it was added: at this resourceVersion, or neither there nor added if that is none.
    pub(crate) fn is_current(&self, key: &ObjectKey, resource_version: Option<&String>) -> bool {
        lock(&self.watched).get(key) == resource_version
    }

    /// Returns when a Secret was added or removed since the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    #[test]
    fn a_secret_is_current_at_the_version_that_was_added_last() {
        let secrets = ForeignSecrets::default();
        assert!(secrets.is_current(&key("s"), None));
        for version in ["7", "8"] {
            secrets.add(key("s"), version);
            assert!(secrets.is_current(&key("s"), Some(&version.to_owned())));
        }
        assert!(
            !secrets.is_current(&key("s"), Some(&"7".to_owned())) && !secrets.is_current(&key("s"), None)
        );
        assert_eq!(secrets.keys(), [key("s")]);
        secrets.remove(&key("s"));
        assert!(secrets.keys().is_empty());
    }

    #[test]
    fn a_change_of_what_is_watched_is_reported_once() {
        let secrets = ForeignSecrets::default();
        let changed = || secrets.changed().now_or_never().is_some();
        assert!(!changed());
        secrets.add(key("s"), "7");
        assert!(changed() && !changed());
        secrets.add(key("s"), "8");
        secrets.remove(&key("t"));
        assert!(!changed(), "the same Secrets");
        secrets.remove(&key("s"));
        assert!(changed());
    }

    #[test]
    fn one_too_many_is_not_watched() {
        let secrets = ForeignSecrets::default();
        for number in 0..=MAX_WATCHES {
            secrets.add(key(&number.to_string()), "1");
        }
        let last = key(&MAX_WATCHES.to_string());
        assert_eq!(secrets.keys().len(), MAX_WATCHES);
        assert!(!secrets.keys().contains(&last));
        secrets.add(key("0"), "2");
        assert!(secrets.is_current(&key("0"), Some(&"2".to_owned())));
        secrets.remove(&key("0"));
        secrets.add(last.clone(), "1");
        assert!(secrets.keys().contains(&last));
    }
}
