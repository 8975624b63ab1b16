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
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::controller::cache::{Cache, ObjectKey};
use crate::controller::queue::Enqueuer;
use crate::controller::watch::stream::{WATCH_SECONDS, WatchBackoff};
use crate::sync::lock;

/// Most watches at once. Requests that conflict with further Secrets are reconciled by their backoff alone.
const MAX_WATCHES: usize = 100;
/// How often a watch checks whether a request still has the Secret as its target. It costs no call.
const CLAIM_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The Secrets that conflict, each with the resourceVersion at which it was read.
#[derive(Debug, Default)]
pub struct ForeignSecrets {
    watched: Mutex<HashMap<ObjectKey, String>>,
    changed: Notify,
}

impl ForeignSecrets {
    /// Adds the Secret `key`, which belonged to another client at `resource_version`.
    pub fn add(&self, key: ObjectKey, resource_version: &str) {
        let mut watched = lock(&self.watched);
        let full = watched.len() >= MAX_WATCHES && !watched.contains_key(&key);
        if !full && watched.insert(key, resource_version.to_owned()).is_none() {
            self.changed.notify_one();
        }
    }

    /// Removes the Secret `key`, which conflicts no more.
    pub fn remove(&self, key: &ObjectKey) {
        let mut watched = lock(&self.watched);
        if watched.remove(key).is_some() {
            self.changed.notify_one();
        }
    }

    fn keys(&self) -> Vec<ObjectKey> {
        let watched = lock(&self.watched);
        watched.keys().cloned().collect()
    }

    /// Whether a reconcile has read the Secret at `resource_version`.
    fn is_current(&self, key: &ObjectKey, resource_version: Option<&String>) -> bool {
        let watched = lock(&self.watched);
        watched.get(key) == resource_version
    }
}

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
            () = foreign_secrets.changed.notified() => {}
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
