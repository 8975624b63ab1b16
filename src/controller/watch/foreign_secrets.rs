//! Secrets of others that stand where a request wants its own. They do not carry our label, so the watch of Secrets does not show when
//! they are handed over or go: each is watched by its name for as long as it stands in the way.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::controller::Context;
use crate::controller::cache::ObjectKey;
use crate::controller::watch::{Enqueuer, WATCH_SECONDS, WatchBackoff};
use crate::sync::lock;

/// Most watches at once. Further Secrets are only looked at again by the schedule of failures.
const MAX_WATCHES: usize = 100;
/// How often it is asked whether a request still wants the Secret, which costs no call.
const ASKED_EVERY: Duration = Duration::from_secs(10);

/// The Secrets that stand in the way, each with the resourceVersion that was found.
#[derive(Debug, Default)]
pub struct ForeignSecrets {
    found: Mutex<HashMap<ObjectKey, String>>,
    changed: Notify,
}

impl ForeignSecrets {
    /// The Secret `key` was found to be somebody else's as of `resource_version`.
    pub fn add(&self, key: ObjectKey, resource_version: &str) {
        let mut found = lock(&self.found);
        let full = found.len() >= MAX_WATCHES && !found.contains_key(&key);
        if !full && found.insert(key, resource_version.to_owned()).is_none() {
            self.changed.notify_one();
        }
    }

    /// The Secret `key` is in nobody's way any more.
    pub fn remove(&self, key: &ObjectKey) {
        let mut found = lock(&self.found);
        if found.remove(key).is_some() {
            self.changed.notify_one();
        }
    }

    fn keys(&self) -> Vec<ObjectKey> {
        let found = lock(&self.found);
        found.keys().cloned().collect()
    }

    fn is_known(&self, key: &ObjectKey, resource_version: Option<&String>) -> bool {
        let found = lock(&self.found);
        found.get(key) == resource_version
    }
}

/// Keeps one watch for each obstacle.
pub(crate) async fn watch(ctx: Arc<Context>, triggers: Enqueuer) {
    let mut watches = JoinSet::new();
    let mut running: HashMap<ObjectKey, AbortHandle> = HashMap::new();
    loop {
        let wanted = ctx.obstacles.keys();
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
            () = ctx.obstacles.changed.notified() => {}
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
                if ctx.index.claimants(&key).is_empty() {
                    ctx.obstacles.remove(&key);
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
        if !ctx.obstacles.is_known(&key, shown.as_ref()) {
            for claimant in ctx.index.claimants(&key) {
                triggers.request(claimant);
            }
        }
    }
}
