//! The Secrets of other clients that block a request: how many of them are watched, of a namespace and in all, and which are read every minute
//! instead. Each is known for as long as it blocks a request.
//!
//! They have a lock of their own: no operation needs them and the [`Cache`](super::Cache) in one step.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::api::ObjectKey;
use crate::sync::lock;

/// Most Secrets that are watched at once. The others are polled.
const MAX_WATCHED: usize = 64;
/// Most Secrets that are known. A request that another one blocks is only retried with its backoff.
const MAX_KNOWN: usize = 1024;
/// A namespace has one of so many shares of either.
const SHARES: usize = 4;

/// The Secrets of other clients.
#[derive(Debug, Default)]
pub struct ForeignSecrets {
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    secrets: HashMap<ObjectKey, Foreign>,
    /// How many have ever been added.
    added: u64,
}

#[derive(Debug)]
struct Foreign {
    /// The resourceVersion at which it was found to block a request.
    resource_version: String,
    /// Its number in the order in which they were added.
    number: u64,
}

/// Which Secrets are watched, and which are polled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Those that are watched.
    pub(crate) watched: Vec<ObjectKey>,
    /// Those that are polled, the namespaces by turns.
    pub(crate) polled: Vec<ObjectKey>,
}

impl ForeignSecrets {
    /// Adds the Secret `key`, which blocks a request as of `resource_version`.
    pub fn add(&self, key: ObjectKey, resource_version: &str) {
        let mut known = lock(&self.known);
        if let Some(foreign) = known.secrets.get_mut(&key) {
            resource_version.clone_into(&mut foreign.resource_version);
            return;
        }
        let of_namespace = known.secrets.keys().filter(|other| other.is_in(key.namespace()));
        if known.secrets.len() >= MAX_KNOWN || of_namespace.count() >= MAX_KNOWN / SHARES {
            return;
        }
        known.added += 1;
        let foreign = Foreign {
            resource_version: resource_version.to_owned(),
            number: known.added,
        };
        known.secrets.insert(key, foreign);
        self.changed.notify_one();
    }

    /// Removes the Secret `key`, which blocks no request any more.
    pub fn remove(&self, key: &ObjectKey) {
        if lock(&self.known).secrets.remove(key).is_some() {
            self.changed.notify_one();
        }
    }

    /// Which Secrets are watched, and which are polled. Those that have been known longest are watched.
    pub(crate) fn shares(&self) -> Shares {
        let known = lock(&self.known);
        let mut all: Vec<(u64, &ObjectKey)> = known
            .secrets
            .iter()
            .map(|(key, foreign)| (foreign.number, key))
            .collect();
        all.sort_unstable();
        let mut shares = Shares::default();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut polled: Vec<(usize, &ObjectKey)> = Vec::new();
        for (_, key) in all {
            let count = counts.entry(key.namespace()).or_default();
            *count += 1;
            match shares.watched.len() < MAX_WATCHED && *count <= MAX_WATCHED / SHARES {
                true => shares.watched.push(key.clone()),
                false => polled.push((*count, key)),
            }
        }
        polled.sort_unstable();
        shares.polled = polled.into_iter().map(|(_, key)| key.clone()).collect();
        shares
    }

    /// Whether the Secret `key` is unchanged since it was added: at this resourceVersion. With none: whether it is not tracked.
    pub(crate) fn is_current(&self, key: &ObjectKey, resource_version: Option<&String>) -> bool {
        let known = lock(&self.known);
        known.secrets.get(key).map(|foreign| &foreign.resource_version) == resource_version
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
        assert_eq!(secrets.shares().watched, [key("s")]);
        secrets.remove(&key("s"));
        assert_eq!(secrets.shares(), Shares::default());
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
    fn a_namespace_has_a_quarter_of_the_watches_and_the_rest_is_polled_by_turns() {
        let secrets = ForeignSecrets::default();
        let add = |namespace: &str, count: usize| {
            for number in 0..count {
                secrets.add(ObjectKey::new(namespace, &format!("{number:04}")), "1");
            }
        };
        let count =
            |keys: &[ObjectKey], namespace: &str| keys.iter().filter(|key| key.is_in(namespace)).count();
        add("evil", 2 * MAX_KNOWN);
        add("shop", MAX_WATCHED / SHARES + 1);
        let shares = secrets.shares();
        for namespace in ["evil", "shop"] {
            assert_eq!(
                count(&shares.watched, namespace),
                MAX_WATCHED / SHARES,
                "{namespace}"
            );
        }
        let of_evil = MAX_KNOWN / SHARES - MAX_WATCHED / SHARES;
        assert_eq!(
            (count(&shares.polled, "evil"), count(&shares.polled, "shop")),
            (of_evil, 1)
        );
        assert_eq!(
            shares.polled.iter().position(|key| key.is_in("shop")),
            Some(1),
            "its turn is the second"
        );

        // One that is removed makes room.
        secrets.remove(&shares.watched[0]);
        assert!(secrets.shares().watched.contains(&shares.polled[0]));
        for namespace in ["a", "b", "c", "d", "e"] {
            add(namespace, MAX_KNOWN);
        }
        let shares = secrets.shares();
        assert_eq!(shares.watched.len(), MAX_WATCHED);
        assert_eq!(shares.watched.len() + shares.polled.len(), MAX_KNOWN);
        assert_eq!(
            count(&shares.watched, "shop"),
            MAX_WATCHED / SHARES,
            "who was first stays"
        );
    }
}
