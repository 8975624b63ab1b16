//! What flows in: each watch feeds the caches and names the requests to reconcile.

mod decode;
pub mod foreign_secrets;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, ListParams, PartialObjectMeta, WatchEvent, WatchParams};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch::Sender;

use crate::api::ObjectKey;
use crate::api::v1alpha1::{IdTokenGrant, IdTokenRequest};
use crate::controller::Context;
use crate::controller::watch::decode::{self as unreadable, Shown, Unreadable};
use crate::grants::store::{Watched, read_file};
use crate::kubernetes::error::{problem, watch_problem};
use crate::kubernetes::secret_summary::SecretSummary;
use crate::metrics::{GrantOrigin, WatchMetrics};
use crate::text::redacted;

/// Seconds after which the API server ends a watch, so that it begins anew.
pub(crate) const WATCH_SECONDS: u32 = 290;
/// Silence after which a watch is taken for dead: the API server sends a bookmark about once a minute.
const SILENCE: Duration = Duration::from_secs(150);
/// Objects a page of a list: each is decoded whole, and pages of kube's 500 would be most of what a small operator needs.
const PAGE: u32 = 100;
/// Longest time for a list, and for the beginning of a watch.
const ANSWER: Duration = Duration::from_secs(30);
/// How often the wall clock is compared with the timers' clock, and by how much they may part.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FILE_INTERVAL: Duration = Duration::from_secs(2);

/// Where the watches put the requests to reconcile.
#[derive(Clone, Debug)]
pub(crate) struct Enqueuer {
    one: UnboundedSender<ObjectKey>,
    all: UnboundedSender<Scope>,
}

/// Which requests are to be looked at.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    /// Every one.
    Everything,
    /// Those of a namespace.
    Namespace(String),
}

impl Enqueuer {
    /// `one` takes single requests, `all` that many are to be looked at.
    pub(crate) fn new(one: UnboundedSender<ObjectKey>, all: UnboundedSender<Scope>) -> Self {
        Self { one, all }
    }

    /// Has one request looked at.
    pub(crate) fn request(&self, key: ObjectKey) {
        // Fails only when the operator is about to end.
        let _ = self.one.send(key);
    }

    fn everything(&self) {
        let _ = self.all.send(Scope::Everything);
    }

    fn namespace(&self, name: String) {
        let _ = self.all.send(Scope::Namespace(name));
    }
}

/// The caches that must be filled before the first decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CacheKind {
    /// IdTokenRequests of a namespace, or of all where its name is empty.
    Requests(String),
    /// Secrets with our label, likewise.
    Secrets(String),
    /// IdTokenGrants.
    Grants,
    /// Namespaces.
    Namespaces,
}

/// Which caches have been filled.
pub(crate) type SyncState = Sender<HashSet<CacheKind>>;

fn fill(filled: &SyncState, cache: CacheKind) {
    filled.send_if_modified(|done| done.insert(cache));
}

fn within<K>(ctx: &Context, scope: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match scope {
        "" => Api::all(ctx.client.clone()),
        namespace => Api::namespaced(ctx.client.clone(), namespace),
    }
}

