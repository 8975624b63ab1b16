//! Lists and watches: when each is begun again, and what metrics and log say of it.

use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::kubernetes::error::problem;
use crate::metrics::WatchMetrics;

/// Seconds after which the API server ends a watch, so that it begins anew.
pub(crate) const WATCH_SECONDS: u32 = 290;
/// Silence after which a watch is taken for dead: the API server sends a bookmark about once a minute.
const SILENCE: Duration = Duration::from_secs(150);
/// Objects a page of a list: each is decoded whole, and pages of kube's 500 would be most of what a small operator needs.
pub(super) const PAGE: u32 = 100;
/// Longest time for a list, and for the beginning of a watch.
const ANSWER: Duration = Duration::from_secs(30);
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The watch that `begin` makes, begun anew with a list whenever it could not be resumed: the API server was away, and where etcd was
/// restored from a snapshot meanwhile, a watch from a resourceVersion of the lost future would be silent until that is reached again
/// (<https://etcd.io/docs/v3.6/op-guide/recovery/#restoring-with-revision-bump>).
pub(super) fn steady<K, S>(begin: impl Fn() -> S) -> impl Stream<Item = watcher::Result<watcher::Event<K>>>
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
pub(super) fn note<K>(telling: &mut WatchMetrics, event: &watcher::Result<watcher::Event<K>>) {
    match event {
        // Comes before every try of a list.
        Ok(watcher::Event::Init) => {}
        Ok(_) => telling.alive(Timestamp::now()),
        Err(watcher::Error::WatchError(_) | watcher::Error::WatchFailed(_)) => telling.failed(false),
        Err(_) => telling.failed(true),
    }
}

pub(super) fn failed(resource: &str, problem: &str) {
    tracing::warn!(resource, "the watch failed and is begun anew: {problem}");
}

pub(super) enum Live<K> {
    Listed(Vec<K>),
    Applied(K),
    Deleted(K),
    Alive,
}

/// Lists and watches, and passes on each sign of life: kube's own watcher keeps the bookmarks to itself, so that a watch on which
/// nothing happens could not be told from a dead one.
pub(super) async fn live<K>(
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
