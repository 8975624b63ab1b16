//! The controller: watches fill caches and enqueue requests, and each request is reconciled.
//!
//! This file runs the terms of leadership: it starts the watches, runs the loop while this replica leads, and cancels the reconciles when it
//! no longer does. May import everything but the process around it ([`crate::app`], [`crate::cli`], [`crate::admin`]). Never decides what a
//! request needs: that is the planner's.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;
use tokio::time::sleep;

pub mod cache;
mod context;
mod grant_counts;
pub mod issue;
mod queue;
pub mod reconcile;
mod waits;
pub mod watch;

pub use context::{Context, Settings};
pub use queue::permit::Permits;

use crate::api::ObjectKey;
use crate::google::MAX_WAITING;
use crate::leader::ElectorThread;
use crate::liveness::Liveness;
use grant_counts::GrantCounts;
use issue::federation::FederatedTokens;
use queue::worker::{Limits, Worker};
use queue::{Enqueuer, Scope};
use watch::WatchContext;
use watch::sync_state::SyncState;

/// Time in which reconciles in flight may finish at a shutdown: less than a pod's usual grace period of 30 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);
/// Added to the time limits of a reconcile before it counts as stuck.
const STUCK_GRACE: Duration = Duration::from_secs(30);
/// How many reconciles may wait for Google at once, as they do while it stands still: more than the queue of one namespace holds.
pub const MAX_WAITING_RECONCILES: usize = 2 * MAX_WAITING;
/// How often federated access tokens that have expired are removed.
const EVICTION_INTERVAL: Duration = Duration::from_secs(10);

/// A task of a watch ended. None returns by itself, so the caches would go stale unnoticed.
#[derive(Debug, thiserror::Error)]
#[error("a watch of the Kubernetes API ended: {0}; exiting, so that the operator is restarted")]
pub struct WatchEnded(String);

impl WatchEnded {
    fn new(ended: Result<(), tokio::task::JoinError>) -> Self {
        Self(
            ended
                .err()
                .map_or_else(|| "without an error".to_owned(), |error| error.to_string()),
        )
    }
}

/// The longest time that one reconcile takes, unless it is stuck.
pub fn max_reconcile_duration(settings: &Settings) -> Duration {
    settings.reconcile_timeout + reconcile::publish::PUBLISH_TIMEOUT + STUCK_GRACE
}

