//! Lists and watches of a kind, object by object. kube's own decode a page at once, so that one object that cannot be decoded fails the list,
//! and its reader of watches has no bound.

use std::time::Duration;

use bytes::Bytes;
use kube::Client;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, Status};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::answer::{FRAME_TIMEOUT, Frames, LargeObject, MAX_OBJECT, send, undecodable, within};
use super::json_items::{ItemSplitter, Part};

/// Seconds after which the API server ends a watch, which is then resumed.
const WATCH_SECONDS: u32 = 290;
/// Silence after which a watch counts as dead. The API server sends a bookmark about once a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// How many pages are read at once. At a start, each served namespace is listed.
static PAGES: Semaphore = Semaphore::const_new(8);

/// Objects of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Collection {
    /// The path, such as `/api/v1/namespaces/shop/secrets`.
    pub(crate) path: String,
    /// Whether only the metadata is read.
    pub(crate) metadata_only: bool,
    /// A label selector.
    pub(crate) labels: Option<String>,
    /// A field selector.
    pub(crate) fields: Option<String>,
}

/// The JSON of an object; none if it is larger than any object that the operator reads, or is no UTF-8.
pub(crate) type ObjectJson<'a> = Option<&'a str>;

impl Collection {
    /// Starts to read a page of at most `limit` objects, after the page that ended with the token `after`.
    ///
    /// # Errors
    /// The API server rejected the call or did not answer.
    pub(crate) async fn list(
        &self,
        client: &Client,
        limit: u32,
        after: Option<&str>,
    ) -> Result<Page, kube::Error> {
        let params = ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(limit),
            continue_token: after.map(str::to_owned),
            ..ListParams::default()
        };
        let calls = Request::new(&self.path);
        let call = match self.metadata_only {
            true => calls.list_metadata(&params),
            false => calls.list(&params),
        };
        // Fails only if the semaphore is closed, which it never is.
        let turn = PAGES.acquire().await.ok();
        Ok(Page {
            frames: start(client, call).await?,
            data: Bytes::new(),
            received: 0,
            splitter: ItemSplitter::new(MAX_OBJECT),
            end: None,
            large: LargeObject::item(),
            _turn: turn,
        })
    }

    /// Starts to watch what changes after `resource_version`.
    ///
    /// # Errors
    /// The API server rejected the call or did not answer.
    pub(crate) async fn watch(&self, client: &Client, resource_version: &str) -> Result<Watch, kube::Error> {
        let params = WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            ..WatchParams::default()
        };
        let calls = Request::new(&self.path);
        let call = match self.metadata_only {
            true => calls.watch_metadata(&params, resource_version),
            false => calls.watch(&params, resource_version),
        };
        Ok(Watch {
            frames: start(client, call).await?,
            data: Bytes::new(),
            line: Vec::new(),
            large: LargeObject::item(),
        })
    }
}

async fn start(
    client: &Client,
    call: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Frames, kube::Error> {
    let call = call.map_err(kube::Error::BuildRequest)?;
    within(FRAME_TIMEOUT, send(client, call)).await
}

/// A page of a list.
pub(crate) struct Page {
    frames: Frames,
    data: Bytes,
    received: usize,
    splitter: ItemSplitter,
    end: Option<PageEnd>,
    large: LargeObject,
    _turn: Option<SemaphorePermit<'static>>,
}

/// What a page says of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PageEnd {
    /// The version of the list, from which it is watched.
    pub(crate) resource_version: String,
    /// The token for the next page; empty if this is the last one.
    #[serde(rename = "continue")]
    pub(crate) next: String,
}

impl Page {
    /// How many bytes have come.
    pub(crate) fn received(&self) -> usize {
        self.received
    }

