//! `/livez`, `/readyz` and `/metrics` over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::health::Pulse;
use crate::metrics::{Format, Metrics};

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    synced: Receiver<bool>,
    pulse: Pulse,
}

/// Serves until the process ends. Ready once `synced` is true, alive as `pulse` says.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    synced: Receiver<bool>,
    pulse: Pulse,
) -> std::io::Result<()> {
    let shared = Shared {
        metrics,
        synced,
        pulse,
    };
    axum::serve(listener, router(shared)).await
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(shared)
}

async fn alive(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.pulse.check(Instant::now()) {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(stuck) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{stuck}\n")),
    }
}

async fn ready(State(shared): State<Shared>) -> impl IntoResponse {
    match *shared.synced.borrow() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the caches are not filled yet\n"),
    }
}

async fn scrape(State(shared): State<Shared>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    match shared.metrics.encode(format, Timestamp::now()) {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
