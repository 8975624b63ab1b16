//! The controller: watches feed caches, caches name the requests to reconcile, and each reconcile goes through the phases.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use kube::Client;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch::{self as watch_channel, Receiver, Sender};
use tokio::task::JoinSet;

pub mod cache;
mod grant_counts;
pub mod issue;
mod queue;
pub mod reconcile;
pub mod watch;

use crate::api::ObjectKey;
use crate::clock::Clock;
use crate::google::{MAX_WAITING, Minter};
use crate::grants::store as grants;
use crate::kubernetes::events;
use crate::leader::Elector;
use crate::liveness::Liveness;
use crate::metrics::Metrics;
use crate::request as validate;
use crate::shard;
use issue::Issuer;
use issue::federation as federate;
use issue::write::SecretWriter;
use watch as watches;

use queue::worker::Worker;
use watch::{CacheKind, Enqueuer, Scope, SyncState};

/// Time for what is under way when the operator ends: less than a pod's usual grace period of 30 s.
const GRACE: Duration = Duration::from_secs(20);

/// Added to the time limits of work before it is taken for stuck.
const LENIENCE: Duration = Duration::from_secs(30);
/// How many reconciles may wait for Google at once: more than the queue of one namespace holds.
pub const WAITING: usize = 2 * MAX_WAITING;

/// How the controller works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Longest time for one reconcile.
    pub reconcile_timeout: Duration,
    /// How many reconciles run at once, those aside that wait for Google.
    pub concurrency: u16,
    /// How many of one namespace are under way at most, those included that wait for Google.
    pub of_a_namespace: usize,
    /// Which requests there are to work on.
    pub shard: shard::Shard,
    /// Where grants are read from beside the objects.
    pub grants_file: Option<std::path::PathBuf>,
    /// What is permitted of sources.
    pub sources: validate::SourceSettings,
}

/// What every reconcile uses.
pub struct Context {
    /// Client of the Kubernetes API.
    pub client: Client,
    /// Client of Google's endpoints.
    pub minter: Minter,
    /// What is known of requests and Secrets.
    pub cache: cache::Cache,
    /// Secrets of other clients that block a request.
    pub foreign_secrets: cache::foreign_secrets::ForeignSecrets,
    /// What is granted.
    pub grants: grants::GrantStore,
    /// Access tokens of federated ServiceAccounts.
    pub federated: federate::FederatedTokens,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Writes events.
    pub events: events::EventRecorder,
    /// As many permits as reconciles may run at once.
    pub turns: Arc<Semaphore>,
    /// The time.
    pub clock: Clock,
    /// Settings.
    pub settings: Settings,
}

impl Context {
    /// What brings tokens into Secrets.
    pub(crate) fn issuer(&self) -> Issuer<'_> {
        Issuer {
            client: &self.client,
            minter: &self.minter,
            cache: &self.cache,
            secrets: SecretWriter {
                client: &self.client,
                cache: &self.cache,
                foreign_secrets: &self.foreign_secrets,
            },
            grants: &self.grants,
            federated: &self.federated,
            sources: &self.settings.sources,
            metrics: &self.metrics,
            events: &self.events,
            clock: &self.clock,
        }
    }
}

/// A watch ended, which none does by itself: the caches would go stale unnoticed.
#[derive(Debug, thiserror::Error)]
#[error("a watch of the Kubernetes API ended: {0}; the operator ends too, to be started anew")]
pub struct WatchEnded(String);

/// The longest that one request's work takes, unless it is stuck.
pub fn longest_work(settings: &Settings) -> Duration {
    settings.reconcile_timeout + reconcile::publish::PUBLISH_TIMEOUT + LENIENCE
}

impl WatchEnded {
    fn new(ended: Result<(), tokio::task::JoinError>) -> Self {
        Self(
            ended
                .err()
                .map_or_else(|| "without an error".to_owned(), |error| error.to_string()),
        )
    }
}

