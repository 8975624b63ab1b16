//! The operator's own port: `/livez`, `/readyz` and `/metrics` over HTTP, for every pod of the cluster.
//!
//! May import what it shows: the liveness, the metrics, the sync of the watches, the grants' freshness, and the Leases of other releases. Only
//! reads: it calls no API, and no request changes what the operator does.

mod connections;
mod listener;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, RawQuery, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use self::connections::{Connection, Timeouts};
pub use self::listener::listen;
use crate::clock::Clock;
use crate::controller::watch::sync_state::{NamespaceProblem, SyncState};
use crate::grants::store::GrantStore;
use crate::leader::{Overlap, Overlaps};
use crate::liveness::Liveness;
use crate::metrics::{Format, Metrics};

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    /// Held while a scrape is written as text, so that one text is written at a time, however many clients come and go.
    writer: Arc<Semaphore>,
    grants: Arc<GrantStore>,
    sync_state: SyncState,
    overlaps: Overlaps,
    liveness: Liveness,
    clock: Clock,
}

/// Serves until the process exits, in a thread of its own: it answers even while the reconcile loop is stuck, and a scrape delays no
/// renewal. `/readyz` succeeds once `sync_state` is ready, `/livez` while `liveness` does. The returned receiver resolves if the server stops.
///
/// # Errors
/// The thread could not be started.
pub fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    grants: Arc<GrantStore>,
    sync_state: SyncState,
    overlaps: Overlaps,
    liveness: Liveness,
    clock: Clock,
) -> std::io::Result<oneshot::Receiver<std::io::Result<()>>> {
    let shared = Shared {
        metrics,
        writer: Arc::new(Semaphore::new(1)),
        grants,
        sync_state,
        overlaps,
        liveness,
        clock,
    };
    spawn(listener, shared, Timeouts::default())
}

fn spawn(
    listener: TcpListener,
    shared: Shared,
    timeouts: Timeouts,
) -> std::io::Result<oneshot::Receiver<std::io::Result<()>>> {
    let listener = listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stopped, stop) = oneshot::channel();
    let serving = move || {
        let served = runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            connections::serve(listener, router(shared), timeouts).await;
            Ok(())
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

/// With `?verbose`, each check has a line, as Kubernetes' own components answer. A grants file that cannot be used has a line and no effect:
/// its last good content is in force, and renewals must go on. Likewise a namespace that cannot be
/// listed or watched: the others are served. Likewise a release that serves some of the same requests.
async fn readyz(State(shared): State<Shared>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let (status, mark, text) = match shared.sync_state.is_ready() {
        true => (StatusCode::OK, '+', "ok\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            '-',
            "the caches are not synced yet\n",
        ),
    };
    let is_verbose = query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part == "verbose" || part == "verbose=true")
    });
    if !is_verbose {
        return (status, text.to_owned());
    }
    let file = match shared.grants.file_problem() {
        None => "[+]grants-file ok\n".to_owned(),
        Some(problem) => format!(
            "[-]grants-file {} since {}, so its last good content is in force\n",
            problem.kind, problem.since
        ),
    };
    let namespace = |problem: NamespaceProblem| {
        format!(
            "[-]namespace {} cannot be listed or watched since {}: {}\n",
            problem.namespace, problem.since, problem.problem
        )
    };
    let namespaces: String = shared.sync_state.problems().into_iter().map(namespace).collect();
    let overlap = |Overlap {
                       namespace,
                       name,
                       since,
                   }: Overlap| {
        format!(
            "[-]scope overlaps with that of the release of Lease {name} in namespace {namespace} since {since}: both issue tokens for the same \
             requests\n"
        )
    };
    let overlaps: String = shared.overlaps.all().into_iter().map(overlap).collect();
    (
        status,
        format!("[{mark}]caches {text}{file}{namespaces}{overlaps}"),
    )
}

async fn scrape(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    headers: HeaderMap,
) -> Response {
    if !connection.begin_scrape() {
        let text = "too many scrapes at once, try again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    let Ok(writing) = shared.writer.acquire_owned().await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let (metrics, clock) = (shared.metrics, shared.clock);
    // In another thread, since probes are answered in this one.
    let written = tokio::task::spawn_blocking(move || {
        let _writing = writing;
        metrics.encode(format, clock.now())
    });
    match written.await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
#[path = "admin/tests.rs"]
pub(crate) mod tests;
