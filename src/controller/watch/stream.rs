//! Lists and watches: the size of their pages, how each goes on, when it is restarted, and what metrics and log say about it.
//!
//! An object that cannot be decoded is counted and dropped; the list or watch goes on without it.

use std::time::Duration;

use kube::Client;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::sleep;

use crate::clock::Clock;
use crate::controller::watch::context::WatchContext;
use crate::kubernetes::answer::is_no_answer;
use crate::kubernetes::error::{problem, status_code};
use crate::kubernetes::list_watch::{Change, Collection, ObjectJson, Page, Watch};
use crate::metrics::WatchMetrics;
use crate::text::redacted;

/// Most objects in a page of a list.
const MAX_PAGE_SIZE: u32 = 100;
/// Bytes of a page beyond which the next one has half as many objects.
const LARGE_PAGE: usize = 4 << 20;
/// Bytes of a page up to which the next one may have twice as many objects.
const SMALL_PAGE: usize = 1 << 20;
/// After so many bytes of objects, others get a turn: decoding is fast, and a page can be large.
const TURN: usize = 64 << 10;
/// A watch that the API server ends sooner than this is not resumed without a pause.
const MIN_WATCH_DURATION: Duration = Duration::from_secs(1);
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What a watch shows of an object, decoded.
pub(super) trait Watched: Sized {
    /// The plural resource.
    const RESOURCE: &'static str;

    /// Decodes an object from JSON.
    ///
    /// # Errors
    /// The JSON is no such object.
    fn decode(json: &str) -> Result<Self, serde_json::Error>;

    /// `metadata.resourceVersion`, if it is decoded: then the JSON is not read once more for it.
    fn resource_version(&self) -> Option<&str> {
        None
    }
}

/// What a watch shows.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// A list begins. It may fail halfway, and begin again.
    ListBegins,
    /// An object of the list.
    Listed(T),
    /// All objects that can be decoded have been listed.
    ListEnds,
    /// An object was created or changed.
    Applied(T),
    /// An object was deleted.
    Deleted(T),
    /// The watch is alive.
    Bookmark,
    /// The API server has accepted the watch that follows a list.
    WatchBegins,
    /// The watch cannot be resumed: what it has shown may be stale until the next list ends.
    Lost,
    /// The API server answers, and refuses this list or watch with the code and message given here.
    Refused(String),
}

/// Lists and watches `collection`, and passes on every event. Never returns.
///
/// If the watch cannot be resumed, it is started again with a list: the API server was unavailable, and etcd may have been restored from a
/// snapshot. A watch from a resourceVersion that the snapshot lacks would be silent until that version is reached again
/// (<https://etcd.io/docs/v3.6/op-guide/recovery/#restoring-with-revision-bump>). A watch that is silent for too long is listed again, too.
pub(super) async fn watch<T: Watched>(
    ctx: &WatchContext,
    collection: &Collection,
    on_event: impl FnMut(Event<T>),
) {
    let mut stream = Stream {
        clock: &ctx.clock,
        collection,
        metrics: ctx.metrics.watch(T::RESOURCE),
        backoff: Backoff::default(),
        page_size: MAX_PAGE_SIZE,
        last_logged: None,
        on_event,
    };
    loop {
        match ctx.connections.slot() {
            Ok(slot) => {
                stream.list_and_watch::<T>(slot.client()).await;
                slot.give_up();
            }
            Err(error) => stream.pause_after::<T>(&error, true).await,
        }
    }
}

struct Stream<'a, F> {
    clock: &'a Clock,
    collection: &'a Collection,
    metrics: WatchMetrics,
    backoff: Backoff,
    page_size: u32,
    /// The last logged problem, so that one that repeats is logged once.
    last_logged: Option<String>,
    on_event: F,
}

/// Whether the API server answers and refuses this call, as opposed to an outage, an overload, a credential that is refused everywhere, and
/// what a retry may fix.
fn is_refusal(error: &kube::Error) -> bool {
    status_code(error).is_some_and(|code| matches!(code, 400 | 402..=407 | 411..=428 | 430..=500))
}

/// What every kind of object has. Read where nothing else can be: each field counts for itself.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Identity<'a> {
    #[serde(borrow)]
    namespace: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    resource_version: Option<&'a RawValue>,
}

impl<'a> Identity<'a> {
    fn of(json: &'a str) -> Self {
        #[derive(Deserialize)]
        struct Object<'a> {
            #[serde(borrow)]
            metadata: Identity<'a>,
        }
        serde_json::from_str(json).map_or_else(|_| Self::default(), |object: Object<'a>| object.metadata)
    }
}

/// The text; empty if it is none.
fn text(json: Option<&RawValue>) -> String {
    let text = json.and_then(|json| serde_json::from_str(json.get()).ok());
    text.unwrap_or_default()
}

