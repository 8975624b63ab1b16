//! Wiring; what starts and stops in which order.

use std::sync::Arc;
use std::time::Duration;

use kube::Config;
use rustix::process::{Resource, Rlimit, setrlimit};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::api::{FIELD_MANAGER, crds};
use crate::cli::{Cli, Command, LeaderArgs, RunArgs};
use crate::controller::{
    self, Context, events::Events, federate::Federated, grants::Grants, grants::GrantsFileError,
    index::Index, obstacles::Obstacles, store::Store,
};
use crate::google::{CallRecord, ConfigError, GoogleConfig, MayCall, Minter};
use crate::leader::{self, Elector, Fence};
use crate::liveness::Liveness;
use crate::metrics::{self, GrantOrigin, Metrics};
use crate::{admin, kubernetes, probe, telemetry};

/// Why the operator does not start or run on.
#[derive(Debug, Error)]
pub enum AppError {
    /// The log filter.
    #[error("--log is no filter such as info or info,hyper=debug: {0}")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    /// No cluster.
    #[error(
        "no Kubernetes cluster is configured: set KUBECONFIG, or run in a pod with a ServiceAccount: {0}"
    )]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The client of the cluster.
    #[error("the Kubernetes client cannot be set up: {0}")]
    Kubernetes(#[from] kube::Error),
    /// Settings of Google's endpoints.
    #[error(transparent)]
    Google(#[from] ConfigError),
    /// The grants file.
    #[error("--grants-file {path}: {source}")]
    Grants {
        /// The file.
        path: String,
        /// What is wrong.
        source: GrantsFileError,
    },
    /// Times of the Lease.
    #[error(transparent)]
    Lease(#[from] leader::InvalidTimings),
    /// The address of the admin server.
    #[error("--listen {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The controller.
    #[error(transparent)]
    Controller(#[from] controller::WatchEnded),
    /// The admin server.
    #[error("the server of --listen ended: {0}")]
    Admin(String),
    /// The probe.
    #[error(transparent)]
    Probe(#[from] probe::ProbeError),
    /// Signals, or standard output.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The CustomResourceDefinitions cannot be written.
    #[error("the CustomResourceDefinitions cannot be written as YAML: {0}")]
    Yaml(String),
}

/// Runs the command.
///
/// # Errors
/// The operator cannot start, or an essential part of it ended.
pub async fn run(cli: Cli) -> Result<(), AppError> {
    match cli.command {
        Command::Run(args) => run_operator(*args).await,
        Command::Crds => print_crds(&mut std::io::stdout()),
        Command::Probe { url } => Ok(probe::probe(url).await?),
    }
}

/// Writes the CustomResourceDefinitions as YAML documents.
///
/// # Errors
/// Writing failed.
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

/// Whatever kills the process, no file with its memory, and the tokens in it, is left.
fn refuse_core_dumps() -> std::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(setrlimit(Resource::Core, none)?)
}

async fn run_operator(args: RunArgs) -> Result<(), AppError> {
    refuse_core_dumps()?;
    telemetry::init(args.log_format, &args.log)?;
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
        true => Fence::closed(),
        false => Fence::open(),
    };
    let mut google: GoogleConfig = args.google.into();
    let asked = fence.clone();
    google.may_call = Some(MayCall::new(move || asked.is_open()));
    let minter = Minter::new(google)?.with_observer(observer);
    let grants = Grants::default();
    if let Some(path) = &settings.grants_file {
        let refused = |source| AppError::Grants {
            path: path.display().to_string(),
            source,
        };
        let read = controller::grants::read_file(path).map_err(refused)?;
        metrics.set_grants(GrantOrigin::File, read.len());
        grants.set_file(read);
    }
    let config = kubernetes::config().await?;
    let elector = match args.leader.leader_elect {
        true => Some(elector(
            &config,
            &args.leader,
            &settings,
            &fence,
            metrics.clone(),
        )?),
        false => None,
    };
    // Whatever writes has this client, so that no write goes around the fence.
    let client = kubernetes::client(config, &fence)?;
    let refused = |source| AppError::Listen {
        address: listen.to_string(),
        source,
    };
    let listener = TcpListener::bind(listen).await.map_err(refused)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %listener.local_addr()?, "the operator starts");

    let liveness = Liveness::new(controller::longest_work(&settings));
    let (synced, synced_receiver) = watch::channel(false);
    let server = admin::serve(listener, metrics.clone(), synced_receiver, liveness.clone())?;
    let ctx = Arc::new(Context {
        events: Events::new(client.clone(), std::env::var("HOSTNAME").ok(), metrics.clone()),
        client,
        minter,
        requests: Store::default(),
        index: Index::default(),
        obstacles: Obstacles::default(),
        grants,
        federated: Federated::default(),
        metrics,
        turns: Arc::new(Semaphore::new(settings.concurrency.into())),
        settings,
    });
    let asked = ctx.clone();
    ctx.metrics.register_load_collector(move || asked.minter.loads());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("the operator ends: it finishes what is under way");
    };
    tokio::select! {
        ended = controller::run(ctx, elector, liveness, synced, shutdown) => Ok(ended?),
        ended = server => Err(AppError::Admin(match ended {
            Ok(Ok(())) => "without an error".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        })),
    }
}

/// Sets up the part in the election, with a client of its own.
fn elector(
    config: &Config,
    args: &LeaderArgs,
    settings: &controller::Settings,
    fence: &Fence,
    metrics: Arc<Metrics>,
) -> Result<Elector, AppError> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| std::io::Error::other("no random numbers"))?;
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| FIELD_MANAGER.into());
    let election = leader::ElectionSettings {
        namespace: args
            .lease_namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone()),
        name: args.lease_name.clone().unwrap_or_else(|| settings.shard.lease()),
        // A pod that is started anew has the same name, but not the same memory.
        identity: format!("{host}_{:016x}", u64::from_ne_bytes(random)),
        lease_duration: Duration::from_secs(args.lease_duration),
        renew_deadline: Duration::from_secs(args.renew_deadline),
        retry_period: Duration::from_secs(args.retry_period),
    };
    election.check()?;
    let client = kubernetes::client(config.clone(), &Fence::open())?;
    Ok(Elector::new(client, election, fence.clone(), metrics))
}
