//! `renew`: requests new tokens by an annotation, and waits for them with `--wait`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::api::{GROUP, annotations};
use idtoken_operator::shell::quote;
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::{Instant, sleep};

use crate::args::{ClusterArgs, positive_duration};
use crate::decisions::renewal::{Progress, progress};
use crate::kubernetes::client::KubeClient;
use crate::kubernetes::error::ApiError;
use crate::output::{self, redacted};

/// Time between two reads of the status with `--wait`.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Flags of `renew`.
#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// Name of the IdTokenRequest
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,

    /// Renew all IdTokenRequests of the namespace
    #[arg(long, help_heading = "Renewal")]
    all: bool,

    /// Wait until the operator has renewed the token
    #[arg(long, help_heading = "Renewal")]
    wait: bool,

    /// Longest time to wait, such as 90s or 5m
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = positive_duration, requires = "wait", help_heading = "Renewal")]
    timeout: Duration,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Sets the annotation of each request; with `--wait`, waits until all are renewed.
///
/// # Errors
/// A request cannot be read or patched, or is not renewed within `--timeout`.
pub(crate) async fn run(args: RenewArgs) -> Result<ExitCode> {
    let client = KubeClient::connect(&args.cluster)?;
    let names: Vec<String> = match args.name {
        Some(name) => vec![name],
        None => client
            .requests()
            .await?
            .iter()
            .map(ResourceExt::name_any)
            .collect(),
    };
    if names.is_empty() {
        output::notice(format_args!(
            "there is no IdTokenRequest in namespace {}",
            quote(&client.namespace)
        ));
        return Ok(ExitCode::SUCCESS);
    }
    // With its fraction of a second, the value differs from that of another call in the same second.
    let request_id = Timestamp::now().to_string();
    let mut failures = Vec::new();
    let mut pending = Vec::new();
    for name in names {
        match client.annotate(&name, annotations::RENEW, &request_id).await {
            Ok(()) => {
                output::print(format_args!(
                    "idtokenrequest.{GROUP}/{} renewal requested\n",
                    redacted(&name)
                ))?;
                pending.push(name);
            }
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    if args.wait {
        failures.extend(wait(&client, pending, &request_id, args.timeout).await?);
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not renewed: {}", failures.join("; "));
}

/// Waits until no renewal is pending or `timeout` has passed. Returns the failures.
async fn wait(
    client: &KubeClient,
    mut pending: Vec<String>,
    request_id: &str,
    timeout: Duration,
) -> Result<Vec<String>> {
    let deadline = Instant::now() + timeout;
    let mut failures = Vec::new();
    loop {
        let mut unfinished = Vec::new();
        for (name, object) in fetch(client, pending).await? {
            let state = object.map_or_else(
                || Progress::Failed("it was deleted meanwhile".to_owned()),
                |object| progress(&object, request_id),
            );
            match state {
                Progress::Done => {
                    output::print(format_args!(
                        "idtokenrequest.{GROUP}/{} renewed\n",
                        redacted(&name)
                    ))?;
                }
                Progress::Pending(why) => unfinished.push((name, why)),
                Progress::Failed(why) => failures.push(format!("{name}: {why}")),
            }
        }
        if unfinished.is_empty() {
            return Ok(failures);
        }
        if Instant::now() + POLL_INTERVAL > deadline {
            let namespace = quote(&client.namespace);
            failures.extend(unfinished.into_iter().map(|(name, why)| {
                format!(
                    "{name}: {why} (see: kubectl idtoken explain {} -n {namespace})",
                    quote(&name)
                )
            }));
            return Ok(failures);
        }
        pending = unfinished.into_iter().map(|(name, _)| name).collect();
        sleep(POLL_INTERVAL).await;
    }
}

/// Reads the requests, `None` for one that does not exist: a single one with a get, several with one list.
async fn fetch(
    client: &KubeClient,
    names: Vec<String>,
) -> Result<Vec<(String, Option<IdTokenRequest>)>, ApiError> {
    if let [name] = names.as_slice() {
        return match client.request(name).await {
            Ok(object) => Ok(vec![(name.clone(), Some(object))]),
            Err(ApiError::NotFound { .. }) => Ok(vec![(name.clone(), None)]),
            Err(error) => Err(error),
        };
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let objects = client.requests().await?;
    let with_object = |name: String| {
        let mut objects = objects.iter();
        let object = objects.find(|object| object.metadata.name.as_ref() == Some(&name));
        (name, object.cloned())
    };
    Ok(names.into_iter().map(with_object).collect())
}