impl<F> Stream<'_, F> {
    /// Returns, after a pause, when no answer began in time.
    async fn list_and_watch<T: Watched>(&mut self, client: &Client)
    where
        F: FnMut(Event<T>),
    {
        loop {
            let failed = match self.list(client).await {
                Ok(version) => self.follow_from(client, version).await.err(),
                Err(error) => Some(error),
            };
            let Some(error) = failed else { continue };
            self.pause_after::<T>(&error, true).await;
            if is_no_answer(&error) {
                return;
            }
        }
    }

    /// Watches what follows `version`, until a new list is needed.
    ///
    /// # Errors
    /// The watch cannot be started.
    async fn follow_from<T: Watched>(
        &mut self,
        client: &Client,
        mut version: String,
    ) -> Result<(), kube::Error>
    where
        F: FnMut(Event<T>),
    {
        loop {
            let watch = self.collection.watch(client, &version).await;
            let watch = watch.inspect_err(|_| (self.on_event)(Event::Lost))?;
            self.metrics.alive(self.clock.now());
            self.last_logged = None;
            (self.on_event)(Event::WatchBegins);
            let started = self.clock.monotonic();
            match self.follow(watch, &mut version).await {
                // A new watch from `version` shows what follows.
                Ok(()) if self.clock.monotonic() - started >= MIN_WATCH_DURATION => {}
                Ok(()) => sleep(self.backoff.next()).await,
                Err(error) => {
                    self.pause_after::<T>(&error, false).await;
                    // The API server no longer has the events since `version`, cannot go on, is silent, or sends what is no event, which it
                    // would send again.
                    if matches!(error, kube::Error::Api(_) | kube::Error::SerdeError(_))
                        || is_no_answer(&error)
                    {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn pause_after<T>(&mut self, error: &kube::Error, is_down: bool)
    where
        F: FnMut(Event<T>),
    {
        self.metrics.failed(is_down);
        let resource = self.metrics.resource();
        let problem = problem(error);
        if self.last_logged.as_ref() != Some(&problem) {
            tracing::warn!(resource, "watch failed, restarting: {problem}");
            self.last_logged = Some(problem.clone());
        }
        if is_down && is_refusal(error) {
            (self.on_event)(Event::Refused(problem));
        }
        sleep(self.backoff.next()).await;
    }

    /// Passes on an event, which shows that the watch works.
    fn pass_on<T>(&mut self, event: Event<T>)
    where
        F: FnMut(Event<T>),
    {
        self.metrics.alive(self.clock.now());
        self.backoff.reset();
        (self.on_event)(event);
    }

    /// Lists all objects. Returns the version of the list.
    async fn list<T: Watched>(&mut self, client: &Client) -> Result<String, kube::Error>
    where
        F: FnMut(Event<T>),
    {
        (self.on_event)(Event::ListBegins);
        let mut after: Option<String> = None;
        loop {
            let page = self.collection.list(client, self.page_size, after.as_deref());
            let mut page = page.await?;
            let read = self.read_page(&mut page).await;
            // Also after a failure: the next attempt reads less at once.
            self.page_size = next_page_size(self.page_size, page.received());
            read?;
            let end = page.end()?;
            if !end.next.is_empty() {
                after = Some(end.next);
                continue;
            }
            // Not by pass_on: a list does not show that the watch works.
            (self.on_event)(Event::ListEnds);
            return Ok(end.resource_version);
        }
    }

    async fn read_page<T: Watched>(&mut self, page: &mut Page) -> Result<(), kube::Error>
    where
        F: FnMut(Event<T>),
    {
        let mut unyielded = 0;
        while let Some(json) = page.next().await? {
            unyielded += json.map_or(0, str::len);
            if let Some(object) = self.decode(json) {
                // Not by pass_on: the list may fail at the same object each time, so the backoff must grow.
                (self.on_event)(Event::Listed(object));
            }
            if unyielded > TURN {
                unyielded = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Forwards the events of the watch after `version`, and advances `version`, until the watch ends.
    async fn follow<T: Watched>(&mut self, mut watch: Watch, version: &mut String) -> Result<(), kube::Error>
    where
        F: FnMut(Event<T>),
    {
        while let Some((change, json)) = watch.next().await? {
            let object: Option<T> = match change {
                Change::Bookmark => None,
                _ => self.decode(json),
            };
            let seen = match object.as_ref().and_then(T::resource_version) {
                Some(decoded) => Some(decoded.to_owned()),
                None => json.map(|json| text(Identity::of(json).resource_version)),
            };
            if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
                *version = seen;
            }
            match (change, object) {
                (Change::Bookmark, _) => self.pass_on::<T>(Event::Bookmark),
                (Change::Deleted, Some(object)) => self.pass_on(Event::Deleted(object)),
                (_, Some(object)) => self.pass_on(Event::Applied(object)),
                (_, None) => {}
            }
            if json.is_none_or(|json| json.len() > TURN) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// None if the object cannot be decoded, which is counted.
    fn decode<T: Watched>(&self, json: ObjectJson<'_>) -> Option<T> {
        let resource = T::RESOURCE;
        let Some(json) = json else {
            self.metrics.count_undecodable();
            tracing::warn!(
                resource,
                "object dropped: it is larger than the limit, or not UTF-8"
            );
            return None;
        };
        T::decode(json)
            .inspect_err(|_| {
                self.metrics.count_undecodable();
                let Identity { namespace, name, .. } = Identity::of(json);
                let (namespace, name) = (redacted(&text(namespace), 63), redacted(&text(name), 253));
                tracing::warn!(resource, namespace, name, "object dropped: it cannot be decoded");
            })
            .ok()
    }
}

/// The size of the page after one of `page_size` objects and so many bytes.
fn next_page_size(page_size: u32, received: usize) -> u32 {
    match received {
        LARGE_PAGE.. => (page_size / 2).max(1),
        ..=SMALL_PAGE => (page_size * 2).min(MAX_PAGE_SIZE),
        _ => page_size,
    }
}

/// The pauses between attempts of a watch.
#[derive(Debug)]
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(MIN_PAUSE)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(MAX_PAUSE);
        pause
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
