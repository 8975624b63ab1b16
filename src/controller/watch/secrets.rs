//! The watch of the Secrets with our label: their metadata alone.

use std::pin::pin;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};

use crate::api::ObjectKey;
use crate::controller::watch::context::WatchContext;
use crate::controller::watch::stream::{
    PAGE_SIZE, WATCH_SECONDS, log_watch_error, record_event, relist_on_failed_resume,
};
use crate::controller::watch::sync_state::CacheKind;
use crate::kubernetes::error::watch_problem;
use crate::kubernetes::secret_summary::SecretSummary;

const RESOURCE: &str = "secrets";

/// Watches the Secrets with our label in the namespace `scope`, or in all if `scope` is empty.
pub(super) async fn watch(ctx: WatchContext, scope: String) {
    let api = ctx.api_in::<PartialObjectMeta<Secret>>(&scope);
    let config = watcher::Config::default()
        .labels(&ctx.shard.secret_selector())
        .timeout(WATCH_SECONDS)
        .page_size(PAGE_SIZE);
    let begin = || watcher(api.clone(), config.clone());
    let mut stream = pin!(relist_on_failed_resume(begin));
    let summary = |secret: &PartialObjectMeta<Secret>| {
        (
            ObjectKey::of(&secret.metadata),
            SecretSummary::from(&secret.metadata),
        )
    };
    let mut watch_metrics = ctx.metrics.watch(RESOURCE);
    while let Some(event) = stream.next().await {
        record_event(&mut watch_metrics, &event, ctx.clock.now());
        match event {
            Ok(Event::Init) => ctx.cache.begin_secret_relist(&scope),
            Ok(Event::InitApply(secret) | Event::Apply(secret)) => {
                let (key, summary) = summary(&secret);
                if ctx.cache.upsert_secret(key.clone(), &summary) {
                    enqueue_affected(&ctx, &key, &summary);
                }
            }
            Ok(Event::InitDone) => {
                for (key, summary) in ctx.cache.end_secret_relist(&scope) {
                    enqueue_affected(&ctx, &key, &summary);
                }
                ctx.sync_state.mark_synced(CacheKind::Secrets(scope.clone()));
            }
            Ok(Event::Delete(secret)) => {
                let (key, summary) = summary(&secret);
                // Also if it was unknown: a request may wait for the deletion of another client's Secret.
                ctx.cache.delete_secret(&key, &summary.resource_version);
                enqueue_affected(&ctx, &key, &summary);
            }
            Err(error) => log_watch_error(RESOURCE, &watch_problem(&error)),
        }
    }
}

/// Enqueues the request that the Secret names, and those whose target it is.
fn enqueue_affected(ctx: &WatchContext, key: &ObjectKey, summary: &SecretSummary) {
    if let Some(request) = &summary.request {
        ctx.enqueuer.request(ObjectKey::new(key.namespace(), request));
    }
    for claimant in ctx.cache.claimants(key) {
        ctx.enqueuer.request(claimant);
    }
}
