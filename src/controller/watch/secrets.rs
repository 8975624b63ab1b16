//! The watch of the Secrets with our label: their metadata alone.

use k8s_openapi::api::core::v1::Secret;

use crate::api::ObjectKey;
use crate::controller::watch::context::{WatchContext, collection};
use crate::controller::watch::stream::{self, Event, Watched};
use crate::controller::watch::sync_state::CacheKind;
use crate::kubernetes::list_watch::Collection;
use crate::kubernetes::partial_metadata::metadata;
use crate::kubernetes::secret_summary::SecretSummary;

/// A Secret without its data.
struct WatchedSecret {
    key: ObjectKey,
    summary: SecretSummary,
}

impl Watched for WatchedSecret {
    const RESOURCE: &'static str = "secrets";

    fn decode(json: &str) -> Result<Self, serde_json::Error> {
        let meta = metadata(json)?;
        Ok(Self {
            key: ObjectKey::of(&meta),
            summary: SecretSummary::from(&meta),
        })
    }

    fn resource_version(&self) -> Option<&str> {
        Some(&self.summary.resource_version)
    }
}

/// Watches the Secrets with our label in the namespace `scope`, or in all if `scope` is empty.
pub(super) async fn watch(ctx: WatchContext, scope: String) {
    let secrets = Collection {
        metadata_only: true,
        labels: Some(ctx.shard.secret_selector()),
        ..collection::<Secret>(&scope)
    };
    let cache = CacheKind::Secrets(scope.clone());
    let on_event = |event| match event {
        Event::ListBegins => ctx.cache.begin_secret_relist(&scope),
        Event::Listed(WatchedSecret { key, summary }) | Event::Applied(WatchedSecret { key, summary }) => {
            let before = ctx.cache.contended_secret(&key);
            if ctx.cache.upsert_secret(key.clone(), &summary) {
                enqueue(&ctx, &key, summary.request.as_deref(), before.as_ref());
            }
        }
        Event::ListEnds => {
            for (key, summary) in ctx.cache.end_secret_relist(&scope) {
                enqueue(&ctx, &key, summary.request.as_deref(), Some(&summary));
            }
            ctx.mark_synced(cache.clone());
        }
        Event::Deleted(WatchedSecret { key, summary }) => {
            // Also if it was unknown: a request may wait for the deletion of another client's Secret.
            ctx.cache.delete_secret(&key, &summary.resource_version);
            enqueue(&ctx, &key, summary.request.as_deref(), Some(&summary));
        }
        Event::WatchBegins => ctx.mark_watched(&cache),
        Event::Refused(problem) => ctx.mark_refused(cache.clone(), &problem),
        Event::Bookmark | Event::Lost => {}
    };
    stream::watch(&ctx, &secrets, on_event).await;
}

/// Enqueues the request that the Secret names, and its claimants. `before` is the Secret's previous state. Each request is enqueued once: one
/// that is already in flight would be reconciled twice.
fn enqueue(ctx: &WatchContext, key: &ObjectKey, named: Option<&str>, before: Option<&SecretSummary>) {
    let mut affected = ctx.cache.affected_by_secret(key, before);
    if let Some(request) = named.map(|named| ObjectKey::new(key.namespace(), named))
        && !affected.contains(&request)
    {
        affected.push(request);
    }
    for request in affected {
        ctx.enqueuer.request(request);
    }
}
