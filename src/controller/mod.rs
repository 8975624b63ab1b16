//! The controller: watches feed caches, caches name the requests to reconcile, and each reconcile goes through the phases.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt, stream};
use kube::Client;
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{self, ObjectRef};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub mod apply;
pub mod authorize;
pub mod fault;
pub mod grants;
mod hash;
pub mod index;
pub mod mint;
pub mod names;
pub mod observe;
mod outcome;
pub mod plan;
mod reconcile;
pub mod render;
pub mod schedule;
mod source;
pub mod status;
mod steps;
pub mod template;
pub mod validate;
mod watches;

use crate::api::v1alpha1::IdTokenRequest;
use crate::google::Minter;
use crate::metrics::Metrics;
use watches::{Cache, Scope, Triggers};

/// Time for what is under way when the operator ends: less than a pod's usual grace period of 30 s.
const GRACE: Duration = Duration::from_secs(20);

/// How the controller works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Longest time for one reconcile.
    pub reconcile_timeout: Duration,
    /// How many reconciles run at once.
    pub concurrency: u16,
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
    /// The caches.
    pub index: index::Index,
    /// What is granted.
    pub grants: grants::Grants,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Writes events.
    pub recorder: Recorder,
    /// Settings.
    pub settings: Settings,
}

/// A watch ended, which none does by itself: the caches would go stale unnoticed.
#[derive(Debug, thiserror::Error)]
#[error("a watch of the Kubernetes API ended: {0}; the operator ends too, to be started anew")]
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

/// Runs until `shutdown` resolves, then finishes what is under way. `synced` turns true when all caches are filled.
///
/// # Errors
/// A watch ended.
pub async fn run(
    ctx: Arc<Context>,
    synced: watch::Sender<bool>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), WatchEnded> {
    let (one, one_receiver) = unbounded_channel();
    let (all, all_receiver) = unbounded_channel();
    let triggers = Triggers::new(one, all);
    let (store, writer) = reflector::store::<IdTokenRequest>();
    let (filled, mut filled_receiver) = watch::channel(HashSet::new());

    let mut tasks = JoinSet::new();
    tasks.spawn(watches::requests(
        ctx.clone(),
        writer,
        triggers.clone(),
        filled.clone(),
    ));
    tasks.spawn(watches::secrets(ctx.clone(), triggers.clone(), filled.clone()));
    tasks.spawn(watches::grants(ctx.clone(), triggers.clone(), filled.clone()));
    tasks.spawn(watches::namespaces(ctx.clone(), triggers.clone(), filled));
    tasks.spawn(watches::clock(triggers.clone()));
    if let Some(path) = ctx.settings.grants_file.clone() {
        tasks.spawn(watches::grants_file(ctx.clone(), path, triggers));
    }

    let mut shutdown = shutdown.boxed().shared();
    let every = [Cache::Requests, Cache::Secrets, Cache::Grants, Cache::Namespaces];
    tokio::select! {
        () = &mut shutdown => return Ok(()),
        Some(ended) = tasks.join_next() => return Err(WatchEnded::new(ended)),
        // Ends early only when all watches ended.
        _ = filled_receiver.wait_for(|done| every.iter().all(|cache| done.contains(cache))) => {}
    }
    let (requests, secrets) = ctx.index.sizes();
    tracing::info!(requests, secrets, "the caches are filled");
    synced.send_replace(true);

    let everything = {
        let store = store.clone();
        received(all_receiver).flat_map(move |scope| {
            let within = |object: &IdTokenRequest| match &scope {
                Scope::Everything => true,
                Scope::Namespace(name) => object.metadata.namespace.as_ref() == Some(name),
            };
            let all: Vec<_> = store
                .state()
                .iter()
                .filter(|object| within(object))
                .map(|object| ObjectRef::from_obj(object.as_ref()))
                .collect();
            stream::iter(all)
        })
    };
    let queue = stream::select(received(one_receiver), everything)
        .take_until(shutdown.clone())
        .map(Ok::<ObjectRef<IdTokenRequest>, std::convert::Infallible>);
    let reconciler = |object, ctx| {
        Box::pin(async { Ok::<_, std::convert::Infallible>(reconcile::reconcile(object, ctx).await) })
    };
    let config = controller::Config::default().concurrency(ctx.settings.concurrency);
    let work = applier(
        reconciler,
        |_, error, _| match *error {},
        ctx,
        store,
        queue,
        config,
    )
    .for_each(|result: Result<(ObjectRef<IdTokenRequest>, Action), _>| {
        if let Err(error) = result {
            // A request that is gone by its turn.
            tracing::debug!("nothing reconciled: {error}");
        }
        std::future::ready(())
    });
    let ended = tokio::select! {
        () = work => Ok(()),
        Some(ended) = tasks.join_next() => Err(WatchEnded::new(ended)),
        () = async { shutdown.await; tokio::time::sleep(GRACE).await } => {
            tracing::warn!("what is still under way is given up; the next start does it again");
            Ok(())
        }
    };
    tasks.shutdown().await;
    ended
}

fn received<T: Send + 'static>(mut receiver: UnboundedReceiver<T>) -> impl Stream<Item = T> + Send {
    stream::poll_fn(move |cx| receiver.poll_recv(cx))
}
