//! `audit`: lists requests with source.federation whose author no admission policy has checked.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{ClusterArgs, OutputFormat};
use crate::decisions::admission_policy::{self, PolicyCoverage};
use crate::decisions::unverified_requests::{UnverifiedRequest, unverified};
use crate::kubernetes::client::KubeClient;
use crate::output::table;
use crate::output::{self, redacted};

/// Flags of `audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// List the requests of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace", help_heading = "Cluster")]
    all_namespaces: bool,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: OutputFormat,

    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The result as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(rename = "unchecked")]
    unverified: Vec<UnverifiedRequest>,
}

/// Reads the requests and the policies, and prints the unverified requests. Exits with 1 if there are any.
///
/// # Errors
/// The caller may not list the requests, policies or bindings.
pub(crate) async fn run(args: AuditArgs) -> Result<ExitCode> {
    let client = KubeClient::connect(&args.cluster).await?;
    let (policies, bindings) = client.admission_policies().await?;
    let coverage = admission_policy::coverage(&policies, &bindings);
    let requests = match args.all_namespaces {
        true => client.all_requests().await?,
        false => client.requests().await?,
    };
    let unverified = unverified(&requests, &coverage);
    let code = match unverified.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    };
    match args.output {
        OutputFormat::Json => output::json(&Output::new(coverage, unverified))?,
        OutputFormat::Text => output::print(text(&coverage, &unverified))?,
    }
    Ok(code)
}

impl Output {
    fn new(coverage: PolicyCoverage, unverified: Vec<UnverifiedRequest>) -> Self {
        let (policy, since, problem) = match coverage {
            PolicyCoverage::Since { policy, since } => (Some(policy), Some(since), None),
            PolicyCoverage::Missing(problem) => (None, None, Some(problem)),
        };
        Self {
            policy,
            since,
            problem,
            unverified,
        }
    }
}

fn text(coverage: &PolicyCoverage, unverified: &[UnverifiedRequest]) -> String {
    let mut text = match coverage {
        PolicyCoverage::Since { policy, since } => format!(
            "ValidatingAdmissionPolicy {} has checked every author since {since}.\n",
            redacted(policy)
        ),
        PolicyCoverage::Missing(problem) => format!(
            "No admission policy checks the authors of requests with source.federation: {}.\n",
            redacted(problem)
        ),
    };
    if unverified.is_empty() {
        text.push_str("No request with source.federation has an unchecked author.\n");
        return text;
    }
    let rows: Vec<[String; 4]> = unverified
        .iter()
        .map(|one| {
            [
                redacted(&one.namespace),
                redacted(&one.name),
                redacted(&one.service_account),
                one.created.map(|time| time.to_string()).unwrap_or_default(),
            ]
        })
        .collect();
    text.push_str("\nThe authors of these requests may not have been checked:\n\n");
    text.push_str(&table::render(
        ["NAMESPACE", "NAME", "SERVICEACCOUNT", "CREATED"],
        &rows,
    ));
    text.push_str(
        "\nDelete the requests that you cannot account for. Have the others recreated by a user who may create tokens of their \
         ServiceAccount.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_namespace_name_and_service_account() {
        let one = UnverifiedRequest {
            namespace: "shop".to_owned(),
            name: "after".to_owned(),
            service_account: "billing".to_owned(),
            created: None,
        };
        let text = text(&PolicyCoverage::Missing("none".to_owned()), &[one]);
        assert!(text.contains("shop        after   billing"), "{text}");
    }
}
