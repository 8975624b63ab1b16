//! The watch of namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, PartialObjectMeta};

use crate::controller::Context;
use crate::controller::watch::stream::{Live, live};
use crate::controller::watch::{CacheKind, Enqueuer, SyncState, fill};
use crate::grants::store::Watched;

/// Watches the labels of namespaces.
pub(crate) async fn namespaces(ctx: Arc<Context>, triggers: Enqueuer, filled: SyncState) {
    let labels = |namespace: PartialObjectMeta<Namespace>| -> (String, BTreeMap<String, String>) {
        (
            namespace.metadata.name.unwrap_or_default(),
            namespace.metadata.labels.unwrap_or_default(),
        )
    };
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(ctx.client.clone());
    let telling = ctx.metrics.watch("namespaces");
    live(api, "namespaces", telling, |event| {
        match event {
            Live::Listed(namespaces) => {
                ctx.index.namespaces_listed(
                    namespaces
                        .iter()
                        .filter(|namespace| is_ending(namespace))
                        .map(ResourceExt::name_any)
                        .collect(),
                );
                ctx.grants
                    .set_namespaces(namespaces.into_iter().map(labels).collect());
                triggers.everything();
            }
            Live::Applied(namespace) => {
                ctx.index
                    .namespace_ends(&namespace.name_any(), is_ending(&namespace));
                let (name, labels) = labels(namespace);
                if ctx.grants.set_namespace(&name, Some(labels)) {
                    triggers.namespace(name);
                }
            }
            Live::Deleted(namespace) => {
                ctx.index.namespace_ends(&namespace.name_any(), false);
                ctx.grants.set_namespace(&namespace.name_any(), None);
            }
            Live::Alive => {}
        }
        ctx.grants.seen(Watched::Namespaces, Timestamp::now());
        fill(&filled, CacheKind::Namespaces);
    })
    .await;
}

fn is_ending(namespace: &PartialObjectMeta<Namespace>) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}
