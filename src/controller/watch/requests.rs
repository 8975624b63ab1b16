//! The watch of IdTokenRequests.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::sleep;

use crate::api::ObjectKey;
use crate::api::v1alpha1::IdTokenRequest;
use crate::controller::watch::context::{WatchContext, collection};
use crate::controller::watch::decode::MaybeDecoded;
use crate::controller::watch::stream::{self, Event, Watched};
use crate::controller::watch::sync_state::CacheKind;
use crate::kubernetes::list_watch::Collection;

/// How often it is checked whether freed memory calls for a relist. A request without memory has only a marker, so its spec must be listed
/// again.
const RELIST_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Watches the IdTokenRequests of the namespace `scope`, or of all if `scope` is empty.
pub(super) async fn watch(ctx: WatchContext, scope: String) {
    let requests = Collection {
        labels: ctx.shard.selector().map(ToOwned::to_owned),
        ..collection::<IdTokenRequest>(&scope)
    };
    let mut handler = Handler::new(&ctx, &scope);
    loop {
        let watching = stream::watch(&ctx, &requests, |event| handler.handle(event));
        tokio::select! {
            biased;
            () = watching => return,
            // Then it is listed again.
            () = until_relist_is_needed(&ctx, &scope) => {}
        }
    }
}

/// Returns once memory was freed for requests of which no spec is kept.
async fn until_relist_is_needed(ctx: &WatchContext, scope: &str) {
    loop {
        sleep(RELIST_CHECK_INTERVAL).await;
        if ctx.cache.needs_request_relist(scope) {
            return;
        }
    }
}

struct Handler<'a> {
    ctx: &'a WatchContext,
    scope: &'a str,
    /// Enqueued once the list is complete. Kept if the list fails halfway: the caches hold what it has shown.
    pending_keys: HashSet<ObjectKey>,
}

impl<'a> Handler<'a> {
    fn new(ctx: &'a WatchContext, scope: &'a str) -> Self {
        Self {
            ctx,
            scope,
            pending_keys: HashSet::new(),
        }
    }

    fn handle(&mut self, event: Event<MaybeDecoded>) {
        match event {
            Event::ListBegins => self.ctx.cache.begin_request_relist(self.scope),
            Event::Listed(object) => {
                let affected = self.upsert(object);
                self.pending_keys.extend(affected);
            }
            Event::ListEnds => self.complete_list(),
            Event::Applied(object) => self.enqueue(self.upsert(object)),
            Event::Deleted(object) => self.enqueue(self.evict(&ObjectKey::of(object.meta()))),
            Event::Bookmark => {}
            Event::WatchBegins => self.ctx.mark_watched(&self.cache()),
            Event::Refused(problem) => self.ctx.mark_refused(self.cache(), &problem),
            Event::Lost => self.ctx.cache.mark_stale(self.scope),
        }
    }

    fn complete_list(&mut self) {
        let ctx = self.ctx;
        // Replaced, not cleared: it is as large as the list, and is seldom needed again.
        let mut pending_keys = std::mem::take(&mut self.pending_keys);
        let ended = ctx.cache.end_request_relist(self.scope);
        for key in &ended.gone {
            ctx.metrics.remove_request(key, ctx.clock.now());
        }
        pending_keys.extend(self.still_cached(ended.affected));
        self.enqueue(pending_keys);
        ctx.mark_synced(self.cache());
    }

    fn cache(&self) -> CacheKind {
        CacheKind::Requests(self.scope.to_owned())
    }

    /// Stores an object in the caches. Returns the requests to reconcile.
    fn upsert(&self, object: MaybeDecoded) -> Vec<ObjectKey> {
        let ctx = self.ctx;
        let key = ObjectKey::of(object.meta());
        // A request that only waits for another client's finalizer gets no token.
        if object.meta().deletion_timestamp.is_some() {
            return self.evict(&key);
        }
        self.still_cached(match object.0 {
            Ok(request) => ctx.cache.upsert_request(request),
            Err(unserved) => {
                ctx.metrics.watch(MaybeDecoded::RESOURCE).count_undecodable();
                ctx.cache.upsert_unserved(*unserved)
            }
        })
    }