/// Watches the IdTokenRequests of a namespace, or of all where `scope` is empty, into the store and the index.
pub(crate) async fn requests(ctx: Arc<Context>, scope: String, triggers: Enqueuer, filled: SyncState) {
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    if let Some(selector) = ctx.settings.shard.selector() {
        config = config.labels(selector);
    }
    let mut stream = pin!(steady(|| watcher(within::<Shown>(&ctx, &scope), config.clone())));
    // Enqueued when a list is whole. Kept when it fails halfway: the cache has stored these already.
    let mut waiting: HashSet<ObjectKey> = HashSet::new();
    let mut telling = ctx.metrics.watch("idtokenrequests");
    while let Some(event) = stream.next().await {
        note(&mut telling, &event);
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if matches!(error, watcher::Error::WatchStartFailed(_)) {
                    ctx.cache.mark_stale(&scope);
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
                if !listing {
                    waiting.drain().for_each(|key| triggers.request(key));
                }
                if !deleted {
                    tokio::spawn(unreadable::tell(ctx.clone(), object));
                }
                continue;
            }
        };
        match event {
            watcher::Event::Init => ctx.cache.begin_request_relist(&scope),
            watcher::Event::InitApply(object) => waiting.extend(taken_in(&ctx, object)),
            watcher::Event::InitDone => {
                let ended = ctx.cache.end_request_relist(&scope);
                for key in &ended.gone {
                    ctx.metrics.remove_request(key, Timestamp::now());
                }
                waiting.extend(ended.affected);
                waiting.drain().for_each(|key| triggers.request(key));
                waiting = HashSet::new();
                fill(&filled, CacheKind::Requests(scope.clone()));
            }
            watcher::Event::Apply(object) => {
                let affected = taken_in(&ctx, object);
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

/// Stores a request in the cache. Returns the requests to reconcile.
fn taken_in(ctx: &Context, object: IdTokenRequest) -> Vec<ObjectKey> {
    // One that waits for another client's finalizer gets no token any more.
    match object.metadata.deletion_timestamp {
        Some(_) => dropped(ctx, &ObjectKey::of(&object.metadata)),
        None => ctx.cache.upsert_request(object),
    }
}

fn dropped(ctx: &Context, key: &ObjectKey) -> Vec<ObjectKey> {
    // The cache first: a reconcile in flight checks it after it has added to the metrics.
    let affected = ctx.cache.remove_request(key);
    ctx.metrics.remove_request(key, Timestamp::now());
    affected
}

/// Watches the metadata of the Secrets that carry our label, in a namespace, or in all where `scope` is empty.
pub(crate) async fn secrets(ctx: Arc<Context>, scope: String, triggers: Enqueuer, filled: SyncState) {
    let api = within::<PartialObjectMeta<Secret>>(&ctx, &scope);
    let config = watcher::Config::default()
        .labels(&ctx.settings.shard.secrets())
        .timeout(WATCH_SECONDS)
        .page_size(PAGE);
    let mut stream = pin!(steady(|| watcher(api.clone(), config.clone())));
    let concerned = |key: &ObjectKey, meta: &SecretSummary| {
        if let Some(request) = &meta.request {
            triggers.request(ObjectKey::new(key.namespace(), request));
        }
        for claimant in ctx.cache.claimants(key) {
            triggers.request(claimant);
        }
    };
    let mut telling = ctx.metrics.watch("secrets");
    while let Some(event) = stream.next().await {
        note(&mut telling, &event);
        match event {
            Ok(watcher::Event::Init) => ctx.cache.begin_secret_relist(&scope),
            Ok(watcher::Event::InitApply(secret) | watcher::Event::Apply(secret)) => {
                let (key, meta) = (
                    ObjectKey::of(&secret.metadata),
                    SecretSummary::from(&secret.metadata),
                );
                if ctx.cache.upsert_secret(key.clone(), &meta) {
                    concerned(&key, &meta);
                }
            }
            Ok(watcher::Event::InitDone) => {
                for (key, meta) in ctx.cache.end_secret_relist(&scope) {
                    concerned(&key, &meta);
                }
                fill(&filled, CacheKind::Secrets(scope.clone()));
            }
            Ok(watcher::Event::Delete(secret)) => {
                let (key, meta) = (
                    ObjectKey::of(&secret.metadata),
                    SecretSummary::from(&secret.metadata),
                );
                // Also where it was unknown: a request may wait for somebody else's Secret to go.
                ctx.cache.delete_secret(&key, &meta.resource_version);
                concerned(&key, &meta);
            }
            Err(error) => failed("secrets", &watch_problem(&error)),
        }
    }
}

/// The watch that `begin` makes, begun anew with a list whenever it could not be resumed: the API server was away, and where etcd was
/// restored from a snapshot meanwhile, a watch from a resourceVersion of the lost future would be silent until that is reached again
/// (<https://etcd.io/docs/v3.6/op-guide/recovery/#restoring-with-revision-bump>).
fn steady<K, S>(begin: impl Fn() -> S) -> impl Stream<Item = watcher::Result<watcher::Event<K>>>
where
    S: Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
{
    let start = (begin().boxed(), WatchBackoff::default(), None);
    stream::unfold(
        (start, begin),
        |((mut watch, mut backoff, pause), begin)| async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            let event = watch.next().await?;
            let mut pause = None;
            match &event {
                // Comes before every try of a list.
                Ok(watcher::Event::Init) => {}
                Ok(_) => backoff.reset(),
                Err(error) => {
                    pause = backoff.next();
                    if matches!(error, watcher::Error::WatchStartFailed(_)) {
                        watch = begin().boxed();
                    }
                }
            }
            Some((event, ((watch, backoff, pause), begin)))
        },
    )
}

/// The pauses between tries of a watch: kube's own grow to 30 s, and the 410 that follows an outage of the API server doubles them once
/// more.
#[derive(Debug)]
pub(crate) struct WatchBackoff(Duration);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self(SHORTEST_PAUSE)
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Has the metrics tell of an event. After a list that broke off, or a watch that could not be begun, only what comes from a new list
/// shows that it works again; a watch that broke off is mostly resumed, of which there is no event.
fn note<K>(telling: &mut WatchMetrics, event: &watcher::Result<watcher::Event<K>>) {
    match event {
        // Comes before every try of a list.
        Ok(watcher::Event::Init) => {}
        Ok(_) => telling.alive(Timestamp::now()),
        Err(watcher::Error::WatchError(_) | watcher::Error::WatchFailed(_)) => telling.failed(false),
        Err(_) => telling.failed(true),
    }
}

fn failed(resource: &str, problem: &str) {
    tracing::warn!(resource, "the watch failed and is begun anew: {problem}");
}

/// Watches IdTokenGrants.
pub(crate) async fn grants(ctx: Arc<Context>, triggers: Enqueuer, filled: SyncState) {
    // A grant that cannot be read grants nothing: what this version does not know may be what narrows it.
    let read = |grant: DeserializeGuard<IdTokenGrant>| {
        grant
            .0
            .inspect_err(|error| {
                let name = error.metadata.name.as_deref().unwrap_or_default();
                let problem = redacted(&error.to_string(), 400);
                tracing::error!(
                    name,
                    "an IdTokenGrant cannot be read and grants nothing: {problem}"
                );
            })
            .ok()
    };
    let api: Api<DeserializeGuard<IdTokenGrant>> = Api::all(ctx.client.clone());
    let telling = ctx.metrics.watch("idtokengrants");
    live(api, "idtokengrants", telling, |event| {
        let changed = match event {
            Live::Listed(grants) => {
                ctx.grants
                    .set_objects(grants.into_iter().filter_map(read).collect());
                true
            }
            Live::Applied(grant) => {
                let name = grant.name_any();
                match read(grant) {
                    // Not for the status, which is our own.
                    Some(grant) => ctx.grants.apply(grant),
                    None => {
                        ctx.grants.delete(&name);
                        true
                    }
                }
            }
            Live::Deleted(grant) => {
                ctx.grants.delete(&grant.name_any());
                true
            }
            Live::Alive => false,
        };
        ctx.grants.seen(Watched::Grants, Timestamp::now());
        ctx.metrics.set_grants(GrantOrigin::Object, ctx.grants.objects());
        fill(&filled, CacheKind::Grants);
        if changed {
            triggers.everything();
        }
    })
    .await;
}

/// Watches the labels of namespaces.
pub(crate) async fn namespaces(ctx: Arc<Context>, triggers: Enqueuer, filled: SyncState) {
    let labels = |namespace: PartialObjectMeta<Namespace>| -> (String, BTreeMap<String, String>) {
        (
            namespace.metadata.name.unwrap_or_default(),
            namespace.metadata.labels.unwrap_or_default(),
        )
    };
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(ctx.client.clone());
    let telling = ctx.metrics.watch("namespaces");
    live(api, "namespaces", telling, |event| {
        match event {
            Live::Listed(namespaces) => {
                ctx.cache.set_terminating_namespaces(
                    namespaces
                        .iter()
                        .filter(|namespace| is_ending(namespace))
                        .map(ResourceExt::name_any)
                        .collect(),
                );
                ctx.grants
                    .set_namespaces(namespaces.into_iter().map(labels).collect());
                triggers.everything();
            }
            Live::Applied(namespace) => {
                ctx.cache
                    .set_terminating(&namespace.name_any(), is_ending(&namespace));
                let (name, labels) = labels(namespace);
                if ctx.grants.set_namespace(&name, Some(labels)) {
                    triggers.namespace(name);
                }
            }
            Live::Deleted(namespace) => {
                ctx.cache.set_terminating(&namespace.name_any(), false);
                ctx.grants.set_namespace(&namespace.name_any(), None);
            }
            Live::Alive => {}
        }
        ctx.grants.seen(Watched::Namespaces, Timestamp::now());
        fill(&filled, CacheKind::Namespaces);
    })
    .await;
}

fn is_ending(namespace: &PartialObjectMeta<Namespace>) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}

enum Live<K> {
    Listed(Vec<K>),
    Applied(K),
    Deleted(K),
    Alive,
}

/// Lists and watches, and passes on each sign of life: kube's own watcher keeps the bookmarks to itself, so that a watch on which
/// nothing happens could not be told from a dead one.
async fn live<K>(
    api: Api<K>,
    resource: &'static str,
    mut telling: WatchMetrics,
    mut sink: impl FnMut(Live<K>),
) where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut backoff = WatchBackoff::default();
    loop {
        let mut heard = |event| {
            telling.alive(Timestamp::now());
            sink(event);
        };
        match list_and_watch(&api, &mut heard, &mut backoff).await {
            Ok(()) => telling.failed(false),
            Err(error) => {
                telling.failed(true);
                failed(resource, &problem(&error));
            }
        }
        tokio::time::sleep(backoff.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}

async fn list_and_watch<K>(
    api: &Api<K>,
    sink: &mut impl FnMut(Live<K>),
    backoff: &mut WatchBackoff,
) -> Result<(), kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let late = |_| kube::Error::Service("the API server did not answer in time".into());
    let list = tokio::time::timeout(ANSWER, api.list(&ListParams::default()))
        .await
        .map_err(late)??;
    let mut version = list.metadata.resource_version.unwrap_or_default();
    sink(Live::Listed(list.items));
    let params = WatchParams {
        timeout: Some(WATCH_SECONDS),
        ..WatchParams::default()
    };
    loop {
        let begun = Instant::now();
        let watch = tokio::time::timeout(ANSWER, api.watch(&params, &version))
            .await
            .map_err(late)??;
        let mut events = pin!(watch);
        loop {
            let event = match tokio::time::timeout(SILENCE, events.try_next()).await {
                Err(_) => return Ok(()),
                Ok(event) => event?,
            };
            let Some(event) = event else {
                // An API server that ends each watch at once is not asked in a loop.
                if begun.elapsed() < Duration::from_secs(1) {
                    return Ok(());
                }
                break;
            };
            backoff.reset();
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    version = object.resource_version().unwrap_or(version);
                    sink(Live::Applied(object));
                }
                WatchEvent::Deleted(object) => {
                    version = object.resource_version().unwrap_or(version);
                    sink(Live::Deleted(object));
                }
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    sink(Live::Alive);
                }
                // 410 Gone: what happened since is no longer known, so list anew.
                WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            }
        }
    }
}

