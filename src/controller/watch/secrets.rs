//! The watch of Secrets with our label.

use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PartialObjectMeta;
use kube::runtime::watcher::{self, watcher};

use crate::controller::Context;
use crate::controller::cache::{ObjectKey, SecretSummary};
use crate::controller::watch::stream::{PAGE, WATCH_SECONDS, failed, note, steady};
use crate::controller::watch::{CacheKind, Enqueuer, SyncState, fill, within};
use crate::kubernetes::error::watch_problem;

/// Watches the metadata of the Secrets that carry our label, in a namespace, or in all where `scope` is empty.
pub(crate) async fn secrets(ctx: Arc<Context>, scope: String, triggers: Enqueuer, filled: SyncState) {
    let api = within::<PartialObjectMeta<Secret>>(&ctx, &scope);
    let config = watcher::Config::default()
        .labels(&ctx.settings.shard.secrets())
        .timeout(WATCH_SECONDS)
        .page_size(PAGE);
    let mut stream = pin!(steady(|| watcher(api.clone(), config.clone())));
    let concerned = |key: &ObjectKey, meta: &SecretSummary| {
        if let Some(request) = &meta.request {
            triggers.request(ObjectKey::new(key.namespace(), request));
        }
        for claimant in ctx.index.claimants(key) {
            triggers.request(claimant);
        }
    };
    let mut telling = ctx.metrics.watch("secrets");
    while let Some(event) = stream.next().await {
        note(&mut telling, &event);
        match event {
            Ok(watcher::Event::Init) => ctx.index.secrets_listing(&scope),
            Ok(watcher::Event::InitApply(secret) | watcher::Event::Apply(secret)) => {
                let (key, meta) = (
                    ObjectKey::of(&secret.metadata),
                    SecretSummary::from(&secret.metadata),
                );
                if ctx.index.secret_applied(key.clone(), &meta) {
                    concerned(&key, &meta);
                }
            }
            Ok(watcher::Event::InitDone) => {
                for (key, meta) in ctx.index.secrets_listed(&scope) {
                    concerned(&key, &meta);
                }
                fill(&filled, CacheKind::Secrets(scope.clone()));
            }
            Ok(watcher::Event::Delete(secret)) => {
                let (key, meta) = (
                    ObjectKey::of(&secret.metadata),
                    SecretSummary::from(&secret.metadata),
                );
                // Also where it was unknown: a request may wait for somebody else's Secret to go.
                ctx.index.secret_deleted(&key, &meta.resource_version);
                concerned(&key, &meta);
            }
            Err(error) => failed("secrets", &watch_problem(&error)),
        }
    }
}
