//! Answers of the API server, read frame by frame and bounded. kube's own readers have no bound, copy what they read, and log what they
//! cannot decode.
//!
//! An object of 1.5 MiB, the most that etcd takes by default, can be six times as large in JSON, where `<` is `\u003c`. So any tenant can
//! make an answer large. Few large ones are in memory at once.

use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use serde::de::Error as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use zeroize::Zeroizing;

/// Most bytes of an object, or of a whole answer that is no list.
pub(super) const MAX_OBJECT: usize = 16 << 20;
/// Most bytes of the body of an error.
const MAX_ERROR: usize = 256 << 10;
/// Bytes of an object beyond which it counts as large.
const LARGE: usize = 64 << 10;
/// How many large answers to calls are in memory at once.
static LARGE_ANSWERS: Semaphore = Semaphore::const_new(2);
/// How many large objects of lists and watches are. They do not wait for the calls, of which a tenant can cause many.
static LARGE_ITEMS: Semaphore = Semaphore::const_new(2);
/// Longest time for the start of an answer, and between two frames of it.
pub(super) const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends a call. Returns the body of its answer.
///
/// # Errors
/// The API server rejected the call or did not answer.
pub(super) async fn send(client: &Client, call: http::Request<Vec<u8>>) -> Result<Frames, kube::Error> {
    let answer = client.send(call.map(Body::from)).await?;
    let code = answer.status();
    let mut frames = Frames(answer.into_body());
    if !code.is_client_error() && !code.is_server_error() {
        return Ok(frames);
    }
    let body = frames.collect(MAX_ERROR, &mut LargeObject::answer()).await;
    // A proxy's answer, for example, is no Status. It is not quoted.
    let status = body
        .ok()
        .and_then(|body| serde_json::from_slice::<Status>(&body).ok());
    let status = status.unwrap_or_else(|| Status::failure("", "").with_code(code.as_u16()));
    Err(kube::Error::Api(status.boxed()))
}

/// Sends a call. Returns the text of its answer.
///
/// # Errors
/// The API server rejected the call, did not answer, or the answer is no text or too large.
pub(crate) async fn text(client: &Client, call: http::Request<Vec<u8>>) -> Result<Text, kube::Error> {
    let mut frames = send(client, call).await?;
    let mut large = LargeObject::answer();
    let body = frames.collect(MAX_OBJECT, &mut large).await?;
    let text = Zeroizing::new(String::from_utf8(body).map_err(|_| undecodable("it is no UTF-8"))?);
    Ok(Text { text, _large: large })
}

/// The text of an answer, which is wiped: it may hold a token.
pub(crate) struct Text {
    text: Zeroizing<String>,
    _large: LargeObject,
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// The error for what cannot be decoded, `why` being the same for every answer.
pub(super) fn undecodable(why: &'static str) -> kube::Error {
    kube::Error::SerdeError(serde_json::Error::custom(why))
}

/// The answer to a call that waited for at most `limit`.
///
/// # Errors
/// The call failed, or there was no answer in time.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let answer = timeout(limit, call).await;
    answer.unwrap_or_else(|_| Err(kube::Error::Service(Box::new(NoAnswer))))
}

/// No answer began or went on in time.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer in time")]
struct NoAnswer;

/// Whether no answer began or went on in time.
pub(crate) fn is_no_answer(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(error) if error.is::<NoAnswer>())
}

/// The body of an answer.
pub(super) struct Frames(Body);

impl Frames {
    /// The next data; none at the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for `limit`.
    pub(super) async fn next(&mut self, limit: Duration) -> Result<Option<Bytes>, kube::Error> {
        loop {
            let frame = within(limit, async { self.0.frame().await.transpose() }).await?;
            // What is no data is trailers.
            match frame.map(|frame| frame.into_data()) {
                None => return Ok(None),
                Some(Ok(data)) => return Ok(Some(data)),
                Some(Err(_)) => {}
            }
        }
    }

    async fn collect(&mut self, limit: usize, large: &mut LargeObject) -> Result<Vec<u8>, kube::Error> {
        let mut body = Vec::new();
        while let Some(data) = self.next(FRAME_TIMEOUT).await? {
            if body.len() + data.len() > limit {
                return Err(undecodable("it is too large"));
            }
            body.extend_from_slice(&data);
            large.hold(body.len()).await;
        }
        Ok(body)
    }
}

/// A permit to have a large object in memory.
#[derive(Debug)]
pub(super) struct LargeObject {
    of: &'static Semaphore,
    held: Option<SemaphorePermit<'static>>,
}

impl LargeObject {
    /// Of the answer to a call.
    fn answer() -> Self {
        let of = &LARGE_ANSWERS;
        Self { of, held: None }
    }

    /// Of a list or a watch.
    pub(super) fn item() -> Self {
        let of = &LARGE_ITEMS;
        Self { of, held: None }
    }

    /// Waits for a permit if an object of `bytes` is large, and releases the permit if it is not.
    pub(super) async fn hold(&mut self, bytes: usize) {
        if bytes <= LARGE {
            self.held = None;
        } else if self.held.is_none() {
            // Fails only if the semaphore is closed, which it never is.
            self.held = self.of.acquire().await.ok();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use http::{Request, Response};

    use super::*;

    /// A client whose every call is answered with these frames.
    pub(crate) fn answering(code: u16, frames: Vec<Vec<u8>>) -> Client {
        let service = tower::service_fn(move |_: Request<Body>| {
            let frames = frames
                .clone()
                .into_iter()
                .map(|data| Ok::<_, std::io::Error>(Bytes::from(data)));
            let body = axum::body::Body::from_stream(futures::stream::iter(frames));
            let answer = Response::builder().status(code).body(body);
            async move { answer }
        });
        Client::new(service, "default")
    }

    fn call() -> http::Request<Vec<u8>> {
        http::Request::get("/").body(Vec::new()).unwrap()
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_its_limit() {
        let client = answering(200, vec![b"{\"a\"".to_vec(), b":1}".to_vec()]);
        assert_eq!(&*text(&client, call()).await.unwrap(), "{\"a\":1}");
        let endless = answering(200, vec![vec![b' '; 1 << 20]; 17]);
        let error = text(&endless, call()).await.err().unwrap();
        assert!(matches!(error, kube::Error::SerdeError(_)), "{error}");
        let error = text(&answering(200, vec![vec![0xff]]), call())
            .await
            .err()
            .unwrap();
        assert!(matches!(error, kube::Error::SerdeError(_)), "{error}");
    }

    #[tokio::test]
    async fn a_rejection_has_the_message_of_a_status_and_no_other_text() {
        let status = br#"{"kind":"Status","code":403,"message":"no","reason":"Forbidden"}"#;
        for (code, body, expected) in [
            (403, status.to_vec(), (403, "no")),
            (502, b"<html>hunter2".to_vec(), (502, "")),
            (500, vec![b' '; MAX_ERROR + 1], (500, "")),
        ] {
            let error = text(&answering(code, vec![body]), call()).await.err().unwrap();
            let kube::Error::Api(status) = error else {
                panic!("{error}");
            };
            assert_eq!((status.code, status.message.as_str()), expected);
        }
    }
}