    /// The `keys` that are still cached. Removes the others from the metrics.
    fn still_cached(&self, mut keys: Vec<ObjectKey>) -> Vec<ObjectKey> {
        let ctx = self.ctx;
        keys.retain(|key| {
            let is_kept = ctx.cache.has_request(key);
            if !is_kept {
                ctx.metrics.remove_request(key, ctx.clock.now());
            }
            is_kept
        });
        keys
    }

    /// Removes a request from the caches. Returns the requests to reconcile.
    fn evict(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        let ctx = self.ctx;
        // The cache before the metrics: a reconcile in flight checks the cache after it has added the request to the metrics.
        let affected = ctx.cache.remove_request(key);
        ctx.metrics.remove_request(key, ctx.clock.now());
        self.still_cached(affected)
    }

    fn enqueue(&self, keys: impl IntoIterator<Item = ObjectKey>) {
        keys.into_iter().for_each(|key| self.ctx.enqueuer.request(key));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::time::timeout;

    use super::*;

    fn object(name: &str, spec: Value) -> MaybeDecoded {
        let metadata =
            json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1", "generation": 1});
        let object = json!({"metadata": metadata, "spec": spec});
        MaybeDecoded::decode(&object.to_string()).unwrap()
    }

    fn decodable(name: &str) -> MaybeDecoded {
        object(name, json!({"audience": "https://a.run.app"}))
    }

    fn undecodable(name: &str) -> MaybeDecoded {
        object(name, json!({"audience": 7}))
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    fn drained(enqueued: &mut UnboundedReceiver<ObjectKey>) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(key) = enqueued.try_recv() {
            names.push(key.name().to_owned());
        }
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_list_is_enqueued_once_it_is_complete_and_evicts_what_it_lacks() {
        let (ctx, mut enqueued) = WatchContext::empty();
        let mut handler = Handler::new(&ctx, "");
        let list = |handler: &mut Handler, objects: Vec<MaybeDecoded>| {
            handler.handle(Event::ListBegins);
            for object in objects {
                handler.handle(Event::Listed(object));
            }
        };
        // Fails halfway: what it has shown is reconciled after the next list, although that shows nothing new.
        list(&mut handler, vec![decodable("a"), undecodable("b")]);
        assert_eq!(drained(&mut enqueued), Vec::<String>::new());
        list(&mut handler, vec![decodable("a"), undecodable("b")]);
        handler.handle(Event::ListEnds);
        assert_eq!(drained(&mut enqueued), ["a", "b"]);
        assert!(ctx.cache.has_request(&key("a")) && ctx.cache.has_request(&key("b")));

        list(&mut handler, Vec::new());
        handler.handle(Event::ListEnds);
        assert_eq!(ctx.cache.request_keys(""), []);
        assert_eq!(drained(&mut enqueued), Vec::<String>::new());
        let synced = ctx.sync_state.wait_for_sync(&ctx.shard);
        assert!(
            timeout(Duration::from_millis(10), synced).await.is_err(),
            "the requests alone are synced"
        );
    }

    #[tokio::test]
    async fn a_request_is_either_decodable_or_not() {
        let (ctx, mut enqueued) = WatchContext::empty();
        let mut handler = Handler::new(&ctx, "");
        let is_decoded = || ctx.cache.snapshot(&key("a")).map(|(object, _)| object.is_ok());
        handler.handle(Event::Applied(undecodable("a")));
        assert_eq!(is_decoded(), Some(false));
        handler.handle(Event::Applied(decodable("a")));
        assert_eq!(is_decoded(), Some(true));
        handler.handle(Event::Applied(undecodable("a")));
        assert_eq!(is_decoded(), Some(false));
        assert_eq!(drained(&mut enqueued), ["a", "a", "a"]);
        let mut terminating = undecodable("a");
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(ctx.clock.now());
        if let Err(object) = &mut terminating.0 {
            object.metadata.deletion_timestamp = Some(now);
        }
        handler.handle(Event::Applied(terminating));
        assert_eq!(is_decoded(), None);
        handler.handle(Event::Applied(undecodable("a")));
        handler.handle(Event::Deleted(undecodable("a")));
        assert_eq!(is_decoded(), None);
    }
}
