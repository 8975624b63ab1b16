//! Wires the parts of the process, and starts and stops them in order.

use std::sync::Arc;
use std::time::Duration;

use kube::Config;
use rustix::process::{Resource, Rlimit, setrlimit};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{FIELD_MANAGER, crds};
use crate::cli::{Cli, Command, LeaderArgs, RunArgs};
use crate::clock::Clock;
use crate::controller::{
    self, Context, Permits, cache::Cache, cache::foreign_secrets::ForeignSecrets,
    issue::federation::FederatedTokens, watch::grants_file, watch::sync_state::SyncState,
};
use crate::google::{CallGate, CallRecord, ConfigError, GoogleConfig, Minter, Transport};
use crate::grants::file::{GrantsFileError, read_file};
use crate::grants::store::GrantStore;
use crate::kubernetes::events::EventRecorder;
use crate::leader::{self, ElectionSettings, Elector, ElectorThread, Fence, FenceClosed, Overlaps};
use crate::liveness::Liveness;
use crate::metrics::{self, Metrics};
use crate::random::{Random, RandomError};
use crate::{admin, kubernetes, probe, telemetry};

/// Why the operator does not start, or stops.
#[derive(Debug, Error)]
pub enum AppError {
    /// The log filter cannot be parsed.
    #[error("--log is no filter such as info or info,hyper=debug: {0}")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    /// No cluster is configured, or its proxy cannot be used.
    #[error(transparent)]
    Cluster(#[from] kubernetes::ConfigError),
    /// The client of the cluster cannot be set up.
    #[error("the Kubernetes client cannot be set up: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The settings of Google's endpoints are invalid.
    #[error(transparent)]
    Google(#[from] ConfigError),
    /// The grants file cannot be read.
    #[error("--grants-file {path}: {source}")]
    GrantsFile {
        /// The file.
        path: String,
        /// What is wrong.
        source: GrantsFileError,
    },
    /// The timings of the Lease do not fit together.
    #[error(transparent)]
    Lease(#[from] leader::InvalidTimings),
    /// The admin server cannot listen.
    #[error("--listen {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The controller stopped.
    #[error(transparent)]
    Controller(#[from] controller::WatchEnded),
    /// The admin server stopped.
    #[error("the server of --listen stopped: {0}")]
    Admin(String),
    /// The probe failed.
    #[error(transparent)]
    Probe(#[from] probe::ProbeError),
    /// Signal handlers, standard output or the limit of core dumps.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// No random identity for the Lease.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The CustomResourceDefinitions cannot be serialized.
    #[error("the CustomResourceDefinitions cannot be written as YAML: {0}")]
    Yaml(String),
}

/// Runs the command.
///
/// # Errors
/// The operator cannot start, or an essential part of it stopped.
pub async fn run(cli: Cli) -> Result<(), AppError> {
    match cli.command {
        Command::Run(args) => run_operator(*args).await,
        Command::Crds => print_crds(&mut std::io::stdout()),
        Command::Probe { timeout, url } => Ok(probe::probe(&url, Duration::from_secs(timeout)).await?),
    }
}

/// Writes the CustomResourceDefinitions as YAML documents.
///
/// # Errors
/// Serializing or writing failed.
pub fn print_crds(out: &mut impl std::io::Write) -> Result<(), AppError> {
    for crd in crds() {
        let yaml = serde_saphyr::to_string(&crd).map_err(|error| AppError::Yaml(error.to_string()))?;
        write!(out, "---\n{yaml}")?;
        if !yaml.ends_with('\n') {
            writeln!(out)?;
        }
    }
    Ok(())
}

/// However the process is killed, it leaves no file with its memory, which holds tokens.
fn disable_core_dumps() -> std::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(setrlimit(Resource::Core, none)?)
}

async fn run_operator(args: RunArgs) -> Result<(), AppError> {
    disable_core_dumps()?;
    telemetry::init(args.log_format, &args.log)?;
    let (clock, random) = (Clock::system(), Random::system());
    let settings = args.settings();
    let listen = args.listen;
    let metrics = Arc::new(Metrics::new(metrics::Options {
        per_request: args.metrics_per_request,
    }));
    let observer = {
        let metrics = metrics.clone();
        Arc::new(move |call: &CallRecord| {
            metrics.observe_upstream_call(call.endpoint, call.code, call.duration, call.waited)
        })
    };
    let fence = match args.leader.leader_elect {
        true => Fence::closed(clock.clone()),
        false => Fence::open(clock.clone()),
    };
    if let Some(deprecation) = args.google.deprecation() {
        tracing::warn!("{deprecation}");
    }
    let mut google: GoogleConfig = args.google.into();
    let calls = fence.clone();
    google.clock = clock.clone();
    google.transport = Transport::network();
    google.call_gate = Some(CallGate::new(move || calls.is_open()));
    let minter = Minter::new(google)?.with_observer(observer);
    let grants = Arc::new(GrantStore::default());
    if let Some(path) = &settings.grants_file {
        let grants_error = |source| AppError::GrantsFile {
            path: path.display().to_string(),
            source,
        };
        let read = read_file(path).map_err(grants_error)?;
        grants_file::install(read, &grants, &metrics);
    }
    let config = kubernetes::config().await?;
    let election = match args.leader.leader_elect {
        true => Some(election_settings(&args.leader, &settings, &config, &random)?),
        false => None,
    };
    let clients = Arc::new(kubernetes::Clients::new(config)?);
    let elector = match election.clone() {
        Some(election) => {
            let (clients, fence, metrics, clock) =
                (clients.clone(), fence.clone(), metrics.clone(), clock.clone());
            let make = move || {
                // Its client is not fenced: it writes the Lease while the fence is closed.
                let client = clients.client(|| Ok::<(), FenceClosed>(()))?;
                Ok::<_, AppError>(Elector::new(client, election, fence, metrics, clock))
            };
            Some(ElectorThread::start(make).await?)
        }
        None => None,
    };
    // Everything else writes by this client, so no write bypasses the fence.
    let writes = fence.clone();
    let client = clients.client(move || writes.check())?;
    let connect = move || clients.client(|| Err(FenceClosed));
    let connections = kubernetes::Connections::new(args.max_watches_per_connection.into(), connect);
    let listen_error = |source| AppError::Listen {
        address: listen.to_string(),
        source,
    };
    let listener = admin::listen(listen).map_err(listen_error)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %listener.local_addr()?, "starting the operator");

    let liveness = Liveness::new(controller::max_reconcile_duration(&settings), clock.monotonic());
    let (sync_state, overlaps) = (SyncState::default(), Overlaps::default());
    let server = admin::serve(
        listener,
        metrics.clone(),
        grants.clone(),
        sync_state.clone(),
        overlaps.clone(),
        liveness.clone(),
        clock.clone(),
    )?;
    let permits = Permits::new(settings.concurrency.into(), clock.clone());
    let ctx = Arc::new(Context {
        events: Arc::new(EventRecorder::new(
            client.clone(),
            std::env::var("HOSTNAME").ok(),
            metrics.clone(),
            clock.clone(),
        )),
        federated: Arc::new(FederatedTokens::new(clock.clone())),
        clock,
        client,
        connections: Arc::new(connections),
        minter,
        cache: Arc::new(Cache::new(settings.cache_limits)),
        foreign_secrets: Arc::new(ForeignSecrets::default()),
        grants,
        metrics,
        permits,
        settings,
    });
    let loads = ctx.clone();
    ctx.metrics.register_load_collector(move || loads.minter.loads());
    let cache = ctx.cache.clone();
    ctx.metrics.register_cache_collector(move || cache.usage());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down, draining in-flight reconciles");
    };
    let certificates = ctx.clone();
    let (client, metrics, clock) = (ctx.client.clone(), ctx.metrics.clone(), ctx.clock.clone());
    let follow_overlaps = async move {
        let Some(election) = election else {
            return std::future::pending().await;
        };
        leader::follow_overlaps(client, election, fence, overlaps, metrics, clock).await
    };
    tokio::select! {
        biased;
        stopped = controller::run(ctx, elector, liveness, sync_state, shutdown) => Ok(stopped?),
        stopped = server => Err(AppError::Admin(match stopped {
            Ok(Ok(())) => "without an error".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        })),
        never = certificates.minter.follow_certificates() => match never {},
        never = follow_overlaps => match never {},
    }
}

fn election_settings(
    args: &LeaderArgs,
    settings: &controller::Settings,
    config: &Config,
    random: &Random,
) -> Result<ElectionSettings, AppError> {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| FIELD_MANAGER.into());
    let former_name = settings.shard.lease_name();
    let election = ElectionSettings {
        former_name: args.lease_name.as_ref().map(|_| former_name.clone()),
        namespace: args
            .lease_namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone()),
        name: args.lease_name.clone().unwrap_or(former_name),
        identity: lease_identity(&host, random)?,
        shard: settings.shard.clone(),
        lease_duration: Duration::from_secs(args.lease_duration),
        renew_deadline: Duration::from_secs(args.renew_deadline),
        retry_period: Duration::from_secs(args.retry_period),
    };
    election.check()?;
    Ok(election)
}

/// The host's name is not enough: a restarted container has the same name, but not the state of the process before it.
fn lease_identity(host: &str, random: &Random) -> Result<String, RandomError> {
    let mut suffix = [0; 8];
    random.fill(&mut suffix)?;
    Ok(format!("{host}_{:016x}", u64::from_ne_bytes(suffix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_lease_identity_of_its_own() {
        let sevens = Random::new(|bytes| {
            bytes.fill(7);
            Ok(())
        });
        assert_eq!(lease_identity("pod", &sevens).unwrap(), "pod_0707070707070707");
        let failing = Random::new(|_| Err(RandomError));
        assert_eq!(lease_identity("pod", &failing), Err(RandomError));
        let system = Random::system();
        assert_ne!(lease_identity("pod", &system), lease_identity("pod", &system));
    }
}
