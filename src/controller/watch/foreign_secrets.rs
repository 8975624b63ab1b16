//! Watches by name, or reads every minute, the Secrets of other clients that the cache lists. They do not have our label, so the watch of
//! Secrets does not show when they are handed over or deleted.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::Resource;
use kube::api::GetParams;
use kube::core::Request;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::api::ObjectKey;
use crate::controller::watch::context::{WatchContext, collection};
use crate::controller::watch::stream::{self as watch_stream, Event, Watched};
use crate::kubernetes::answer::{text, within};
use crate::kubernetes::error::status_code;
use crate::kubernetes::list_watch::Collection;
use crate::kubernetes::partial_metadata::metadata;

/// How often a watch checks whether a request still has the Secret as its target. It costs no call.
const CLAIM_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The resourceVersion of a Secret.
struct Version(Option<String>);

impl Watched for Version {
    const RESOURCE: &'static str = "secrets";

    fn decode(json: &str) -> Result<Self, serde_json::Error> {
        Ok(Self(metadata(json)?.resource_version))
    }

    fn resource_version(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// How often a Secret is read that is not watched.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time for one read.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How many are read at once.
const READS_AT_ONCE: usize = 4;

/// Keeps one watch for each of the foreign Secrets that have one.
pub(super) async fn watch(ctx: WatchContext) {
    let mut watches = JoinSet::new();
    let mut running: HashMap<ObjectKey, AbortHandle> = HashMap::new();
    loop {
        let required = ctx.foreign_secrets.shares().watched;
        running.retain(|key, watch| {
            let keep = required.contains(key);
            if !keep {
                watch.abort();
            }
            keep
        });
        for key in required {
            running
                .entry(key.clone())
                .or_insert_with(|| watches.spawn(watch_secret(ctx.clone(), key)));
        }
        tokio::select! {
            // Both lead to the same pass.
            biased;
            () = ctx.foreign_secrets.changed() => {}
            Some(_) = watches.join_next() => {}
        }
    }
}

/// Reads those that are not watched, again and again.
pub(super) async fn poll(ctx: WatchContext) {
    loop {
        sleep(POLL_INTERVAL).await;
        read_all(&ctx).await;
    }
}

async fn read_all(ctx: &WatchContext) {
    let polled = ctx.foreign_secrets.shares().polled;
    let reads = polled.into_iter().map(|key| read(ctx, key));
    stream::iter(reads)
        .buffer_unordered(READS_AT_ONCE)
        .collect::<()>()
        .await;
}

async fn read(ctx: &WatchContext, key: ObjectKey) {
    if !ctx.cache.is_claimed(&key) {
        return ctx.foreign_secrets.remove(&key);
    }
    let calls = Request::new(Secret::url_path(&(), Some(key.namespace())));
    let Ok(call) = calls.get_metadata(key.name(), &GetParams::default()) else {
        return;
    };
    let version = match within(READ_TIMEOUT, text(&ctx.client, call)).await {
        Ok(json) => Version::decode(&json).ok().and_then(|Version(version)| version),
        Err(error) if status_code(&error) == Some(404) => None,
        // It is read again. Meanwhile the request's backoff holds.
        Err(_) => return,
    };
    enqueue_if_changed(ctx, &key, version.as_ref());
}

fn enqueue_if_changed(ctx: &WatchContext, key: &ObjectKey, version: Option<&String>) {
    if !ctx.foreign_secrets.is_current(key, version) {
        for request in ctx.cache.affected_by_secret(key, None) {
            ctx.enqueuer.request(request);
        }
    }
}

async fn watch_secret(ctx: WatchContext, key: ObjectKey) {
    let secret = Collection {
        metadata_only: true,
        fields: Some(format!("metadata.name={}", key.name())),
        ..collection::<Secret>(key.namespace())
    };
    let mut listed = None;
    let on_event = |event| {
        let version = match event {
            Event::ListBegins => return listed = None,
            Event::Listed(Version(version)) => return listed = version,
            Event::ListEnds => listed.take(),
            Event::Applied(Version(version)) => version,
            Event::Deleted(_) => None,
            Event::WatchBegins | Event::Bookmark | Event::Lost | Event::Refused(_) => return,
        };
        enqueue_if_changed(&ctx, &key, version.as_ref());
    };
    let mut watching = pin!(watch_stream::watch(&ctx, &secret, on_event));
    let mut claim_check = tokio::time::interval(CLAIM_CHECK_INTERVAL);
    loop {
        tokio::select! {
            // The check first: events of a Secret that no request claims are of no use.
            biased;
            _ = claim_check.tick() => {
                if !ctx.cache.is_claimed(&key) {
                    ctx.foreign_secrets.remove(&key);
                }
            }
            () = &mut watching => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::object;
    use crate::kubernetes::answer::tests::answering;

    /// More than a namespace may have watches.
    const SECRETS: usize = 20;

    #[tokio::test]
    async fn secrets_that_have_no_watch_are_read() {
        let (mut ctx, mut enqueued) = WatchContext::empty();
        let secret = json!({"metadata": {"name": "s", "namespace": "shop", "resourceVersion": "1"}});
        ctx.client = answering(200, vec![secret.to_string().into_bytes()]);
        for number in 0..SECRETS {
            let name = format!("s{number}");
            let mut request = object(json!({"target": {"name": name}}));
            request.metadata.name = Some(name.clone());
            request.metadata.uid = Some(name.clone());
            ctx.cache.upsert_request(request);
            ctx.foreign_secrets.add(ObjectKey::new("shop", &name), "1");
        }
        let polled = ctx.foreign_secrets.shares().polled;
        assert!(!polled.is_empty() && polled.len() < SECRETS, "{polled:?}");
        // They are as they were.
        read_all(&ctx).await;
        assert!(enqueued.try_recv().is_err());
        ctx.client = answering(404, vec![br#"{"kind": "Status", "code": 404}"#.to_vec()]);
        read_all(&ctx).await;
        let mut keys: Vec<ObjectKey> = std::iter::from_fn(|| enqueued.try_recv().ok()).collect();
        keys.sort_unstable();
        let mut polled = polled;
        polled.sort_unstable();
        assert_eq!(keys, polled);
    }
}
