//! How requests leave the process: by the network, or to a model of Google in the same process.

use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::{RequestBuilder, Response};

type Send =
    dyn Fn(RequestBuilder) -> BoxFuture<'static, reqwest::Result<Response>> + std::marker::Send + Sync;

/// Sends a request and returns its response, the body of which may still be on its way. Every call to Google goes through it.
#[derive(Clone)]
pub struct Transport(Arc<Send>);

impl Transport {
    /// The network.
    #[must_use]
    pub fn network() -> Self {
        Self::new(|request| Box::pin(request.send()))
    }

    /// A transport that answers by `send`.
    pub fn new(
        send: impl Fn(RequestBuilder) -> BoxFuture<'static, reqwest::Result<Response>>
        + std::marker::Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Arc::new(send))
    }

    /// Sends `request`.
    ///
    /// # Errors
    /// It could not be built or sent, or no response came in time.
    pub async fn send(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        (self.0)(request).await
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}
