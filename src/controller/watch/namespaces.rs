//! The watch of namespaces: their labels, which grants select, and whether they are terminating.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, PartialObjectMeta};

use crate::controller::watch::context::WatchContext;
use crate::controller::watch::stream::{WatchSignal, watch_with_bookmarks};
use crate::controller::watch::sync_state::CacheKind;
use crate::grants::store::WatchKind;

/// Watches all namespaces.
pub(super) async fn watch(ctx: WatchContext) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(ctx.client.clone());
    let watch_metrics = ctx.metrics.watch("namespaces");
    let (cache, grants) = (&ctx.cache, &ctx.grants);
    let on_signal = |signal| {
        match signal {
            WatchSignal::Listed(namespaces) => {
                let terminating = namespaces.iter().filter(|namespace| is_terminating(namespace));
                cache.set_terminating_namespaces(terminating.map(ResourceExt::name_any).collect());
                grants.set_namespaces(namespaces.into_iter().map(name_and_labels).collect());
                ctx.enqueuer.all();
            }
            WatchSignal::Applied(namespace) => {
                cache.set_terminating(&namespace.name_any(), is_terminating(&namespace));
                let (name, labels) = name_and_labels(namespace);
                if grants.set_namespace(&name, Some(labels)) {
                    ctx.enqueuer.namespace(name);
                }
            }
            WatchSignal::Deleted(namespace) => {
                cache.set_terminating(&namespace.name_any(), false);
                grants.set_namespace(&namespace.name_any(), None);
            }
            WatchSignal::Bookmark => {}
        }
        grants.record_heartbeat(WatchKind::Namespaces, ctx.clock.now());
        ctx.sync_state.mark_synced(CacheKind::Namespaces);
    };
    watch_with_bookmarks(api, "namespaces", watch_metrics, &ctx.clock, on_signal).await;
}

fn name_and_labels(namespace: PartialObjectMeta<Namespace>) -> (String, BTreeMap<String, String>) {
    let metadata = namespace.metadata;
    (
        metadata.name.unwrap_or_default(),
        metadata.labels.unwrap_or_default(),
    )
}

fn is_terminating(namespace: &PartialObjectMeta<Namespace>) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}
