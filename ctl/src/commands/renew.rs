//! `renew`: asks the operator for new tokens by an annotation, and waits for them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use idtoken_operator::api::annotations;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::google::shell::quote;
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::{Instant, sleep};

use crate::args::{ClusterArgs, positive_duration};
use crate::decisions::renewal::{Progress, progress};
use crate::kubernetes::client::Cluster;
use crate::kubernetes::error::ApiError;
use crate::output::{self, shown};

/// How often the status is read while waiting.
const POLL: Duration = Duration::from_secs(1);

/// Flags of `renew`.
#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// Name of the IdTokenRequest
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,

    /// All IdTokenRequests of the namespace
    #[arg(long, help_heading = "Renewal")]
    all: bool,

    /// Wait until the operator has renewed
    #[arg(long, help_heading = "Renewal")]
    wait: bool,

    /// Longest time to wait, such as 90s or 5m
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = positive_duration, requires = "wait", help_heading = "Renewal")]
    timeout: Duration,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Annotates, and waits if asked to.
///
/// # Errors
/// A request cannot be read or annotated, or is not renewed in time.
pub(crate) async fn run(args: RenewArgs) -> Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let names: Vec<String> = match args.name {
        Some(name) => vec![name],
        None => cluster
            .requests()
            .await?
            .iter()
            .map(ResourceExt::name_any)
            .collect(),
    };
    if names.is_empty() {
        output::note(format_args!(
            "there is no IdTokenRequest in namespace {}",
            quote(&cluster.namespace)
        ));
        return Ok(ExitCode::SUCCESS);
    }
    // Below a second, so that a second call within the same second is a new value too.
    let stamp = Timestamp::now().to_string();
    let mut failures = Vec::new();
    let mut pending = Vec::new();
    for name in names {
        match cluster.annotate(&name, annotations::RENEW, &stamp).await {
            Ok(()) => {
                output::print(format_args!(
                    "idtokenrequest.idtoken.dev/{} asked for renewal\n",
                    shown(&name)
                ))?;
                pending.push(name);
            }
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    if args.wait {
        failures.extend(wait(&cluster, pending, &stamp, args.timeout).await?);
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not renewed: {}", failures.join("; "));
}

async fn wait(
    cluster: &Cluster,
    mut pending: Vec<String>,
    stamp: &str,
    timeout: Duration,
) -> Result<Vec<String>> {
    let deadline = Instant::now() + timeout;
    let mut failures = Vec::new();
    loop {
        let mut waiting = Vec::new();
        for (name, object) in look(cluster, pending).await? {
            let state = object.map_or_else(
                || Progress::Failed("it was deleted meanwhile".to_owned()),
                |object| progress(&object, stamp),
            );
            match state {
                Progress::Done => {
                    output::print(format_args!(
                        "idtokenrequest.idtoken.dev/{} renewed\n",
                        shown(&name)
                    ))?;
                }
                Progress::Waiting(why) => waiting.push((name, why)),
                Progress::Failed(why) => failures.push(format!("{name}: {why}")),
            }
        }
        if waiting.is_empty() {
            return Ok(failures);
        }
        if Instant::now() + POLL > deadline {
            let namespace = quote(&cluster.namespace);
            failures.extend(waiting.into_iter().map(|(name, why)| {
                format!(
                    "{name}: {why} (see: kubectl idtoken explain {} -n {namespace})",
                    quote(&name)
                )
            }));
            return Ok(failures);
        }
        pending = waiting.into_iter().map(|(name, _)| name).collect();
        sleep(POLL).await;
    }
}

/// Reads the requests: one alone by a get, many by one list.
async fn look(
    cluster: &Cluster,
    names: Vec<String>,
) -> Result<Vec<(String, Option<IdTokenRequest>)>, ApiError> {
    if let [name] = names.as_slice() {
        return match cluster.request(name).await {
            Ok(object) => Ok(vec![(name.clone(), Some(object))]),
            Err(ApiError::NotFound { .. }) => Ok(vec![(name.clone(), None)]),
            Err(error) => Err(error),
        };
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let objects = cluster.requests().await?;
    let find = |name: &String| {
        objects
            .iter()
            .find(|object| object.metadata.name.as_ref() == Some(name))
            .cloned()
    };
    Ok(names
        .into_iter()
        .map(|name| {
            let object = find(&name);
            (name, object)
        })
        .collect())
}
