//! The watch of IdTokenRequests.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use jiff::Timestamp;
use kube::runtime::watcher::{self, watcher};

use crate::api::v1alpha1::IdTokenRequest;
use crate::controller::Context;
use crate::controller::cache::ObjectKey;
use crate::controller::watch::decode::{self as unreadable, Shown, Unreadable};
use crate::controller::watch::stream::{PAGE, WATCH_SECONDS, failed, note, steady};
use crate::controller::watch::{CacheKind, Enqueuer, SyncState, fill, within};
use crate::kubernetes::error::watch_problem;

/// Watches the IdTokenRequests of a namespace, or of all where `scope` is empty, into the store and the index.
pub(crate) async fn requests(ctx: Arc<Context>, scope: String, triggers: Enqueuer, filled: SyncState) {
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    if let Some(selector) = ctx.settings.shard.selector() {
        config = config.labels(selector);
    }
    let mut stream = pin!(steady(|| watcher(within::<Shown>(&ctx, &scope), config.clone())));
    let mut listed: HashSet<ObjectKey> = HashSet::new();
    // Looked at when a list is whole. Kept when it fails halfway: store and index have taken these in already.
    let mut waiting: HashSet<ObjectKey> = HashSet::new();
    let mut telling = ctx.metrics.watch("idtokenrequests");
    while let Some(event) = stream.next().await {
        note(&mut telling, &event);
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if matches!(error, watcher::Error::WatchStartFailed(_)) {
                    ctx.index.requests_behind(&scope);
                }
                failed("idtokenrequests", &watch_problem(&error));
                continue;
            }
        };
        let (listing, deleted) = match &event {
            watcher::Event::InitApply(_) => (true, false),
            watcher::Event::Delete(_) => (false, true),
            _ => (false, false),
        };
        let event = match read(event) {
            Ok(event) => event,
            Err(object) => {
                let key = ObjectKey::of(&object.metadata);
                waiting.extend(dropped(&ctx, &key));
                if listing {
                    listed.insert(key);
                } else {
                    waiting.drain().for_each(|key| triggers.request(key));
                }
                if !deleted {
                    tokio::spawn(unreadable::tell(ctx.clone(), object));
                }
                continue;
            }
        };
        match event {
            watcher::Event::Init => {
                listed.clear();
                ctx.index.requests_listing(&scope);
            }
            watcher::Event::InitApply(object) => {
                let (key, affected) = taken_in(&ctx, object);
                listed.insert(key);
                waiting.extend(affected);
            }
            watcher::Event::InitDone => {
                ctx.requests.keep_only(&scope, &listed);
                waiting.extend(ctx.index.requests_listed(&scope, &listed));
                ctx.metrics.retain_requests(&scope, &listed, Timestamp::now());
                listed = HashSet::new();
                waiting.drain().for_each(|key| triggers.request(key));
                waiting = HashSet::new();
                fill(&filled, CacheKind::Requests(scope.clone()));
            }
            watcher::Event::Apply(object) => {
                let (_, affected) = taken_in(&ctx, object);
                affected.into_iter().for_each(|key| triggers.request(key));
            }
            watcher::Event::Delete(object) => {
                let affected = dropped(&ctx, &ObjectKey::of(&object.metadata));
                affected.into_iter().for_each(|key| triggers.request(key));
            }
        }
    }
}

/// Splits off an object that cannot be read.
fn read(event: watcher::Event<Shown>) -> Result<watcher::Event<IdTokenRequest>, Box<Unreadable>> {
    Ok(match event {
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
        watcher::Event::InitApply(shown) => watcher::Event::InitApply(shown.0?),
        watcher::Event::Apply(shown) => watcher::Event::Apply(shown.0?),
        watcher::Event::Delete(shown) => watcher::Event::Delete(shown.0?),
    })
}

/// Takes a request into the store and the index. Returns its key as they hold it, and the requests that are to be reconciled for it.
fn taken_in(ctx: &Context, object: IdTokenRequest) -> (ObjectKey, Vec<ObjectKey>) {
    let key = ObjectKey::of(&object.metadata);
    // One that waits for somebody's finalizer gets no token any more.
    if object.metadata.deletion_timestamp.is_some() {
        let affected = dropped(ctx, &key);
        return (key, affected);
    }
    // The store first: what the index forgets since the watch has caught up is there then.
    let (key, object) = ctx.requests.put(key, object);
    let affected = ctx.index.request_applied(&key, &object);
    (key, affected)
}

fn dropped(ctx: &Context, key: &ObjectKey) -> Vec<ObjectKey> {
    ctx.requests.remove(key);
    // The index first: a reconcile under way asks it before it adds to the metrics.
    let affected = ctx.index.request_deleted(key);
    ctx.metrics.remove_request(key, Timestamp::now());
    affected
}
