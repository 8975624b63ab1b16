//! `renew`: asks the operator for new tokens by an annotation, and waits for them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use idtoken_operator::api::annotations;
use idtoken_operator::api::conditions::{READY, RENEWAL_FAILING, reason};
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use idtoken_operator::google::shell::quote;
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::{Instant, sleep};

use crate::args::{ClusterArgs, duration};
use crate::kubernetes::client::{ApiError, Cluster};
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
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration, requires = "wait", help_heading = "Renewal")]
    timeout: Duration,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// How far a renewal is.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// The Secret holds a token that was minted after the request for it.
    Done,
    /// Not yet, and why as far as is known.
    Waiting(String),
    /// It will not happen by itself.
    Failed(String),
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

fn progress(object: &IdTokenRequest, stamp: &str) -> Progress {
    let asked = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(annotations::RENEW));
    if asked.map(String::as_str) != Some(stamp) {
        return Progress::Failed(
            "somebody else has changed the annotation idtoken.dev/renew meanwhile".to_owned(),
        );
    }
    if object.spec.suspend.unwrap_or(false) {
        return Progress::Failed("it is suspended (spec.suspend)".to_owned());
    }
    let Some(status) = &object.status else {
        return Progress::Waiting("the operator has not looked at it yet".to_owned());
    };
    let condition = |type_| status.condition(type_);
    let handled = status.last_handled_renew_request.as_deref() == Some(stamp);
    let ready = condition(READY);
    match (handled, ready) {
        (true, Some(ready)) if ready.status == "True" => return Progress::Done,
        // No renewal helps a spec that the operator refuses.
        (_, Some(ready))
            if [reason::INVALID_SPEC, reason::SOURCE_UNAVAILABLE].contains(&ready.reason.as_str())
                && status.observed_generation == object.metadata.generation =>
        {
            return Progress::Failed(format!("{}: {}", ready.reason, shown(&ready.message)));
        }
        _ => {}
    }
    let failing = condition(RENEWAL_FAILING).filter(|failing| failing.status == "True");
    let why = failing.or_else(|| ready.filter(|ready| ready.status != "True"));
    Progress::Waiting(why.map_or_else(
        || "the operator has not renewed it in time".to_owned(),
        |condition| format!("{}: {}", condition.reason, shown(&condition.message)),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const STAMP: &str = "2026-01-01T00:00:00.5Z";

    fn state(spec: Value, status: Value) -> Progress {
        let mut full = json!({"audience": "https://a", "serviceAccount": "1"});
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let object = json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "a", "namespace": "b", "generation": 2, "annotations": {"idtoken.dev/renew": STAMP}},
            "spec": full, "status": status,
        });
        progress(&serde_json::from_value(object).unwrap(), STAMP)
    }

    fn condition(type_: &str, status: &str, reason: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn done_when_handled_and_ready() {
        let status = |handled: &str, ready: &str| json!({"lastHandledRenewRequest": handled, "conditions": [condition("Ready", ready, "Issued")]});
        assert_eq!(state(json!({}), status(STAMP, "True")), Progress::Done);
        assert!(matches!(
            state(json!({}), status("before", "True")),
            Progress::Waiting(_)
        ));
        assert!(matches!(
            state(json!({}), status(STAMP, "False")),
            Progress::Waiting(_)
        ));
    }

    #[test]
    fn what_will_not_happen_is_not_waited_for() {
        assert!(matches!(
            state(json!({"suspend": true}), json!({})),
            Progress::Failed(_)
        ));
        let refused = |seen: i64| json!({"observedGeneration": seen, "conditions": [condition("Ready", "False", "InvalidSpec")]});
        assert_eq!(
            state(json!({}), refused(2)),
            Progress::Failed("InvalidSpec: m".to_owned())
        );
        assert_eq!(
            state(json!({}), refused(1)),
            Progress::Waiting("InvalidSpec: m".to_owned())
        );
    }

    #[test]
    fn a_failing_renewal_says_why() {
        let status = json!({"conditions": [
            condition("Ready", "True", "Issued"), condition("RenewalFailing", "True", "PermissionDenied"),
        ]});
        assert_eq!(
            state(json!({}), status),
            Progress::Waiting("PermissionDenied: m".to_owned())
        );
    }

    #[test]
    fn another_request_for_renewal_ends_the_wait() {
        let object: IdTokenRequest = serde_json::from_value(json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": "a", "annotations": {"idtoken.dev/renew": "other"}}, "spec": {"audience": "a"},
        }))
        .unwrap();
        assert!(matches!(progress(&object, STAMP), Progress::Failed(_)));
    }
}