    /// The next object; none at the end of the page.
    ///
    /// # Errors
    /// The connection broke, or the answer is no list.
    pub(crate) async fn next(&mut self) -> Result<Option<ObjectJson<'_>>, kube::Error> {
        loop {
            let (read, part) = self
                .splitter
                .feed(&self.data)
                .map_err(|_| undecodable("it is no list"))?;
            let _ = self.data.split_to(read);
            match part {
                Some(Part::Item) => return Ok(Some(std::str::from_utf8(self.splitter.text()).ok())),
                Some(Part::TooLarge) => return Ok(Some(None)),
                Some(Part::Metadata) => {
                    let end = serde_json::from_slice(self.splitter.text());
                    self.end = Some(end.map_err(|_| undecodable("its metadata is none of a list"))?);
                    continue;
                }
                None => {}
            }
            self.large.hold(self.splitter.pending()).await;
            match self.frames.next(FRAME_TIMEOUT).await? {
                Some(data) => {
                    self.received += data.len();
                    self.data = data;
                }
                None if self.splitter.has_ended() => return Ok(None),
                None => return Err(undecodable("it is no whole list")),
            }
        }
    }

    /// What the page says of the list, at its end.
    ///
    /// # Errors
    /// It says nothing.
    pub(crate) fn end(self) -> Result<PageEnd, kube::Error> {
        self.end.ok_or_else(|| undecodable("it has no metadata"))
    }
}