/// Runs until `shutdown` resolves, then waits for the reconciles in flight. With an `elector` it reconciles only while it holds the
/// Lease. `sync_state` says that it is ready once all caches are synced and the Lease could be read.
///
/// # Errors
/// A watch ended.
pub async fn run(
    ctx: Arc<Context>,
    mut elector: Option<ElectorThread>,
    liveness: Liveness,
    sync_state: SyncState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), WatchEnded> {
    let (requests, requests_receiver) = unbounded_channel();
    let (scopes, scopes_receiver) = unbounded_channel();
    let concurrency = usize::from(ctx.settings.concurrency);
    let in_flight = concurrency + MAX_WAITING_RECONCILES;
    let limits = Limits {
        in_flight,
        in_flight_per_namespace: Arc::new({
            let ctx = ctx.clone();
            // Whatever the flags say, a fifth is for others.
            move || (concurrency + ctx.minter.useful_callers()).min(in_flight - in_flight / 5)
        }),
        is_congested: Arc::new({
            let ctx = ctx.clone();
            move |namespace| ctx.minter.is_congested(namespace)
        }),
        is_surging: Arc::new({
            let ctx = ctx.clone();
            // Soon over whatever Google does: calls that hang become the average.
            move || ctx.minter.surge() > concurrency
        }),
        permits: ctx.permits.clone(),
    };
    let mut worker = Worker::new(
        requests_receiver,
        scopes_receiver,
        limits,
        liveness,
        ctx.metrics.clone(),
        ctx.clock.clone(),
    );
    let mut watches = JoinSet::new();
    let enqueuer = Enqueuer::new(requests, scopes);
    spawn_watches(&ctx, enqueuer.clone(), &sync_state, &mut watches);
    let mut shutdown = shutdown.boxed().shared();
    tokio::select! {
        // A shutdown is no error of a watch.
        biased;
        () = &mut shutdown => return Ok(()),
        Some(ended) = watches.join_next() => return Err(WatchEnded::new(ended)),
        () = async {
            sync_state.wait_for_sync(&ctx.settings.shard).await;
            if let Some(elector) = &mut elector {
                elector.wait_readable().await;
            }
        } => {}
        () = worker.drain_while_standby() => {}
    }
    let (requests, secrets) = ctx.cache.len();
    tracing::info!(requests, secrets, "caches synced");
    sync_state.set_ready();
    ctx.metrics.set_synced();

    let start = |key: &ObjectKey, permit| {
        // A namespace whose Secrets could not be listed is enqueued when they are.
        let is_served = sync_state.serves(&ctx.settings.shard, key.namespace());
        (is_served && ctx.cache.has_request(key))
            .then(|| reconcile::reconcile(key.clone(), ctx.clone(), permit))
    };
    let keys = |scope| match scope {
        Scope::All => ctx.cache.request_keys(""),
        Scope::Namespace(name) => ctx.cache.request_keys(&name),
        Scope::Requests(keys) => keys,
    };
    let grant_counts = GrantCounts {
        client: ctx.client.clone(),
        clock: ctx.clock.clone(),
        cache: ctx.cache.clone(),
        grants: ctx.grants.clone(),
    };
    let ended = loop {
        if let Some(elector) = &mut elector {
            tokio::select! {
                // A replica that shuts down does not acquire the Lease.
                biased;
                () = &mut shutdown => break Ok(()),
                Some(ended) = watches.join_next() => break Err(WatchEnded::new(ended)),
                () = elector.acquire() => {}
                () = worker.drain_while_standby() => {}
            }
            ctx.cache.reset_for_leadership();
        }
        ctx.metrics.set_leader(true, ctx.clock.now());
        let ended = tokio::select! {
            // Once the Lease is lost, or the caches go stale, no reconcile starts.
            biased;
            () = until_lease_lost(&mut elector) => None,
            Some(ended) = watches.join_next() => Some(Err(WatchEnded::new(ended))),
            () = worker.run(keys, start, shutdown.clone()) => Some(Ok(())),
            () = async { shutdown.clone().await; sleep(SHUTDOWN_GRACE).await } => {
                tracing::warn!("shutdown grace period exceeded, cancelling in-flight reconciles");
                Some(Ok(()))
            }
            () = grant_counts.publish(&ctx.settings.shard) => Some(Ok(())),
            () = waits::follow_identity(&ctx.minter, &ctx.cache, &enqueuer) => Some(Ok(())),
            () = waits::follow_recoveries(&ctx.minter, &ctx.cache, &ctx.clock, &enqueuer) => Some(Ok(())),
        };
        // No reconcile of this term is left when the next term starts, or the Lease is released.
        worker.cancel_all().await;
        ctx.metrics.set_leader(false, ctx.clock.now());
        if let Some(ended) = ended {
            break ended;
        }
    };
    if let Some(elector) = &mut elector {
        elector.release().await;
    }
    watches.shutdown().await;
    ended
}

/// Returns when the Lease is lost; never without an election.
async fn until_lease_lost(elector: &mut Option<ElectorThread>) {
    match elector {
        Some(elector) => elector.renew_until_lost().await,
        None => std::future::pending().await,
    }
}

/// Spawns what runs on standbys as well: it keeps the caches as they are to be when this replica leads.
fn spawn_watches(ctx: &Context, enqueuer: Enqueuer, sync_state: &SyncState, tasks: &mut JoinSet<()>) {
    let watch_ctx = WatchContext {
        client: ctx.client.clone(),
        connections: ctx.connections.clone(),
        clock: ctx.clock.clone(),
        shard: ctx.settings.shard.clone(),
        cache: ctx.cache.clone(),
        foreign_secrets: ctx.foreign_secrets.clone(),
        grants: ctx.grants.clone(),
        metrics: ctx.metrics.clone(),
        enqueuer,
        sync_state: sync_state.clone(),
    };
    watch::spawn(watch_ctx, ctx.settings.grants_file.clone(), tasks);
    tasks.spawn(evict_expired(ctx.federated.clone()));
}

async fn evict_expired(tokens: Arc<FederatedTokens>) {
    loop {
        sleep(EVICTION_INTERVAL).await;
        tokens.evict_expired();
    }
}

#[cfg(test)]
#[path = "standby_tests.rs"]
mod standby_tests;
