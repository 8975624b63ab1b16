//! Secrets of others that are the target of a request. They do not have our label, so the watch of Secrets does not show when they are
//! handed over or deleted: each is watched by its name for as long as it conflicts.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::task::{AbortHandle, JoinSet};

use crate::api::ObjectKey;
use crate::controller::cache::Cache;
use crate::controller::cache::foreign_secrets::ForeignSecrets;
use crate::controller::queue::Enqueuer;
use crate::controller::watch::stream::{WATCH_SECONDS, WatchBackoff};

/// How often a watch checks whether a request still has the Secret as its target. It costs no call.
const CLAIM_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps one watch for each of `foreign_secrets`.
pub(super) async fn watch(
    client: Client,
    cache: Arc<Cache>,
    foreign_secrets: Arc<ForeignSecrets>,
    enqueuer: Enqueuer,
) {
    let mut watches = JoinSet::new();
    let mut running: HashMap<ObjectKey, AbortHandle> = HashMap::new();
    loop {
        let required = foreign_secrets.keys();
        running.retain(|key, watch| {
            let keep = required.contains(key);
            if !keep {
                watch.abort();
            }
            keep
        });
        for key in required {
            running.entry(key.clone()).or_insert_with(|| {
                watches.spawn(watch_secret(
                    client.clone(),
                    cache.clone(),
                    foreign_secrets.clone(),
                    enqueuer.clone(),
                    key,
                ))
            });
        }
        tokio::select! {
            // Both lead to the same pass.
            biased;
            () = foreign_secrets.changed() => {}
            Some(_) = watches.join_next() => {}
        }
    }
}

async fn watch_secret(
    client: Client,
    cache: Arc<Cache>,
    foreign_secrets: Arc<ForeignSecrets>,
    enqueuer: Enqueuer,
    key: ObjectKey,
) {
    let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, key.namespace());
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={}", key.name()))
        .timeout(WATCH_SECONDS);
    let mut stream = pin!(watcher(secrets, config).backoff(WatchBackoff::default()));
    let mut claim_check = tokio::time::interval(CLAIM_CHECK_INTERVAL);
    let mut listed = None;
    loop {
        let event = tokio::select! {
            // The check first: events of a Secret that no request claims are of no use.
            biased;
            _ = claim_check.tick() => {
                if cache.claimants(&key).is_empty() {
                    foreign_secrets.remove(&key);
                }
                continue;
            }
            event = stream.next() => event,
        };
        let version = match event {
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
            // The watch is retried after a pause. Meanwhile the request's backoff holds.
            Some(Err(_)) => continue,
            None => return,
        };
        if !foreign_secrets.is_current(&key, version.as_ref()) {
            for claimant in cache.claimants(&key) {
                enqueuer.request(claimant);
            }
        }
    }
}
