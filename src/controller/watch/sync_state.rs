//! Which caches are synced.

use std::collections::HashSet;

use tokio::sync::watch::Sender;

use crate::shard::Shard;

/// The caches that must be synced before the first decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum CacheKind {
    /// IdTokenRequests of a namespace, or of all if its name is empty.
    Requests(String),
    /// Secrets with our label, of a namespace, or of all if its name is empty.
    Secrets(String),
    /// IdTokenGrants.
    Grants,
    /// Namespaces.
    Namespaces,
}

/// Which caches are synced.
#[derive(Clone, Debug, Default)]
pub(crate) struct SyncState(Sender<HashSet<CacheKind>>);

impl SyncState {
    pub(super) fn mark_synced(&self, cache: CacheKind) {
        self.0.send_if_modified(|synced| synced.insert(cache));
    }

    /// Returns once every cache of `shard` is synced.
    pub(crate) async fn wait_for_sync(&self, shard: &Shard) {
        let mut required: Vec<CacheKind> = Vec::new();
        for scope in shard.namespaces() {
            required.extend([CacheKind::Requests(scope.clone()), CacheKind::Secrets(scope)]);
        }
        if !shard.is_namespaced() {
            required.extend([CacheKind::Grants, CacheKind::Namespaces]);
        }
        let mut state = self.0.subscribe();
        // Fails only without a sender, and `self` is one.
        let _ = state
            .wait_for(|synced| required.iter().all(|cache| synced.contains(cache)))
            .await;
    }
}
