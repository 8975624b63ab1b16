//! `audit`: requests with source.federation whose author the admission policy has not checked.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use idtoken_operator::api::v1alpha1::IdTokenRequest;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{ClusterArgs, OutputFormat};
use crate::decisions::admission_policy::{self, Guard};
use crate::kubernetes::client::Cluster;
use crate::output::table;
use crate::output::{self, shown};

/// Flags of `audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// The requests of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace", help_heading = "Cluster")]
    all_namespaces: bool,

    /// Form of the list
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: OutputFormat,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The answer as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    unchecked: Vec<Unchecked>,
}

/// A request whose author is not known to have been checked.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unchecked {
    namespace: String,
    name: String,
    service_account: String,
    created: Option<Timestamp>,
}

/// Lists them.
///
/// # Errors
/// The caller may not list requests, or the policies.
pub(crate) async fn run(args: AuditArgs) -> Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let (policies, bindings) = cluster.admission().await?;
    let guard = admission_policy::guard(&policies, &bindings);
    let requests = match args.all_namespaces {
        true => cluster.all_requests().await?,
        false => cluster.requests().await?,
    };
    let unchecked = unchecked(&requests, &guard);
    let code = match unchecked.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    };
    let (policy, since, problem) = match guard {
        Guard::Since { policy, since } => (Some(policy), Some(since), None),
        Guard::Missing(problem) => (None, None, Some(problem)),
    };
    match args.output {
        OutputFormat::Json => output::json(&Answer {
            policy,
            since,
            problem,
            unchecked,
        })?,
        OutputFormat::Text => output::print(text(policy.as_deref(), since, problem.as_deref(), &unchecked))?,
    }
    Ok(code)
}

/// Those of `requests` with source.federation that were created before the policy was at work. The creation time is the API server's
/// own, which no author can set; the managers and times of fields can be set by authors, so they tell nothing.
pub(crate) fn unchecked(requests: &[IdTokenRequest], guard: &Guard) -> Vec<Unchecked> {
    let mut found: Vec<Unchecked> = requests
        .iter()
        .filter_map(|request| {
            let federation = request.spec.source.as_ref()?.federation.as_ref()?;
            let meta = &request.metadata;
            let created = meta.creation_timestamp.as_ref().map(|time| time.0);
            let checked = match guard {
                Guard::Since { since, .. } => {
                    created.is_some_and(|created| created > *since + admission_policy::SETTLED)
                }
                Guard::Missing(_) => false,
            };
            (!checked).then(|| Unchecked {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                service_account: federation.service_account_ref.name.clone(),
                created,
            })
        })
        .collect();
    found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    found
}

fn text(
    policy: Option<&str>,
    since: Option<Timestamp>,
    problem: Option<&str>,
    unchecked: &[Unchecked],
) -> String {
    let mut text = match (policy, since, problem) {
        (Some(policy), Some(since), _) => {
            format!(
                "ValidatingAdmissionPolicy {} has checked every author since {since}.\n",
                shown(policy)
            )
        }
        (.., problem) => format!(
            "No admission policy checks the authors of requests with source.federation: {}.\n",
            shown(problem.unwrap_or_default())
        ),
    };
    if unchecked.is_empty() {
        text.push_str("There is no request with source.federation whose author was not checked.\n");
        return text;
    }
    let rows: Vec<[String; 4]> = unchecked
        .iter()
        .map(|one| {
            [
                shown(&one.namespace),
                shown(&one.name),
                shown(&one.service_account),
                one.created.map(|time| time.to_string()).unwrap_or_default(),
            ]
        })
        .collect();
    text.push_str("\nNobody is known to have checked who wrote these:\n\n");
    text.push_str(&table::render(
        ["NAMESPACE", "NAME", "SERVICEACCOUNT", "CREATED"],
        &rows,
    ));
    text.push_str(
        "\nDelete those that nobody answers for, and have the others created anew by who may create tokens of their \
         ServiceAccount.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, created: &str, source: serde_json::Value) -> IdTokenRequest {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "idtoken.dev/v1alpha1", "kind": "IdTokenRequest",
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
            "spec": {"audience": "a", "source": source},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_not_provably_newer_than_the_policy_is_listed() {
        let federation = serde_json::json!({"federation": {"serviceAccountRef": {"name": "billing"}}});
        let requests = [
            request("before", "2026-01-01T00:00:00Z", federation.clone()),
            request("soon", "2026-01-01T01:00:59Z", federation.clone()),
            request("after", "2026-01-01T01:01:01Z", federation),
            request(
                "other",
                "2026-01-01T00:00:00Z",
                serde_json::json!({"impersonation": {}}),
            ),
        ];
        let names = |guard: &Guard| -> Vec<String> {
            unchecked(&requests, guard)
                .into_iter()
                .map(|one| one.name)
                .collect()
        };
        let since = Guard::Since {
            policy: "p".into(),
            since: "2026-01-01T01:00:00Z".parse().unwrap(),
        };
        assert_eq!(names(&since), ["before", "soon"]);
        let missing = Guard::Missing("none".into());
        assert_eq!(names(&missing), ["after", "before", "soon"]);
        let shown = text(None, None, Some("none"), &unchecked(&requests, &missing));
        assert!(shown.contains("shop        after    billing"), "{shown}");
    }
}
