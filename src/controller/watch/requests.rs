//! The watch of IdTokenRequests.

use std::collections::HashSet;
use std::pin::pin;

use futures::StreamExt;
use kube::Resource;
use kube::runtime::watcher::{self, Event, watcher};

use crate::api::ObjectKey;
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
                    ctx.cache.mark_stale(&scope);
                }
                log_watch_error(RESOURCE, &watch_problem(&error));
            }
        }
    }
}

struct Handler<'a> {
    ctx: &'a WatchContext,
    scope: &'a str,
    /// The requests of a list that cannot be decoded.
    undecodable: HashSet<ObjectKey>,
    /// Enqueued once the list is complete. Kept if the list fails halfway: the caches hold what it has shown.
    pending_keys: HashSet<ObjectKey>,
}

impl<'a> Handler<'a> {
    fn new(ctx: &'a WatchContext, scope: &'a str) -> Self {
        Self {
            ctx,
            scope,
            undecodable: HashSet::new(),
            pending_keys: HashSet::new(),
        }
    }

    fn handle(&mut self, event: Event<MaybeDecoded>) {
        match event {
            Event::Init => {
                self.undecodable.clear();
                self.ctx.cache.begin_request_relist(self.scope);
            }
            Event::InitApply(object) => {
                if object.0.is_err() {
                    self.undecodable.insert(ObjectKey::of(object.meta()));
                }
                let affected = self.upsert(object);
                self.pending_keys.extend(affected);
            }
            Event::InitDone => self.complete_list(),
            Event::Apply(object) => self.enqueue(self.upsert(object)),
            Event::Delete(object) => self.enqueue(self.evict(&ObjectKey::of(object.meta()))),
        }
    }

    fn complete_list(&mut self) {
        let ctx = self.ctx;
        // Replaced, not cleared: it is as large as the list, and is seldom needed again.
        let mut pending_keys = std::mem::take(&mut self.pending_keys);
        ctx.undecodable
            .retain(self.scope, &std::mem::take(&mut self.undecodable));
        let ended = ctx.cache.end_request_relist(self.scope);
        for key in &ended.gone {
            ctx.metrics.remove_request(key, ctx.clock.now());
        }
        pending_keys.extend(ended.affected);
        self.enqueue(pending_keys);
        ctx.sync_state
            .mark_synced(CacheKind::Requests(self.scope.to_owned()));
    }

    /// Stores an object in the caches. Returns the requests to reconcile.
    fn upsert(&self, object: MaybeDecoded) -> Vec<ObjectKey> {
        let ctx = self.ctx;
        let key = ObjectKey::of(object.meta());
        // A request that only waits for another client's finalizer gets no token.
        if object.meta().deletion_timestamp.is_some() {
            return self.evict(&key);
        }
        match object.0 {
            Ok(request) => {
                ctx.undecodable.remove(&key);
                ctx.cache.upsert_request(request)
            }
            Err(undecodable) => {
                let mut affected = self.evict(&key);
                ctx.undecodable.upsert(key.clone(), *undecodable);
                affected.push(key);
                affected
            }
        }
    }

    /// Removes a request from the caches. Returns the requests to reconcile.
    fn evict(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        let ctx = self.ctx;
        ctx.undecodable.remove(key);
        // The cache before the metrics: a reconcile in flight checks the cache after it has added the request to the metrics.
        let affected = ctx.cache.remove_request(key);
        ctx.metrics.remove_request(key, ctx.clock.now());
        affected
    }

    fn enqueue(&self, keys: impl IntoIterator<Item = ObjectKey>) {
        keys.into_iter().for_each(|key| self.ctx.enqueuer.request(key));
    }
}
