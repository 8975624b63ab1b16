//! `audit`: requests with source.federation whose author the admission policy has not checked.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{ClusterArgs, OutputFormat};
use crate::decisions::admission_policy::{self, Guard};
use crate::decisions::unverified_requests::{Unchecked, unchecked};
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

    #[test]
    fn lists_namespace_name_and_service_account() {
        let one = Unchecked {
            namespace: "shop".to_owned(),
            name: "after".to_owned(),
            service_account: "billing".to_owned(),
            created: None,
        };
        let text = text(None, None, Some("none"), &[one]);
        assert!(text.contains("shop        after   billing"), "{text}");
    }
}
