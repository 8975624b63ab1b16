//! Secrets of others that stand where a request wants its own. They do not carry our label, so the watch of Secrets does not show when
//! they are handed over or go: each is watched by its name for as long as it stands in the way.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use tokio::task::{AbortHandle, JoinSet};

use crate::api::ObjectKey;
use crate::controller::Context;
use crate::controller::cache::ObjectKey;
use crate::controller::watch::Enqueuer;
use crate::controller::watch::stream::{WATCH_SECONDS, WatchBackoff};
use crate::sync::lock;

/// How often it is asked whether a request still wants the Secret, which costs no call.
const ASKED_EVERY: Duration = Duration::from_secs(10);

/// Keeps one watch for each obstacle.
pub(crate) async fn watch(ctx: Arc<Context>, triggers: Enqueuer) {
    let mut watches = JoinSet::new();
    let mut running: HashMap<ObjectKey, AbortHandle> = HashMap::new();
    loop {
        let wanted = ctx.foreign_secrets.keys();
        running.retain(|key, watch| {
            let keep = wanted.contains(key);
            if !keep {
                watch.abort();
            }
            keep
        });
        for key in wanted {
            running
                .entry(key.clone())
                .or_insert_with(|| watches.spawn(one(ctx.clone(), triggers.clone(), key)));
        }
        tokio::select! {
            () = ctx.foreign_secrets.changed() => {}
            Some(_) = watches.join_next() => {}
        }
    }
}

async fn one(ctx: Arc<Context>, triggers: Enqueuer, key: ObjectKey) {
    let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(ctx.client.clone(), key.namespace());
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={}", key.name()))
        .timeout(WATCH_SECONDS);
    let mut stream = pin!(watcher(secrets, config).backoff(WatchBackoff::default()));
    let mut asked = tokio::time::interval(ASKED_EVERY);
    let mut listed = None;
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            _ = asked.tick() => {
                if ctx.cache.claimants(&key).is_empty() {
                    ctx.foreign_secrets.remove(&key);
                }
                continue;
            }
        };
        let shown = match event {
            Some(Ok(watcher::Event::Init)) => {
                listed = None;
                continue;
            }
            Some(Ok(watcher::Event::InitApply(secret))) => {
                listed = secret.metadata.resource_version;
                continue;
            }
            Some(Ok(watcher::Event::InitDone)) => listed.take(),
            Some(Ok(watcher::Event::Apply(secret))) => secret.metadata.resource_version,
            Some(Ok(watcher::Event::Delete(_))) => None,
            // Tried again after a pause; meanwhile the schedule of failures holds.
            Some(Err(_)) => continue,
            None => return,
        };
        if !ctx.foreign_secrets.is_current(&key, shown.as_ref()) {
            for claimant in ctx.cache.claimants(&key) {
                triggers.request(claimant);
            }
        }
    }
}