/// Runs until `shutdown` resolves, then finishes what is under way. With an `elector` it works only while it holds the Lease. `synced`
/// turns true when all caches are filled, and the Lease could be read.
///
/// # Errors
/// A watch ended.
pub async fn run(
    ctx: Arc<Context>,
    mut elector: Option<Elector>,
    pulse: Liveness,
    synced: Sender<bool>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), WatchEnded> {
    let (one, one_receiver) = unbounded_channel();
    let (all, all_receiver) = unbounded_channel();
    let (filled, filled_receiver) = watch_channel::channel(HashSet::new());
    let mut desk = Worker::new(
        one_receiver,
        all_receiver,
        usize::from(ctx.settings.concurrency) + WAITING,
        ctx.settings.of_a_namespace,
        ctx.turns.clone(),
        pulse,
        ctx.metrics.clone(),
    );
    let mut watches = JoinSet::new();
    watch_all(&ctx, &mut watches, Enqueuer::new(one, all), filled);
    let mut shutdown = shutdown.boxed().shared();
    tokio::select! {
        () = &mut shutdown => return Ok(()),
        Some(ended) = watches.join_next() => return Err(WatchEnded::new(ended)),
        () = desk.idle() => {}
        () = async {
            all_filled(&ctx.settings, filled_receiver).await;
            if let Some(elector) = &mut elector {
                elector.wait_readable().await;
            }
        } => {}
    }
    let (requests, secrets) = ctx.cache.len();
    tracing::info!(requests, secrets, "the caches are filled");
    synced.send_replace(true);
    ctx.metrics.set_synced();

    let start = |key: &ObjectKey, turn| {
        let there = ctx.cache.has_request(key);
        there.then(|| reconcile::reconcile(key.clone(), ctx.clone(), turn))
    };
    let keys = |scope: &Scope| match scope {
        Scope::Everything => ctx.cache.request_keys(""),
        Scope::Namespace(name) => ctx.cache.request_keys(name),
    };
    let ended = loop {
        if let Some(elector) = &mut elector {
            tokio::select! {
                () = &mut shutdown => break Ok(()),
                Some(ended) = watches.join_next() => break Err(WatchEnded::new(ended)),
                () = desk.idle() => {}
                () = elector.acquire() => {}
            }
            ctx.cache.reset_for_leadership();
        }
        ctx.metrics.set_leader(true, Timestamp::now());
        let ended = tokio::select! {
            () = desk.work(keys, start, shutdown.clone()) => Some(Ok(())),
            Some(ended) = watches.join_next() => Some(Err(WatchEnded::new(ended))),
            () = grant_counts::tell(&ctx) => Some(Ok(())),
            () = keep(&mut elector) => None,
            () = async { shutdown.clone().await; tokio::time::sleep(GRACE).await } => {
                tracing::warn!("what is still under way is given up; the next start does it again");
                Some(Ok(()))
            }
        };
        // Nothing of this term is left when the next begins, or the Lease is given back.
        desk.abandon().await;
        ctx.metrics.set_leader(false, Timestamp::now());
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

/// Returns when the Lease is lost, which it never is without an election.
async fn keep(elector: &mut Option<Elector>) {
    match elector {
        Some(elector) => elector.renew_until_lost().await,
        None => std::future::pending().await,
    }
}

/// Starts all watches.
fn watch_all(ctx: &Arc<Context>, tasks: &mut JoinSet<()>, triggers: Enqueuer, filled: SyncState) {
    for scope in ctx.settings.shard.scopes() {
        tasks.spawn(watches::requests(
            ctx.clone(),
            scope.clone(),
            triggers.clone(),
            filled.clone(),
        ));
        tasks.spawn(watches::secrets(
            ctx.clone(),
            scope,
            triggers.clone(),
            filled.clone(),
        ));
    }
    if !ctx.settings.shard.is_namespaced() {
        tasks.spawn(watches::grants(ctx.clone(), triggers.clone(), filled.clone()));
        tasks.spawn(watches::namespaces(ctx.clone(), triggers.clone(), filled));
    }
    tasks.spawn(watches::clock(ctx.clone(), triggers.clone()));
    tasks.spawn(watch::foreign_secrets::watch(ctx.clone(), triggers.clone()));
    if let Some(path) = ctx.settings.grants_file.clone() {
        tasks.spawn(watches::grants_file(ctx.clone(), path, triggers));
    }
}

/// Returns when every cache is filled.
async fn all_filled(settings: &Settings, mut filled: Receiver<HashSet<CacheKind>>) {
    let mut every: Vec<CacheKind> = Vec::new();
    for scope in settings.shard.scopes() {
        every.extend([CacheKind::Requests(scope.clone()), CacheKind::Secrets(scope)]);
    }
    if !settings.shard.is_namespaced() {
        every.extend([CacheKind::Grants, CacheKind::Namespaces]);
    }
    // Fails only when all watches ended, which the caller sees too.
    let _ = filled
        .wait_for(|done| every.iter().all(|cache| done.contains(cache)))
        .await;
}
