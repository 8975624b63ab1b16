//! The watch of IdTokenRequests.

use std::collections::HashSet;
use std::pin::pin;

use futures::StreamExt;
use kube::Resource;
use kube::runtime::watcher::{self, Event, watcher};

use crate::controller::cache::ObjectKey;
use crate::controller::watch::context::WatchContext;
use crate::controller::watch::decode::MaybeDecoded;
use crate::controller::watch::stream::{
    PAGE_SIZE, WATCH_SECONDS, log_watch_error, record_event, relist_on_failed_resume,
};
use crate::controller::watch::sync_state::CacheKind;
use crate::kubernetes::error::watch_problem;

const RESOURCE: &str = "idtokenrequests";

/// Watches the IdTokenRequests of the namespace `scope`, or of all if `scope` is empty.
pub(super) async fn watch(ctx: WatchContext, scope: String) {
    let mut config = watcher::Config::default()
        .timeout(WATCH_SECONDS)
        .page_size(PAGE_SIZE);
    if let Some(selector) = ctx.shard.selector() {
        config = config.labels(selector);
    }
    let begin = || watcher(ctx.api_in::<MaybeDecoded>(&scope), config.clone());
    let mut stream = pin!(relist_on_failed_resume(begin));
    let mut handler = Handler::new(&ctx, &scope);
    let mut watch_metrics = ctx.metrics.watch(RESOURCE);
    while let Some(event) = stream.next().await {
        record_event(&mut watch_metrics, &event, ctx.clock.now());
        match event {
            Ok(event) => handler.handle(event),
            Err(error) => {
                if matches!(error, watcher::Error::WatchStartFailed(_)) {
                    ctx.cache.requests_behind(&scope);
                }
                log_watch_error(RESOURCE, &watch_problem(&error));
            }
        }
    }
}

struct Handler<'a> {
    ctx: &'a WatchContext,
    scope: &'a str,
    listed: HashSet<ObjectKey>,
    /// Enqueued once the list is complete. Kept if the list fails halfway: the caches hold what it has shown.
    pending_keys: HashSet<ObjectKey>,
}

impl<'a> Handler<'a> {
    fn new(ctx: &'a WatchContext, scope: &'a str) -> Self {
        Self {
            ctx,
            scope,
            listed: HashSet::new(),
            pending_keys: HashSet::new(),
        }
    }

    fn handle(&mut self, event: Event<MaybeDecoded>) {
        match event {
            Event::Init => {
                self.listed.clear();
                self.ctx.cache.requests_listing(self.scope);
            }
            Event::InitApply(object) => {
                let (key, affected) = self.upsert(object);
                self.listed.insert(key);
                self.pending_keys.extend(affected);
            }
            Event::InitDone => self.complete_list(),
            Event::Apply(object) => self.enqueue(self.upsert(object).1),
            Event::Delete(object) => self.enqueue(self.evict(&ObjectKey::of(object.meta()))),
        }
    }

    fn complete_list(&mut self) {
        let ctx = self.ctx;
        // Both are replaced, not cleared: they are as large as the list, and are seldom needed again.
        let listed = std::mem::take(&mut self.listed);
        let mut pending_keys = std::mem::take(&mut self.pending_keys);
        ctx.requests.keep_only(self.scope, &listed);
        ctx.undecodable.retain(self.scope, &listed);
        pending_keys.extend(ctx.cache.requests_listed(self.scope, &listed));
        ctx.metrics.retain_requests(self.scope, &listed, ctx.clock.now());
        self.enqueue(pending_keys);
        ctx.sync_state
            .mark_synced(CacheKind::Requests(self.scope.to_owned()));
    }

    /// Adds an object to the caches. Returns its key as the caches hold it, and the requests to reconcile.
    fn upsert(&self, object: MaybeDecoded) -> (ObjectKey, Vec<ObjectKey>) {
        let ctx = self.ctx;
        let key = ObjectKey::of(object.meta());
        // A request that only waits for another client's finalizer gets no token.
        if object.meta().deletion_timestamp.is_some() {
            let affected = self.evict(&key);
            return (key, affected);
        }
        match object.0 {
            Ok(request) => {
                ctx.undecodable.remove(&key);
                // The requests before the cache: the cache drops our own status once the watch shows it, and it must be there then.
                let (key, request) = ctx.requests.put(key, request);
                let affected = ctx.cache.request_applied(&key, &request);
                (key, affected)
            }
            Err(undecodable) => {
                let mut affected = self.evict(&key);
                ctx.undecodable.upsert(key.clone(), *undecodable);
                affected.push(key.clone());
                (key, affected)
            }
        }
    }

    /// Removes a request from the caches. Returns the requests to reconcile.
    fn evict(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        let ctx = self.ctx;
        ctx.requests.remove(key);
        ctx.undecodable.remove(key);
        // The cache before the metrics: a reconcile in flight checks the cache before it adds the request to the metrics.
        let affected = ctx.cache.request_deleted(key);
        ctx.metrics.remove_request(key, ctx.clock.now());
        affected
    }

    fn enqueue(&self, keys: impl IntoIterator<Item = ObjectKey>) {
        keys.into_iter().for_each(|key| self.ctx.enqueuer.request(key));
    }
}