/// A watch.
pub(crate) struct Watch {
    frames: Frames,
    data: Bytes,
    /// The last line that was read, empty if it was too large.
    line: Vec<u8>,
    large: LargeObject,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Change {
    /// It was created, or matches the selector now.
    Added,
    /// It was changed.
    Modified,
    /// It was deleted, or no longer matches the selector.
    Deleted,
    /// Nothing: all changes up to the object's resourceVersion have been shown.
    Bookmark,
    /// The watch failed. Never returned.
    Error,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    change: Change,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Watch {
    /// The next change; none at the end of the watch.
    ///
    /// # Errors
    /// The connection broke, nothing came for too long, or the API server said that the watch failed.
    pub(crate) async fn next(&mut self) -> Result<Option<(Change, ObjectJson<'_>)>, kube::Error> {
        if !self.read_line().await? {
            return Ok(None);
        }
        let Some(line) = std::str::from_utf8(&self.line)
            .ok()
            .filter(|line| !line.is_empty())
        else {
            return Ok(Some((Change::Modified, None)));
        };
        let line: Line<'_> =
            serde_json::from_str(line).map_err(|_| undecodable("it is no event of a watch"))?;
        match line.change {
            Change::Error => {
                let status: Status = serde_json::from_str(line.object.get())
                    .map_err(|_| undecodable("the error of the watch is no Status"))?;
                Err(kube::Error::Api(status.boxed()))
            }
            change => Ok(Some((change, Some(line.object.get())))),
        }
    }

    /// Reads the next line that is not empty. Returns whether there is one.
    async fn read_line(&mut self) -> Result<bool, kube::Error> {
        self.line = Vec::new();
        self.large.hold(0).await;
        let mut is_too_large = false;
        loop {
            let end = memchr::memchr(b'\n', &self.data);
            let part = self.data.split_to(end.unwrap_or(self.data.len()));
            is_too_large |= self.line.len() + part.len() > MAX_OBJECT;
            match is_too_large {
                true => self.line = Vec::new(),
                false => self.line.extend_from_slice(&part),
            }
            if end.is_some() {
                let _ = self.data.split_to(1);
                if is_too_large || !self.line.is_empty() {
                    return Ok(true);
                }
                continue;
            }
            self.large.hold(self.line.len()).await;
            let is_idle = self.line.is_empty() && !is_too_large;
            let limit = if is_idle { IDLE_TIMEOUT } else { FRAME_TIMEOUT };
            match self.frames.next(limit).await? {
                Some(data) => self.data = data,
                // A line without an end is half a line.
                None => return Ok(false),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::tests::answering;
    use super::*;

    fn collection() -> Collection {
        Collection {
            path: "/api/v1/secrets".to_owned(),
            metadata_only: true,
            labels: None,
            fields: None,
        }
    }

    fn large(bytes: usize) -> String {
        format!(r#"{{"metadata":{{"managedFields":"{}"}}}}"#, "x".repeat(bytes))
    }

    async fn list(text: impl Into<Vec<u8>>) -> Result<(Vec<usize>, PageEnd), kube::Error> {
        let frames = text.into().chunks(60_000).map(<[u8]>::to_vec).collect();
        let mut page = collection().list(&answering(200, frames), 100, None).await?;
        let mut sizes = Vec::new();
        while let Some(object) = page.next().await? {
            sizes.push(object.map_or(0, str::len));
        }
        Ok((sizes, page.end()?))
    }

    #[tokio::test]
    async fn a_page_is_read_whatever_the_size_of_its_objects() {
        let (most, too_large) = (large(8 << 20), large(MAX_OBJECT));
        let text = format!(
            r#"{{"metadata":{{"resourceVersion":"7","continue":"next"}},"items":[{{}},{most},{too_large},{{}}]}}"#
        );
        let (sizes, end) = list(text).await.unwrap();
        assert_eq!(sizes, [2, most.len(), 0, 2]);
        assert_eq!((end.resource_version.as_str(), end.next.as_str()), ("7", "next"));
    }

    #[tokio::test]
    async fn an_object_that_is_no_utf8_costs_itself_alone() {
        let text = b"{\"metadata\":{\"resourceVersion\":\"7\"},\"items\":[{},{\"a\":\"\xff\"},{\"b\":1}]}";
        let (sizes, _) = list(text.to_vec()).await.unwrap();
        assert_eq!(sizes, [2, 0, 7]);
        let lines = b"{\"type\":\"ADDED\",\"object\":{\"a\":\"\xff\"}}\n{\"type\":\"ADDED\",\"object\":{}}\n";
        let (events, error) = events(vec![lines.to_vec()]).await;
        assert_eq!(
            events,
            [(Change::Modified, None), (Change::Added, Some("{}".to_owned()))]
        );
        assert!(error.is_none(), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_no_list_is_an_error() {
        for text in [
            "",
            "{}",
            r#"{"items":[]}"#,
            r#"{"metadata":{},"items":[{}"#,
            r#"{"metadata":"#,
            "[]",
        ] {
            let error = list(text.to_owned()).await.unwrap_err();
            assert!(matches!(error, kube::Error::SerdeError(_)), "{text}: {error}");
        }
    }

    async fn events(frames: Vec<Vec<u8>>) -> (Vec<(Change, Option<String>)>, Option<kube::Error>) {
        let mut watch = collection().watch(&answering(200, frames), "7").await.unwrap();
        let mut events = Vec::new();
        loop {
            match watch.next().await {
                Ok(Some((change, object))) => events.push((change, object.map(str::to_owned))),
                Ok(None) => return (events, None),
                Err(error) => return (events, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn a_watch_is_read_line_by_line_and_a_line_that_is_too_large_is_skipped() {
        let too_large = format!(r#"{{"type":"ADDED","object":{}}}"#, large(MAX_OBJECT));
        let lines = format!(
            "{{\"type\":\"ADDED\",\"object\":{{\"n\":1}}}}\n\n{too_large}\n{{\"object\":{{}},\"type\":\"DELETED\"}}\n{{\"type\":\"BOOKMARK\",\"object\":{{}}}}\n{{\"type\":\"MODI"
        );
        let json = |text: &str| Some(text.to_owned());
        let expected = vec![
            (Change::Added, json("{\"n\":1}")),
            (Change::Modified, None),
            (Change::Deleted, json("{}")),
            (Change::Bookmark, json("{}")),
        ];
        for size in [9973, 1 << 20, usize::MAX] {
            let frames = lines.as_bytes().chunks(size).map(<[u8]>::to_vec).collect();
            let (events, error) = events(frames).await;
            assert_eq!(events, expected, "{size}");
            assert!(error.is_none(), "{error:?}");
        }
    }

    #[tokio::test]
    async fn an_error_of_a_watch_has_its_code() {
        let gone =
            b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"message\":\"old\"}}\n";
        let (_, error) = events(vec![gone.to_vec()]).await;
        assert!(matches!(error, Some(kube::Error::Api(status)) if status.code == 410));
        let (_, error) = events(vec![b"hunter2\n".to_vec()]).await;
        let shown = format!("{error:?}");
        assert!(
            matches!(error, Some(kube::Error::SerdeError(_))) && !shown.contains("hunter"),
            "{shown}"
        );
    }
}
