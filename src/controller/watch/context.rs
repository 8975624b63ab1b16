//! What the watches of objects use.

use std::sync::Arc;

use kube::{Client, Resource};

use crate::clock::Clock;
use crate::controller::cache::Cache;
use crate::controller::cache::foreign_secrets::ForeignSecrets;
use crate::controller::queue::Enqueuer;
use crate::controller::watch::sync_state::{CacheKind, SyncState};
use crate::grants::store::GrantStore;
use crate::kubernetes::Connections;
use crate::kubernetes::list_watch::Collection;
use crate::metrics::Metrics;
use crate::shard::Shard;

/// What the watches read from, what they fill, and whom they notify.
#[derive(Clone)]
pub(crate) struct WatchContext {
    /// For single reads.
    pub(crate) client: Client,
    pub(crate) connections: Arc<Connections>,
    pub(crate) clock: Clock,
    pub(crate) shard: Shard,
    pub(crate) cache: Arc<Cache>,
    pub(crate) foreign_secrets: Arc<ForeignSecrets>,
    pub(crate) grants: Arc<GrantStore>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) enqueuer: Enqueuer,
    pub(crate) sync_state: SyncState,
}

impl WatchContext {
    /// Records that all objects of a cache have been listed. Requests wait for both caches of their namespace.
    pub(super) fn mark_synced(&self, cache: CacheKind) {
        let served = self.sync_state.mark_synced(cache);
        if let Some(namespace) = served.filter(|_| self.shard.is_namespaced()) {
            self.enqueuer.namespace(namespace);
        }
    }

    /// Records that the watch that fills a cache works.
    pub(super) fn mark_watched(&self, cache: &CacheKind) {
        if let Some(namespace) = self.sync_state.mark_watched(cache) {
            self.metrics.set_namespace_failing_since(&namespace, None);
            tracing::info!(namespace, "the namespace can be listed and watched now");
        }
    }

    /// Records that the API server refuses to list or watch what fills a cache.
    pub(super) fn mark_refused(&self, cache: CacheKind, problem: &str) {
        if let Some(first) = self.sync_state.mark_refused(cache, self.clock.now(), problem) {
            let namespace = first.namespace;
            self.metrics
                .set_namespace_failing_since(&namespace, Some(first.since));
            tracing::error!(
                namespace,
                "the namespace is not served: {problem}; create the namespace, or the operator's Role and RoleBinding in it, or take it out \
                 of --namespace; it is tried again"
            );
        }
    }
}

/// All objects of the kind `K` in the namespace `scope`, or in all if `scope` is empty.
pub(super) fn collection<K: Resource<DynamicType = ()>>(scope: &str) -> Collection {
    Collection {
        path: K::url_path(&(), Some(scope).filter(|scope| !scope.is_empty())),
        metadata_only: false,
        labels: None,
        fields: None,
    }
}

#[cfg(test)]
impl WatchContext {
    /// Caches without objects, and what is enqueued. Every call of the API server fails.
    pub(super) fn empty() -> (Self, tokio::sync::mpsc::UnboundedReceiver<crate::api::ObjectKey>) {
        let unavailable = tower::service_fn(async |_: http::Request<kube::client::Body>| {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no API server"))
        });
        let client = Client::new(unavailable, "default");
        let (requests, enqueued) = tokio::sync::mpsc::unbounded_channel();
        let (scopes, _) = tokio::sync::mpsc::unbounded_channel();
        let ctx = Self {
            connections: Arc::new(Connections::new(1, {
                let client = client.clone();
                move || Ok(client.clone())
            })),
            client,
            clock: Clock::system(),
            shard: Shard::default(),
            cache: Arc::default(),
            foreign_secrets: Arc::default(),
            grants: Arc::default(),
            metrics: Arc::default(),
            enqueuer: Enqueuer::new(requests, scopes),
            sync_state: SyncState::default(),
        };
        (ctx, enqueued)
    }
}
