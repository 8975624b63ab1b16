//! `/livez`, `/readyz` and `/metrics` over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::health::Pulse;
use crate::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
    let app = Router::new()
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(Shared {
            metrics,
            synced,
            pulse,
        });
    axum::serve(listener, app).await
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

async fn scrape(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