/// Has every request looked at after a step of the wall clock: timers do not count the time that a machine sleeps, and do not follow a
/// clock that is set.
pub(crate) async fn clock(ctx: Arc<Context>, triggers: Enqueuer) {
    let now = || (Timestamp::now(), Instant::now());
    let mut before = now();
    loop {
        tokio::time::sleep(CLOCK_INTERVAL).await;
        ctx.federated.sweep();
        let after = now();
        let wall = after.0.duration_since(before.0);
        let timers = jiff::SignedDuration::try_from(after.1.duration_since(before.1)).unwrap_or_default();
        if (wall - timers).unsigned_abs() > CLOCK_TOLERANCE {
            tracing::warn!(
                seconds = (wall - timers).as_secs(),
                "the clock was set, or the machine slept"
            );
            triggers.everything();
        }
        before = after;
    }
}

/// Reads the grants file again whenever it changed. A file that cannot be read or parsed leaves the grants as they were, which is said
/// once a change.
pub(crate) async fn grants_file(ctx: Arc<Context>, path: PathBuf, triggers: Enqueuer) {
    // Read once more at the start: it may have changed since the flags were read, and a grant that was taken away must not be missed.
    let mut known = None;
    let mut ticks = tokio::time::interval(FILE_INTERVAL);
    loop {
        ticks.tick().await;
        // Compared by content: a mounted ConfigMap is swapped by a symbolic link, whose times say little.
        let content = tokio::fs::read(&path).await.ok();
        if content == known {
            continue;
        }
        match read_file(&path) {
            Ok(grants) => {
                tracing::info!(path = %path.display(), grants = grants.len(), "the grants file was read again");
                ctx.metrics.set_grants(GrantOrigin::File, grants.len());
                ctx.grants.set_file(grants);
                triggers.everything();
            }
            Err(error) => {
                tracing::error!(path = %path.display(), "the grants file changed and is not used: {error}")
            }
        }
        known = content;
    }
}
