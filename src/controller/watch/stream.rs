//! Lists and watches: when each is restarted, and what metrics and log say about it.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::kubernetes::error::problem;
use crate::metrics::WatchMetrics;

/// Seconds after which the API server ends a watch, which is then resumed.
pub(super) const WATCH_SECONDS: u32 = 290;
/// Objects in a page of a list. All of a page are decoded at once: kube's 500 would be most of the memory of a small operator.
pub(super) const PAGE_SIZE: u32 = 100;
/// Silence after which a watch counts as dead. The API server sends a bookmark about once a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// Longest time for a list, and for the start of a watch.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch that the API server ends sooner than this is not resumed without a pause.
const MIN_WATCH_DURATION: Duration = Duration::from_secs(1);
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The watch that `begin` starts. If it could not be resumed, it is started again with a list: the API server was unavailable, and etcd may
/// have been restored from a snapshot. A watch from a resourceVersion that the snapshot lacks would be silent until that version is reached
/// again (<https://etcd.io/docs/v3.6/op-guide/recovery/#restoring-with-revision-bump>).
pub(super) fn relist_on_failed_resume<K, S>(
    begin: impl Fn() -> S,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>>
where
    S: Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
{
    let start = (begin().boxed(), WatchBackoff::default(), None);
    stream::unfold(
        (start, begin),
        |((mut watch, mut backoff, pause), begin)| async move {
            if let Some(pause) = pause {
                sleep(pause).await;
            }
            let event = watch.next().await?;
            let mut pause = None;
            match &event {
                // Comes before each attempt to list.
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

/// The pauses between attempts of a watch. kube's own grow to 30 s, and the 410 that follows an outage of the API server doubles them
/// again.
#[derive(Debug)]
pub(super) struct WatchBackoff(Duration);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self(MIN_PAUSE)
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(MAX_PAUSE);
        Some(pause)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Updates the watch metrics. After a failed list or watch start, only events from a new list mark it healthy; a resumed watch emits no
/// event.
pub(super) fn record_event<K>(
    watch_metrics: &mut WatchMetrics,
    event: &watcher::Result<watcher::Event<K>>,
    now: Timestamp,
) {
    match event {
        // Comes before each attempt to list.
        Ok(watcher::Event::Init) => {}
        Ok(_) => watch_metrics.alive(now),
        Err(watcher::Error::WatchError(_) | watcher::Error::WatchFailed(_)) => watch_metrics.failed(false),
        Err(_) => watch_metrics.failed(true),
    }
}

/// Logs that the watch of `resource` is restarted after `problem`.
pub(super) fn log_watch_error(resource: &str, problem: &str) {
    tracing::warn!(resource, "watch failed, restarting: {problem}");
}

/// What a watch shows.
pub(super) enum WatchSignal<K> {
    /// All objects.
    Listed(Vec<K>),
    /// An object was created or changed.
    Applied(K),
    /// An object was deleted.
    Deleted(K),
    /// The watch is alive.
    Bookmark,
}

/// Lists and watches all objects of a kind, and passes on every signal. kube's watcher does not pass on bookmarks, so that a watch on which
/// nothing happens cannot be distinguished from a dead one.
pub(super) async fn watch_with_bookmarks<K>(
    api: Api<K>,
    resource: &'static str,
    mut watch_metrics: WatchMetrics,
    clock: &Clock,
    mut on_signal: impl FnMut(WatchSignal<K>),
) where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut backoff = WatchBackoff::default();
    loop {
        let mut on_live_signal = |signal| {
            watch_metrics.alive(clock.now());
            on_signal(signal);
        };
        match list_and_watch(&api, clock, &mut on_live_signal, &mut backoff).await {
            Ok(()) => watch_metrics.failed(false),
            Err(error) => {
                watch_metrics.failed(true);
                log_watch_error(resource, &problem(&error));
            }
        }
        sleep(backoff.next().unwrap_or(MAX_PAUSE)).await;
    }
}

/// Returns once a new list is needed.
async fn list_and_watch<K>(
    api: &Api<K>,
    clock: &Clock,
    on_signal: &mut impl FnMut(WatchSignal<K>),
    backoff: &mut WatchBackoff,
) -> Result<(), kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let timed_out = |_| kube::Error::Service("the API server did not answer in time".into());
    let list = timeout(RESPONSE_TIMEOUT, api.list(&ListParams::default()))
        .await
        .map_err(timed_out)??;
    let mut version = list.metadata.resource_version.unwrap_or_default();
    on_signal(WatchSignal::Listed(list.items));
    let params = WatchParams {
        timeout: Some(WATCH_SECONDS),
        ..WatchParams::default()
    };
    loop {
        let started = clock.monotonic();
        let watch = timeout(RESPONSE_TIMEOUT, api.watch(&params, &version))
            .await
            .map_err(timed_out)??;
        let mut events = pin!(watch);
        loop {
            let event = match timeout(IDLE_TIMEOUT, events.try_next()).await {
                Err(_) => return Ok(()),
                Ok(event) => event?,
            };
            let Some(event) = event else {
                if clock.monotonic() - started < MIN_WATCH_DURATION {
                    return Ok(());
                }
                break;
            };
            backoff.reset();
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    version = object.resource_version().unwrap_or(version);
                    on_signal(WatchSignal::Applied(object));
                }
                WatchEvent::Deleted(object) => {
                    version = object.resource_version().unwrap_or(version);
                    on_signal(WatchSignal::Deleted(object));
                }
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    on_signal(WatchSignal::Bookmark);
                }
                // 410 Gone: the API server no longer has the events since this version.
                WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    type Event = watcher::Result<watcher::Event<()>>;

    fn service_error() -> kube::Error {
        kube::Error::Service("unavailable".into())
    }

    #[tokio::test]
    async fn only_a_watch_that_cannot_be_resumed_is_started_again() {
        let started = Cell::new(0);
        let begin = || {
            started.set(started.get() + 1);
            let events: Vec<Event> = vec![
                Ok(watcher::Event::Apply(())),
                Err(watcher::Error::WatchFailed(service_error())),
                Ok(watcher::Event::Apply(())),
                Err(watcher::Error::WatchStartFailed(service_error())),
            ];
            stream::iter(events)
        };
        let mut watch = pin!(relist_on_failed_resume(begin));
        for expected in [1, 1, 1, 2, 2, 2, 2, 3] {
            assert!(watch.next().await.is_some());
            assert_eq!(started.get(), expected);
        }
    }

    #[test]
    fn pauses_grow_to_a_limit_until_a_success() {
        let mut backoff = WatchBackoff::default();
        let pauses: Vec<_> = backoff.by_ref().take(7).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next(), Some(MIN_PAUSE));
    }
}
