//! How a call gets to an endpoint and back: admission, HTTP, and the meaning of a response.
//!
//! May import `vocabulary` only. Knows no endpoint's requests or responses except the bodies of errors, and retries nothing: the callers
//! have a queue of their own.

pub(crate) mod adaptive_limit;
pub(crate) mod certificates;
pub(crate) mod circuit_breaker;
pub(crate) mod decision;
pub(crate) mod endpoint_client;
pub(crate) mod error_body;
pub(crate) mod fair_queue;
pub(crate) mod flow;
pub(crate) mod http;
pub(crate) mod limiter;
pub(crate) mod recovery;
pub(crate) mod response;
pub(crate) mod usage;
