//! `/livez`, `/readyz` and `/metrics` over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::sync::watch::Receiver;

use crate::clock::Clock;
use crate::liveness::Liveness;
use crate::metrics::{Format, Metrics};

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    synced: Receiver<bool>,
    liveness: Liveness,
    clock: Clock,
}

/// Serves until the process exits, in a thread of its own: it answers even while the reconcile loop is stuck, and a scrape delays no
/// renewal. `/readyz` succeeds once `synced` is true, `/livez` while `liveness` does. The returned receiver resolves if the server stops.
///
/// # Errors
/// The thread could not be started.
pub fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    synced: Receiver<bool>,
    liveness: Liveness,
    clock: Clock,
) -> std::io::Result<oneshot::Receiver<std::io::Result<()>>> {
    let shared = Shared {
        metrics,
        synced,
        liveness,
        clock,
    };
    let listener = listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stopped, stop) = oneshot::channel();
    let serving = move || {
        let served = runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            axum::serve(listener, router(shared)).await
        });
        // Fails only if the receiver is gone, when the process exits.
        let _ = stopped.send(served);
    };
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(serving)?;
    Ok(stop)
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(shared)
}

async fn livez(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.liveness.check(shared.clock.monotonic()) {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(stuck) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{stuck}\n")),
    }
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    match *shared.synced.borrow() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the caches are not synced yet\n"),
    }
}

async fn scrape(State(shared): State<Shared>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    match shared.metrics.encode(format, shared.clock.now()) {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tokio::sync::watch;
    use tower::Service;

    use super::*;

    /// Status and body of the response to a GET of `path`; `synced` is whether the caches are synced.
    pub(crate) async fn get(path: &str, synced: bool, liveness: &Liveness) -> (u16, String) {
        let (_sender, synced) = watch::channel(synced);
        let mut router = router(Shared {
            metrics: Arc::default(),
            synced,
            liveness: liveness.clone(),
            clock: Clock::system(),
        });
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.call(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_silent_loop_fails_livez_and_caches_that_are_not_synced_fail_readyz() {
        let now = Clock::system().monotonic();
        let liveness = Liveness::new(Duration::from_secs(150), now);
        assert_eq!(get("/livez", false, &liveness).await, (200, "ok\n".to_owned()));
        let long_ago = now.checked_sub(Duration::from_secs(40)).unwrap();
        liveness.heartbeat(long_ago, None);
        let (status, text) = get("/livez", true, &liveness).await;
        assert_eq!(status, 500);
        assert!(text.contains("no heartbeat for 4"), "{text}");
        assert_eq!(get("/readyz", true, &liveness).await.0, 200);
        let (status, text) = get("/readyz", false, &liveness).await;
        assert_eq!((status, text.as_str()), (503, "the caches are not synced yet\n"));
    }

    #[tokio::test]
    async fn a_scrape_without_an_accept_header_gets_the_older_format() {
        let liveness = Liveness::new(Duration::from_secs(150), Clock::system().monotonic());
        let (status, text) = get("/metrics", true, &liveness).await;
        assert_eq!(status, 200);
        assert!(text.contains("# TYPE idtoken_build_info gauge\n"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
    }
}
