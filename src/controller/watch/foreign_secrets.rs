//! Secrets of others that are the target of a request. They do not have our label, so the watch of Secrets does not show when they are
//! handed over or deleted: each is watched by its name for as long as it conflicts.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use tokio::task::{AbortHandle, JoinSet};

use crate::api::ObjectKey;
use crate::controller::watch::context::{WatchContext, collection};
use crate::controller::watch::stream::{self, Event, Watched};
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
}

/// Keeps one watch for each of the foreign Secrets.
pub(super) async fn watch(ctx: WatchContext) {
    let mut watches = JoinSet::new();
    let mut running: HashMap<ObjectKey, AbortHandle> = HashMap::new();
    loop {
        let required = ctx.foreign_secrets.keys();
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
            Event::Bookmark | Event::Lost => return,
        };
        if !ctx.foreign_secrets.is_current(&key, version.as_ref()) {
            for claimant in ctx.cache.claimants(&key) {
                ctx.enqueuer.request(claimant);
            }
        }
    };
    let mut watching = pin!(stream::watch(&ctx, &secret, on_event));
    let mut claim_check = tokio::time::interval(CLAIM_CHECK_INTERVAL);
    loop {
        tokio::select! {
            // The check first: events of a Secret that no request claims are of no use.
            biased;
            _ = claim_check.tick() => {
                if ctx.cache.claimants(&key).is_empty() {
                    ctx.foreign_secrets.remove(&key);
                }
            }
            () = &mut watching => return,
        }
    }
}
