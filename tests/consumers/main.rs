//! Programs of others, run as in `examples/consumers`, with the files that the operator's Secret becomes in a pod: they must use
//! a renewed token without a signal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
// The operator's own tests use the rest.
#[allow(dead_code, unused_imports)]
mod common;

mod caddy;
mod curl;
mod example;
mod manifests;
mod opentelemetry;
mod projected;
mod prometheus;
mod recipes;
mod scene;
mod service;
mod snippets;
mod volume;
